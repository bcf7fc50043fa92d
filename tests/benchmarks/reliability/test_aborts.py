"""Searches given up at random: a short run, and that the benchmark would see a leak and a changed answer."""

import json
import random

import pytest

from benchmarks.reliability import aborts
from engine.engine import Engine


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine.load("home", num_blocks=aborts.NUM_BLOCKS, max_batch=aborts.MAX_BATCH)


def test_forty_problems(tmp_path, capsys):
    assert aborts.main(["--problems", "40", "--seed", "4", "--json", str(tmp_path / "aborts.json")]) == 0
    report = json.loads((tmp_path / "aborts.json").read_text())
    figures = report["figures"]
    assert report["settings"] == {"problems": 40, "seed": 4}
    assert (figures["problems"], figures["blocks_leaked"], figures["answers_changed"]) == (40, 0, 0)
    assert 10 <= figures["answered"] < 40
    assert figures["suspensions"] > 0
    assert sum(figures["aborts"][name] for name in aborts.ABORTS) >= 2
    assert "blocks_leaked    0" in capsys.readouterr().out


def test_groups_of_every_fate():
    groups = aborts.make_groups(range(400), random.Random(0))
    assert [number for group in groups for number in group.problems] == list(range(400))
    assert {group.abort for group in groups} == {None, *aborts.ABORTS}
    assert {group.strategy for group in groups} == set(aborts.STRATEGIES)
    assert {group.verifier for group in groups} == {"prm", "orm", "parity"}


def test_a_leak_is_counted(engine):
    branch = engine.policy.open("1+2\n")
    engine.policy.next_logits([branch])
    with pytest.raises(AssertionError, match="holds segments"):
        aborts.leaked_blocks(engine)
    branch.close()
    handle, _ = engine.policy.runner.tree.open([])
    engine.policy.runner.tree.extend([handle], [1], [5])
    assert aborts.leaked_blocks(engine) == 1
    engine.policy.runner.tree.close(handle)
    assert aborts.leaked_blocks(engine) == 0


def test_a_changed_answer_is_counted(engine):
    groups = aborts.make_groups(engine.as_problems(["?5?2?=c\n", "b4?1?\n"]), random.Random(0))
    with aborts.Progress("problems:", 2) as progress:
        outcomes = {name: found for group in groups for name, found in aborts.search(engine, unabated(group))}
        assert aborts.compare(engine, groups, outcomes, progress) == 0
        answer, *rest = outcomes["0"]
        assert aborts.compare(engine, groups, outcomes | {"0": (f"{answer}?", *rest)}, progress) == 1


def unabated(group: aborts.Group) -> aborts.Group:
    return aborts.Group(group.problems, group.strategy, group.verifier, group.seed)
