"""Tokenizers with more tokens than their model has rows: a prompt is refused by name, an answer is flagged."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from tokenizers import AddedToken, Tokenizer

from engine import Engine, Problem
from engine.accounting import Ledger
from engine.runtime import Batcher
from engine.training.prm import PRMRecipe, train_prm
from engine.training.revision import RevisionRecipe, train_revision
from engine.types import Attempt, Step
from tests.cli.conftest import models, ttc
from tests.tiny import tiny_policy, tiny_prm
from tests.verifiers.builders import make

__all__ = ["models", "ttc"]
SPECS = {"prm": {}, "orm": {"orm_spec": "home-orm"}}


def with_more_tokens(folder: Path) -> Path:
    """The same model, whose tokenizer knows "€" too."""
    path = folder / "tokenizer.json"
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.add_tokens([AddedToken("€", normalized=False)])
    tokenizer.save(str(path))
    return folder


@pytest.fixture
def folders(tmp_path) -> dict[str, Path]:
    made = {"policy": tiny_policy(tmp_path / "policy"), "prm": tiny_prm(tmp_path / "prm"), "orm": tmp_path / "orm"}
    tiny_prm(made["orm"], num_labels=2)
    return {name: with_more_tokens(folder) for name, folder in made.items()}


def test_a_problem_is_refused_with_file_row_and_text(ttc, folders, tmp_path):
    file = tmp_path / "problems.jsonl"
    file.write_text("".join(json.dumps({"problem": text}) + "\n" for text in ("b4?", "b€?")))
    parts = ["--policy", folders["policy"], "--prm", folders["prm"], "--task", "walks"]
    outcome = ttc("search", file, *parts, "--out", tmp_path / "out.jsonl")
    assert outcome.status == 2
    for words in (f"{file}, line 2", "token 35, '€'", "35 rows", str(folders["policy"])):
        assert words in outcome.err
    engine = Engine.load(folders["policy"], prm=folders["prm"], num_blocks=64)
    with pytest.raises(ValueError, match="token 35, '€', is beyond the 35 rows"):
        engine.policy.open("1€")
    for token in (-1, 1 << 32, 10**30):
        with pytest.raises(ValueError, match=f"token {token}, None, is beyond the 35 rows"):
            engine.policy.vocabulary.check([token])


@pytest.mark.parametrize("name", ["prm", "orm"])
def test_an_answer_is_flagged_and_the_others_are_scored(folders, name):
    engine = Engine.load(folders["policy"], num_blocks=256, **{name: folders[name]}, **SPECS[name])
    judge, problem = engine.resolve_verifier(name), Problem("0", "b4?\n")

    def step(text: str) -> Step:
        return Step(tuple(judge.llm.encode(text, is_start=False)), text, "eos", 0.0)

    async def score(texts: list[str]) -> list[list[float]]:
        branches = [await judge.open(problem, ledger=Ledger()) for _ in texts]
        first = await judge.score(branches, [[step(text)] for text in texts])
        again = await judge.score(branches, [[step("2=2")] for _ in texts])  # nothing of a flagged answer is there
        for branch in branches:
            branch.close()
        return [a + b for a, b in zip(first, again, strict=True)]

    ((_, found),) = Batcher().run([judge.llm], [score(["1+1=2", "1+1=€", "1+1=3"])], 3)
    ((_, alone),) = Batcher().run([judge.llm], [score(["1+1=2", "1+1=3"])], 2)
    assert math.isnan(found[1][0])
    assert not math.isnan(found[1][1])
    assert [found[0], found[2]] == alone


def test_attempts_that_cannot_be_read_are_left_out_of_a_history(folders):
    engine = Engine.load(folders["policy"], orm=folders["orm"], num_blocks=256, **SPECS["orm"])
    judge, problem = engine.resolve_verifier("orm"), Problem("0", "b4?\n")

    def attempt(text: str) -> Attempt:
        return (Step(tuple(judge.llm.encode(text, is_start=False)), text, "eos", 0.0),)

    async def held(history: list[Attempt]) -> list[list[int]]:
        branch = await judge.open(problem, ledger=Ledger(), history=history)
        branch.close()
        return branch.held

    histories = [[attempt("1+1=€"), attempt("1+1=3")], [attempt("1+1=3")]]
    (_, one), (_, other) = sorted(Batcher().run([judge.llm], [held(each) for each in histories], 1))
    assert one == other
    assert len(one) == 1


@pytest.mark.parametrize("name", ["skywork", "qwen-prm"])
def test_a_verifier_with_a_text_format_flags_too(folders, tmp_path, name):
    """Whatever its layout is, since all of them read their steps in one place."""
    engine = Engine.load(folders["policy"], prm=with_more_tokens(make(tmp_path / "format", name)), num_blocks=256)
    judge, problem = engine.resolve_verifier("prm"), Problem("0", "b4?\n")

    async def score(texts: list[str]) -> list[list[float]]:
        branches = [await judge.open(problem, ledger=Ledger()) for _ in texts]
        scores = await judge.score(branches, [[Step((), text, "step", 0.0)] for text in texts])
        for branch in branches:
            branch.close()
        return scores

    ((_, found),) = Batcher().run([judge.llm], [score(["1+1=2", "€"])], 2)
    assert [math.isnan(scores[0]) for scores in found] == [False, True]


def test_rows_that_a_base_cannot_read_are_told(folders, tmp_path):
    rows = [{"prompt": f"{i};+1\n", "completions": ["1+1=€" if i == 3 else "1+1=2"], "labels": [1]} for i in range(8)]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(ValueError, match=r"an answer to '3;\+1.n' cannot be learned from: token 35, '€'"):
        train_prm([file], folders["prm"], tmp_path / "out", tmp_path / "work", PRMRecipe())


def test_attempts_that_a_base_cannot_read_are_told(folders, tmp_path):
    """By `ttc train revision`, whose rows hold the token ids of another model."""
    answers = [{"completions": ["1"], "token_ids": [[35, 1]], "labels": [0]}, {"completions": ["2"], "labels": [1]}]
    file = tmp_path / "rows.jsonl"
    rows = [{"prompt": f"{i};+1\n", **answer} for i in range(8) for answer in answers]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(ValueError, match=r"an answer to '\d;\+1.n' cannot be learned from: token 35, '€'"):
        train_revision([file], folders["policy"], tmp_path / "out", tmp_path / "work", RevisionRecipe())
