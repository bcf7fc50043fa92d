"""Encodes a problem and steps as the token ids of a verifier's format, and finds the tokens at which it scores.

The ids are those that the format's own reference code makes of the whole text. What is given to a
branch is found by comparing them with what it holds already, so no format has to promise that
text which is appended leaves the ids before it alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from tokenizers import Encoding, Tokenizer

from engine.errors import UserError
from engine.prompts import ChatTemplate
from engine.verifiers.spec import VerifierSpec

Encoded = tuple[list[int], list[int]]  # token ids up to the last score; the position of each step's score
# Characters for private use: one that no text holds marks the place of each tag in a rendered conversation.
_MARKS = range(0xE000, 0xF900)
_MAX_PIECES = 4096  # encodings of pieces that are kept


class Layout:
    """The format of one spec in one tokenizer's ids; `template` and `bos` are needed only where the spec uses them."""

    def __init__(self, spec: VerifierSpec, tokenizer: Tokenizer, template: ChatTemplate | None, bos: str | None):
        if spec.layout == "chat" and template is None:
            raise UserError(f"verifier spec {spec.name!r} needs a chat template, the checkpoint has none")
        if "{bos}" in spec.problem and bos is None:
            raise UserError(f"verifier spec {spec.name!r} needs a bos_token, tokenizer_config.json names none")
        self.spec, self.tokenizer, self.template, self.bos = spec, tokenizer, template, bos
        _keep_offsets_whole(tokenizer)
        self._piece = lru_cache(maxsize=_MAX_PIECES)(self._encode_piece)
        self._check_tag()

    def encode(self, problem: str, steps: Sequence[str]) -> Encoded:
        """Ids and score positions, ascending, one per step. Raises UserError for a format that is not the model's."""
        assert steps, "without a step there is no score"
        spec = self.spec
        problem = problem.strip() if spec.strip_problem else problem
        steps = [step.strip() for step in steps] if spec.strip_steps else list(steps)
        make = {"text": self._text, "pieces": self._pieces, "chat": self._chat}[spec.layout]
        ids, places = make(problem, steps)
        if any(a >= b for a, b in zip([-1, *places], places, strict=False)):
            raise UserError(f"verifier spec {spec.name!r}: two steps would be read at one token of this tokenizer")
        return ids[: places[-1] + 1], places

    def opening(self, problem: str) -> list[int]:
        """The ids that every answer to a problem starts with: the common prefix of two unlike answers."""
        one, other = (self.encode(problem, [step])[0] for step in ("0", "Z"))
        return one[: num_common(one, other)]

    # -- the layouts -----------------------------------------------------------------------------

    def _text(self, problem: str, steps: Sequence[str]) -> Encoded:
        text, spans = self._fill(self.spec.problem, problem=problem), []
        for index, step in enumerate(steps):
            text += (self.spec.between if index else "") + self._fill(self.spec.step, step=step)
            spans.append((len(text), len(text) + len(self.spec.tag)))
            text += self.spec.tag
        return self._at_tags(text, spans)

    def _pieces(self, problem: str, steps: Sequence[str]) -> Encoded:
        spec, places = self.spec, []
        ids = [self.tokenizer.token_to_id(self.bos)] if spec.has_bos and self.bos is not None else []
        ids += self._piece(self._fill(spec.problem, problem=problem))
        tag = self._piece(spec.tag)
        tag = tag[-1:] if spec.tag_ids_kept == "last" else tag
        for step in steps:
            text = self._fill(spec.step, step=step)
            for piece in text.split("\n") if spec.split_lines else [text]:
                ids += self._piece(piece) if piece else ()
                ids += tag
            places.append(len(ids) - 1)
        return ids, places

    def _chat(self, problem: str, steps: Sequence[str]) -> Encoded:
        spec, said = self.spec, "".join([problem, *steps])
        mark = next(filter(lambda mark: mark not in said, map(chr, _MARKS)))
        tag = mark + spec.tag
        question = self._fill(spec.problem, problem=problem)
        texts = [self._fill(spec.step, step=step) for step in steps]
        messages = [{"role": "system", "content": spec.system}] if spec.system is not None else []
        if spec.turns == "alternating":
            texts[0] = question + texts[0]
            for text in texts:
                messages.append({"role": "user", "content": text})
                messages.append({"role": "assistant", "content": tag})
        else:
            messages.append({"role": "user", "content": question})
            messages.append({"role": "assistant", "content": "".join(text + tag for text in texts)})
        parts = self.template.render(messages).split(mark)
        if len(parts) != len(steps) + 1:
            raise UserError(f"{self.template.origin} does not keep what an assistant says, as {spec.name!r} needs it")
        starts, length = [], 0
        for part in parts[:-1]:
            length += len(part)
            starts.append(length)
        return self._at_tags("".join(parts), [(start, start + len(spec.tag)) for start in starts])

    # -- parts of them ---------------------------------------------------------------------------

    def _at_tags(self, text: str, spans: Sequence[tuple[int, int]]) -> Encoded:
        """The ids of a whole text, and the tokens that the characters of the tags give for scores."""
        encoding = self.tokenizer.encode(text, add_special_tokens=self.spec.special_tokens)
        if self.spec.score_at == "last":
            return encoding.ids, [len(encoding.ids) - 1]
        if self.spec.score_at == "before-tag":
            return encoding.ids, [_token_at(encoding, start, is_last=False) - 1 for start, _ in spans]
        return encoding.ids, [_token_at(encoding, end - 1, is_last=True) for _, end in spans]

    def _encode_piece(self, text: str) -> tuple[int, ...]:
        return tuple(self.tokenizer.encode(text, add_special_tokens=self.spec.special_tokens).ids)

    def _fill(self, form: str, problem: str = "", step: str = "") -> str:
        # Not str.format: the form is a user's, and what it is filled with holds braces of its own.
        parts = {"{problem}": problem, "{step}": step, "{bos}": self.bos or ""}
        name = next((name for name in parts if name in form), None)
        if name is None:
            return form
        before, _, after = form.partition(name)
        return self._fill(before, problem, step) + parts[name] + self._fill(after, problem, step)

    def _check_tag(self) -> None:
        """Raises UserError where the tag does not end in the token that the format reads."""
        if not self.spec.tag_ids:
            return
        ids, places = self.encode("1+1", ["2"])
        if (found := ids[places[0]]) not in self.spec.tag_ids:
            wanted = " or ".join(map(str, self.spec.tag_ids))
            raise UserError(
                f"verifier spec {self.spec.name!r} reads token {wanted}, in this tokenizer the tag "
                f"{self.spec.tag!r} ends in token {found}"
            )


def num_common(one: Sequence[int], other: Sequence[int]) -> int:
    """The length of the longest common prefix of two sequences."""
    length = min(len(one), len(other))
    if one[:length] == other[:length]:
        return length
    return next(i for i in range(length) if one[i] != other[i])


def _token_at(encoding: Encoding, character: int, is_last: bool) -> int:
    """The first or last token that covers a character; one character may be several tokens (its bytes)."""
    offsets = encoding.offsets
    order = range(len(offsets) - 1, -1, -1) if is_last else range(len(offsets))
    for index in order:
        start, end = offsets[index]
        if start <= character < end:
            return index
    raise UserError(f"this tokenizer drops character {character} of a verifier's text, at which a score is read")


def _keep_offsets_whole(tokenizer: Tokenizer) -> None:
    """Makes the offsets of a token cover its white space, which byte-level tokenizers may trim. No id changes."""
    processor = tokenizer.post_processor
    if processor is None:
        return
    state = processor.__getstate__()
    whole = state.replace(b'"trim_offsets":true', b'"trim_offsets":false')
    if whole != state:
        processor.__setstate__(whole)
        tokenizer.post_processor = processor
