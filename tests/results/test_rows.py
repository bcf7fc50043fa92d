import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.accounting import PURPOSES
from engine.results import FIELDS, read_rows, result_row, row_line
from engine.results.rows import parse_row
from engine.types import Candidate
from tests.reports.builders import beam_result, make_row


def test_a_row_has_the_fields_of_the_design_in_order():
    result = beam_result(num_errors=3)
    row = result_row(result)
    assert tuple(row) == (*FIELDS, "answers", "finishes", "num_errors", "num_generations")
    assert row["pred"] == "7"
    assert row["correct"] is True
    assert row["num_errors"] == 3
    assert row["completion_tokens"] == [32] * 8
    assert [len(steps) for steps in row["scores"]] == [4] * 8
    assert row["agg_scores"] == [candidate.agg_score for candidate in result.candidates]
    assert set(row["ledger"]) == {"tokens", "flops"}
    assert tuple(row["ledger"]["tokens"]) == PURPOSES


def test_a_tree_marks_the_best_node_and_the_answers():
    result = beam_result()
    nodes = result_row(result, with_tree=True)["tree"]
    assert len(nodes) == len(result.tree.nodes)
    assert [index for index, node in enumerate(nodes) if node.get("best")] == [result.tree.best]
    assert nodes[result.tree.best]["answer"] == "7"
    assert [node["parent"] for node in nodes] == [node.parent for node in result.tree.nodes]
    assert {"parent", "status", "score", "text", "tokens", "finish"} <= set(nodes[1])


def test_scores_that_are_not_finite_become_null():
    candidate = Candidate("x", None, "error", (0.5, math.nan), math.inf, 1, (0,))
    row = result_row(beam_result(), with_tree=True) | {"completions": ["x"]}
    bad = result_row(type(beam_result())(**{**vars(beam_result()), "candidates": (candidate,)}))
    assert bad["scores"] == [[0.5, None]]
    assert bad["agg_scores"] == [None]
    assert parse_row(row_line(bad)) == bad
    with pytest.raises(ValueError, match="JSON"):
        row_line(row | {"accuracy": math.nan})


def test_rows_come_back_as_they_were(tmp_path):
    rows = [
        result_row(beam_result(), with_tree=True),
        make_row(problem="é\u2028\ud800", accuracy=0.5, extra=[1]),
    ]
    path = tmp_path / "results.jsonl"
    path.write_bytes(b"".join(map(row_line, rows)) + b"\n")
    assert read_rows(path) == rows
    assert read_rows(path, path) == rows + rows


@given(st.text(), st.floats(0, 1), st.sampled_from([True, False, None]))
def test_any_text_and_score_survive(text, score, correct):
    row = make_row(problem=text, completions=[text], agg_scores=[score], correct=correct)
    line = row_line(row)
    assert line.count(b"\n") == 1
    assert parse_row(line) == row


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"correct": "yes"}, "'correct' must be true, false or null, got 'yes'"),
        ({"budget": 0}, "'budget' must be a number of generations from 1 up, got 0"),
        ({"budget": True}, "'budget' must be"),
        ({"seed": 1.5}, "'seed' must be an integer, got 1.5"),
        ({"id": 7}, "'id' must be text, got 7"),
        ({"pred": 7}, "'pred' must be text or null, got 7"),
        ({"completions": "abc"}, "'completions' must be a list, got 'abc'"),
        ({"scores": [[1], [2]]}, "'scores' must be one entry for each of the 1 completions"),
        ({"scores": [0.5]}, "'scores' must be lists of numbers"),
        ({"agg_scores": ["high"]}, "'agg_scores' must be a list of numbers or nulls"),
        ({"completion_tokens": [-1]}, "'completion_tokens' must be a list of counts"),
        ({"answers": [3]}, "'answers' must be a list of texts or nulls"),
        ({"ledger": {"tokens": {}}}, "'ledger' needs the object 'flops'"),
        ({"ledger": {"tokens": {"tea": 1}, "flops": {}}}, "'ledger' has no purpose 'tea'"),
        (
            {"ledger": {"tokens": {"cached": -1}, "flops": {}}},
            "'ledger' needs tokens from 0 up, got -1 cached",
        ),
        ({"accuracy": 1.5}, "'accuracy' must be a number within 0..1, got 1.5"),
        ({"seconds": "fast"}, "'seconds' must be a number from 0 up, got 'fast'"),
        ({"num_errors": -1}, "'num_errors' must be a count"),
        ({"tree": []}, "'tree' must be a list of nodes"),
        ({"tree": [{"status": "lost"}]}, "'tree' node 0 needs a status"),
        ({"tree": [{"status": "root"}, {"status": "kept", "parent": 1}]}, "'tree' node 1 needs a parent"),
    ],
)
def test_a_wrong_field_is_named_with_file_and_line(tmp_path, change, message):
    path = tmp_path / "results.jsonl"
    path.write_bytes(row_line(make_row()) + row_line(make_row() | change))
    with pytest.raises(ValueError, match="line 2") as caught:
        read_rows(path)
    assert str(caught.value).startswith(f"{path}, line 2: ")
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"id": "x"', "not JSON"),
        (b"[1]", "not a result row"),
        (b'{"id": NaN}', "NaN is not JSON"),
        (b"\xff\xfe", "not UTF-8"),
        (b"[" * 100_000, "not a result row (nested too deep)"),
        (b'{"id": "x", "problem": "y"}', "no field 'answer', 'pred'"),
    ],
)
def test_a_broken_line_is_shown(tmp_path, line, message):
    path = tmp_path / "results.jsonl"
    path.write_bytes(line + b"\n")
    with pytest.raises(ValueError, match="line 1") as caught:
        read_rows(path)
    assert message in str(caught.value)
    assert len(str(caught.value)) < 400


def test_a_missing_file_is_one_sentence(tmp_path):
    with pytest.raises(ValueError, match=r"cannot read results from .*none\.jsonl: No such file"):
        read_rows(tmp_path / "none.jsonl")


def test_a_cut_off_result_file_is_refused_at_every_byte(tmp_path):
    line = row_line(make_row())
    for length in range(1, len(line) - 1):
        with pytest.raises(ValueError, match="not"):
            parse_row(line[:length])
    assert json.loads(line) == parse_row(line)
