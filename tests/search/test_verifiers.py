"""Verifiers that run no model, and the aggregation of their scores."""

import math
import random

import pytest
import torch

from engine.accounting import Ledger
from engine.search import BeamSearch, BestOfN, Majority
from engine.search.aggregate import AGG_STRATEGIES, aggregate
from engine.tasks import get_task, walks
from engine.types import Problem, Step
from engine.verifiers.callable import CallableVerifier
from engine.verifiers.oracle import OracleVerifier
from engine.verifiers.trunk import TrunkVerifier
from ttc_kernels.step_score.reference import fold

from .fakes import PROBLEM, FakePolicy, drive, scripted_draw, start


def steps(*texts: str) -> list[Step]:
    return [Step((1,), text, "step", trunk_score=len(text) / 10) for text in texts]


def open_branch(verifier):
    return drive(verifier.open(PROBLEM, ledger=Ledger()))


def test_aggregates():
    scores = (0.5, 0.25, 0.75)
    assert [aggregate(scores, name) for name in AGG_STRATEGIES] == [0.75, 0.25, 0.09375, 0.5]
    assert [aggregate((0.3,), name) for name in AGG_STRATEGIES] == [0.3] * 4
    assert [aggregate((), name) for name in AGG_STRATEGIES] == [0.0] * 4
    with pytest.raises(ValueError, match="'max'"):
        aggregate(scores, "max")


def test_aggregates_agree_with_the_fold_of_the_kernels():
    rng, state, scores = random.Random(0), torch.zeros(4), []
    for count in range(12):
        scores.append(rng.random())
        state = fold(state, count, scores[-1])
        assert [aggregate(scores, name) for name in ("last", "min", "prod", "mean")] == pytest.approx(
            state.tolist(), rel=1e-5
        )


def test_a_function_sees_the_prompt_and_the_steps_of_its_own_branch():
    seen = []

    def function(prompt, texts):
        seen.append((prompt, texts))
        return len(texts) / 10

    verifier = CallableVerifier(function)
    branch = open_branch(verifier)
    assert drive(verifier.score([branch], [steps("a\n", "b\n")])) == [[0.1, 0.2]]
    left, right = branch.fork(2)
    branch.close()
    assert drive(verifier.score([left, right], [steps("c\n"), steps("d\n", "e")])) == [[0.3], [0.3, 0.4]]
    assert seen[-1] == (PROBLEM.prompt, ["a\n", "b\n", "d\n", "e"])
    assert seen[2] == (PROBLEM.prompt, ["a\n", "b\n", "c\n"])
    with pytest.raises(ValueError, match="closed"):
        branch.close()
    with pytest.raises(ValueError, match="closed"):
        branch.fork(1)


@pytest.mark.parametrize(
    ("value", "received"),
    [(1.5, "got 1.5"), (-0.1, "got -0.1"), ("good", "'good'"), (None, "None"), (10**400, "a number of 1329 bits")],
)
def test_a_function_that_returns_no_score_is_refused(value, received):
    verifier = CallableVerifier(lambda prompt, texts: value)
    with pytest.raises(ValueError, match=received):
        drive(verifier.score([open_branch(verifier)], [steps("a")]))


def test_a_function_searches():
    script = {(0,): "1\n", (1,): "2\n", (0, 0): "3", (0, 1): "4", (1, 0): "5", (1, 1): "6"}

    def result(function):
        verifier, policy = CallableVerifier(function), FakePolicy(scripted_draw(script))
        return drive(start(BeamSearch(width=2), policy, verifier, budget=2))

    assert result(lambda prompt, texts: int(texts[-1]) / 10).answer == "6"
    assert result(lambda prompt, texts: 1 - int(texts[-1]) / 10).answer == "3"
    nothing = result(lambda prompt, texts: math.nan)
    assert (nothing.answer, nothing.num_errors) == (None, 2)
    assert nothing.ledger.tokens["verified"] == 0


def test_trunk_scores_are_read_and_missing_ones_refused():
    verifier = TrunkVerifier()
    branch = open_branch(verifier)
    (fork,) = branch.fork(1)
    assert drive(verifier.score([branch, fork], [steps("a\n", "bb\n"), steps("c")])) == [[0.2, 0.3], [0.1]]
    with pytest.raises(ValueError, match="'a' no trunk score"):
        drive(verifier.score([branch], [[Step((1,), "a", "eos")]]))


def test_the_oracle_is_exact():
    oracle = OracleVerifier.from_first_wrong_step(get_task("walks").first_wrong_step)
    branch = drive(oracle.open(Problem("c", "?5?2?=c;d3?1?;?4?=a\n"), ledger=Ledger()))
    assert drive(oracle.score([branch], [steps("?5?2?=c:b5f2c=c\n")])) == [[1.0]]
    right, wrong = branch.fork(2)
    told, missed = "d3?1?:d3e1c\n", "d3?1?:d3e1d\n"
    assert drive(oracle.score([right, wrong], [steps(told), steps(missed, "?4?=a:f4a=a")])) == [[1.0], [0.0, 0.0]]
    (child,) = wrong.fork(1)
    assert drive(oracle.score([child, right], [steps(told), steps("?4?=a:f4a=a")])) == [[0.0], [1.0]]


def test_the_oracle_takes_any_judgement_and_does_not_ask_after_a_wrong_step():
    asked = []

    def is_right(problem, texts):
        asked.append(list(texts))
        return texts[-1] != "b"

    verifier = OracleVerifier(is_right)
    assert drive(verifier.score([open_branch(verifier)], [steps("a", "b", "c")])) == [[1.0, 0.0, 0.0]]
    assert asked == [["a"], ["a", "b"]]


def test_search_against_the_oracle_solves_what_a_vote_does_not():
    """A policy that gets three lines in four wrong, on the home task."""
    problem = walks.parse("?5?2?=c;d3?1?;?4?=a;?0?1?3?=e")
    table = walks.WalksConfig().table
    right = problem.right_lines(table)

    def draw(key, text, new_text):
        done = text.count("\n")
        line, rng = right[done], random.Random(f"{key}/{text}")
        if rng.random() < 3 / 4:
            line = f"{line.partition(':')[0]}:a1a"  # always the same mistake
        return line + "\n" * (done + 1 < len(right))

    def run(strategy):
        return drive(
            start(
                strategy,
                FakePolicy(draw),
                OracleVerifier.from_first_wrong_step(get_task("walks").first_wrong_step),
                problem=Problem("c", problem.text, answer=problem.answer(table)),
                budget=16,
                max_tokens=200,
                extract=walks.extract_answer,
            )
        )

    assert run(Majority()).correct is False
    assert run(BestOfN()).correct is False  # no whole answer is right from its first line to its last
    assert run(BeamSearch(width=4)).correct is True
