"""The paper's benchmark on a few problems of the home models; its pure parts on made-up data."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from markupsafe import escape

from benchmarks.paper.__main__ import app
from benchmarks.paper.bills import Bills
from benchmarks.paper.cells import LEADING, Cell, Piloted, chains_at, distinct, revision_cells, search_cells
from benchmarks.paper.measured import POOL_SERIES, adaptive_run, pool_series, windows
from benchmarks.paper.models import Models
from benchmarks.paper.pools import Pool, pool_row
from benchmarks.paper.settings import Settings
from benchmarks.paper.stages import Study, run_cells, score_pool
from benchmarks.resumable import run_rows
from engine import Engine
from engine.commands import run_app
from engine.results import Journal, read_journal
from engine.scheduler import Predictor
from engine.search import Adaptive, BeamSearch, BestOfN, Majority
from engine.tasks import take_problems

BUDGETS = (1, 4, 16)


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine.load("home", shares_steps=False)  # as the benchmark does


@pytest.fixture(scope="module")
def problems(engine: Engine):
    return take_problems(engine.task, "test", 6)


@pytest.fixture(scope="module")
def pools(engine: Engine, problems) -> list[Pool]:
    return [Pool.from_row(json.loads(json.dumps(pool_row(each)))) for each in engine.search(problems, BestOfN(), 16)]


def cold(engine: Engine, problem, strategy, budget: int, **options):
    for llm in (engine.policy, engine.prm):
        llm.clear_cache()
    return engine.search([problem], strategy, budget, **options)[0]


@pytest.mark.parametrize(
    "series", [name for name, (scored_by, _) in POOL_SERIES.items() if scored_by not in ("orm", "exact")]
)
def test_a_prefix_of_a_pool_is_the_search_of_that_budget(engine, problems, pools, series):
    """Its vote and its bill, to the FLOP."""
    scored_by, rule = POOL_SERIES[series]
    strategy = Majority() if scored_by is None else BestOfN(rule)
    for problem, pool in zip(problems[:3], pools, strict=False):
        for budget in BUDGETS:
            result = cold(engine, problem, strategy, budget, agg_strategy=scored_by or "last")
            cut = replace(pool, picks=pool.picks[:budget])
            bills = {kind: [Bills.of(engine, problem, kind)] for kind in (None, "prm")}
            measured = pool_series([[cut]], bills, [budget])[series][budget]
            assert bool(measured.right[0]) == result.correct
            assert round(measured.flops[0]) == result.ledger.total_flops
            assert round(measured.verified[0]) == result.ledger.flops["verified"]
            best = next(each for each in result.candidates if each.answer == result.answer)
            assert measured.chosen[0][0] is not None
            assert best.finish == "eos"


def test_a_pool_keeps_what_the_search_returned(engine, problems, pools):
    for problem, pool in zip(problems[:2], pools, strict=False):
        result = cold(engine, problem, BestOfN(), 16)
        kept = pool.candidates()
        assert [(c.text, c.answer, c.scores, c.agg_score, c.num_tokens) for c in kept] == [
            (c.text, c.answer, c.scores, c.agg_score, c.num_tokens) for c in result.candidates
        ]
        assert sum(pool.rights) == sum(c.answer == problem.answer for c in result.candidates)
    assert any(len(pool.distinct) < pool.size for pool in pools)


def test_adaptive_from_a_pool_is_the_search(engine, problems, pools):
    spent = set()
    for strategy in (Adaptive(), Adaptive(confidence=0.8)):
        for problem, pool in zip(problems, pools, strict=True):
            result = cold(engine, problem, strategy, 16)
            drawn = adaptive_run(strategy, pool.candidates())
            assert drawn == result.num_generations
            bills = Bills.of(engine, problem, "prm")
            assert sum(bills.of_answers(pool.candidates()[:drawn], -(-drawn // 4))) == result.ledger.total_flops
            spent.add(drawn)
    assert min(spent) < 16


def test_windows_are_disjoint_and_whole():
    assert windows("abcdefghij", 4) == ["abcd", "efgh"]
    assert windows("abcd", 4) == ["abcd"]


def test_budgets_average_over_windows(pools):
    bills = {
        "prm": [Bills.of(Engine.load("home"), p, "prm") for p in take_problems(Engine.load("home").task, "test", 6)]
    }
    made = pool_series([pools, pools], bills, BUDGETS)
    assert made["best-of-n"][1].right == pytest.approx([pool.pass_rate for pool in pools])
    assert made["best-of-n"][16].num_seeds == 2
    assert set(made["best-of-n"][16].right) <= {0.0, 1.0}
    assert "majority" not in made  # its bills were not given
    assert "best-of-n, ORM" not in made


def test_scores_of_an_orm_follow_distinct_answers(pools):
    scored = replace(pools[0], judged=tuple(1 / (1 + index) for index in range(len(pools[0].distinct))))
    by_text = {each.text: score for each, score in zip(scored.distinct, scored.judged, strict=True)}
    assert [each.agg_score for each in scored.candidates("orm")] == [by_text[c.text] for c in scored.candidates()]


# -- cells ------------------------------------------------------------------------------------


def test_cells_come_by_value_and_run_once():
    settings = Settings(Path("unused"))
    cells = search_cells(settings)
    assert {cell.seed for cell in cells if cell.budget == 256} == {0}
    assert {cell.seed for cell in cells if cell.budget == 64} == {0, 1, 2}
    num_leading = sum(cell.series in LEADING for cell in cells)
    leading = [(cell.budget, cell.seed) for cell in cells[:num_leading]]
    assert all(cell.series in LEADING for cell in cells[:num_leading])
    order = ["small", "64, first seed", "largest", "64, other seeds"]
    kinds = [order[0 if budget <= 16 else 2 if budget == 256 else 3 if seed else 1] for budget, seed in leading]
    assert list(dict.fromkeys(kinds)) == order
    assert sorted(kinds, key=order.index) == kinds
    first = next(index for index, cell in enumerate(cells) if cell.budget == 64 and cell.seed and index >= num_leading)
    assert all(cell.budget > 16 for cell in cells[first:])
    names = [cell.file_name for cell in distinct(cells)]
    assert len(set(names)) == len(names) < len(cells)  # M = sqrt(16) is M = 4
    for cell in cells:
        cell.strategy.groups(cell.budget)


def test_ratios_go_in_factors_of_four():
    settings = Settings(Path("unused"))
    assert chains_at(16, settings) == (16, 8, 4, 2, 1)
    assert chains_at(64, settings)[0] == 64
    assert chains_at(256, settings) == (16, 8)
    assert chains_at(4, settings) == ()
    seeds = {
        budget: {cell.seed for cell in revision_cells(settings, "orm") if cell.budget == budget}
        for budget in (16, 64, 256)
    }
    assert seeds == {16: {0, 1, 2}, 64: {0, 1, 2}, 256: {0}}


def test_quick_is_smaller():
    quick = Settings(Path("unused")).quick()
    assert (quick.num_problems, quick.seeds, quick.budgets, quick.num_bin_samples) == (50, (0,), (1, 4, 16, 64), 64)
    assert chains_at(64, quick) == (64, 8, 1)
    assert [cell.strategy.parallel for cell in revision_cells(quick, "orm") if cell.is_baseline] == [4]


@pytest.mark.parametrize(
    ("changes", "value"),
    [
        ({"num_problems": 0}, "num_problems must be at least 1, got 0"),
        ({"budgets": (4, 16)}, r"got \[4, 16\]"),
        ({"budgets": (1, 4, 6)}, "divide the largest, 6, got 4"),
        ({"seeds": (1, 1)}, r"got \[1, 1\]"),
        ({"seeds_at_largest": 0}, "seeds_at_largest must be at least 1, got 0"),
    ],
)
def test_bad_settings(changes, value):
    with pytest.raises(ValueError, match=value):
        Settings(Path("unused"), **changes)


def test_a_pilot_is_part_of_the_budget(engine, problems):
    """Its samples are the first of the problem's pool, and stand in the bill as an estimate."""
    piloted = Piloted(BeamSearch(4), Predictor("agreement", 4))
    with pytest.raises(ValueError, match="at most the budget of 2, got 4"):
        piloted.groups(6)
    result = cold(engine, problems[2], piloted, 12)
    first = cold(engine, problems[2], BestOfN(), 4)
    assert result.num_generations == 12
    assert [each.text for each in result.candidates[:4]] == [each.text for each in first.candidates]
    assert result.ledger.flops["estimation"] == first.ledger.total_flops


