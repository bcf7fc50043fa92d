"""The batches of updates: drawn anew in each epoch, by weight among sources, and each from its number alone."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from engine.training.batches import DrawnBatches, FixedBatches, Packing, Source

PACKING = Packing(tokens_per_step=12, pad=9, no_label=-1.0)


def rows(first: int, lengths: list[int]) -> list[tuple]:
    """Rows whose label tells them apart."""
    return [([first + n] * length, [float(first + n)] * length) for n, length in enumerate(lengths)]


def always(made: list[tuple], weight: float = 1.0) -> Source:
    return Source(lambda epoch: made, weight)


def numbers(item: dict[str, torch.Tensor]) -> list[int]:
    """The rows of a batch by their labels."""
    return [int(label) for label in item["labels"][:, 0]]


SHORT, LONG = rows(0, [2] * 13 + [3] * 7), rows(100, [5, 5, 6, 30])


def test_a_batch_is_padded_and_full_but_for_a_long_row():
    fixed = FixedBatches(LONG, PACKING)
    assert sorted(sorted(numbers(item)) for item in fixed) == [[100, 101], [102], [103]]
    item = PACKING.tensors([LONG[0], LONG[2]])
    assert item["input_ids"].tolist() == [[100] * 5 + [9], [102] * 6]
    assert item["labels"].tolist() == [[100.0] * 5 + [-1.0], [102.0] * 6]
    assert len(FixedBatches([], PACKING)) == 0


def test_each_epoch_has_all_rows_in_other_batches():
    drawn = DrawnBatches([always(SHORT)], PACKING, num_updates=10, seed=3)
    batches = [numbers(drawn[index]) for index in range(10)]
    epochs = [batches[0:4], batches[4:8]]  # 13 rows of 2 and 7 of 3: at most 6, 6, 4 and 4 in a batch
    for epoch in epochs:
        assert Counter(number for batch in epoch for number in batch) == Counter(range(20))
        assert all(len({len(SHORT[number][0]) for number in batch}) <= 2 for batch in epoch)
    assert {frozenset(batch) for batch in epochs[0]} != {frozenset(batch) for batch in epochs[1]}
    assert all(item["input_ids"].numel() <= 12 for item in drawn)
    assert drawn.num_epochs() == [pytest.approx(2.5)]
    other = DrawnBatches([always(SHORT)], PACKING, num_updates=10, seed=4)
    assert [numbers(item) for item in other] != batches


def test_a_batch_follows_from_the_seed_and_its_number():
    def made() -> DrawnBatches:
        return DrawnBatches([always(SHORT, 0.5), always(LONG, 1.5)], PACKING, num_updates=30, seed=3)

    through = made()
    inputs = [through[index]["input_ids"] for index in range(30)]
    backwards = made()
    for index in reversed(range(30)):
        assert torch.equal(backwards[index]["input_ids"], inputs[index])
    assert torch.equal(made()[17]["input_ids"], inputs[17])
    shorter = DrawnBatches([always(SHORT, 0.5), always(LONG, 1.5)], PACKING, num_updates=5, seed=3)
    assert torch.equal(shorter[4]["input_ids"], inputs[4])


def test_sources_are_drawn_by_weight():
    drawn = DrawnBatches([always(SHORT, 3.0), always(LONG, 1.0)], PACKING, num_updates=2000, seed=0)
    from_long = sum(min(numbers(item)) >= 100 for item in drawn)
    assert drawn.counts == [2000 - from_long, from_long]
    assert 420 < from_long < 580  # 500 expected, sd 19
    assert drawn.num_epochs() == pytest.approx([(2000 - from_long) / 4, from_long / 3])


def test_rows_may_be_others_in_each_epoch():
    asked: list[int] = []

    def of_epoch(epoch: int) -> list[tuple]:
        asked.append(epoch)
        return rows(10 * epoch, [12] * (epoch + 1))  # a batch each

    drawn = DrawnBatches([Source(of_epoch)], PACKING, num_updates=5, seed=0)
    found = [numbers(item)[0] for item in drawn]
    assert (found[0], sorted(found[1:3]), set(found[3:]) < {20, 21, 22}) == (0, [10, 11], True)
    assert asked == [0, 1, 2]
    assert drawn.num_epochs() == [pytest.approx(2 + 2 / 3)]
