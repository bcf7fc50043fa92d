"""A policy and a verifier without models, whose tokens are characters, and a driver for coroutines."""

from __future__ import annotations

import hashlib
import random
import types
from collections.abc import Callable, Coroutine, Mapping

from engine.config import SearchConfig
from engine.search import Answers, BeamSearch, Models, branch_key, run_search
from engine.types import Problem, Sampling, SearchResult, Step
from engine.verifiers import Verifier

PROBLEM = Problem("p", "prompt;", answer="1")
EOS = 0  # every other token is the code of a character


@types.coroutine
def pause():
    """What a model's forward is to a search: a point at which it is suspended."""
    yield


def drive(coroutine: Coroutine):
    """Runs a coroutine to its end; returns its result."""
    while True:
        try:
            coroutine.send(None)
        except StopIteration as stop:
            return stop.value


class FakeBranch:
    """A branch that asserts it is closed once and not used afterwards. `text` excludes the prompt, and the
    attempts of `history`, which are texts."""

    def __init__(self, owner, text: str = "", history: tuple[str, ...] = ()) -> None:
        self.owner, self.text, self.history, self.is_open = owner, text, history, True
        owner.num_open += 1
        owner.num_opened += 1

    @property
    def token_ids(self) -> list[int]:
        return [*map(ord, PROBLEM.prompt + self.text)]

    def fork(self, num_branches: int) -> list[FakeBranch]:
        assert self.is_open
        self.owner.forks.append(num_branches)
        return [FakeBranch(self.owner, self.text, self.history) for _ in range(num_branches)]

    def close(self) -> None:
        self.owner.close_branch(self)


class Fake:
    """What both fakes count; `fail_at` is the index of the call that raises."""

    def __init__(self, fail_at: int | None = None) -> None:
        self.num_open = self.num_opened = self.num_calls = 0
        self.forks: list[int] = []
        self.opened: list[tuple[str, ...]] = []  # the history of every branch that was opened
        self.fail_at = fail_at

    def close_branch(self, branch: FakeBranch) -> None:
        assert branch.is_open, "closed twice"
        branch.is_open = False
        self.num_open -= 1

    async def call(self) -> None:
        self.num_calls += 1
        await pause()
        if self.num_calls - 1 == self.fail_at:
            raise RuntimeError("fake failure")

    async def open(self, _, *, ledger, history=()) -> FakeBranch:
        await self.call()
        self.ledger = ledger
        self.opened.append(texts_of(history))
        return FakeBranch(self, history=texts_of(history))


def texts_of(history) -> tuple[str, ...]:
    return tuple("".join(step.text for step in attempt) for attempt in history)


class FakePolicy(Fake):
    """`draw(key, text, new_text)` names the next step of a branch that has said `text`, `new_text`
    of it in this call; key is None if greedy. A step without "\\n" ends the text; "!" is a NaN."""

    def __init__(
        self, draw: Callable[[int | None, str, str], str], fail_at: int | None = None, context: int = 10_000
    ) -> None:
        super().__init__(fail_at)
        self.draw, self.context = draw, context  # in characters, an end of text being one
        self.extends: list[dict] = []
        self.state: list[float] = [1.0, -1.0]  # at the end of a prompt

    def ask_again(self, branch: FakeBranch, prompt: str) -> None:
        assert branch.is_open
        branch.history, branch.text = (*branch.history, branch.text), ""

    def num_fitting(self, prompt: str, history, max_tokens: int) -> int:
        for first in range(len(history)):
            held = sum(len(prompt) + len(text) + 1 for text in texts_of(history[first:]))
            if held + len(prompt) + max_tokens <= self.context:
                return len(history) - first
        return 0

    async def prompt_state(self, branch) -> list[float]:
        assert branch.is_open
        await self.call()
        self.ledger.add("prefilled", len(PROBLEM.prompt))
        return self.state

    async def extend(self, branches, *, keys, sampling, stop_at_step, max_tokens, purpose="generated", priorities=None):
        self.extends.append(
            {"num_branches": len(branches), "purpose": purpose, "max_tokens": list(max_tokens)}
            | {"keys": list(keys), "priorities": priorities, "sampling": sampling, "num_open": self.num_open}
            | {"histories": [branch.history for branch in branches]}
        )
        assert min(max_tokens) >= 1
        assert len(branches) == len(keys) == len(max_tokens)
        assert all(branch.is_open for branch in branches)
        await self.call()
        steps = []
        for branch, key, room in zip(branches, keys, max_tokens, strict=True):
            key = None if sampling.temperature == 0 else key
            steps.append(self._sample(branch, key, room, stop_at_step))
            self.ledger.add(purpose, sum(len(step.token_ids) for step in steps[-1]))
        return steps

    def _sample(self, branch: FakeBranch, key: int | None, room: int, stop_at_step: bool) -> list[Step]:
        start, steps = branch.text, []
        while not steps or (steps[-1].finish == "step" and room > 0 and not stop_at_step):
            text = self.draw(key, branch.text, branch.text[len(start) :])
            finish = "error" if text == "!" else "step" if text.endswith("\n") else "eos"
            tokens = [*map(ord, text)] + [EOS] * (finish == "eos")
            if len(tokens) > room:
                tokens, text, finish = tokens[:room], text[:room], "length"
            room -= len(tokens)
            branch.text += text
            steps.append(Step(tuple(tokens), text, finish, trunk_score=0.5))
        if steps[-1].finish == "step" and not stop_at_step:  # the limit fell on a step's end
            steps[-1] = Step(steps[-1].token_ids, steps[-1].text, "length")
        return steps


