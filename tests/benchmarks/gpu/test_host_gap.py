"""The simulated device of the benchmark of the host's part: what it counts, and that the work is the engine's."""

from __future__ import annotations

import json

from benchmarks.gpu import host_gap
from benchmarks.gpu.host_gap import BRANCHES, Device, main, measure


def test_a_device_counts_what_it_waits_and_what_the_host_takes(monkeypatch):
    now = [10.0]
    monkeypatch.setattr(host_gap.time, "perf_counter", lambda: now[0])
    device = Device(seconds=2.0)
    assert device.launch() == 12.0
    now[0] = 11.0  # before the first has run
    assert device.launch() == 14.0
    device.read_at = 14.0
    now[0] = 14.5
    assert device.launch() == 16.5
    assert (device.idle, device.gaps) == ([0.0, 0.5], [0.5])


def test_a_slow_device_never_waits_for_a_host_that_is_ahead(monkeypatch):
    monkeypatch.setattr(host_gap, "WARMUP", 4)
    after, ahead = (measure("decode", 30_000.0, is_ahead, 15) for is_ahead in (False, True))
    assert (after.forwards, after.mixed) == (ahead.forwards, ahead.mixed) == (15, 1)
    assert after.idle_us[0] > 0 == ahead.idle_us[0]


def test_too_few_tokens_are_refused(capsys):
    assert main(["--num-tokens", "39"]) == 2
    assert "--num-tokens must be at least 40, got 39" in capsys.readouterr().err


def test_rows_of_steps_that_end_and_start(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(host_gap, "WARMUP", 4)
    monkeypatch.setattr(host_gap, "FORWARD_US", (0.0,))
    path = tmp_path / "gap.json"
    assert main(["--num-tokens", "60", "--json", str(path)]) == 0
    report = json.loads(path.read_text())
    assert report["commit"]
    assert [(row["work"], row["is_ahead"]) for row in report["rows"]] == [
        *(("decode", False), ("decode", True)),
        *(("steps", False), ("steps", True)),
    ]
    for row in report["rows"]:
        assert row["branches"] == BRANCHES
        assert row["host_us"] > 0
        assert (row["mixed"] > 10) == (row["work"] == "steps")
    assert f"{BRANCHES} branches" in capsys.readouterr().out