# -- run ledgers ------------------------------------------------------------------------------


def row(index: int) -> dict:
    return {"id": f"p{index}", "seed": 0, "strategy": "beam", "correct": True}


def test_a_torn_run_goes_on_where_it_stopped(tmp_path):
    path, config = tmp_path / "cell.ledger", {"cell": "beam"}
    asked: list[list[int]] = []

    def make_rows(todo):
        asked.append(todo)
        return ((index, row(index)) for index in todo)

    run_rows(path, config, 3, make_rows, "cell")
    whole = path.read_bytes()
    path.write_bytes(whole[:-5])  # killed within the last line
    rows, seconds = read_journal(path, config, 3)
    assert sorted(rows) == [0, 1]
    assert seconds >= 0
    assert path.read_bytes() == whole[:-5]  # reading changes nothing
    run_rows(path, config, 3, make_rows, "cell")
    run_rows(path, config, 3, make_rows, "cell")
    run_rows(path, config, 5, make_rows, "cell")  # more problems
    assert asked == [[0, 1, 2], [2], [3, 4]]
    assert sorted(read_journal(path, config, 4)[0]) == [0, 1, 2, 3]
    with pytest.raises(ValueError, match="another configuration"):
        read_journal(path, {"cell": "dvts"}, 3)
    assert read_journal(tmp_path / "none", config, 3) == ({}, 0.0)


