"""The options of a command that can run on a Ray cluster."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from engine.cli.options import Given
from engine.config import ENDPOINT, EngineConfig, is_endpoint
from engine.errors import UserError

if TYPE_CHECKING:
    from engine.distributed import Replicas

REPLICAS = "ray replicas replica_cpus replica_gpus"  # the heading of `ttc --help`


@dataclass(frozen=True)
class ReplicaOptions:
    """How many engines share the problems, and where."""

    ray: str | None = None
    """Share the problems among replicas on a Ray cluster: its address, auto for the running one, local for one here."""

    replicas: int = 1
    """Engines, each with all models, with --ray."""

    replica_cpus: float = 1.0
    """Processors that Ray keeps for each."""

    replica_gpus: float | None = None
    """GPUs that Ray keeps for each; by default 1 with --device cuda, else 0."""

    def asked(self, given: Given, models: EngineConfig) -> Replicas | None:
        """What is asked of Ray; None where nothing is. Raises UserError for options that do not go together."""
        if self.ray is None:
            for name in REPLICAS.split():
                if name in given:
                    option = f"--{name.replace('_', '-')}"
                    raise UserError(f"{option} has no effect without --ray, got {getattr(self, name)}")
            return None
        from engine.distributed import Replicas

        if is_endpoint(models.policy):
            raise UserError(
                f"--ray is not for --policy {ENDPOINT}..., whose server has replicas of its own: "
                f"--max-batch of one process sets how much it is asked at once, got {self.ray!r}"
            )
        if models.tensor_parallel > 1:
            raise UserError(
                f"a replica of --ray is one process, which --tensor-parallel {models.tensor_parallel} is not: "
                "run shards under torchrun instead"
            )
        gpus = (1.0 if models.device != "cpu" else 0.0) if self.replica_gpus is None else self.replica_gpus
        address = None if self.ray == "local" else self.ray
        return Replicas(self.replicas, self.replica_cpus, gpus, address)
