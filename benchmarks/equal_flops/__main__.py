"""Search strategies on three engines at equal FLOPs: tokens, seconds, model-FLOPs utilisation, bandwidth floor.

    python -m benchmarks.flops_matched --json out/flops_matched.json

The target is what our majority vote over `--num-answers` answers a problem costs, by its ledger. Every other strategy
and engine gets the number of answers whose bill comes closest to it; the bill itself stands in the row. On a CPU the
models are the shipped ones, on a GPU random weights in the shapes of Llama-3.2-1B and Qwen2.5-1.5B with an 8B PRM.

`mfu` is the row's FLOPs over its seconds and over the rate of a large matrix product measured in the same run.
`share_of_floor` is the bandwidth floor over the seconds: the weights of the policy read once for every token of the
longest answer and those of the verifier once for every scoring that has to wait for another, at the speed of a large
copy. No engine that batches all problems can be faster; it counts no KV and, for ours, no rollouts. Weights that fit
a CPU's cache can be read faster than it says.

`missing` says which strategies did not run on which engine, and why. The exit status is 1 where one of ours is there.

`--exchange` compares a small model that searches with a larger one instead: see `benchmarks.exchange`.
"""

from __future__ import annotations

import argparse
import gc
import json
import logging
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
import transformers
from rich.console import Console
from rich.table import Table

from benchmarks import exchange, plain
from benchmarks.agreement import check_logits
from benchmarks.clock import Clock, check_device, copy_bandwidth, machine, matmul_rate
from benchmarks.flops_sides import (
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
from benchmarks.gpu_peers import Missing
from benchmarks.hardware import Bystanders, commit, versions
from benchmarks.random_models import save_random
from engine import LLM, Engine
from engine.model import read_config, resolve_dtype, resolve_folder
from engine.search.protocols import Strategy
from engine.tasks import get_task, take_problems
from engine.types import Problem

RANDOM_POLICIES = ("llama-3.2-1b", "qwen2.5-1.5b")
GPU_BLOCKS = 8192  # of each KV pool: half of what an 80 GB card has is left to the other engines


@dataclass(frozen=True)
class Rates:
    """What the machine can do, measured in this run."""

    matmul_flops: float  # FLOP/s in the models' dtype
    copy_bytes: float  # bytes/s, read and written


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
        """Of the weights that multiply, of the policy and of the verifier."""
        shapes = (read_config(folder).shape(folder == self.policy) for folder in (self.policy, self.prm))
        size = resolve_dtype(self.args.dtype, self.args.device).itemsize
        policy, prm = (shape.num_matmul_params * size for shape in shapes)
        return policy, prm


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.flops_matched", description=__doc__.splitlines()[0])
    parser.add_argument("--exchange", action="store_true", help="a small model against a larger one: other options")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--json", type=Path, help="write the report to this file")
    parser.add_argument("--policy", help="folder of the policy; by default as the device says")
    parser.add_argument("--prm", help="folder of the process reward model")
    parser.add_argument("--dtype", help="float32 on a CPU, bfloat16 on a GPU by default")
    parser.add_argument("--threads", type=int, default=2, help="of the CPU")
    parser.add_argument("--num-problems", type=int, default=2)
    parser.add_argument("--num-answers", type=int, default=64, help="of the majority vote that sets the target")
    parser.add_argument("--max-tokens", type=int, help="of an answer; 256 with random weights, else the task's")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--max-seconds", type=float, default=6.0, help="a run that would take longer is missing")
    args = parser.parse_args(arguments)
    if (args.policy is None) != (args.prm is None):
        parser.error(f"--policy and --prm go together, got {args.policy!r} and {args.prm!r}")
    args.dtype = args.dtype or ("float32" if args.device == "cpu" else "bfloat16")
    return args


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if "--exchange" in arguments:
        arguments.remove("--exchange")
        return exchange.main(arguments)
    args, console = parse_arguments(arguments), Console(width=140)
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    logging.getLogger("ContinuousBatchingLogger").setLevel(logging.CRITICAL)  # its errors come as reasons
    torch.set_num_threads(args.threads)
    try:
        check_device(args.device)
    except ValueError as error:
        console.print(f"error: {error}")
        return 2
    bystanders, clock = Bystanders(), Clock(args.device)
    rates = Rates(matmul_rate(clock, resolve_dtype(args.dtype, args.device)), 1e9 * copy_bandwidth(clock))
    settings = {name: str(value) for name, value in vars(args).items() if name not in ("json", "policy", "prm")}
    report = {"hardware": machine(args.device), "versions": versions(), "commit": commit(), "settings": settings}
    report |= {"matmul_tflops": rates.matmul_flops / 1e12, "copy_gbps": rates.copy_bytes / 1e9}
    report |= {"rows": [], "missing": []}
    with tempfile.TemporaryDirectory() as folder:
        for models in all_models(args, Path(folder)):
            measure(models, rates, report, partial(write, args.json, report, bystanders))
            gc.collect()  # engines are held in circles: the next one needs the memory
    show(report, console)
    return 1 if any(entry["engine"] == "ours" for entry in report["missing"]) else 0


def all_models(args: argparse.Namespace, folder: Path) -> Iterator[Models]:
    """The models that the arguments name, one after the other; random ones are made in `folder`."""
    task = get_task("chain")
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


def measure(models: Models, rates: Rates, report: dict, save: Callable[[], None]) -> None:
    """Adds the rows of one policy, and what is missing. Nothing runs where ours does not: it sets the target."""

    def missing(engine: str, names: Iterable[str], error: Exception) -> None:
        reason = str(error) if isinstance(error, Missing) else f"{type(error).__name__}: {error}"
        facts = {"model": models.name, "engine": engine, "reason": reason}
        report["missing"] += [facts | {"strategy": name} for name in names]
        save()

    args = models.args
    try:
        num_blocks = None if args.device == "cpu" else GPU_BLOCKS
        loaded = Engine.load(models.policy, prm=models.prm, device=args.device, dtype=args.dtype, num_blocks=num_blocks)
        side = ours(loaded, models.problems, args.max_tokens)
        target = side(STRATEGIES["majority"], args.num_answers, 0).flops
    except Exception as error:  # a device or a model that is not supported
        for engine in ENGINES:
            missing(engine, STRATEGIES, error)
        return
    try:
        sides = {"ours": side, **transformers_sides(loaded.policy, models)}
    except Exception as error:  # not loaded, or not the same numbers
        sides = {"ours": side}
        for engine in ENGINES[1:]:
            missing(engine, STRATEGIES, error)
    for engine, side in sides.items():
        for strategy in STRATEGIES.values():
            facts = {"model": models.name, "engine": engine, "strategy": strategy.name}
            try:
                report["rows"].append(facts | row(side, strategy, target, models, rates))
            except Exception as error:  # somebody else's code: its failure is a reason
                missing(engine, [strategy.name], error)
            save()


def transformers_sides(llm: LLM, models: Models) -> dict[str, Side]:
    """`generate` and `generate_batch` over the same models. Raises UserError if their logits are not ours."""
    args, dtype = models.args, resolve_dtype(models.args.dtype, models.args.device)
    policy = plain.load(models.policy, dtype, "sdpa").to(args.device)
    prm = plain.load(models.prm, dtype, "sdpa", is_verifier=True).to(args.device)
    check_logits(llm, partial(_logits_on_cpu, policy), models.prompts[0], args.dtype)
    (eos,) = llm.config.eos_token_ids
    delimiters = np.flatnonzero(llm.token_mask(["\n"])).tolist()
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


def row(side: Side, strategy: Strategy, target: int, models: Models, rates: Rates) -> dict[str, object]:
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
    floor = (spent.longest * policy_bytes + scorings * prm_bytes) / rates.copy_bytes
    return {
        "answers": num_answers,
        "tokens": spent.num_tokens,
        "flops": spent.flops,
        "flops_of_target": spent.flops / target,
        "seconds": middle,
        "tokens_per_second": spent.num_tokens / middle,
        "mfu": spent.flops / middle / rates.matmul_flops,
        "share_of_floor": floor / middle,
        "repeats": [run.seconds for run in runs],
    }


def write(path: Path | None, report: dict, bystanders: Bystanders) -> None:
    """After every row: what a time limit cuts off is lost alone."""
    report["hardware"]["others_share"] = bystanders.share()
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(report, indent=2) + "\n")


