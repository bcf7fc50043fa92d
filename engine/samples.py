"""Plain samples of an engine's policy, which run beside its searches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from engine.config import SearchConfig
from engine.engine import Engine
from engine.handle import Handle
from engine.keys import branch_key
from engine.runtime.batcher import Job
from engine.runtime.requests import GenerateRequest
from engine.runtime.sampling import Sample, SampleOptions, growing_samples, sample_texts
from engine.types import Problem


@dataclass(frozen=True)
class SampleEvent:
    """How far a text has come: "grown", with all of it until now. "done" is the last event."""

    kind: str
    index: int = 0
    sample: Sample | None = None


class SampleHandle(Handle[list[Sample], SampleEvent]):
    """Samples that are drawn; where it `tells`, its events are the texts as they grow."""

    def __init__(self, engine: Engine, problem: Problem, options: SampleOptions, *, tells: bool):
        super().__init__(problem)
        self._llm, self._stop, self._tells = engine.policy, options.stop, tells
        self._request: GenerateRequest | None = None
        self._num_told: dict[int, int] = {}  # tokens of each text

    def attach(self, job: Job) -> None:
        super().attach(job)
        if self._tells:
            job.when_stepped = self._look

    def watch(self, request: GenerateRequest) -> None:
        """Called in the engine's thread with the request that generates the texts."""
        self._request = request

    def _look(self) -> None:
        if self._request is None or self._request.is_done:
            return
        for index, sample in growing_samples(self._llm, self._request, self._stop):
            if len(sample.token_ids) > self._num_told.get(index, 0):
                self._num_told[index] = len(sample.token_ids)
                self._tell(SampleEvent("grown", index, sample))

    def _last_event(self, outcome: list[Sample] | BaseException | None) -> SampleEvent:
        return SampleEvent("done")


def start_samples(
    engine: Engine,
    problem: Problem,
    config: SearchConfig,
    *,
    stop: Sequence[str] = (),
    tells: bool = False,
) -> SampleHandle:
    """Starts drawing `config.budget` texts, which are those that a search by `Majority` would draw.

    Raises UserError for a prompt that cannot be encoded; one over the context is raised by the handle.
    """
    keys = [branch_key(config.seed, problem.id, (index,)) for index in range(config.budget)]
    max_tokens = engine.task.max_tokens if config.max_tokens is None else config.max_tokens
    options = SampleOptions(keys, max_tokens, config.sampling, tuple(stop))
    handle = SampleHandle(engine, problem, options, tells=tells)
    prompt_ids, more = engine.prompt_ids(problem.asked), {"ledger": handle.ledger, "watch": handle.watch}
    engine.start(
        handle, [engine.policy], lambda: sample_texts(engine.policy, prompt_ids, options, **more), config.budget
    )
    return handle
