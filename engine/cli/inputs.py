"""What commands that search check and load before they start. Models are imported when needed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from engine.config import EngineConfig, SearchConfig, is_endpoint, without_password
from engine.errors import UserError

if TYPE_CHECKING:
    from pathlib import Path

    from engine.engine import Engine
    from engine.scheduler import Planner
    from engine.search import Strategy, Verifier
    from engine.types import Problem

# The headings of `ttc --help` for the fields of an EngineConfig, where a command has them all.
PROMPTS = "prompt_style system_prompt few_shot step_delimiter"
MODELS = "policy prm prm_spec orm orm_spec trunk_head reviser device dtype max_batch num_blocks"
PLACES = "verifier_device tensor_parallel"  # of a command that runs on several GPUs
ENDPOINTS = "request_timeout"  # of a command that takes an endpoint as its policy
_MODEL_OF = {"prm": "prm", "trunk": "trunk_head", "orm": "orm"}  # the part that a verifier is; the oracle is none


def checked_config(config: SearchConfig, task_name: str, strategy: Strategy | Planner) -> SearchConfig:
    """With the task's max_tokens. Raises UserError for what a search would refuse, before a model is loaded."""
    from engine.search import check_arguments
    from engine.tasks import get_task
    from engine.verifiers import OracleVerifier

    task = get_task(task_name)
    if config.max_tokens is None:
        config = replace(config, max_tokens=task.max_tokens)
    stand_in = OracleVerifier.from_first_wrong_step(task.first_wrong_step)  # for the one to be loaded
    check_arguments(strategy, stand_in, config)
    return config


def load_engine(
    models: EngineConfig, strategy: Strategy | Planner, verifier: str, strategy_flag: str
) -> tuple[Engine, dict[str, Path]]:
    """The engine with the models that this search uses and no other, and their folders; an endpoint has none.

    `strategy_flag` is what the user typed for the strategy, for the sentence that says who needs a reviser.
    """
    from engine.engine import Engine
    from engine.loading import home_part
    from engine.model import resolve_folder
    from engine.scheduler import check_endpoint

    is_remote = is_endpoint(models.policy)
    if is_remote:
        check_endpoint(strategy, is_chat=models.prompt_style != "plain")
    folders = {} if is_remote else {"policy": resolve_folder(models.policy)}
    needed = {_MODEL_OF.get(verifier): f"--verifier {verifier}"} if strategy.is_scored else {}
    needed |= {"reviser": strategy_flag} if strategy.revises and not is_remote else {}
    needed.pop(None, None)
    for part, who in needed.items():
        if is_remote and part == "trunk_head":
            raise UserError(f"{who} is a head on the policy's trunk, which an endpoint does not show")
        name = getattr(models, part) or (home_part(part) if models.policy == "home" else None)
        if name is None:
            policy = without_password(models.policy)
            raise UserError(f"{who} with --policy {policy} needs --{part.replace('_', '-')}")
        folders[part] = resolve_folder(name, part)
    unused = dict.fromkeys(("prm", "orm", "trunk_head", *([] if is_remote else ["reviser"])))
    config = replace(models, **(unused | folders), step_delimiter=unescaped(models.step_delimiter))
    return Engine.from_config(config), folders


def unescaped(delimiter: str | None) -> str | None:
    """A delimiter as typed: a shell hands on a backslash and an n where a line's end is meant."""
    return delimiter and delimiter.replace("\\n", "\n").replace("\\t", "\t")


def check_prompts(
    engine: Engine,
    problems: Sequence[Problem],
    origins: Sequence[str],
    judge: Verifier | None = None,
    *,
    keeps_errors: bool = False,
) -> dict[int, UserError]:
    """Raises UserError for a prompt that a model cannot hold, before any problem is searched.

    With `keeps_errors` the errors are returned, by the positions of their problems.
    """
    refused: dict[int, UserError] = {}
    for index, (problem, origin) in enumerate(zip(problems, origins, strict=True)):
        try:
            _check_prompt(engine, problem, judge)
        except UserError as error:
            refused[index] = UserError(f"{origin}: {error}")
            if not keeps_errors:
                raise refused[index] from None
    return refused


def _check_prompt(engine: Engine, problem: Problem, judge: Verifier | None) -> None:
    given = engine.given(problem.asked)  # raises for one too long to be tokenized, or for a chat template
    held = [(llm, given) for llm in (engine.policy, engine.reviser) if llm is not None and llm.tokenizer is not None]
    if judge is not None and judge.llm is not None:
        held.append((judge.llm, judge.opening(problem)))
    for llm, ids in held:
        try:
            llm.vocabulary.check(ids)
        except UserError as error:
            raise UserError(f"{error}: {llm.folder}") from None
        if len(ids) >= llm.config.context:
            raise UserError(f"the prompt has {len(ids)} tokens, the context of {llm.folder} holds {llm.config.context}")
