"""A verifier's forward that runs beside the policy's, as on a GPU: started in one tick, read in a later one."""

from __future__ import annotations

import pytest
import torch

from engine import BeamSearch, Engine, Sampling
from engine.model import Placement
from engine.runtime.executors.gpu import GPUExecutor, Launched
from engine.runtime.executors.transfers import Fetch
from tests.runtime.builders import PROBLEMS, assert_idle, fingerprint, load_llm

ON_CPU = Placement(torch.device("cpu"), "native")


class LateFetch(Fetch):
    """Is there when it has been asked so many times, or waited for."""

    num_polls = 0
    max_polls = 3

    @property
    def is_there(self) -> bool:
        self.num_polls += 1
        return self.num_polls > self.max_polls


class LateModel(GPUExecutor):
    """A verifier whose scores come later."""

    def launch(self, forward, marks) -> Launched:
        launched = super().launch(forward, marks)
        launched.fetch = LateFetch([torch.from_numpy(array) for array in launched.fetch.arrays()], None)
        return launched


class Waiting(GPUExecutor):
    """A verifier that is waited for."""

    is_asynchronous = False


def engine_of(folders, model: type[GPUExecutor]) -> Engine:
    policy, prm = (load_llm(folder, device=ON_CPU) for folder in (folders.policy, folders.prm))
    runner = prm.runner
    runner.executor = model(runner.parts)
    return Engine(policy, prm=prm)


def test_the_policy_goes_on_and_results_are_the_same(folders):
    options = {"sampling": Sampling(temperature=0.8), "max_tokens": 30, "seed": 4}
    found = []
    for model in (Waiting, LateModel):
        engine = engine_of(folders, model)
        policy, prm = engine.policy.runner, engine.prm.runner
        tick, beside = policy.tick, [0]

        def counted(max_forwards: int = 1, prm=prm, tick=tick, beside=beside) -> None:
            beside[0] += prm.is_in_flight
            tick(max_forwards)

        policy.tick = counted
        found.append([fingerprint(result) for result in engine.search(PROBLEMS, BeamSearch(2), 4, **options)])
        assert_idle(policy, prm)
        assert (beside[0] > 0) == (model is LateModel)
    assert found[0] == found[1]


def test_a_branch_closed_in_flight_is_forgotten(folders):
    prm = engine_of(folders, LateModel).prm
    first, second = prm.open("1+2\n"), prm.open("3+4\n")
    request = prm.queue_append([first], [[5, 6]], score_at=[[1]], purpose="verified")
    other = prm.queue_append([second], [[5, 6]], score_at=[[1]], purpose="verified")
    prm.runner.tick()
    assert prm.runner.is_in_flight
    assert not request.is_done
    first.close()
    prm.run(other)
    assert not request.is_done
    prompt = engine_of(folders, GPUExecutor).prm
    alone = prompt.queue_append([prompt.open("3+4\n")], [[5, 6]], score_at=[[1]], purpose="verified")
    prompt.run(alone)
    assert other.scores == [pytest.approx(alone.scores[0], abs=1e-6)]
    second.close()
    assert_idle(prm.runner)


def test_steps_that_are_being_read_are_waited_for(folders):
    """Of a step in flight, and of one after it, another branch gets the same score; nothing is read twice."""
    prm = engine_of(folders, LateModel).prm
    root = prm.open("1+2\n")
    first, second, third = root.fork(3)
    request = prm.queue_append_steps([first], [[[5, 6], [7, 3]]])
    prm.runner.tick()
    assert prm.runner.is_in_flight
    others = prm.queue_append_steps([second, third], [[[5, 6], [7, 3]], [[5, 6], [8, 3]]])
    for each in (request, others):
        prm.run(each)
    assert others.scores[0] == request.scores[0]
    assert others.scores[1][0] == request.scores[0][0]
    assert root.ledger.tokens["verified"] == 2 + 2 + 2
    assert root.ledger.tokens["recomputed"] == 0
    for branch in (first, second, third, root):
        branch.close()
    assert_idle(prm.runner)


def test_a_step_whose_reading_was_given_up_is_read_for_the_next_that_asks(folders):
    """Its request fails in flight, and its branch stays open."""
    prm = engine_of(folders, LateModel).prm
    root = prm.open("1+2\n")
    first, second, third = root.fork(3)
    request = prm.queue_append_steps([first], [[[5, 6], [7, 3]]])
    prm.runner.tick()
    assert prm.runner.is_in_flight
    prm.runner.fail(request, RuntimeError("given up"))
    assert not prm.runner.is_in_flight
    again = prm.queue_append_steps([second], [[[5, 6], [7, 3]]])
    prm.run(again)
    alone = engine_of(folders, LateModel).prm
    want = alone.queue_append_steps([alone.open("1+2\n")], [[[5, 6], [7, 3]]])
    alone.run(want)
    assert again.scores[0] == pytest.approx(want.scores[0], abs=1e-6)
    for branch in (first, second, third, root):
        branch.close()
    assert_idle(prm.runner)
