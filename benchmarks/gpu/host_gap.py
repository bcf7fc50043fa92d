"""How long a GPU idles between two forwards of a policy because of the host: the host's work is real, the GPU a clock.

    python -m benchmarks.gpu.host_gap --json out/host_gap.json

A simulated device runs each forward in a given time, one after the other, and draws a constant token. Everything else
is the engine's own: the tree, the plans, attention's work lists, the decode table, the requests. Sixty-four branches
decode side by side (`decode`), or are extended by steps of 20 to 50 tokens as in a beam search, so that in most
forwards some end and others start (`steps`). Each row: `work, branches, forward_us, is_ahead` (whether forwards are
started before the one before is read), `forwards, mixed` (how many of them hold prompts or fed tokens too), `idle_us`
(of the device before a forward: median and 95 %), `gap_us` (from results on the host to the next launch; with
`is_ahead` the device runs a forward meanwhile: median and 95 %), `host_us` (what the host does for a forward and no
forward of the device hides: mean). A device of 0 us shows all that the host does.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial

import numpy as np
import torch

from benchmarks.options import make_parser
from engine.commands import run_command
from engine.errors import UserError
from engine.model import HOME, Placement
from engine.results.provenance import Bystanders, provenance, write_json
from engine.runtime import LLM
from engine.runtime.executors.base import Forward
from engine.runtime.executors.gpu import GPUExecutor, Launched
from engine.runtime.executors.gpu_step import Step
from engine.runtime.executors.transfers import Fetch
from engine.types import Sampling

BRANCHES = 64
TOKEN = 7  # what every row draws
FORWARD_US = (0.0, 200.0, 900.0)  # of the device; 900: about a 1.5B model's
WARMUP = 20  # forwards


@dataclass
class Device:
    """Runs one forward after the other, each in `seconds`."""

    seconds: float
    free_at: float = 0.0
    read_at: float = 0.0  # when results were last on the host
    idle: list[float] = field(default_factory=list)  # seconds, before each forward but the first
    gaps: list[float] = field(default_factory=list)

    def launch(self) -> float:
        """Starts a forward, now or when the last one has run; returns when it ends."""
        now = time.perf_counter()
        if self.free_at:
            self.idle.append(max(0.0, now - self.free_at))
        if self.read_at:
            self.gaps.append(now - self.read_at)
            self.read_at = 0.0
        self.free_at = max(now, self.free_at) + self.seconds
        return self.free_at


class SimulatedFetch(Fetch):
    """Results that are there at a given time."""

    def __init__(self, device: Device, tensors: list[torch.Tensor]):
        super().__init__(tensors, None)
        self.device, self.at = device, device.launch()

    def arrays(self) -> list[np.ndarray]:
        while time.perf_counter() < self.at:
            pass
        self.device.read_at = time.perf_counter()
        return super().arrays()


class SimulatedStep(Step):
    """Loads its buffers, and computes nothing."""

    def _launch(self, attended) -> None:
        pass


class SimulatedExecutor(GPUExecutor):
    """A GPU's host on a simulated device."""

    def __init__(self, llm: LLM, device: Device, is_ahead: bool):
        super().__init__(llm.runner.parts, make_graph=None)
        self.device, self.is_ahead, self.num_mixed = device, is_ahead, 0
        self.out.drawn[0], self.out.drawn[1:] = TOKEN, 0

    @property
    def is_asynchronous(self) -> bool:
        """Whether forwards are started before the one before is read."""
        return self.is_ahead

    def launch(self, forward: Forward, marks: np.ndarray | None) -> Launched:
        """Loads a step's buffers as on a GPU, and starts the clock in the place of its graph."""
        launched = super().launch(forward, marks)
        self.num_mixed += forward.where is not None
        return Launched(SimulatedFetch(self.device, launched.fetch._hosts), forward, marks)

    def _step(self, kind) -> Step:
        if kind not in self._steps:
            self._steps[kind] = SimulatedStep(self.parts, self.transfers, None, kind, self.out)
        return self._steps[kind]


