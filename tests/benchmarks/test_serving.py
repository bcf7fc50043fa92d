"""The benchmark of the server, in small; its rate is not looked at, for other tests run beside it."""

import json

from benchmarks import serving


def test_a_few_requests(tmp_path, capsys):
    path = tmp_path / "report.json"
    status = serving.main(
        ["--seconds", "1", "--clients", "6", "--requests", "24", "--problems", "12", "--json", str(path)]
    )
    report = json.loads(path.read_text())
    load, leavers = report["load"], report["leavers"]
    assert set(load["statuses"]) == {"200"}
    assert load["used_blocks"] == leavers["used_blocks"] == leavers["wrong_texts"] == 0
    assert set(leavers["statuses"]) <= {"0", "200"}
    assert load["rate_over_engine_search"] > 0
    assert leavers["is_well"]
    assert status == (0 if load["is_well"] else 1)
    assert "requests_per_second" in capsys.readouterr().out
