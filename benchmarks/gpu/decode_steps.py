"""How long a decode step takes, against its floor: the longer of reading the weights and the unique KV once at the
copy bandwidth, and of its FLOPs at the rate of a large matrix product of its type.

    python -m benchmarks.gpu.decode_steps --device cuda --json out/decode_steps.json

A prompt is forked into a batch of branches, which then decode side by side; nothing stops them. Random weights in the
shape of Qwen2.5-1.5B in bfloat16 on a GPU, the home policy in float32 on a CPU. Rows: `batch, is_scored` (a trunk head
is read in every step), `products` (who computes the layers' matrix products: "auto" or "torch"), `has_graphs, seconds`
(median of a step, host and device; the mean of four, each of which is started before the one before is read),
`floor_seconds, floor` ("bytes" or "flops"), `times_floor, tokens_per_second`.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import torch

from benchmarks.options import make_parser
from benchmarks.random_models import save_random
from benchmarks.timing import Clock
from engine.accounting import forward_flops
from engine.commands import run_command
from engine.model import HOME, ScoreHead, resolve_device, resolve_dtype
from engine.reports.progress import Progress
from engine.results.provenance import Bystanders, provenance, write_json
from engine.runtime import LLM
from engine.runtime.executors.gpu import GPUExecutor
from engine.types import Sampling

BATCHES = (1, 16, 64, 256)
AT_ONCE = 4  # steps that are timed together: each is started before the one before is read
WARMUP = 8  # steps: the prompt, what is compiled, and what is captured


@dataclass(frozen=True)
class Row:
    """What a step of one batch takes."""

    batch: int
    is_scored: bool
    products: str
    has_graphs: bool
    seconds: float
    floor_seconds: float
    floor: str
    times_floor: float
    tokens_per_second: float


def load(
    folder: Path,
    device: str,
    dtype: str,
    *,
    is_scored: bool,
    num_blocks: int,
    max_batch: int = max(BATCHES),
    products: str = "auto",  # as in Placement
) -> LLM:
    """A policy, with a random trunk head where it `is_scored`."""
    placement = replace(resolve_device(device), products=products)
    llm = LLM.load(folder, device=placement, dtype=dtype, max_batch=max_batch, num_blocks=num_blocks)
    runner = llm.runner
    runner.stops.is_eos[:-1] = False  # before any rule is made: a branch ends at its limit alone
    if is_scored:
        weight = torch.zeros_like(runner.parts.decoder.embedding[:1])
        runner.parts.score_head = ScoreHead(weight, None, 0)
        llm.read_trunk_head_at(llm.vocabulary.token_mask(["\n"]))
    return llm


def step_times(llm: LLM, batch: int, num_prompt: int, num_steps: int) -> list[float]:
    """Seconds of each step of a batch, after the warm-up: a tick of the runner, up to the tokens on the host, over
    its forwards."""
    runner = llm.runner
    root = llm.open([5 + i % 7 for i in range(num_prompt)])
    branches = root.fork(batch)
    request = llm.queue_generate(
        branches, range(batch), sampling=Sampling(temperature=1.0), max_tokens=num_steps + WARMUP
    )
    times: list[float] = []
    while not request.is_done:
        start, before = time.perf_counter(), runner.num_ticks
        runner.tick(AT_ONCE)
        num = runner.num_ticks - before
        times += [(time.perf_counter() - start) / num] * num
    if request.error is not None:
        raise request.error
    for branch in (*branches, root):
        branch.close()
    return times[WARMUP:]


def floor_bytes(llm: LLM, batch: int, num_prompt: int, num_steps: int) -> float:
    """Weights that multiply, and the unique KV of a step in the middle of the run."""
    shape = llm.config.shape()
    size = llm.runner.parts.decoder.dtype.itemsize
    pool = llm.runner.pool
    num_tokens = num_prompt + batch * (WARMUP + num_steps // 2)
    return shape.num_matmul_params * size + num_tokens * pool.bytes_per_block / pool.tree.block_size


def floor_flops(llm: LLM, batch: int, num_prompt: int, num_steps: int) -> int:
    """FLOPs of a step in the middle of the run."""
    return batch * forward_flops(llm.config.shape(), num_prompt + WARMUP + num_steps // 2, 1)


@dataclass(frozen=True)
class Rates:
    """What the device reaches."""

    num_bytes: float
    """Of a copy, a second."""
    flops: float
    """Of a large matrix product, a second."""

    @classmethod
    def of(cls, device: str, dtype: torch.dtype) -> Rates:
        clock = Clock(device)
        return cls(clock.copy_bandwidth(), clock.matmul_rate(dtype))


def measure(llm: LLM, batch: int, is_scored: bool, rates: Rates, num_prompt: int, num_steps: int) -> Row:
    """The row of one batch."""
    times = step_times(llm, batch, num_prompt, num_steps)
    seconds = statistics.median(times)
    sizes = (llm, batch, num_prompt, num_steps)
    floors = {"bytes": floor_bytes(*sizes) / rates.num_bytes, "flops": floor_flops(*sizes) / rates.flops}
    name, floor = max(floors.items(), key=lambda each: each[1])
    executor = llm.runner.executor
    has_graphs = isinstance(executor, GPUExecutor) and any(step.graph is not None for step in executor._steps.values())
    products = llm.runner.parts.decoder.placement.products
    return Row(batch, is_scored, products, has_graphs, seconds, floor, name, seconds / floor, batch / seconds)


def rows_of(
    policy: Path,
    device: str,
    dtype: str,
    batches: Sequence[int],
    *,
    is_scored: bool,
    num_prompt: int,
    num_steps: int,
    products: str = "auto",
    rates: Rates | None = None,  # None: measured first
) -> Iterator[Row]:
    """The rows of batches, on a model that is loaded for them."""
    rates = rates or Rates.of(device, resolve_dtype(dtype, device))
    num_blocks = 8 + num_prompt // 16 + max(batches) * (2 + (WARMUP + num_steps) // 16)
    options = {"num_blocks": num_blocks, "max_batch": max(batches), "products": products}
    llm = load(policy, device, dtype, is_scored=is_scored, **options)
    for batch in batches:
        yield measure(llm, batch, is_scored, rates, num_prompt, num_steps)


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status."""
    parser = make_parser("gpu.decode_steps", __doc__)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--policy", type=Path, help="a folder in the place of random weights, or of the home policy")
    parser.add_argument("--dtype", help="float32 on a CPU, bfloat16 on a GPU by default")
    parser.add_argument("--num-prompt", type=int, default=512, help="tokens that all branches share")
    parser.add_argument("--products", default="auto", choices=("auto", "torch", "fused_linear"))
    parser.add_argument("--num-steps", type=int, default=64)
    args = parser.parse_args(arguments)
    args.dtype = args.dtype or ("float32" if args.device == "cpu" else "bfloat16")
    return run_command(partial(run, args))


