"""Labellers of steps over a scripted policy, and chains of attempts over a tiny model."""

from __future__ import annotations

import random
from collections import defaultdict

import pytest

from engine.keys import branch_key
from engine.prompts.histories import after_attempts
from engine.runtime import LLM
from engine.tasks import Task
from engine.training.labellers import close, label_by_first_error, label_every_step, sample_by_steps
from engine.training.rollouts import LabelledAnswers, RolloutRecipe, generate, questions
from engine.training.sampler import SampledAnswer, Sampler
from engine.training.stepwise import read_stepwise
from engine.types import Problem, Sampling, Step
from tests.cli.conftest import assert_refused, models, ttc
from tests.tiny import tiny_policy

__all__ = ["models", "ttc"]

DEPTH = 9  # steps of an answer


class ScriptedBranch:
    """The steps so far."""

    num_open = 0

    def __init__(self, steps: tuple[str, ...] = ()):
        self.steps = steps
        ScriptedBranch.num_open += 1

    def fork(self, num_branches: int) -> list[ScriptedBranch]:
        return [ScriptedBranch(self.steps) for _ in range(num_branches)]

    def close(self) -> None:
        ScriptedBranch.num_open -= 1


class ScriptedPolicy:
    """Nine steps, each wrong one time in ten, by the key; an answer with a wrong step states a wrong answer."""

    async def open(self, prompt: str, *, ledger: object) -> ScriptedBranch:
        return ScriptedBranch()

    async def extend(
        self, branches, *, keys, sampling, stop_at_step, max_tokens, purpose, is_split
    ) -> list[list[Step]]:
        return [
            self.write(branch, random.Random(key), stop_at_step) for branch, key in zip(branches, keys, strict=True)
        ]

    def write(self, branch: ScriptedBranch, rng: random.Random, stop_at_step: bool) -> list[Step]:
        steps: list[Step] = []
        while len(branch.steps) < DEPTH and not (stop_at_step and steps):
            is_last = len(branch.steps) == DEPTH - 1
            text = rng.choices(("good", "evil"), (0.9, 0.1))[0] + ("" if is_last else "\n")
            branch.steps += (text,)
            steps.append(Step((1,), text, "eos" if is_last else "step"))
        return steps


def scripted(name: str) -> Sampler:
    task = Task(
        "scripted",
        "\n",
        100,
        prompt=str,
        extract=lambda text: "wrong" if "evil" in text else "right",
        first_wrong_step=lambda problem, steps: -1,
        problems=lambda split, seed: iter(()),
        splits=(),
    )
    return Sampler(ScriptedPolicy(), task, Problem(name, "?", "right"), Sampling(), seed=0)


async def labelled(sampler: Sampler, label) -> list[SampledAnswer]:
    """Four answers with 24 rollouts a step."""
    answers = await sample_by_steps(sampler, range(4))
    try:
        await label(sampler, answers, 24)
    finally:
        close(answers)
    return answers


def result_of(coroutine) -> list[SampledAnswer]:
    """Of one that waits for nothing."""
    with pytest.raises(StopIteration) as stop:
        coroutine.send(None)
    return stop.value.value


def first_wrong(labels: list[float]) -> int:
    return next((index for index, label in enumerate(labels) if label == 0), -1)


def test_bisection_finds_the_first_wrong_step_with_fewer_rollouts():
    num_wrong = spent = spent_by_all = 0
    for number in range(20):
        sampler = scripted(f"p{number}")
        every, found = (result_of(labelled(sampler, label)) for label in (label_every_step, label_by_first_error))
        for one, other in zip(every, found, strict=True):
            assert one.steps == other.steps
            place = first_wrong(one.labels)
            wrong_steps = [index for index, step in enumerate(one.steps) if "evil" in step.text]
            assert place == first_wrong(other.labels) == (wrong_steps[0] if wrong_steps else -1)
            assert one.num_rollouts == 24 * (DEPTH - 1)
            assert other.num_rollouts <= 24 * 4  # the next power of two over nine steps
            if place < 0:
                assert other.labels == [1.0] * DEPTH
                assert other.num_rollouts == 0  # nothing to look for
                continue
            num_wrong += 1
            assert other.labels[place:] == [0.0] * (DEPTH - place)
            # Before it: the very share that every step would get, where it was rolled out, else 1.
            assert all(mine in (1.0, theirs) for mine, theirs in zip(other.labels[:place], one.labels, strict=False))
            spent, spent_by_all = spent + other.num_rollouts, spent_by_all + one.num_rollouts
    assert num_wrong > 20
    assert spent < spent_by_all / 2
    assert ScriptedBranch.num_open == 0


