"""The engines of the comparison at equal FLOPs: ours, and transformers' `generate` and `generate_batch`.

A side runs a strategy on all problems with a number of answers each and says what that took. FLOPs are those of the
forwards on real tokens, padding not counted: ours are the ledger's; transformers computes the text of every beam
again at each step, and pays for it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field

import torch
from transformers import ContinuousBatchingConfig, GenerationConfig

from benchmarks.throughput.plain import Beam, BeamSearchResult, PlainBeamSearch
from benchmarks.timing import Missing, Run, timed
from engine import BeamSearch, BestOfN, Engine, Lookahead, Majority, Problem, Sampling
from engine.accounting import ModelShape
from engine.accounting.flops import forward_flops
from engine.loading import clear_caches
from engine.search.protocols import Strategy

WIDTH = 4
PAGE_TOKENS = 256  # of generate_batch's cache
STRATEGIES: dict[str, Strategy] = {
    strategy.name: strategy for strategy in (Majority(), BestOfN(), BeamSearch(WIDTH), Lookahead(WIDTH, lookahead=1))
}
ENGINES = ("ours", "generate", "generate_batch")


@dataclass
class Spent:
    """What a run of all problems took."""

    num_tokens: int = 0  # sampled, those of rollouts too
    flops: int = 0
    longest: int = 0  # tokens of one problem that had to be sampled one after the other
    num_scorings: int = 0  # verifier forwards of one problem that had to follow one another

    def add(self, other: Spent) -> None:
        """Adds a run of another problem; the two could have run side by side."""
        self.num_tokens += other.num_tokens
        self.flops += other.flops
        self.longest = max(self.longest, other.longest)
        self.num_scorings = max(self.num_scorings, other.num_scorings)


Side = Callable[[Strategy, int, int], Spent]  # (strategy, answers per problem, seed)


def ours(engine: Engine, problems: list[Problem], max_tokens: int) -> Side:
    """All problems searched at the same time, from cold prefix caches."""

    def run(strategy: Strategy, num_answers: int, seed: int) -> Spent:
        clear_caches(engine)
        results = engine.search(
            problems, strategy, num_answers, seed=seed, sampling=Sampling(temperature=1.0), max_tokens=max_tokens
        )
        total = Spent()
        for result in results:
            tokens = result.ledger.tokens
            total.add(
                Spent(
                    tokens["generated"] + tokens["lookahead"],
                    result.ledger.total_flops,
                    max(candidate.num_tokens for candidate in result.candidates),
                    max(len(candidate.scores) for candidate in result.candidates) if strategy.stop_at_step else 1,
                )
            )
        return total

    return run


@dataclass
class CountedSearch(PlainBeamSearch):
    """The pipeline of benchmarks/throughput/plain.py with its bill, either way to generate, and rollouts."""

    policy_shape: ModelShape | None = None
    prm_shape: ModelShape | None = None
    ends: Collection[int] = ()  # tokens that end a step, where they are more than the newline
    is_batched: bool = False  # generate_batch instead of generate
    lookahead: int = 0
    spent: Spent = field(default_factory=Spent)
    max_length: int = 0  # of prompt and completion, of the problem at hand
    max_seconds: float = math.inf  # after which no further call is made
    started: float = field(default_factory=time.perf_counter)

    @property
    def delimiters(self) -> Collection[int]:
        return self.ends or super().delimiters

    def __call__(self, prompt: list[int]) -> BeamSearchResult:
        self.max_length = len(prompt) + self.max_tokens
        return super().__call__(prompt)

    @torch.inference_mode()
    def answers(self, prompt: list[int], is_scored: bool) -> None:
        """`budget` whole answers, scored once at their end."""
        new = self.complete([prompt] * self.budget, self.max_tokens, [self.eos])
        if is_scored:
            self.score([Beam(prompt + cut(tokens, (self.eos,))) for tokens in new])

    def complete(
        self, prompts: list[list[int]], num_new: int, stops: list[int], *, is_greedy: bool = False
    ) -> list[list[int]]:
        lasted = time.perf_counter() - self.started
        if lasted > self.max_seconds:
            raise Missing(f"{self.budget} answers a problem were not through after {lasted:.1f} s")
        generate = self.complete_batch if self.is_batched else super().complete
        known = frozenset(stops)
        new = [cut(tokens, known) for tokens in generate(prompts, num_new, stops, is_greedy=is_greedy)]
        for prompt, tokens in zip(prompts, new, strict=True):
            # The last sampled token is not fed.
            self.spent.flops += forward_flops(self.policy_shape, 0, len(prompt) + len(tokens) - 1, len(tokens))
            self.spent.num_tokens += len(tokens)
        self.spent.longest += max(map(len, new))
        return new

    def complete_batch(
        self, prompts: list[list[int]], num_new: int, stops: list[int], *, is_greedy: bool
    ) -> list[list[int]]:
        """The same as `complete`, by continuous batching over a paged cache. Raises UserError for lost requests."""
        config = GenerationConfig(
            do_sample=not is_greedy,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            max_new_tokens=num_new,
            eos_token_id=stops,
            pad_token_id=self.pad,
        )
        options = {}
        if self.policy.device.type == "cpu":  # else it fills the machine's memory with pages, at every call
            pages = sum(2 + (len(prompt) + num_new) // PAGE_TOKENS for prompt in prompts)
            sizes = ContinuousBatchingConfig(num_blocks=8 + pages, max_batch_tokens=1024)
            options["continuous_batching_config"] = sizes
        with torch.inference_mode(False), torch.no_grad():  # it writes to buffers of its own from another thread
            outputs = list(self.policy.generate_batch(prompts, config, **options).values())
        errors = [output.error for output in outputs if output.error is not None]
        if len(outputs) < len(prompts) or errors:
            raise RuntimeError(f"generate_batch gave {len(outputs)} of {len(prompts)} answers, errors {errors[:1]}")
        return [list(output.generated_tokens) for output in outputs]

    def score(self, beams: list[Beam]) -> None:
        """The verifier's scores; with lookahead those at the end of greedy rollouts of the steps that go on."""
        self.score_once(beams)
        going = [beam for beam in beams if beam.finish == "step"] if self.lookahead else []
        ahead = [Beam(beam.token_ids, finish="step") for beam in going]
        for _ in range(self.lookahead):
            live = [i for i, beam in enumerate(ahead) if beam.finish == "step"]
            if not live:
                return
            children = self.expand([ahead[i] for i in live], self.max_length, is_greedy=True)
            for i, child in zip(live, children, strict=True):
                ahead[i] = child
        finished = [i for i, beam in enumerate(ahead) if beam.finish != "length"]
        if finished:
            self.score_once([ahead[i] for i in finished])
            for i in finished:
                going[i].score = ahead[i].score

    def score_once(self, beams: list[Beam]) -> None:
        super().score(beams)
        self.spent.flops += sum(forward_flops(self.prm_shape, 0, len(beam.token_ids), 1) for beam in beams)
        self.spent.num_scorings += 1


