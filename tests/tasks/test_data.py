"""Gold answers and ids as pandas and others write them into JSON."""

from __future__ import annotations

import json

import pytest

from engine.errors import UserError
from engine.tasks import get_task
from engine.tasks.data import gold_answer, read_problems


@pytest.mark.parametrize(
    ("value", "answer"),
    [
        (29.0, "29"),
        (1e-05, "0.00001"),
        (1e20, "100000000000000000000"),
        (-0.5, "-0.5"),
        (100.0, "100"),
        (float("nan"), None),
        (None, None),
        (7, "7"),
        ("29.0", "29.0"),
    ],
)
def test_a_gold_answer_is_written_as_people_write_it(value, answer):
    assert gold_answer({"answer": value}, ("answer",)) == answer
    assert get_task("walks").as_problem({"problem": "b4?", "answer": value}, 0).answer == answer


def test_an_infinite_gold_answer_is_refused():
    with pytest.raises(UserError, match="finite number, got inf"):
        gold_answer({"answer": float("inf")}, ("answer",))


@pytest.mark.parametrize(("value", "name"), [(1.0, "1"), (None, "0"), (5, "5"), ("x", "x"), (float("nan"), "0")])
def test_an_id_may_have_been_through_a_table(tmp_path, value, name):
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps({"id": value, "problem": "a"}) + "\n")
    assert [row.id for row in read_problems(file)] == [name]
