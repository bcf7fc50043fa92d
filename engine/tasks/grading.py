"""Grades answers and finds equal ones: by their text where that decides, else with math-verify."""

from __future__ import annotations

import os
import threading
import warnings
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from enum import StrEnum
from itertools import chain

from engine.errors import UserError
from engine.tasks.answers import answer_key
from engine.tasks.exact import are_equal
from engine.tasks.grading_pool import Allowance, WorkerPool
from engine.tasks.notation import MAX_CHARACTERS, normalise, without_measure

_MAX_CACHED = 100_000  # verdicts

Keys = tuple[str, str]  # of the (gold, answer) that are compared


class CutShortWarning(UserWarning):
    """Answers to one problem were too many, or too slow, for all of them to be compared."""


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
    more than `seconds` of CPU time, or `max_bytes` of memory, is an error; so are all that are left once those of
    one problem have taken `problem_seconds` together. A call of `classify` makes `max_comparisons` at most: the time
    is a last resort, since it would let the speed of the machine decide. An answer of over 2,000 characters that is
    neither a plain number nor the gold answer's text is incorrect.
    """

    def __init__(
        self,
        *,
        num_workers: int | None = None,
        seconds: float = 5.0,
        problem_seconds: float = 120.0,
        max_comparisons: int = 256,
        max_bytes: int = 512 << 20,
    ) -> None:
        num_workers = min(4, os.cpu_count() or 1) if num_workers is None else num_workers
        options = {"num_workers": num_workers, "seconds": seconds, "problem_seconds": problem_seconds}
        for name, value in {**options, "max_comparisons": max_comparisons, "max_bytes": max_bytes}.items():
            if value <= 0:
                raise UserError(f"{name} of a grader must be over 0, got {value}")
        self.seconds, self.problem_seconds = seconds, problem_seconds
        self.max_comparisons = max_comparisons
        self.pool = WorkerPool(num_workers, max_bytes)
        self._cache: dict[Keys, Verdict] = {}
        self._broken: set[str] = set()  # keys of answers that cannot be compared with anything
        self._lock = threading.Lock()

    def grade(self, gold: str, answer: str) -> Verdict:
        """The verdict on one answer."""
        return self.grade_all([(gold, answer)])[0]

    def grade_all(self, pairs: Sequence[tuple[str, str]], problems: Sequence[Hashable] | None = None) -> list[Verdict]:
        """The verdicts on (gold, answer) pairs, in order; the worker processes share the work.

        `problems` names each pair's problem; without it, a problem is what has one gold answer.
        """
        problems = [gold for gold, _ in pairs] if problems is None else problems
        allowance_of = {problem: Allowance(self.problem_seconds) for problem in problems}
        return self._grade(pairs, [allowance_of[problem] for problem in problems])

    def _grade(self, pairs: Sequence[tuple[str, str]], allowances: Sequence[Allowance]) -> list[Verdict]:
        """The verdicts; `allowances` has one per pair."""
        keys_of = {text: answer_key(text) for text in dict.fromkeys(chain.from_iterable(pairs))}
        asked = [(keys_of[gold], keys_of[answer]) for gold, answer in pairs]
        with self._lock:
            verdicts: dict[Keys, Verdict | None] = {keys: self._known(keys) for keys in dict.fromkeys(asked)}
            unknown = [index for index, keys in enumerate(asked) if verdicts[keys] is None]
            own = {(asked[index], id(allowances[index])): index for index in unknown}  # each pair once per problem
            found = dict(zip(own, self._compare(asked, pairs, allowances, list(own.values())), strict=True))
        return [verdicts[keys] or found[keys, id(allowance)] for keys, allowance in zip(asked, allowances, strict=True)]

    def _known(self, keys: Keys) -> Verdict | None:
        """The verdict that needs no worker process, or None."""
        verdict = self._cache.get(keys) or _verdict_by_keys(*keys)
        return Verdict.ERROR if verdict is None and not self._broken.isdisjoint(keys) else verdict

    def _compare(
        self,
        asked: Sequence[Keys],
        pairs: Sequence[tuple[str, str]],
        allowances: Sequence[Allowance],
        indices: Sequence[int],
    ) -> list[Verdict]:
        """The verdicts of the worker processes on some pairs, remembered unless they ran out of time."""
        if not indices:
            return []
        left = [allowances[index] for index in indices]
        found = self.pool.compare([tuple(map(normalise, pairs[index])) for index in indices], self.seconds, left)
        verdicts = [_VERDICTS[is_equal] for is_equal in found]
        for index, verdict, allowance in zip(indices, verdicts, left, strict=True):
            if verdict is not Verdict.ERROR or not allowance.is_spent:
                self._remember(asked[index], verdict)
        return verdicts

    def classify(self, answers: Sequence[str]) -> list[int]:
        """The class of each answer: the index of the first answer equal to it.

        Each is compared with one answer of each class, the most frequent first. One that the grader cannot compare
        is equal only to those with the same key; so is one that was not compared with all, after a CutShortWarning.
        """
        keys = [answer_key(answer) for answer in answers]
        text_of = dict(zip(reversed(keys), reversed(answers), strict=True))  # the first answer with each key
        classes = _Classes(self, text_of)
        for key, _ in Counter(keys).most_common():
            classes.add(key)
        if classes.num_cut_short:
            warnings.warn(
                f"{classes.num_cut_short} of {len(text_of)} distinct answers were not compared with all others "
                f"(max_comparisons={self.max_comparisons}, problem_seconds={self.problem_seconds:g})",
                CutShortWarning,
                stacklevel=2,
            )
        first_of = {}
        return [first_of.setdefault(classes.class_of[key], index) for index, key in enumerate(keys)]

    def _is_comparable(self, answer: str, allowance: Allowance) -> bool:
        """Whether an answer can be compared with "0"; if so, a failed comparison was due to the other answer.

        Where there is no time left to find out, it can.
        """
        is_comparable = self._grade([("0", answer)], [allowance])[0] is not Verdict.ERROR
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


class _Classes:
    """Classes of equal answers while they are found; each is named after the key that it began with."""

    def __init__(self, grader: Grader, text_of: Mapping[str, str]) -> None:
        self._grader, self._text_of = grader, text_of
        self._allowance = Allowance(grader.problem_seconds)
        self._num_left = grader.max_comparisons
        self._is_comparable: dict[str, bool] = {}  # of each class, in the order in which they are compared with
        self.class_of: dict[str, str] = {}
        self.num_cut_short = 0

    def add(self, key: str) -> None:
        """Finds the class of a key, or makes it one."""
        by_keys = {first: _verdict_by_keys(first, key) for first in self._is_comparable}
        equal = next((first for first, verdict in by_keys.items() if verdict is Verdict.CORRECT), None)
        if equal is None:
            undecided = [first for first, verdict in by_keys.items() if verdict is None and self._is_comparable[first]]
            equal = self._compare(key, undecided)
        self.class_of[key] = key if equal is None else equal

    def _compare(self, key: str, undecided: Sequence[str]) -> str | None:
        """The class with which a comparison finds the key equal, if any; else the key becomes a class."""
        asked = undecided[: self._num_left]
        self._num_left -= len(asked)
        pairs = [(self._text_of[first], self._text_of[key]) for first in asked]
        verdicts = self._grader._grade(pairs, [self._allowance] * len(pairs))
        if Verdict.CORRECT in verdicts:
            return asked[verdicts.index(Verdict.CORRECT)]
        is_failed = Verdict.ERROR in verdicts
        is_out_of_time = is_failed and self._allowance.is_spent
        self.num_cut_short += len(asked) < len(undecided) or is_out_of_time
        if is_failed:
            for first, verdict in zip(asked, verdicts, strict=True):
                self._is_comparable[first] = verdict is not Verdict.ERROR or self._can_compare(first)
        self._is_comparable[key] = not is_failed or self._can_compare(key)
        return None

    def _can_compare(self, key: str) -> bool:
        return self._grader._is_comparable(self._text_of[key], self._allowance)


def _verdict_by_keys(gold: str, answer: str) -> Verdict | None:
    """The verdict that follows from the keys alone, or None."""
    if not gold:
        return Verdict.ERROR
    if gold == answer:
        return Verdict.CORRECT
    if not answer:
        return Verdict.INCORRECT
    (gold, unit), (answer, other_unit) = without_measure(gold), without_measure(answer)
    if unit and other_unit and unit != other_unit:
        return Verdict.INCORRECT
    if gold == answer:
        return Verdict.CORRECT
    if (is_equal := are_equal(gold, answer)) is not None:
        return _VERDICTS[is_equal]
    if max(len(gold), len(answer)) > MAX_CHARACTERS:
        return Verdict.ERROR if len(gold) > MAX_CHARACTERS else Verdict.INCORRECT
    return None
