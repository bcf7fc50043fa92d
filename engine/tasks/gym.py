"""The data sets of reasoning-gym as tasks: problems that are generated, each scored by its data set.

Source: Stojanovski et al., "REASONING GYM: Reasoning Environments for Reinforcement Learning with Verifiable Rewards",
2025. Items are made and scored in grading processes (`gym_scorer`), never in this one.
"""

from __future__ import annotations

import functools
import json
import os
import random
import re
import threading
from collections.abc import Hashable, Iterator, Sequence

from engine.counts import shown
from engine.errors import UserError
from engine.prompts.boxed import after_thoughts
from engine.tasks.answers import boxed, extract_expression
from engine.tasks.grading_pool import Allowance, WorkerPool
from engine.tasks.task import Task, unjudged
from engine.types import Problem

# Where the seeds of a split's items are drawn from; below 2**32 - 1, which is the most that numpy takes.
_SEEDS = {"train": (0, 1 << 31), "validation": (1 << 31, 3 << 30), "test": (3 << 30, (1 << 32) - 1)}
_ITEM_SECONDS = 60.0  # of CPU time, to make an item
_SCORE_SECONDS = 5.0
_PROBLEM_SECONDS = 120.0  # for all answers to one problem
_MAX_BYTES = 1 << 30
_MAX_ANSWER = 20_000  # characters; a longer one is wrong: the longest references have some thousands
_MAX_CACHED = 100_000  # verdicts
_TAGGED = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
_TEXT = re.compile(r"\\(?:text|textbf|mathrm|texttt)\{([^{}]*)\}")


@functools.cache
def gym_task(name: str) -> Task:
    """The task `gym:name`; `name` is a data set's, with options after colons, as in "chain_sum:max_terms=3".

    An answer is right if its data set gives it a score of at least 1. Raises UserError for a name, an option or a value
    that reasoning-gym lacks, and if it is not installed.
    """
    if not name:
        raise UserError("a task of reasoning-gym is written gym:NAME, such as gym:chain_sum, got no name")
    data = _DataSet(*name.partition(":")[::2])
    facts = data.describe()

    def problems(split: str, seed: int) -> Iterator[Problem]:
        for index, item_seed in enumerate(_item_seeds(split, seed)):
            item = data.item(item_seed)
            answer = json.dumps({"seed": item_seed, "answer": item["answer"]}, ensure_ascii=False)
            answer = answer if facts["has_own_scorer"] else item["answer"]
            metadata = {"seed": item_seed}
            yield Problem(f"gym:{data.name}/{split}/{seed}/{index}", item["question"].strip(), answer, metadata)

    return Task(
        name=f"gym:{name}",
        delimiter="\n",
        max_tokens=1024,
        prompt=str.strip,
        extract=functools.partial(extract_answer, is_long=facts["is_long"]),
        first_wrong_step=unjudged(f"gym:{name}"),
        problems=problems,
        splits=tuple(_SEEDS),
        is_endless=True,
        gold=data.check_gold if facts["has_own_scorer"] else str.strip,
        compare=data.compare if facts["has_own_scorer"] else None,
        problem_columns=("question", "problem", "prompt"),
    )


def extract_answer(completion: str, is_long: bool = False) -> str | None:
    r"""What the last `<answer>…</answer>` holds, else the last filled box, else what is stated; None if nothing is.

    Stated is what follows "answer is" and the like, and else the last line, or the last paragraph of an answer that
    `is_long`, such as a grid. Thoughts do not count.
    """
    text = after_thoughts(completion)
    if tagged := _TAGGED.findall(text):
        return tagged[-1].strip() or None
    if (content := boxed(text)) is not None:
        whole = _TEXT.fullmatch(content.strip())
        return (whole[1] if whole else content).strip() or None
    if (stated := extract_expression(text)) is not None:
        return stated
    parts = re.split(r"\n\s*\n" if is_long else r"\n", text.strip())
    return parts[-1].strip() or None


def _item_seeds(split: str, seed: int) -> Iterator[int]:
    """Distinct seeds of items; the first n do not depend on how many are taken, and no two splits share one."""
    rng = random.Random(f"gym/{split}/{seed}")
    seen: set[int] = set()
    while True:
        item_seed = rng.randrange(*_SEEDS[split])
        if item_seed not in seen:
            seen.add(item_seed)
            yield item_seed


