"""What the options of a command that searches name: problems, limits, models. Models are imported when needed."""

from __future__ import annotations

from collections.abc import Collection
from types import SimpleNamespace
from typing import TYPE_CHECKING

from engine.errors import UserError

if TYPE_CHECKING:
    from pathlib import Path

    from engine.engine import Engine
    from engine.scheduler import Planner
    from engine.search import Strategy
    from engine.search.protocols import Verifier
    from engine.types import Problem, Sampling

DEFAULT_LIMIT = 100  # problems of a task that has no end of them


def find_problems(options: SimpleNamespace, given: Collection[str]) -> tuple[list[Problem | dict], list[str]]:
    """The problems, and where each of them stands."""
    from engine.cli.problems import read_problems
    from engine.tasks import get_task, take_problems

    task = get_task(options.task)
    if options.limit is not None and options.limit < 1:
        raise UserError(f"limit must be at least 1, got {options.limit}")
    if options.problems is not None:
        rows = read_problems(options, task, given)
        return [row.as_dict() for row in rows], [row.origin for row in rows]
    for name in ("problem_column", "answer_column"):
        if name in given:
            flag = "--" + name.replace("_", "-")
            raise UserError(f"{flag} has no effect without a problem file, got {getattr(options, name)!r}")
    problems = take_problems(task, options.split, options.limit or (DEFAULT_LIMIT if task.is_endless else None))
    return problems, [f"problem {problem.id}" for problem in problems]


def find_limits(options: SimpleNamespace, strategy: Strategy | Planner) -> tuple[Sampling, int]:
    """How tokens are drawn and how many; checks what a search would refuse, before a model is loaded."""
    from dataclasses import replace

    from engine.config import SearchConfig
    from engine.engine import DEFAULT_SAMPLING
    from engine.search import check_arguments
    from engine.tasks import get_task
    from engine.verifiers import OracleVerifier

    names = ("temperature", "top_p", "top_k", "min_p")
    typed = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    sampling = replace(DEFAULT_SAMPLING, **typed)
    task = get_task(options.task)
    max_tokens = task.max_tokens if options.max_tokens is None else options.max_tokens
    stand_in = OracleVerifier.from_first_wrong_step(task.first_wrong_step)  # for the one to be loaded
    config = SearchConfig(options.budget, max_tokens=max_tokens, agg_strategy=options.agg_strategy)
    check_arguments(strategy, stand_in, config)
    return sampling, max_tokens


def load_engine(options: SimpleNamespace, strategy: Strategy | Planner) -> tuple[Engine, dict[str, Path]]:
    """The engine with the models that this search uses and no other, and their folders."""
    from engine.engine import Engine, home_part
    from engine.model import resolve_folder

    folders = {"policy": resolve_folder(options.policy)}
    parts = {"prm": "prm", "trunk": "trunk_head", "orm": "orm"}
    needed = {parts.get(options.verifier): f"--verifier {options.verifier}"} if strategy.is_scored else {}
    if strategy.revises:
        needed["reviser"] = f"--strategy {options.strategy}" if hasattr(options, "strategy") else "--strategies"
    for part, who in needed.items():
        if part is None:  # the oracle
            continue
        name = getattr(options, part) or (home_part(part) if options.policy == "home" else None)
        if name is None:
            raise UserError(f"{who} with --policy {options.policy} needs --{part.replace('_', '-')}")
        folders[part] = resolve_folder(name, part)
    engine = Engine.load(
        folders["policy"],
        prm=folders.get("prm"),
        prm_spec=options.prm_spec,
        orm=folders.get("orm"),
        orm_spec=options.orm_spec,
        trunk_head=folders.get("trunk_head"),
        reviser=folders.get("reviser"),
        task=options.task,
        prompt_style=options.prompt_style,
        system_prompt=options.system_prompt,
        few_shot=options.few_shot,
        step_delimiter=_unescaped(options.step_delimiter),
        device=options.device,
        dtype=options.dtype,
        max_batch=options.max_batch,
        num_blocks=options.num_blocks,
    )
    return engine, folders


def _unescaped(delimiter: str | None) -> str | None:
    """A delimiter as typed: a shell hands on a backslash and an n where a line's end is meant."""
    return delimiter and delimiter.replace("\\n", "\n").replace("\\t", "\t")


def check_prompts(engine: Engine, problems: list[Problem], origins: list[str], judge: Verifier | None = None) -> None:
    """Raises UserError for a prompt that a model cannot hold, before any problem is searched."""
    for problem, origin in zip(problems, origins, strict=True):
        ids = engine.prompt_ids(problem.prompt)
        held = [(llm, ids) for llm in (engine.policy, engine.reviser) if llm is not None]
        if judge is not None and judge.llm is not None:
            held.append((judge.llm, judge.opening(problem)))
        for llm, ids in held:
            if len(ids) >= llm.config.context:
                raise UserError(
                    f"{origin}: the prompt has {len(ids)} tokens, "
                    f"the context of {llm.folder} holds {llm.config.context}"
                )
