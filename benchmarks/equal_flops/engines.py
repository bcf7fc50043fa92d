"""Every strategy on every engine at the target's FLOPs: the rows, what is missing, and the table."""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
import transformers
from rich.console import Console
from rich.table import Table

from benchmarks.equal_flops.sides import (
    ENGINES,
    STRATEGIES,
    WIDTH,
    CountedSearch,
    Side,
    Spent,
    matched,
    ours,
    theirs,
    timed_run,
)
from benchmarks.options import settings
from benchmarks.random_models import save_random
from benchmarks.throughput import plain
from benchmarks.throughput.agreement import check_logits
from benchmarks.timing import Clock, Missing
from engine import LLM, Engine
from engine.model import read_config, resolve_dtype, resolve_folder
from engine.reports.progress import Progress
from engine.results.provenance import Bystanders, provenance, write_json
from engine.search.protocols import Strategy
from engine.tasks import get_task, take_problems
from engine.types import Problem

RANDOM_POLICIES = ("llama-3.2-1b", "qwen2.5-1.5b")
GPU_BLOCKS = 8192  # of each KV pool: half of what an 80 GB card has is left to the other engines


@dataclass
class Report:
    """What is written after every row, so that a time limit costs no row that is done."""

    path: Path | None
    facts: dict  # machine, commit, settings and rates
    matmul_flops: float  # FLOP/s of the machine, in the models' dtype
    copy_bytes: float  # bytes/s of the machine, read and written
    bystanders: Bystanders
    rows: list[dict] = field(default_factory=list)
    missing: list[dict] = field(default_factory=list)

    @classmethod
    def on(cls, args: argparse.Namespace) -> Report:
        """An empty report, after the machine's rates are measured. Raises UserError where there is no such device."""
        facts, clock, bystanders = provenance(args.device), Clock(args.device), Bystanders()
        facts["settings"] = {name: str(value) for name, value in settings(args, "exchange").items()}
        flops, copied = clock.matmul_rate(resolve_dtype(args.dtype, args.device)), clock.copy_bandwidth()
        facts |= {"matmul_tflops": flops / 1e12, "copy_gbps": copied / 1e9}
        return cls(args.json, facts, flops, copied, bystanders)

    def write(self) -> None:
        self.facts["hardware"]["others_share"] = self.bystanders.share()
        write_json(self.path, self.facts | {"rows": self.rows, "missing": self.missing})

    def miss(self, model: str, engine: str, strategies: Iterable[str], error: Exception) -> None:
        """Notes that strategies did not run on an engine, and why."""
        reason = str(error) if isinstance(error, Missing) else f"{type(error).__name__}: {error}"
        facts = {"model": model, "engine": engine, "reason": reason}
        self.missing += [facts | {"strategy": name} for name in strategies]
        self.write()


@dataclass(frozen=True)
class Models:
    """One policy and its verifier, as folders and as what both sides read of them."""

    name: str
    policy: Path
    prm: Path
    problems: list[Problem]
    prompts: list[list[int]]
    args: argparse.Namespace

    @property
    def num_bytes(self) -> tuple[int, int]:
        """Bytes of the weights that multiply, of the policy and of the verifier."""
        shapes = (read_config(folder).shape(folder == self.policy) for folder in (self.policy, self.prm))
        size = resolve_dtype(self.args.dtype, self.args.device).itemsize
        policy, prm = (shape.num_matmul_params * size for shape in shapes)
        return policy, prm


def all_models(args: argparse.Namespace, folder: Path) -> Iterator[Models]:
    """The models that the arguments name, one after the other; random ones are made in `folder`."""
    task = get_task("walks")
    problems = take_problems(task, "test", args.num_problems)
    is_random = args.policy is None and args.device == "cuda"
    args.max_tokens = args.max_tokens or (256 if is_random else task.max_tokens)
    if is_random:
        prm = save_random("prm-8b", folder / "prm-8b")
        pairs = [(name, save_random(name, folder / name), prm) for name in RANDOM_POLICIES]
    else:
        named = args.policy or "home"
        pairs = [(Path(named).name, resolve_folder(named), resolve_folder(args.prm or "home", "prm"))]
    for name, policy, prm in pairs:
        tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(policy)
        prompts = [tokenizer.encode(problem.prompt) for problem in problems]
        yield Models(name, policy, prm, problems, prompts, args)


