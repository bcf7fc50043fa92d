"""The gates of the home task, on made-up figures: each condition can fail."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from benchmarks.paper import gates

FIGURES = {
    "greedy": 0.43,
    "pass@1": 0.31,
    "majority@16": 0.35,
    "pass@16": 0.66,
    "pass@1 by fifth": [0.0, 0.03, 0.12, 0.42, 0.95],
}


def results(*right: bool) -> list[SimpleNamespace]:
    return [SimpleNamespace(correct=each) for each in right]


def failing(gate: gates.Gate) -> list[str]:
    return [text for text, holds in gate.conditions.items() if not holds]


def test_a_graded_policy_passes():
    assert gates.policy_gate(FIGURES).holds


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"greedy": 0.33}, "greedy >= pass@1 + 3"),
        ({"pass@16": 0.45}, "pass@16 >= majority@16 + 15"),
        ({"pass@1 by fifth": [0.0, 0.0, 0.0, 0.42, 0.95]}, "two fifths between"),
        ({"pass@1 by fifth": [0.1, 0.3, 0.3, 0.42, 0.95]}, "easiest fifth >= 85, hardest <= 5"),
        ({"pass@1 by fifth": [0.0, 0.3, 0.3, 0.42, 0.8]}, "easiest fifth >= 85, hardest <= 5"),
    ],
)
def test_each_condition_of_the_policy_can_fail(change, text):
    assert failing(gates.policy_gate(FIGURES | change)) == [text]


def test_beam_search_has_to_lead_with_the_exact_verifier():
    half, all_right = results(True, False, True, False), results(True, True, True, True)
    found = {("oracle", name, budget): half for name in ("best-of-n", "beam") for budget in gates.BUDGETS}
    assert len(failing(gates.exact_gate(found, [0]))) == 2
    found |= {("oracle", "beam", budget): all_right for budget in gates.BUDGETS}
    assert gates.exact_gate(found, [0]).holds
    found["oracle", "beam", 64] = results(False, True, True, True)
    assert failing(gates.exact_gate(found, [0])) == ["no loss on the easiest fifth at 64"]


def test_the_larger_policy_must_leave_something_to_win():
    assert gates.larger_gate(results(True, False, True, True), [0, 1]).holds
    assert failing(gates.larger_gate(results(True, True, True, False), [0, 1])) == ["easier half under 97"]
    assert failing(gates.larger_gate(results(True, False, False, False), [0, 1])) == ["greedy within 50..85"]


def test_possible_answers_grow_with_the_walks():
    assert gates.answer_gate(["abcd", "abcd", "abc"]).holds
    assert not gates.answer_gate(["ab", "abc", "ab"]).holds