def test_what_another_process_is_at_is_left_to_it(tmp_path, capsys):
    path, config = tmp_path / "cell.ledger", {"seed": 0}
    with Journal(path, config):  # a lock holds between descriptors, as between processes
        run_rows(path, config, 2, lambda todo: pytest.fail("it is being made"), "cell:")
    assert capsys.readouterr().err == "cell: left to another process\n"
    run_rows(
        path,
        config,
        2,
        lambda todo: [(index, {"id": str(index), "seed": 0, "strategy": "x"}) for index in todo],
        "cell:",
    )
    assert len(read_journal(path, config, 2)[0]) == 2


def test_a_killed_cell_is_searched_for_the_missing_problems_alone(engine, problems, tmp_path):
    study = Study(Settings(tmp_path, seeds=(0,), budgets=(1, 4)), Models(engine, None, None, {}), tuple(problems[:3]))
    cell = Cell("beam M=4", BeamSearch(4), 4, 0)
    run_cells(study, [cell])
    path, config = study.cell_run(cell)
    first, _ = read_journal(path, config, 3)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:2]) + lines[2][:20])
    assert len(read_journal(path, config, 3)[0]) == 1
    run_cells(study, [cell])
    again, _ = read_journal(path, config, 3)
    verdicts = [(each[index]["correct"], each[index]["chosen"]) for each in (first, again) for index in range(3)]
    assert verdicts[:3] == verdicts[3:]


def test_an_orm_scores_the_kept_answers_as_a_search_does(problems, tmp_path):
    """The home PRM, read as a verifier of whole answers, in the place of an ORM."""
    loaded = Engine.load("home", shares_steps=False)
    loaded.orm = loaded.prm
    loaded.specs["orm"] = loaded.specs["prm"]
    judge = loaded.resolve_verifier("orm")
    judge.judges = "answers"
    study = Study(Settings(tmp_path, seeds=(0,), budgets=(1, 4)), Models(loaded, None, None, {}), tuple(problems[:3]))
    path, config = study.pool_run(0)
    results = loaded.search(problems[:3], BestOfN(), 4, verifier="prm")
    run_rows(path, config, 3, lambda todo: ((index, pool_row(results[index])) for index in todo), "pool")
    score_pool(study, 0)
    scored, _ = read_journal(*study.orm_run(0), 3)
    direct = loaded.search(problems[:3], BestOfN(), 4, verifier="orm")
    for index, result in enumerate(direct):
        pool = Pool.from_row(read_journal(path, config, 3)[0][index], scored[index])
        assert [each.agg_score for each in pool.candidates("orm")] == [each.agg_score for each in result.candidates]
        bills = Bills.of(loaded, problems[index], "orm")
        assert bills.of_answers(pool.candidates("orm"))[1] > 0


