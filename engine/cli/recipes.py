"""The commands that a recipe describes; importing this module imports torch and transformers."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Iterator
from dataclasses import MISSING, Field, fields, replace
from pathlib import Path
from typing import Annotated

import transformers
import typer
from typer.core import TyperCommand

from engine.cli.runs import run_rows
from engine.errors import UserError
from engine.model import HOME, resolve_device, resolve_folder
from engine.model.digest import checkpoint_digest
from engine.results import Journal, row_line
from engine.results.digests import problems_digest
from engine.results.files import write_atomically
from engine.results.rows import Row
from engine.runtime import LLM
from engine.tasks import get_task
from engine.tasks.chain import ChainConfig, config_from_options
from engine.training.discriminator import DiscriminatorRecipe, train_discriminator
from engine.training.orm import ORMRecipe, train_orm
from engine.training.policy import PolicyRecipe, train_policy
from engine.training.prm import PRMRecipe, TrunkHeadRecipe, train_prm, train_trunk_head
from engine.training.revision import RevisionRecipe, train_revision
from engine.training.rollouts import RolloutRecipe, generate, questions
from engine.training.stepwise import check_threshold, write_stepwise
from engine.training.workers import generate_in_workers

_ROLLOUTS = "out/rollouts.jsonl"
_ATTEMPTS = "out/attempts.jsonl"  # many answers to a question, labelled by their own ends
_DATA_HELP = "A knob of the problems as name=value, e.g. max_depth=6; may be repeated."

Out = Annotated[str, typer.Option(help="Folder of the trained model.")]
Work = Annotated[str, typer.Option(help="Folder of the checkpoints that a stopped run goes on from.")]
Device = Annotated[str, typer.Option(help="cpu or cuda.")]
Policy = Annotated[str, typer.Option(help="Hugging Face folder, or the shipped policy.")]
Rollouts = Annotated[str, typer.Option(help="File that `ttc rollouts` wrote; several with commas between.")]


def run_policy(
    recipe: PolicyRecipe,
    out: Out = str(HOME / "policy"),
    work: Work = "out/train/policy",
    base: Annotated[str | None, typer.Option(help="Hugging Face folder to go on from, its shape included.")] = None,
    device: Device = "cpu",
) -> None:
    """Trains the policy: next-token loss on worked answers, from nothing or from --base."""
    resolve_device(device)
    train_policy(recipe, Path(out), Path(work), device, resolve_folder(base) if base else None)
    typer.echo(f"policy trained on {recipe.num_tokens:,} tokens: {out}")


def run_discriminator(
    recipe: DiscriminatorRecipe,
    base: Annotated[str, typer.Option(help="Hugging Face folder of the decoder that it starts from.")] = "home",
    policy: Annotated[str, typer.Option(help="Hugging Face folder of the policy whose samples it tells.")] = "home",
    out: Out = "out/discriminator",
    work: Work = "out/train/discriminator",
    device: Device = "cpu",
) -> None:
    """Trains what `ttc train prm --base` may start from: it tells worked answers from the policy's samples."""
    resolve_device(device)
    figures = train_discriminator(recipe, resolve_folder(base), resolve_folder(policy), Path(out), Path(work), device)
    typer.echo(f"discriminator trained, {_shown(figures)}: {out}")


def run_prm(
    recipe: PRMRecipe,
    rollouts: Rollouts = _ROLLOUTS,
    base: Annotated[str, typer.Option(help="Hugging Face folder whose weights it starts from.")] = "home",
    out: Out = str(HOME / "prm"),
    work: Work = "out/train/prm",
    device: Device = "cpu",
) -> None:
    """Trains the step verifier from rollouts; it starts from the policy's weights, or from --base."""
    resolve_device(device)
    figures = train_prm(_files(rollouts), resolve_folder(base), Path(out), Path(work), recipe, device)
    typer.echo(f"prm trained, {_shown(figures)}: {out}")