def measure(models: Models, report: Report) -> None:
    """Adds the rows of one policy, and what is missing. Nothing runs where ours does not: it sets the target."""
    args = models.args
    try:
        num_blocks = None if args.device == "cpu" else GPU_BLOCKS
        loaded = Engine.load(models.policy, prm=models.prm, device=args.device, dtype=args.dtype, num_blocks=num_blocks)
        side = ours(loaded, models.problems, args.max_tokens)
        target = side(STRATEGIES["majority"], args.num_answers, 0).flops
    except Exception as error:  # a device or a model that is not supported
        for engine in ENGINES:
            report.miss(models.name, engine, STRATEGIES, error)
        return
    sides = {"ours": side}
    try:
        sides |= transformers_sides(loaded.policy, models)
    except Exception as error:  # not loaded, or not the same numbers
        for engine in ENGINES[1:]:
            report.miss(models.name, engine, STRATEGIES, error)
    with Progress(f"{models.name}:", len(sides) * len(STRATEGIES)) as progress:
        for engine, side in sides.items():
            for strategy in STRATEGIES.values():
                add_row(engine, side, strategy, target, models, report)
                progress.advance(f"{strategy.name} on {engine}")


def add_row(engine: str, side: Side, strategy: Strategy, target: int, models: Models, report: Report) -> None:
    """Adds the row of one strategy on one engine, or the reason why it is missing."""
    facts = {"model": models.name, "engine": engine, "strategy": strategy.name}
    try:
        report.rows.append(facts | row(side, strategy, target, models, report))
    except Exception as error:  # somebody else's code: its failure is a reason
        report.miss(models.name, engine, [strategy.name], error)
    report.write()


def transformers_sides(llm: LLM, models: Models) -> dict[str, Side]:
    """`generate` and `generate_batch` over the same models. Raises UserError if their logits are not ours."""
    args, dtype = models.args, resolve_dtype(models.args.dtype, models.args.device)
    policy = plain.load(models.policy, dtype, "sdpa").to(args.device)
    prm = plain.load(models.prm, dtype, "sdpa", is_verifier=True).to(args.device)
    check_logits(llm, partial(_logits_on_cpu, policy), models.prompts[0], args.dtype)
    (eos,) = llm.config.eos_token_ids
    delimiters = np.flatnonzero(llm.vocabulary.token_mask(["\n"])).tolist()
    make = partial(
        CountedSearch,
        policy,
        prm,
        newline=delimiters[0],
        eos=eos,
        pad=eos,
        width=WIDTH,
        max_tokens=args.max_tokens,
        policy_shape=read_config(models.policy).shape(),
        prm_shape=read_config(models.prm).shape(False),
        ends=frozenset(delimiters),
        max_seconds=args.max_seconds,
    )
    return {
        "generate": theirs(make, models.prompts),
        "generate_batch": theirs(partial(make, is_batched=True), models.prompts),
    }


def _logits_on_cpu(policy: torch.nn.Module, ids: torch.Tensor) -> SimpleNamespace:
    return SimpleNamespace(logits=policy(ids.to(policy.device)).logits.cpu())


def row(side: Side, strategy: Strategy, target: int, models: Models, report: Report) -> dict[str, object]:
    """A strategy at the target. Raises Missing where one run would take more than the limit."""
    args = models.args
    num_answers = matched(side, strategy, target, args.max_seconds)
    runs, spent = [], Spent()
    for repeat in range(args.repeats):
        run, spent = timed_run(side, strategy, num_answers, repeat)
        runs.append(run)
    middle = statistics.median(run.seconds for run in runs)
    policy_bytes, prm_bytes = models.num_bytes
    scorings = spent.num_scorings if strategy.is_scored else 0
    floor = (spent.longest * policy_bytes + scorings * prm_bytes) / report.copy_bytes
    return {
        "answers": num_answers,
        "tokens": spent.num_tokens,
        "flops": spent.flops,
        "flops_of_target": spent.flops / target,
        "seconds": middle,
        "tokens_per_second": spent.num_tokens / middle,
        "mfu": spent.flops / middle / report.matmul_flops,
        "share_of_floor": floor / middle,
        "repeats": [run.seconds for run in runs],
    }


def show(report: Report, console: Console) -> None:
    """The report as a table."""
    facts = ", ".join(f"{name} {value}" for name, value in report.facts["hardware"].items())
    rates = f"matrix product {report.matmul_flops / 1e12:.3f} TFLOP/s, copy {report.copy_bytes / 1e9:.1f} GB/s"
    console.print(f"{facts}; {rates}; commit {report.facts['commit']}", markup=False)
    table = Table(
        "model", "strategy", "engine", "answers", "tokens", "GFLOP", "of target", "s", "tok/s", "MFU", "floor"
    )
    for each in sorted(report.rows, key=lambda row: (row["model"], list(STRATEGIES).index(row["strategy"]))):
        table.add_row(
            each["model"],
            each["strategy"],
            each["engine"],
            str(each["answers"]),
            f"{each['tokens']:,}",
            f"{each['flops'] / 1e9:,.1f}",
            f"{each['flops_of_target']:.2f}",
            f"{each['seconds']:.3f}",
            f"{each['tokens_per_second']:,.0f}",
            f"{each['mfu']:.1%}",
            f"{each['share_of_floor']:.1%}",
        )
    console.print(table)
    for entry in report.missing:
        console.print(f"{entry['model']}, {entry['strategy']} on {entry['engine']}: {entry['reason']}", markup=False)
