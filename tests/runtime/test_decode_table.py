"""The decode table and the stop rules, without a model."""

import numpy as np
import pytest

from engine.accounting import Ledger
from engine.runtime.decode_table import DecodeTable
from engine.runtime.requests import GenerateJob, GenerateRequest, StopCondition
from engine.runtime.segments import Segment
from engine.runtime.stops import StopRules
from engine.types import Sampling

SAMPLING = Sampling(temperature=0.5, top_k=3)


def make_jobs(
    num: int, *, max_tokens: int = 300, num_done: int = 0, sampling: Sampling = SAMPLING
) -> list[GenerateJob]:
    """Jobs with different keys and sources; the first one has sampled `num_done` tokens before."""
    request = GenerateRequest(None, num, sampling=sampling, stop=StopCondition(1))
    jobs = []
    for i in range(num):
        source = Segment(None, [1] * (i + 2), 0, 0, Ledger(), "prefilled")
        jobs.append(GenerateJob(request, i, None, 100 + i, max_tokens, 0.0, 0, source))
    if num_done:
        jobs[0].partial = jobs[0].source = Segment(jobs[0].source, list(range(num_done)), 2, 1, Ledger(), "generated")
        jobs[0].logprobs = [-float(i) for i in range(num_done)]
    return jobs


def push(table: DecodeTable, rows: np.ndarray, tokens: np.ndarray, logprobs: np.ndarray) -> None:
    """A launch whose tokens are known before the next one."""
    at, _ = table.launch(rows)
    table.write(at, tokens, logprobs)
    table.know(rows, tokens)


def decode(table: DecodeTable, jobs: list[GenerateJob]) -> np.ndarray:
    """Starts jobs and gives each its first token; their rows."""
    table.add(jobs)
    rows = [job.row for job in jobs]
    table.start(rows, [10 + row for row in rows])
    push(table, np.array(rows), np.full(len(rows), 7, np.int32), np.zeros(len(rows), np.float32))
    return np.array(rows)


def test_rows_that_stand_by():
    """Two places and two that stand by: who has drawn nothing keeps its token, and moves up when another ends."""
    table = DecodeTable(2, num_standby=2)
    rows = decode(table, make_jobs(4))
    assert (table.num_free, table.active().num_placed) == (0, 2)
    table.reorder(np.array([1, 0]))
    assert table.active().rows.tolist() == rows[[1, 0, 2, 3]].tolist()
    tokens = np.array([[5, 6, 8, 0], [9, 6, 8, 0], [9, 0, 0, 0]], np.int32)
    table.push_active(tokens, -tokens.astype(np.float32), np.array([3, 1, 2, 0], np.int32))
    assert table.active().pending.tolist() == [9, 6, 8, 7]
    table.remove([rows[0].item()])
    active = table.active()
    assert (active.num_placed, active.rows.tolist()) == (2, rows[[1, 2, 3]].tolist())
    assert active.pending.tolist() == [9, 8, 7]
    assert table.generated(rows[1:].tolist()) == [([7, 5, 9, 9], [0, -5, -9, -9]), ([7, 8, 8], [0, -8, -8]), ([7], [0])]
    table.remove(rows[1:].tolist())
    assert (table.num_free, table.num_used) == (4, 0)


def test_active_rows_keep_step_with_the_columns():
    """The same tokens pushed by row, and to the active rows in another order, beyond the table's first width."""
    plain, active_rows = DecodeTable(6), DecodeTable(6)
    tables = [(table, decode(table, make_jobs(5, num_done=3))) for table in (plain, active_rows)]
    order = np.array([3, 0, 4, 1, 2])
    active_rows.reorder(order)
    for step in range(100):
        tokens = np.arange(5, dtype=np.int32) * 1000 + step
        logprobs = -tokens.astype(np.float32)
        push(plain, tables[0][1], tokens, logprobs)
        active = active_rows.active()
        assert (active.rows == tables[1][1][order]).all()
        active_rows.push_active(tokens[None, order], logprobs[None, order], np.ones(5, np.int32))
        if active.room == 0:  # the table is full: it grows when the rows are next put side by side
            active_rows.settle()
    assert (active_rows.active().pending == tokens[order]).all()
    for table, rows in tables:
        ((first, first_logprobs), *others) = table.generated(rows.tolist())
        assert first == [0, 1, 2, 7, *range(100)]
        assert first_logprobs == [0.0, -1.0, -2.0, 0.0, *(-float(i) for i in range(100))]
        assert [tokens[1:] for tokens, _ in others] == [list(range(1000 * i, 1000 * i + 100)) for i in range(1, 5)]
        # A source of i + 2 tokens, and what was sampled; the first had three tokens more behind its two.
        assert table.position[rows].tolist() == [2 + 3 + 101, *(i + 2 + 101 for i in range(1, 5))]
        assert table.count[rows].tolist() == [104, 101, 101, 101, 101]
    wanted, got = (table.sampling(rows) for table, rows in tables)
    assert all((a == b).all() for a, b in zip(wanted, got, strict=True))


