"""Our engine against transformers on a CPU: best-of-N sampling, beam search with a PRM, cost against N.

    python -m benchmarks.engine --json out/engine.json

Both sides run in one process with the same threads, on the same checkpoints and prompts, turn by turn; figures
are medians over the repeats, and all repeats are in the JSON. transformers has the faster of its sdpa and eager
attention, chosen for each comparison by a timed trial, after a warm-up.

* Best-of-N: `--num-answers` samples of each prompt at temperature 1, exactly `--num-new` tokens each (both sides
  read a copy of the checkpoint that names no end-of-text token). transformers: one `generate` per prompt.
  `speedup` compares tokens per second with our side working on one prompt at a time, too;
  `speedup_batched` with all prompts in one continuous batch.
* Beam search: benchmarks/plain.py against `Engine.search`, the same selection rule. The texts are drawn by two
  different generators, so `speedup` compares generated tokens per second, one problem at a time on both sides;
  `speedup_batched` has our side search all problems at once. Seconds per problem stand beside.
* Cost: best-of-N on one prompt, our side alone, with the KV memory that it holds and what it would hold if
  every answer had a prompt of its own.

Nothing is timed before both sides have been found to compute the same logits and scores.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import transformers
from rich.console import Console
from rich.table import Table

from benchmarks import plain
from benchmarks.hardware import commit, hardware, versions
from benchmarks.timing import alternate, median_rate, raw, timed
from engine import LLM, BeamSearch, Engine, Problem, Sampling
from engine.model import resolve_dtype, resolve_folder
from engine.tasks import get_task, take_problems

MAX_DIFFERENCE = {"float32": 1e-4, "bfloat16": 5e-2}  # relative to the largest logit


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.engine", description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="write the report to this file")
    parser.add_argument("--policy", default="home", help="folder of the policy")
    parser.add_argument("--prm", default="home", help="folder of the process reward model")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--dtypes", default="float32,bfloat16", help="of best-of-N; the rest is float32")
    parser.add_argument("--num-prompts", type=int, default=3, help="of best-of-N")
    parser.add_argument("--num-answers", type=int, default=256, help="per prompt of best-of-N")
    parser.add_argument("--num-new", type=int, default=96, help="tokens per answer of best-of-N")
    parser.add_argument("--num-problems", type=int, default=6, help="of beam search")
    parser.add_argument("--budget", type=int, default=64, help="of beam search, in answers")
    parser.add_argument("--width", type=int, default=4, help="children of a kept step")
    parser.add_argument("--cost", default="16,64,256,1024", help="numbers of answers of the cost table")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    args = parse_arguments(arguments)
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(args.threads)
    policy, prm = resolve_folder(args.policy), resolve_folder(args.prm, "prm")
    report: dict[str, object] = {
        "hardware": hardware(),
        "versions": versions(),
        "commit": commit(),
        "settings": {name: value for name, value in vars(args).items() if name not in ("json", "policy", "prm")},
    }
    with tempfile.TemporaryDirectory() as folder:
        endless = without_end_of_text(policy, Path(folder))
        by_dtype = {name: best_of_n(endless, name, args) for name in args.dtypes.split(",")}
        cost = cost_against_n(endless, args)
    report["best_of_n"] = {"speedup": next(iter(by_dtype.values()))["speedup"], **by_dtype}
    report["beam"] = beam(policy, prm, args)
    report["cost"] = cost
    if args.json is not None:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(report, indent=2) + "\n")
    show(report, Console())


def without_end_of_text(policy: Path, folder: Path) -> Path:
    """A copy of a checkpoint in which no token ends a text."""
    for path in policy.iterdir():
        if path.name in ("config.json", "generation_config.json"):
            (folder / path.name).write_text(json.dumps({**json.loads(path.read_text()), "eos_token_id": None}))
        else:
            (folder / path.name).symlink_to(path.resolve())
    return folder


def take_prompts(llm: LLM, num: int) -> list[list[int]]:
    """Token ids of test problems."""
    task = get_task("chain")
    return [llm.encode(problem.prompt) for problem in take_problems(task, "test", num)]


# -- best-of-N ------------------------------------------------------------------------------------


def best_of_n(folder: Path, dtype: str, args: argparse.Namespace) -> dict[str, object]:
    """Both sides on the same prompts; exactly the same number of tokens."""
    llm = LLM.load(folder, dtype=dtype)
    prompts = take_prompts(llm, args.num_prompts)
    policies = {name: plain.load(folder, resolve_dtype(dtype), name) for name in plain.ATTENTIONS}
    difference = check_logits(llm, policies["eager"], prompts[0], MAX_DIFFERENCE[dtype])

    def theirs(attention: str, num_new: int, seed: int) -> int:
        torch.manual_seed(seed)
        return sum(
            plain.best_of_n(policies[attention], prompt, args.num_answers, num_new).numel()
            for prompt in prompts
        )

    attention, trials = faster(lambda name: theirs(name, -(-args.num_new // 3), 0))
    sample_answers(llm, prompts[:1], args.num_answers, args.num_new, seed=args.repeats)  # warm-up
    runs = alternate(
        {
            "theirs": lambda repeat: theirs(attention, args.num_new, repeat),
            "ours": lambda repeat: sum(
                sample_answers(llm, [prompt], args.num_answers, args.num_new, repeat) for prompt in prompts
            ),
            "ours_batched": lambda repeat: sample_answers(
                llm, prompts, args.num_answers, args.num_new, repeat
            ),
        },
        args.repeats,
    )
    rates = {name: median_rate(side) for name, side in runs.items()}
    return {
        "speedup": rates["ours"] / rates["theirs"],
        "speedup_batched": rates["ours_batched"] / rates["theirs"],
        **{f"{name}_tokens_per_second": rate for name, rate in rates.items()},
        "theirs_attention": attention,
        "attention_trials": trials,
        "largest_relative_difference_of_logits": difference,
        "runs": {name: raw(side) for name, side in runs.items()},
    }


def sample_answers(llm: LLM, prompts: list[list[int]], num_answers: int, num_new: int, seed: int) -> int:
    """Samples answers of all prompts in one continuous batch, from a cold cache; the number of tokens."""
    llm.runner.tree.clear_cache()
    roots = [llm.open(prompt) for prompt in prompts]
    branches = [branch for root in roots for branch in root.fork(num_answers)]
    results = llm.extend(branches, max_tokens=num_new, sampling=Sampling(temperature=1.0), seed=seed)
    for branch in branches + roots:
        branch.close()
    assert all(len(result.token_ids) == num_new for result in results), "an answer has ended early"
    return num_new * len(results)


def faster(side: Callable[[str], int]) -> tuple[str, dict[str, float]]:
    """The faster of transformers' attentions, and the tokens per second of each; warms both up."""
    rates = {}
    for name in plain.ATTENTIONS:
        side(name)
        rates[name] = timed(lambda name=name: side(name)).tokens_per_second
    return max(rates, key=rates.__getitem__), rates


