"""Long prefill by SDPA and by a stand-in for flash-attn, on a CPU's tensors, against the tree's own attention."""

import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

from engine.types import Sampling
from tests.runtime.builders import load_llm
from tests.tiny import tiny_family
from ttc_kernels import choice
from ttc_kernels.choice import Choice
from ttc_kernels.testing import assert_within_budget, poisoned
from ttc_kernels.tree_attention import api, cases, prefill, tree_attention

MIN_ROWS = 12
PROMPT = "?5?2?=c;d3?1?4?\n?3?5?=a\nd1?\n?5?2?=c;d3?1?4?\n"


@pytest.fixture
def by_sdpa(monkeypatch):
    """A CPU's runs of so many rows are long ones."""
    monkeypatch.setattr(choice, "PREFILL", (Choice("cpu", "prefill", "sdpa", "a test", min_rows=MIN_ROWS),))


@pytest.fixture
def by_flash_attn(monkeypatch):
    """As on a GPU: half-precision runs by flash-attn, whose stand-in refuses what it would; the calls' shapes."""
    calls = []

    def flash_attn_func(q, k, v, dropout_p=0.0, softmax_scale=None, causal=False):
        assert q.dim() == 4
        assert len({x.dtype for x in (q, k, v)}) == 1
        assert q.dtype in (torch.bfloat16, torch.float16)
        assert q.stride(-1) == k.stride(-1) == v.stride(-1) == 1
        assert causal
        calls.append((tuple(q.shape), tuple(k.shape)))
        group = q.shape[2] // k.shape[2]
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        seen = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool).tril(k.shape[2] - q.shape[2])  # the last rows
        k, v = (x.repeat_interleave(group, 1) for x in (k, v))
        return F.scaled_dot_product_attention(q, k, v, attn_mask=seen, scale=softmax_scale).transpose(1, 2)

    module = ModuleType("flash_attn")
    module.flash_attn_func = flash_attn_func
    monkeypatch.setitem(sys.modules, "flash_attn", module)
    monkeypatch.setattr(choice, "_has_flash_attn", lambda: True)
    rows = (
        Choice("cpu", "prefill", "sdpa", "a test", min_rows=MIN_ROWS),
        Choice("cpu", "prefill", "flash_attn", "a test", min_rows=MIN_ROWS, dtypes=(torch.bfloat16, torch.float16)),
    )
    monkeypatch.setattr(choice, "PREFILL", rows)
    return calls


def long_cases(dtype: torch.dtype) -> list[cases.Case]:
    """A prompt alone; the end of one whose start is in the cache; branches of a prompt, all long."""
    return [
        cases.Case(4, 2, 32, dtype, ((1, 45),), num_queries=45),
        cases.Case(6, 2, 24, dtype, ((1, 70),), num_queries=19),
        cases.Case(4, 4, 16, dtype, ((1, 21), (3, 40)), num_queries=30, spread=9),
        cases.Case(4, 1, 16, dtype, ((1, 21), (2, 13)), num_queries=20),  # begin within the node that they share
    ]


@pytest.mark.parametrize("case", long_cases(torch.float32) + long_cases(torch.bfloat16), ids=str)
def test_long_runs_are_the_reference(case, by_sdpa):
    inputs = case.inputs()
    split = prefill.split_of(inputs["plan"], inputs["q"], inputs["k_cache"])
    assert split.rest is None
    assert [run.implementation for run in split.runs] == ["sdpa"] * len(inputs["plan"].order)
    wide = {k: v.double() if isinstance(v, torch.Tensor) else v for k, v in inputs.items()}
    exact, plain = tree_attention(**wide, impl="reference"), tree_attention(**inputs, impl="reference")
    out = poisoned(*exact.shape, dtype=case.dtype)
    assert tree_attention(**inputs, out=out) is out
    assert_within_budget(out, exact, plain)


@pytest.mark.parametrize("case", long_cases(torch.bfloat16), ids=str)
def test_flash_attn_gets_the_run_and_its_whole_path(case, by_flash_attn):
    inputs = case.inputs()
    out = tree_attention(**inputs)
    num_tokens = [int(inputs["plan"].positions[hi - 1]) + 1 for hi in inputs["plan"].row_start[1:]]
    heads = case.num_heads, case.num_kv_heads, case.head_dim
    assert by_flash_attn == [
        ((1, case.num_queries, heads[0], heads[2]), (1, num, heads[1], heads[2])) for num in num_tokens
    ]
    torch.testing.assert_close(out, tree_attention(**inputs, impl="native"), atol=2e-2, rtol=2e-2)


class Attentions(TorchFunctionMode):
    """Notes the heads of keys and values of every call of SDPA."""

    def __init__(self):
        super().__init__()
        self.heads = set()

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is F.scaled_dot_product_attention:
            self.heads.add((args[1].shape[1], args[2].shape[1], kwargs["enable_gqa"]))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("case", long_cases(torch.bfloat16), ids=str)
def test_sdpa_gets_the_cache_s_own_heads(case, by_sdpa):
    """In half precision nothing is repeated for the query heads of a group."""
    with Attentions() as seen:
        tree_attention(**case.inputs())
    assert (case.num_kv_heads, case.num_kv_heads, case.num_heads != case.num_kv_heads) in seen.heads


