"""The path of a GPU, driven on the CPU's tensors: decode steps over padded buffers, ops by `impl`, one fetch a tick.

The ops are the CPU's own kernels, quick enough for whole searches; in small cases their definitions ("reference"),
and Triton's kernels in its interpreter. Captured graphs, streams and pinned memory are a GPU's alone: tests/gpu.
"""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from engine import BeamSearch, BestOfN, Engine, Majority, Sampling
from engine.model import Placement, load_trunk_head, read_config
from engine.runtime import LLM
from engine.runtime.executors.gpu import GPUExecutor
from engine.runtime.executors.gpu_step import padded_size
from engine.types import GREEDY
from tests.runtime.builders import PROBLEMS, Folders, assert_idle, load_llm
from tests.tiny import tiny_family

NATIVE, REFERENCE, TRITON = (Placement(torch.device("cpu"), impl) for impl in ("native", "reference", "triton"))
PROMPT = "?5?2?=c;d3?1?4?\n"
FILTERED = Sampling(temperature=0.8, top_k=7, top_p=0.9, min_p=0.01)


def engine_on(device: str | Placement, folders: Folders, **options) -> Engine:
    head = load_trunk_head(folders.trunk_head, read_config(folders.policy), torch.float32)
    models = [load_llm(folders.policy, device=device, trunk_head=head, **options)]
    models.append(load_llm(folders.prm, device=device, **options))
    for model in models:
        assert isinstance(model.runner.executor, GPUExecutor) == (device != "cpu")
    return Engine(models[0], prm=models[1])


def same_results(left: Sequence, right: Sequence) -> None:
    """Tokens, trees and bills are equal; scores to rounding."""
    for a, b in zip(left, right, strict=True):
        assert [c.text for c in a.candidates] == [c.text for c in b.candidates]
        assert [c.address for c in a.candidates] == [c.address for c in b.candidates]
        assert a.answer == b.answer
        assert a.ledger.tokens == b.ledger.tokens
        assert a.ledger.flops == b.ledger.flops
        trees = [[(n.address, n.step_text, n.finish, n.status) for n in result.tree.nodes] for result in (a, b)]
        assert trees[0] == trees[1]
        for left_node, right_node in zip(a.tree.nodes, b.tree.nodes, strict=True):
            assert left_node.score == pytest.approx(right_node.score, abs=1e-4)


@pytest.mark.parametrize("strategy", [BeamSearch(2), BestOfN(), Majority()], ids=lambda strategy: strategy.name)
@pytest.mark.parametrize("verifier", ["prm", "trunk"])
def test_searches_are_those_of_the_native_path(folders, strategy, verifier):
    options = {"sampling": Sampling(temperature=0.7), "verifier": verifier, "max_tokens": 30, "seed": 3}
    found = []
    for device in ("cpu", NATIVE):
        engine = engine_on(device, folders)
        found.append(engine.search(PROBLEMS[:2], strategy, 4, **options))
        assert_idle(engine.policy.runner, engine.prm.runner)
    same_results(*found)


def test_suspension_and_small_chunks_change_no_token(folders):
    """Pools in which not all branches fit: some are suspended and computed again."""
    options = {"sampling": GREEDY, "max_tokens": 40}
    wide = engine_on(NATIVE, folders).search(PROBLEMS[:3], BeamSearch(2), 4, **options)
    tight = engine_on(NATIVE, folders, num_blocks=11, max_chunk=10)
    found = tight.search(PROBLEMS[:3], BeamSearch(2), 4, **options)
    assert tight.policy.runner.num_suspensions > 0
    assert [[c.text for c in r.candidates] for r in found] == [[c.text for c in r.candidates] for r in wide]
    assert_idle(tight.policy.runner, tight.prm.runner)


def test_home_models_search_alike():
    """The shipped models, fp32, greedy rollouts of a beam: what benchmarks/gpu/search.py asks of a GPU."""
    options = {"sampling": GREEDY, "max_tokens": 60}
    native = Engine.load("home", num_blocks=256)
    policy, prm = (
        LLM.load(folder, device=NATIVE, num_blocks=256) for folder in (native.policy.folder, native.prm.folder)
    )
    problems = ["?3?5?=a", "?5?2?=c;a2?"]
    same_results(*(e.search(problems, BeamSearch(2), 4, **options) for e in (native, Engine(policy, prm=prm))))


@pytest.mark.parametrize("sampling", [GREEDY, Sampling(temperature=0.9), FILTERED], ids=["greedy", "plain", "filtered"])
def test_triton_and_the_definitions_draw_the_native_tokens(folders, few_programs, sampling):
    """Triton with fused products, the definitions with torch's."""
    found = []
    for device in ("cpu", REFERENCE, TRITON):
        llm = LLM.load(folders.policy, device=device, num_blocks=64)
        branch = llm.open("b4?1?\n")
        sampled = llm.generate(branch.fork(2), max_tokens=2, sampling=sampling, seed=5)
        found.append(sampled)
    for other in found[1:]:
        assert [s.token_ids for s in other] == [s.token_ids for s in found[0]]
        for a, b in zip(found[0], other, strict=True):
            assert a.logprobs == pytest.approx(b.logprobs, abs=1e-4)


def test_logits_and_fed_tokens(folders):
    native, device = (LLM.load(folders.policy, device=place, num_blocks=64) for place in ("cpu", REFERENCE))
    found = []
    for llm in (native, device):
        branches = llm.open(PROMPT).fork(3)
        llm.append(branches[:2], [[5, 6, 7], [9]])
        found.append(llm.next_logits(branches))
        assert llm.next_logits(branches[1:]).device.type == "cpu"
    torch.testing.assert_close(*found, atol=1e-4, rtol=0)


def test_windows_and_norms_of_heads(tmp_path):
    """Families whose layers have more than Llama's: their plans are clipped on the host."""
    for model_class, fields in (
        ("MistralForCausalLM", {"sliding_window": 20}),
        ("Qwen3ForCausalLM", {}),
        ("Qwen2ForCausalLM", {}),
    ):
        folder = tiny_family(tmp_path / model_class, model_class, **fields)
        drawn = []
        for device in ("cpu", NATIVE):
            llm = LLM.load(folder, device=device, num_blocks=64)
            branches = llm.open([5, 6, 7, 8, 9] * 6).fork(3)
            sampled = llm.generate(branches, max_tokens=8, sampling=Sampling(temperature=0.7), seed=1)
            drawn.append([s.token_ids for s in sampled])
        assert drawn[0] == drawn[1], model_class


def test_padded_sizes():
    assert [padded_size(n) for n in (1, 16, 17, 32, 33, 49, 65, 97, 129, 193, 256)] == [
        *(16, 16, 32, 32, 48, 64, 96, 128, 192, 256, 256)
    ]


@pytest.mark.parametrize("num_scores", [40, 300], ids=["in a step", "op by op"])
def test_more_scores_than_tokens(folders, num_scores):
    """The same token's, as often as it is asked for."""
    found = []
    for device in ("cpu", NATIVE):
        prm = load_llm(folders.prm, device=device)
        request = prm.queue_append([prm.open("1+2\n")], [[5, 6]], score_at=[[0, 1] * (num_scores // 2)])
        prm.run(request)
        found.append(request.scores[0])
    assert found[1] == pytest.approx(found[0], abs=1e-4)
    assert len(found[0]) == num_scores