def show(report: dict, console: Console) -> None:
    """The report as a table."""
    facts = ", ".join(f"{name} {value}" for name, value in report["hardware"].items())
    rates = f"matrix product {report['matmul_tflops']:.3f} TFLOP/s, copy {report['copy_gbps']:.1f} GB/s"
    console.print(f"{facts}; {rates}; commit {report['commit']}", markup=False)
    table = Table(
        "model", "strategy", "engine", "answers", "tokens", "GFLOP", "of target", "s", "tok/s", "MFU", "floor"
    )
    for row in sorted(report["rows"], key=lambda row: (row["model"], list(STRATEGIES).index(row["strategy"]))):
        table.add_row(
            row["model"],
            row["strategy"],
            row["engine"],
            str(row["answers"]),
            f"{row['tokens']:,}",
            f"{row['flops'] / 1e9:,.1f}",
            f"{row['flops_of_target']:.2f}",
            f"{row['seconds']:.3f}",
            f"{row['tokens_per_second']:,.0f}",
            f"{row['mfu']:.1%}",
            f"{row['share_of_floor']:.1%}",
        )
    console.print(table)
    for entry in report["missing"]:
        console.print(f"{entry['model']}, {entry['strategy']} on {entry['engine']}: {entry['reason']}", markup=False)


if __name__ == "__main__":
    sys.exit(main())
