"""From options to a strategy; an option that the strategy does not use is refused."""

from __future__ import annotations

import typing
from collections.abc import Collection, Iterator, Mapping
from dataclasses import Field, dataclass, field, make_dataclass

from engine.cli.options import Given, field_docs
from engine.errors import UserError
from engine.scheduler import ComputeOptimal, Planner, calibration_file
from engine.search import Strategy
from engine.search.registry import STRATEGIES, VERIFIERS, is_judged_by, option_fields

_PLANNED = (ComputeOptimal.name,)
_SCORED = (*(name for name, each in STRATEGIES.items() if each.scores != "nothing"), *_PLANNED)
_JUDGED_BY_ORM = (*(name for name, each in STRATEGIES.items() if is_judged_by(each, "orm")), *_PLANNED)
_NAMES = (*STRATEGIES, *_PLANNED)
_TEXTS = {"vote": "weighted, naive, majority; of revisions also hierarchical, its default."}


@dataclass(frozen=True)
class _Choice:
    """What a strategy is named by; its own options follow."""

    strategy: str = field(default="beam", metadata={"help": f"{', '.join(_NAMES)}."})

    calibration: str = "home"
    """File of `ttc calibrate`, for compute-optimal."""

    total_budget: int | None = None
    """Divided over all problems, in the place of --budget for each."""


def _strategy_options() -> Iterator[tuple[str, object, Field]]:
    """(name, type, field) of every strategy's options; those of one name have one meaning."""
    names: set[str] = set()
    for strategy in STRATEGIES.values():
        hints, docs = typing.get_type_hints(strategy), field_docs(strategy)
        for name, each in option_fields(strategy).items():
            if name in names:
                continue
            names.add(name)
            metadata = {"help": _TEXTS.get(name) or docs[each.name]}
            if hints[each.name] is bool:
                metadata["flags"] = "--" + name.replace("_", "-")
            yield name, hints[each.name], field(default=each.default, metadata=metadata)


StrategyOptions = make_dataclass("StrategyOptions", _strategy_options(), bases=(_Choice,), frozen=True)
StrategyOptions.__doc__ = "The strategy of a search, and the options of all strategies."

# Which values of --strategy, or of --verifier, an option is for.
_USED_BY_STRATEGY = {
    **{
        name: tuple(strategy for strategy, each in STRATEGIES.items() if name in option_fields(each))
        for name, _, _ in _strategy_options()
    },
    "reviser": (*(name for name, each in STRATEGIES.items() if each.revises), *_PLANNED),
    "calibration": _PLANNED,
    "total_budget": _PLANNED,
    "agg_strategy": _SCORED,
    "verifier": _SCORED,
    "prm": _SCORED,
    "prm_spec": _SCORED,
    "orm": _JUDGED_BY_ORM,
    "orm_spec": _JUDGED_BY_ORM,
    "trunk_head": _SCORED,
}
_USED_BY_VERIFIER = {
    "judge_alone": ("orm",),
    "prm": ("prm",),
    "prm_spec": ("prm",),
    "orm": ("orm",),
    "orm_spec": ("orm",),
    "trunk_head": ("trunk",),
}
_ONLY_SCORED = ("verifier", "agg_strategy", *_USED_BY_VERIFIER)


def build_strategy(options: StrategyOptions, verifier: str, given: Given) -> Strategy | Planner:
    """The strategy that the options describe; what was not typed is the strategy's own default.

    Raises UserError for an unknown name, a value out of range, or an option without effect.
    """
    name = options.strategy
    _check_choice("strategy", name, _NAMES)
    _check_used(given, _USED_BY_STRATEGY, "strategy", name)
    if name in _SCORED:
        check_verifier_used(verifier, given)
    if name in _SCORED and verifier == "orm" and name not in _JUDGED_BY_ORM:
        raise UserError(
            f"--verifier orm judges whole answers, with --strategy {' or '.join(_JUDGED_BY_ORM)}, got {name!r}"
        )
    if name == ComputeOptimal.name:
        strategy = ComputeOptimal(calibration_file(options.calibration))
    else:
        named = option_fields(STRATEGIES[name])
        typed = {each.name: getattr(options, option) for option, each in named.items() if option in given}
        strategy = STRATEGIES[name](**typed)
    if not strategy.is_scored:  # by its vote or its calibration, where the name alone does not say so
        _check_unscored(name, given)
    return strategy


def check_verifier_used(verifier: str, given: Given) -> None:
    """Raises UserError for an unknown verifier, and for an option that was typed for another one."""
    _check_choice("verifier", verifier, VERIFIERS)
    _check_used(given, _USED_BY_VERIFIER, "verifier", verifier)


def _check_choice(name: str, value: str, choices: Collection[str]) -> None:
    if value not in choices:
        raise UserError(f"{name} must be one of {', '.join(choices)}, got {value!r}")


def _check_used(given: Given, used_by: Mapping[str, tuple[str, ...]], name: str, value: str) -> None:
    for option, values in used_by.items():
        if option in given and value not in values:
            raise UserError(f"{_flag(option)} has no effect with --{name} {value}, only with {', '.join(values)}")


def _check_unscored(name: str, given: Given) -> None:
    for option in _ONLY_SCORED:
        if option in given:
            raise UserError(f"{_flag(option)} has no effect with this {name}, which scores nothing")


def _flag(option: str) -> str:
    return "--" + option.replace("_", "-")
