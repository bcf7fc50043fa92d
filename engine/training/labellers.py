"""Labels of the steps of sampled answers: by rollouts from every step, or only as far as the first error needs.

The two label the same answers, and roll a step out with the same random numbers.
"""

from __future__ import annotations

from collections.abc import Sequence

from engine.accounting import Ledger
from engine.runtime import Branch
from engine.training.sampler import Attempt, Sampler
from engine.types import Step

LABELLERS = ("every-step", "first-error")


async def answers_by_own_end(sampler: Sampler, num_samples: int) -> list[Attempt]:
    """Answers sampled to their end, which labels all of their steps."""
    attempts = await _open(sampler, num_samples)
    try:
        ends = await sampler.extend(
            [attempt.branch for attempt in attempts],
            [sampler.key("answer", (*attempt.address, 0)) for attempt in attempts],
            sampler.task.max_tokens,
        )
    finally:
        _close(attempts)
    for attempt, steps, is_right in zip(attempts, ends, sampler.are_right(ends), strict=True):
        attempt.steps, attempt.labels = steps, [float(is_right)] * len(steps)
    return attempts


async def answers_by_every_step(sampler: Sampler, num_samples: int, num_rollouts: int) -> list[Attempt]:
    """Answers whose steps are labelled by the share of rollouts from there that end right, the last by its own end."""
    attempts = await _open(sampler, num_samples)
    try:
        while live := [attempt for attempt in attempts if attempt.is_live]:
            await _advance(sampler, live)
            rolled = [attempt for attempt in live if attempt.is_live]
            shares = await _roll_out(sampler, [(each, each.branch, each.steps) for each in rolled], num_rollouts)
            for attempt, share in zip(rolled, shares, strict=True):
                attempt.labels.append(share)
    finally:
        _close(attempts)
    for attempt, is_right in zip(attempts, sampler.are_right([each.steps for each in attempts]), strict=True):
        attempt.labels.append(float(is_right))
    return attempts


async def answers_by_first_error(sampler: Sampler, num_samples: int, num_rollouts: int) -> list[Attempt]:
    """Answers whose first wrong step is found by bisection (Luo et al. 2024, OmegaPRM): k log M rollouts, not k M.

    It is the step behind which none of the rollouts ends right, although one does before it; the prompt counts as
    a place from where one does, and the whole of a wrong answer as one from where none does. Steps from it on are
    0. Those before it are the share of rollouts where some were made, and else 1, as all steps of a right answer
    are: labels to be read as hard ones.
    """
    attempts = await _open(sampler, num_samples)
    prefixes: dict[int, list[Branch]] = {index: [] for index in range(num_samples)}  # a branch behind every step
    try:
        while live := [index for index, attempt in enumerate(attempts) if attempt.is_live]:
            await _advance(sampler, [attempts[index] for index in live])
            for index in live:
                prefixes[index] += attempts[index].branch.fork(1)
        right = sampler.are_right([attempt.steps for attempt in attempts])
        for attempt, is_right in zip(attempts, right, strict=True):
            attempt.labels = [1.0] * (len(attempt.steps) - 1) + [float(is_right)]
        wrong = [i for i, attempt in enumerate(attempts) if attempt.is_ended and not right[i]]
        await _bisect(sampler, {i: attempts[i] for i in wrong}, prefixes, num_rollouts)
    finally:
        _close(attempts)
        for branches in prefixes.values():
            for branch in branches:
                branch.close()
    return attempts


async def _bisect(
    sampler: Sampler, attempts: dict[int, Attempt], prefixes: dict[int, list[Branch]], num_rollouts: int
) -> None:
    """Sets the labels of wrong answers; one round of rollouts halves the range of all of them."""
    ranges = {i: (0, len(attempt.steps)) for i, attempt in attempts.items()}  # steps: a right end seen, and none
    while todo := [i for i, (good, bad) in ranges.items() if bad - good > 1]:
        middles = [sum(ranges[i]) // 2 for i in todo]
        places = [
            (attempts[i], prefixes[i][middle - 1], attempts[i].steps[:middle])
            for i, middle in zip(todo, middles, strict=True)
        ]
        shares = await _roll_out(sampler, places, num_rollouts)
        for i, middle, share in zip(todo, middles, shares, strict=True):
            attempts[i].labels[middle - 1] = share
            ranges[i] = (middle, ranges[i][1]) if share > 0 else (ranges[i][0], middle)
    for i, (_, bad) in ranges.items():
        labels = attempts[i].labels
        labels[bad - 1 :] = [0.0] * (len(labels) - bad + 1)


async def _open(sampler: Sampler, num_samples: int) -> list[Attempt]:
    root = await sampler.policy.open(sampler.problem.prompt, ledger=Ledger())
    branches = root.fork(num_samples)
    root.close()
    return [Attempt((index,), branch) for index, branch in enumerate(branches)]


def _close(attempts: Sequence[Attempt]) -> None:
    for attempt in attempts:
        attempt.branch.close()


async def _advance(sampler: Sampler, live: Sequence[Attempt]) -> None:
    """One more step on every live attempt."""
    steps = await sampler.extend(
        [attempt.branch for attempt in live],
        [sampler.key("step", (*attempt.address, len(attempt.steps))) for attempt in live],
        [sampler.room(attempt.steps) for attempt in live],
        stop_at_step=True,
    )
    for attempt, (step,) in zip(live, steps, strict=True):
        attempt.steps.append(step)
        if step.finish == "step" and sampler.room(attempt.steps) < 1:
            attempt.steps[-1] = Step(step.token_ids, step.text, "length", step.logprob)


async def _roll_out(
    sampler: Sampler, places: Sequence[tuple[Attempt, Branch, Sequence[Step]]], num_rollouts: int
) -> list[float]:
    """For each place of an attempt, a branch and the steps up to it, the share of rollouts that end right."""
    forks, keys, rooms = [], [], []
    for attempt, branch, steps in places:
        attempt.num_rollouts += num_rollouts
        forks += branch.fork(num_rollouts)
        address = (*attempt.address, len(steps))
        keys += [sampler.key(f"rollout {number}", address) for number in range(num_rollouts)]
        rooms += [sampler.room(steps)] * num_rollouts
    if not forks:
        return []
    try:
        ends = await sampler.extend(forks, keys, rooms, purpose="lookahead", is_split=False)
    finally:
        for fork in forks:
            fork.close()
    owners = [steps for _, _, steps in places for _ in range(num_rollouts)]
    right = sampler.are_right([[*steps, *end] for steps, end in zip(owners, ends, strict=True)])
    return [sum(right[i : i + num_rollouts]) / num_rollouts for i in range(0, len(right), num_rollouts)]