def check_logits(llm: LLM, policy: torch.nn.Module, prompt: list[int], most: float) -> float:
    """The largest difference of both sides' next-token logits, relative to the largest logit.

    Raises ValueError if it is over `most`: what does not agree is not timed.
    """
    branch = llm.open(prompt)
    ours = llm.next_logits([branch])[0]
    branch.close()
    with torch.inference_mode():
        theirs = policy(torch.tensor([prompt])).logits[0, -1].float()
    difference = ((ours - theirs).abs().max() / theirs.abs().max()).item()
    if not difference <= most:
        raise ValueError(f"logits differ by {difference:.2g} of the largest, at most {most:g} is allowed")
    return difference


# -- beam search ----------------------------------------------------------------------------------


def beam(policy: Path, prm: Path, args: argparse.Namespace) -> dict[str, object]:
    """Both sides on the same problems, float32."""
    engine = Engine.load(policy, prm=prm)
    problems = take_problems(engine.task, "test", args.num_problems)
    searches = {name: plain_search(engine, policy, prm, name, args) for name in plain.ATTENTIONS}
    prompts = [engine.policy.encode(problem.prompt) for problem in problems]
    search = searches["eager"]
    differences = [
        check_logits(engine.policy, search.policy, prompts[0], MAX_DIFFERENCE["float32"]),
        check_score(engine, search, prompts[0], MAX_DIFFERENCE["float32"]),
    ]

    def theirs(attention: str, prompts: list[list[int]], seed: int) -> int:
        torch.manual_seed(seed)
        return sum(searches[attention](prompt).num_tokens for prompt in prompts)

    attention, trials = faster(lambda name: theirs(name, prompts[:1], 0))
    search_all(engine, problems, args, seed=args.repeats)  # warm-up
    runs = alternate(
        {
            "theirs": lambda repeat: theirs(attention, prompts, repeat),
            "ours": lambda repeat: sum(
                search_all(engine, [problem], args, repeat) for problem in problems
            ),
            "ours_batched": lambda repeat: search_all(engine, problems, args, repeat),
        },
        args.repeats,
    )
    rates = {name: median_rate(side) for name, side in runs.items()}
    seconds = {
        f"{name}_seconds_per_problem": statistics.median(run.seconds for run in side) / len(problems)
        for name, side in runs.items()
    }
    return {
        "speedup": rates["ours"] / rates["theirs"],
        "speedup_batched": rates["ours_batched"] / rates["theirs"],
        **{f"{name}_tokens_per_second": rate for name, rate in rates.items()},
        **seconds,
        "theirs_attention": attention,
        "attention_trials": trials,
        "largest_relative_difference_of_logits": differences[0],
        "largest_difference_of_scores": differences[1],
        "runs": {name: raw(side) for name, side in runs.items()},
    }


