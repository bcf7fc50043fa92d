"""Strategies as data: what a file holds of one, and the short text that a user types for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, fields

from engine.errors import UserError
from engine.search import DVTS, Adaptive, BeamSearch, BestOfN, Lookahead, Majority, Rebase, Revisions, Strategy

_STRATEGIES = (Majority, BestOfN, BeamSearch, Lookahead, DVTS, Rebase, Adaptive, Revisions)
_WORDS = {"none": None, "true": True, "false": False}
_CLASSES = {each.name: each for each in _STRATEGIES}


def strategy_spec(strategy: Strategy) -> dict[str, object]:
    """Name and options, as JSON values."""
    return {"strategy": strategy.name, **asdict(strategy)}


def strategy_from_spec(spec: Mapping[str, object]) -> Strategy:
    """The strategy of `strategy_spec`. Raises UserError for an unknown name, option or value."""
    options = dict(spec)
    name = options.pop("strategy", None)
    if name not in _CLASSES:
        raise UserError(f"strategy must be one of {', '.join(_CLASSES)}, got {name!r}")
    known = [field.name for field in fields(_CLASSES[name])]
    for option in options:
        if option not in known:
            has = f"it has {', '.join(known)}" if known else "it has none"
            raise UserError(f"strategy {name} has no option {option!r}; {has}")
    try:
        return _CLASSES[name](**options)
    except TypeError:  # a text where a number belongs
        raise UserError(f"strategy {name} cannot have the options {options}") from None


def parse_strategy(text: str) -> Strategy:
    """From a text as `strategy_label` gives it: `beam:width=2:vote=naive`; ValueError as above."""
    name, *parts = text.strip().split(":")
    spec: dict[str, object] = {"strategy": name}
    for part in parts:
        option, has_value, value = part.partition("=")
        if not has_value:
            raise UserError(f"options of a strategy are written as in 'beam:width=2', got {text!r}")
        spec[option] = _value(value)
    return strategy_from_spec(spec)


def strategy_label(strategy: Strategy) -> str:
    """The name, and the options that are not the default ones: `beam:width=2`."""
    changed = [
        f":{field.name}={getattr(strategy, field.name)}"
        for field in fields(strategy)
        if getattr(strategy, field.name) != field.default
    ]
    return strategy.name + "".join(changed)


def can_spend(strategy: Strategy, num_generations: int) -> bool:
    """Whether the strategy can spend so many generations; with none left, only what votes can."""
    if num_generations <= 0:
        return num_generations == 0 and not strategy.stop_at_step
    try:
        strategy.groups(num_generations)
    except ValueError:
        return False
    return True


def _value(text: str) -> object:
    if (word := text.lower()) in _WORDS:
        return _WORDS[word]
    for read in (int, float):
        try:
            return read(text)
        except ValueError:
            continue
    return text
