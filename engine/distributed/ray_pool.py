"""Replicas as actors of Ray."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from engine.counts import check_count, check_real
from engine.distributed.driver import Ended
from engine.errors import UserError
from engine.runtime import LLM

_SPARE = 4  # items that wait in a replica for a place
_MAX_READY = 256  # results that are taken at once
_PATIENCE = 1.0  # seconds


class Worker:
    """What a replica runs: made in its process, from what can be sent there. `llm` is what it samples from."""

    llm: LLM

    def window(self, rows_each: int) -> int:
        """How many items that sample `rows_each` branches each are to be under way at once.

        Those that a batch has room for, and a few that wait.
        """
        return -(-3 * self.llm.runner.table.batch_size // (2 * rows_each)) + _SPARE

    async def do(self, *item: Any) -> Any:
        """Works on an item beside others; what it raises ends that item alone."""
        raise NotImplementedError


@dataclass(frozen=True)
class Replicas:
    """How many replicas there are, and what Ray is to reserve for each."""

    num: int = 1
    num_cpus: float = 1.0
    num_gpus: float = 0.0
    address: str | None = None
    """Of a cluster, or "auto"; None: the one that runs here, else one of this machine alone."""

    def __post_init__(self) -> None:
        check_count("replicas", self.num)
        for name in ("num_cpus", "num_gpus"):
            if not 0 <= check_real(f"{name} of a replica", getattr(self, name)) < math.inf:
                raise UserError(f"{name} of a replica must be a number from 0 up, got {getattr(self, name)}")


class _Replica:
    """The actor."""

    def __init__(self, make: Callable[[], Worker]):
        self._worker = make()

    async def window(self, rows_each: int) -> int:
        return self._worker.window(rows_each)

    async def do(self, *item: Any) -> Any:
        """What the worker made of the item, or the error that it raised: an error of Ray's means a lost replica."""
        try:
            return await self._worker.do(*item)
        except Exception as error:
            return error


class RayPool:
    """Actors that Ray starts again when they, or their machines, are lost. They wait for an `assign`."""

    def __init__(self, replicas: Replicas, make: Callable[[], Worker]):
        """Raises UserError without Ray, a cluster, or room for one replica."""
        self._ray = _connect(replicas.address)
        self.size, self._make = replicas.num, make
        _check_room(self._ray, replicas)
        options = {"num_cpus": replicas.num_cpus, "num_gpus": replicas.num_gpus, "max_restarts": -1}
        _Replica.window = self._ray.method(max_task_retries=-1)(_Replica.window)  # asked again of the one started next
        self._actor = self._ray.remote(_Replica).options(**options, max_task_retries=0, max_concurrency=1000)
        self._actors = [self._actor.remote(make) for _ in range(self.size)]
        self._windows = [0] * self.size
        self._asked: dict[Any, int] = {}
        self._under_way: dict[Any, tuple[int, int]] = {}

    def share(self, value: Any) -> tuple[Any]:
        """Stores a value on the cluster once; a worker that is sent what is returned awaits its one entry."""
        return (self._ray.put(value),)

    def assign(self, payload: Callable[[int], Sequence[Any]], rows_each: int) -> None:
        """Sets what an item means from now on, while none is under way: what `Worker.do` is called with."""
        self._payload, self._rows_each = payload, rows_each
        self._asked.clear()
        for replica in range(self.size):
            self._ask_window(replica)

    def window(self, replica: int) -> int:
        return self._windows[replica]

    def begin(self, replica: int, item: int) -> None:
        self._under_way[self._actors[replica].do.remote(*self._payload(item))] = replica, item

    def wait(self) -> list[Ended]:
        refs = [*self._asked, *self._under_way]
        ready, _ = self._ray.wait(refs, num_returns=1, timeout=_PATIENCE)
        if ready:
            ready, _ = self._ray.wait(refs, num_returns=min(len(refs), _MAX_READY), timeout=0)
        found = []
        for ref in ready:
            if ref in self._asked:
                self._hear_window(ref)
            else:
                found.append(self._take(ref))
        return found

    def _ask_window(self, replica: int) -> None:
        """Has a replica say how much it takes, once it is there; until then it takes nothing."""
        self._windows[replica] = 0
        if replica not in self._asked.values():
            self._asked[self._actors[replica].window.remote(self._rows_each)] = replica

    def _hear_window(self, ref: Any) -> None:
        replica = self._asked.pop(ref)
        errors = self._ray.exceptions
        try:
            self._windows[replica] = max(1, self._ray.get(ref))
        except errors.ActorDiedError as error:
            if "__init__" in str(error):  # it cannot be made: another one could not be either
                raise UserError(f"a replica cannot be started: {_last_line(error)}") from None
            self._actors[replica] = self._actor.remote(self._make)  # it was killed on purpose; else Ray starts it again
            self._ask_window(replica)
        except errors.RayError:
            self._ask_window(replica)

    def _take(self, ref: Any) -> Ended:
        replica, item = self._under_way.pop(ref)
        try:
            value = self._ray.get(ref)
        except self._ray.exceptions.RayTaskError as error:  # what it made cannot be sent
            return Ended(replica, item, RuntimeError(_last_line(error)))
        except self._ray.exceptions.RayError:
            self._ask_window(replica)
            return Ended(replica, item, is_lost=True)
        return Ended(replica, item, value)

    def close(self) -> None:
        """Ends all replicas, whatever they do."""
        for actor in self._actors:
            self._ray.kill(actor)


def _connect(address: str | None) -> Any:
    try:
        import ray
    except ImportError:
        raise UserError("searching over replicas needs Ray: pip install 'ttc-engine[ray]'") from None
    if not ray.is_initialized():
        try:
            ray.init(address=address, log_to_driver=False, logging_level="error")
        except (ConnectionError, ValueError) as error:
            raise UserError(f"cannot reach a Ray cluster at {address!r}: {_last_line(error)}") from None
    return ray


def _check_room(ray: Any, replicas: Replicas) -> None:
    """Raises UserError where no machine of the cluster could ever hold one replica."""
    wanted = {"CPU": replicas.num_cpus, "GPU": replicas.num_gpus}
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if not any(all(node.get(kind, 0) >= amount for kind, amount in wanted.items()) for node in nodes):
        best = {kind: max((node.get(kind, 0) for node in nodes), default=0) for kind in wanted}
        raise UserError(
            f"a replica needs {replicas.num_cpus:g} CPUs and {replicas.num_gpus:g} GPUs of one machine, "
            f"the largest of the cluster has {best['CPU']:g} and {best['GPU']:g}"
        )


def _last_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
