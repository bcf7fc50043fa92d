"""The stages of benchmarks/gpu.sh: each runs by itself, and says whether it passed and why not.

It imports the standard library alone, as the first stage builds what the others import. After every stage it writes
to the folder: stages.json (name, passed, reason, seconds, command), table.md and log.txt; the stages write their JSON
there themselves.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
MINUTES = 8.7  # for everything


@dataclass(frozen=True)
class Stage:
    """A command and its limits."""

    name: str
    command: tuple[str, ...]
    max_seconds: float
    needs: str | None = None  # a program on PATH
    result: str | None = None  # a file that it must write, in the folder


@dataclass(frozen=True)
class Outcome:
    """How a stage went; `reason` is empty where it passed."""

    name: str
    passed: bool
    reason: str
    seconds: float
    command: str


def stages(out: Path) -> list[Stage]:
    """What a GPU is asked to do, the checks first."""
    python = (sys.executable,)
    sanitizer = ("compute-sanitizer", "--tool", "memcheck", "--error-exitcode", "1")

    def module(name: str, *options: str) -> tuple[str, ...]:
        return (*python, "-m", f"benchmarks.{name}", *options)

    def report(name: str) -> tuple[str, str]:
        return "--json", str(out / name)

    kernels = module("kernels", "--device", "cuda", "--minutes", "2.2", *report("kernels.json"))
    decode_steps = module("gpu.decode_steps", "--device", "cuda", *report("decode_steps.json"))
    flops = module("equal_flops", "--device", "cuda", *report("equal_flops.json"))
    return [
        Stage("build", (*python, "setup.py", "--quiet", "build_ext", "--inplace"), 150, needs="nvcc"),
        Stage("tests", (*python, "-m", "pytest", "--maxfail=20", "tests/gpu/test_kernels.py"), 100),
        Stage("engine", (*python, "-m", "pytest", "tests/gpu/test_engine.py"), 90),
        Stage("search", module("gpu.search", *report("search.json")), 45, result="search.json"),
        Stage("sanitizer", (*sanitizer, *module("gpu.smoke")), 60, needs="compute-sanitizer"),
        Stage("decode_steps", decode_steps, 60, result="decode_steps.json"),
        Stage("kernels", kernels, 160, result="kernels.json"),
        Stage("equal_flops", flops, 150, result="equal_flops.json"),
    ]


def run_stage(stage: Stage, out: Path, seconds_left: float, environment: dict[str, str]) -> Outcome:
    """Runs a stage within its limit; what it prints goes to log.txt."""
    command = " ".join(stage.command)
    limit = min(stage.max_seconds, seconds_left)
    if limit < 5:
        return Outcome(stage.name, False, "not started: the time for all stages was over", 0.0, command)
    if stage.needs and shutil.which(stage.needs) is None:
        return Outcome(stage.name, False, f"not started: {stage.needs} is not on PATH", 0.0, command)
    start = time.monotonic()
    with (out / "log.txt").open("a") as log:
        print(f"\n=== {stage.name}: {command}", file=log, flush=True)
        where = log.tell()
        process = subprocess.Popen(
            stage.command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            status = process.wait(limit)
            reason = f"exit status {status}" if status else ""
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, 9)  # the session that was started for it, with what it has started
            process.wait()
            reason = f"stopped after {limit:.0f} s"
    if not reason and stage.result and not (out / stage.result).is_file():
        reason = f"{stage.result} was not written"
    if reason:
        reason += f": {last_lines(out / 'log.txt', where)}"
    return Outcome(stage.name, not reason, reason, time.monotonic() - start, command)


def last_lines(log: Path, start: int, num_lines: int = 4) -> str:
    """The end of what was written to the log from `start` on, on one line."""
    with log.open("rb") as file:
        file.seek(start)
        lines = [line.strip() for line in file.read().decode(errors="replace").splitlines() if line.strip()]
    return " | ".join(lines[-num_lines:])[-600:] or "nothing was printed"


def with_ninja(environment: dict[str, str], out: Path) -> dict[str, str]:
    """Where Python has no ninja but PATH has one, a module that starts it, as setup.py runs `python -m ninja`."""
    has_module = subprocess.run([sys.executable, "-c", "import ninja"], env=environment, capture_output=True)
    program = shutil.which("ninja")
    if has_module.returncode == 0 or program is None:
        return environment
    folder = out / "shim"
    (folder / "ninja").mkdir(parents=True, exist_ok=True)
    text = f"import os, sys\nos.execv({program!r}, [{program!r}, *sys.argv[1:]])\n"
    (folder / "ninja" / "__main__.py").write_text(text)
    (folder / "ninja" / "__init__.py").write_text("")
    return {**environment, "PYTHONPATH": os.pathsep.join([str(folder), environment.get("PYTHONPATH", "")])}


def machine() -> dict[str, str]:
    """The GPU as its driver names it, and the commit."""

    def output(*command: str) -> str:
        try:
            return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
        except (OSError, subprocess.CalledProcessError) as error:
            return f"unknown ({error})"

    query = ("nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader")
    return {"gpu": output(*query), "commit": output("git", "describe", "--always", "--dirty")}


def table(outcomes: Sequence[Outcome], facts: dict[str, str], kernels: Path) -> str:
    """The stages, and the kernels' rows that were written, as Markdown."""
    lines = [f"GPU: {facts['gpu']}; commit: {facts['commit']}", "", "| stage | passed | seconds | reason |"]
    lines += ["|---|---|---|---|"]
    for outcome in outcomes:
        reason = outcome.reason.replace("|", "/")
        lines.append(f"| {outcome.name} | {'yes' if outcome.passed else 'NO'} | {outcome.seconds:.0f} | {reason} |")
    rows = json.loads(kernels.read_text()) if kernels.is_file() else []
    return "\n".join([*lines, "", *kernel_lines(rows)]) + "\n"


