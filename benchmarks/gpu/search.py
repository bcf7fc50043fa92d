"""The same greedy search on a GPU and on the CPU, token for token.

    python -m benchmarks.gpu_search --json out/search.json

float32 without TF32. The two sides add up in another order, so that one of two nearly equal tokens may win on one of
them: a first difference is allowed where the CPU's two best logits lie within 1e-3. What follows it is another text.
Exit status 1 for any other difference, and where the engine does not run on the device.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.clock import check_device, machine
from benchmarks.hardware import commit
from engine import BestOfN, Engine, Problem
from engine.tasks import take_problems
from engine.types import GREEDY

MAX_GAP = 1e-3  # of logits
MAX_SCORE_DIFFERENCE = 1e-3
NUM_BLOCKS = 4096  # of each KV pool


def compare(cpu: Engine, other: Engine, problems: Sequence[Problem]) -> dict[str, object]:
    """What differs between the greedy answers of two engines, the first of which is right."""
    differences, num_tokens = [], 0
    found = [engine.search(problems, BestOfN(), 1, sampling=GREEDY) for engine in (cpu, other)]
    for problem, right, result in zip(problems, *found, strict=True):
        texts = [item.candidates[0].text for item in (right, result)]
        expected, tokens = (cpu.policy.encode(text, is_start=False) for text in texts)
        num_tokens += len(expected)
        scores = [item.candidates[0].agg_score for item in (right, result)]
        if tokens == expected and right.candidates[0].finish == result.candidates[0].finish:
            if abs(scores[0] - scores[1]) > MAX_SCORE_DIFFERENCE:
                differences.append({"problem": problem.id, "scores": scores, "is_allowed": False})
            continue
        pairs = zip(expected, tokens, strict=False)
        same = next((i for i, pair in enumerate(pairs) if pair[0] != pair[1]), min(len(expected), len(tokens)))
        gap = best_gap(cpu, cpu.policy.encode(problem.prompt) + expected[:same])
        differences.append({"problem": problem.id, "position": same, "gap": gap, "is_allowed": gap <= MAX_GAP})
    return {"num_problems": len(problems), "num_tokens": num_tokens, "differences": differences}


def best_gap(engine: Engine, token_ids: list[int]) -> float:
    """Between the two highest logits after these tokens."""
    branch = engine.policy.open(token_ids)
    first, second = engine.policy.next_logits([branch])[0].topk(2).values.tolist()
    branch.close()
    return first - second


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_search", description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda", choices=("cpu", "cuda"))
    parser.add_argument("--num-problems", type=int, default=32)
    parser.add_argument("--json", type=Path, help="write the report to this file")
    args = parser.parse_args(arguments)
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    try:
        check_device(args.device)
        engines = [Engine.load("home", device=device, num_blocks=NUM_BLOCKS) for device in ("cpu", args.device)]
    except ValueError as error:
        print(f"error: {error}")
        return 1
    problems = take_problems(engines[0].task, "test", args.num_problems)
    report = compare(*engines, problems) | {"hardware": machine(args.device), "commit": commit()}
    if args.json is not None:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(report, indent=2) + "\n")
    wrong = [difference for difference in report["differences"] if not difference["is_allowed"]]
    print(
        f"{report['num_tokens']} tokens of {report['num_problems']} problems: {len(report['differences'])} answers "
        f"differ, {len(wrong)} of them where no two tokens are nearly equal {wrong[:3] or ''}"
    )
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
