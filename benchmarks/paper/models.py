"""The models of a run, and what cannot run for want of one."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.paper.settings import Settings
from engine import Engine
from engine.errors import UserError
from engine.model import HOME
from engine.model.digest import checkpoint_digest

REVISION = "no revision model: engine/home/reviser does not exist and --reviser names none"
ORM = "no outcome verifier: engine/home/orm does not exist"
NO_LARGE = "no larger policy: --large is empty"


@dataclass(frozen=True)
class Models:
    """The engine of all searches, and that of the baseline, whose reviser is the policy itself."""

    engine: Engine
    baseline: Engine | None
    large: Engine | None
    missing: dict[str, str]  # what is not there, and why

    @property
    def has_orm(self) -> bool:
        return self.engine.orm is not None

    @property
    def revision_verifier(self) -> str:
        """What judges the answers of revisions: the ORM, which reads the history, where there is one."""
        return "orm" if self.has_orm else "prm"

    def digests(self, *parts: str) -> dict[str, str]:
        """Digests of the contents of the named checkpoints; the exact verifier has none."""
        named = [part for part in parts if part != "oracle"]
        return {part: checkpoint_digest(getattr(self.engine, part).folder) for part in named}

    def reviser_digest(self, is_baseline: bool) -> str:
        return checkpoint_digest((self.baseline if is_baseline else self.engine).reviser.folder)


# One pool of samples serves every budget: what a part of it would have cost is a sum over its answers, so none may be
# read together with others.
_APART = {"shares_steps": False}


def load_models(settings: Settings) -> Models:
    """Raises UserError for a folder that is named and cannot be loaded."""
    missing = {}
    loaded = Engine.load("home", reviser=settings.reviser, **_APART)
    if loaded.reviser is None:
        missing["revisions"] = REVISION
    if loaded.orm is None:
        missing["orm"] = ORM
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
    return Models(loaded, baseline, large, missing)


def num_params(loaded: Engine) -> int:
    """The policy's weights that multiply every token."""
    return loaded.policy.config.shape().num_matmul_params