def run(args: argparse.Namespace) -> None:
    """Times every batch, plain and scored, prints the rows and writes the report."""
    report, bystanders = provenance(args.device), Bystanders()
    rates = Rates.of(args.device, resolve_dtype(args.dtype, args.device))
    report |= {"dtype": args.dtype, "copy_gbps": rates.num_bytes / 1e9, "matmul_tflops": rates.flops / 1e12, "rows": []}
    with tempfile.TemporaryDirectory() as folder, Progress("decode steps:", 2 * len(BATCHES)) as progress:
        policy = args.policy or (HOME / "policy" if args.device == "cpu" else save_random("qwen2.5-1.5b", Path(folder)))
        sizes = {"num_prompt": args.num_prompt, "num_steps": args.num_steps, "rates": rates, "products": args.products}
        for is_scored in (False, True):
            for row in rows_of(policy, args.device, args.dtype, BATCHES, is_scored=is_scored, **sizes):
                report["rows"].append(asdict(row))
                print(line(row), flush=True)
                progress.advance()
    report["hardware"]["others_share"] = bystanders.share()
    write_json(args.json, report)


def line(row: Row) -> str:
    return (
        f"batch {row.batch:4}, {'scored' if row.is_scored else 'plain':6}: {row.seconds * 1e3:8.3f} ms a step, "
        f"{row.times_floor:5.2f} times the floor of {row.floor}, {row.tokens_per_second:9,.0f} tokens/s"
        f"{', graphs' if row.has_graphs else ''}"
    )


if __name__ == "__main__":
    sys.exit(main())