def run_orm(
    recipe: ORMRecipe,
    rollouts: Rollouts = _ATTEMPTS,
    base: Annotated[str, typer.Option(help="Hugging Face folder whose weights it starts from.")] = "home",
    out: Out = str(HOME / "orm"),
    work: Work = "out/train/orm",
    device: Device = "cpu",
) -> None:
    """Trains the verifier of whole answers, with and without earlier attempts before them."""
    resolve_device(device)
    figures = train_orm(_files(rollouts), resolve_folder(base), Path(out), Path(work), recipe, device)
    typer.echo(f"orm trained, {_shown(figures)}: {out}")


def run_trunk_head(
    recipe: TrunkHeadRecipe,
    rollouts: Rollouts = _ROLLOUTS,
    policy: Policy = "home",
    out: Out = str(HOME / "trunk_head"),
    work: Work = "out/train/trunk_head",
    device: Device = "cpu",
) -> None:
    """Trains a score head on the frozen trunk of the policy, from rollouts."""
    resolve_device(device)
    figures = train_trunk_head(_files(rollouts), resolve_folder(policy), Path(out), Path(work), recipe, device)
    typer.echo(f"trunk head trained, {_shown(figures)}: {out}")


def run_revision(
    recipe: RevisionRecipe,
    rollouts: Rollouts = _ATTEMPTS,
    base: Annotated[str, typer.Option(help="Hugging Face folder of the policy that it starts from.")] = "home",
    out: Out = str(HOME / "reviser"),
    work: Work = "out/train/revision",
    device: Device = "cpu",
) -> None:
    """Trains a policy to answer anew after attempts of its own, from `ttc rollouts --num-rollouts 0`."""
    resolve_device(device)
    figures = train_revision(_files(rollouts), resolve_folder(base), Path(out), Path(work), recipe, device)
    typer.echo(f"revision model trained, {_shown(figures)}: {out}")


def run_rollouts(
    recipe: RolloutRecipe,
    policy: Policy = "home",
    device: Device = "cpu",
    dtype: Annotated[str, typer.Option(help="float32, bfloat16; with cuda float16.")] = "float32",
    max_batch: Annotated[int | None, typer.Option(help="Branches of one forward; changes no row.")] = None,
    num_blocks: Annotated[int | None, typer.Option(help="KV pool in blocks of 16 tokens.")] = None,
    workers: Annotated[int, typer.Option(help="Processes that share a CPU's cores; changes no row.")] = 1,
    out: Annotated[str, typer.Option(help="Labelled answers, one JSON row each.")] = _ROLLOUTS,
    trl: Annotated[str | None, typer.Option(help="Write the answers to this file too, as TRL's data sets are.")] = None,
    trl_threshold: Annotated[float | None, typer.Option(help="Labels of --trl are true from here on.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Drop what --out holds.")] = False,
) -> None:
    """Labels the steps of sampled answers by how often rollouts from there end right."""
    check_threshold(trl_threshold)
    if trl_threshold is not None and trl is None:
        raise UserError(f"--trl-threshold has no effect without --trl, got {trl_threshold}")
    if workers < 1 or (workers > 1 and device != "cpu"):
        raise UserError(f"workers must be at least 1, and 1 but on a CPU, got {workers} with device {device!r}")
    problems = questions(recipe)
    folder = resolve_folder(policy)
    model = {"device": device, "dtype": dtype, "max_batch": max_batch, "num_blocks": num_blocks}
    llm = LLM.load(folder, **model) if workers == 1 else None

    def make_rows(todo: list[int]) -> Iterator[tuple[int, Row]]:
        if llm is not None:
            labels = generate(llm, recipe, todo, problems)
        else:
            labels = generate_in_workers(workers, {"folder": folder, **model}, recipe, todo, problems)
        for index, labelled in labels:
            row = {"id": str(index), "seed": recipe.seed, "strategy": "rollouts"}
            yield index, row | {"rows": labelled.rows, "num_rollouts": labelled.num_rollouts}

    def write_answers(ledger: Journal) -> str:
        done = ledger.done
        answers = [answer for index in sorted(done) for answer in done[index]["rows"]]
        write_atomically(out, b"".join(map(row_line, answers)))
        if trl is not None:
            write_stepwise(answers, Path(trl), get_task(recipe.task).delimiter, threshold=trl_threshold)
        return f"{sum(row.get('num_rollouts', 0) for row in done.values()):,} rollouts" if recipe.num_rollouts else ""

    config = recipe.settings | {"policy_digest": checkpoint_digest(folder), "dtype": dtype}
    config |= {} if device == "cpu" else {"device": device}
    if recipe.problems is not None:
        config["problems"] = problems_digest(problems)
    closing_line = run_rows(
        out,
        config,
        make_rows,
        num_total=len(problems),
        label="questions",
        overwrite=overwrite,
        write=write_answers,
    )
    typer.echo(closing_line)


