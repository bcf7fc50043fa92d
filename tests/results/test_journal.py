import os
import signal
import subprocess
import sys

import pytest

from engine.results import Journal, journal_path, open_run, read_rows, row_line
from tests.reports.builders import make_row

CONFIG = {
    "strategy": "beam",
    "budget": 16,
    "seed": 0,
    "sampling": {"temperature": 0.8, "top_k": 0},
    "steps": (1, 2),
}


def fill(path, indices, config=CONFIG):
    with Journal(path, config) as journal:
        for index in indices:
            journal.append(index, make_row(f"p{index}"))


def test_rows_come_out_in_input_order(tmp_path):
    out = tmp_path / "deep" / "results.jsonl"
    with open_run(out, CONFIG) as journal:
        assert journal.done == {}
        assert journal.num_resumed == 0
        for index in (2, 0, 1):
            journal.append(index, make_row(f"p{index}"))
        assert journal.write_rows(out, expected=range(3)) == 3
    assert [row["id"] for row in read_rows(out)] == ["p0", "p1", "p2"]
    assert sorted(path.name for path in out.parent.iterdir()) == ["results.jsonl", "results.jsonl.ledger"]


def test_a_second_run_finds_what_is_done(tmp_path):
    path = tmp_path / "ledger"
    fill(path, [0, 3])
    with Journal(path, dict(reversed(CONFIG.items()))) as journal:  # the order of keys is no difference
        assert set(journal.done) == {0, 3}
        assert journal.num_resumed == 2
        assert journal.done[3] == make_row("p3")
        with pytest.raises(ValueError, match=r"row 3 of .* is already done"):
            journal.append(3, make_row("p3"))
        with pytest.raises(ValueError, match="counts from 0, got -1"):
            journal.append(-1, make_row())
        journal.append(1, make_row("p1"))
    with Journal(path, CONFIG) as journal:
        assert set(journal.done) == {0, 1, 3}


def test_incomplete_rows_are_written_unless_all_are_expected(tmp_path):
    out = tmp_path / "results.jsonl"
    out.write_text("old")
    with Journal(journal_path(out), CONFIG) as journal:
        journal.append(1, make_row("p1"))
        with pytest.raises(ValueError, match="1 of 2 rows are not done, the first is 0"):
            journal.write_rows(out, expected=range(2))
        assert out.read_text() == "old"
        assert journal.write_rows(out) == 1
    assert [row["id"] for row in read_rows(out)] == ["p1"]


def test_cut_at_any_byte_it_resumes(tmp_path):
    path = tmp_path / "ledger"
    config = {"seed": 0}
    with Journal(path, config) as journal:
        for index in range(3):
            journal.append(index, {"id": f"p{index}é", "seed": 0, "strategy": "beam"}, seconds=1.0)
    whole = path.read_bytes()
    ends = [end + 1 for end, byte in enumerate(whole) if byte == ord("\n")]
    for length in range(0, len(whole), 3):
        path.write_bytes(whole[:length])
        with Journal(path, config) as journal:
            num_whole = sum(end <= length for end in ends)
            assert set(journal.done) == set(range(max(num_whole - 1, 0)))
            if length % 5 == 0:  # going on from here gives the file of an undisturbed run
                for index in set(range(3)) - set(journal.done):
                    row = {"id": f"p{index}é", "seed": 0, "strategy": "beam"}
                    journal.append(index, row, seconds=1.0)
                assert path.read_bytes() == whole


def test_zeros_that_a_power_cut_leaves_are_dropped(tmp_path):
    path = tmp_path / "ledger"
    fill(path, [0])
    path.write_bytes(path.read_bytes() + b"\0" * 500)
    with Journal(path, CONFIG) as journal:
        assert set(journal.done) == {0}
        journal.append(1, make_row("p1"))
    with Journal(path, CONFIG) as journal:
        assert set(journal.done) == {0, 1}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 1}, "seed was 0, now 1"),
        ({"seed": 0.0}, "seed was 0, now 0.0"),
        ({"sampling": {"temperature": 1.0, "top_k": 0}}, "sampling.temperature was 0.8, now 1.0"),
        ({"sampling": {}}, "sampling.temperature was 0.8, now not set"),
        ({"prm": "x" * 300}, 'prm was not set, now "xxx'),
        ({"budget": 8, "strategy": "dvts"}, 'strategy was "beam", now "dvts"; budget was 16, now 8'),
        ({str(number): 0 for number in range(9)}, "; and 3 more"),
    ],
)
def test_another_configuration_is_refused_and_nothing_is_lost(tmp_path, change, message):
    path = tmp_path / "ledger"
    fill(path, [0])
    before = path.read_bytes()
    with pytest.raises(ValueError, match="another configuration") as caught:
        Journal(path, {**CONFIG, **change})
    assert message in str(caught.value)
    assert len(str(caught.value)) < 600
    assert path.read_bytes() == before
    with Journal(path, {**CONFIG, **change}, overwrite=True) as journal:
        assert journal.done == {}


