"""What an EngineConfig names, loaded: the shipped set, Hugging Face folders, models on the Hub."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from engine.config import EngineConfig, is_endpoint, without_password
from engine.counts import check_count, check_real
from engine.errors import UserError
from engine.model import (
    HOME,
    Placement,
    ScoreHead,
    load_trunk_head,
    read_config,
    resolve_device,
    resolve_dtype,
    resolve_folder,
)
from engine.prompts import PromptFormat, build_prompt, read_system_prompt
from engine.prompts.text import check_encodable
from engine.runtime import LLM, shared_blocks
from engine.runtime.runner import MAX_BATCH
from engine.search.registry import VERIFIERS
from engine.tasks import Task, get_task
from engine.verifiers import OracleVerifier, TrunkVerifier, Verifier, as_verifier
from engine.verifiers.detect import find_spec, trunk_architecture
from engine.verifiers.loading import build_verifier, load_verifier_model
from engine.verifiers.spec import VerifierSpec

if TYPE_CHECKING:
    from engine.remote import RemoteModel

AnyVerifier = str | Verifier | Callable[[str, list[str]], float]
"""By name; an object; or a function `(prompt, steps) -> score of the last step`."""

_JUDGED = {"prm": "steps", "orm": "answers"}  # what each verifier with a model of its own judges


@dataclass(frozen=True)
class Loaded:
    """The models of an engine, and how problems are put to them."""

    policy: LLM | RemoteModel
    prompt: PromptFormat | None
    verifiers: Mapping[str, LLM]  # "prm", "orm": those that the config names
    specs: Mapping[str, VerifierSpec]  # their formats, by the same names
    reviser: LLM | RemoteModel | None
    trunk_head: Path | None  # the folder of the policy's score head


def load_models(config: EngineConfig) -> Loaded:
    """Raises UserError for a folder that is missing, damaged or not supported, and without the device."""
    config = with_shipped_parts(config)
    _check(config)
    folders = _folders(config)
    prompt = _prompt(config, folders.get("policy"))
    place, verifier_place = _places(config)
    head = _trunk_head(config, folders, place)
    # Of an endpoint `max_batch` bounds the requests in flight.
    limits = {"dtype": config.dtype, "max_batch": None if is_endpoint(config.policy) else config.max_batch}
    limits["num_blocks"] = _num_blocks(config, folders)
    specs = {
        part: find_spec(folders[part], getattr(config, f"{part}_spec"), judges=judged)
        for part, judged in _JUDGED.items()
        if part in folders
    }
    verifiers = {
        part: load_verifier_model(folders[part], spec, device=verifier_place, **limits) for part, spec in specs.items()
    }
    if is_endpoint(config.policy):
        return _with_endpoint(config, prompt, verifiers, specs)
    limits["device"] = place
    policy = LLM.load(folders["policy"], trunk_head=head, **limits)
    reviser = _load_reviser(folders["reviser"], policy, **limits) if "reviser" in folders else None
    _set_end_tokens(prompt, policy, reviser)
    return Loaded(policy, prompt, verifiers, specs, reviser, folders.get("trunk_head"))


def _with_endpoint(
    config: EngineConfig, prompt: PromptFormat | None, verifiers: Mapping[str, LLM], specs: Mapping[str, VerifierSpec]
) -> Loaded:
    """What is loaded where an endpoint samples; it revises its own answers, where they are a conversation."""
    try:
        from engine.remote import RemoteModel  # here, as nothing else needs its HTTP library
    except ModuleNotFoundError as error:
        if error.name != "httpx":
            raise
        raise UserError("an endpoint as policy needs httpx: pip install 'ttc-engine[remote]'") from None

    policy = RemoteModel.load(config.policy, max_in_flight=config.max_batch, seconds=config.request_timeout)
    return Loaded(policy, prompt, verifiers, specs, policy if prompt.is_served else None, None)


class Verifiers:
    """The verifiers of an engine by name, each made when it is first asked for."""

    def __init__(
        self,
        policy: LLM | RemoteModel,
        models: Mapping[str, LLM],
        specs: Mapping[str, VerifierSpec],
        task: Task,
        shares_steps: bool,
    ):
        self.policy, self.models, self.specs, self.task = policy, models, specs, task
        self.shares_steps = shares_steps
        self._made: dict[str, Verifier] = {}

    def resolve(self, verifier: AnyVerifier) -> Verifier:
        """A verifier from its name, a function, or itself. Raises UserError for one that is not loaded."""
        if not isinstance(verifier, str):
            return as_verifier(verifier)
        if verifier not in VERIFIERS:
            raise UserError(f"verifier must be one of {', '.join(VERIFIERS)}, got {verifier!r}")
        if verifier not in self._made:
            self._made[verifier] = self._make(verifier)
        return self._made[verifier]

    def _make(self, name: str) -> Verifier:
        if name == "oracle":
            return OracleVerifier.from_first_wrong_step(self.task.first_wrong_step)
        if name == "trunk":
            if self.policy.tokenizer is None:
                raise UserError(f"verifier 'trunk' is a head on the policy's trunk, which {self.policy.folder} hides")
            if not self.policy.has_score_head:
                raise UserError("verifier 'trunk' was asked for, but no trunk head is loaded")
            return TrunkVerifier()
        if name not in self.models:
            raise UserError(f"verifier {name!r} was asked for, but no {name.upper()} is loaded")
        return build_verifier(self.models[name], self.specs[name], self.policy, self.shares_steps)


def with_shipped_parts(config: EngineConfig) -> EngineConfig:
    """With the shipped policy, the shipped parts in the place of those that are not named."""
    if str(config.policy) != "home":
        return config
    return replace(
        config,
        prm=config.prm or "home",
        trunk_head=config.trunk_head or "home",
        orm=config.orm or home_part("orm"),
        reviser=config.reviser or home_part("reviser"),
    )


def home_part(part: str) -> str | None:
    """ "home" where the package comes with this part of the shipped set."""
    return "home" if (HOME / part).is_dir() else None


def _check(config: EngineConfig) -> None:
    """Raises UserError for what can be refused before any file is read."""
    if is_endpoint(config.policy):
        _check_endpoint(config)
    for place in _places(config):
        resolve_dtype(config.dtype, place.device.type)
    for name, most in (("max_batch", MAX_BATCH), ("num_blocks", None)):
        if (count := getattr(config, name)) is not None:
            check_count(name, count, 1, most)
    for part in _JUDGED:
        spec = getattr(config, f"{part}_spec")
        if spec is not None and getattr(config, part) is None:
            raise UserError(f"{part}_spec {str(spec)!r} has no effect without {part}")


def _check_endpoint(config: EngineConfig) -> None:
    """Raises UserError for what has no effect on an endpoint."""
    if config.reviser not in (None, config.policy):
        named = without_password(config.reviser)
        raise UserError(f"an endpoint revises its own answers, so that no reviser is named beside it, got {named}")
    if config.trunk_head is not None:
        raise UserError(
            f"a trunk head is on a policy's trunk, which an endpoint does not show, got {config.trunk_head}"
        )
    if config.tensor_parallel != 1:
        raise UserError(f"tensor_parallel has no effect on an endpoint, got {config.tensor_parallel}")
    if not 0 < check_real("request_timeout", config.request_timeout) < math.inf:
        raise UserError(f"request_timeout must be above 0 seconds, got {config.request_timeout}")


def _places(config: EngineConfig) -> tuple[Placement, Placement]:
    """Where what generates runs, and where what verifies. Raises UserError for what is not there."""
    place = resolve_device(config.device, config.tensor_parallel)
    if config.verifier_device is None:
        return place, place
    if place.ranks.size > 1:
        raise UserError(
            f"with tensor_parallel {place.ranks.size} the ranks share all models, so that verifier_device "
            f"{config.verifier_device!r} has no effect"
        )
    return place, resolve_device(config.verifier_device)


def _folders(config: EngineConfig) -> dict[str, Path]:
    """The folder of every part that is named; one on the Hub is fetched, and an endpoint has none."""
    parts = ("policy", "trunk_head", "prm", "orm", "reviser")
    named = {part: getattr(config, part) for part in (("prm", "orm") if is_endpoint(config.policy) else parts)}
    return {part: resolve_folder(name, part) for part, name in named.items() if name is not None}


def _prompt(config: EngineConfig, policy: Path | None) -> PromptFormat | None:
    system = None if config.system_prompt is None else check_encodable(read_system_prompt(config.system_prompt))
    return build_prompt(
        policy,
        config.prompt_style,
        system=system,
        few_shot=config.few_shot,
        delimiter=config.step_delimiter,
        as_prompt=get_task(config.task).prompt,
    )


def _trunk_head(config: EngineConfig, folders: Mapping[str, Path], place: Placement) -> ScoreHead | None:
    if "trunk_head" not in folders:
        return None
    dtype = resolve_dtype(config.dtype, place.device.type)
    return load_trunk_head(folders["trunk_head"], read_config(folders["policy"]), dtype, place.device)


def _num_blocks(config: EngineConfig, folders: Mapping[str, Path]) -> int | None:
    """Blocks of each model's KV pool; not named and on GPUs, the models of each share what its memory has left."""
    places = _places(config)
    if config.num_blocks is not None or any(place.device.type == "cpu" for place in places):
        return config.num_blocks
    samplers: dict[Path, str | None] = {folders[part]: None for part in ("policy", "reviser") if part in folders}
    judges = {folders[part]: trunk_architecture(folders[part]) for part in _JUDGED if part in folders}
    together: dict[Placement, dict[Path, str | None]] = {}
    for place, architectures in zip(places, (samplers, judges), strict=True):
        together.setdefault(place, {}).update(architectures)
    dtype = resolve_dtype(config.dtype, "cuda")
    return min((shared_blocks(held, dtype, place) for place, held in together.items() if held), default=None)


