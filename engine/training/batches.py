"""Packs encoded rows into batches of similar length."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence

import torch
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerFast

from engine.errors import UserError
from engine.runtime.vocabulary import Vocabulary


def check_tokens(token_ids: Sequence[int], prompt: str, vocabulary: Vocabulary) -> None:
    """Raises UserError, with the prompt, for a token that the model has no row for."""
    try:
        vocabulary.check(token_ids)
    except UserError as error:
        raise UserError(f"an answer to {prompt[:60]!r} cannot be learned from: {error}") from None


class LengthBatches(Dataset):
    """Item i is a whole batch: `input_ids` and `labels`, both (rows, longest), padded on the right.

    Rows are tuples of token ids, one label per token, and optional further values, which are kept in `batches`.
    A batch has at most `tokens_per_step` tokens, padding included, but at least one row. The seed shuffles the
    batches.
    """

    def __init__(
        self,
        rows: Iterable[tuple],
        tokenizer: PreTrainedTokenizerFast,
        *,
        no_label: float,  # the label of padding
        tokens_per_step: int,
        seed: int,
    ):
        self.batches: list[list[tuple]] = [[]]
        for row in sorted(rows, key=lambda row: len(row[0])):
            if self.batches[-1] and len(row[0]) * (len(self.batches[-1]) + 1) > tokens_per_step:
                self.batches.append([])
            self.batches[-1].append(row)
        random.Random(seed).shuffle(self.batches)
        # Any token will do, since padding follows all that is read.
        self.pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id or 0
        self.no_label = no_label

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        batch = self.batches[index]
        longest = max(len(row[0]) for row in batch)
        return {
            "input_ids": torch.tensor([row[0] + [self.pad] * (longest - len(row[0])) for row in batch]),
            "labels": torch.tensor([row[1] + [self.no_label] * (longest - len(row[1])) for row in batch]),
        }
