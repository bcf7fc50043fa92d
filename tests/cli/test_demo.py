"""`python -m benchmarks.demo` on tiny models."""

from __future__ import annotations

import itertools

import pytest

from benchmarks.demo import app, strategies
from engine import Engine
from engine.commands import run_app
from engine.results import read_rows
from engine.results.pools import sample_accuracy

STRATEGIES = ("single", "majority", "best-of-n", "beam", "lookahead")


@pytest.fixture
def demo(models, tmp_path):
    def call(*arguments: str) -> int:
        models_given = ["--policy", str(models.policy), "--prm", str(models.prm)]
        return run_app(app, [*models_given, "--out", str(tmp_path / "demo"), *arguments], "demo")

    return call


def test_all_strategies_on_the_same_problems(demo, capsys, tmp_path):
    assert demo("--num-problems", "5", "--seeds", "0,1") == 0
    out = capsys.readouterr().out
    results, page = tmp_path / "demo" / "results.jsonl", tmp_path / "demo" / "report.html"
    assert out.splitlines()[-2:] == [str(results), str(page)]
    assert all(name in out for name in STRATEGIES)
    assert "best-of-n is" in out
    assert "<svg" in page.read_text()

    rows = read_rows(results)
    groups = {key: list(group) for key, group in itertools.groupby(rows, lambda row: (row["strategy"], row["seed"]))}
    assert set(groups) == set(itertools.product(STRATEGIES, (0, 1)))
    assert len({tuple(row["id"] for row in group) for group in groups.values()}) == 1
    for seed in (0, 1):
        pools, scored = groups["majority", seed], groups["best-of-n", seed]
        assert [row["completions"] for row in pools] == [row["completions"] for row in scored]
        for single, pool in zip(groups["single", seed], pools, strict=True):
            assert single["completions"] == pool["completions"][:1]
            assert single["accuracy"] == sample_accuracy(pool)
            assert single["ledger"]["flops"]["generated"] < pool["ledger"]["flops"]["generated"]
            assert pool["ledger"]["tokens"]["verified"] == 0
    prefilled = {key: [row["ledger"]["tokens"]["prefilled"] for row in group] for key, group in groups.items()}
    assert len(set(map(tuple, prefilled.values()))) == 1  # no strategy finds its prompts in the cache of another
    assert all("tree" in row for row in groups["beam", 0])
    assert not any("tree" in row for row in groups["beam", 1])


def test_the_shipped_models_are_compared_in_every_way():
    engine = Engine.load("home", num_blocks=256)
    names = [each.name for each in strategies(engine, is_home=True)]
    assert names == [*STRATEGIES[1:], "revisions", "compute-optimal"]
    assert [each.name for each in strategies(engine, is_home=False)] == names[:-1]


@pytest.mark.parametrize(
    ("arguments", "value"),
    [
        (["--seeds", "0,x"], "'0,x'"),
        (["--seeds", "1,1"], "'1,1'"),
        (["--budget", "4"], "got 4"),
        (["--num-problems", "0"], "got 0"),
    ],
    ids=" ".join,
)
def test_bad_input(demo, capsys, tmp_path, arguments, value):
    assert demo(*arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert value in line
    assert not (tmp_path / "demo").exists()
