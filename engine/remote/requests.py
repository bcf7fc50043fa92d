"""Requests to an endpoint: a job of each is one answer, sampled by one HTTP request."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from engine.accounting import Ledger
from engine.errors import UserError
from engine.remote.stream import Sampled, bill
from engine.runtime.requests import Request, RequestRunner


class EndpointRunner(RequestRunner, Protocol):
    """What requests know of the `RemoteRunner` that works for them."""

    def cancel(self, job: RemoteJob) -> None: ...

    def cut(self, request: RemoteRequest) -> None: ...


class RemoteBranch:
    """A text that an endpoint may go on from: prompts and answers in turn. Nothing of it is held elsewhere."""

    def __init__(self, turns: tuple[str, ...], ledger: Ledger):
        self.turns, self.ledger = turns, ledger  # the last turn is a prompt ...
        self.answer = ""  # ... and this is what was sampled after it
        self.job: RemoteJob | None = None
        self.is_open = True

    def fork(self, num_branches: int) -> list[RemoteBranch]:
        assert not self.answer, "an endpoint begins an answer, and goes on with none"
        return [RemoteBranch(self.turns, self.ledger) for _ in range(num_branches)]

    def close(self) -> None:
        """Takes back what is being sampled. Raises UserError the second time."""
        if not self.is_open:
            raise UserError("the branch of an endpoint is closed already")
        self.is_open = False
        if self.job is not None:
            self.job.cancel()


@dataclass(eq=False)
class RemoteJob:
    """One branch of a request."""

    request: RemoteRequest
    index: int  # of the branch in the request
    branch: RemoteBranch
    path: str  # below the endpoint's URL
    body: dict
    sampled: Sampled = field(default_factory=Sampled)

    def cancel(self) -> None:
        self.request.runner.cancel(self)

    def charge(self) -> None:
        """Bills what was sampled, of tries that broke off too; FLOPs are not known."""
        cost, ledger, purpose = bill(self.sampled), self.branch.ledger, self.request.purpose
        entries = {"sampled": purpose, "prompt": "prefilled", "cached": "cached"}
        ledger.add(purpose, cost.sampled)
        ledger.add("prefilled", cost.prompt)
        ledger.add("cached", cost.cached)
        ledger.estimated |= {f"tokens.{entries[name]}" for name in cost.estimated}
        ledger.estimated |= {f"flops.{purpose}", "flops.prefilled"}
        if self.sampled.num_lost:
            ledger.add("recomputed", self.sampled.num_lost)
            ledger.estimated |= {"tokens.recomputed", "flops.recomputed"}


@dataclass(eq=False)
class RemoteRequest(Request):
    """Samples an answer onto each branch; `results[i]` belongs to the i-th."""

    runner: EndpointRunner
    purpose: str = "generated"
    stops_at_box: bool = False
    results: list[Sampled] = field(default_factory=list)

    def cut(self) -> None:
        if not self.is_done:
            self.runner.cut(self)
