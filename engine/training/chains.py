"""Chains of attempts, as a revision model makes them: each is given the last few before it (Snell et al. 2024, 6.1).

They are what the outcome verifier of revisions is trained on.
"""

from __future__ import annotations

from collections.abc import Sequence

from engine.accounting import Ledger
from engine.prompts.histories import after_attempts
from engine.runtime import Branch
from engine.training.sampler import Attempt, Sampler


async def sample_chains(sampler: Sampler, num_chains: int, num_attempts: int, context: int) -> list[Attempt]:
    """The attempts of all chains, chain by chain, each labelled by its own end.

    An attempt sees the last `context` attempts of its chain that have ended, or as many of them as leave room for
    an answer in the model's context. One that never ends is no part of what later ones see.
    """
    chains: list[list[Attempt]] = [[] for _ in range(num_chains)]
    for turn in range(num_attempts):
        attempts = _open(sampler, chains, turn, context)
        try:
            ends = await sampler.extend(
                [attempt.branch for attempt in attempts],
                [sampler.key("answer", attempt.address) for attempt in attempts],
                sampler.task.max_tokens,
            )
        finally:
            for attempt in attempts:
                attempt.branch.close()
        right = sampler.are_right(ends)
        for chain, attempt, steps, is_right in zip(chains, attempts, ends, right, strict=True):
            attempt.steps, attempt.labels = steps, [float(is_right)] * len(steps)
            chain.append(attempt)
    return [attempt for chain in chains for attempt in chain]


def _open(sampler: Sampler, chains: Sequence[Sequence[Attempt]], turn: int, context: int) -> list[Attempt]:
    """The next attempt of every chain. Chains that have said the same so far share a branch up to here."""
    llm = sampler.policy.llm
    prompt = sampler.policy.encode(sampler.problem.prompt)
    roots: dict[tuple[int, ...], Branch] = {}
    attempts: list[Attempt] = []
    for index, chain in enumerate(chains):
        history = [attempt.token_ids for attempt in chain if attempt.is_ended][-context:]
        while history and len(after_attempts(prompt, history)) + sampler.task.max_tokens > llm.config.context:
            history = history[1:]
        ids = tuple(after_attempts(prompt, history))
        if ids not in roots:
            roots[ids] = llm.open(ids, ledger=Ledger())
        attempts.append(Attempt((index, turn), roots[ids].fork(1)[0], history=history))
    for root in roots.values():
        root.close()
    return attempts