_COMMANDS = {
    "policy": (PolicyRecipe, run_policy),
    "discriminator": (DiscriminatorRecipe, run_discriminator),
    "prm": (PRMRecipe, run_prm),
    "orm": (ORMRecipe, run_orm),
    "trunk-head": (TrunkHeadRecipe, run_trunk_head),
    "revision": (RevisionRecipe, run_revision),
    "rollouts": (RolloutRecipe, run_rollouts),
}


def build_command(name: str) -> TyperCommand:
    """The command of a name, one option per field of its recipe and those of its own."""
    transformers.utils.logging.disable_progress_bar()  # stderr is for our own lines
    app = typer.Typer(add_completion=False)
    app.command(name)(with_recipe(*_COMMANDS[name]))
    return typer.main.get_command(app)


def with_recipe(recipe_class: type, run: Callable[..., None]) -> Callable[..., None]:
    """`run` with its first parameter, a recipe, replaced by the fields of it."""
    names = [field.name for field in fields(recipe_class)]

    def command(**values: object) -> None:
        chosen = {name: values.pop(name) for name in names}
        if "data" in chosen:
            chosen["data"] = _changed(recipe_class().data, chosen["data"])
        run(recipe_class(**chosen), **values)

    hints = typing.get_type_hints(recipe_class)
    parameters = [_parameter(field, hints[field.name]) for field in fields(recipe_class)]
    own = list(inspect.signature(run, eval_str=True).parameters.values())[1:]
    parameters += [each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in own]
    command.__signature__ = inspect.Signature(parameters)
    command.__annotations__ = {each.name: each.annotation for each in parameters}
    command.__doc__ = run.__doc__
    return command


def _parameter(field: Field, annotation: object) -> inspect.Parameter:
    """The option of a field: its type and default, or repeated name=value pairs for a ChainConfig."""
    default = field.default if field.default is not MISSING else field.default_factory()
    if annotation is ChainConfig:
        annotation, default = Annotated[list[str] | None, typer.Option(help=_DATA_HELP)], None
    if "flags" in field.metadata:  # other than --name and --no-name
        annotation = Annotated[annotation, typer.Option(field.metadata["flags"])]
    return inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _changed(data: ChainConfig, pairs: list[str] | None) -> ChainConfig:
    """`data` with some knobs set. Raises UserError for what is no name=value pair of it."""
    options = {}
    for pair in pairs or ():
        name, sign, value = pair.partition("=")
        if not sign:
            raise UserError(f"--data needs name=value, got {pair!r}")
        options[name] = value
    typed = config_from_options(options)
    return replace(data, **{name: getattr(typed, name) for name in options})


def _files(names: str) -> list[Path]:
    return [Path(name) for name in names.split(",")]


def _shown(figures: dict[str, float | str]) -> str:
    return ", ".join(
        f"{name.replace('_', ' ')} {value if isinstance(value, str) else format(value, '.4g')}"
        for name, value in figures.items()
    )
