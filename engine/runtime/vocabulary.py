"""A model's vocabulary: text to token ids and back, and which tokens contain a text."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np
from tokenizers import Tokenizer

from engine.errors import UserError


class Vocabulary:
    """A tokenizer, for a model whose embedding has `size` tokens."""

    def __init__(self, tokenizer: Tokenizer, size: int):
        self.tokenizer, self.size = tokenizer, size

    def encode(self, text: str, *, is_start: bool = True) -> list[int]:
        """Token ids; special tokens that the tokenizer puts at the start of a text only if `is_start`."""
        return self.tokenizer.encode(text, add_special_tokens=is_start).ids

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text without special tokens."""
        return self.tokenizer.decode(list(token_ids), skip_special_tokens=True)

    @cached_property
    def token_texts(self) -> list[str]:
        """The text of each token, decoded alone."""
        return [self.tokenizer.decode([i]) for i in range(self.size)]

    def token_mask(self, texts: Sequence[str]) -> np.ndarray:
        """(vocabulary,) bool: the tokens whose own text contains one of `texts`.

        Raises UserError for a text that no single token contains.
        """
        mask = np.zeros(self.size, bool)
        for text in texts:
            found = [i for i, token in enumerate(self.token_texts) if text and text in token]
            if not found:
                raise UserError(f"no token of the vocabulary contains the stop text {text!r}")
            mask[found] = True
        return mask
