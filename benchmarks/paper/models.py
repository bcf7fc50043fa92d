"""The models of a run, and what cannot run for want of one."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from pathlib import Path

from benchmarks.paper.settings import Settings
from engine import LLM, Engine, search
from engine.errors import UserError
from engine.model import HOME
from engine.model.digest import checkpoint_digest

EQUAL_ORM = Path(__file__).resolve().parent.parent / "checkpoints" / "equal_orm"

REVISION = "no revision model: engine/home/reviser does not exist and --reviser names none"
ORM = "no outcome verifier: engine/home/orm does not exist"
NO_LARGE = "no larger policy: --large is empty"
NO_STRATEGY = "this engine has no strategy Revisions"


@dataclass(frozen=True)
class Models:
    """The engine of all searches, and that of the baseline, whose reviser is the policy itself."""

    engine: Engine
    baseline: Engine | None
    large: Engine | None
    missing: dict[str, str]  # what is not there, and why
    equal: Engine | None = None  # whose ORM has learned from as many answers as the PRM, and no more

    @property
    def judges(self) -> dict[str, Engine]:
        """Engines by the name under which their ORM scores the pools."""
        found = {"orm": None if "orm" in self.missing else self.engine, "equal-orm": self.equal}
        return {name: each for name, each in found.items() if each is not None}

    @property
    def revision_verifier(self) -> str:
        """What judges the answers of revisions: the ORM, which reads the history, where there is one."""
        return "prm" if "orm" in self.missing else "orm"

    def digests(self, *parts: str) -> dict[str, str]:
        """Digests of the contents of the named checkpoints."""
        return {part: checkpoint_digest(getattr(self.engine, part).folder) for part in parts}

    def reviser_digest(self, is_baseline: bool) -> str:
        return checkpoint_digest(reviser_of(self.baseline if is_baseline else self.engine).folder)


# One pool of samples serves every budget: what a part of it would have cost is a sum over its answers, so none may be
# read together with others.
_APART = {"shares_steps": False}


def load_models(settings: Settings) -> Models:
    """Raises UserError for a folder that is named and cannot be loaded."""
    missing = {}
    can_revise = hasattr(search, "Revisions") and "reviser" in inspect.signature(Engine.load).parameters
    named = {"reviser": settings.reviser} if settings.reviser and can_revise else {}
    named |= _APART
    loaded = Engine.load("home", **named)
    if not can_revise:
        missing["revisions"] = NO_STRATEGY
    elif reviser_of(loaded) is None:
        missing["revisions"] = REVISION
    if loaded.orm is None:
        missing["orm"] = ORM
    equal = Engine.load("home", orm=EQUAL_ORM, **_APART) if EQUAL_ORM.is_dir() else None
    if equal is None:
        missing["ORM of as many answers as the PRM"] = f"{EQUAL_ORM.name} does not exist"
    if settings.large is None:
        missing["large"] = NO_LARGE
    baseline = None
    if "revisions" not in missing:
        baseline = Engine.load("home", reviser=HOME / "policy", **_APART)
    large = None if settings.large is None else Engine.load(settings.large)
    if large is not None and num_params(large) <= num_params(loaded):
        raise UserError(
            f"the larger policy must have more than the {num_params(loaded):,} parameters of the shipped one, "
            f"got {num_params(large):,} in {settings.large}"
        )
    return Models(loaded, baseline, large, missing, equal)


def reviser_of(loaded: Engine) -> LLM | None:
    """The model that samples revisions, or None."""
    return getattr(loaded, "reviser", None)


def num_params(loaded: Engine) -> int:
    """The policy's weights that multiply every token."""
    return loaded.policy.config.shape().num_matmul_params
