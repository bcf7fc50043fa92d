"""Samples answers and labels their steps by Monte-Carlo rollouts, from every step or only to find the first error.

Both ways label the same answers, and roll out a step with the same random numbers.
"""

from __future__ import annotations

from collections.abc import Sequence

from engine.accounting import Ledger
from engine.runtime import Branch
from engine.training.sampler import SampledAnswer, Sampler
from engine.types import Step

LABELLERS = ("every-step", "first-error")


async def answers_by_own_end(sampler: Sampler, num_samples: int) -> list[SampledAnswer]:
    """Answers whose steps are all labelled 1 if the answer is right, else 0; no rollouts."""
    answers = await _open(sampler, num_samples)
    try:
        ends = await sampler.extend(
            [answer.branch for answer in answers],
            [sampler.key("answer", (*answer.address, 0)) for answer in answers],
            sampler.task.max_tokens,
        )
    finally:
        _close(answers)
    for answer, steps, is_right in zip(answers, ends, sampler.are_right(ends), strict=True):
        answer.steps, answer.labels = steps, [float(is_right)] * len(steps)
    return answers


async def answers_by_every_step(sampler: Sampler, num_samples: int, num_rollouts: int) -> list[SampledAnswer]:
    """Answers whose steps are labelled with the share of `num_rollouts` rollouts from there that end right.

    The last step's label is 1 if the answer is right, else 0.
    """
    answers = await _open(sampler, num_samples)
    try:
        while live := [answer for answer in answers if answer.is_live]:
            await _advance(sampler, live)
            rolled = [answer for answer in live if answer.is_live]
            shares = await _roll_out(sampler, [(each, each.branch, each.steps) for each in rolled], num_rollouts)
            for answer, share in zip(rolled, shares, strict=True):
                answer.labels.append(share)
    finally:
        _close(answers)
    for answer, is_right in zip(answers, sampler.are_right([each.steps for each in answers]), strict=True):
        answer.labels.append(float(is_right))
    return answers


async def answers_by_first_error(sampler: Sampler, num_samples: int, num_rollouts: int) -> list[SampledAnswer]:
    """Answers whose first wrong step is found by bisection (Luo et al. 2024, OmegaPRM).

    For M steps this takes k log M rollouts instead of k M. Some rollout before the first wrong step ends right, and
    none after it; some from the prompt are assumed to end right, and none after a wrong answer's last step.
    From that step on labels are 0. Before it they are the share of right rollouts, or 1 where none were made, as
    for all steps of a right answer. They are meant to be used as hard labels.
    """
    answers = await _open(sampler, num_samples)
    prefixes: dict[int, list[Branch]] = {index: [] for index in range(num_samples)}  # a branch after every step
    try:
        while live := [index for index, answer in enumerate(answers) if answer.is_live]:
            await _advance(sampler, [answers[index] for index in live])
            for index in live:
                prefixes[index] += answers[index].branch.fork(1)
        right = sampler.are_right([answer.steps for answer in answers])
        for answer, is_right in zip(answers, right, strict=True):
            answer.labels = [1.0] * (len(answer.steps) - 1) + [float(is_right)]
        wrong = [i for i, answer in enumerate(answers) if answer.is_ended and not right[i]]
        await _bisect(sampler, {i: answers[i] for i in wrong}, prefixes, num_rollouts)
    finally:
        _close(answers)
        for branches in prefixes.values():
            for branch in branches:
                branch.close()
    return answers


async def _bisect(
    sampler: Sampler, answers: dict[int, SampledAnswer], prefixes: dict[int, list[Branch]], num_rollouts: int
) -> None:
    """Sets the labels of wrong answers; each round of rollouts halves the range of all of them."""
    # Per answer, numbers of steps after which some rollout has ended right, and after which none has.
    ranges = {i: (0, len(answer.steps)) for i, answer in answers.items()}
    while todo := [i for i, (good, bad) in ranges.items() if bad - good > 1]:
        middles = [sum(ranges[i]) // 2 for i in todo]
        places = [
            (answers[i], prefixes[i][middle - 1], answers[i].steps[:middle])
            for i, middle in zip(todo, middles, strict=True)
        ]
        shares = await _roll_out(sampler, places, num_rollouts)
        for i, middle, share in zip(todo, middles, shares, strict=True):
            answers[i].labels[middle - 1] = share
            ranges[i] = (middle, ranges[i][1]) if share > 0 else (ranges[i][0], middle)
    for i, (_, bad) in ranges.items():
        labels = answers[i].labels
        labels[bad - 1 :] = [0.0] * (len(labels) - bad + 1)


async def _open(sampler: Sampler, num_samples: int) -> list[SampledAnswer]:
    root = await sampler.policy.open(sampler.problem.prompt, ledger=Ledger())
    branches = root.fork(num_samples)
    root.close()
    return [SampledAnswer((index,), branch) for index, branch in enumerate(branches)]


def _close(answers: Sequence[SampledAnswer]) -> None:
    for answer in answers:
        answer.branch.close()


async def _advance(sampler: Sampler, live: Sequence[SampledAnswer]) -> None:
    """Samples one more step of every live answer."""
    steps = await sampler.extend(
        [answer.branch for answer in live],
        [sampler.key("step", (*answer.address, len(answer.steps))) for answer in live],
        [sampler.room(answer.steps) for answer in live],
        stop_at_step=True,
    )
    for answer, (step,) in zip(live, steps, strict=True):
        answer.steps.append(step)
        if step.finish == "step" and sampler.room(answer.steps) < 1:
            answer.steps[-1] = Step(step.token_ids, step.text, "length", step.logprob)


async def _roll_out(
    sampler: Sampler, places: Sequence[tuple[SampledAnswer, Branch, Sequence[Step]]], num_rollouts: int
) -> list[float]:
    """For each place (an answer, its steps so far, a branch after them), the share of rollouts that end right."""
    forks, keys, rooms = [], [], []
    for answer, branch, steps in places:
        answer.num_rollouts += num_rollouts
        forks += branch.fork(num_rollouts)
        address = (*answer.address, len(steps))
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
