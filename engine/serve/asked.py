"""What a request asks of the engine: the search options of its `ttc` object and of its model's alias."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, replace

from engine.config import SearchConfig
from engine.counts import check_real, shown
from engine.engine import Engine
from engine.errors import UserError
from engine.scheduler import ComputeOptimal, Planner, calibration_file
from engine.search import Strategy
from engine.search.registry import STRATEGIES, VERIFIERS, option_fields, parse_strategy, strategy_from_dict
from engine.serve.errors import APIError, refused
from engine.types import Sampling

RETURNS = ("candidates", "scores", "votes", "ledger", "tree")
DEFAULT_STRATEGY = "beam"
LISTED = ("majority-16", "best-of-n-16", "best-of-n-64", "beam-16", "beam-64", "compute-optimal-16")
_OF_SEARCH = ("strategy", "budget", "verifier", "agg_strategy", "deadline_s", "return", "progress")
_ONLY_SCORED = ("verifier", "agg_strategy")


@dataclass(frozen=True)
class Search:
    """How a request's problem is searched."""

    strategy: Strategy | Planner
    config: SearchConfig
    deadline: float | None = None  # seconds
    returns: tuple[str, ...] = ()  # of RETURNS
    has_progress: bool = False


@dataclass(frozen=True)
class Models:
    """The models that requests may name: one, and its searches as NAME@STRATEGY-BUDGET."""

    engine: Engine
    name: str
    calibration: str

    def aliases(self) -> list[str]:
        """The common ones that the loaded models can run."""
        return [f"{self.name}@{label}" for label in LISTED if self._can_run(label)]

    def strategies(self) -> list[str]:
        """The names of those that the loaded models can run."""
        return [name for name in (*STRATEGIES, ComputeOptimal.name) if self._can_run(f"{name}-16")]

    def options(self, model: str, ttc: Mapping[str, object] | None) -> dict[str, object] | None:
        """The search options that a request names, those of its alias first; None for a plain sample."""
        name, is_alias, label = model.partition("@")
        if name != self.name:
            known = f"{self.name} or {self.name}@STRATEGY-BUDGET"
            raise refused(f"model must be {known}, got {shown(model)}", "model", "model_not_found")
        named = self._of_alias(label, model) if is_alias else None
        if ttc is None:
            return named
        for option in named or {}:
            if option in ttc:
                raise refused(f"ttc.{option} is named by the model {shown(model)} already", f"ttc.{option}")
        return {**(named or {}), **{name: value for name, value in ttc.items() if value is not None}}

    def search(self, options: Mapping[str, object], config: SearchConfig) -> Search:
        """Raises APIError or UserError for an unknown or wrong option, and for one without effect."""
        strategy = self._strategy(options)
        for name in _ONLY_SCORED:
            if name in options and not strategy.is_scored:
                raise refused(f"ttc.{name} has no effect with {strategy.name}, which scores nothing", f"ttc.{name}")
        named = {name: options[name] for name in ("budget", *_ONLY_SCORED) if name in options}
        config = replace(config, **named)
        if strategy.is_scored:
            self._check_verifier(config.verifier)
        if isinstance(strategy, ComputeOptimal):
            self._check_calibration(strategy, config)
        strategy.groups(config.budget)
        return Search(strategy, config, _deadline(options), _returns(options), _flag(options, "progress"))

    def _of_alias(self, label: str, model: str) -> dict[str, object]:
        text, _, budget = label.rpartition("-")
        if not (text and budget.isascii() and budget.isdigit() and len(budget) <= 9):
            raise refused(f"a model's search is named NAME@STRATEGY-BUDGET, got {shown(model)}", "model")
        if text == ComputeOptimal.name:
            return {"strategy": text, "budget": int(budget)}
        strategy = parse_strategy(text)
        written = {part.partition("=")[0] for part in text.split(":")[1:]}
        fields = {option: each.name for option, each in option_fields(type(strategy)).items() if each.name in written}
        chosen = {option: getattr(strategy, name) for option, name in fields.items()}
        return {"strategy": strategy.name, **chosen, "budget": int(budget)}

    def _strategy(self, options: Mapping[str, object]) -> Strategy | Planner:
        name = options.get("strategy", DEFAULT_STRATEGY)
        names = (*STRATEGIES, ComputeOptimal.name)
        if name not in names:
            raise refused(f"ttc.strategy must be one of {', '.join(names)}, got {shown(name)}", "ttc.strategy")
        own = {} if name == ComputeOptimal.name else option_fields(STRATEGIES[name])
        for option in options:
            if option not in own and option not in _OF_SEARCH:
                there = ", ".join((*_OF_SEARCH, *own))
                raise refused(f"ttc has no option {shown(option)} with {name}; it has {there}", f"ttc.{option}"[:100])
        if name == ComputeOptimal.name:
            return ComputeOptimal(calibration_file(self.calibration))
        fields = {own[option].name: value for option, value in options.items() if option in own}
        return strategy_from_dict({"strategy": name, **fields})

    def _check_verifier(self, verifier: object) -> None:
        """The oracle looks into the problem, and is no part of a server."""
        loaded = [name for name in VERIFIERS if name != "oracle" and self._is_loaded(name)]
        if verifier not in loaded:
            there = ", ".join(loaded) or "none, for none is loaded"
            raise refused(f"ttc.verifier must be one of {there}, got {shown(verifier)}", "ttc.verifier")

    def _is_loaded(self, verifier: str) -> bool:
        try:
            self.engine.resolve_verifier(verifier)
        except UserError:
            return False
        return True

    def _check_calibration(self, strategy: ComputeOptimal, config: SearchConfig) -> None:
        """Nothing else runs in its place."""
        if differences := strategy.calibration.differences(self.engine.conditions(strategy, config)):
            raise refused(f"the calibration holds for other settings: {'; '.join(differences)}", "ttc.strategy")

    def _can_run(self, label: str) -> bool:
        try:
            search = self.search(self._of_alias(label, label), SearchConfig())
        except (APIError, UserError):
            return False
        return self.engine.reviser is not None or not search.strategy.revises


def search_config(n: int, seed: int | None, sampling: Sampling, max_tokens: int | None) -> SearchConfig:
    """How a request is sampled; of a plain one the budget is its n. Raises UserError for a value out of range."""
    seed = secrets.randbits(31) if seed is None else seed
    return SearchConfig(n, seed=seed, sampling=sampling, max_tokens=max_tokens)


def _deadline(options: Mapping[str, object]) -> float | None:
    if "deadline_s" not in options:
        return None
    seconds = check_real("ttc.deadline_s", options["deadline_s"])
    if not 0 <= seconds < 1e9:
        raise refused(f"ttc.deadline_s must be within 0..1e9 seconds, got {shown(seconds)}", "ttc.deadline_s")
    return seconds


def _returns(options: Mapping[str, object]) -> tuple[str, ...]:
    asked = options.get("return", [])
    asked = [asked] if isinstance(asked, str) else asked
    if not isinstance(asked, list) or not all(each in RETURNS for each in asked if isinstance(each, str)):
        raise refused(f"ttc.return must list some of {', '.join(RETURNS)}, got {shown(asked)}", "ttc.return")
    if not all(isinstance(each, str) for each in asked):
        raise refused(f"ttc.return must list names, got {shown(asked)}", "ttc.return")
    return tuple(asked)


def _flag(options: Mapping[str, object], name: str) -> bool:
    value = options.get(name, False)
    if not isinstance(value, bool):
        raise refused(f"ttc.{name} must be true or false, got {shown(value)}", f"ttc.{name}")
    return value
