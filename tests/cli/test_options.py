"""Every option of `ttc search` changes the outcome, or says why it cannot."""

from __future__ import annotations

import dataclasses

import pytest

from engine import EngineConfig, Revisions, Sampling, SearchConfig
from engine.cli.options import Given, field_docs
from engine.cli.strategies import StrategyOptions, build_strategy
from engine.results.rows import FIELDS
from engine.search.registry import STRATEGIES
from tests.cli.conftest import assert_refused, comparable, graded, small_search

ALIKE = ["--strategy", "beam", "--top-k", "2", "--step-delimiter", "e", "--budget", "32"]  # steps that say the same

# Option and value, what the row shows of it, and the options beside it.
CHANGES = [
    (["--split", "validation"], "problem", []),
    (["--strategy", "dvts"], "completions", ["--strategy", "beam"]),
    (["--strategy", "rebase"], "completions", ["--strategy", "beam"]),
    (["--strategy", "adaptive", "--confidence", "0.51"], "completions", ["--strategy", "best-of-n", "--budget", "32"]),
    (["--rebase-temperature", "0.01"], "completions", ["--strategy", "rebase"]),
    (["--num-iterations", "1"], "completions", ["--strategy", "rebase"]),
    (["--adaptive-batch", "7"], "completions", ["--strategy", "adaptive", "--confidence", "0.51", "--budget", "32"]),
    (["--confidence", "0.51"], "completions", ["--strategy", "adaptive", "--budget", "32"]),
    (["--stop", "0.1"], "completions", ["--strategy", "best-of-n", "--budget", "32"]),
    (["--stop", "0.1"], "completions", ["--strategy", "beam", "--budget", "32"]),
    (
        ["--max-duplicates", "0"],
        "completions",
        ALIKE,
    ),
    (["--beam-width", "2"], "completions", ["--strategy", "beam"]),
    (["--num-iterations", "1"], "completions", ["--strategy", "beam"]),
    (["--agg-strategy", "min"], "agg_scores", ["--strategy", "best-of-n"]),
    (["--verifier", "oracle"], "scores", ["--strategy", "best-of-n"]),
    (["--temperature", "0.3"], "completions", ["--strategy", "best-of-n"]),
    (["--top-p", "0.5"], "completions", ["--strategy", "best-of-n"]),
    (["--top-k", "2"], "completions", ["--strategy", "best-of-n"]),
    (["--min-p", "0.5"], "completions", ["--strategy", "best-of-n"]),
    (["--max-tokens", "3"], "completions", ["--strategy", "best-of-n"]),
    (["--seed", "1"], "completions", ["--strategy", "best-of-n"]),
    (["--dtype", "bfloat16"], "scores", ["--strategy", "best-of-n"]),
]


@pytest.mark.parametrize(("option", "field", "beside"), CHANGES, ids=lambda part: " ".join(part[:2]))
def test_an_option_changes_the_rows(search, tmp_path, option, field, beside):
    if {"adaptive", "--stop"} & {*option, *beside}:  # which end by what answers say
        beside = [*beside, *graded(tmp_path)]
    verifier = None if "oracle" in option else "prm"
    plain = search(*beside, out="plain.jsonl")
    changed = search(*beside, *option, out="changed.jsonl", verifier=verifier)
    assert [row[field] for row in plain] != [row[field] for row in changed]


def test_defaults_are_what_help_says(search):
    typed = ["--task", "walks", "--split", "test", "--strategy", "beam", "--beam-width", "4"]
    typed += ["--num-iterations", "40", "--vote", "weighted", "--agg-strategy", "last", "--verifier", "prm"]
    typed += ["--temperature", "1.0", "--top-p", "1.0", "--top-k", "0", "--min-p", "0", "--seed", "0"]
    typed += ["--device", "cpu", "--dtype", "float32", "--max-batch", "256"]
    assert search(out="plain.jsonl") == search(*typed, out="typed.jsonl")


def test_limit_and_budget(search):
    rows = search("--limit", "3", "--budget", "12")
    assert len(rows) == 3
    assert all(len(row["completions"]) == row["budget"] == 12 for row in rows)