# -- the whole of it --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory):
    work = tmp_path_factory.mktemp("paper")
    arguments = ["--num-problems", "4", "--budgets", "1,4", "--num-bin-samples", "8"]
    arguments += ["--large", "", "--work", str(work)]
    assert run_app(app, [*arguments, "--seeds", "0,1"], "paper") == 0
    return work, arguments


def test_all_that_can_run_is_in_the_tables(run):
    work, _ = run
    results = json.loads((work / "paper.json").read_text())
    assert results["num_problems"] == 4
    assert results["seeds"] == [0, 1]
    assert {"hardware", "commit", "seconds", "tuned"} <= set(results)
    searches = {"majority", "best-of-n", "beam M=4", "lookahead k=3", "dvts", "rebase", "adaptive"}
    assert searches <= set(results["accuracy"])
    for budgets in results["accuracy"].values():
        for mean, low, high in budgets.values():
            assert 0 <= low <= mean <= high <= 1
    assert results["cost"]["lookahead k=3"]["4"]["generations"] == 4
    assert results["cost"]["beam M=4"]["4"]["num_seeds"] == 2
    charged, free = (results["compute_optimal"][kind]["4"] for kind in ("predicted, charged", "predicted"))
    assert charged["generations"] == free["generations"] + 8
    assert charged["flops"] > free["flops"]
    sections = {finding["section"] for finding in results["findings"]}
    assert sections == {0, 1, 2, 3, 4, 5}
    reasons = {each["what"]: each["reason"] for each in results["missing"]}
    assert "--large is empty" in reasons["large"]
    page = (work / "paper.html").read_text()
    assert page.count("<svg") >= 5
    assert all(str(escape(finding["claim"])) in page for finding in results["findings"])


def test_another_run_samples_nothing_again(run, capsys):
    work, arguments = run
    before = {path.name: path.read_bytes() for path in work.glob("*.ledger")}
    assert run_app(app, [*arguments, "--seeds", "0,1"], "paper") == 0
    assert {path.name: path.read_bytes() for path in work.glob("*.ledger")} == before
    assert "pool of" not in capsys.readouterr().err


def test_tables_say_how_far_a_cell_is(run, tmp_path):
    work, arguments = run
    for path in work.glob("*.ledger"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    path = tmp_path / "dvts-4-seed1.ledger"
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:3]))
    arguments = [*arguments[:-1], str(tmp_path), "--seeds", "0,1", "--only", "tables"]
    assert run_app(app, arguments, "paper") == 0
    results = json.loads((tmp_path / "paper.json").read_text())
    assert results["cost"]["dvts"]["4"]["num_seeds"] == 1
    wanted = {"what": "dvts, 4 generations, seed 1", "reason": "2 of 4 problems have been run"}
    assert wanted in results["missing"]


def test_tables_without_pools_are_refused(tmp_path, capsys):
    arguments = ["--only", "tables", "--num-problems", "2", "--large", "", "--work", str(tmp_path)]
    assert run_app(app, arguments, "paper") == 2
    assert "0 of 2 problems have been run" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "value"),
    [
        (["--only", "plots"], "'plots'"),
        (["--budgets", "1,x"], "'1,x'"),
        (["--large", "engine/home/policy", "--num-problems", "2"], "the larger policy must have more than"),
    ],
)
def test_bad_arguments(arguments, value, tmp_path, capsys):
    assert run_app(app, [*arguments, "--work", str(tmp_path)], "paper") == 2
    assert value in capsys.readouterr().err