@dataclass(frozen=True)
class Row:
    """What one kind of work on one device takes; times in microseconds."""

    work: str
    branches: int
    forward_us: float
    is_ahead: bool
    forwards: int
    mixed: int
    idle_us: tuple[float, float]
    gap_us: tuple[float, float]
    host_us: float


def decode(llm: LLM, num_tokens: int) -> None:
    """All branches draw as many tokens."""
    branches = llm.open([5, 6, 7] * 16).fork(BRANCHES)
    llm.run(llm.queue_generate(branches, range(BRANCHES), sampling=Sampling(), max_tokens=num_tokens))


def steps(llm: LLM, num_tokens: int) -> None:
    """Each branch draws `num_tokens` in steps of 20 to 50, and is forked after each."""
    rng, live = np.random.default_rng(0), []
    for branch in llm.open([5, 6, 7] * 16).fork(BRANCHES):
        live.append([branch, num_tokens, None])
    while live:
        for task in live:
            branch, left, request = task
            if request is None or request.is_done:
                if request is not None:
                    task[:2] = branch.fork(1)[0], left - len(request.results[0].token_ids)
                    branch.close()
                num = min(task[1], int(rng.integers(20, 50)))
                task[2] = None if num <= 0 else llm.queue_generate([task[0]], [1], sampling=Sampling(), max_tokens=num)
        live = [task for task in live if task[2] is not None]
        if live:
            llm.runner.tick(64)


WORKS = {"decode": decode, "steps": steps}


def measure(work: str, forward_us: float, is_ahead: bool, num_tokens: int) -> Row:
    """One row."""
    llm = LLM.load(HOME / "policy", device=Placement(torch.device("cpu"), "triton"), num_blocks=4096)
    llm.runner.stops.is_eos[:-1] = False
    device = Device(forward_us / 1e6)
    llm.runner.executor = executor = SimulatedExecutor(llm, device, is_ahead)
    start = time.perf_counter()
    WORKS[work](llm, num_tokens)
    seconds, num = time.perf_counter() - start, llm.runner.num_ticks
    waited = num * device.seconds if forward_us else 0.0
    idle, gaps = (spread(times[WARMUP:]) for times in (device.idle, device.gaps))
    return Row(
        work, BRANCHES, forward_us, is_ahead, num, executor.num_mixed, idle, gaps, 1e6 * (seconds - waited) / num
    )


def spread(seconds: Sequence[float]) -> tuple[float, float]:
    """The median and the 95th percentile, in microseconds."""
    return 1e6 * statistics.median(seconds), 1e6 * float(np.percentile(seconds, 95))


def rows(num_tokens: int) -> Iterator[Row]:
    """A row for either work, order and speed of the device."""
    for work in WORKS:
        for forward_us in FORWARD_US:
            for is_ahead in (False, True):
                yield measure(work, forward_us, is_ahead, num_tokens)


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status."""
    parser = make_parser("gpu.host_gap", __doc__)
    parser.add_argument("--num-tokens", type=int, default=400, help="that each branch draws")
    return run_command(partial(run, parser.parse_args(arguments)))


def run(args: argparse.Namespace) -> None:
    """Prints the rows and writes the report. Raises UserError for too few tokens to be measured."""
    if args.num_tokens < 2 * WARMUP:
        raise UserError(f"--num-tokens must be at least {2 * WARMUP}, got {args.num_tokens}")
    report, bystanders = provenance("cpu") | {"rows": []}, Bystanders()
    for row in rows(args.num_tokens):
        report["rows"].append(asdict(row))
        order = "ahead" if row.is_ahead else "after"
        print(
            f"{row.work:6} {row.branches} branches, {row.forward_us:4.0f} us a forward, {order}: idle "
            f"{row.idle_us[0]:6.1f} ({row.idle_us[1]:6.1f}) us, results to launch {row.gap_us[0]:6.1f} "
            f"({row.gap_us[1]:6.1f}) us, host {row.host_us:6.1f} us; {row.mixed} of {row.forwards} mixed",
            flush=True,
        )
    report["hardware"]["others_share"] = bystanders.share()
    write_json(args.json, report)


if __name__ == "__main__":
    sys.exit(main())
