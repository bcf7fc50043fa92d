"""Kills `ttc` at random moments, tears what it wrote, resumes it: `python -m benchmarks.reliability.kills`.

At each point a command is started, killed with SIGKILL, and given again until it is done. Every other kill comes after
a random share of the time that the command takes undisturbed, the others once it has written a random share of its
bytes, since the rows of problems that are searched side by side come close together. The results must be those of the
undisturbed run byte for byte, each row must stand once in the journal, all rows that were whole on disk must be
resumed, and no process may be left. In a third of the points the last line of the journal is cut at a random byte, in
another third bytes without a line's end are appended; of a training a file of the last checkpoint is cut. Every tenth
point also gives the command with another seed in between, which has to be refused and to change nothing.

Commands run in forks of this process, which has imported torch and transformers and loaded no model, so that a point
costs seconds. The exit status is 1 where anything differs.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import runpy
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import LlamaForCausalLM, Trainer

import engine
from benchmarks.options import check_counts, make_parser
from engine.commands import run_command
from engine.errors import UserError
from engine.reports.progress import Progress
from engine.results import journal_path
from engine.results.provenance import provenance, write_json

WARM = (engine, torch, LlamaForCausalLM, Trainer)  # what a fork need not import
OUT = "out"  # of every command, in a folder of its own
TINY = "--hidden-size 16 --num-layers 1 --num-heads 2 --num-kv-heads 1 --context 128 --tokens-per-step 64"


@dataclass(frozen=True)
class Command:
    """A command line that takes seconds; `now_and_then` changes no result and is added to every fifth run."""

    line: str
    now_and_then: str = ""

    def arguments(self, seed: int = 0, is_fifth: bool = False) -> list[str]:
        return f"{self.line} --out {OUT} --seed {seed} {self.now_and_then if is_fifth else ''}".split()


COMMANDS = {
    "search": Command("search --limit 24 --strategy beam --budget 8 --max-batch 16"),
    "rollouts": Command("rollouts --num-questions 16 --num-samples 2 --num-rollouts 2", "--workers 2"),
    "train": Command(f"train policy {TINY} --num-tokens 35840 --work work"),
    "calibrate": Command("calibrate --limit 16 --budgets 4,8 --strategies majority,best-of-n --bins one"),
}


class Run:
    """A command in a process group of its own, in a folder; its output goes to `log`."""

    def __init__(self, folder: Path, arguments: Sequence[str]):
        self.log = folder / "log"
        sys.stdout.flush()
        self.pid = os.fork()
        if self.pid == 0:
            os._exit(_run_here(folder, arguments))
        with contextlib.suppress(PermissionError):  # it has done so itself
            os.setpgid(self.pid, self.pid)

    def wait(self) -> int:
        """Its exit status, negative for a signal."""
        _, status = os.waitpid(self.pid, 0)
        return os.waitstatus_to_exitcode(status)

    def kill_at(self, is_time: Callable[[], bool]) -> bool:
        """Sends SIGKILL to the process alone, not to those that it started; whether it was still running."""
        while not is_time():
            if os.waitpid(self.pid, os.WNOHANG) != (0, 0):
                return False
            time.sleep(0.001)
        os.kill(self.pid, signal.SIGKILL)
        return self.wait() == -signal.SIGKILL

    def leaves_none(self) -> bool:
        """Whether the processes that it had started end, within the time that a busy machine may take for it."""
        for _ in range(600):
            try:
                os.killpg(self.pid, 0)
            except ProcessLookupError:
                return True
            time.sleep(0.1)
        return False


def _run_here(folder: Path, arguments: Sequence[str]) -> int:
    """Runs the command line in this process, as `python -m engine.cli` would; its exit status."""
    os.setpgid(0, 0)
    os.chdir(folder)
    descriptor = os.open("log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    sys.argv = ["ttc", *arguments]
    try:
        runpy.run_module("engine.cli", run_name="__main__", alter_sys=True)
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 1
    except BaseException as error:
        print(repr(error), file=sys.stderr, flush=True)
        return 1
    finally:
        sys.stdout.flush()
    return 0


def results(folder: Path) -> dict[str, bytes]:
    """The files of the results by name."""
    out = folder / OUT
    files = sorted(out.rglob("*")) if out.is_dir() else [out]
    return {path.name: path.read_bytes() for path in files}


def bytes_written(folder: Path) -> int:
    """Bytes of the journal or the checkpoints."""
    sizes = 0
    for path in (journal_path(folder / OUT), *folder.glob("work/**/*")):
        with contextlib.suppress(FileNotFoundError):  # checkpoints are taken away as others come
            sizes += path.stat().st_size
    return sizes


def whole_rows(folder: Path) -> list[int]:
    """The positions of the rows that are whole in the journal."""
    path = journal_path(folder / OUT)
    lines = path.read_bytes().split(b"\n")[1:-1] if path.exists() else []
    return [json.loads(line)["index"] for line in lines]


def kept_files(folder: Path) -> tuple[bytes | None, dict[str, int]]:
    """What a refused run may not change: the journal's whole lines (None: no journal), the sizes of checkpoints.

    A torn last line may be cut off.
    """
    path = journal_path(folder / OUT)
    lines = path.read_bytes().rpartition(b"\n")[0] if path.exists() else None
    files = [each for each in folder.glob("work/checkpoint-*/**/*") if each.is_file()]
    return lines, {str(each.relative_to(folder)): each.stat().st_size for each in files}


def tear(folder: Path, rng: random.Random) -> str:
    """Does to what was being written what a crash of the machine may do to it; what was done, "" for nothing."""
    path, kind = journal_path(folder / OUT), rng.choice(("", "cut", "garbage"))
    checkpoints = sorted(folder.glob("work/checkpoint-*"), key=lambda each: each.stat().st_mtime)
    if checkpoints and kind:
        files = sorted(each for each in checkpoints[-1].iterdir() if each.stat().st_size)
        path, kind = rng.choice(files), "cut"
        os.truncate(path, rng.randrange(path.stat().st_size))
    elif path.exists() and kind == "garbage":
        with open(path, "ab") as file:
            file.write(rng.randbytes(rng.randint(1, 200)).replace(b"\n", b""))
    elif path.exists() and kind == "cut":
        data = path.read_bytes()
        start = data[:-1].rfind(b"\n") + 1  # of the last line, whole or not
        os.truncate(path, rng.randrange(start, max(len(data), start + 1)))
    else:
        return ""
    return kind


class Commanded:
    """One command, its undisturbed results, and what its points have shown."""

    def __init__(self, name: str, folder: Path, rng: random.Random):
        self.name, self.command, self.folder, self.rng = name, COMMANDS[name], folder / name, rng
        self.counts: Counter[str] = Counter()
        self.failures: list[str] = []
        start = time.perf_counter()
        self.whole = self._finish(self._fresh(), 0)
        self.seconds = time.perf_counter() - start
        self.size = bytes_written(self.folder)

    def _fresh(self) -> Path:
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        return self.folder

    def _finish(self, folder: Path, point: int) -> dict[str, bytes]:
        """Runs the command to its end; its results. Raises UserError with what it said where it fails."""
        run = Run(folder, self.command.arguments(is_fifth=point % 5 == 4))
        if (status := run.wait()) != 0:
            raise UserError(f"{self.name} ended with {status}: {run.log.read_text(errors='replace')[-2000:]}")
        return results(folder)

    def point(self, number: int) -> None:
        """Kills, tears and resumes once, and compares."""
        folder, when = self._killed(number)
        torn = tear(folder, self.rng)
        kept, checkpoints = whole_rows(folder), list(folder.glob("work/checkpoint-*"))
        self.counts.update(
            {"rows kept": len(kept), f"torn: {torn}": bool(torn), "nothing to resume": not (kept or checkpoints)}
        )
        if number % 10 == 9 and (kept or checkpoints):
            self._check_refused(folder)
        found = self._finish(folder, number)
        log = (folder / "log").read_text(errors="replace")
        rows = whole_rows(folder)
        wrong = [
            *(["other results"] if found != self.whole else []),
            *(["a row twice"] if len(set(rows)) != len(rows) else []),
            *([f"not {len(kept)} rows resumed"] if kept and f"resumed {len(kept)}:" not in log else []),
        ]
        self.counts.update({"points": 1, "equal": not wrong})
        self.failures += [f"{self.name}, killed {when}, {torn or 'not torn'}: {each}" for each in wrong]

    def _killed(self, number: int) -> tuple[Path, str]:
        """The folder of a run that was killed before its end, and when."""
        share = self.rng.random()
        while True:
            folder, start = self._fresh(), time.perf_counter()
            run = Run(folder, self.command.arguments(is_fifth=number % 5 == 4))
            if number % 2 == 0:
                when, limit = f"after {share * self.seconds:.3f} s", start + share * self.seconds
                is_killed = run.kill_at(lambda limit=limit: time.perf_counter() >= limit)
            else:
                when, size = f"after {share * self.size:.0f} bytes", share * self.size
                is_killed = run.kill_at(lambda folder=folder, size=size: bytes_written(folder) >= size)
            if is_killed:
                break
            share *= 0.9  # it was faster than the undisturbed one
        if not run.leaves_none():
            self.failures.append(f"{self.name}, killed {when}: a process was left")
        return folder, when

    def _check_refused(self, folder: Path) -> None:
        before = kept_files(folder)
        status, log = self._run_with_another_seed(folder)
        is_refused = status == 2 and "seed was 0, now 1" in log
        is_same = kept_files(folder) == before
        self.counts.update({"refused": is_refused and is_same, "asked with another seed": 1})
        if not (is_refused and is_same):
            changed = "" if is_same else " and changed what was kept"
            self.failures.append(f"{self.name} with another seed ended with {status}{changed}: {log[-300:]}")

    def _run_with_another_seed(self, folder: Path) -> tuple[int, str]:
        """The exit status, and what was said."""
        run = Run(folder, self.command.arguments(seed=1))
        return run.wait(), run.log.read_text(errors="replace")


COLUMNS = (
    *("points", "equal", "nothing to resume", "rows kept", "torn: cut", "torn: garbage"),
    *("asked with another seed", "refused"),
)


def table(commands: Sequence[Commanded]) -> str:
    """A line per command, under the names of what was counted."""
    width = max(map(len, COLUMNS))
    head = f"{'':{width}}" + "".join(f"{each.name:>11}" for each in commands)
    lines = [f"{name:{width}}" + "".join(f"{each.counts[name]:11}" for each in commands) for name in COLUMNS]
    return "\n".join(
        [head, f"{'undisturbed, s':{width}}" + "".join(f"{each.seconds:11.1f}" for each in commands), *lines]
    )


def main() -> int:
    """Prints a table and what differed; 1 if anything did."""
    parser = make_parser("reliability.kills", __doc__)
    parser.add_argument("--points", type=int, default=50, help="moments at which each command is killed")
    parser.add_argument("--commands", default=",".join(COMMANDS), help="which, with commas between")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    args = parser.parse_args()
    check_counts(parser, args)
    names = args.commands.split(",")
    if unknown := [name for name in names if name not in COMMANDS]:
        raise UserError(f"--commands must be of {', '.join(COMMANDS)}, got {unknown[0]!r}")
    torch.set_num_threads(1)
    done: list[Commanded] = []
    with tempfile.TemporaryDirectory() as folder, Progress("points:", len(names) * args.points) as progress:
        for name in names:
            done.append(Commanded(name, Path(folder), random.Random(f"{args.seed}/{name}")))
            for number in range(args.points):
                done[-1].point(number)
                progress.advance()
    failures = [failure for each in done for failure in each.failures]
    print("\n".join([table(done), *failures]))
    figures = {each.name: {"seconds": each.seconds, **each.counts} for each in done}
    write_json(args.json, {**provenance(), "commands": figures, "failures": failures})
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(run_command(main))
