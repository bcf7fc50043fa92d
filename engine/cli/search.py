"""`ttc search`: problems in, one result row per problem out."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from types import SimpleNamespace
from typing import TYPE_CHECKING, Annotated

import typer

from engine.cli.inputs import DEFAULT_LIMIT, check_prompts, find_limits, find_problems, load_engine
from engine.cli.options import option as _option
from engine.errors import UserError

if TYPE_CHECKING:
    from pathlib import Path

    from engine.engine import Engine
    from engine.results.rows import Row
    from engine.scheduler import Planner
    from engine.search import Strategy
    from engine.types import Problem, Sampling


def search(
    ctx: typer.Context,
    problems: Annotated[
        str | None,
        typer.Argument(
            help="JSONL or Parquet file with `problem` (and `answer`, `id`), or a data set on the Hub, as owner/name."
        ),
    ] = None,
    task: Annotated[str, _option("How prompts are written and answers graded.", "Problems")] = "chain",
    split: Annotated[str, _option("Of the task, or of a data set: train, validation, test.", "Problems")] = "test",
    problem_column: Annotated[
        str | None, _option("Of the rows that are read; by default the task's.", "Problems")
    ] = None,
    answer_column: Annotated[
        str | None, _option("Of the rows that are read; by default the task's.", "Problems")
    ] = None,
    limit: Annotated[
        int | None, _option(f"The first so many problems; of task chain {DEFAULT_LIMIT}.", "Problems")
    ] = None,
    prompt_style: Annotated[
        str, _option("plain; chat: the model's template; steps, boxed: chats that ask for such answers.", "Prompts")
    ] = "plain",
    system_prompt: Annotated[str | None, _option("File or text, in the place of the style's own.", "Prompts")] = None,
    few_shot: Annotated[
        str | None, _option("Worked examples: JSONL with `problem` and `solution`, or any text.", "Prompts")
    ] = None,
    step_delimiter: Annotated[
        str | None, _option(r"Ends a step, \n being a line's end; by default the style's or task's.", "Prompts")
    ] = None,
    strategy: Annotated[
        str,
        _option("majority, best-of-n, beam, lookahead, dvts, rebase, adaptive, revisions, compute-optimal.", "Search"),
    ] = "beam",
    budget: Annotated[int, _option("Sampled answers per problem.", "Search")] = 16,
    beam_width: Annotated[int, _option("Children of a kept step.", "Search")] = 4,
    lookahead: Annotated[int, _option("Greedy steps beyond a step before it is scored.", "Search")] = 1,
    num_iterations: Annotated[int, _option("Steps of an answer, at most.", "Search")] = 40,
    max_duplicates: Annotated[
        int | None, _option("Kept steps that may say the same as a better one; by default all.", "Search")
    ] = None,
    rebase_temperature: Annotated[float, _option("Of the softmax that allots children.", "Search")] = 0.2,
    adaptive_batch: Annotated[int, _option("Answers before the vote is looked at again.", "Search")] = 4,
    confidence: Annotated[
        float, _option("At which adaptive stops; 1: no answer can overtake the leader.", "Search")
    ] = 1.0,
    parallel: Annotated[int, _option("Chains of revisions; each gets its share of the budget.", "Search")] = 4,
    context: Annotated[int, _option("Earlier attempts that a revision is shown, at most.", "Search")] = 4,
    judge_alone: Annotated[
        bool, _option("Show the ORM no attempts before the one it judges.", "Search", "--judge-alone")
    ] = False,
    calibration: Annotated[str, _option("File of `ttc calibrate`, for compute-optimal.", "Search")] = "home",
    total_budget: Annotated[
        int | None, _option("Divided over all problems, in the place of --budget for each.", "Search")
    ] = None,
    vote: Annotated[
        str, _option("weighted, naive, majority; of revisions also hierarchical, its default.", "Search")
    ] = "weighted",
    agg_strategy: Annotated[str, _option("last, min, prod, mean of an answer's step scores.", "Search")] = "last",
    verifier: Annotated[str, _option("prm, trunk, orm (of whole answers), oracle.", "Search")] = "prm",
    temperature: Annotated[float | None, _option("0 is greedy; by default the engine's.", "Sampling")] = None,
    top_p: Annotated[float | None, _option("Smallest set of tokens that holds this share.", "Sampling")] = None,
    top_k: Annotated[int | None, _option("Most likely tokens; 0 keeps all.", "Sampling")] = None,
    min_p: Annotated[float | None, _option("Least share of the likeliest token's.", "Sampling")] = None,
    max_tokens: Annotated[int | None, _option("Tokens of a completion; by default the task's.", "Sampling")] = None,
    seed: Annotated[int, _option("Of every draw.", "Sampling")] = 0,
    policy: Annotated[str, _option("Hugging Face folder, or the shipped policy.", "Models")] = "home",
    prm: Annotated[str | None, _option("Hugging Face folder; with the shipped policy `home`.", "Models")] = None,
    prm_spec: Annotated[
        str | None, _option("The PRM's format, where it is not detected: a built-in name or a YAML file.", "Models")
    ] = None,
    orm: Annotated[str | None, _option("Hugging Face folder of a verifier of answers.", "Models")] = None,
    orm_spec: Annotated[str | None, _option("The ORM's format, as --prm-spec.", "Models")] = None,
    trunk_head: Annotated[str | None, _option("Folder; with the shipped policy `home`.", "Models")] = None,
    reviser: Annotated[
        str | None, _option("Folder of the model that revises; with the shipped policy the shipped one.", "Models")
    ] = None,
    device: Annotated[str, _option("cpu, cuda.", "Models")] = "cpu",
    dtype: Annotated[str, _option("float32, bfloat16; with cuda float16.", "Models")] = "float32",
    max_batch: Annotated[
        int | None, _option("Branches of one forward; changes no result. Default: what is fastest.", "Models")
    ] = None,
    num_blocks: Annotated[
        int | None,
        _option("KV pool of each model, in blocks of 16 tokens; 1 GiB if not given, of a GPU most.", "Models"),
    ] = None,
    out: Annotated[str, _option("Results, one JSON row per problem.", "Output")] = "results.jsonl",
    overwrite: Annotated[bool, _option("Drop what --out holds.", "Output", "--overwrite")] = False,
    with_tree: Annotated[bool, _option("Put the search trees into the rows.", "Output", "--with-tree")] = False,
) -> None:
    """Searches for the answers of problems, within a budget each.

    A killed run goes on where it stopped when the same command is given again.
    """
    given = {name for name in ctx.params if ctx.get_parameter_source(name).name == "COMMANDLINE"}
    typer.echo(run_search(SimpleNamespace(**ctx.params), given))


def run_search(options: SimpleNamespace, given: Collection[str]) -> str:
    """Checks everything that can be checked, loads the models, searches; returns the closing line."""
    from engine.cli.runs import check_out, run_rows
    from engine.cli.strategies import build_strategy
    from engine.scheduler import ComputeOptimal

    check_out(options.out)
    strategy = build_strategy(options, given)
    problems, origins = find_problems(options, given)
    _check_total(options, given, strategy, len(problems))
    sampling, max_tokens = find_limits(options, strategy)
    engine, folders = load_engine(options, strategy)
    problems = [engine.as_problem(problem, index) for index, problem in enumerate(problems)]
    judge = engine.resolve_verifier(options.verifier) if strategy.is_scored else None
    check_prompts(engine, problems, origins, judge)
    settings = {
        "seed": options.seed,
        "sampling": sampling,
        "max_tokens": max_tokens,
        "agg_strategy": options.agg_strategy,
        "verifier": options.verifier,
    }
    strategy = _checked(strategy, engine, settings)

    def make_rows(todo: list[int]) -> Iterator[tuple[int, Row]]:
        from engine.results import result_row

        if options.total_budget is not None and isinstance(strategy, ComputeOptimal):
            # All of them, whatever is done: what one problem is given depends on all others.
            found = engine.search_batch(problems, strategy, options.total_budget, **settings)
            results = [(position, found[index]) for position, index in enumerate(todo)]
        else:
            chosen = [problems[index] for index in todo]
            results = engine.search_iter(chosen, strategy, options.budget, **settings)
        for position, result in results:
            yield todo[position], result_row(result, with_tree=options.with_tree)

    config = _config(options, strategy, sampling, max_tokens, problems, folders, engine)
    return run_rows(
        options.out, config, make_rows, num_total=len(problems), label="problems", overwrite=options.overwrite
    )


def _check_total(
    options: SimpleNamespace, given: Collection[str], strategy: Strategy | Planner, num_problems: int
) -> None:
    """Checks a total budget; the equal share is the budget where nothing better can be done with it."""
    if options.total_budget is None:
        return
    if "budget" in given:
        raise UserError(f"--budget has no effect with --total-budget, got {options.budget}")
    least = max(1, strategy.calibration.predictor.num_spent)
    if options.total_budget < least * num_problems:
        raise UserError(
            f"total_budget must be at least {least} for each of {num_problems} problems, got {options.total_budget}"
        )
    options.budget = options.total_budget // num_problems


def _checked(strategy: Strategy | Planner, engine: Engine, settings: dict) -> Strategy | Planner:
    """The strategy, or what runs in its place; the user is told why."""
    import warnings

    from engine.scheduler import ComputeOptimal

    if not isinstance(strategy, ComputeOptimal):
        return strategy
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        strategy = strategy.checked(engine.conditions(strategy, **settings))
    for warning in caught:
        typer.echo(f"warning: {warning.message}", err=True)
    return strategy


def _config(
    options: SimpleNamespace,
    strategy: Strategy | Planner,
    sampling: Sampling,
    max_tokens: int,
    problems: list[Problem],
    folders: dict[str, Path],
    engine: Engine,
) -> dict:
    """All that the rows depend on; what changes no row, such as the batch limit, is left out."""
    from dataclasses import asdict

    from engine.model.digest import checkpoint_digest
    from engine.results.digests import problems_digest, prompts_digest

    return {
        "task": options.task,
        "num_problems": len(problems),
        "problems": problems_digest(problems),
        "prompts": prompts_digest(engine.prompt_ids(problem.prompt) for problem in problems),
        "step_delimiter": engine.step_delimiter,
        "stops_at_box": engine.stops_at_box,
        "strategy": strategy.name,
        **{f"strategy.{name}": value for name, value in _strategy_options(strategy).items()},
        "budget": options.budget,
        **({} if options.total_budget is None else {"total_budget": options.total_budget}),
        "agg_strategy": options.agg_strategy if strategy.is_scored else None,
        "verifier": options.verifier if strategy.is_scored else None,
        "spec": asdict(engine.specs[options.verifier]) if options.verifier in folders else None,
        "sampling": asdict(sampling),
        "max_tokens": max_tokens,
        "seed": options.seed,
        **{f"{part}_digest": checkpoint_digest(folder) for part, folder in folders.items()},
        "device": options.device,
        "dtype": options.dtype,
        "with_tree": options.with_tree,
    }


def _strategy_options(strategy: Strategy | Planner) -> dict[str, object]:
    """Its fields as JSON values; a calibration stands for itself by its digest."""
    import hashlib
    from dataclasses import asdict

    from engine.scheduler import ComputeOptimal, strategy_label

    if not isinstance(strategy, ComputeOptimal):
        return asdict(strategy)
    digest = hashlib.blake2b(strategy.calibration.to_json().encode(), digest_size=12).hexdigest()
    return {"calibration": digest, "fallback": strategy_label(strategy.fallback)}
