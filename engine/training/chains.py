"""Samples chains of revisions, in which each attempt is given the last few before it (Snell et al. 2024, section 6.1).

The outcome verifier of revisions is trained on them.
"""

from __future__ import annotations

from collections.abc import Sequence

from engine.accounting import Ledger
from engine.prompts.histories import after_attempts
from engine.runtime import Branch
from engine.training.sampler import SampledAnswer, Sampler


async def sample_chains(sampler: Sampler, num_chains: int, num_attempts: int, context: int) -> list[SampledAnswer]:
    """The attempts of all chains, chain by chain; all steps of an attempt are labelled 1 if it is right, else 0.

    An attempt is given the last `context` finished attempts of its chain, or fewer if no room for an answer is left
    in the model's context. Unfinished attempts are not given to later ones.
    """
    chains: list[list[SampledAnswer]] = [[] for _ in range(num_chains)]
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


def _open(sampler: Sampler, chains: Sequence[Sequence[SampledAnswer]], turn: int, context: int) -> list[SampledAnswer]:
    """Opens the next attempt of every chain. Chains with the same history share the branch of their prefix."""
    llm = sampler.policy.llm
    prompt = sampler.policy.encode(sampler.problem.prompt)
    roots: dict[tuple[int, ...], Branch] = {}
    attempts: list[SampledAnswer] = []
    for index, chain in enumerate(chains):
        history = [attempt.token_ids for attempt in chain if attempt.is_ended][-context:]
        while history and len(after_attempts(prompt, history)) + sampler.task.max_tokens > llm.config.context:
            history = history[1:]
        ids = tuple(after_attempts(prompt, history))
        if ids not in roots:
            roots[ids] = llm.open(ids, ledger=Ledger())
        attempts.append(SampledAnswer((index, turn), roots[ids].fork(1)[0], history=history))
    for root in roots.values():
        root.close()
    return attempts
