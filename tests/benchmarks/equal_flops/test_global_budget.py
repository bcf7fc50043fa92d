"""Allocation against uniform splits: the comparison by hand-made curves, and a run of a few problems."""

from __future__ import annotations

import json

import numpy as np
import pytest

from benchmarks.equal_flops.global_budget import main
from benchmarks.equal_flops.uniform import Point, at_flops, compared, flops_share
from engine.model import HOME


def point(budget: int, rights: list[float], flops: float) -> Point:
    return Point(budget, np.array(rights), np.full(len(rights), flops), float(budget))


# Half of four problems right at 10 FLOPs, all of them at 40.
LOW, HIGH = point(1, [1, 1, 0, 0], 10.0), point(4, [1, 1, 1, 1], 40.0)


def test_a_uniform_split_of_any_flops_mixes_its_neighbours():
    assert at_flops([LOW, HIGH], 25.0).tolist() == [1, 1, 0.5, 0.5]
    assert at_flops([LOW, HIGH], 5.0).tolist() == LOW.rights.tolist()
    assert at_flops([LOW, HIGH], 99.0).tolist() == HIGH.rights.tolist()


def test_the_share_is_of_the_least_flops_that_are_as_accurate():
    assert flops_share(0.75, 12.5, [LOW, HIGH], None) == (pytest.approx(0.5), True)
    assert flops_share(0.4, 5.0, [LOW, HIGH], None) == (pytest.approx(0.5), True)
    dip = point(2, [1, 0, 0, 0], 20.0)
    assert flops_share(0.625, 15.0, [LOW, dip, HIGH], None) == (pytest.approx(0.5), True), "30 FLOPs, beyond the dip"
    few = point(4, [1, 1, 1, 0], 40.0)
    assert flops_share(1.0, 20.0, [LOW, few], None) == (pytest.approx(0.5), False)
    rounded = flops_share(np.nextafter(1.0, 2.0), 20.0, [LOW, HIGH], None)
    assert rounded == (pytest.approx(0.5), True), "the same accuracy, otherwise added up"
    weighted = flops_share(0.75, 12.5, [LOW, HIGH], np.array([0, 0, 1, 1]))
    assert weighted == (pytest.approx(12.5 / 32.5), True)


def test_equal_flops_and_equal_accuracy():
    allocated = point(2, [1, 1, 1, 0.5], 25.0)
    found = compared(allocated, [HIGH, LOW])
    assert found["accuracy_uniform"] == 0.75
    assert found["points"][0] == pytest.approx(12.5)
    assert found["points"][1] <= 12.5 <= found["points"][2]
    assert found["flops_share"][0] == pytest.approx(25.0 / 32.5)
    assert found["is_within_grid"]
    assert found["is_reached"]
    assert not compared(point(2, [1, 1, 1, 0.5], 45.0), [LOW, HIGH])["is_within_grid"]


def test_a_run_of_the_home_models(tmp_path, capsys):
    path = tmp_path / "out" / "report.json"
    small = "--num-problems 8 --per-problem 4,6 --uniform majority,beam:width=4 --budgets 2,4,8 --seeds 0,1"
    assert main([*small.split(), "--json", str(path)]) == 0
    report = json.loads(path.read_text())
    assert [entry["budget"] for entry in report["allocated"]] == [4, 6]
    assert all(entry["generations"] <= entry["budget"] for entry in report["allocated"])
    assert [entry["budget"] for entry in report["uniform"]["majority"]] == [2, 4, 8]
    assert [entry["budget"] for entry in report["uniform"]["beam:width=4"]] == [4, 8], "2 are too few for a beam of 4"
    for points in report["uniform"].values():
        assert points[0]["flops"] < points[-1]["flops"]
    assert {(row["budget"], row["uniform"]) for row in report["compared"]} == {
        (budget, name) for budget in (4, 6) for name in report["uniform"]
    }
    assert "validation" in report["tuned"]
    assert "points at equal FLOPs" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["--per-problem", "0"], ["at least", "got 0"]),
        (["--per-problem", "many"], ["--per-problem", "'many'"]),
        (["--seeds", ""], ["--seeds", "''"]),
        (["--calibration", "nowhere"], ["'nowhere'"]),
        (["--uniform", "guess"], ["'guess'"]),
        (["--uniform", "beam:width=4", "--budgets", "2,4"], ["beam:width=4 can spend 1 of the budgets [2, 4]"]),
        (["--policy", str(HOME / "policy"), "--prm", str(HOME / "trunk_head")], ["trunk_head"]),
    ],
)
def test_bad_input_is_one_sentence(capsys, arguments, parts):
    few = ["--num-problems", "4", "--budgets", "1,2", "--per-problem", "4", "--seeds", "0"]
    try:
        status = main([*few, *arguments])
    except SystemExit as error:
        status = error.code
    assert status == 2
    message = capsys.readouterr().err
    assert "Traceback" not in message
    for part in parts:
        assert part in message


def test_a_calibration_for_another_verifier_is_refused(capsys, tmp_path):
    other = json.loads((HOME / "calibration.json").read_text())
    other["conditions"]["policy"] = "another"
    path = tmp_path / "other.json"
    path.write_text(json.dumps(other))
    arguments = ["--calibration", str(path), "--num-problems", "4", "--per-problem", "4", "--seeds", "0"]
    assert main(arguments) == 2
    assert "policy was" in capsys.readouterr().err
