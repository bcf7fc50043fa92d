"""The same greedy search on a GPU and on the CPU, token for token.

    python -m benchmarks.gpu.search --json out/search.json

float32 without TF32. The two sides add up in another order, so that one of two nearly equal tokens may win on one of
them: a first difference is allowed where the CPU's two best logits lie within 1e-3. What follows it is another text.
Exit status 1 for any other difference, 2 where the engine does not run on the device.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial

import torch

from benchmarks.options import make_parser
from engine import BestOfN, Engine, Problem
from engine.commands import run_command
from engine.reports.progress import Progress
from engine.results.provenance import provenance, write_json
from engine.tasks import take_problems
from engine.types import GREEDY, SearchResult

MAX_GAP = 1e-3  # of logits
MAX_SCORE_DIFFERENCE = 1e-3
NUM_BLOCKS = 4096  # of each KV pool


def compare(cpu: Engine, other: Engine, problems: Sequence[Problem]) -> dict[str, object]:
    """What differs between the greedy answers of two engines, the first of which is right."""
    found: list[list[SearchResult]] = []
    with Progress("searches:", 2) as progress:
        for engine in (cpu, other):
            found.append(engine.search(problems, BestOfN(), 1, sampling=GREEDY))
            progress.advance()
    pairs = list(zip(*found, strict=True))
    return {
        "num_problems": len(problems),
        "num_tokens": sum(len(_answer_ids(cpu, right)) for right, _ in pairs),
        "differences": [each for right, result in pairs if (each := difference(cpu, right, result)) is not None],
    }


def difference(cpu: Engine, right: SearchResult, result: SearchResult) -> dict[str, object] | None:
    """The first token in which two answers differ, or their scores; None where they are the same."""
    expected, tokens = (_answer_ids(cpu, each) for each in (right, result))
    first, second = right.candidates[0], result.candidates[0]
    if tokens == expected and first.finish == second.finish:
        scores = [first.agg_score, second.agg_score]
        is_same = abs(scores[0] - scores[1]) <= MAX_SCORE_DIFFERENCE
        return None if is_same else {"problem": right.problem.id, "scores": scores, "is_allowed": False}
    pairs = zip(expected, tokens, strict=False)
    same = next((i for i, pair in enumerate(pairs) if pair[0] != pair[1]), min(len(expected), len(tokens)))
    gap = best_gap(cpu, cpu.policy.encode(right.problem.prompt) + expected[:same])
    return {"problem": right.problem.id, "position": same, "gap": gap, "is_allowed": gap <= MAX_GAP}


def _answer_ids(engine: Engine, result: SearchResult) -> list[int]:
    return engine.policy.encode(result.candidates[0].text, is_start=False)


def best_gap(engine: Engine, token_ids: list[int]) -> float:
    """The difference of the two highest logits after these tokens."""
    branch = engine.policy.open(token_ids)
    first, second = engine.policy.next_logits([branch])[0].topk(2).values.tolist()
    branch.close()
    return first - second


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status."""
    parser = make_parser("gpu.search", __doc__)
    parser.add_argument("--device", default="cuda", choices=("cpu", "cuda"))
    parser.add_argument("--num-problems", type=int, default=32)
    return run_command(partial(run, parser.parse_args(arguments)))


def compare_on(device: str, num_problems: int) -> dict[str, object]:
    """What differs between the home models' greedy answers on a device and on the CPU."""
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    engines = [Engine.load("home", device=each, num_blocks=NUM_BLOCKS) for each in ("cpu", device)]
    return compare(*engines, take_problems(engines[0].task, "test", num_problems))


def run(args: argparse.Namespace) -> int:
    """Compares, writes the report; returns 1 for a difference that is not allowed."""
    report = provenance(args.device) | compare_on(args.device, args.num_problems)
    write_json(args.json, report)
    wrong = [each for each in report["differences"] if not each["is_allowed"]]
    print(
        f"{report['num_tokens']} tokens of {report['num_problems']} problems: {len(report['differences'])} answers "
        f"differ, {len(wrong)} of them where no two tokens are nearly equal {wrong[:3] or ''}"
    )
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