def cut(tokens: list[int], stops: Collection[int]) -> list[int]:
    """Tokens up to the first stop token, which is kept: `generate` pads behind it."""
    for index, token in enumerate(tokens):
        if token in stops:
            return tokens[: index + 1]
    return tokens


def theirs(make: Callable[..., CountedSearch], prompts: list[list[int]]) -> Side:
    """transformers on one problem after the other; `make(budget=…, lookahead=…)` gives a fresh pipeline."""

    def run(strategy: Strategy, num_answers: int, seed: int) -> Spent:
        torch.manual_seed(seed)
        total, started = Spent(), time.perf_counter()
        num_slots = strategy.groups(num_answers)[1]
        for prompt in prompts:
            search = make(budget=num_slots, lookahead=strategy.lookahead, started=started)
            if strategy.stop_at_step:
                search(prompt)
            else:
                search.answers(prompt, strategy.is_scored)
            total.add(search.spent)
        return total

    return run


def matched(side: Side, strategy: Strategy, target: int, max_seconds: float) -> int:
    """The number of answers whose FLOPs come closest to the target, of three tries; warms up.

    The first step is by proportion, the second along the line through both tries. Raises Missing where the run it
    leads to would take more than `max_seconds`.
    """
    least = getattr(strategy, "width", 1) * (strategy.lookahead + 1)
    num_answers = max(least, 8)
    tries: dict[int, int] = {}  # FLOPs by answers
    for _ in range(3):
        run, spent = timed_run(side, strategy, num_answers, seed=0)
        tries[num_answers] = spent.flops
        per_answer, start = spent.flops / num_answers, 0.0
        if len(tries) > 1:
            (few, less), (many, more) = sorted(tries.items())[:1] + sorted(tries.items())[-1:]
            if more > less:
                per_answer = (more - less) / (many - few)
                start = less - per_answer * few
        wanted = max(least, round((target - start) / per_answer))
        predicted = run.seconds * wanted / num_answers
        if predicted > max_seconds and run.seconds > max_seconds / 4:
            raise Missing(
                f"{num_answers} answers a problem took {run.seconds:.1f} s, the {wanted} that match the target would "
                f"take more than {max_seconds:g} s"
            )
        if wanted in tries:
            break
        num_answers = wanted
    return min(tries, key=lambda number: abs(tries[number] - target))


def timed_run(side: Side, strategy: Strategy, num_answers: int, seed: int) -> tuple[Run, Spent]:
    """One run and its bill."""
    spent = Spent()

    def call() -> int:
        spent.add(side(strategy, num_answers, seed))
        return spent.num_tokens

    return timed(call), spent
