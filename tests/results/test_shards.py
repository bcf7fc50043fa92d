"""Shards of a run, put together again: what is refused, what is dropped, and the same bytes."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest

from engine.errors import UserError
from engine.results import Journal, Shard, error_row, journal_path, merge_shards, open_run, read_results
from engine.results.rows import Row
from engine.types import Problem
from tests.reports.builders import make_row

CONFIG = {"strategy": "majority", "budget": 1, "seed": 0}
NUM = 7


def row(index: int) -> Row:
    return make_row(f"p{index}")


def failed(index: int, words: str = "it broke") -> Row:
    problem = Problem(f"p{index}", "1;+1\n")
    return error_row(problem, ValueError(words), strategy="majority", budget=1, seed=0)


def write(folder: Path, shard: Shard, rows: dict[int, Row], config: dict = CONFIG, num_total: int = NUM) -> Path:
    """A shard's files as its run leaves them; unfinished ones have a ledger alone."""
    out = Path(shard.path(str(folder / "results.jsonl")))
    with open_run(out, config, overwrite=True, part=shard.part(num_total)) as journal:
        for index in reversed(rows):  # as they were finished
            journal.append(index, rows[index], seconds=1.0)
        if len(rows) == len(shard.positions(num_total)):
            journal.write_rows(out, expected=shard.positions(num_total))
    return out


def shards(folder: Path, count: int = 3, config: dict = CONFIG) -> list[str]:
    parts = [Shard(number, count) for number in range(1, count + 1)]
    return [str(write(folder, part, {at: row(at) for at in part.positions(NUM)}, config)) for part in parts]


def whole(folder: Path) -> bytes:
    """The file of a run that was not divided."""
    out = folder / "whole.jsonl"
    with open_run(out, CONFIG, overwrite=True) as journal:
        for index in range(NUM):
            journal.append(index, row(index))
        journal.write_rows(out)
    return out.read_bytes()


def test_every_position_is_of_one_shard():
    for count, total in itertools.product(range(1, 9), range(20)):
        parts = [Shard(number, count).positions(total) for number in range(1, count + 1)]
        assert sorted(itertools.chain(*parts)) == list(range(total))
        assert max(map(len, parts)) - min(map(len, parts)) <= 1
    assert Shard.parse("2/8") == Shard(2, 8)
    assert Shard(2, 8).path("out/results.jsonl") == "out/results.2-of-8.jsonl"


@pytest.mark.parametrize("text", ["0/8", "9/8", "2", "2/", "-1/8", "a/b", "2/8/1", " 2/8", "1/0", "", "²/3"])
def test_no_shard(text):
    with pytest.raises(UserError, match=r"shard must be i/n .*got") as caught:
        Shard.parse(text)
    assert repr(text) in str(caught.value)


@pytest.mark.parametrize("count", [1, 2, 3, 9])
def test_any_order_gives_the_bytes_of_one_run(tmp_path, count):
    """More shards than problems too."""
    expected, paths = whole(tmp_path), shards(tmp_path, count)
    for order in (paths, paths[::-1], [f"{path}.ledger" for path in paths]):
        out = tmp_path / "merged.jsonl"
        rows, note = merge_shards(order, str(out), overwrite=True)
        assert (list(rows), note) == (list(range(NUM)), f"{min(count, NUM) if count < 9 else 9} shards")
        assert out.read_bytes() == expected
    with Journal(journal_path(out), CONFIG) as journal:  # a whole run's: nothing says that there were shards
        assert (set(journal.done), journal.part) == (set(range(NUM)), {})
        assert journal.seconds == dict.fromkeys(range(NUM), 1.0)


def test_what_is_missing_is_named(tmp_path):
    paths = shards(tmp_path, 4)
    for path in (paths[1], paths[3]):
        Path(path).unlink()
    journal_path(paths[3]).unlink()
    write(tmp_path, Shard(2, 4), {5: row(5)})
    out = tmp_path / "merged.jsonl"
    words = "shard 4/4 is missing; shard 2/4 is unfinished: 1 of its 2 rows are missing"
    for given in ([paths[0], paths[2]], paths):  # the ledger beside them is found
        with pytest.raises(UserError, match=words):
            merge_shards(given, str(out))
        assert not out.exists()
        assert not journal_path(out).exists()
    rows, note = merge_shards(paths, str(out), allow_missing=True)
    assert (list(rows), note) == ([0, 2, 4, 5, 6], f"3 shards, {words}")
    journal_path(paths[2]).unlink()
    with pytest.raises(UserError, match="shards 3/4 and 4/4 are missing"):
        merge_shards(paths[:1], str(out))
    shards_again = shards(tmp_path / "again", 4)
    _, note = merge_shards(shards_again, str(out))  # what was merged before is kept
    assert (note, out.read_bytes()) == ("4 shards", whole(tmp_path))


