"""Best-of-N sampling: our side against one `generate` per prompt, and what N costs."""

from __future__ import annotations

import argparse
import json
from functools import partial
from pathlib import Path

import torch

from benchmarks.throughput import plain
from benchmarks.throughput.agreement import check_logits
from benchmarks.timing import alternate, compare, faster, median_rate, median_seconds
from engine import LLM, Sampling
from engine.model import resolve_dtype
from engine.reports.progress import Progress
from engine.tasks import get_task, take_problems


def without_end_of_text(policy: Path, folder: Path) -> Path:
    """A copy of a checkpoint in which no token ends a text: every answer has as many tokens as asked."""
    for path in policy.iterdir():
        if path.name in ("config.json", "generation_config.json"):
            endless = {**json.loads(path.read_text()), "eos_token_id": None}
            (folder / path.name).write_text(json.dumps(endless))
        else:
            (folder / path.name).symlink_to(path.resolve())
    return folder


def take_prompts(llm: LLM, num: int) -> list[list[int]]:
    """Token ids of test problems."""
    return [llm.encode(problem.prompt) for problem in take_problems(get_task("walks"), "test", num)]


def best_of_n(folder: Path, dtype: str, args: argparse.Namespace, progress: Progress) -> dict[str, object]:
    """The figures of both sides on the same prompts, exactly the same numbers of tokens."""
    llm = LLM.load(folder, dtype=dtype)
    prompts = take_prompts(llm, args.num_prompts)
    policies = {name: plain.load(folder, resolve_dtype(dtype), name) for name in plain.ATTENTIONS}
    difference = check_logits(llm, policies["eager"], prompts[0], dtype)

    def theirs(attention: str, num_new: int, prompts: list[list[int]], seed: int) -> int:
        torch.manual_seed(seed)
        model = policies[attention]
        return sum(plain.best_of_n(model, prompt, args.num_answers, num_new).numel() for prompt in prompts)

    def ours(prompts: list[list[int]], seed: int) -> int:
        return sample_answers(llm, prompts, args.num_answers, args.num_new, seed)

    attention, trials = faster(lambda name: theirs(name, args.num_new, prompts[:1], 0), plain.ATTENTIONS)
    ours(prompts, 0)  # warm-up
    runs = alternate(
        {
            "theirs": partial(theirs, attention, args.num_new, prompts),
            "ours": lambda seed: sum(ours([prompt], seed) for prompt in prompts),
            "ours_batched": partial(ours, prompts),
        },
        args.repeats,
        progress,
    )
    return {
        **compare(runs),
        "theirs_attention": attention,
        "theirs_trials_tokens_per_second": trials,
        "largest_relative_difference_of_logits": difference,
    }


def sample_answers(llm: LLM, prompts: list[list[int]], num_answers: int, num_new: int, seed: int) -> int:
    """Samples answers of all prompts in one continuous batch, from a cold cache; the number of tokens."""
    llm.clear_cache()
    roots = [llm.open(prompt) for prompt in prompts]
    branches = [branch for root in roots for branch in root.fork(num_answers)]
    results = llm.generate(branches, max_tokens=num_new, sampling=Sampling(temperature=1.0), seed=seed)
    for branch in branches + roots:
        branch.close()
    assert all(len(result.token_ids) == num_new for result in results), "an answer has ended early"
    return num_new * len(results)


def cost_against_n(folder: Path, args: argparse.Namespace, progress: Progress) -> list[dict[str, float]]:
    """Time and KV memory of best-of-N on one prompt, the longest of 16, our side alone, float32."""
    llm = LLM.load(folder)
    prompt = max(take_prompts(llm, 16), key=len)  # one under a block would have nothing to share
    rows = []
    for num_answers in args.cost:
        sample = partial(sample_answers, llm, [prompt], num_answers)
        sample(2, 0)  # warm-up
        name = f"{num_answers} answers"
        runs = alternate({name: partial(sample, args.num_new)}, args.repeats, progress)[name]
        shared, unshared = kv_bytes(llm, prompt, num_answers, args.num_new)
        rows.append(
            {
                "num_answers": num_answers,
                "seconds": median_seconds(runs),
                "tokens_per_second": median_rate(runs),
                "kv_bytes": shared,
                "kv_bytes_unshared": unshared,
            }
        )
    return rows


def kv_bytes(llm: LLM, prompt: list[int], num_answers: int, num_new: int) -> tuple[int, int]:
    """KV memory at the end of best-of-N in whole blocks: as it is, and with a prompt for every answer."""
    tree, pool = llm.runner.tree, llm.runner.pool
    llm.clear_cache()
    num_before = tree.num_free_blocks
    root = llm.open(prompt)
    branches = root.fork(num_answers)
    llm.generate(branches, max_tokens=num_new)
    num_shared = num_before - tree.num_free_blocks
    # The last sampled token has not been computed, so it has no KV.
    num_unshared = num_answers * -(-(len(prompt) + num_new - 1) // pool.v.shape[3])
    for branch in [*branches, root]:
        branch.close()
    return num_shared * pool.bytes_per_block, num_unshared * pool.bytes_per_block
