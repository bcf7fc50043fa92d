"""The engine on the GPU against itself: captured graphs against single launches, and both against the CPU."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from engine import BeamSearch, Engine, Sampling
from engine.model import load_trunk_head, read_config
from engine.runtime import LLM
from engine.runtime.executors.gpu import GPUExecutor
from engine.types import GREEDY
from tests.tiny import tiny_family, tiny_policy, tiny_prm, tiny_trunk_head
from tests.ttc_kernels.test_cuda_kernels import head_inputs
from ttc_kernels.sample import RowSampling, cuda, sample_head
from ttc_kernels.sample.reference import gumbel, sample

PROMPT = "?5?2?=c;d3?1?4?\n"
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64}  # of which CUDA has attention
FILTERED = Sampling(temperature=0.8, top_k=7, top_p=0.9, min_p=0.01)
PROBLEMS = [{"problem": text, "id": text} for text in ("?3?5?=a", "?5?2?=c;?1?=a", "e3?")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tiny_family(tmp_path_factory.mktemp("head64"), "Qwen2ForCausalLM", **HEADS)


def extended(llm: LLM, sampling: Sampling) -> list[tuple]:
    """What branches draw that fork and are closed while a graph of their step is replayed."""
    root = llm.open(PROMPT)
    first = root.fork(5)
    drawn = llm.generate(first, max_tokens=7, sampling=sampling, seed=1)
    first[1].close()
    second = [child for branch in first[2:] for child in branch.fork(6)]
    drawn += llm.generate(second, max_tokens=20, sampling=sampling, seed=2)
    llm.runner.tree.check_integrity()
    return [(sampled.token_ids, sampled.logprobs) for sampled in drawn]


@pytest.mark.parametrize("sampling", [GREEDY, Sampling(temperature=0.9), FILTERED], ids=["greedy", "plain", "filtered"])
@pytest.mark.parametrize("dtype", ["bf16", "fp16", "fp32"])  # of fp32, attention is Triton's
def test_replayed_graphs_draw_what_single_launches_draw(folder, dtype, sampling):
    found = []
    for has_graphs in (True, False):
        llm = LLM.load(folder, device="cuda", dtype=dtype, num_blocks=256)
        runner = llm.runner
        if not has_graphs:
            runner.executor = GPUExecutor(runner.parts, make_graph=None)
        found.append(extended(llm, sampling))
        steps = runner.executor._steps.values()
        assert len(steps) == 4, "sizes 16 and 32, with fed tokens and without"
        assert all((step.graph is not None) == has_graphs for step in steps)
    assert found[0] == found[1]


def test_float32_draws_the_tokens_of_the_cpu(folder):
    """Greedy, without TF32; tokens drawn by chance would differ where two are nearly equal."""
    assert not torch.backends.cuda.matmul.allow_tf32
    found = [extended(LLM.load(folder, device=device, num_blocks=256), GREEDY) for device in ("cpu", "cuda")]
    assert [tokens for tokens, _ in found[0]] == [tokens for tokens, _ in found[1]]
    for (_, ours), (_, theirs) in zip(*found, strict=True):
        assert ours == pytest.approx(theirs, abs=1e-3)


@pytest.mark.parametrize("num_blocks", [256, 12])
def test_searches_with_both_verifiers(tmp_path, num_blocks):
    """The PRM on its own stream, the trunk head in the step; in a small pool branches are suspended."""
    policy, prm = tiny_policy(tmp_path / "policy"), tiny_prm(tmp_path / "prm")
    head = tiny_trunk_head(tmp_path / "head")
    for verifier in ("prm", "trunk"):
        found = []
        for device in ("cpu", "cuda"):
            engine = Engine.load(policy, prm=prm, trunk_head=head, device=device, num_blocks=num_blocks)
            options = {"sampling": GREEDY, "max_tokens": 40, "verifier": verifier}
            found.append(engine.search(PROBLEMS, BeamSearch(2), 4, **options))
            for llm in (engine.policy, engine.prm):
                llm.runner.tree.check_integrity()
                assert llm.runner.tree.num_open == 0
        for right, result in zip(*found, strict=True):
            assert [c.text for c in result.candidates] == [c.text for c in right.candidates]
            for ours, theirs in zip(result.candidates, right.candidates, strict=True):
                assert ours.scores == pytest.approx(theirs.scores, abs=1e-3)


def test_the_pool_leaves_room_and_is_split(tmp_path):
    policy, prm = tiny_policy(tmp_path / "policy"), tiny_prm(tmp_path / "prm")
    free, _ = torch.cuda.mem_get_info()
    engine = Engine.load(policy, prm=prm, device="cuda")
    pools = [llm.runner.pool for llm in (engine.policy, engine.prm)]
    assert pools[0].tree.num_blocks == pools[1].tree.num_blocks
    used = sum(pool.k.nbytes + pool.v.nbytes for pool in pools)
    assert used < 0.9 * free


def test_the_trunk_head_is_on_the_device(tmp_path):
    policy, head = tiny_policy(tmp_path / "policy"), tiny_trunk_head(tmp_path / "head")
    found = load_trunk_head(head, read_config(policy), torch.bfloat16, "cuda")
    assert found.weight.is_cuda
    assert found.bias.is_cuda


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("rows", "size", "vocab"), [(1, 64, 25), (64, 96, 1000), (200, 1536, 9001)])
def test_the_fused_head_draws_the_reference_s_tokens(rows, size, vocab, dtype):
    inputs = head_inputs(rows, size, vocab, dtype)
    there = {name: value.cuda() for name, value in inputs.items()}
    tokens, logprobs, _ = cuda.sample_head(**there)
    logits = inputs["hidden"].double() @ inputs["weight"].double().t()
    columns = [inputs[name] for name in ("keys", "positions", "temperature")]
    none = torch.zeros(rows, dtype=torch.int32), torch.ones(rows), torch.zeros(rows)
    expected, right = sample(logits, *columns, *none)
    is_same = tokens.cpu() == expected
    torch.testing.assert_close(logprobs.cpu()[is_same], right[is_same], atol=1e-3, rtol=1e-4)
    for row in (~is_same).nonzero()[:, 0].tolist():  # of nearly equal tokens another may win
        temperature = inputs["temperature"][row].item()
        score = logits[row]
        if temperature > 0:
            score = score / temperature + gumbel(inputs["keys"][[row]], inputs["positions"][[row]], vocab)[0]
        assert abs(score[tokens[row].item()] - score[expected[row]]) < 1e-3 * max(1.0, score.abs().max().item())
    sampling = RowSampling(*(x.cuda() for x in (*columns, *none)))
    unfused, _ = sample_head(there["hidden"], there["weight"], sampling)
    assert (unfused == tokens).float().mean() > 0.9