class _Workers:
    """The grading processes of all tasks of reasoning-gym, which start when first needed; one thread at a time."""

    def __init__(self) -> None:
        self.pool = WorkerPool(min(4, os.cpu_count() or 1), _MAX_BYTES, "gym")
        self._lock = threading.Lock()

    def ask(
        self, requests: Sequence[Sequence[object]], seconds: float, allowances: Sequence[Allowance]
    ) -> list[str | None]:
        with self._lock:
            return self.pool.ask(requests, seconds, allowances)


_WORKERS = _Workers()


class _DataSet:
    """A data set with its options: its items by their seeds, and verdicts on answers to them."""

    def __init__(self, name: str, options: str) -> None:
        self.name, self.options = name, options
        self.full_name = f"gym:{name}:{options}" if options else f"gym:{name}"
        self._cache: dict[tuple[str, str], bool | None] = {}

    def describe(self) -> dict[str, bool]:
        return self._made("describe", "an item")

    def item(self, seed: int) -> dict[str, str | None]:
        return self._made("item", f"the item of seed {seed}", seed)

    def _made(self, kind: str, what: str, *arguments: object) -> dict:
        allowance = Allowance(float("inf"))
        (reply,) = _WORKERS.ask([(kind, self.name, self.options, *arguments)], _ITEM_SECONDS, [allowance])
        if reply is None:
            raise UserError(
                f"task {shown(self.full_name)}: {what} takes over {_ITEM_SECONDS:g} seconds or {_MAX_BYTES >> 20} MiB: "
                "easier options are needed"
            )
        return self._read(reply)

    def _read(self, reply: str) -> dict:
        read = json.loads(reply)
        if "error" in read:
            raise UserError(f"task {shown(self.full_name)}: {read['error']}")
        return read

    def check_gold(self, answer: str) -> str:
        """A gold answer of this data set, which names its item. Raises UserError for any other."""
        self._item_of(answer)
        return answer

    def _item_of(self, gold: str) -> tuple[int, str | None]:
        """Seed and reference answer."""
        try:
            read = json.loads(gold)
            seed, answer = read["seed"], read["answer"]
        except (ValueError, KeyError, TypeError, RecursionError):
            seed = answer = None
        if type(seed) is not int or not isinstance(answer, str | None):
            raise UserError(
                f"answers to {self.full_name} are scored with their item, so that a gold answer must be like "
                f'{{"seed": 7, "answer": "..."}}, as rows of ttc search have it, got {shown(gold)}'
            )
        return seed, answer

    def compare(
        self, pairs: Sequence[tuple[str, str]], problems: Sequence[Hashable] | None = None
    ) -> list[bool | None]:
        """Whether each answer to the item that its gold answer names has a score of at least 1; None over the limits.

        Raises UserError for a gold answer that is not of this data set, or was made with other options.
        """
        problems = [gold for gold, _ in pairs] if problems is None else problems
        allowance_of = {problem: Allowance(_PROBLEM_SECONDS) for problem in problems}
        unknown = {pair: allowance_of[problem] for pair, problem in zip(pairs, problems, strict=True)}
        found = {pair: self._cache[pair] for pair in unknown if pair in self._cache}
        found |= {(gold, answer): False for gold, answer in unknown if len(answer) > _MAX_ANSWER}
        asked = [pair for pair in unknown if pair not in found]
        requests = [("score", self.name, self.options, *self._item_of(gold), answer) for gold, answer in asked]
        replies = _WORKERS.ask(requests, _SCORE_SECONDS, [unknown[pair] for pair in asked])
        for pair, reply in zip(asked, replies, strict=True):
            found[pair] = self._verdict(pair, reply)
            if reply is not None:
                self._remember(pair, found[pair])
        return [found[pair] for pair in pairs]

    def _verdict(self, pair: tuple[str, str], reply: str | None) -> bool | None:
        if reply in ("1", "0", None):
            return {"1": True, "0": False}.get(reply or "")
        try:
            self._read(reply)
        except UserError as error:
            raise UserError(
                f"{error}: the gold answer was made with other options or another version of reasoning-gym, "
                f"got {shown(pair[0])}"
            ) from None
        raise AssertionError(f"no verdict: {reply}")

    def _remember(self, pair: tuple[str, str], verdict: bool | None) -> None:
        if len(self._cache) >= _MAX_CACHED:
            del self._cache[next(iter(self._cache))]  # the oldest
        self._cache[pair] = verdict
