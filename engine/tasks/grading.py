"""Grades answers and finds equal ones: by their text where that decides, else with math-verify."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from enum import StrEnum

from engine.errors import UserError
from engine.tasks.answers import answer_key
from engine.tasks.exact import are_equal
from engine.tasks.grading_pool import WorkerPool
from engine.tasks.notation import MAX_CHARACTERS, normalise

_MAX_CACHED = 100_000  # verdicts


class Verdict(StrEnum):
    """The verdict on an answer; "error" for time-out, lack of memory, or a gold answer that cannot be parsed."""

    CORRECT = "correct"
    INCORRECT = "incorrect"
    ERROR = "error"

    @property
    def is_correct(self) -> bool | None:
        """None for an error."""
        return None if self is Verdict.ERROR else self is Verdict.CORRECT


_VERDICTS = {True: Verdict.CORRECT, False: Verdict.INCORRECT, None: Verdict.ERROR}


class Grader:
    """Compares mathematical answers.

    Answers with equal keys, and plain numbers, are compared directly; all others by worker processes, which
    start when first needed and end at `close`, with this object or with this process. A comparison that takes
    more than `seconds`, or `max_bytes` of memory, is an error. An answer of over 2,000 characters that is
    neither a plain number nor the gold answer's text is incorrect.
    """

    def __init__(self, *, num_workers: int | None = None, seconds: float = 5.0, max_bytes: int = 512 << 20) -> None:
        num_workers = min(4, os.cpu_count() or 1) if num_workers is None else num_workers
        for name, value in (("num_workers", num_workers), ("seconds", seconds), ("max_bytes", max_bytes)):
            if value <= 0:
                raise UserError(f"{name} of a grader must be over 0, got {value}")
        self.seconds = seconds
        self.pool = WorkerPool(num_workers, max_bytes)
        self._cache: dict[tuple[str, str], Verdict] = {}  # by the keys of (gold, answer)
        self._broken: set[str] = set()  # keys of answers that cannot be compared with anything
        self._lock = threading.Lock()

    def grade(self, gold: str, answer: str) -> Verdict:
        """The verdict on one answer."""
        return self.grade_all([(gold, answer)])[0]

    def grade_all(self, pairs: Sequence[tuple[str, str]]) -> list[Verdict]:
        """The verdicts on (gold, answer) pairs, in order; the worker processes share the work."""
        keyed: dict[str, str] = {}
        asked: list[tuple[str, str]] = []
        for pair in pairs:
            for text in pair:
                if text not in keyed:
                    keyed[text] = answer_key(text)
            asked.append((keyed[pair[0]], keyed[pair[1]]))
        originals = dict(zip(asked, pairs, strict=True))
        with self._lock:
            unknown = []
            verdicts: dict[tuple[str, str], Verdict] = {}
            for keys in originals:
                verdict = self._cache.get(keys) or _verdict_by_keys(*keys)
                if verdict is None and not self._broken.isdisjoint(keys):
                    verdict = Verdict.ERROR
                if verdict is None:
                    unknown.append(keys)
                else:
                    verdicts[keys] = verdict
            found = (
                self.pool.compare([tuple(map(normalise, originals[keys])) for keys in unknown], self.seconds)
                if unknown
                else []
            )
            for keys, is_equal in zip(unknown, found, strict=True):
                verdicts[keys] = self._remember(keys, _VERDICTS[is_equal])
        return [verdicts[keys] for keys in asked]

    def classify(self, answers: Sequence[str]) -> list[int]:
        """The class of each answer: the index of the first answer equal to it.

        An answer that the grader cannot compare is equal only to those with the same key.
        """
        keys = [answer_key(answer) for answer in answers]
        class_of: dict[str, int] = {}
        firsts: list[int] = []  # the first answer of each class, without those that cannot be compared
        for index, key in enumerate(keys):
            if key in class_of:
                continue
            verdicts = self.grade_all([(answers[first], answers[index]) for first in firsts])
            equal = [first for first, verdict in zip(firsts, verdicts, strict=True) if verdict is Verdict.CORRECT]
            class_of[key] = equal[0] if equal else index
            if Verdict.ERROR in verdicts:
                firsts = [first for first in firsts if self._is_comparable(answers[first])]
            if not equal and (Verdict.ERROR not in verdicts or self._is_comparable(answers[index])):
                firsts.append(index)
        return [class_of[key] for key in keys]

    def _is_comparable(self, answer: str) -> bool:
        """Whether an answer can be compared with "0"; if so, a failed comparison was due to the other answer."""
        is_comparable = self.grade("0", answer) is not Verdict.ERROR
        if not is_comparable:
            self._broken.add(answer_key(answer))
        return is_comparable

    def close(self) -> None:
        """Ends the worker processes; later calls start new ones."""
        with self._lock:
            self.pool.close()

    def _remember(self, keys: tuple[str, str], verdict: Verdict) -> Verdict:
        if len(self._cache) >= _MAX_CACHED:
            del self._cache[next(iter(self._cache))]  # the oldest
        self._cache[keys] = verdict
        return verdict


def _verdict_by_keys(gold: str, answer: str) -> Verdict | None:
    """The verdict that follows from the keys alone, or None."""
    if not gold:
        return Verdict.ERROR
    if gold == answer:
        return Verdict.CORRECT
    if not answer:
        return Verdict.INCORRECT
    if (is_equal := are_equal(gold, answer)) is not None:
        return _VERDICTS[is_equal]
    if max(len(gold), len(answer)) > MAX_CHARACTERS:
        return Verdict.ERROR if len(gold) > MAX_CHARACTERS else Verdict.INCORRECT
    return None
