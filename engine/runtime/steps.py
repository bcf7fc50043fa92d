"""Where a step of the policy ends, and where its answer does: by token position."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from engine.errors import UserError
from engine.prompts.boxed import has_closed_box
from engine.runtime.branch import Branch
from engine.runtime.llm import LLM
from engine.runtime.requests import StopCondition
from engine.runtime.vocabulary import completing

_MAX_DELIMITER = 64  # characters


class StepEnds:
    """Finds the tokens at which steps end.

    A delimiter of one character ends a step at every token that contains it. A longer one may be spread over several
    tokens: its step ends at the token that completes it, if the step has any other text by then (blank lines make no
    step). Lines may end in a carriage return and a line feed, unless the delimiter names them. With `stops_at_box` the
    token that closes the answer's first `\\boxed{}` ends the answer; so does one that completes a text of `stop_texts`.
    """

    def __init__(self, llm: LLM, delimiter: str, stops_at_box: bool = False, stop_texts: Sequence[str] = ()):
        if not 1 <= len(delimiter) <= _MAX_DELIMITER:
            raise UserError(f"a step delimiter has 1 to {_MAX_DELIMITER} characters, got {delimiter!r}")
        self.llm, self.delimiter, self.stops_at_box, self.stop_texts = llm, delimiter, stops_at_box, stop_texts
        self.is_plain = len(delimiter) == 1  # a token alone decides
        token_mask = llm.vocabulary.token_mask
        self.delimiters = token_mask([delimiter]) if self.is_plain else self._completing()
        self._delimiter_ids = frozenset(np.flatnonzero(self.delimiters).tolist())
        self._boxes = token_mask(["}"]) if stops_at_box else np.zeros_like(self.delimiters)
        self._completes = (
            completing(llm.vocabulary.token_texts, stop_texts) if stop_texts else np.zeros_like(self._boxes)
        )
        ends = self._boxes | self._completes  # of answers
        self._stops = {
            True: self._stop_condition(self.delimiters | ends, True),
            False: self._stop_condition(ends, False),
        }

    @property
    def score_mask(self) -> np.ndarray:
        """(vocabulary,) bool: tokens that may end a step."""
        return self.delimiters | self._boxes

    def stop(self, stop_at_step: bool) -> StopCondition:
        """Where an extension stops: at the end of a step, or only at the end of the answer."""
        return self._stops[stop_at_step]

    def _stop_condition(self, mask: np.ndarray, stop_at_step: bool) -> StopCondition:
        """Stops at the tokens of a mask, (vocabulary,) bool, and looks at the text where a token does not decide."""
        rule = self.llm.runner.stops.add(mask)
        if self.is_plain and not self.stops_at_box and not self.stop_texts:
            return StopCondition(rule)

        def finish(branch: Branch, tokens: list[int]) -> str | None:
            if self._boxes[tokens[-1]]:
                answer = branch.token_ids[branch.num_prompt_tokens :]
                if has_closed_box(self.llm.decode(answer + tokens)):
                    return "boxed"
            if self._completes[tokens[-1]] and self._has_stopped(branch, tokens):
                return "stop"
            if stop_at_step and self.delimiters[tokens[-1]] and self.ends_step(tokens):
                return "step"
            return None

        return StopCondition(rule, finish)

    def _has_stopped(self, branch: Branch, tokens: Sequence[int]) -> bool:
        answer = self.llm.decode([*branch.token_ids[branch.num_prompt_tokens :], *tokens])
        return any(each in answer for each in self.stop_texts)

    def ends_step(self, tokens: Sequence[int]) -> bool:
        """Whether these tokens, the last of which may end a step, do end one."""
        return self.is_plain or self.delimiter in self._lines(self.llm.decode(tokens)).lstrip()

    def ends(self, tokens: Sequence[int]) -> list[int]:
        """The index after the last token of every step that a delimiter ends."""
        places = [end for end, token in enumerate(tokens, start=1) if token in self._delimiter_ids]
        if self.is_plain:
            return places
        ends, start = [], 0
        for end in places:
            if self.ends_step(tokens[start:end]):
                ends.append(end)
                start = end
        return ends

    def _completing(self) -> np.ndarray:
        """(vocabulary,) bool: tokens that contain the delimiter, or start with an end of it."""
        found = completing(map(self._lines, self.llm.vocabulary.token_texts), [self.delimiter])
        if not found.any():
            raise UserError(f"no token of the vocabulary ends the step delimiter {self.delimiter!r}")
        return found

    def _lines(self, text: str) -> str:
        """The text with a plain end to each line, in which the delimiter is looked for."""
        return text if "\r" in self.delimiter else text.replace("\r\n", "\n")
