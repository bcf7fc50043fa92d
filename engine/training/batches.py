"""Packs encoded rows into batches of similar length: a fixed set to evaluate on, or one drawn anew in each epoch."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerFast

from engine.errors import UserError
from engine.runtime.vocabulary import Vocabulary

Batch = list[tuple]  # of rows: token ids, one label per token, and optional further values


def check_tokens(token_ids: Sequence[int], prompt: str, vocabulary: Vocabulary) -> None:
    """Raises UserError, with the prompt, for a token that the model has no row for."""
    try:
        vocabulary.check(token_ids)
    except UserError as error:
        raise UserError(f"an answer to {prompt[:60]!r} cannot be learned from: {error}") from None


@dataclass(frozen=True)
class Packing:
    """How rows become batches."""

    tokens_per_step: int  # that a batch has at most, padding included; a longer row is a batch by itself
    pad: int  # token id
    no_label: float  # the label of padding

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerFast, tokens_per_step: int, no_label: float) -> Packing:
        """Pads with any token, since padding follows all that is read."""
        pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id or 0
        return cls(tokens_per_step, pad, no_label)

    def batches(self, rows: Iterable[tuple], rng: random.Random) -> list[Batch]:
        """All rows in batches of similar length; which of equal length are together, and the order, are drawn."""
        packed: list[Batch] = [[]]
        for row in sorted(rows, key=lambda row: (len(row[0]), rng.random())):
            if packed[-1] and len(row[0]) * (len(packed[-1]) + 1) > self.tokens_per_step:
                packed.append([])
            packed[-1].append(row)
        rng.shuffle(packed)
        return packed

    def tensors(self, batch: Batch) -> dict[str, torch.Tensor]:
        """`input_ids` and `labels`, both (rows, longest), padded on the right."""
        longest = max(len(row[0]) for row in batch)
        return {
            "input_ids": torch.tensor([row[0] + [self.pad] * (longest - len(row[0])) for row in batch]),
            "labels": torch.tensor([row[1] + [self.no_label] * (longest - len(row[1])) for row in batch]),
        }


class FixedBatches(Dataset):
    """Item i is a whole batch, one of those that all rows are packed in once."""

    def __init__(self, rows: Iterable[tuple], packing: Packing):
        self.packing = packing
        self.batches = [batch for batch in packing.batches(rows, random.Random(0)) if batch]

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return self.packing.tensors(self.batches[index])  # raises IndexError at the end, so that it can be iterated


@dataclass(frozen=True)
class Source:
    """Rows that updates take their batches from."""

    rows: Callable[[int], Sequence[tuple]]  # epoch -> its rows
    weight: float = 1.0  # how often an update takes its batch from here


class DrawnBatches(Dataset):
    """Item i is the whole batch of update i. It depends on (seed, i) alone, so that a resumed run sees the same data.

    The seed draws the source of each update by weight. Updates of a source take its batches one after another; those
    of each epoch are packed and shuffled anew.
    """

    def __init__(self, sources: Sequence[Source], packing: Packing, num_updates: int, seed: int):
        self.sources, self.packing, self.seed = sources, packing, seed
        weights = [source.weight for source in sources]
        self.places: list[tuple[int, int]] = []  # of each update: its source, and how many came before from there
        self.counts = [0] * len(sources)
        for update in range(num_updates):
            (source,) = random.Random(f"source/{seed}/{update}").choices(range(len(sources)), weights)
            self.places.append((source, self.counts[source]))
            self.counts[source] += 1
        self._starts = [[0] for _ in sources]  # the number of batches before each epoch that is known
        self._epochs: list[tuple[int, list[Batch]]] = [(-1, []) for _ in sources]  # the last one that was packed

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        source, number = self.places[index]
        epoch = self._epoch_of(source, number)
        return self.packing.tensors(self._epoch(source, epoch)[number - self._starts[source][epoch]])

    def num_epochs(self) -> list[float]:
        """How often all updates together go through each source."""
        return [self._num_epochs(source, count) for source, count in enumerate(self.counts)]

    def _num_epochs(self, source: int, number: int) -> float:
        epoch = self._epoch_of(source, number)
        start, end = self._starts[source][epoch : epoch + 2]
        return epoch + (number - start) / (end - start)

    def _epoch_of(self, source: int, number: int) -> int:
        """The epoch that a source's batch is in; all epochs up to it become known."""
        starts = self._starts[source]
        while starts[-1] <= number:
            starts.append(starts[-1] + len(self._epoch(source, len(starts) - 1)))
        return next(epoch for epoch in reversed(range(len(starts) - 1)) if starts[epoch] <= number)

    def _epoch(self, source: int, epoch: int) -> list[Batch]:
        if self._epochs[source][0] != epoch:
            rng = random.Random(f"batches/{self.seed}/{source}/{epoch}")
            self._epochs[source] = epoch, self.packing.batches(self.sources[source].rows(epoch), rng)
        return self._epochs[source][1]
