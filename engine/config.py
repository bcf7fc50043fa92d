"""What an engine is loaded with, and what a search is run with: plain values that are passed on whole."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass, fields
from functools import wraps
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

from engine.counts import check_seed, settle_count, shown
from engine.errors import UserError
from engine.types import Sampling, as_sampling

DEFAULT_SAMPLING = Sampling()
ENDPOINT = "openai:"  # begins the name of a policy that is an OpenAI-compatible endpoint
MAX_BUDGET = 65_536  # generations of one problem, checked before anything is allocated
Fields = ParamSpec("Fields")
Made = TypeVar("Made")


def is_endpoint(policy: object) -> bool:
    """Whether a policy's name is that of an endpoint."""
    return str(policy).startswith(ENDPOINT)


def without_password(policy: object) -> str:
    """A policy's name as it may be shown: the URL of an endpoint may hold a user and a password."""
    return re.sub(r"//[^/#]*@", "//", str(policy)) if is_endpoint(policy) else str(policy)


@dataclass(frozen=True)
class EngineConfig:
    """What `Engine.load` loads, and how. The command line's options for models and prompts are made from it."""

    policy: str | Path = "home"
    """Hugging Face folder, the shipped policy, or an endpoint: openai:http://host:port/v1#model."""

    _: KW_ONLY

    prm: str | Path | None = None
    """Hugging Face folder; with the shipped policy `home`."""

    prm_spec: str | Path | None = None
    """The PRM's format, where it is not detected: a built-in name or a YAML file."""

    orm: str | Path | None = None
    """Hugging Face folder of a verifier of answers."""

    orm_spec: str | Path | None = None
    """The ORM's format, as --prm-spec."""

    trunk_head: str | Path | None = None
    """Folder; with the shipped policy `home`."""

    reviser: str | Path | None = None
    """Folder of the model that revises; with the shipped policy the shipped one."""

    task: str = "walks"
    """How prompts are written and answers graded."""

    prompt_style: str = "plain"
    """plain; chat: the model's template; steps, boxed: chats that ask for such answers."""

    system_prompt: str | None = None
    """File or text, in the place of the style's own."""

    few_shot: str | Path | None = None
    """Worked examples: JSONL with `problem` and `solution`, or any text."""

    step_delimiter: str | None = None
    r"""Ends a step, \n being a line's end; by default the style's or task's."""

    device: str = "cpu"
    """cpu, cuda, or a GPU by its number: cuda:1."""

    verifier_device: str | None = None
    """Device of the PRM and ORM, as --device, which it is by default."""

    tensor_parallel: int = 1
    """Processes that share every layer, started by torchrun --nproc-per-node."""

    dtype: str = "float32"
    """float32, bfloat16; with cuda float16."""

    max_batch: int | None = None
    """Branches of one forward, or requests in flight; changes no result. Default: what is fastest."""

    num_blocks: int | None = None
    """KV pool of each model, in blocks of 16 tokens; 1 GiB if not given, of a GPU most."""

    request_timeout: float = 600.0
    """Seconds without a word from an endpoint after which a request is sent anew."""

    shares_steps: bool = True
    """Whether a verifier reads a step that several branches of a problem have at the same place once for all."""


@dataclass(frozen=True)
class SearchConfig:
    """How one problem is searched, beside the strategy. The command line's options are made from it."""

    budget: int = 16
    """Sampled answers per problem."""

    _: KW_ONLY

    seed: int = 0
    """Of every draw."""

    sampling: Sampling = DEFAULT_SAMPLING
    """How tokens are drawn."""

    max_tokens: int | None = None
    """Tokens of a completion; by default the task's."""

    agg_strategy: str = "last"
    """last, min, prod, mean of an answer's step scores."""

    verifier: str | Callable[[str, list[str]], float] | Any = "prm"
    """prm, trunk, orm (of whole answers), oracle."""  # in Python also a function, or an object with the protocol

    stop_texts: tuple[str, ...] = ()
    """Texts that end an answer, which leaves them out."""

    def __post_init__(self) -> None:
        """Raises UserError for a number that is not whole or out of range; a sampling of None is the default."""
        stops = self.stop_texts
        if isinstance(stops, str) or not all(isinstance(each, str) and each for each in stops):
            raise UserError(f"stop_texts must be texts that are not empty, got {shown(stops)}")
        object.__setattr__(self, "stop_texts", tuple(stops))
        settle_count(self, "budget", 1, MAX_BUDGET)
        if self.max_tokens is not None:
            settle_count(self, "max_tokens")
        object.__setattr__(self, "seed", check_seed(self.seed))
        object.__setattr__(self, "sampling", as_sampling(self.sampling))

    def unless(self, config: SearchConfig | None) -> SearchConfig:
        """The config that was given, or else this one, of options given one by one. Raises UserError for both."""
        if config is not None and not isinstance(config, SearchConfig):
            raise UserError(f"config must be a SearchConfig, got {shown(config)}")
        if config is not None and self != SearchConfig():
            raise UserError(f"options are given in a config or one by one, not both, got {config} and {self}")
        return self if config is None else config


def takes_fields_of(
    config: Callable[Fields, object],
) -> Callable[[Callable[..., Made]], Callable[Concatenate[Any, Fields], Made]]:
    """Lets a method with `**fields` show the names, types and defaults of a config's fields in their place.

    Type checkers and notebooks see them. A name that is no field is a TypeError that lists those there are.
    """
    names = [field.name for field in fields(config)]

    def decorate(method: Callable[..., Made]) -> Callable[Concatenate[Any, Fields], Made]:
        @wraps(method)
        def call(owner: object, *args: Fields.args, **named: Fields.kwargs) -> Made:
            for name in named:
                if name not in names:
                    raise TypeError(f"{method.__qualname__} has no option {name!r}; it has {', '.join(names)}")
            return method(owner, *args, **named)

        own = next(iter(inspect.signature(method).parameters.values()))
        taken = inspect.signature(config).parameters.values()
        call.__signature__ = inspect.Signature([own, *taken])
        return call

    return decorate