def test_several_tokens_at_once():
    step_by_step, at_once = DecodeTable(4), DecodeTable(4)
    tokens = np.arange(24, dtype=np.int32).reshape(6, 4)
    logprobs = -tokens.astype(np.float32)
    rows = [decode(table, make_jobs(4, num_done=3)) for table in (step_by_step, at_once)]
    for i in range(6):
        step_by_step.active()
        step_by_step.push_active(tokens[i : i + 1], logprobs[i : i + 1], np.ones(4, np.int32))
    room, left = at_once.active().room, at_once.active().left.tolist()
    at_once.push_active(tokens, logprobs, np.full(4, 6, np.int32))
    assert at_once.active().room == room - 6
    assert at_once.active().left.tolist() == [each - 6 for each in left]
    assert at_once.active().pending.tolist() == [20, 21, 22, 23]
    assert at_once.generated(rows[1]) == step_by_step.generated(rows[0])
    assert at_once.position.tolist() == step_by_step.position.tolist()


def test_rows_that_got_fewer_tokens_than_others():
    table = DecodeTable(3)
    rows = decode(table, make_jobs(3))
    tokens = np.arange(12, dtype=np.int32).reshape(4, 3)
    counts = np.array([4, 1, 2], np.int32)
    left = table.active().left.tolist()
    table.push_active(tokens, -tokens.astype(np.float32), counts)
    assert table.active().pending.tolist() == [9, 1, 5]
    assert table.active().left.tolist() == [left[0] - 4, left[1] - 1, left[2] - 2]
    table.push_active(tokens[:1], -tokens[:1].astype(np.float32), np.ones(3, np.int32))
    assert [drawn for drawn, _ in table.generated(rows)] == [[7, 0, 3, 6, 9, 0], [7, 1, 1], [7, 2, 5, 2]]
    assert table.position[rows].tolist() == [2 + 6, 3 + 3, 4 + 4]


def test_removed_rows_leave_the_others_in_order():
    table = DecodeTable(4)
    jobs = make_jobs(4)
    rows = decode(table, jobs)
    table.reorder(np.array([2, 0, 3, 1]))
    table.push_active(np.array([[2, 0, 3, 1]], np.int32), np.zeros((1, 4), np.float32), np.ones(4, np.int32))
    table.remove([int(rows[0])])
    assert table.active().rows.tolist() == [rows[2], rows[3], rows[1]]
    assert table.active().pending.tolist() == [2, 3, 1]
    assert [job.row >= 0 for job in jobs] == [False, True, True, True]
    assert (table.num_used, table.num_decoding, table.num_free) == (3, 3, 1)
    (new,) = decode(table, make_jobs(1))
    assert table.active().rows.tolist() == [rows[2], rows[3], rows[1], new]
    assert table.active().pending.tolist() == [2, 3, 1, 7]
    assert [job.row for job in table.decoding_jobs()] == table.active().rows.tolist()


def test_the_active_rows_say_what_each_may_still_draw():
    table = DecodeTable(3)
    decode(table, [*make_jobs(1, max_tokens=9), *make_jobs(2, max_tokens=5)])
    assert table.active().left.tolist() == [8, 4, 4]


def test_waiting_rows_do_not_decode():
    table = DecodeTable(2)
    jobs = make_jobs(1)
    table.add(jobs)
    assert (table.num_used, table.num_decoding) == (1, 0)
    with pytest.raises(AssertionError, match="no row is decoding"):
        table.active()
    table.remove([jobs[0].row])
    assert table.num_free == 2


def test_what_ends_a_step():
    stops = StopRules(6)
    stops.set_eos([5])
    never, at_two = stops.add(np.zeros(6, bool)), stops.add(np.arange(6) == 2)
    tokens = np.array([2, 2, 5, 5, -1, -1, 3], np.int32)
    rules = np.array([never, at_two, never, at_two, never, at_two, at_two], np.int32)
    ends = stops.ends(rules, tokens)
    assert ends.tolist() == [False, True, True, True, True, True, False]
    names = [stops.finish(token, end) for token, end in zip(tokens, ends, strict=True)]
    assert names == ["length", "step", "eos", "eos", "error", "error", "length"]


def test_where_the_trunk_head_reads():
    stops = StopRules(4)
    stops.set_eos([3])
    stops.score_at(np.arange(4) == 1)
    assert stops.is_scored[np.array([0, 1, 2, 3, -1])].tolist() == [False, True, False, True, False]
    stops.add(np.arange(4) == 2)
    assert stops.table.tolist() == [[False, False, True, True, True]], "reading does not end a step"


@pytest.mark.parametrize(("name", "value"), [("top_k", 5), ("top_p", 0.9), ("min_p", 0.1)])
def test_filters_are_seen(name, value):
    table = DecodeTable(4)
    plain = decode(table, make_jobs(2, sampling=Sampling(temperature=0.5)))
    assert not table.active().is_filtered
    filtered = decode(table, make_jobs(1, sampling=Sampling(**{name: value})))
    assert table.active().is_filtered
    assert (table.has_filter(plain), table.has_filter(filtered)) == (False, True)
    table.remove(filtered.tolist())
    assert not table.active().is_filtered