class FakeVerifier(Fake, Verifier):
    """Scores a step by `judge`, given all the text up to its end; `histories` are those it was judged behind."""

    def __init__(self, judge: Callable[[str], float], fail_at: int | None = None, reads_history: bool = False) -> None:
        super().__init__(fail_at)
        self.reads_history, self.judges = reads_history, "answers" if reads_history else "steps"
        self.histories: list[tuple[str, ...]] = []
        self.judge = judge
        self.judged: list[str] = []  # every text that was scored

    async def score(self, branches, steps):
        assert len(branches) == len(steps) > 0
        assert all(branch.is_open for branch in branches)
        await self.call()
        return [[self._score(b, step) for step in new] for b, new in zip(branches, steps, strict=True)]

    def _score(self, branch: FakeBranch, step: Step) -> float:
        assert step.text, "an empty step was sent to the verifier"
        self.histories.append(branch.history)
        if self.reads_history:  # the answer joins the attempts
            branch.history = (*branch.history, step.text)
            self.judged.append(step.text)
            return self.judge(step.text)
        branch.text += step.text
        self.judged.append(branch.text)
        return self.judge(branch.text)


def random_draw(key: int | None, text: str, new_text: str) -> str:
    """A grammar of short lines of digits; one line in four ends the text, few are long."""
    rng = random.Random(f"{key}/{text}")
    line = "".join(rng.choice("123") for _ in range(rng.choice([1, 1, 1, 2, 6])))
    return line if rng.random() < 0.25 else line + "\n"


def hashed_judge(text: str) -> float:
    """A score from a coarse grid, so that ties are common."""
    return hashlib.blake2b(text.encode(), digest_size=1).digest()[0] % 8 / 8


def scripted_draw(
    script: Mapping[tuple[int, ...], str], greedy: Mapping[str, str] | None = None, seed: int = 0
) -> Callable[[int | None, str, str], str]:
    """Steps by address (several lines for a whole answer), greedy ones by the text before them."""
    by_key = {branch_key(seed, PROBLEM.id, address): text for address, text in script.items()}

    def draw(key: int | None, text: str, new_text: str) -> str:
        if key is None:
            return (greedy or {})[text]
        rest = by_key[key][len(new_text) :]
        return rest.splitlines(keepends=True)[0] if rest else ""

    return draw


def extract(text: str) -> str:
    """The last line."""
    return text.strip().rpartition("\n")[2]


def search(
    strategy,
    budget: int,
    draw: Callable[[int | None, str, str], str] = random_draw,
    judge: Callable[[str], float] | Mapping[str, float] = hashed_judge,
    **options,
) -> SearchResult:
    """A whole search on fakes; asserts that it leaves nothing open."""
    policy = options.pop("policy", None) or FakePolicy(draw)
    judge = judge.__getitem__ if isinstance(judge, Mapping) else judge
    verifier = options.pop("verifier", None) or (FakeVerifier(judge) if strategy.is_scored else None)
    result = drive(start(strategy, policy, verifier, budget=budget, **options))
    assert policy.num_open == 0
    assert verifier is None or verifier.num_open == 0
    return result


def start(strategy, policy, verifier, *, problem: Problem = PROBLEM, **options) -> Coroutine:
    """A search with defaults for all that a test does not name."""
    reviser, ledger, going_on = (options.pop(name, None) for name in ("reviser", "ledger", "start"))
    config, answers = arguments(**options)
    models = Models(policy, verifier, reviser)
    return run_search(problem, strategy, models, config, answers, ledger=ledger, start=going_on)


def arguments(**options) -> tuple[SearchConfig, Answers]:
    """The values that a search is given, from their fields; with defaults for those that a test does not name."""
    answers = {name: options.pop(name) for name in ("extract", "grade", "classify") if name in options}
    defaults = {"seed": 0, "sampling": Sampling(), "max_tokens": 60}
    return SearchConfig(**{**defaults, **options}), Answers(**{"extract": extract, **answers})


def with_lone_ends() -> SearchResult:
    """Of a beam search whose answers close their last line first: a step more, of the end of text alone."""
    judge = {f"={digit}\n": digit / 10 for digit in range(10)}
    return search(BeamSearch(width=1), 4, lambda key, text, new: "" if text else f"={key % 10}\n", judge)
