"""Which answers are right, and which are the same: exact where it can be, else by math-verify."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from enum import StrEnum

from engine.errors import UserError
from engine.tasks.answers import answer_key
from engine.tasks.exact import are_equal
from engine.tasks.grading_pool import WorkerPool
from engine.tasks.notation import normalise

_MAX_CHARACTERS = 2000  # of an answer that math-verify is asked about
_MAX_KEPT = 100_000  # verdicts


class Verdict(StrEnum):
    """Of one answer. "error": the grader cannot tell (time-out, memory, a gold answer it does not understand)."""

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

    Answers that are written alike, and plain numbers, are compared at once; the rest goes to processes that
    are started when first needed and end with this object, with this process, or at `close`. A comparison
    that takes over `seconds`, or over `max_bytes` of memory, is an error. An answer of over 2,000 characters
    which is no plain number and not the gold answer's text is incorrect.
    """

    def __init__(self, *, num_workers: int | None = None, seconds: float = 5.0, max_bytes: int = 512 << 20) -> None:
        num_workers = min(4, os.cpu_count() or 1) if num_workers is None else num_workers
        for name, value in (("num_workers", num_workers), ("seconds", seconds), ("max_bytes", max_bytes)):
            if value <= 0:
                raise UserError(f"{name} of a grader must be over 0, got {value}")
        self.seconds = seconds
        self.pool = WorkerPool(num_workers, max_bytes)
        self._kept: dict[tuple[str, str], Verdict] = {}  # by the keys of (gold, answer)
        self._broken: set[str] = set()  # keys of answers that cannot be compared with anything
        self._lock = threading.Lock()

    def grade(self, gold: str, answer: str) -> Verdict:
        """The verdict on one answer."""
        return self.grade_all([(gold, answer)])[0]

    def grade_all(self, pairs: Sequence[tuple[str, str]]) -> list[Verdict]:
        """The verdicts on pairs of (gold, answer), in order; the processes share the work."""
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
                verdict = self._kept.get(keys) or _at_once(*keys)
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
                verdicts[keys] = self._keep(keys, _VERDICTS[is_equal])
        return [verdicts[keys] for keys in asked]

    def classify(self, answers: Sequence[str]) -> list[int]:
        """The class of each answer: the index of the first answer that it is equal to.

        An answer that the grader cannot compare is in a class of its own, with those written like it.
        """
        keys = [answer_key(answer) for answer in answers]
        class_of: dict[str, int] = {}
        firsts: list[int] = []  # of every class, but those that cannot be compared
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
        """Whether it is not this answer's fault that a comparison failed: so simple a one works."""
        is_comparable = self.grade("0", answer) is not Verdict.ERROR
        if not is_comparable:
            self._broken.add(answer_key(answer))
        return is_comparable

    def close(self) -> None:
        """Ends the processes; the grader can still be used, and starts new ones."""
        with self._lock:
            self.pool.close()

    def _keep(self, keys: tuple[str, str], verdict: Verdict) -> Verdict:
        if len(self._kept) >= _MAX_KEPT:
            del self._kept[next(iter(self._kept))]  # the oldest
        self._kept[keys] = verdict
        return verdict


def _at_once(gold: str, answer: str) -> Verdict | None:
    """The verdict that two keys give by themselves, or None."""
    if not gold:
        return Verdict.ERROR
    if gold == answer:
        return Verdict.CORRECT
    if not answer:
        return Verdict.INCORRECT
    if (is_equal := are_equal(gold, answer)) is not None:
        return _VERDICTS[is_equal]
    if max(len(gold), len(answer)) > _MAX_CHARACTERS:
        return Verdict.ERROR if len(gold) > _MAX_CHARACTERS else Verdict.INCORRECT
    return None
