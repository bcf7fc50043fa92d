"""The one list of strategies and verifiers by name; strategies as JSON values and as the short text a user types."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import Field, asdict, fields
from typing import get_args, get_type_hints

from engine.errors import UserError
from engine.search import DVTS, Adaptive, BeamSearch, BestOfN, Lookahead, Majority, Rebase, Revisions, Strategy

STRATEGIES: dict[str, type[Strategy]] = {
    each.name: each for each in (Majority, BestOfN, BeamSearch, Lookahead, DVTS, Rebase, Adaptive, Revisions)
}
"""The strategies by the name that a user types, in the order in which they are shown."""

VERIFIERS = {"prm": "steps", "trunk": "steps", "orm": "answers", "oracle": "steps"}
"""The verifiers that a user can name, and what each judges: every step, or whole answers only."""

_WORDS = {"none": None, "true": True, "false": False}


def option_fields(strategy_class: type[Strategy]) -> dict[str, Field]:
    """The fields that a strategy uses, by the name of their option on the command line."""
    used = [each for each in fields(strategy_class) if each.name not in strategy_class.unused_fields]
    return {each.metadata.get("option", each.name): each for each in sorted(used, key=_is_last)}


def is_judged_by(strategy_class: type[Strategy], verifier: str) -> bool:
    """Whether a verifier can score what the strategy has scored: one of answers cannot score steps."""
    if strategy_class.scores == "nothing":
        return False
    return strategy_class.scores == "answers" or VERIFIERS[verifier] == "steps"


def strategy_as_dict(strategy: Strategy) -> dict[str, object]:
    """Name and options, as JSON values."""
    return {"strategy": strategy.name, **asdict(strategy)}


def strategy_from_dict(named: Mapping[str, object]) -> Strategy:
    """The strategy of `strategy_as_dict`. Raises UserError for an unknown name, option or value."""
    options = dict(named)
    name = options.pop("strategy", None)
    if name not in STRATEGIES:
        raise UserError(f"strategy must be one of {', '.join(STRATEGIES)}, got {name!r}")
    known = [field.name for field in sorted(fields(STRATEGIES[name]), key=_is_last)]
    for option in options:
        if option not in known:
            has = f"it has {', '.join(known)}" if known else "it has none"
            raise UserError(f"strategy {name} has no option {option!r}; {has}")
    try:
        strategy = STRATEGIES[name](**options)
    except TypeError:  # a text where a number belongs
        strategy = None
    hints = get_type_hints(STRATEGIES[name])
    if strategy is None or not all(_is_of(value, hints[option]) for option, value in options.items()):
        raise UserError(f"strategy {name} cannot have the options {options}")
    return strategy


def parse_strategy(text: str) -> Strategy:
    """Reads what `strategy_label` writes: `beam:width=2:vote=naive`. Raises UserError as `strategy_from_dict`."""
    name, *parts = text.strip().split(":")
    named: dict[str, object] = {"strategy": name}
    for part in parts:
        option, has_value, value = part.partition("=")
        if not has_value:
            raise UserError(f"options of a strategy are written as in 'beam:width=2', got {text!r}")
        named[option] = _value(value)
    return strategy_from_dict(named)


def strategy_label(strategy: Strategy) -> str:
    """The name, and the options that are not the default ones: `beam:width=2`."""
    changed = [
        f":{field.name}={getattr(strategy, field.name)}"
        for field in sorted(fields(strategy), key=_is_last)
        if getattr(strategy, field.name) != field.default
    ]
    return strategy.name + "".join(changed)


def can_spend(strategy: Strategy, num_generations: int) -> bool:
    """Whether the strategy can spend exactly this many generations. With none, one of whole answers can still vote."""
    if num_generations <= 0:
        return num_generations == 0 and not strategy.stop_at_step
    try:
        strategy.groups(num_generations)
    except UserError:
        return False
    return True


def _is_last(field: Field) -> bool:
    """Fields that all strategies share are named behind a strategy's own."""
    return field.kw_only


def _is_of(value: object, hint: type) -> bool:
    """Whether a value from a file or a command line is of a field's type; true is no number, 2 is a float too."""
    if isinstance(value, bool):
        return hint is bool
    return isinstance(value, hint) or (isinstance(value, int) and float in (hint, *get_args(hint)))


def _value(text: str) -> object:
    if (word := text.lower()) in _WORDS:
        return _WORDS[word]
    for read in (int, float):
        try:
            return read(text)
        except ValueError:
            continue
    return text
