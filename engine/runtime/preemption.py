"""Who gives way when the KV pool is full."""

from __future__ import annotations

from collections.abc import Set
from typing import TYPE_CHECKING

from engine.errors import UserError
from engine.runtime.segments import Segment

if TYPE_CHECKING:
    from engine.runtime.runner import Runner


class PoolTooSmall(UserError):
    """A branch that cannot fit the KV pool however much is suspended."""


def free_some(runner: Runner, busy: Set[Segment], may_suspend: bool) -> bool:
    """Suspends one branch; False if there is none that may give way.

    (The tree has evicted closed prefixes before it raised.) Branches whose answer is finished go
    first: nobody samples from them again. Then the lowest-scored one, any other problem's before
    the oldest problem's own, so that the oldest always ends; one that holds no KV itself, whose ancestors might
    then be dropped, after those that do. Only leaves are dropped, never an ancestor that a resident branch shares.
    """
    jobs = {job.partial: job for job in runner.decoding.rows.decoding_jobs()}
    leaves = [
        segment for segment in runner.store.leaves() if segment not in busy and (may_suspend or segment not in jobs)
    ]
    if not leaves:
        return False
    oldest = min(segment.age for segment in runner.store.resident)

    def turn(segment: Segment) -> tuple:
        is_empty = runner.tree.num_tokens(segment.handle) <= segment.start
        return not segment.is_finished, segment.age == oldest, is_empty, segment.priority, -segment.age, -segment.start

    victim = min(leaves, key=turn)
    if victim in jobs:
        runner.suspend(jobs[victim])
    else:
        runner.store.drop(victim)
    return True
