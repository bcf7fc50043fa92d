"""`ttc calibrate`, the searches that its file steers, and `ttc exchange`."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from engine.cli.calibrate import _row
from engine.results import journal_path, read_rows
from engine.scheduler import Bins, Predictor, parse_strategy, read_calibration
from engine.search import BeamSearch, BestOfN, Majority
from tests.cli.conftest import assert_refused, comparable, graded, small_search
from tests.search.fakes import with_lone_ends
from tests.tiny import HIDDEN_SIZE


def small_calibrate(models, out: Path) -> list[object]:
    """The arguments of a calibration of the tiny models; their answers never agree, so bins go by score."""
    arguments: list[object] = ["calibrate", "--policy", models.policy, "--prm", models.prm, "--out", out]
    arguments += ["--strategies", "best-of-n,beam:width=2", "--budgets", "9", "--pilot", "5", "--limit", 14]
    arguments += ["--predictor", "score", "--bins", "quintiles", "--min-per-bin", 2]
    return [*arguments, "--max-tokens", 24, "--num-blocks", 8192]


@pytest.fixture
def file(models, tmp_path):
    """A calibration of the tiny models, written by hand over measured conditions."""

    def make(*cells: tuple[int, str, int, int], **changes: object) -> Path:
        from engine.engine import Engine
        from engine.scheduler import Bins, Calibration, Cell, PilotSamples, Predictor, Verdict

        engine = Engine.load(models.policy, prm=models.prm, num_blocks=256)
        predictor = Predictor("agreement", 2)
        conditions = engine.conditions(PilotSamples(predictor, True), max_tokens=24)
        budgets = tuple(sorted({budget for _, _, budget, _ in cells}))
        calibration = Calibration(
            conditions={**conditions, **changes},
            problems="some",
            predictor=predictor,
            bins=Bins(),
            num_per_bin=(100,),
            budgets=budgets,
            cells=tuple(Cell(b, parse_strategy(s), n, right, 100, n, 9.0, 9.0) for b, s, n, right in cells),
            verdicts=tuple(Verdict(budget, 100, 0.5 + budget / 100, 0.4, 9.0, 9.0) for budget in budgets),
        )
        path = tmp_path / "made.json"
        path.write_text(calibration.to_json())
        return path

    return make


# -- ttc calibrate ------------------------------------------------------------------------------


# Of which the home policy solves some: two samples of it agree on some, and not on others.
FEW_WALKS = ["--task", "walks:min_walks=2:max_walks=3", "--limit", 24]


def home_calibrate(out: Path, *more: object) -> list[object]:
    arguments: list[object] = ["calibrate", *FEW_WALKS, "--budgets", "2,6", "--pilot", "2", "--out", out]
    return [*arguments, "--strategies", "majority,best-of-n,beam:width=2", "--bins", "0.5", "--min-per-bin", 4, *more]


def test_the_home_models_from_calibration_to_search(ttc, tmp_path):
    """Two bins, three strategies, two budgets; then a search, and one with a budget for all."""
    out = tmp_path / "calibration.json"
    outcome = ttc(*home_calibrate(out))
    assert outcome.status == 0, outcome.err
    assert "cross-validated: compute-optimal" in outcome.out
    assert outcome.last_line.startswith("120 searches, accuracy ")
    found = read_calibration(out)
    assert (found.bins.edges, found.budgets, sum(found.num_per_bin)) == ((0.5,), (2, 6), 24)
    expected = {(Majority(), 2), (Majority(), 6), (BestOfN(), 2), (BestOfN(), 6), (BeamSearch(width=2), 6)}
    assert {(cell.strategy, cell.budget) for cell in found.cells} == expected
    assert found.choose(0, 6).accuracy > found.choose(1, 6).accuracy, "agreement tells easy from hard"
    assert all(cell.generations == cell.budget and cell.tokens > 20 and cell.flops > 1e6 for cell in found.cells)

    search = ["search", *FEW_WALKS[:2], "--strategy", "compute-optimal", "--calibration", out, "--limit", 12]
    outcome = ttc(*search, "--budget", 6, "--out", tmp_path / "each.jsonl")
    assert (outcome.status, "warning" in outcome.err) == (0, False), outcome.err
    rows = read_rows(tmp_path / "each.jsonl")
    assert {row["strategy"] for row in rows} == {"compute-optimal"}
    assert all(row["num_generations"] == row["budget"] == 6 for row in rows)
    assert all(row["ledger"]["tokens"]["estimation"] > 0 for row in rows)
    assert all(row["plan"].startswith("ease ") for row in rows)

    assert ttc(*search, "--total-budget", 48, "--out", tmp_path / "all.jsonl").status == 0
    rows = read_rows(tmp_path / "all.jsonl")
    assert 24 <= sum(row["num_generations"] for row in rows) <= 48
    assert min(row["num_generations"] for row in rows) >= 2


def test_a_calibration_of_answers_judged_by_the_orm(ttc, tmp_path):
    """Difficulty by its scores, one pilot, and a search by the file; with the PRM it holds no longer."""
    out, judge = tmp_path / "calibration.json", ["--verifier", "orm"]
    grid = ["--limit", 16, "--budgets", "4", "--pilot", "2", "--predictor", "score", "--bins", "one", "--out", out]
    outcome = ttc("calibrate", *judge, *grid)
    assert outcome.status == 0, outcome.err
    found = read_calibration(out)
    assert {cell.strategy.name for cell in found.cells} == {"majority", "best-of-n", "adaptive", "revisions"}
    assert found.conditions["verifier"] == "orm"
    assert not found.scores_steps

    search = ["search", "--strategy", "compute-optimal", "--calibration", out, "--limit", 4, "--budget", 4]
    outcome = ttc(*search, *judge, "--out", tmp_path / "orm.jsonl")
    assert (outcome.status, "warning" in outcome.err) == (0, False), outcome.err
    assert all(row["ledger"]["tokens"]["estimation"] > 0 for row in read_rows(tmp_path / "orm.jsonl"))
    assert 'verifier was "orm", now "prm"' in ttc(*search, "--out", tmp_path / "prm.jsonl").err

    steps = ["--strategies", "best-of-n,beam:width=2"]
    assert_refused(ttc("calibrate", *judge, *grid, *steps), "judges whole answers, and beam:width=2 scores steps")
    assert_refused(ttc("calibrate", "--orm", "home", *grid), "--orm has no effect with --verifier prm, only with orm")
    assert_refused(ttc("calibrate", "--verifier", "guess", *grid), "verifier must be one of", "'guess'")


def test_another_cut_uses_what_was_measured_and_a_killed_run_goes_on(ttc, models, tmp_path):
    out = tmp_path / "calibration.json"
    arguments = small_calibrate(models, out)
    assert ttc(*arguments).status == 0
    whole, lines = read_calibration(out), journal_path(out).read_bytes().splitlines(keepends=True)
    assert "resumed 42" in ttc(*arguments, "--bins", "one").last_line
    assert whole.bins.count > read_calibration(out).bins.count == 1
    assert "resumed 42" in ttc(*arguments, "--bins", "quantiles:3").last_line
    assert sorted(read_calibration(out).num_per_bin) == [4, 5, 5]

    journal_path(out).write_bytes(b"".join(lines[:9]))
    assert "resumed 8" in ttc(*arguments).last_line
    again = read_calibration(out)
    assert (again.bins, again.num_per_bin, again.verdicts) == (whole.bins, whole.num_per_bin, whole.verdicts)
    assert_refused_last(ttc(*arguments, "--seed", 1), "seed was 0, now 1")


def test_bins_with_too_few_problems_are_refused_before_the_long_part(ttc, models, tmp_path):
    out = tmp_path / "calibration.json"
    assert_refused_last(ttc(*small_calibrate(models, out), "--min-per-bin", 20), "at least 20 are needed")
    assert list(tmp_path.iterdir()) == []


def assert_refused_last(outcome, *parts: str) -> None:
    assert outcome.status == 2
    assert all(part in outcome.err.splitlines()[-1] for part in parts), outcome.err


CHANGES = [
    ["--split", "test"],
    ["--limit", "13"],
    ["--strategies", "best-of-n,beam:width=1"],
    ["--budgets", "10"],
    ["--predictor", "agreement"],
    ["--pilot", "4"],
    ["--no-reuse"],
    ["--bins", "0.5"],
    ["--agg-strategy", "min"],
    ["--temperature", "0.5"],
    ["--top-p", "0.5"],
    ["--top-k", "2"],
    ["--min-p", "0.5"],
    ["--max-tokens", "8"],
    ["--seed", "1"],
    ["--dtype", "bfloat16"],
    ["--policy", "other_policy"],
    ["--prm", "other_prm"],
    ["--verifier", "trunk", "--trunk-head", "trunk_head"],
]


@pytest.fixture(scope="module")
def plain(models, tmp_path_factory):
    from engine.cli import main

    out = tmp_path_factory.mktemp("plain") / "calibration.json"
    assert main([str(each) for each in [*small_calibrate(models, out), *graded(out.parent)]]) == 0
    return measured(out)


def measured(path: Path) -> tuple:
    """What searches said, not under which name."""
    found = read_calibration(path)
    return found.predictor, found.bins, found.num_per_bin, found.cells


@pytest.mark.parametrize("option", CHANGES, ids=lambda option: " ".join(option[:2]))
def test_an_option_changes_what_is_measured(ttc, models, tmp_path, plain, option):
    arguments = [getattr(models, each, each) for each in option]
    if {"oracle", "trunk"} & set(option) or option == ["--predictor", "agreement"] or "--bins" in option:
        arguments += ["--min-per-bin", 2, "--bins", "one"]  # one bin: there may be too few different values
    base = small_calibrate(models, tmp_path / "c.json") + ([] if "--split" in option else graded(tmp_path))
    if "--verifier" in option:
        del base[base.index("--prm") : base.index("--prm") + 2]
    outcome = ttc(*base, *arguments)
    assert outcome.status == 0, outcome.err
    assert measured(tmp_path / "c.json") != plain


@pytest.mark.parametrize(
    "arguments", [["--system-prompt", "8;8"], ["--few-shot", "shots.txt"], ["--step-delimiter", "="]], ids=" ".join
)
def test_a_prompt_changes_what_is_measured(ttc, models, tmp_path, monkeypatch, plain, arguments):
    monkeypatch.chdir(tmp_path)
    Path("shots.txt").write_text("a2?\na2?:a2e\n")
    outcome = ttc(*small_calibrate(models, "c.json"), "--min-per-bin", 2, "--bins", "one", *arguments)
    assert outcome.status == 0, outcome.err
    cells = [dataclasses.replace(each, bin=0) for each in measured(Path("c.json"))[3]]
    assert cells != [dataclasses.replace(each, bin=0) for each in plain[3]]


def test_columns_of_a_file_can_be_named(ttc, models, tmp_path):
    file = tmp_path / "problems.jsonl"
    file.write_text("".join(json.dumps({"q": f"{i};+{i}", "a": 2 * i}) + "\n" for i in range(1, 9)))
    arguments = [*small_calibrate(models, tmp_path / "c.json"), "--bins", "one", file]
    assert_refused(ttc(*arguments, "--answer-column", "a"), "problem")
    assert_refused(ttc(*arguments, "--problem-column", "q"), "answer")
    assert ttc(*arguments, "--problem-column", "q", "--answer-column", "a").status == 0


def test_a_file_of_problems_and_no_device_but_this_one(ttc, models, tmp_path):
    file = tmp_path / "problems.jsonl"
    file.write_text("".join(json.dumps({"problem": f"{i};+{i}", "answer": 2 * i}) + "\n" for i in range(1, 9)))
    arguments = [*small_calibrate(models, tmp_path / "c.json"), "--bins", "one"]
    assert ttc(*arguments, file).status == 0
    assert read_calibration(tmp_path / "c.json").problems == f"{file}, 8 problems"
    file.write_text('{"problem": "b4?", "answer": 2}\n{"problem": "c2?"}\n')
    outcome = ttc(*arguments, file)
    assert_refused(outcome, f"{file}, line 2: a calibration needs the answer of every problem")
    assert_refused(ttc(*arguments, "--device", "abacus"), "'abacus'")


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["--strategies", "beam,telepathy"], ["strategy must be one of", "'telepathy'"]),
        (["--strategies", "beam:width=8"], ["beam:width=8 can spend none of the budgets after the 5 of", "got '9'"]),
        (["--budgets", "1"], ["at least 5, the samples of the pilot", "got '1'"]),
        (["--budgets", "0", "--no-reuse"], ["at least 1", "got '0'"]),
        (["--budgets", "4,many"], ["budgets must be whole numbers", "'4,many'"]),
        (["--budgets", "1000000000"], ["budget", "1000000000"]),
        (["--predictor", "tea leaves"], ["predictor must be one of", "'tea leaves'"]),
        (["--predictor", "oracle", "--reuse"], ["must not be re-used"]),
        (["--pilot", "0"], ["samples of predictor", "got 0"]),
        (["--bins", "0.5,0.1"], ["must rise", "[0.5, 0.1]"]),
        (["--bins", "few"], ["bins must be numbers", "'few'"]),
        (["--bins", "quantiles:many"], ["whole number N", "'quantiles:many'"]),
        (["--bins", "quantiles:0"], ["difficulty bins must be at least 1, got 0"]),
        (["--min-per-bin", "1"], ["got min_per_bin 1"]),
        (["--limit", "0"], ["limit", "got 0"]),
        (["--max-tokens", "0"], ["max_tokens", "got 0"]),
        (["--agg-strategy", "max"], ["'max'"]),
        (["--verifier", "trust"], ["'trust'"]),
        (["--prm", "nowhere"], ["'nowhere'"]),
        (["--prm-spec", "nowhere"], ["'nowhere'"]),
        (["--prompt-style", "chat"], ["'chat'", "chat template"]),
    ],
    ids=lambda part: " ".join(part) if part[0].startswith("--") else "",
)
def test_bad_options(ttc, models, tmp_path, arguments, parts):
    assert_refused(ttc(*small_calibrate(models, tmp_path / "c.json"), *arguments), *parts)
    assert list(tmp_path.iterdir()) == []


# -- ttc search with a calibration ----------------------------------------------------------------


def steered(models, out: Path, file: Path) -> list[object]:
    return [*small_search(models, out), "--strategy", "compute-optimal", "--calibration", file]


def test_a_calibration_decides(ttc, models, tmp_path, file):
    def completions(*cells) -> list[int]:
        out = tmp_path / "rows.jsonl"
        outcome = ttc(*steered(models, out, file(*cells)), "--overwrite")
        assert (outcome.status, outcome.err.count("warning")) == (0, 0), outcome.err
        rows = read_rows(out)
        assert [len(row["completions"]) for row in rows] == [8] * 4
        return [sum(row["ledger"]["tokens"]["verified"] for row in rows), *[row["plan"] for row in rows]]

    majority = completions((0, "majority", 8, 60), (0, "best-of-n", 8, 50))
    best = completions((0, "majority", 8, 50), (0, "best-of-n", 8, 60))
    assert (majority[0], best[0] > 0) == (0, True)
    assert "majority, budget 8" in majority[1]
    assert "best-of-n, budget 8" in best[1]


def test_rows_do_not_depend_on_the_batch_and_resume(ttc, models, tmp_path, file):
    cells = [(0, "beam:width=2", 8, 50), (0, "adaptive:batch=1", 4, 40)]
    found = []
    for name, more in [("a", []), ("b", ["--max-batch", 3])]:
        for budget in ("--budget", 8), ("--total-budget", 25):
            out = tmp_path / f"{name}{budget[1]}.jsonl"
            assert (
                ttc(
                    *[each for each in steered(models, out, file(*cells)) if each not in ("--budget", 8)],
                    *budget,
                    *more,
                ).status
                == 0
            )
            found.append(comparable(read_rows(out)))
    assert found[:2] == found[2:]
    assert sum(row["num_generations"] for row in found[1]) <= 25
    out = tmp_path / "a25.jsonl"
    lines = journal_path(out).read_bytes().splitlines(keepends=True)
    journal_path(out).write_bytes(b"".join(lines[:3]))
    arguments = [each for each in steered(models, out, file(*cells)) if each not in ("--budget", 8)]
    outcome = ttc(*arguments, "--total-budget", 25)
    assert "resumed 2" in outcome.last_line
    assert comparable(read_rows(out)) == found[1]


def test_a_calibration_of_other_models_falls_back_with_a_warning(ttc, models, tmp_path, file):
    out = tmp_path / "rows.jsonl"
    path = file((0, "best-of-n", 8, 60))
    outcome = ttc(*steered(models, out, path), "--policy", models.other_policy)
    assert outcome.status == 0
    (warning,) = [line for line in outcome.err.splitlines() if line.startswith("warning")]
    assert "policy was" in warning
    assert "majority runs instead of compute-optimal" in warning
    assert {row["strategy"] for row in read_rows(out)} == {"majority"}


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["--calibration", "nowhere.json"], ["no calibration file at 'nowhere.json'", "ttc calibrate"]),
        (["--budget", "1"], ["at least the 2 samples of the difficulty pilot", "got 1"]),
        (["--total-budget", "40"], ["--budget has no effect with --total-budget"]),
        (["--beam-width", "4"], ["--beam-width has no effect with --strategy compute-optimal"]),
        (["--vote", "naive"], ["--vote has no effect"]),
        (["--verifier", "trust"], ["'trust'"]),
        (["--strategy", "beam"], ["--calibration has no effect with --strategy beam"]),
    ],
    ids=lambda part: " ".join(part) if part[0].startswith("--") else "",
)
def test_bad_options_of_a_search(ttc, models, tmp_path, file, arguments, parts):
    out = tmp_path / "rows.jsonl"
    assert_refused(ttc(*steered(models, out, file((0, "best-of-n", 8, 60))), *arguments), *parts)
    assert not out.exists()


def test_a_total_that_is_too_small_and_a_broken_file(ttc, models, tmp_path, file):
    arguments = ["search", "--strategy", "compute-optimal", "--out", tmp_path / "x", "--limit", 4, "--calibration"]
    path = file((0, "best-of-n", 8, 60))
    assert_refused(ttc(*arguments, path, "--total-budget", 7), "at least 2 for each of 4 problems, got 7")
    assert_refused(ttc(*arguments, path, "--total-budget", -1), "got -1")
    path.write_text("{}")
    assert_refused(ttc(*arguments, path), f"{path} is no calibration")
    unscored = file((0, "majority", 8, 60))
    assert_refused(ttc(*arguments, unscored, "--verifier", "prm"), "--verifier has no effect with this compute-optimal")


# -- ttc exchange ---------------------------------------------------------------------------------

SIZES = ["--params-small", "6e5", "--params-large", "9e6", "--tokens-pretrain", "1e9", "--tokens-inference", "1e9"]


def test_bigger_or_longer(ttc, file):
    path = file((0, "majority", 4, 40), (0, "best-of-n", 16, 60))
    verdicts = {}
    for accuracy in ("0.6", "0.7"):
        outcome = ttc("exchange", *SIZES, "--calibration", path, "--accuracy-large", accuracy)
        assert outcome.status == 0, outcome.err
        verdicts[accuracy] = outcome.last_line
    # M = 15, R = 1: 15 + 3 * 14 = 57 answers; the largest budget measured is 16, where 66 % were right.
    assert "may sample 57 answers" in outcome.out
    assert "measured are budgets up to 16" in outcome.out
    assert "best-of-n, 60.0 %" in outcome.out
    assert verdicts["0.6"].startswith("think longer: the small model reaches 66.0 %")
    assert verdicts["0.7"].startswith("train bigger: ")
    assert (
        "unless the larger model's greedy answer is right in more than 66.0 %"
        in ttc("exchange", *SIZES, "--calibration", path).out
    )
    # 15 + 3/2 * 14 = 36 where the verifier is counted.
    assert "may sample 36 answers" in ttc("exchange", *SIZES, "--calibration", path, "--version", "iclr").out


def test_a_budget_that_buys_little_reads_the_small_budgets(ttc, file):
    path = file((0, "majority", 4, 40), (0, "best-of-n", 64, 60))
    few = ttc("exchange", *SIZES, "--tokens-inference", "1e15", "--calibration", path)
    assert "may sample 15 answers" in few.out
    assert "majority, 40.0 %" in few.out
    path = file((0, "majority", 32, 40))
    refused = ttc("exchange", *SIZES, "--tokens-inference", "1e15", "--calibration", path)
    assert_refused(refused, "may spend 15 answers per question", "measured none below 32")


def test_bigger_or_longer_by_difficulty(ttc, file, tmp_path):
    path = tmp_path / "bins.json"
    made = read_calibration(file((0, "majority", 4, 90), (0, "best-of-n", 4, 40)))
    hard = dataclasses.replace(made.cells[1], bin=1)
    changes = {"bins": Bins((0.5,)), "num_per_bin": (100, 300), "cells": (made.cells[0], hard)}
    path.write_text(dataclasses.replace(made, **changes).to_json())
    outcome = ttc("exchange", *SIZES, "--calibration", path, "--accuracy-large", "0.8,0.5")
    assert outcome.status == 0, outcome.err
    easy, hard = (line for line in outcome.out.splitlines() if line.startswith("  bin"))
    assert "100 problems: majority, 90.0 %, the larger model 80.0 %: think longer" in easy
    assert "300 problems: best-of-n, 40.0 %, the larger model 50.0 %: train bigger" in hard
    assert outcome.last_line.endswith("the larger one 57.5 %")  # (0.8 * 100 + 0.5 * 300) / 400
    assert_refused(ttc("exchange", *SIZES, "--calibration", path, "--accuracy-large", "1,1,1"), "2 bins", "got 1,1,1")
    assert_refused(ttc("exchange", *SIZES, "--calibration", path, "--accuracy-large", "all"), "numbers", "'all'")


def test_samples_that_only_predict_difficulty_are_paid_for(ttc, file, tmp_path):
    """57 answers, 42 of which predict: of the budgets 4 and 16 only the smaller is left."""
    made = read_calibration(file((0, "majority", 4, 40), (0, "best-of-n", 16, 60)))
    path = tmp_path / "apart.json"
    path.write_text(dataclasses.replace(made, predictor=Predictor("oracle", 42, is_reused=False)).to_json())
    outcome = ttc("exchange", *SIZES, "--calibration", path)
    assert "42 of the answers only predict difficulty" in outcome.out
    assert "budget 4)" in outcome.last_line
    path.write_text(dataclasses.replace(made, predictor=Predictor("oracle", 55, is_reused=False)).to_json())
    refused = ttc("exchange", *SIZES, "--calibration", path)
    assert_refused(refused, "may spend 57 answers", "none below 4, and predicts difficulty from 55 more")


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["--tokens-inference", "0"], ["tokens_inference must be above 0", "got 0"]),
        (["--tokens-pretrain", "-5"], ["tokens_pretrain must be above 0", "got -5"]),
        (["--params-large", "6e5"], ["params_large must be above", "got 600000"]),
        (["--params-small", "none"], ["--params-small", "'none'"]),
        (["--accuracy-large", "52"], ["accuracy_large must be within 0..1, got 52"]),
        (["--version", "draft"], ["version must be one of arxiv, iclr", "'draft'"]),
        (["--calibration", "nowhere"], ["no calibration file at 'nowhere'"]),
    ],
)
def test_what_cannot_be_exchanged(ttc, file, arguments, parts):
    path = file((0, "majority", 4, 40))
    assert_refused(ttc("exchange", *SIZES, "--calibration", path, *arguments), *parts)


def test_searches_that_stop_are_measured_by_the_chances_of_those_that_do_not(ttc, models, tmp_path):
    """They come last; and a run that was torn among them measures the same chances again."""
    out = tmp_path / "c.json"
    arguments = [*small_calibrate(models, out), *graded(tmp_path), "--bins", "one"]
    arguments += ["--strategies", "best-of-n:stop=0.3,best-of-n,beam"]
    outcome = ttc(*arguments)
    assert outcome.status == 0, outcome.err
    found, text = read_calibration(out), out.read_text()
    lines = [json.loads(line)["row"] for line in journal_path(out).read_bytes().splitlines()[1:]]
    assert [row["strategy"] for row in lines[-28:]] == ["best-of-n:stop=0.3"] * 28
    assert found.chances
    assert found.stopping(BestOfN(stop=0.0001)).stop == found.chances[0][0], "a chance is a score of this verifier"
    lines = journal_path(out).read_bytes().splitlines(keepends=True)
    journal_path(out).write_bytes(b"".join(lines[:-4]))
    assert "resumed" in ttc(*arguments).last_line
    assert out.read_text() == text


def test_a_chance_that_is_reached_at_once_ends_searches_after_their_pilot(ttc, models, tmp_path):
    out = tmp_path / "c.json"
    strategies = ["--strategies", "best-of-n,best-of-n:stop=0.000001"]
    assert ttc(*small_calibrate(models, out), *graded(tmp_path), "--bins", "one", *strategies).status == 0
    spent = {cell.strategy.stop: cell.generations for cell in read_calibration(out).cells if cell.budget == 9}
    assert spent[None] == 9
    assert spent[0.000001] < 9


def test_the_score_of_a_search_is_that_of_the_answer_that_leads():
    """An end of text alone, which may be the last node of its tree, has none."""
    result = with_lone_ends()
    leading = {each.agg_score for each in result.candidates if each.answer == result.answer}
    assert _row(result, BeamSearch(width=2))["score"] == max(leading)
    assert _row(result, Majority())["score"] is None, "nothing was asked of a verifier"


@pytest.mark.parametrize("predictor", ["probe", "probe+score"])
def test_a_probe_is_fitted_and_steers_searches(ttc, models, tmp_path, predictor):
    out, num_samples = tmp_path / "c.json", 0 if predictor == "probe" else 5
    arguments = small_calibrate(models, out)
    pilot = arguments.index("--pilot")
    if predictor == "probe":
        del arguments[pilot : pilot + 2]
    outcome = ttc(*arguments, "--predictor", predictor, "--bins", "quantiles:2")
    assert outcome.status == 0, outcome.err
    found = read_calibration(out)
    assert (found.predictor.name, found.predictor.num_samples) == (predictor, num_samples)
    assert len(found.predictor.weights) == 1 + HIDDEN_SIZE + (num_samples > 0)
    rows = [json.loads(line)["row"] for line in journal_path(out).read_bytes().splitlines()[1:]]
    assert sum("features" in row for row in rows) == 14, "once per problem"
    text = out.read_text()
    assert "resumed" in ttc(*arguments, "--predictor", predictor, "--bins", "quantiles:2").last_line
    assert out.read_text() == text

    outcome = ttc(*steered(models, tmp_path / "rows.jsonl", out), "--budget", 9)
    assert (outcome.status, "warning" in outcome.err) == (0, False), outcome.err
    for row in read_rows(tmp_path / "rows.jsonl"):
        assert row["ledger"]["tokens"]["estimation"] > 0
        assert row["num_generations"] <= 9
    total = ["--total-budget", 40]
    outcome = ttc(*[e for e in steered(models, tmp_path / "t.jsonl", out) if e not in ("--budget", 8)], *total)
    assert (outcome.status, "warning" in outcome.err) == (0, False), outcome.err
    other = tmp_path / "few.json"
    few = ttc(*arguments, "--predictor", predictor, "--min-per-bin", 15, "--out", other)
    assert_refused(few, "difficulty bin 1 of 1 holds 14 of 14 problems, at least 15 are needed")
    limit = arguments.index("--limit")
    two = [*arguments[:limit], "--limit", 2, *arguments[limit + 2 :]]
    few = ttc(*two, "--predictor", predictor, "--bins", "one", "--min-per-bin", 2, "--out", other)
    assert_refused(few, "a probe needs at least 3 problems that it is fitted to, got 2")
    assert not journal_path(other).exists(), "it is refused before anything is searched"
    refused = ttc(*arguments, "--predictor", "probe", "--pilot", 3, "--out", tmp_path / "other.json")
    assert_refused(refused, "--pilot has no effect with --predictor probe")


def test_ratios_of_revisions_are_measured_and_used(ttc, models, tmp_path):
    """The pilot's five samples are the policy's; the reviser is part of what a calibration holds for."""
    file, chains = tmp_path / "ratios.json", "revisions:parallel=1,revisions:parallel=2"
    arguments = [
        *small_calibrate(models, file),
        "--strategies",
        f"best-of-n,{chains}",
        "--reviser",
        models.other_policy,
    ]
    outcome = ttc(*arguments)
    assert outcome.status == 0, outcome.err
    cells = json.loads(file.read_text())["cells"]
    assert {cell["strategy"].get("parallel") for cell in cells} == {None, 1, 2}
    used = [*steered(models, tmp_path / "rows.jsonl", file), "--reviser", models.other_policy]
    outcome = ttc(*used)
    assert (outcome.status, "warning" in outcome.err) == (0, False), outcome.err
    other = ttc(*steered(models, tmp_path / "other.jsonl", file), "--reviser", models.policy)
    assert "reviser was" in other.err
    assert_refused_last(ttc(*steered(models, tmp_path / "none.jsonl", file)), "needs --reviser")
