"""What every rank of tests/model/test_ranks.py runs: `python -m tests.model.rank_program FOLDER`.

It has the environment that torchrun gives, forks into two ranks once all is imported, and each leaves what it finds in
FOLDER/found.RANK.
"""

from __future__ import annotations

import contextlib
import io
import os
import pickle
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from engine import BeamSearch, BestOfN, Engine, Sampling
from engine.cli import main
from engine.model import Ranks, resolve_device
from engine.results import result_row
from engine.runtime import LLM
from engine.types import GREEDY, Problem
from ttc_kernels.sample import RowSampling, sample

STEM = "?5?2?=c;d3?1?4?;?0?3?1?=e;b2?4?5?0?"
PROBLEMS = [
    Problem("a", f"{STEM};a1?\n", "0"),
    Problem("b", f"{STEM};f3?;?2?=b\n", "0"),
    Problem("c", "?3?5?=a\n", "0"),
]
FAMILIES = ("LlamaForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM", "MistralForCausalLM")
FILTERED = Sampling(temperature=0.8, top_k=7, top_p=0.9, min_p=0.01)
SEARCHES = {
    "greedy beam": (BeamSearch(2), GREEDY, "prm"),
    "sampled beam": (BeamSearch(2), Sampling(temperature=0.8), "prm"),
    "sampled best-of-n": (BestOfN(), Sampling(temperature=0.8), "prm"),
    "filtered best-of-n": (BestOfN(), FILTERED, "trunk"),
}
NAN, INF = float("nan"), float("inf")


def next_logits(llm: LLM) -> torch.Tensor:
    """Of a prompt, and of two branches after it."""
    branches = llm.open(PROBLEMS[0].prompt).fork(3)
    llm.append(branches[:2], [[5, 6, 7], [9]])
    return llm.next_logits(branches)


def generated(llm: LLM) -> list[tuple[int, ...]]:
    """What eight branches of a prompt draw."""
    branches = llm.open(PROBLEMS[0].prompt).fork(8)
    return [sampled.token_ids for sampled in llm.generate(branches, max_tokens=40, seed=2)]


def load(folder: Path, **options) -> Engine:
    parts = {"policy": folder / "policy", "prm": folder / "prm", "trunk_head": folder / "trunk_head"}
    return Engine.load(**parts, **{"num_blocks": 512, **options})


def rows_of(engine: Engine, name: str) -> list[dict]:
    strategy, sampling, verifier = SEARCHES[name]
    options = {"sampling": sampling, "verifier": verifier, "max_tokens": 30, "seed": 3}
    found = engine.search(PROBLEMS, strategy, 4, **options)
    for llm in (engine.policy, engine.prm):
        assert llm.free_share == 1
        llm.runner.tree.check_integrity()
    return [result_row(result) for result in found]


def drawing(num_rows: int, vocab_size: int, sampling: Sampling) -> tuple[torch.Tensor, RowSampling]:
    """Logits with ties, infinities and NaN in some rows, and how each row is drawn."""
    logits = torch.randint(-3, 4, (num_rows, vocab_size), generator=torch.Generator().manual_seed(5)).float()
    logits[1, :30] = -INF
    logits[2, 30:] = -INF
    logits[3] = -INF
    logits[4, 2], logits[5, 38], logits[6, 38], logits[7, 2] = NAN, NAN, INF, INF
    keys, positions = torch.arange(num_rows) * 7, torch.arange(num_rows, dtype=torch.int32)
    values = (sampling.temperature, sampling.top_k, sampling.top_p, sampling.min_p)
    types = (torch.float32, torch.int32, torch.float32, torch.float32)
    return logits, RowSampling(
        keys, positions, *(torch.full((num_rows,), x, dtype=dtype) for x, dtype in zip(values, types, strict=True))
    )


def draws(ranks: Ranks) -> list[tuple[torch.Tensor, ...]]:
    """Per sampling: tokens and log-probabilities of the ranks, and of one process; the logits of both."""
    found = []
    for sampling in (GREEDY, Sampling(temperature=0.7)):
        logits, how = drawing(64, 41, sampling)
        tokens = ranks.tokens(41)
        part = logits[:, tokens.start : tokens.stop]
        found.append((*ranks.draw(part, 41, how, "auto"), *sample(logits, *how), ranks.all_logits(part, 41), logits))
    return found


def cut_last_row(out: Path) -> None:
    """As if the run that wrote `out` had been killed before its last problem."""
    journal = Path(f"{out}.ledger")
    journal.write_bytes(b"".join(journal.read_bytes().splitlines(keepends=True)[:-1]))
    out.unlink()


def command_line(folder: Path, ranks: Ranks) -> list[tuple[int, str]]:
    """Status and stdout of a search, of the same once its last row is lost, and of the same once more."""
    out = folder / "rows.jsonl"
    line = ["search", "--policy", folder / "policy", "--prm", folder / "prm", "--out", out, "--limit", 3, "--budget", 4]
    line += ["--max-tokens", 20, "--num-blocks", 512, "--tensor-parallel", ranks.size]
    found = []
    for number in range(3):
        if number == 1 and ranks.rank == 0:
            cut_last_row(out)
        with contextlib.redirect_stdout(io.StringIO()) as said:
            found.append((main([str(word) for word in line]), said.getvalue()))
    return found


def run(folder: Path) -> dict[str, object]:
    place = resolve_device("cpu", 2)
    engine = load(folder, tensor_parallel=2)
    tight = LLM.load(folder / "policy", device=place, num_blocks=9)
    return {
        "logits": {name: next_logits(LLM.load(folder / name, device=place, num_blocks=64)) for name in FAMILIES},
        "shapes": [list(engine.policy.runner.pool.k.shape), list(engine.prm.runner.pool.k.shape)],
        "rows": {name: rows_of(engine, name) for name in SEARCHES},
        "tight": generated(tight),
        "suspensions": tight.runner.num_suspensions,
        "draws": draws(place.ranks),
        "command line": command_line(folder, place.ranks),
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    second = os.fork()
    os.environ["RANK"] = os.environ["LOCAL_RANK"] = "0" if second else "1"
    folder = Path(sys.argv[1])
    found = run(folder)
    (folder / f"found.{os.environ['RANK']}").write_bytes(pickle.dumps(found))
    dist.destroy_process_group()
    assert not second or os.waitpid(second, 0)[1] == 0