def test_lookahead(search):
    def spent(depth: int) -> int:
        rows = search("--strategy", "lookahead", "--lookahead", str(depth), "--beam-width", "2", out=f"{depth}.jsonl")
        assert all(len(row["completions"]) == 8 // (depth + 1) for row in rows)
        return sum(row["ledger"]["tokens"]["lookahead"] for row in rows)

    assert spent(0) == 0
    assert spent(1) > 0


def test_vote(search, tmp_path):
    def preds(vote: str) -> list[str | None]:
        rows = search(
            "--strategy", "best-of-n", "--vote", vote, "--budget", "256", *graded(tmp_path), out=f"{vote}.jsonl"
        )
        return [row["pred"] for row in rows]

    assert len({tuple(preds(vote)) for vote in ("weighted", "naive", "majority")}) >= 2


@pytest.mark.parametrize(
    ("option", "field"),
    [
        (["--parallel", "2"], "completions"),
        (["--context", "1"], "completions"),
        (["--reviser", "other_policy"], "completions"),
    ],
    ids=lambda part: part[0],
)
def test_revisions(search, models, option, field):
    beside = ["--strategy", "revisions", "--reviser", models.policy, "--budget", "32"]
    option = [option[0], getattr(models, option[1], option[1])]
    plain = search(*beside, out="plain.jsonl")
    assert [row[field] for row in plain] != [row[field] for row in search(*beside, *option, out="changed.jsonl")]
    assert all(row["strategy"] == "revisions" and row["num_generations"] == row["budget"] for row in plain)


def test_the_vote_of_revisions_is_its_own_where_none_is_given():
    chosen = {"parallel": 2, "context": 3, "judge_alone": True}
    options = StrategyOptions(strategy="revisions", vote="weighted", **chosen)
    assert build_strategy(options, "orm", Given(chosen)) == Revisions(**chosen, vote="hierarchical")
    assert build_strategy(options, "orm", Given({"vote"})).vote == "weighted"


def test_an_orm_judges_revisions(search, models):
    beside = ["--strategy", "revisions", "--reviser", models.policy, "--orm", models.prm, "--orm-spec", "home-orm"]
    rows = search(*beside, "--verifier", "orm", verifier=None)
    assert all(len(scores) <= 1 for row in rows for scores in row["scores"])
    alone = search(*beside, "--verifier", "orm", "--judge-alone", verifier=None, out="alone.jsonl")
    for row, other in zip(rows, alone, strict=True):
        assert row["completions"] == other["completions"]
    assert [row["scores"] for row in rows] != [row["scores"] for row in alone]


def test_a_revisions_report_draws_attempts(search, models, ttc, tmp_path):
    search("--strategy", "revisions", "--reviser", models.policy, "--with-tree", out="rows.jsonl")
    found = next(tmp_path.rglob("rows.jsonl"))
    assert ttc("report", found, "--out", tmp_path / "page.html").status == 0
    page = (tmp_path / "page.html").read_text()
    assert "attempt 2" in page
    assert "step 1" not in page


def test_models(search, models):
    plain = search(out="plain.jsonl")
    assert search("--policy", models.other_policy, out="policy.jsonl") != plain
    assert search("--prm", models.other_prm, out="prm.jsonl") != plain
    trunk = search(out="trunk.jsonl", verifier="trunk")
    assert trunk != plain
    assert search("--trunk-head", models.other_trunk_head, out="head.jsonl", verifier="trunk") != trunk


def test_max_batch_changes_no_row_and_still_counts(search, ttc, models, tmp_path):
    assert comparable(search(out="256.jsonl")) == comparable(search("--max-batch", "3", out="3.jsonl"))
    assert_refused(ttc(*small_search(models, tmp_path / "x"), "--max-batch", "0"), "max_batch", "got 0")


def test_num_blocks(search, ttc, models, tmp_path):
    few = search("--num-blocks", "40", out="few.jsonl")
    many = search("--num-blocks", "512", out="many.jsonl")
    assert [row["completions"] for row in few] == [row["completions"] for row in many]
    assert_refused(ttc(*small_search(models, tmp_path / "x"), "--num-blocks", "2"), "2")


def test_with_tree(search):
    plain, trees = search(out="plain.jsonl"), search("--with-tree", out="trees.jsonl")
    assert all(set(FIELDS) <= row.keys() for row in plain)
    assert all("tree" not in row for row in plain)
    assert all(len(row["tree"]) > 8 for row in trees)


@pytest.mark.parametrize(
    ("strategy", "option", "value"),
    [
        ("majority", "--beam-width", "4"),
        ("majority", "--vote", "weighted"),
        ("majority", "--stop", "0.9"),
        ("majority", "--verifier", "prm"),
        ("majority", "--agg-strategy", "last"),
        ("majority", "--prm", "home"),
        ("majority", "--trunk-head", "home"),
        ("best-of-n", "--num-iterations", "40"),
        ("best-of-n", "--trunk-head", "home"),
        ("beam", "--lookahead", "1"),
        ("dvts", "--lookahead", "1"),
        ("dvts", "--max-duplicates", "1"),
        ("beam", "--rebase-temperature", "0.1"),
        ("rebase", "--beam-width", "4"),
        ("best-of-n", "--confidence", "0.9"),
        ("best-of-n", "--adaptive-batch", "2"),
        ("adaptive", "--num-iterations", "4"),
        ("beam", "--total-budget", "100"),
        ("beam", "--calibration", "home"),
        ("beam", "--reviser", "home"),
        ("best-of-n", "--parallel", "2"),
        ("best-of-n", "--context", "2"),
        ("best-of-n", "--judge-alone", None),
        ("revisions", "--judge-alone", None),  # but with an ORM
    ],
)
def test_an_option_without_effect_is_refused(ttc, models, tmp_path, strategy, option, value):
    arguments = small_search(models, tmp_path / "x", verifier=None)
    outcome = ttc(*arguments, "--strategy", strategy, option, *([] if value is None else [value]))
    assert_refused(outcome, f"{option} has no effect with --")
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(("option", "value"), [("--verifier", "prm"), ("--agg-strategy", "min")])
def test_an_adaptive_majority_scores_nothing(ttc, models, tmp_path, option, value):
    arguments = [*small_search(models, tmp_path / "x", verifier=None), "--strategy", "adaptive", "--vote", "majority"]
    assert_refused(ttc(*arguments, option, value), f"{option} has no effect with this adaptive")
    assert ttc(*arguments).status == 0, "no PRM is asked for"


def test_split_has_no_effect_with_a_file(ttc, models, tmp_path):
    outcome = ttc(*small_search(models, tmp_path / "x"), "--split", "test", tmp_path / "problems.jsonl")
    assert_refused(outcome, "--split has no effect with a problem file, got 'test'")


@pytest.mark.parametrize("config", [EngineConfig, SearchConfig, Sampling, StrategyOptions, *STRATEGIES.values()])
def test_every_field_has_a_line_of_help(config):
    docs = field_docs(config)
    for field in dataclasses.fields(config):
        text = field.metadata.get("help") or docs[field.name]
        assert text.endswith("."), field.name
        assert "\n" not in text, field.name
