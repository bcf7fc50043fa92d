"""Whatever a user gives as a verifier has the whole contract; what it does not state has defaults."""

from __future__ import annotations

import pytest

from engine.accounting import Ledger
from engine.types import Problem, Step
from engine.verifiers import CallableVerifier, OracleVerifier, TrunkVerifier, Verifier, as_verifier
from tests.search.fakes import drive

PROBLEM = Problem("p", "1+1")
ATTEMPT = (Step((1,), "3", "eos"),)


class TwoMethods:
    """No more than a user has to write; `open` takes no history."""

    async def open(self, problem, *, ledger):
        return ["branch", problem.id]

    async def score(self, branches, steps):
        return [[0.5 for _ in new] for new in steps]


class Whole(TwoMethods):
    judges = "answers"
    reads_history = True

    async def open(self, problem, *, ledger, history=()):
        return ["branch", problem.id, *history]


def half(prompt, steps):
    return 0.5


def test_two_methods_are_enough():
    verifier = as_verifier(TwoMethods())
    assert (verifier.judges, verifier.reads_history, verifier.reads_trunk) == ("steps", False, False)
    assert (verifier.name, verifier.llm, verifier.opening(PROBLEM)) == ("TwoMethods", None, [])
    branch = drive(verifier.open(PROBLEM, ledger=Ledger()))
    assert branch == ["branch", "p"]
    assert drive(verifier.score([branch], [ATTEMPT])) == [[0.5]]
    with verifier.cached() as cached:
        assert cached is verifier, "there is nothing to remember"


def test_what_an_object_states_is_kept():
    verifier = as_verifier(Whole())
    assert (verifier.judges, verifier.reads_history, verifier.name) == ("answers", True, "Whole")
    assert drive(verifier.open(PROBLEM, ledger=Ledger(), history=[ATTEMPT])) == ["branch", "p", ATTEMPT]


@pytest.mark.parametrize(
    ("given", "name"),
    [(half, "half"), (lambda prompt, steps: 1.0, "<lambda>"), (max, "max")],
    ids=["def", "lambda", "built-in"],
)
def test_a_function_is_named_by_its_own_name(given, name):
    verifier = as_verifier(given)
    assert isinstance(verifier, CallableVerifier)
    assert (verifier.name, verifier.judges) == (name, "steps")


@pytest.mark.parametrize("verifier", [TrunkVerifier(), OracleVerifier(lambda *_: True)], ids=["trunk", "oracle"])
def test_a_verifier_is_taken_as_it_is(verifier):
    assert as_verifier(verifier) is verifier
    assert verifier.name == type(verifier).__name__
    assert verifier.reads_trunk == (type(verifier) is TrunkVerifier)


def test_a_verifier_without_the_two_methods_is_none():
    class Half(Verifier):
        async def open(self, problem, *, ledger, history=()):
            return None

    with pytest.raises(TypeError, match="score"):
        Half()
