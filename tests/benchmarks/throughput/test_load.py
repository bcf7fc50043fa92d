"""The loading benchmark: the size that it writes, and one row of its report."""

import json

import pytest
import torch

from benchmarks.random_models import SHAPES
from benchmarks.throughput import load
from tests.tiny import tiny_policy


@pytest.mark.parametrize("stored", ["bfloat16", "float32"])
def test_the_file_is_as_large_as_asked_for(monkeypatch, tmp_path, stored):
    model_class, config = SHAPES[load.MODEL]

    def count(name, folder, device, dtype, **changes):
        assert (name, device) == (load.MODEL, "cpu")
        with torch.device("meta"):
            model = model_class(type(config)(**{**config.to_dict(), **changes}))
        sizes.append(sum(parameter.numel() for parameter in model.parameters()) * dtype.itemsize)

    sizes: list[int] = []
    monkeypatch.setattr(load, "save_random", count)
    load.save(tmp_path, stored, 1.0)
    assert sizes == [pytest.approx(1e9, rel=0.15)]  # whole layers


def test_a_report(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(load, "save", lambda folder, stored, gigabytes: tiny_policy(folder))
    monkeypatch.setattr(load, "PAIRS", load.PAIRS[:1])
    assert load.main(["--repeats", "1", "--json", str(tmp_path / "load.json")]) == 0
    report = json.loads((tmp_path / "load.json").read_text())
    (row,) = report["rows"]
    assert (row["stored"], row["loaded"]) == ("bfloat16", "float32")
    assert row["bytes"] > 0
    assert row["ratio"] == row["load_seconds"][0] / row["read_seconds"][0]
    assert "load / read" in capsys.readouterr().out


def test_a_size_of_nothing_is_refused(capsys):
    with pytest.raises(SystemExit):
        load.main(["--gigabytes", "0"])
    assert "got 0.0" in capsys.readouterr().err
