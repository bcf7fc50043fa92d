"""`ttc rollouts --from`: the steps of searches, labelled by rollouts from them."""

from __future__ import annotations

import json
import math
import random

import pytest

from engine.errors import UserError
from engine.keys import branch_key
from engine.results import journal_path, read_rows, result_row
from engine.runtime import LLM
from engine.tasks import get_task
from engine.training.searched import SearchedPath, choose_paths, searched_questions, tree_paths
from engine.training.stepwise import read_stepwise
from tests.cli.conftest import assert_refused, models, ttc
from tests.reports.builders import beam_row
from tests.search.fakes import with_lone_ends

__all__ = ["models", "ttc"]

TOKENS = 40  # of an answer
ROLLOUTS = 4


def path(*steps: int, score: float = 0.0, is_ended: bool = False) -> SearchedPath:
    return SearchedPath(tuple((step,) for step in steps), "", score, is_ended)


def test_paths_are_the_leaves_of_a_tree():
    row = beam_row(depth=3, num_beams=4, width=2)
    paths = tree_paths(row | {"tree_token_ids": [[index] for index in range(len(row["tree"]))]})
    assert len(row["tree"]) == 1 + 4 + 4 + 4
    ended = [each for each in paths if each.is_ended]
    assert [len(each.steps) for each in paths].count(1) == 2  # rejected among the first steps
    assert [len(each.steps) for each in paths].count(2) == 2
    assert [each.text for each in ended] == row["completions"]
    assert [each.score for each in ended] == row["agg_scores"]
    row["tree"][3]["finish"] = "length"
    assert len(tree_paths(row)) <= len(paths)


def test_a_path_that_ends_in_an_end_of_text_alone_has_the_score_of_its_answer():
    row = result_row(with_lone_ends(), with_tree=True)
    paths = tree_paths(row)
    assert [each.score for each in paths] == row["agg_scores"]
    assert len(paths) == 4
    assert min(row["agg_scores"]) < max(row["agg_scores"])


def test_finished_and_rejected_paths_are_chosen_evenly():
    ended = [path(number, 9, score=number / 10, is_ended=True) for number in range(6)]
    rejected = [path(number, 7) for number in range(5)]
    beginning = path(3)  # of others, whose labels it would repeat
    every = [*ended, *rejected, beginning, path(2, 9, score=0.1, is_ended=True)]
    chosen = choose_paths(every, 4, random.Random(0))
    assert chosen[:2] == (ended[5], ended[4])
    assert len(chosen) == 4
    assert set(chosen[2:]) <= set(rejected)
    assert {choose_paths(every, 4, random.Random(seed))[2:] for seed in range(9)} != {chosen[2:]}
    assert len(choose_paths(every, 99, random.Random(0))) == 11
    assert choose_paths(ended[:1] + rejected, 5, random.Random(0))[0] == ended[0]
    assert len(choose_paths(ended[:1] + rejected, 5, random.Random(0))) == 5
    assert choose_paths(every, 8, random.Random(0), only_ended=True) == tuple(ended[::-1])
    assert path(1).score > -math.inf


def row_of(**fields) -> dict:
    row = beam_row(depth=1, num_beams=2, width=2)
    return row | {"tree_token_ids": [[0]] * len(row["tree"])} | fields


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"answer": None}, "labelled by the gold answer, got None"),
        ({"tree_token_ids": None}, "--with-tree"),
        ({"tree_token_ids": [[1]]}, "a list of token ids for each of the 3 nodes"),
        ({"tree_token_ids": [[], ["a"], [1]]}, r"a list of token ids for each of the 3 nodes, got \[\[\], \['a'\]"),
        ({"tree": None}, "--with-tree"),
        ({"id": "1\ud800"}, "r.jsonl, row 1: not valid Unicode"),
    ],
)
def test_rows_that_cannot_be_rolled_out(fields, words):
    with pytest.raises(UserError, match=words):
        searched_questions([("r.jsonl, row 1", row_of(**fields))], 9, 8, 0)


def test_rows_of_one_question_are_one():
    rows = [("", row_of()), ("", row_of(problem="other", id="o")), ("", row_of()), ("", row_of(problem="third"))]
    found = searched_questions(rows, 2, 8, 0)
    assert [each.prompt for each in found] == [row_of()["problem"], "other"]


@pytest.fixture(scope="module")
def searched(models, tmp_path_factory):
    """Results of a beam search by tiny models, of questions with digits for answers."""
    from engine.cli import main

    folder = tmp_path_factory.mktemp("searched")
    source, out = folder / "questions.jsonl", folder / "results.jsonl"
    rows = [{"question": f"{index}+{index}", "answer": f"#### {index}", "id": f"q{index}"} for index in range(8)]
    source.write_text("".join(json.dumps(each) + "\n" for each in rows))
    search = f"search {source} --task gsm8k --strategy beam --beam-width 2 --budget 8 --with-tree --max-tokens {TOKENS}"
    arguments = f"{search} --policy {models.policy} --prm {models.prm} --num-blocks 4096 --out {out}"
    assert main(arguments.split()) == 0
    return out


