"""Rows from files, folders and the Hub, and problems from rows."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType

import pyarrow
import pytest
from pyarrow import parquet

from engine.tasks import get_task, read_problems, read_task_problems, take_problems
from engine.tasks.sources import has_splits, is_hub_name, read_rows

GSM8K = [{"question": "2+2?", "answer": "2+2=<<2+2=4>>4\n#### 4"}, {"question": "1,000*2?", "answer": "#### 2,000"}]
MATH500 = [{"problem": "Half?", "answer": "\\frac{1}{2}", "unique_id": "test/algebra/1.json", "level": 3}]


def write(path: Path, rows: list[dict]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def fake_module(monkeypatch: pytest.MonkeyPatch, name: str, **contents: object) -> None:
    module = ModuleType(name)
    vars(module).update(contents)
    monkeypatch.setitem(sys.modules, name, module)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> list[tuple]:
    """A Hub with GSM8K, MATH-500 and AIME; the calls that it gets."""
    calls = []
    data = {
        ("openai/gsm8k", "main", "test"): GSM8K,
        ("openai/gsm8k", "main", "train"): GSM8K[:1],
        ("HuggingFaceH4/MATH-500", None, "test"): MATH500,
        ("HuggingFaceH4/aime_2024", None, "train"): [{"id": 60, "problem": "A?", "answer": "204"}],
    }

    def load_dataset(name: str, configuration: str | None, *, split: str) -> list[dict]:
        calls.append((name, configuration, split))
        if (name, configuration, split) not in data:
            raise RuntimeError(f"data set {name} is not there\nand more")
        return data[name, configuration, split]

    fake_module(monkeypatch, "datasets", load_dataset=load_dataset)
    return calls


def test_columns_of_a_file(tmp_path):
    file = write(tmp_path / "x.jsonl", [{"q": "1+1?", "a": 2, "id": "one"}, {"q": "2+2?", "a": None}])
    rows = read_problems(file, problem_columns=("problem", "q"), answer_columns=("a",))
    assert [(row.id, row.problem, row.answer) for row in rows] == [("one", "1+1?", "2"), ("1", "2+2?", None)]
    assert rows[1].origin == f"{file}, line 2"
    with pytest.raises(ValueError, match="line 1: no field 'problem', got"):
        read_problems(file)
    with pytest.raises(ValueError, match="line 1: no gold answer under 'answer', got"):
        read_problems(file, problem_columns=("q",), needs_answer=True)


def test_a_task_knows_its_columns_and_others_can_be_named(tmp_path):
    gsm8k = get_task("gsm8k")
    file = write(tmp_path / "test.jsonl", GSM8K)
    rows = read_task_problems(gsm8k, file)
    assert [row.problem for row in rows] == ["2+2?", "1,000*2?"]
    assert [gsm8k.gold(row.answer) for row in rows] == ["4", "2000"]
    other = write(tmp_path / "other.jsonl", [{"text": "2+2?", "gold": "4", "answer": "5", "problem": "no"}])
    (row,) = read_task_problems(gsm8k, other, problem_column="text", answer_column="gold")
    assert (row.problem, row.answer) == ("2+2?", "4")
    with pytest.raises(ValueError, match="line 1: no gold answer under 'result'"):
        read_task_problems(gsm8k, file, answer_column="result")


def test_a_local_folder_comes_before_the_hub(tmp_path, monkeypatch, hub):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "openai/gsm8k/main/test-00000-of-00001.jsonl", GSM8K)
    write(tmp_path / "openai/gsm8k/main/train-00000-of-00001.jsonl", GSM8K[:1])
    assert len(take_problems(get_task("gsm8k"), "test", None)) == 2
    assert len(take_problems(get_task("gsm8k"), "train", None)) == 1
    assert hub == []
    assert has_splits("openai/gsm8k:main")
    with pytest.raises(ValueError, match=r"no \.jsonl or \.parquet file of split 'dev' in 'openai"):
        list(read_rows("openai/gsm8k:main", "dev"))


def test_the_data_sets_of_the_tasks(hub):
    gsm8k = take_problems(get_task("gsm8k"), "test", None)
    assert [(problem.id, problem.prompt, problem.answer) for problem in gsm8k] == [
        ("gsm8k/test/0", "2+2?", "4"),
        ("gsm8k/test/1", "1,000*2?", "2000"),
    ]
    (math500,) = take_problems(get_task("math500"), "test", 5)
    assert (math500.id, math500.answer) == ("math500/test/test/algebra/1.json", r"\frac{1}{2}")
    (aime,) = take_problems(get_task("aime24"), "test", 1)
    assert (aime.id, aime.answer) == ("aime24/test/60", "204")
    assert hub[-1] == ("HuggingFaceH4/aime_2024", None, "train")
    with pytest.raises(ValueError, match="split must be one of train, test for task gsm8k, got 'dev'"):
        take_problems(get_task("gsm8k"), "dev", 1)
    with pytest.raises(ValueError, match="task math has no problems of its own: name a file or a data set"):
        take_problems(get_task("math"), "test", 1)


def test_any_data_set_of_the_hub(hub):
    assert [row.answer for row in read_problems("HuggingFaceH4/MATH-500")] == [r"\frac{1}{2}"]
    with pytest.raises(ValueError, match=r"no local file 'some/one', and cannot read its split 'dev'.*is not there$"):
        read_problems("some/one", split="dev")


def test_names_of_the_hub():
    assert all(map(is_hub_name, ["openai/gsm8k", "openai/gsm8k:main", "a-b/C.d_e"]))
    assert not any(map(is_hub_name, ["gsm8k", "a/b/c", "../x", "/a/b", "x/y.jsonl", "x/y.parquet", "a/b:", "a/b\n"]))


def test_parquet(tmp_path):
    """A real file, its columns of other types too; and one that is none."""
    rows = [{**MATH500[0], "tags": ["a", "b"]}, {"problem": "Two?", "answer": "2", "unique_id": "x", "level": None}]
    file = tmp_path / "test-00000-of-00001.parquet"
    parquet.write_table(pyarrow.Table.from_pylist(rows), file, row_group_size=1)
    found = read_problems(file)
    assert [(row.id, row.problem, row.answer) for row in found] == [
        ("test/algebra/1.json", "Half?", r"\frac{1}{2}"),
        ("x", "Two?", "2"),
    ]
    assert found[1].origin == f"{file}, row 2"
    assert read_problems(tmp_path, split="test") == found
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(ValueError, match=rf"^cannot read problems from {file}: ") as caught:
        read_problems(file)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("source", "package"), [("x.parquet", "pyarrow"), ("some/one", "datasets")])
def test_what_the_extra_would_read(tmp_path, monkeypatch, source, package):
    monkeypatch.chdir(tmp_path)
    Path("x.parquet").touch()
    monkeypatch.setitem(sys.modules, package, None)  # as if it were not installed
    with pytest.raises(ValueError, match=rf"'{source}'.* needs {package}: pip install 'ttc-engine\[data\]'$"):
        read_problems(source)