def test_a_torn_or_empty_ledger_is_unfinished(tmp_path):
    paths = shards(tmp_path, 2)
    written = journal_path(paths[1]).read_bytes()
    journal_path(paths[1]).write_bytes(written[:-3])
    with pytest.raises(UserError, match="shard 2/2 is unfinished: 1 of its 3 rows"):
        merge_shards(paths, str(tmp_path / "merged.jsonl"))
    for size in (0, 5, 40):
        journal_path(paths[1]).write_bytes(written[:size])
        with pytest.raises(UserError, match="shard 2/2 is missing"):
            merge_shards(paths, str(tmp_path / "merged.jsonl"))


@pytest.mark.parametrize(
    ("config", "num_total", "count", "words"),
    [
        (CONFIG | {"seed": 1}, NUM, 2, "seed was 0, now 1"),
        (CONFIG, NUM + 1, 2, "num_total was 7, now 8"),
        (CONFIG, NUM, 3, "shards was 2, now 3"),
    ],
)
def test_shards_of_other_runs_are_refused(tmp_path, config, num_total, count, words):
    first = shards(tmp_path / "a", 2)[0]
    other = write(tmp_path / "b", Shard(2, count), {1: row(1)}, config, num_total)
    with pytest.raises(UserError, match=f"results.2-of-{count}.jsonl.ledger is of another configuration.*{words}"):
        merge_shards([first, str(other)], str(tmp_path / "merged.jsonl"))


def test_doubled_rows(tmp_path):
    """Equal ones are dropped, and what a row owes to its neighbours is no difference; all others are refused."""
    paths, again = shards(tmp_path, 2), tmp_path / "again"
    copy = json.loads(json.dumps(row(1)))
    copy["ledger"]["tokens"]["cached"] += 16
    part = Shard(2, 2)
    other = str(write(again, part, {1: copy}))
    out = tmp_path / "merged.jsonl"
    _, note = merge_shards([*paths, other, other], str(out))
    assert (note, out.read_bytes()) == ("2 shards, 1 doubled rows left out", whole(tmp_path))
    write(again, part, {1: make_row("p1", pred="3")})
    with pytest.raises(UserError, match=r"2-of-2.* and .*again/.* hold different rows of problem 'p1' \(row 1\)"):
        merge_shards([*paths, other], str(out))


def test_a_result_takes_the_place_of_an_error(tmp_path):
    paths, again = shards(tmp_path, 2), tmp_path / "again"
    write(tmp_path, Shard(2, 2), {1: failed(1), 3: row(3), 5: row(5)})
    out = tmp_path / "merged.jsonl"
    for _ in range(2):  # merged again, nothing is added
        merge_shards(paths, str(out))
        results, errors = read_results(out)
        assert ([each["id"] for each in errors], len(results)) == (["p1"], NUM - 1)
        assert journal_path(out).read_bytes().count(b"\n") == NUM + 1
    better = str(write(again, Shard(2, 2), {1: row(1)}))
    for order in ([*paths, better], [better, *paths], paths):  # at last it is kept from what was merged before
        merge_shards(order, str(out))
        assert out.read_bytes() == whole(tmp_path)


def test_what_is_no_shard(tmp_path):
    whole(tmp_path)
    out = str(tmp_path / "merged.jsonl")
    with pytest.raises(UserError, match=r"whole.jsonl.ledger is not of a shard"):
        merge_shards([str(tmp_path / "whole.jsonl")], out)
    with pytest.raises(UserError, match=r"no run ledger of a shard stands beside .*nowhere"):
        merge_shards([str(tmp_path / "nowhere.jsonl")], out)
    (tmp_path / "alone.jsonl").write_text("")
    with pytest.raises(UserError, match=r"alone.jsonl: no run ledger alone.jsonl.ledger stands beside it"):
        merge_shards([str(tmp_path / "alone.jsonl")], out)
    stray = write(tmp_path, Shard(1, 2), {1: row(1)})
    with pytest.raises(UserError, match="row 1 is not of shard 1/2"):
        merge_shards([str(stray)], out)


def test_what_stands_there_of_another_run_is_kept(tmp_path):
    paths, out = shards(tmp_path, 2), tmp_path / "merged.jsonl"
    with open_run(out, CONFIG | {"seed": 1}) as journal:
        journal.append(0, row(0))
        journal.write_rows(out)
    before = out.read_bytes(), journal_path(out).read_bytes()
    with pytest.raises(UserError, match="seed was 1, now 0"):
        merge_shards(paths, str(out))
    assert (out.read_bytes(), journal_path(out).read_bytes()) == before
    merge_shards(paths, str(out), overwrite=True)
    assert out.read_bytes() == whole(tmp_path)


def test_a_merge_that_was_killed_is_made_again(tmp_path):
    """Whatever part of its ledger had been written, and whether or not its file had."""
    paths, out, expected = shards(tmp_path, 3), tmp_path / "merged.jsonl", whole(tmp_path)
    merge_shards(paths, str(out))
    written = journal_path(out).read_bytes()
    for size in range(0, len(written), 211):
        journal_path(out).write_bytes(written[:size])
        out.unlink()
        merge_shards(paths, str(out))
        assert (out.read_bytes(), journal_path(out).read_bytes()) == (expected, written)
