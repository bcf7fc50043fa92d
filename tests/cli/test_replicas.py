"""Options of a command that can run on a Ray cluster, which go together or are refused before Ray is asked."""

import pytest

from engine.cli import main

REFUSED = {
    "search --replicas 2": "--replicas has no effect without --ray, got 2",
    "rollouts --replica-gpus 1": "--replica-gpus has no effect without --ray, got 1.0",
    "search --ray auto --replicas 0": "replicas must be at least 1, got 0",
    "search --ray auto --replica-cpus -1": "num_cpus of a replica must be a number from 0 up, got -1.0",
    "search --ray auto --replica-cpus nan": "num_cpus of a replica must be a number from 0 up, got nan",
    "search --ray auto --tensor-parallel 2": "which --tensor-parallel 2 is not",
    "search --ray auto --total-budget 400 --strategy compute-optimal --limit 10": "--total-budget is not for --ray",
    "rollouts --ray auto --pass-rate 0.1:0.5": "--pass-rate is not for --ray",
    "rollouts --ray auto --workers 2": "--ray has replicas in the place of --workers, got 2",
}


@pytest.mark.parametrize("arguments", REFUSED)
def test_refused(arguments, capsys, tmp_path):
    assert main([*arguments.split(), "--out", str(tmp_path / "out.jsonl")]) == 2
    shown = capsys.readouterr().err
    assert REFUSED[arguments] in " ".join(shown.split())
    assert "Traceback" not in shown