def _set_end_tokens(prompt: PromptFormat | None, policy: LLM, reviser: LLM | None) -> None:
    """A chat's answers end where its template ends a turn; who generates without any end is told so."""
    for llm in dict.fromkeys(each for each in (policy, reviser) if each is not None):
        end = None if prompt is None else prompt.end_of_turn(llm.tokenizer)
        if end is not None and end < llm.config.vocab_size:
            llm.add_end_token(end)
        if not llm.config.eos_token_ids:
            warnings.warn(
                f"{llm.folder} names no end-of-text token (eos_token_id in config.json or generation_config.json): "
                "answers run on to max_tokens, or to a box where the prompt style stops at one",
                stacklevel=2,
            )


def _load_reviser(folder: Path, policy: LLM, **limits) -> LLM:
    """The policy itself where its own folder is named. Raises UserError for a model with other tokens."""
    if folder.resolve() == policy.folder.resolve():
        return policy
    reviser = LLM.load(folder, **limits)
    if reviser.tokenizer.get_vocab() != policy.tokenizer.get_vocab():
        raise UserError(f"the reviser at {folder} must have the vocabulary of the policy at {policy.folder}")
    return reviser


class _HasModels(Protocol):
    policy: LLM
    prm: LLM | None
    orm: LLM | None
    reviser: LLM | None


def clear_caches(engine: _HasModels) -> None:
    """Empties the prefix caches of its models: no search may live on what the one before it has paid for."""
    for llm in filter(None, (engine.policy, engine.prm, engine.orm, engine.reviser)):
        llm.clear_cache()