def test_a_second_writer_is_refused(tmp_path):
    path = tmp_path / "ledger"
    with Journal(path, CONFIG) as journal:
        journal.append(0, make_row())
        for overwrite in (False, True):
            with pytest.raises(ValueError, match="another run is writing to"):
                Journal(path, CONFIG, overwrite=overwrite)
        journal.append(1, make_row("p1"))
    with Journal(path, CONFIG) as journal:
        assert set(journal.done) == {0, 1}


def test_a_link_and_its_target_have_one_lock(tmp_path):
    target, link, second = (tmp_path / name for name in ("target.jsonl", "link.jsonl", "second.jsonl"))
    link.symlink_to("target.jsonl")
    second.symlink_to(link)
    for one, other in ((target, link), (link, target), (link, second)):
        with open_run(one, CONFIG) as journal:
            journal.append(len(journal.done), make_row(f"p{len(journal.done)}"))
            with pytest.raises(ValueError, match="another run is writing to"):
                open_run(other, CONFIG)
    with open_run(second, CONFIG) as journal:
        assert journal.num_resumed == 3
        journal.write_rows(second)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        *("link.jsonl", "second.jsonl", "target.jsonl", "target.jsonl.ledger")
    ]
    assert link.is_symlink()
    assert target.read_bytes() == b"".join(row_line(make_row(f"p{index}")) for index in range(3))


def test_a_refused_file_is_not_left_locked(tmp_path):
    path = tmp_path / "ledger"
    fill(path, [0])
    with pytest.raises(ValueError, match="another configuration"):
        Journal(path, {})
    Journal(path, CONFIG).close()


def damage(lines):
    yield "not JSON", [lines[0], lines[1][:-5], lines[2]], "line 2 is damaged"
    yield "row twice", [lines[0], lines[1], lines[1]], "line 3 is damaged: row 0 stands twice"
    yield (
        "row of another position",
        [lines[0], lines[1].replace(b'"index": 0', b'"index": 5')],
        "line 2 is damaged",
    )
    yield (
        "another problem",
        [lines[0], lines[1].replace(b'"p0"', b'"p9"')],
        "line 2 is damaged: the key of row 0",
    )
    yield "edited header", [lines[0].replace(b"16", b"17"), lines[1]], "line 1 is damaged: its configuration"
    yield "no header field", [lines[0].replace(b"config_hash", b"config_hush")], "line 1 is damaged"
    yield "no ledger", [b"my notes"], "is not a run ledger: it starts with b'my notes"


def test_damage_inside_the_file_is_reported(tmp_path):
    path = tmp_path / "ledger"
    fill(path, [0, 1])
    for name, lines, message in damage(path.read_bytes().split(b"\n")[:-1]):
        data = b"\n".join(lines) + b"\n"
        path.write_bytes(data)
        with pytest.raises(ValueError, match="ledger") as caught:
            Journal(path, CONFIG)
        assert message in str(caught.value), name
        assert path.read_bytes() == data, name


def test_results_without_a_ledger_are_not_overwritten(tmp_path):
    out = tmp_path / "results.jsonl"
    out.write_text("mine\n")
    with pytest.raises(ValueError, match=r"no run ledger results\.jsonl\.ledger stands beside it"):
        open_run(out, CONFIG)
    assert [path.name for path in tmp_path.iterdir()] == ["results.jsonl"]
    open_run(out, CONFIG, overwrite=True).close()


