"""Beam search with a PRM: `Engine.search` against the plain pipeline of plain.py."""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

import torch

from benchmarks.throughput import plain
from benchmarks.throughput.agreement import check_logits, check_score
from benchmarks.timing import alternate, compare, faster, median_seconds
from engine import BeamSearch, Engine, Problem, Sampling
from engine.loading import clear_caches
from engine.reports.progress import Progress
from engine.tasks import take_problems


def beam(policy: Path, prm: Path, args: argparse.Namespace, progress: Progress) -> dict[str, object]:
    """The figures of both sides on the same problems, float32."""
    engine = Engine.load(policy, prm=prm)
    problems = take_problems(engine.task, "test", args.num_problems)
    prompts = [engine.policy.encode(problem.prompt) for problem in problems]
    searches = {name: plain_search(engine, policy, prm, name, args) for name in plain.ATTENTIONS}
    differences = agreement(engine, searches["eager"], prompts[0])

    def theirs(attention: str, prompts: list[list[int]], seed: int) -> int:
        torch.manual_seed(seed)
        return sum(searches[attention](prompt).num_tokens for prompt in prompts)

    def ours(problems: list[Problem], seed: int) -> int:
        return search(engine, problems, args, seed)

    attention, trials = faster(lambda name: theirs(name, prompts[:1], 0), plain.ATTENTIONS)
    ours(problems, 0)  # warm-up
    runs = alternate(
        {
            "theirs": partial(theirs, attention, prompts),
            "ours": lambda seed: sum(ours([problem], seed) for problem in problems),
            "ours_batched": partial(ours, problems),
        },
        args.repeats,
        progress,
    )
    return {
        **compare(runs),
        **{f"{name}_seconds_per_problem": median_seconds(side) / len(problems) for name, side in runs.items()},
        "theirs_attention": attention,
        "theirs_trials_tokens_per_second": trials,
        **differences,
    }


def agreement(engine: Engine, theirs: plain.PlainBeamSearch, prompt: list[int]) -> dict[str, float]:
    """How far the two sides' numbers are apart. Raises UserError where that is too far."""
    return {
        "largest_relative_difference_of_logits": check_logits(engine.policy, theirs.policy, prompt, "float32"),
        "difference_of_scores": check_score(engine.prm, theirs, prompt),
    }


def search(engine: Engine, problems: list[Problem], args: argparse.Namespace, seed: int) -> int:
    """Searches problems at the same time, from cold caches; the number of tokens generated."""
    clear_caches(engine)
    results = engine.search(
        problems, BeamSearch(args.width), args.budget, seed=seed, sampling=Sampling(temperature=1.0)
    )
    return sum(result.ledger.tokens["generated"] for result in results)


def plain_search(
    engine: Engine, policy: Path, prm: Path, attention: str, args: argparse.Namespace
) -> plain.PlainBeamSearch:
    """Their side with one of transformers' attentions."""
    (newline,) = engine.policy.encode(engine.task.delimiter, is_start=False)
    (eos,) = engine.policy.config.eos_token_ids
    return plain.PlainBeamSearch(
        plain.load(policy, torch.float32, attention),
        plain.load(prm, torch.float32, attention, is_verifier=True),
        newline=newline,
        eos=eos,
        pad=eos,  # masked wherever it is
        budget=args.budget,
        width=args.width,
        max_tokens=engine.task.max_tokens,
    )
