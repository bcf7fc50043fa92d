"""Small and searching against large and greedy: FLOPs by the formulas, by difficulty, and what is missing."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks.equal_flops.__main__ import main
from benchmarks.equal_flops.larger_policy import compared, difficulty, spendable
from benchmarks.resumable import StoredSearches
from engine import DVTS, BeamSearch, BestOfN, Engine
from engine.accounting import Exchange
from engine.model import HOME, read_config
from engine.results import Journal
from engine.tasks import take_problems
from tests.tiny import tiny_family, tiny_policy, tiny_prm

QUICK = ["--num-problems", "20", "--num-bin-samples", "8", "--seeds", "0,1", "--max-generations", "8"]


def run(tmp_path: Path, *arguments: object) -> dict:
    path = tmp_path / "out" / "exchange.json"
    work = tmp_path / "work"
    assert main(["--exchange", *map(str, arguments), "--work", str(work), "--json", str(path)]) == 0
    return json.loads(path.read_text())


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict:
    """The home policy against itself, as if it were 14 times larger."""
    return run(tmp_path_factory.mktemp("home"), "--large", HOME / "policy", "--size-ratio", 14, *QUICK)


def rows_of(report: dict, strategy: str, version: str = "arxiv", bin_index: int | None = None) -> list[dict]:
    return [
        row for row in report["rows"] if (row["strategy"], row["version"], row["bin"]) == (strategy, version, bin_index)
    ]


def test_the_generations_follow_from_the_formulas_of_both_versions(report):
    for version, ratios in {"arxiv": [0.16, 0.79, 22], "iclr": [0.08, 0.40, 11]}.items():
        rows = rows_of(report, "best-of-n", version)
        assert [row["R"] for row in rows] == ratios
        allowed = [Exchange.from_ratios(14, ratio, version).num_generations for ratio in ratios]
        assert [row["generations_allowed"] for row in rows] == allowed
        assert [row["budget"] for row in rows] == [8, 8, 8]


def test_bins_and_all_problems_add_up(report):
    assert len(report["bins"]) > 1
    assert sum(entry["num_problems"] for entry in report["bins"]) == 20
    for strategy in {row["strategy"] for row in report["rows"]}:
        (everywhere, *_) = rows_of(report, strategy)
        parts = [rows_of(report, strategy, bin_index=index)[0] for index in range(len(report["bins"]))]
        for name in ("accuracy_small", "accuracy_large"):
            total = sum(p[name] * entry["num_problems"] for p, entry in zip(parts, report["bins"], strict=True))
            assert everywhere[name] == pytest.approx(total / 20)
    assert report["accuracy_large"] == pytest.approx(rows_of(report, "best-of-n")[0]["accuracy_large"])
    assert rows_of(report, "best-of-n", bin_index=0)[0]["accuracy_small"] > 0.5, "the easiest"


def test_a_gain_is_relative_and_a_difference_has_an_interval(report):
    row = rows_of(report, "best-of-n")[0]
    assert row["accuracy_small"] != row["accuracy_large"] > 0
    assert row["gain"] == pytest.approx(row["accuracy_small"] / row["accuracy_large"] - 1)
    difference, low, high = row["difference"]
    assert low < difference < high


def test_what_cannot_run_is_named_with_its_reason(tmp_path, report):
    ran, missing = {row["strategy"] for row in report["rows"]}, {entry["strategy"] for entry in report["missing"]}
    assert {"best-of-n", "compute-optimal"} <= ran
    assert ran | missing == {"best-of-n", "compute-optimal", "revisions:parallel=4"}
    arguments = ["--large", HOME / "policy", "--size-ratio", 14, "--num-problems", 4, "--num-bin-samples", 2]
    arguments += ["--seeds", 0, "--max-generations", 2, "--token-ratios", "1,2"]
    named = run(tmp_path, *arguments, "--strategies", "majority,beam:width=4,guess")
    assert {row["strategy"] for row in named["rows"]} == {"majority"}
    assert {row["R"] for row in named["rows"]} == {1.0, 2.0}
    reasons = {entry["strategy"]: entry["reason"] for entry in named["missing"]}
    assert "budget" in reasons["beam:width=4"]
    assert "'guess'" in reasons["guess"]


def test_m_is_that_of_the_checkpoints_and_another_policy_has_no_calibration(tmp_path):
    small, prm = tiny_policy(tmp_path / "small"), tiny_prm(tmp_path / "prm")
    large = tiny_family(tmp_path / "large", "LlamaForCausalLM", num_hidden_layers=12)
    arguments = ["--policy", small, "--prm", prm, "--large", large, "--num-problems", 3, "--num-bin-samples", 2]
    found = run(tmp_path, *arguments, "--seeds", 0, "--max-generations", 2)
    params = [read_config(folder).shape().num_matmul_params for folder in (small, large)]
    assert (found["params_small"], found["params_large"]) == tuple(params)
    assert found["size_ratio"] == params[1] / params[0] > 1
    reasons = {entry["strategy"]: entry["reason"] for entry in found["missing"]}
    assert "other models or settings" in reasons["compute-optimal"] or "at least" in reasons["compute-optimal"]
    assert all(row["gain"] is None for row in found["rows"]), "a random model has nothing right"


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["--large", "nowhere"], ["'nowhere'"]),
        (["--large", HOME / "policy"], ["M, large over small parameters, must be above 1", "got 1"]),
        (["--large", HOME / "policy", "--size-ratio", 2, "--token-ratios", "1,0"], ["R, ", "above 0", "got 0"]),
        (["--large", HOME / "policy", "--token-ratios", "many"], ["--token-ratios", "'many'"]),
        (["--large", HOME / "policy", "--token-ratios", ""], ["--token-ratios", "''"]),
        (["--large", HOME / "policy", "--seeds", "x"], ["--seeds", "'x'"]),
        (["--large", HOME / "policy", "--num-problems", 0], ["--num-problems must be at least 1, got 0"]),
    ],
)
def test_bad_input_is_one_sentence(capsys, arguments, parts):
    try:
        status = main(["--exchange", *map(str, arguments)])
    except SystemExit as error:
        status = error.code
    assert status == 2
    message = capsys.readouterr().err
    assert "Traceback" not in message
    for part in parts:
        assert part in message


def test_bins_are_those_of_the_share_of_right_answers(tmp_path):
    engine = Engine.load("home")
    problems = take_problems(engine.task, "test", 20)
    bins, members = difficulty(StoredSearches.of(tmp_path, engine, problems), 8)
    assert sorted(np.concatenate(members).tolist()) == list(range(20))
    depths = [np.mean([problems[index].prompt.count(";") for index in found]) for found in members]
    assert bins.count > 1
    assert depths[0] < depths[-1], "what takes more operations is harder"


def test_a_stopped_run_goes_on_at_the_problem_where_it_was_stopped(tmp_path, monkeypatch):
    engine = Engine.load("home")
    problems = take_problems(engine.task, "test", 12)
    stored = StoredSearches.of(tmp_path, engine, problems)
    whole = StoredSearches.of(tmp_path / "whole", engine, problems).rows("best-of-n", BestOfN(), 2, seed=1)
    search_iter, asked = engine.search_iter, []

    def stops_after_five(todo, *args, **options):
        asked.append(len(todo))
        for number, found in enumerate(search_iter(todo, *args, **options)):
            if number == 5:
                raise KeyboardInterrupt
            yield found

    monkeypatch.setattr(engine, "search_iter", stops_after_five)
    with pytest.raises(KeyboardInterrupt):
        stored.rows("best-of-n", BestOfN(), 2, seed=1)
    with pytest.raises(KeyboardInterrupt):
        stored.rows("best-of-n", BestOfN(), 2, seed=1)
    assert stored.rows("best-of-n", BestOfN(), 2, seed=1) == whole
    assert stored.rows("best-of-n", BestOfN(), 2, seed=1) == whole
    assert asked == [12, 7, 2]
    path = next(tmp_path.glob("*.ledger"))
    path.write_bytes(path.read_bytes().splitlines(keepends=True)[0])
    config = json.loads(path.read_text())["config"]
    with Journal(path, config), pytest.raises(ValueError, match="another process: 0 of 12 are there"):
        stored.rows("best-of-n", BestOfN(), 2, seed=1)


def test_a_budget_is_rounded_down_to_what_a_strategy_can_spend():
    assert spendable(BeamSearch(width=4), 9) == 9
    assert spendable(DVTS(width=4), 11) == 8
    with pytest.raises(ValueError, match="budget"):
        spendable(BeamSearch(width=4), 3)


def test_the_interval_is_over_problems():
    small, large = np.array([1.0, 1.0, 0.5, 0.0]), np.array([1.0, 0.0, 0.0, 0.0])
    everywhere, easy, hard = compared(small, large, [np.array([0, 1]), np.array([2, 3])])
    assert everywhere["difference"][0] == 0.375
    assert everywhere["gain"] == 1.5
    assert easy["gain"] == 1.0
    assert hard["gain"] is None
    assert hard["difference"][1:] == [0.0, 0.5]
