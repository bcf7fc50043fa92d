"""`ttc search`: problems in, one result row per problem out."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING

import typer

from engine.cli.inputs import ENDPOINTS, MODELS, PLACES, PROMPTS, check_prompts, checked_config, load_engine
from engine.cli.options import Given, command
from engine.cli.outputs import RunOutput
from engine.cli.problems import ProblemOptions, find_problems
from engine.cli.replicas import REPLICAS, ReplicaOptions
from engine.cli.strategies import StrategyOptions, build_strategy
from engine.config import EngineConfig, SearchConfig, is_endpoint
from engine.errors import UserError
from engine.results import error_row, result_row
from engine.results.digests import problems_digest, prompts_digest
from engine.scheduler import ComputeOptimal, Planner, strategy_label
from engine.search import Strategy

if TYPE_CHECKING:
    from pathlib import Path

    from engine.distributed import Replicas
    from engine.engine import Engine
    from engine.results.rows import Row
    from engine.types import Problem, SearchResult


@dataclass(frozen=True)
class Output(RunOutput):
    """Where the rows go, and what is in them."""

    with_tree: bool = field(default=False, metadata={"flags": "--with-tree"})
    """Put the search trees into the rows."""


@command(
    {
        "Problems": "task split problem_column answer_column limit",
        "Prompts": PROMPTS,
        "Search": "strategy budget beam_width lookahead num_iterations max_duplicates rebase_temperature "
        "adaptive_batch confidence stop parallel context judge_alone calibration total_budget vote agg_strategy "
        "verifier",
        "Sampling": "temperature top_p top_k min_p max_tokens seed",
        "Models": f"{MODELS} {PLACES} {ENDPOINTS}",
        "Cluster": REPLICAS,
        "Output": "out overwrite with_tree shard on_error retry_errors",
    }
)
def search(
    given: Given,
    source: ProblemOptions,
    models: EngineConfig,
    config: SearchConfig,
    chosen: StrategyOptions,
    cluster: ReplicaOptions,
    output: Output,
) -> None:
    """Searches for the answers of problems, within a budget each.

    A killed run goes on where it stopped when the same command is given again.
    """
    from engine.cli.runs import check_out, follow_rows, run_rows

    output, replicas = output.placed(given), cluster.asked(given, models)
    check_out(output.out, source.problems, models.few_shot)
    strategy = build_strategy(chosen, config.verifier, given)
    problems, origins = find_problems(source, models.task, given)
    config = _with_total(config, chosen.total_budget, given, strategy, len(problems))
    if chosen.total_budget is not None:
        _check_alone(output, cluster)
    config = checked_config(config, models.task, strategy)
    engine, folders = load_engine(models, strategy, config.verifier, f"--strategy {chosen.strategy}")
    judge = engine.resolve_verifier(config.verifier) if strategy.is_scored else None
    refused = check_prompts(engine, problems, origins, judge, keeps_errors=output.keeps_errors)
    strategy = _checked(strategy, engine, config)

    searches = _Searches(engine, problems, strategy, config, chosen.total_budget, output, refused, models, replicas)
    depends_on = {
        **_inputs(engine, models.task, problems, refused),
        **strategy_fields(strategy),
        "budget": config.budget,
        **({} if chosen.total_budget is None else {"total_budget": chosen.total_budget}),
        **_verifier_fields(engine, strategy, config, folders),
        **_model_fields(models, config, folders),
        **({"policy": engine.policy.folder} if is_endpoint(models.policy) else {}),
        "with_tree": output.with_tree,
    }  # what changes no row, such as the batch limit or the shard, is left out
    if engine.policy.ranks.rank:
        follow_rows(searches.rows, engine.policy.ranks)
        return
    shown = {"num_total": len(problems), "label": "problems", "ranks": engine.policy.ranks}
    typer.echo(run_rows(output, depends_on, searches.rows, **shown))


@dataclass(frozen=True)
class _Searches:
    """What is to be searched, and how."""

    engine: Engine
    problems: Sequence[Problem]
    strategy: Strategy | Planner
    config: SearchConfig
    total_budget: int | None
    output: Output
    refused: Mapping[int, Exception]  # problems by position, whose prompts are too long
    models: EngineConfig
    replicas: Replicas | None

    def rows(self, todo: list[int]) -> Iterator[tuple[int, Row]]:
        """Yields the positions and rows of problems as they are finished."""
        yield from ((index, self._row(index, self.refused[index])) for index in todo if index in self.refused)
        todo = [index for index in todo if index not in self.refused]
        for position, found in self._found(todo):
            yield todo[position], self._row(todo[position], found)

    def _found(self, todo: Sequence[int]) -> Iterable[tuple[int, SearchResult | Row | Exception]]:
        if self.total_budget is not None and isinstance(self.strategy, ComputeOptimal):
            # All of them, whatever is done: what one problem is given depends on all others.
            found = self.engine.search_batch(self.problems, self.strategy, self.total_budget, self.config)
            return [(position, found[index]) for position, index in enumerate(todo)]
        asked = [self.problems[index] for index in todo], self.strategy
        options = {"config": self.config, "on_error": "yield" if self.output.keeps_errors else "raise"}
        if self.replicas is None:
            return self.engine.search_iter(*asked, **options)
        from engine import distributed

        to_row = partial(result_row, with_tree=self.output.with_tree)
        return distributed.search(*asked, self.models, replicas=self.replicas, convert=to_row, **options)

    def _row(self, index: int, found: SearchResult | Row | Exception) -> Row:
        if isinstance(found, Exception):
            named = {"strategy": self.strategy.name, "budget": self.config.budget, "seed": self.config.seed}
            return error_row(self.problems[index], found, **named)
        return found if isinstance(found, dict) else result_row(found, with_tree=self.output.with_tree)


def _with_total(
    config: SearchConfig, total: int | None, given: Given, strategy: Strategy | Planner, num_problems: int
) -> SearchConfig:
    """Checks a total budget; the equal share is the budget where nothing better can be done with it."""
    if total is None:
        return config
    if "budget" in given:
        raise UserError(f"--budget has no effect with --total-budget, got {config.budget}")
    least = max(1, strategy.calibration.predictor.num_spent)
    if total < least * num_problems:
        raise UserError(f"total_budget must be at least {least} for each of {num_problems} problems, got {total}")
    return replace(config, budget=total // num_problems)


def _check_alone(output: Output, cluster: ReplicaOptions) -> None:
    """Raises UserError for what is asked of single problems where what each is given depends on all others."""
    output.refuse_shard("--total-budget", "as what a problem is given depends on all others")
    if cluster.ray is not None:
        raise UserError(
            f"--total-budget is not for --ray, as what a problem is given depends on all others, got {cluster.ray!r}"
        )
    if output.keeps_errors:
        raise UserError(
            "--on-error row is not for --total-budget, as what a problem is given depends on all others, got "
            f"{output.on_error!r}"
        )


def _checked(strategy: Strategy | Planner, engine: Engine, config: SearchConfig) -> Strategy | Planner:
    """The strategy, or what runs in its place; a warning says why."""
    return strategy.checked(engine.conditions(strategy, config)) if isinstance(strategy, ComputeOptimal) else strategy


def _inputs(engine: Engine, task: str, problems: Sequence[Problem], refused: Collection[int]) -> dict[str, object]:
    """What is asked; the prompts without those that are refused, which may have no token ids."""
    held = (problem for index, problem in enumerate(problems) if index not in refused)
    return {
        "task": task,
        "num_problems": len(problems),
        "problems": problems_digest(problems),
        "prompts": prompts_digest(engine.given(problem.prompt) for problem in held),
        "step_delimiter": engine.step_delimiter,
        "stops_at_box": engine.stops_at_box,
    }


def _verifier_fields(
    engine: Engine, strategy: Strategy | Planner, config: SearchConfig, folders: Mapping[str, Path]
) -> dict[str, object]:
    return {
        "agg_strategy": config.agg_strategy if strategy.is_scored else None,
        "verifier": config.verifier if strategy.is_scored else None,
        "spec": asdict(engine.specs[config.verifier]) if config.verifier in folders else None,
    }


def _model_fields(models: EngineConfig, config: SearchConfig, folders: Mapping[str, Path]) -> dict[str, object]:
    from engine.model.digest import checkpoint_digest

    return {
        "sampling": asdict(config.sampling),
        "max_tokens": config.max_tokens,
        "seed": config.seed,
        **{f"{part}_digest": checkpoint_digest(folder) for part, folder in folders.items()},
        "device": models.device,
        **({} if models.verifier_device is None else {"verifier_device": models.verifier_device}),
        **({} if models.tensor_parallel == 1 else {"tensor_parallel": models.tensor_parallel}),
        "dtype": models.dtype,
    }


def strategy_fields(strategy: Strategy | Planner) -> dict[str, object]:
    """Its name and its fields as JSON values; of a calibration its digest."""
    if isinstance(strategy, ComputeOptimal):
        digest = hashlib.blake2b(strategy.calibration.to_json().encode(), digest_size=12).hexdigest()
        named = {"calibration": digest, "fallback": strategy_label(strategy.fallback)}
    else:
        named = asdict(strategy)
    return {"strategy": strategy.name, **{f"strategy.{name}": value for name, value in named.items()}}
