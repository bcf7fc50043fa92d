"""Grades answers and finds equal ones: by their text where that decides, else with math-verify."""

from __future__ import annotations

import os
import threading
from collections import defaultdict
from collections.abc import Mapping, Sequence
from enum import StrEnum
from itertools import chain

from engine.errors import UserError
from engine.tasks.answers import answer_key
from engine.tasks.exact import are_equal
from engine.tasks.grading_pool import Allowance, WorkerPool
from engine.tasks.notation import MAX_CHARACTERS, normalise

_MAX_CACHED = 100_000  # verdicts

Keys = tuple[str, str]  # of the (gold, answer) that are compared


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
    more than `seconds`, or `max_bytes` of memory, is an error; so are all that are left once those with one gold
    answer, or within one call of `classify`, have taken `problem_seconds` together. An answer of over 2,000
    characters that is neither a plain number nor the gold answer's text is incorrect.
    """

    def __init__(
        self,
        *,
        num_workers: int | None = None,
        seconds: float = 5.0,
        problem_seconds: float = 60.0,
        max_bytes: int = 512 << 20,
    ) -> None:
        num_workers = min(4, os.cpu_count() or 1) if num_workers is None else num_workers
        options = {"num_workers": num_workers, "seconds": seconds, "problem_seconds": problem_seconds}
        for name, value in {**options, "max_bytes": max_bytes}.items():
            if value <= 0:
                raise UserError(f"{name} of a grader must be over 0, got {value}")
        self.seconds, self.problem_seconds = seconds, problem_seconds
        self.pool = WorkerPool(num_workers, max_bytes)
        self._cache: dict[Keys, Verdict] = {}
        self._broken: set[str] = set()  # keys of answers that cannot be compared with anything
        self._lock = threading.Lock()

    def grade(self, gold: str, answer: str) -> Verdict:
        """The verdict on one answer."""
        return self.grade_all([(gold, answer)])[0]

    def grade_all(self, pairs: Sequence[tuple[str, str]]) -> list[Verdict]:
        """The verdicts on (gold, answer) pairs, in order; the worker processes share the work."""
        by_gold = {gold: Allowance(self.problem_seconds) for gold, _ in pairs}
        return self._grade(pairs, by_gold)

    def _grade(self, pairs: Sequence[tuple[str, str]], allowances: Mapping[str, Allowance]) -> list[Verdict]:
        """The verdicts; `allowances` has one for each gold answer."""
        keys_of = {text: answer_key(text) for text in dict.fromkeys(chain.from_iterable(pairs))}
        asked = [(keys_of[gold], keys_of[answer]) for gold, answer in pairs]
        originals = dict(zip(asked, pairs, strict=True))
        with self._lock:
            verdicts = {keys: self._known(keys) for keys in originals}
            unknown = [keys for keys, verdict in verdicts.items() if verdict is None]
            if unknown:
                verdicts |= self._compare(unknown, originals, allowances)
        return [verdicts[keys] for keys in asked]

    def _known(self, keys: Keys) -> Verdict | None:
        """The verdict that needs no worker process, or None."""
        verdict = self._cache.get(keys) or _verdict_by_keys(*keys)
        return Verdict.ERROR if verdict is None and not self._broken.isdisjoint(keys) else verdict

    def _compare(
        self, unknown: Sequence[Keys], originals: Mapping[Keys, tuple[str, str]], allowances: Mapping[str, Allowance]
    ) -> dict[Keys, Verdict]:
        """The verdicts of the worker processes, which are remembered unless they ran out of time."""
        left = [allowances[originals[keys][0]] for keys in unknown]
        found = self.pool.compare([tuple(map(normalise, originals[keys])) for keys in unknown], self.seconds, left)
        verdicts = {keys: _VERDICTS[is_equal] for keys, is_equal in zip(unknown, found, strict=True)}
        for (keys, verdict), allowance in zip(verdicts.items(), left, strict=True):
            if verdict is not Verdict.ERROR or not allowance.is_spent:
                self._remember(keys, verdict)
        return verdicts

    def classify(self, answers: Sequence[str]) -> list[int]:
        """The class of each answer: the index of the first answer equal to it.

        An answer that the grader cannot compare is equal only to those with the same key.
        """
        keys = [answer_key(answer) for answer in answers]
        class_of: dict[str, int] = {}
        firsts: list[int] = []  # the first answer of each class, without those that cannot be compared
        allowance = Allowance(self.problem_seconds)
        for index, key in enumerate(keys):
            if key in class_of or allowance.is_spent:
                class_of.setdefault(key, index)
                continue
            verdicts = self._grade([(answers[first], answers[index]) for first in firsts], _same(allowance))
            equal = [first for first, verdict in zip(firsts, verdicts, strict=True) if verdict is Verdict.CORRECT]
            class_of[key] = equal[0] if equal else index
            if Verdict.ERROR in verdicts:
                firsts = [first for first in firsts if self._is_comparable(answers[first], allowance)]
            if not equal and (Verdict.ERROR not in verdicts or self._is_comparable(answers[index], allowance)):
                firsts.append(index)
        return [class_of[key] for key in keys]

    def _is_comparable(self, answer: str, allowance: Allowance) -> bool:
        """Whether an answer can be compared with "0"; if so, a failed comparison was due to the other answer.

        Where there is no time left to find out, it can.
        """
        is_comparable = self._grade([("0", answer)], _same(allowance))[0] is not Verdict.ERROR
        if is_comparable or allowance.is_spent:
            return True
        self._broken.add(answer_key(answer))
        return False

    def close(self) -> None:
        """Ends the worker processes; later calls start new ones."""
        with self._lock:
            self.pool.close()

    def _remember(self, keys: Keys, verdict: Verdict) -> None:
        if len(self._cache) >= _MAX_CACHED:
            del self._cache[next(iter(self._cache))]  # the oldest
        self._cache[keys] = verdict


def _same(allowance: Allowance) -> Mapping[str, Allowance]:
    """One allowance for whatever gold answer."""
    return defaultdict(lambda: allowance)


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
