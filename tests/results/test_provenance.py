"""Where figures are from: what else ran on the machine, and the report that says so."""

from __future__ import annotations

import json
import os

import pytest

from engine.results.provenance import Bystanders, provenance, write_json


@pytest.mark.parametrize("others", [0.0, 0.5])
def test_own_work_is_not_counted_as_that_of_others(others: float):
    """Of 10 seconds on every core, this process worked 4."""
    busy = iter([100.0, 100.0 + 4.0 + others * 10.0 * os.cpu_count()])
    own, now = iter([7.0, 11.0]), iter([1000.0, 1010.0])
    bystanders = Bystanders(*(clock.__next__ for clock in (busy, own, now)))
    assert bystanders.share() == pytest.approx(others)


def test_a_machine_that_does_not_count_is_not_judged():
    assert Bystanders(lambda: None).share() is None


def test_a_report_begins_with_the_machine_the_versions_and_the_commit(tmp_path):
    write_json(None, {})
    write_json(tmp_path / "out" / "report.json", provenance() | {"rows": [1]})
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert list(report) == ["hardware", "versions", "commit", "rows"]
    assert {"cpu", "num_cores", "num_threads", "instruction_set"} <= set(report["hardware"])
    assert {"python", "torch"} <= set(report["versions"])


def test_a_device_that_is_not_there():
    with pytest.raises(ValueError, match="device 'cuda' was asked for, but torch"):
        provenance("cuda")
