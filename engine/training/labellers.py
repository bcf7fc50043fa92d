"""Samples answers and labels their steps by Monte-Carlo rollouts, from every step or only to find the first error.

Both ways label the same answers, and roll out a step with the same random numbers. Answers are sampled first and
labelled then, so that a question can be given up in between.
"""

from __future__ import annotations

from collections.abc import Sequence

from engine.accounting import Ledger
from engine.runtime import Branch
from engine.training.sampler import SampledAnswer, Sampler
from engine.types import Step

LABELLERS = ("every-step", "first-error")


async def sample_whole(sampler: Sampler, numbers: Sequence[int]) -> list[SampledAnswer]:
    """Answers without labels; the numbers decide their random streams."""
    answers = await _open(sampler, numbers)
    try:
        ends = await sampler.extend(
            [answer.branch for answer in answers],
            [sampler.key("answer", (*answer.address, 0)) for answer in answers],
            sampler.task.max_tokens,
        )
    finally:
        close(answers)
    for answer, steps in zip(answers, ends, strict=True):
        answer.steps = steps
    return answers


async def sample_by_steps(sampler: Sampler, numbers: Sequence[int]) -> list[SampledAnswer]:
    """Answers without labels, with a branch after every step but the last; `close` them."""
    answers = await _open(sampler, numbers)
    try:
        while live := [answer for answer in answers if answer.is_live]:
            await _advance(sampler, live)
            for answer in live:
                answer.prefixes += answer.branch.fork(1) if answer.is_live else ()
    except BaseException:
        close(answers)
        raise
    return answers


def close(answers: Sequence[SampledAnswer]) -> None:
    """Closes what is open of their branches."""
    for answer in answers:
        for branch in (answer.branch, *answer.prefixes):
            if branch is not None:
                branch.close()
        answer.branch, answer.prefixes = None, []


def label_by_own_end(sampler: Sampler, answers: Sequence[SampledAnswer]) -> None:
    """All steps of a right answer get 1, those of others 0; no rollouts."""
    for answer, is_right in zip(answers, _are_right(sampler, answers), strict=True):
        answer.labels = [float(is_right)] * len(answer.steps)


async def label_every_step(sampler: Sampler, answers: Sequence[SampledAnswer], num_rollouts: int) -> None:
    """Steps get the share of `num_rollouts` rollouts from there that end right; the last is labelled by the answer."""
    for depth in range(max(len(answer.steps) for answer in answers) - 1):
        rolled = [answer for answer in answers if depth + 1 < len(answer.steps)]
        places = [(each, each.prefixes[depth], each.steps[: depth + 1]) for each in rolled]
        for answer, share in zip(rolled, await roll_out(sampler, places, num_rollouts), strict=True):
            answer.labels.append(share)
    for answer, is_right in zip(answers, _are_right(sampler, answers), strict=True):
        answer.labels.append(float(is_right))


async def label_by_first_error(sampler: Sampler, answers: Sequence[SampledAnswer], num_rollouts: int) -> None:
    """Finds the first wrong step of wrong answers by bisection (Luo et al. 2024, OmegaPRM).

    For M steps this takes k log M rollouts instead of k M. Some rollout before the first wrong step ends right, and
    none after it; some from the prompt are assumed to end right, and none after a wrong answer's last step.
    From that step on labels are 0. Before it they are the share of right rollouts, or 1 where none were made, as
    for all steps of a right answer. They are meant to be used as hard labels.
    """
    right = _are_right(sampler, answers)
    for answer, is_right in zip(answers, right, strict=True):
        answer.labels = [1.0] * (len(answer.steps) - 1) + [float(is_right)]
    wrong = [answer for answer, is_right in zip(answers, right, strict=True) if answer.is_ended and not is_right]
    await _bisect(sampler, wrong, num_rollouts)


async def _bisect(sampler: Sampler, answers: Sequence[SampledAnswer], num_rollouts: int) -> None:
    """Sets the labels of wrong answers; each round of rollouts halves the range of all of them."""
    # Per answer, numbers of steps after which some rollout has ended right, and after which none has.
    ranges = [(0, len(answer.steps)) for answer in answers]
    while todo := [index for index, (good, bad) in enumerate(ranges) if bad - good > 1]:
        middles = [sum(ranges[index]) // 2 for index in todo]
        places = [
            (answers[index], answers[index].prefixes[middle - 1], answers[index].steps[:middle])
            for index, middle in zip(todo, middles, strict=True)
        ]
        shares = await roll_out(sampler, places, num_rollouts)
        for index, middle, share in zip(todo, middles, shares, strict=True):
            answers[index].labels[middle - 1] = share
            ranges[index] = (middle, ranges[index][1]) if share > 0 else (ranges[index][0], middle)
    for answer, (_, bad) in zip(answers, ranges, strict=True):
        answer.labels[bad - 1 :] = [0.0] * (len(answer.labels) - bad + 1)


async def _open(sampler: Sampler, numbers: Sequence[int]) -> list[SampledAnswer]:
    if not numbers:
        return []
    root = await sampler.policy.open(sampler.problem.prompt, ledger=Ledger())
    branches = root.fork(len(numbers))
    root.close()
    return [SampledAnswer((number,), branch) for number, branch in zip(numbers, branches, strict=True)]


def _are_right(sampler: Sampler, answers: Sequence[SampledAnswer]) -> list[bool]:
    return sampler.are_right([answer.steps for answer in answers])


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


async def roll_out(
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
    owners = [steps for *_, steps in places for _ in range(num_rollouts)]
    right = sampler.are_right([[*steps, *end] for steps, end in zip(owners, ends, strict=True)])
    return [sum(right[i : i + num_rollouts]) / num_rollouts for i in range(0, len(right), num_rollouts)]
