"""The comparison at equal FLOPs on tiny random models; no time is asserted."""

from __future__ import annotations

import json
import time
from functools import partial
from pathlib import Path

import pytest

from benchmarks.equal_flops.__main__ import main
from benchmarks.equal_flops.sides import ENGINES, STRATEGIES, CountedSearch, Spent, cut, matched, ours, theirs
from benchmarks.random_models import build_large_tokenizer, save_random
from benchmarks.throughput.plain import Beam, load
from benchmarks.timing import Missing
from engine import Engine, Majority
from engine.accounting.flops import forward_flops
from engine.model import read_config, resolve_dtype
from engine.tasks import take_problems
from tests.tiny import tiny_policy, tiny_prm

MAX_TOKENS = 12


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("models")
    return tiny_policy(folder / "policy"), tiny_prm(folder / "prm")


@pytest.fixture(scope="module")
def report(folders: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> dict:
    path = tmp_path_factory.mktemp("benchmark") / "out" / "report.json"
    small = f"--threads 1 --num-problems 1 --num-answers 16 --repeats 1 --max-seconds 60 --max-tokens {MAX_TOKENS}"
    models = ["--policy", str(folders[0]), "--prm", str(folders[1])]
    assert main([*models, *small.split(), "--json", str(path)]) == 0
    return json.loads(path.read_text())


def test_every_strategy_on_every_engine_has_a_row_or_a_reason(report):
    rows = {(row["engine"], row["strategy"]) for row in report["rows"]}
    missing = {(entry["engine"], entry["strategy"]) for entry in report["missing"] if entry["reason"]}
    assert rows | missing == {(engine, strategy) for engine in ENGINES for strategy in STRATEGIES}
    assert not rows & missing
    assert {engine for engine, _ in rows} >= {"ours", "generate"}


def test_rates_follow_from_the_bill_and_the_time(report):
    for row in report["rows"]:
        assert row["mfu"] == pytest.approx(row["flops"] / row["seconds"] / report["matmul_tflops"] / 1e12)
        assert row["tokens_per_second"] == pytest.approx(row["tokens"] / row["seconds"])
        assert row["share_of_floor"] > 0
    targets = {round(row["flops"] / row["flops_of_target"]) for row in report["rows"]}
    assert max(targets) - min(targets) <= 1


def test_what_re_reads_its_text_gets_fewer_answers(report):
    answers = {(row["engine"], row["strategy"]): row["answers"] for row in report["rows"]}
    assert answers["ours", "majority"] >= 16
    assert answers["generate", "majority"] < answers["ours", "majority"]  # every answer reads the prompt
    assert answers["generate", "beam"] <= answers["ours", "beam"]


def test_one_answer_costs_the_same_on_both_sides(folders: tuple[Path, Path]):
    """Greedy-free and prefix-free: the FLOPs of one sample follow from its length alone."""
    engine = Engine.load(folders[0], prm=folders[1])
    problems = take_problems(engine.task, "test", 1)
    prompt = engine.policy.encode(problems[0].prompt)
    shape = read_config(folders[0]).shape()
    mine = ours(engine, problems, MAX_TOKENS)(Majority(), 1, 0)
    make = pipeline(folders)
    other = theirs(make, [prompt])(Majority(), 1, 0)
    for spent in (mine, other):
        assert spent.flops == forward_flops(shape, 0, len(prompt) + spent.num_tokens - 1, spent.num_tokens)
        assert spent.longest == spent.num_tokens <= MAX_TOKENS


def pipeline(folders: tuple[Path, Path], **changes) -> partial:
    float32 = resolve_dtype("float32")
    return partial(
        CountedSearch,
        load(folders[0], float32, "sdpa"),
        load(folders[1], float32, "sdpa", is_verifier=True),
        newline=3,
        eos=1,
        pad=1,
        width=2,
        max_tokens=MAX_TOKENS,
        policy_shape=read_config(folders[0]).shape(),
        prm_shape=read_config(folders[1]).shape(False),
        **changes,
    )


def test_rollouts_change_scores_and_are_billed(folders: tuple[Path, Path]):
    """Two steps go on; with lookahead they are scored again where their rollouts end."""
    bills = []
    for lookahead in (0, 1):
        search = pipeline(folders, ends=frozenset(range(2, 35)))(budget=2, lookahead=lookahead)
        search.max_length = 4 + MAX_TOKENS
        beams = search.expand([Beam([5, 6, 7, 3]), Beam([8, 9, 3, 3])], search.max_length)
        assert [beam.finish for beam in beams] == ["step", "step"]
        before = search.spent.num_tokens
        search.score(beams)
        bills.append((search.spent.num_tokens - before, search.spent.num_scorings))
    assert bills[0] == (0, 1)
    assert bills[1][0] == 2  # a token each, as any token ends a step
    assert bills[1][1] == 2


def test_a_run_over_its_limit_stops_at_the_next_call(folders: tuple[Path, Path]):
    search = pipeline(folders, max_seconds=0.0)(budget=2)
    with pytest.raises(Missing, match="2 answers a problem were not through after"):
        search.answers([5, 6, 7, 3], is_scored=False)


def test_padding_behind_a_stop_is_not_counted():
    assert cut([4, 5, 1, 1, 1], (1,)) == [4, 5, 1]
    assert cut([4, 5], (1,)) == [4, 5]


def test_answers_are_matched_to_the_target():
    def side(strategy, num_answers: int, seed: int) -> Spent:
        return Spent(flops=100 + 10 * num_answers)  # a prompt, and answers

    assert matched(side, Majority(), 740, max_seconds=60) == 64
    assert matched(side, STRATEGIES["lookahead"], 100, max_seconds=60) == 8  # the fewest that it can spend


def test_what_would_take_too_long_is_missing():
    def side(strategy, num_answers: int, seed: int) -> Spent:
        time.sleep(0.02)
        return Spent(flops=num_answers)

    with pytest.raises(Missing, match="8 answers a problem took"):
        matched(side, Majority(), 1000, max_seconds=0.05)


def test_models_come_in_pairs(capsys):
    with pytest.raises(SystemExit) as exit_status:
        main(["--policy", "home"])
    assert exit_status.value.code == 2
    assert "got 'home' and None" in capsys.readouterr().err


def test_random_models_search(tmp_path: Path):
    """The 1B policy and the 8B verifier, shrunk: the engine loads them, steps end, answers reach their limit."""
    small = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 1, "vocab_size": 100}
    small |= {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32}
    float32 = resolve_dtype("float32")
    names = ("llama-3.2-1b", "prm-8b")
    policy, prm = (save_random(name, tmp_path / name, "cpu", float32, **small) for name in names)
    engine = Engine.load(policy, prm=prm)
    spent = ours(engine, take_problems(engine.task, "test", 1), 64)(STRATEGIES["beam"], 4, 0)
    assert spent.num_scorings > 1
    assert spent.longest <= 64


def test_a_large_vocabulary_has_the_home_tokens_and_ends_of_lines():
    tokenizer = build_large_tokenizer(200)
    assert len(tokenizer) == 200
    assert tokenizer.encode("12+3\n") == [5, 6, 14, 7, 3]
    assert sum("\n" in tokenizer.decode([i]) for i in range(200)) == 1 + len(range(64, 200, 32))
