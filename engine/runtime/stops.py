"""Where sampling stops: tables over the vocabulary, one look-up per sampled token.

Some stops are not decided by a single token (a delimiter over several tokens, a closed `\\boxed{}`). Their rule has
every token that may complete the stop, and the `confirm` of the StopCondition then looks at the text.
"""

from __future__ import annotations

import numpy as np


class StopRules:
    """Rule i names the tokens after which a step ends. End of text and the error token -1 end it under every rule."""

    def __init__(self, vocab_size: int):
        # One entry more than tokens: -1 indexes it.
        self.is_eos = np.zeros(vocab_size + 1, bool)
        self.is_scored: np.ndarray | None = None  # (vocabulary + 1) bool: tokens at which the trunk head is read
        self.table = np.zeros((0, vocab_size + 1), bool)  # (rules, vocabulary + 1): tokens that end a step
        self._free: list[int] = []  # rules that have been removed

    def set_eos(self, token_ids: list[int]) -> None:
        """Adds end-of-text tokens, before anything is generated."""
        self.is_eos[token_ids] = True
        self.table[:, token_ids] = True
        if self.is_scored is not None:
            self.is_scored[token_ids] = True

    def add(self, mask: np.ndarray) -> int:
        """The number of a new rule; `mask` is (vocabulary,) bool."""
        rule = np.append(mask, True) | self.is_eos
        if self._free:
            self.table[self._free[-1]] = rule
            return self._free.pop()
        self.table = np.concatenate([self.table, rule[None]])
        return len(self.table) - 1

    def remove(self, rule: int) -> None:
        """Gives a number back, of a rule under which nothing is drawn any more."""
        self._free.append(rule)

    def score_at(self, mask: np.ndarray) -> None:
        """Has the trunk head read at these tokens, (vocabulary,) bool, and at the end of text."""
        self.is_scored = np.append(mask, False) | self.is_eos

    def ends(self, rules: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        """(rows,) bool: whether each row's token ends its step."""
        return self.table[rules, tokens]

    def finish(self, token: int, is_end: bool) -> str:
        """Why an extension ends with this token: "error", "eos", "step", or "length" if the token is no end."""
        if token < 0:
            return "error"
        if self.is_eos[token]:
            return "eos"
        return "step" if is_end else "length"
