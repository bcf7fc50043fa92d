"""A decode step as a CUDA graph replays it: fixed buffers, attention's work list in them, CUDA kernels in emulation and
Triton's in its interpreter."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from engine.model import Placement
from engine.runtime import LLM
from engine.runtime.executors import gpu_step
from engine.runtime.executors.gpu import GPUExecutor
from engine.runtime.executors.gpu_step import StepKind
from engine.types import Sampling
from tests.tiny import tiny_family
from ttc_kernels.sample import cuda as sample_cuda
from ttc_kernels.sample import head as sample_head_module
from ttc_kernels.tree_attention import api as attention_api
from ttc_kernels.tree_attention import cuda as attention_cuda

ON_CPU = Placement(torch.device("cpu"), "native")
HEADS = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 64}


class Replayed:
    """Stands for a captured graph: runs the call again, which must find all that it needs in its buffers."""

    def __init__(self, call: Callable[[], None]):
        self.replay = call


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tiny_family(tmp_path_factory.mktemp("head64"), "LlamaForCausalLM", **HEADS)


@pytest.fixture
def with_triton(few_programs, monkeypatch) -> str:
    """Attention by Triton, all other ops by the CPU's; the type that its interpreter computes rightly."""
    monkeypatch.setattr(attention_api, "choose", lambda impl, x: "triton")
    monkeypatch.setattr(gpu_step, "implementation", lambda impl, x: "triton")
    return "fp32"


@pytest.fixture
def with_cuda(emulated, monkeypatch) -> str:
    """Attention and the LM head's draw by the CUDA kernels, in their emulation; all other ops by the CPU's."""
    for module in (attention_api, sample_head_module):
        monkeypatch.setattr(module, "choose", lambda impl, x: "cuda")
    monkeypatch.setattr(gpu_step, "implementation", lambda impl, x: "cuda")
    for module in (attention_cuda, sample_cuda):
        monkeypatch.setattr(module, "library", lambda: emulated)
    return "bf16"


@pytest.fixture(params=["cuda", "triton"])
def dtype(request) -> str:
    """With either attention, the type to load a model in."""
    return request.getfixturevalue(f"with_{request.param}")


def load(folder: Path, graphs: list[Replayed] | None, dtype: str) -> LLM:
    llm = LLM.load(folder, device=ON_CPU, dtype=dtype, num_blocks=64)
    runner = llm.runner
    runner.pool.k = runner.pool.k.contiguous()  # the order of a GPU's caches

    def capture(call: Callable[[], None]) -> Replayed:
        graphs.append(Replayed(call))
        return graphs[-1]

    make_graph = None if graphs is None else capture
    runner.executor = GPUExecutor(runner.parts, make_graph)
    return llm


def forked_searches(llm: LLM, lengths: tuple[int, int] = (5, 9)) -> list[tuple[tuple[int, ...], list[float]]]:
    """What branches draw that fork, are closed, and grow past a block: the tree changes below the same buffers."""
    root = llm.open("?5?2?=c;d3?1?4?\n")
    first = root.fork(3)
    drawn = llm.generate(first, max_tokens=lengths[0], sampling=Sampling(temperature=0.5), seed=1)
    first[1].close()
    second = [*first[0].fork(2), *first[2].fork(3)]
    drawn += llm.generate(second, max_tokens=lengths[1], sampling=Sampling(temperature=0.5), seed=2)
    return [(sampled.token_ids, list(sampled.logprobs)) for sampled in drawn]


def test_one_capture_serves_a_tree_that_forks_and_prunes(folder, dtype):
    graphs: list[Replayed] = []
    lengths = (2, 3) if dtype == "fp32" else (5, 9)  # Triton's interpreter is slow
    expected = forked_searches(load(folder, None, dtype), lengths)  # launched anew, from the plan's own work list
    llm = load(folder, graphs, dtype)
    found = forked_searches(llm, lengths)
    assert [tokens for tokens, _ in found] == [tokens for tokens, _ in expected]
    decoded = StepKind(size=16, is_filtered=False, is_mixed=False)
    assert set(llm.runner.executor._steps) == {decoded, decoded._replace(is_mixed=True)}, "prompts are replayed too"
    assert len(graphs) == 2


def test_a_work_list_that_outgrows_its_buffer_is_captured_again(folder, with_cuda, monkeypatch):
    expected = forked_searches(load(folder, None, with_cuda))
    monkeypatch.setattr(gpu_step, "_NUM_INTS", 40)
    monkeypatch.setattr(gpu_step, "_NUM_SLOTS", 1)
    graphs: list[Replayed] = []
    found = forked_searches(load(folder, graphs, with_cuda))
    assert found == expected
    assert len(graphs) > 1


def test_the_kernels_draw_what_the_native_path_draws(folder, with_cuda, monkeypatch):
    found = forked_searches(load(folder, [], with_cuda))
    monkeypatch.undo()
    expected = forked_searches(LLM.load(folder, dtype="bf16", num_blocks=64))
    # bfloat16 rounds a logit to a part in 256, where the kernel keeps float32: of nearly equal tokens another may win.
    num_same = 0
    for (tokens, ours), (others, theirs) in zip(found, expected, strict=True):
        same = next((i for i, pair in enumerate(zip(tokens, others, strict=True)) if pair[0] != pair[1]), len(tokens))
        assert ours[:same] == pytest.approx(theirs[:same], abs=0.1)
        num_same += same == len(tokens)
    assert num_same >= len(found) - 2
