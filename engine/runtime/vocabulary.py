"""A model's vocabulary: text to token ids and back, and which tokens contain a text."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from functools import cached_property

import numpy as np
from tokenizers import Tokenizer

from engine.counts import shown
from engine.errors import UserError
from engine.prompts.text import check_encodable

_LEAST_LONGEST = 16  # characters
_PLAIN_DECODERS = ("ByteLevel", "Fuse")  # they put the tokens' texts together and change nothing
_BEFORE = ("\n", "=", "a")  # texts to encode others after


class Vocabulary:
    """A tokenizer, for a model whose embedding has `size` tokens."""

    def __init__(self, tokenizer: Tokenizer, size: int):
        self.tokenizer, self.size = tokenizer, size

    def encode(self, text: str, *, is_start: bool = True) -> list[int]:
        """Token ids; only if `is_start` with the special tokens and the space that the tokenizer puts before a text.

        Raises UserError for a lone surrogate.
        """
        check_encodable(text)
        if is_start or not self._adds_space:
            return self.tokenizer.encode(text, add_special_tokens=is_start).ids
        for before in _BEFORE:  # one with which the text makes no token of both
            start = self.tokenizer.encode(before, add_special_tokens=False).ids
            ids = self.tokenizer.encode(before + text, add_special_tokens=False).ids
            if ids[: len(start)] == start and self.decode(ids) == self.decode(start) + text:
                return ids[len(start) :]
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def most_characters(self, num_tokens: int) -> int:
        """The length of the longest text that so many tokens can hold."""
        return num_tokens * self._longest

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text without special tokens; some tokenizers leave out a space at its start."""
        return self.tokenizer.decode(list(token_ids), skip_special_tokens=True)

    def decode_part(self, token_ids: Sequence[int]) -> str:
        """The text that the tokens add to one before them, without special tokens: a space at its start is kept."""
        if self._anchor is None:
            return self.decode(token_ids)
        anchor, text = self._anchor
        return self.decode([anchor, *token_ids])[len(text) :]

    def holds(self, token_ids: Sequence[int]) -> bool:
        """Whether the embedding has a row for each token: a tokenizer may have more tokens than its model."""
        return not len(token_ids) or 0 <= min(token_ids) <= max(token_ids) < self.size

    def check(self, token_ids: Sequence[int]) -> None:
        """Raises UserError, with its text, for a token that the embedding has no row for."""
        if not self.holds(token_ids):
            token = next(token for token in token_ids if not 0 <= token < self.size)
            text = self.tokenizer.id_to_token(token) if 0 <= token < 1 << 32 else None  # of 32 bits in a tokenizer
            raise UserError(f"token {shown(token)}, {text!r}, is beyond the {self.size} rows of the model's embedding")

    @cached_property
    def _longest(self) -> int:
        """Characters of the longest token; a few where all are short, for tokenizers that leave characters out."""
        return max(_LEAST_LONGEST, *map(len, self.tokenizer.get_vocab()))

    @cached_property
    def token_texts(self) -> list[str]:
        """The text that each token adds to one before it."""
        return [self.decode_part([i]) for i in range(self.size)]

    @cached_property
    def is_of_characters(self) -> bool:
        """Whether no token has more than one character, so that a text has the same tokens however it is cut."""
        return all(len(text) <= 1 for text in self.token_texts)

    @cached_property
    def _adds_space(self) -> bool:
        """Whether the tokenizer puts a space before a text, as those of SentencePiece do."""
        ids = self.tokenizer.encode("a", add_special_tokens=False).ids
        return self.decode_part(ids) != "a"

    @cached_property
    def _anchor(self) -> tuple[int, str] | None:
        """A token to decode others after, and its text; None where each token's text stands for itself."""
        decoder = self.tokenizer.decoder
        if decoder is not None and json.loads(decoder.__getstate__())["type"] in _PLAIN_DECODERS:
            return None
        texts = ((i, self.decode([i])) for i in range(self.size))
        return next(((i, text) for i, text in texts if len(text) == 1 and text.isalnum() and text.isascii()), None)

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


def completing(token_texts: Iterable[str], texts: Sequence[str]) -> np.ndarray:
    """(tokens,) bool: those that may complete one of `texts`, which may be spread over several tokens.

    They contain it, or start with an end of it. One that is part of a character may be part of any that is not ASCII.
    """
    tails = tuple(text[i:] for text in texts for i in range(1, len(text)))
    parts = () if all(text.isascii() for text in texts) else ("\ufffd",)
    found = [token.startswith(tails) or any(text in token for text in (*texts, *parts)) for token in token_texts]
    return np.array(found, bool)
