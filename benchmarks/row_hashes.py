"""Hashes what twelve searches write, so that two commits can be compared: `python -m benchmarks.row_hashes`.

Each search is `ttc search` in a process of its own: the first 20 test problems, budget 8, seed 0, in float32. Scores
are hashed to the last bit, so two machines need not agree; two commits on one machine must.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from engine.reports.progress import Progress

COMMON = ("--task", "walks", "--split", "test", "--limit", "20", "--seed", "0", "--with-tree")
BUDGET = ("--budget", "8")
SEARCHES = {
    "majority": ("--strategy", "majority", *BUDGET),
    "best-of-n, prm": ("--strategy", "best-of-n", "--verifier", "prm", *BUDGET),
    "best-of-n, orm": ("--strategy", "best-of-n", "--verifier", "orm", "--agg-strategy", "last", *BUDGET),
    "beam, prm": ("--strategy", "beam", "--beam-width", "4", *BUDGET),
    "beam, trunk": ("--strategy", "beam", "--beam-width", "2", "--verifier", "trunk", *BUDGET),
    "lookahead, oracle": ("--strategy", "lookahead", "--lookahead", "1", "--verifier", "oracle", *BUDGET),
    "dvts, prm": ("--strategy", "dvts", "--agg-strategy", "min", *BUDGET),
    "rebase, prm": ("--strategy", "rebase", *BUDGET),
    "adaptive, prm": ("--strategy", "adaptive", "--adaptive-batch", "2", *BUDGET),
    "revisions, orm": ("--strategy", "revisions", "--parallel", "2", "--verifier", "orm", *BUDGET),
    "compute-optimal": ("--strategy", "compute-optimal", *BUDGET),
    "total budget": ("--strategy", "compute-optimal", "--total-budget", "160"),
}
HASHED = ("id", "pred", "completions", "scores", "agg_scores", "ledger", "tree")


def search_rows(arguments: tuple[str, ...], out: Path) -> list[dict]:
    """The result rows of one `ttc search`. Raises CalledProcessError where it fails."""
    command = [sys.executable, "-m", "engine.cli", "search", *COMMON, *arguments, "--out", str(out)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]


def digest(rows: list[dict]) -> str:
    """16 hex digits of the hashed fields of all rows, in order."""
    kept = [{name: row[name] for name in HASHED} for row in rows]
    return hashlib.blake2b(json.dumps(kept, sort_keys=True).encode(), digest_size=8).hexdigest()


def main() -> None:
    """Prints a hash per search, and the hash of all of them."""
    digests = []
    with tempfile.TemporaryDirectory() as folder, Progress("searches:", len(SEARCHES)) as progress:
        for number, (name, arguments) in enumerate(SEARCHES.items(), start=1):
            rows = search_rows(arguments, Path(folder, f"{number}.jsonl"))
            digests.append(digest(rows))
            print(f"{name:<20} {digests[-1]}  {len(rows)} rows", flush=True)
            progress.advance()
    print(f"all: {hashlib.blake2b(''.join(digests).encode(), digest_size=8).hexdigest()}")


if __name__ == "__main__":
    main()