def test_indices_of_all_runs_are_one_upload(by_sdpa):
    inputs = long_cases(torch.float32)[2].inputs()
    runs = prefill.split_of(inputs["plan"], inputs["q"], inputs["k_cache"]).runs
    assert len(runs) == 3
    assert len({x.untyped_storage().data_ptr() for run in runs for x in (run.block, run.offset)}) == 1


def test_flash_attn_takes_no_float32(by_flash_attn):
    inputs = long_cases(torch.float32)[0].inputs()
    split = prefill.split_of(inputs["plan"], inputs["q"], inputs["k_cache"])
    assert [run.implementation for run in split.runs] == ["sdpa"]


def mixed() -> tuple[dict, np.ndarray]:
    """Branches of one prompt with 1, 20, 3, 15 and 1 new tokens, and where their rows begin."""
    case = cases.Case(4, 2, 16, torch.float32, ((1, 37), (5, 24)))
    tree, handles, num_blocks = case.grow()
    plan = tree.plan(handles, np.array([1, 20, 3, 15, 1], np.int32))
    shape = num_blocks, 2, 16, 16
    generator = torch.Generator().manual_seed(0)
    k = torch.randn(shape, generator=generator).transpose(2, 3).contiguous().transpose(2, 3)  # a CPU's layout
    v, q = torch.randn(shape, generator=generator), torch.randn(40, 4, 16, generator=generator)
    return {"q": q, "k_cache": k, "v_cache": v, "plan": plan, "scale": 0.25}, plan.row_start


def test_other_rows_go_through_the_tree(by_sdpa, monkeypatch):
    inputs, starts = mixed()
    split = prefill.split_of(inputs["plan"], inputs["q"], inputs["k_cache"])
    assert [(run.row_lo, run.row_hi) for run in split.runs] == [(starts[1], starts[2]), (starts[3], starts[4])]
    rows = {row for lo, hi in split.rest.items[:, :2].tolist() for row in range(lo, hi)}
    assert rows == {*range(starts[1]), *range(starts[2], starts[3]), *range(starts[4], starts[5])}
    found = tree_attention(**inputs, out=poisoned(40, 4, 16))
    expected = tree_attention(**inputs, impl="reference")
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    own = tree_attention(**inputs, impl="native")  # an explicit request runs, whatever the table says
    assert torch.equal(found[starts[2] : starts[3]], own[starts[2] : starts[3]])
    assert not torch.equal(found, own)
    assert prefill.split_of(inputs["plan"], inputs["q"], inputs["k_cache"]) is split, "found once"


def test_short_runs_and_plans_that_do_not_tell_branches_are_left_alone(by_sdpa):
    inputs, _ = mixed()
    plan = SimpleNamespace(items=inputs["plan"].items, blocks=inputs["plan"].blocks)
    assert prefill.split_of(plan, inputs["q"], inputs["k_cache"]) is None
    short = cases.Case(4, 2, 32, torch.float32, ((3, 45),), num_queries=MIN_ROWS - 1).inputs()
    assert prefill.split_of(short["plan"], short["q"], short["k_cache"]) is None


def test_a_block_outside_the_cache(by_sdpa):
    inputs = long_cases(torch.float32)[0].inputs()
    for name in ("k_cache", "v_cache"):
        inputs[name] = inputs[name][:2]
    with pytest.raises(ValueError, match="rows 0 to 45 name a block outside the cache"):
        tree_attention(**inputs)


def test_a_cpu_has_none():
    inputs = cases.Case(1, 1, 16, torch.float32, ((1, 600),), num_queries=600).inputs()
    assert prefill.split_of(inputs["plan"], inputs["q"], inputs["k_cache"]) is None
    assert {row.device for row in choice.PREFILL} == {"cuda"}
    assert all(row.set_by for row in choice.PREFILL)


def test_a_model_prefills_by_it(by_sdpa, monkeypatch, tmp_path):
    """Prompts of many tokens, in chunks, beside branches that decode: the same tokens as without it."""
    folder = tiny_family(tmp_path, "Qwen3ForCausalLM")  # no packed trunk, whose attention is its own
    found, num_runs = [], 0
    attend = prefill.Run.attend

    def counted(self, *args):
        nonlocal num_runs
        num_runs += 1
        attend(self, *args)

    monkeypatch.setattr(prefill.Run, "attend", counted)
    for is_split in (True, False):
        if not is_split:
            monkeypatch.setattr(api, "split_of", lambda *args: None)
        llm = load_llm(folder, num_blocks=64, max_chunk=40)
        first = llm.open([5, 6, 7]).fork(2)
        llm.generate(first, max_tokens=4, sampling=Sampling(temperature=0.7), seed=3)
        branches = [*llm.open([5, 6, 7, 8, 9] * 20).fork(2), *llm.open([5, 6, 7, 8, 9] * 15 + [3]).fork(1), *first]
        sampled = llm.generate(branches, max_tokens=6, sampling=Sampling(temperature=0.7), seed=1)
        found.append([s.token_ids for s in sampled])
    assert found[0] == found[1]
    assert num_runs > 4