def test_labellers_on_the_command_line(ttc, models, tmp_path):
    counts = ["--num-questions", 10, "--num-samples", 2, "--num-rollouts", 2, "--max-tokens", 64]
    rollouts = ["rollouts", "--policy", models.policy, "--num-blocks", 16384, *counts]
    outcomes = {}
    for labeller in ("every-step", "first-error"):
        file = tmp_path / f"{labeller}.jsonl"
        outcome = ttc(*rollouts, "--labeller", labeller, "--out", file)
        assert outcome.status == 0, outcome.err
        outcomes[labeller] = read_stepwise(file), int(outcome.last_line.split(" rollouts")[0].split(", ")[1])
    every, found = outcomes["every-step"], outcomes["first-error"]
    assert [row["token_ids"] for row in every[0]] == [row["token_ids"] for row in found[0]]
    assert found[1] < every[1]
    assert_refused(ttc(*rollouts, "--labeller", "guess", "--out", tmp_path / "x"), "every-step, first-error", "'guess'")
    assert_refused(ttc(*rollouts, "--num-attempts", 2, "--out", tmp_path / "x"), "num_attempts 2 needs", "got 2")
    none = ["--num-rollouts", 0, "--out", tmp_path / "x"]
    assert_refused(ttc(*rollouts, "--labeller", "first-error", *none), "'first-error' needs rollouts")
    assert_refused(ttc(*rollouts, "--context", 0, *none), "context must be at least 1", "got 0")


@pytest.fixture(scope="module")
def llm(tmp_path_factory) -> LLM:
    return LLM.load(tiny_policy(tmp_path_factory.mktemp("models") / "policy", context=240), num_blocks=16384)


CHAINS = RolloutRecipe(num_questions=4, num_samples=1, num_rollouts=0, num_attempts=6, context=2, max_tokens=40)


def rows_of(llm: LLM, recipe: RolloutRecipe) -> list[dict]:
    found: dict[int, LabelledAnswers] = dict(generate(llm, recipe))
    llm.runner.tree.check_integrity()
    return [row for index in sorted(found) for row in found[index].rows]


def flat(row: dict) -> list[int]:
    return [token for step in row["token_ids"] for token in step]


def test_each_attempt_is_given_the_last_few_that_ended(llm):
    rows = rows_of(llm, CHAINS)
    by_question = defaultdict(list)
    for row in rows:
        by_question[row["prompt"]].append(row)
    assert len(rows) < 4 * 6  # some never ended: they are neither rows nor part of a history
    assert any(len(row["history"]) == 2 for row in rows)
    limit = llm.config.context - CHAINS.max_tokens
    for prompt, answers in by_question.items():
        for number, row in enumerate(answers):
            expected = [flat(each) for each in answers[max(0, number - 2) : number]]
            while len(after_attempts(llm.encode(prompt), expected)) > limit:
                expected = expected[1:]
            assert row["history"] == expected


def test_an_attempt_is_sampled_after_its_history(llm):
    (problem, *_) = questions(CHAINS)
    for row in (row for row in rows_of(llm, CHAINS) if row["prompt"] == problem.prompt and row["history"]):
        candidates = []
        for turn in range(CHAINS.num_attempts):
            branch = llm.open(after_attempts(llm.encode(problem.prompt), row["history"]))
            key = branch_key(0, f"answer/{problem.id}", (0, turn))
            request = llm.queue_generate([branch], [key], max_tokens=40)
            llm.run(request)
            candidates.append(list(request.results[0].token_ids))
            branch.close()
        assert flat(row) in candidates


def test_no_attempt_of_a_chain_is_sampled_twice(llm, monkeypatch):
    queued, queue = [], llm.queue_generate
    monkeypatch.setattr(
        llm, "queue_generate", lambda branches, *a, **o: queued.extend(branches) or queue(branches, *a, **o)
    )
    rows_of(llm, CHAINS)
    assert len(queued) == CHAINS.num_questions * CHAINS.num_attempts


def test_chains_do_not_depend_on_what_runs_beside_them(llm):
    wide = RolloutRecipe(num_questions=4, num_samples=3, num_rollouts=0, num_attempts=6, context=2, max_tokens=40)
    rows, more = rows_of(llm, CHAINS), rows_of(llm, wide)
    assert len(more) > 2 * len(rows)
    assert all(row in more for row in rows)
    first = [row for row in more if not row["history"]]
    plain = RolloutRecipe(num_questions=4, num_samples=3, num_rollouts=0, max_tokens=40)
    assert all({**row, "history": []} in first for row in rows_of(llm, plain)[:1])  # a chain starts as an answer does
    longer = rows_of(llm, RolloutRecipe(**{**vars(CHAINS), "context": 4}))
    assert max(len(row["history"]) for row in longer) > 2


def test_settings_name_what_rows_depend_on():
    plain = RolloutRecipe()
    assert {"labeller", "num_attempts", "context", "max_tokens"}.isdisjoint(plain.settings)
    assert plain.settings["num_rollouts"] == 8
    assert CHAINS.settings["context"] == 2
    assert RolloutRecipe(labeller="first-error").settings["labeller"] == "first-error"