def search_all(engine: Engine, problems: list[Problem], args: argparse.Namespace, seed: int) -> int:
    """Searches problems at the same time, from cold caches; the number of tokens generated."""
    for llm in (engine.policy, engine.prm):
        llm.runner.tree.clear_cache()
    results = engine.search(problems, BeamSearch(args.width), args.budget, seed=seed, sampling=Sampling(1.0))
    return sum(result.ledger.tokens["generated"] for result in results)


def plain_search(
    engine: Engine, policy: Path, prm: Path, attention: str, args: argparse.Namespace
) -> plain.PlainBeamSearch:
    (newline,) = engine.policy.encode(engine.task.delimiter, is_start=False)
    (eos,) = engine.policy.config.eos_token_ids
    return plain.PlainBeamSearch(
        plain.load(policy, torch.float32, attention),
        plain.load(prm, torch.float32, attention, is_verifier=True),
        newline=newline,
        eos=eos,
        pad=eos,  # masked wherever it stands
        budget=args.budget,
        width=args.width,
        max_tokens=engine.task.max_tokens,
    )


def check_score(engine: Engine, search: plain.PlainBeamSearch, prompt: list[int], most: float) -> float:
    """The difference of both sides' PRM scores of one text. Raises ValueError if it is over `most`."""
    llm, whole = engine.prm, plain.Beam(prompt)
    root = llm.open(prompt[:-1])
    request = llm.append([root], [prompt[-1:]], [[0]])
    llm.run(request)
    root.close()
    with torch.inference_mode():
        search.score([whole])
    difference = abs(request.scores[0][0] - whole.score)
    if not difference <= most:
        raise ValueError(f"PRM scores differ by {difference:.2g}, at most {most:g} is allowed")
    return difference


# -- cost against N -------------------------------------------------------------------------------


def cost_against_n(folder: Path, args: argparse.Namespace) -> list[dict[str, float]]:
    """Time and KV memory of best-of-N on one prompt, float32."""
    gc.collect()
    llm = LLM.load(folder)
    (prompt,) = take_prompts(llm, 1)
    numbers = [int(number) for number in args.cost.split(",")]
    for number in numbers:
        sample_answers(llm, [prompt], number, 4, seed=0)  # warm-up
    rows = []
    for number in numbers:
        runs = [
            timed(lambda repeat=repeat, number=number: sample_answers(llm, [prompt], number, args.num_new, repeat))
            for repeat in range(args.repeats)
        ]
        shared, unshared = kv_bytes(llm, prompt, number, args.num_new)
        rows.append(
            {
                "num_answers": number,
                "seconds": statistics.median(run.seconds for run in runs),
                "tokens_per_second": median_rate(runs),
                "kv_bytes": shared,
                "kv_bytes_unshared": unshared,
            }
        )
    return rows


def kv_bytes(llm: LLM, prompt: list[int], num_answers: int, num_new: int) -> tuple[int, int]:
    """KV memory at the end of best-of-N in whole blocks: as it is, and with a prompt for every answer."""
    tree, pool = llm.runner.tree, llm.runner.pool
    tree.clear_cache()
    num_before = tree.num_free_blocks
    root = llm.open(prompt)
    branches = root.fork(num_answers)
    llm.extend(branches, max_tokens=num_new)
    num_shared = num_before - tree.num_free_blocks
    block_size = pool.v.shape[3]
    # The last sampled token has not been fed, so it has no KV.
    num_unshared = num_answers * -(-(len(prompt) + num_new - 1) // block_size)
    for branch in [*branches, root]:
        branch.close()
    return num_shared * pool.bytes_per_block, num_unshared * pool.bytes_per_block


# -- what is printed ------------------------------------------------------------------------------


def show(report: dict, console: Console) -> None:
    """The report as tables."""
    machine = report["hardware"]
    console.print(
        f"{machine['cpu']}, {machine['num_threads']} threads, {machine['instruction_set']}; "
        f"commit {report['commit']}; " + ", ".join(f"{k} {v}" for k, v in report["versions"].items())
    )
    table = Table("tokens per second", "transformers", "ours", "speed-up", "ours, batched", "speed-up")
    sections = {f"best-of-N, {k}": v for k, v in report["best_of_n"].items() if k != "speedup"}
    for name, figures in {**sections, "beam search": report["beam"]}.items():
        table.add_row(
            name,
            f"{figures['theirs_tokens_per_second']:,.0f} ({figures['theirs_attention']})",
            f"{figures['ours_tokens_per_second']:,.0f}",
            f"{figures['speedup']:.1f}",
            f"{figures['ours_batched_tokens_per_second']:,.0f}",
            f"{figures['speedup_batched']:.1f}",
        )
    console.print(table)
    table = Table("answers", "seconds", "tokens per second", "KV, shared", "KV, unshared")
    for row in report["cost"]:
        table.add_row(
            str(row["num_answers"]),
            f"{row['seconds']:.3f}",
            f"{row['tokens_per_second']:,.0f}",
            f"{row['kv_bytes'] / 2**20:.1f} MiB",
            f"{row['kv_bytes_unshared'] / 2**20:.1f} MiB",
        )
    console.print(table)


if __name__ == "__main__":
    main()