def brute_force(llm: LLM, problem: dict, prefix: list[int]) -> float:
    """The share of right ones among answers that go on from a prefix."""
    task, ids = get_task("gsm8k"), llm.encode(problem["problem"]) + prefix
    address = (*prefix, num_steps(llm, prefix))
    keys = [branch_key(0, f"rollout {number}/{problem['id']}", address) for number in range(ROLLOUTS)]
    branches = [llm.open(ids) for _ in keys]
    request = llm.queue_generate(branches, keys, max_tokens=TOKENS - len(prefix))
    llm.run(request)
    for branch in branches:
        branch.close()
    texts = [llm.decode(prefix + list(each.token_ids)) for each in request.results if each.finish == "eos"]
    return sum(task.extract(text) == problem["answer"] for text in texts) / ROLLOUTS


def num_steps(llm: LLM, prefix: list[int]) -> int:
    return sum(llm.decode([token]).count(get_task("gsm8k").delimiter) > 0 for token in prefix)


def test_labels_are_those_of_brute_force(ttc, models, searched, tmp_path):
    out = tmp_path / "rows.jsonl"
    arguments = ["rollouts", "--from", searched, "--policy", models.policy, "--num-blocks", 4096, "--task", "gsm8k"]
    arguments += ["--max-tokens", TOKENS, "--num-rollouts", ROLLOUTS]
    outcome = ttc(*arguments, "--out", out)
    assert outcome.status == 0, outcome.err
    rows, llm = read_stepwise(out), LLM.load(models.policy, num_blocks=4096)
    problems = {row["problem"]: row for row in read_rows(searched)}
    shares, num_rejected = {}, 0
    for row in rows:
        problem, prefix = problems[row["prompt"]], []
        for place, (ids, label) in enumerate(zip(row["token_ids"], row["labels"], strict=True), start=1):
            prefix = prefix + ids
            if place == len(row["labels"]) and ids[-1] in llm.config.eos_token_ids:
                assert label == (get_task("gsm8k").extract(llm.decode(prefix)) == problem["answer"])
                break
            num_rejected += place == len(row["labels"])
            share = shares.setdefault((row["prompt"], *prefix), brute_force(llm, problem, prefix))
            assert label == share
    assert num_rejected > 2
    assert len(shares) > 10
    assert len(set(shares.values())) > 1
    num_spent = int(outcome.last_line.split(" rollouts")[0].split(", ")[-1])
    assert num_spent == ROLLOUTS * len(shares), "equal prefixes are rolled out once"

    lines = journal_path(out).read_bytes().splitlines(keepends=True)
    written = out.read_bytes()
    journal_path(out).write_bytes(b"".join(lines[:3]) + lines[3][:20])
    out.unlink()
    assert "resumed 2" in ttc(*arguments, "--out", out, "--workers", 2, "--max-batch", 3).last_line
    assert out.read_bytes() == written

    own = tmp_path / "own.jsonl"
    assert ttc(*arguments, "--num-rollouts", 0, "--out", own).status == 0
    ended = [row for row in rows if row["token_ids"][-1][-1] in llm.config.eos_token_ids]
    assert [row["token_ids"] for row in read_stepwise(own)][:1] == [row["token_ids"] for row in ended][:1]
    assert all(set(row["labels"]) in ({0.0}, {1.0}) for row in read_stepwise(own))
    two = tmp_path / "two.jsonl"
    assert ttc(*arguments, "--max-paths", 2, "--num-questions", 3, "--out", two).status == 0
    few = read_stepwise(two)
    assert len(few) <= 6
    assert all(row in rows for row in few if row["token_ids"] in [each["token_ids"] for each in rows])


def test_options_that_have_no_effect(ttc, models, searched, tmp_path):
    start = ["rollouts", "--policy", models.policy, "--task", "gsm8k", "--out", tmp_path / "rows.jsonl"]
    assert_refused(ttc(*start, "--max-paths", 2), "--max-paths has no effect without --from, got 2")
    for flag, value in (("--num-samples", 3), ("--split", "test"), ("--pass-rate", "0:1")):
        assert_refused(ttc(*start, "--from", searched, flag, value), f"{flag} has no effect on the answers of --from")
    assert_refused(ttc(*start, "--from", tmp_path / "none"), "cannot read results from", "none")
    assert_refused(ttc(*start, "--from", searched, "--max-paths", 0), "max_paths must be at least 1", "got 0")
    assert_refused(ttc(*start[:-1], searched, "--from", searched), "would replace it")
    assert_refused(ttc(*start, "--from", searched, "--trl", searched), f"{searched} is the file", "would replace it")
    other = tmp_path / "r.jsonl"
    row = json.loads(searched.read_text().splitlines()[0])
    textless = [{name: value for name, value in node.items() if name != "text"} for node in row["tree"]]
    for changed in ({"tree_token_ids": [[3] for _ in row["tree"]]}, {"tree": textless}):
        other.write_text(json.dumps(row | changed) + "\n")
        assert_refused(ttc(*start, "--from", other), "it was searched with another one")
    assert not (tmp_path / "rows.jsonl").exists()