def kernel_lines(rows: Sequence[dict]) -> list[str]:
    """The rows of `python -m benchmarks.kernels` as a Markdown table."""
    lines = ["| op | case | type | by | µs | GB/s | of copy | peers, times ours |", "|---|---|---|---|---|---|---|---|"]
    for row in rows:
        peers = ", ".join(f"{name} {seconds / row['seconds']:.2f}" for name, seconds in row["peers"].items())
        figures = f"{row['seconds'] * 1e6:,.1f} | {row['gbps']:,.0f} | {row['share_of_copy']:.0%} | {peers}"
        lines.append(f"| {row['op']} | {row['case']} | {row['dtype']} | {row['impl']} | {figures} |")
    return lines


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status: 1 where any stage failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of the reports")
    out = parser.parse_args(arguments).out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    return run(stages(out), out)


def run(chosen: Sequence[Stage], out: Path) -> int:
    """Runs all stages in turn and reports each on the terminal; a stage that fails stops no other."""
    end = time.monotonic() + 60 * MINUTES
    (out / "log.txt").write_text("")
    for stage in chosen:
        if stage.result:
            (out / stage.result).unlink(missing_ok=True)  # an older run's would pass for this one's
    environment = with_ninja({**os.environ, "TTC_DEVICE": "cuda", "HF_HUB_OFFLINE": "1"}, out)
    facts, outcomes = machine(), []
    for number, stage in enumerate(chosen, start=1):
        most = min(sum(each.max_seconds for each in chosen[number - 1 :]), end - time.monotonic())
        print(f"[{number}/{len(chosen)}] {stage.name}, at most {most / 60:.1f} min left", file=sys.stderr, flush=True)
        outcome = run_stage(stage, out, end - time.monotonic(), environment)
        outcomes.append(outcome)
        state = "passed" if outcome.passed else f"FAILED, {outcome.reason}"
        print(f"{stage.name}: {state} ({outcome.seconds:.0f} s)", flush=True)
        report = facts | {"stages": [asdict(outcome) for outcome in outcomes]}
        (out / "stages.json").write_text(json.dumps(report, indent=2) + "\n")
        (out / "table.md").write_text(table(outcomes, facts, out / "kernels.json"))
    shutil.rmtree(out / "shim", ignore_errors=True)
    return 0 if all(outcome.passed for outcome in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
