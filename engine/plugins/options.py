"""The options of a framework's model arguments: names, meanings and defaults of `ttc search`'s command line."""

from __future__ import annotations

import hashlib
import json
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

from engine.cli.inputs import checked_config, load_engine
from engine.cli.options import Given
from engine.cli.search import strategy_fields
from engine.cli.strategies import StrategyOptions, build_strategy
from engine.config import EngineConfig, SearchConfig
from engine.counts import shown
from engine.engine import Engine
from engine.errors import UserError
from engine.scheduler import ComputeOptimal, Planner, strategy_label
from engine.search import Strategy
from engine.types import Sampling

# Fields that are no options: read field by field, asked for by a request, of all problems at once.
_LEFT_OUT = {"sampling", "stop_texts", "total_budget"}


@dataclass(frozen=True)
class Searcher:
    """An engine, and how it searches what a framework asks."""

    engine: Engine
    strategy: Strategy | Planner
    config: SearchConfig
    given: frozenset[str]  # options that the user named
    models: EngineConfig

    @classmethod
    def load(cls, named: Mapping[str, object]) -> Searcher:
        """Loads what the options name, as `ttc search` does; a value of None is not named.

        Raises UserError for an unknown option, a value of another type, and whatever `ttc search` refuses.
        """
        options = _typed({name: value for name, value in named.items() if value is not None})
        given = Given(options)
        models = EngineConfig(**_of(EngineConfig, options))
        config = SearchConfig(**_of(SearchConfig, options), sampling=Sampling(**_of(Sampling, options)))
        chosen = StrategyOptions(**_of(StrategyOptions, options))
        strategy = build_strategy(chosen, config.verifier, given)
        config = checked_config(config, models.task, strategy)
        engine, _ = load_engine(models, strategy, config.verifier, f"strategy={chosen.strategy}")
        if isinstance(strategy, ComputeOptimal):
            strategy = strategy.checked(engine.conditions(strategy, config))
        return cls(engine, strategy, config, given, models)

    def with_asked(
        self,
        *,
        max_tokens: int | None = None,
        seed: int | None = None,
        stop_texts: Sequence[str] = (),
        **sampling: float | None,
    ) -> SearchConfig:
        """The config with what a request asks for; None is not asked.

        A head on the policy's trunk reads at no stop texts: with it answers end by themselves.
        Raises UserError where the user's own options name another value: neither of the two is dropped unseen.
        """
        wanted = {name: value for name, value in sampling.items() if value is not None}
        own = {name: value for name, value in (("max_tokens", max_tokens), ("seed", seed)) if value is not None}
        config = replace(self.config, sampling=replace(self.config.sampling, **wanted), **own)
        if not (self.strategy.is_scored and self.engine.resolve_verifier(config.verifier).reads_trunk):
            config = replace(config, stop_texts=tuple(stop_texts))
        for name in own:
            self._check(name, getattr(self.config, name), getattr(config, name))
        for name in wanted:
            self._check(name, getattr(self.config.sampling, name), getattr(config.sampling, name))
        return config

    def _check(self, name: str, own: float | None, asked: float | None) -> None:
        if name in self.given and own != asked:
            raise UserError(
                f"the model's arguments have {name}={shown(own)} and the evaluation asks for {shown(asked)}: leave one "
                "of them out"
            )

    def describe(self) -> dict[str, object]:
        """The strategy, budget, seed and sampling in words and numbers."""
        config = self.config
        sampling = asdict(config.sampling)
        return {"strategy": strategy_label(self.strategy), "budget": config.budget, "seed": config.seed, **sampling}

    def digest(self) -> str:
        """24 hex digits of all that answers depend on but the request: models, prompts, strategy, budget, seed."""
        stated = {
            **self.engine.conditions(self.strategy, self.config),
            **strategy_fields(self.strategy),
            "budget": self.config.budget,
            "seed": self.config.seed,
            "device": self.models.device,
            "dtype": self.models.dtype,
        }
        return hashlib.blake2b(json.dumps(stated, sort_keys=True, default=str).encode(), digest_size=12).hexdigest()


def _hints() -> dict[str, object]:
    """The types of all options by name."""
    hints = {
        name: hint
        for cls in (EngineConfig, SearchConfig, Sampling, StrategyOptions)
        for name, hint in typing.get_type_hints(cls).items()
        if name in {each.name for each in fields(cls)} - _LEFT_OUT
    }
    return hints | {"verifier": str}


def _typed(named: Mapping[str, object]) -> dict[str, object]:
    hints = _hints()
    for name in named:
        if name not in hints:
            raise UserError(f"there is no option {name!r}; there are {', '.join(sorted(hints))}")
    return {name: _value(name, value, hints[name]) for name, value in named.items()}


def _value(name: str, value: object, hint: object) -> object:
    """A value as its option has it: what frameworks read from a command line may be a number where a text is meant."""
    is_union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    kinds = [kind for kind in (typing.get_args(hint) if is_union else (hint,)) if kind is not type(None)]
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if str in kinds and (is_number or isinstance(value, str | Path)):
        return value if isinstance(value, Path) else str(value)
    if bool in kinds and isinstance(value, bool):
        return value
    if float in kinds and is_number:
        return float(value)
    if int in kinds and isinstance(value, int) and not isinstance(value, bool):
        return value
    names = {str: "a text", bool: "true or false", float: "a number", int: "a whole number"}
    raise UserError(f"{name} must be {' or '.join(names[each] for each in kinds if each in names)}, got {shown(value)}")


def _of(cls: type, options: Mapping[str, object]) -> dict[str, object]:
    """The options that are fields of a dataclass."""
    return {each.name: options[each.name] for each in fields(cls) if each.name in options}