def test_a_full_disk_leaves_whole_lines(tmp_path, monkeypatch):
    path = tmp_path / "ledger"
    with Journal(path, CONFIG) as journal:
        journal.append(0, make_row())
        before = path.read_bytes()
        real = os.pwrite

        def half(descriptor, data, offset):
            if len(data) < 20:
                raise OSError(28, "No space left on device")
            return real(descriptor, data[: len(data) // 2], offset)

        monkeypatch.setattr(os, "pwrite", half)
        with pytest.raises(OSError, match="No space"):
            journal.append(1, make_row("p1"))
        monkeypatch.undo()
        assert path.read_bytes() == before
        assert set(journal.done) == {0}
        journal.append(1, make_row("p1"))
    with Journal(path, CONFIG) as journal:
        assert set(journal.done) == {0, 1}


def test_seconds_add_up_per_strategy_over_runs(tmp_path):
    path = tmp_path / "ledger"
    with Journal(path, CONFIG) as journal:
        journal.append(0, make_row(strategy="beam"), seconds=1.5)
        journal.append(1, make_row(strategy="majority"), seconds=4)
    with Journal(path, CONFIG) as journal:
        journal.append(2, make_row(strategy="beam"), seconds=2.0)
        assert journal.seconds_by_strategy() == {"beam": 3.5, "majority": 4.0}
        journal.append(3, make_row(strategy="dvts"))
        assert 0 <= journal.seconds_by_strategy()["dvts"] < 60
        assert "seconds" not in journal.done[3]  # a row does not depend on how fast the machine was


def test_a_path_that_cannot_be_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="cannot open the run ledger"):
        Journal(tmp_path / "file" / "ledger", CONFIG)
    with pytest.raises(ValueError, match=r"cannot open the run ledger .*: Is a directory"):
        Journal(tmp_path, CONFIG)


def test_rows_can_go_to_what_is_no_file(tmp_path):
    with Journal(tmp_path / "ledger", CONFIG) as journal:
        journal.append(0, make_row())
        assert journal.write_rows(os.devnull) == 1
        link, target = tmp_path / "link.jsonl", tmp_path / "target.jsonl"
        target.write_text("old")
        link.symlink_to(target)
        journal.write_rows(link)
    assert not os.path.isfile(os.devnull)
    assert link.is_symlink()
    assert target.read_bytes() == row_line(make_row())


WRITER = """
import sys
from engine.results.journal import Journal
from tests.reports.builders import make_row
with Journal(sys.argv[1], {"seed": 0}) as journal:
    for index in range(100_000):
        if index not in journal.done:
            journal.append(index, make_row(f"p{index}"))
            print(index, flush=True)
"""


def test_kill_9_loses_no_row_that_was_reported(tmp_path):
    path, reported = tmp_path / "ledger", -1
    for num_rows in (5, 40):
        process = subprocess.Popen([sys.executable, "-c", WRITER, path], stdout=subprocess.PIPE, text=True)
        for _ in range(num_rows):
            reported = int(process.stdout.readline())
        os.kill(process.pid, signal.SIGKILL)
        rest = process.stdout.read().split()
        process.wait()
        reported = int(rest[-1]) if rest else reported
        with Journal(path, {"seed": 0}) as journal:
            # One row may be on the disk whose report did not get out.
            assert list(journal.done) in (list(range(reported + 1)), list(range(reported + 2)))


def test_a_row_takes_the_place_of_an_error(tmp_path):
    path = tmp_path / "ledger"
    failed = {"id": "p1", "seed": 0, "strategy": "majority", "error": "it broke"}
    with Journal(path, CONFIG) as journal:
        journal.append(1, failed, seconds=1.0)
    with Journal(path, CONFIG) as journal:
        assert journal.done == {1: failed}
        journal.append(1, make_row("p1"), seconds=2.0)
        with pytest.raises(ValueError, match="already done"):
            journal.append(1, failed)
    with Journal(path, CONFIG) as journal:
        assert (journal.done, journal.seconds) == ({1: make_row("p1")}, {1: 3.0})


def test_a_shards_journal_is_no_others(tmp_path):
    path = tmp_path / "ledger"
    Journal(path, CONFIG, part={"shard": "1/2"}).close()
    for part, words in (({"shard": "2/2"}, 'shard was "1/2", now "2/2"'), (None, 'shard was "1/2", now not set')):
        with pytest.raises(ValueError, match=words):
            Journal(path, CONFIG, part=part)
    assert Journal.stored(path).part == {"shard": "1/2"}
    Journal(path, CONFIG, part={"shard": "1/2"}).close()
