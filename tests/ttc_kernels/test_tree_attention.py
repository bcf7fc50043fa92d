"""tree_attention against its definition in float64, on every path of this machine, and its bits."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from ttc_kernels import _native, kv_cache
from ttc_kernels.testing import assert_within_budget, poisoned
from ttc_kernels.tree_attention import cases, tree_attention

ISAS = _native.supported_isas()
DTYPES = [torch.float32, torch.bfloat16]
isas = pytest.mark.parametrize("isa", ISAS)
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=["fp32", "bf16"])


def in_float64(inputs: dict) -> torch.Tensor:
    wide = {k: v.double() if isinstance(v, torch.Tensor) else v for k, v in inputs.items()}
    return tree_attention(**wide, impl="reference")


def ids(case: cases.Case) -> str:
    heads = f"{case.num_heads}of{case.num_kv_heads}x{case.head_dim}"
    tree = str(case.levels).replace(" ", "")
    return f"{heads}-{str(case.dtype)[6:]}-{tree}-{case.num_queries}q-b{case.block_size}"


@pytest.mark.parametrize("case", cases.tiny(), ids=ids)
def test_matches_the_reference_in_float64(case):
    inputs = case.inputs(seed=len(ids(case)))
    exact, plain = in_float64(inputs), tree_attention(**inputs, impl="reference")
    for isa in ISAS:
        out = poisoned(*exact.shape, dtype=case.dtype)
        assert tree_attention(**inputs, out=out, isa=isa) is out
        assert_within_budget(out, exact, plain)


def test_the_reference_is_causal_attention():
    case = cases.Case(4, 2, 32, torch.float64, ((1, 45),), num_queries=45)
    inputs = case.inputs()
    slots = torch.as_tensor(inputs["plan"].slots).long()
    q = inputs["q"].transpose(0, 1)
    k, v = (inputs[n][slots // 16, :, slots % 16].transpose(0, 1) for n in ("k_cache", "v_cache"))
    expected = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True, scale=inputs["scale"])
    out = tree_attention(**inputs, impl="reference")
    torch.testing.assert_close(out, expected.transpose(0, 1), rtol=1e-12, atol=1e-12)


class World:
    """A KV tree and its caches: keys, values and queries are drawn from the token and its position."""

    def __init__(self, heads=(6, 2, 24), dtype=torch.float32, block_size=16, num_blocks=200):
        self.num_heads, self.num_kv_heads, self.head_dim = heads
        self.dtype, self.block_size = dtype, block_size
        self.tree = _native.KVTree(num_blocks, block_size)
        k, v = kv_cache.allocate(1, num_blocks, self.num_kv_heads, block_size, self.head_dim, dtype)
        self.k, self.v = (x[0].copy_(poisoned(*x[0].shape, dtype=dtype)) for x in (k, v))

    def extend(self, handles, counts, seed=0):
        rng = np.random.default_rng([seed, *map(int, handles)])
        tokens = rng.integers(0, 10_000, sum(counts)).astype(np.int32)
        self.feed(handles, counts, tokens)

    def feed(self, handles, counts, tokens):
        """Appends tokens and writes their keys and values."""
        self.tree.extend(np.array(handles, np.int32), np.array(counts, np.int32), np.array(tokens, np.int32))
        plan = self.plan(handles, counts)
        shape = (len(plan.positions), self.num_kv_heads, self.head_dim)
        slots = torch.as_tensor(plan.slots).long()
        place = (slots // self.block_size, slice(None), slots % self.block_size)
        self.k[place] = self.draw(plan, shape, 1)
        self.v[place] = self.draw(plan, shape, 2)

    def draw(self, plan, shape, seed):
        table = torch.randn(997, *shape[1:], generator=torch.Generator().manual_seed(seed))
        rows = torch.as_tensor(plan.tokens).long() * 31 + torch.as_tensor(plan.positions)
        return table[rows % len(table)].to(self.dtype)

    def plan(self, handles, num_queries):
        return self.tree.plan(np.array(handles, np.int32), np.array(num_queries, np.int32))

    def attend(self, handles, num_queries, isa="auto"):
        """A list with the rows of each handle, in the order given."""
        plan = self.plan(handles, num_queries)
        q = self.draw(plan, (len(plan.positions), self.num_heads, self.head_dim), 3)
        out = poisoned(*q.shape, dtype=self.dtype)
        tree_attention(q, self.k, self.v, plan, 0.3, out, isa=isa)
        parts = [None] * len(handles)
        for i, branch in enumerate(plan.order):
            parts[branch] = out[plan.row_start[i] : plan.row_start[i + 1]]
        return parts


def beams(world: World) -> list[int]:
    """Eleven leaves of uneven depth; the last one is an ancestor of others."""
    root, _ = world.tree.open(np.zeros(0, np.int32))
    world.extend([root], [41])
    first = world.tree.fork(root, 3).tolist()
    world.extend(first, [7, 16, 20])
    second = [h for parent in first for h in world.tree.fork(parent, 3).tolist()]
    world.extend(second, [1 + 5 * i for i in range(9)])
    return [*second, first[1], root]


@isas
@dtypes
def test_a_row_does_not_depend_on_the_others(isa, dtype):
    world = World(dtype=dtype)
    handles = beams(world)
    together = world.attend(handles, [1] * len(handles), isa)
    permuted = np.random.default_rng(0).permutation(len(handles))
    for subset in (permuted, permuted[:4], [0], [8], [3, 9, 10]):
        alone = world.attend([handles[i] for i in subset], [1] * len(subset), isa)
        for i, rows in zip(subset, alone, strict=True):
            assert torch.equal(rows, together[i])


@isas
@dtypes
@pytest.mark.parametrize("heads", [(6, 2, 24), (3, 3, 16), (14, 1, 128)], ids=str)
def test_prefill_in_chunks_gives_the_bits_of_one_token_decode(isa, dtype, heads):
    tokens = np.arange(75, dtype=np.int32)
    results = []
    for sizes in ([1] * 75, [75], [16, 16, 16, 16, 11], [40, 1, 3, 31]):
        world = World(heads, dtype)
        handle, _ = world.tree.open(np.zeros(0, np.int32))
        rows, start = [], 0
        for size in sizes:
            world.feed([handle], [size], tokens[start : start + size])
            rows += world.attend([handle], [size], isa)
            start += size
        results.append(torch.cat(rows))
        assert torch.isfinite(results[-1]).all()
    for other in results[1:]:
        assert torch.equal(other, results[0])


@isas
def test_queries_over_several_nodes_give_the_bits_of_one_token_decode(isa):
    world = World()
    root, _ = world.tree.open(np.zeros(0, np.int32))
    world.extend([root], [20])
    decoded = []
    branch = int(world.tree.fork(root, 2)[0])
    for count in (5, 17, 1, 9):  # a node each
        for i in range(count):
            world.extend([branch], [1], seed=100 * count + i)
            decoded += world.attend([branch], [1], isa)
        world.tree.cut(branch)
    for num_queries in (32, 27, 10, 9, 2):
        (rows,) = world.attend([branch], [num_queries], isa)
        assert torch.equal(rows, torch.cat(decoded[-num_queries:]))
    with_sibling = world.attend([root, branch], [20, 32], isa)
    assert torch.equal(with_sibling[1], torch.cat(decoded))


@isas
def test_splitting_a_node_at_a_block_changes_no_bit(isa):
    world = World()
    tokens = np.arange(60, dtype=np.int32)
    handle, _ = world.tree.open(tokens)
    world.feed([handle], [60], tokens)
    (before,) = world.attend([handle], [3], isa)
    num_items = len(world.plan([handle], [3]).items)
    _, num_cached = world.tree.open(np.concatenate([tokens[:40], [9999, 9999]]).astype(np.int32))
    assert num_cached == 32
    assert len(world.plan([handle], [3]).items) == num_items + 1
    assert torch.equal(world.attend([handle], [3], isa)[0], before)


@isas
def test_block_size_changes_no_bit(isa):
    results = []
    for block_size in (16, 32, 64):
        world = World(block_size=block_size)
        results.append(torch.cat(world.attend(beams(world), [1] * 11, isa)))
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


@isas
@dtypes
def test_the_number_of_threads_changes_no_bit(isa, dtype):
    trees = [
        cases.Case(6, 2, 16, dtype, ((1, 60), (16, 15), (4, 20), (1, 20), (2, 15)), spread=6),
        cases.Case(6, 2, 16, dtype, ((1, 40), (200, 1)), block_size=32, spread=60),
        cases.Case(4, 1, 64, dtype, ((1, 200),), num_queries=190),
        cases.Case(5, 5, 64, dtype, ((1, 300), (3, 20)), num_queries=11),
    ]
    before = torch.get_num_threads()
    try:
        for case in trees:
            inputs = case.inputs()
            results = []
            for num_threads in (1, 2, 3):
                torch.set_num_threads(num_threads)
                results.append(tree_attention(**inputs, isa=isa))
            assert_within_budget(results[0], in_float64(inputs), tree_attention(**inputs, impl="reference"))
            assert torch.equal(results[0], results[1])
            assert torch.equal(results[0], results[2])
    finally:
        torch.set_num_threads(before)


@isas
@dtypes
def test_peaked_and_tiny_scores(isa, dtype):
    inputs = cases.Case(4, 2, 32, dtype, ((1, 70), (3, 20))).inputs()
    for scale in (60.0, 0.0, -3.0):
        inputs["scale"] = scale
        out = tree_attention(**inputs, isa=isa)
        # A score of some hundreds has an absolute error of its own; plain torch's is the measure again.
        plain = tree_attention(**inputs, impl="reference")
        assert_within_budget(out, in_float64(inputs), plain, num_ulps=600)


@isas
def test_a_bad_row_stays_alone(isa):
    inputs = cases.Case(4, 2, 32, torch.float32, ((1, 40), (6, 20))).inputs()
    clean = tree_attention(**inputs, isa=isa)
    inputs["q"][2, 1] = float("nan")
    out = tree_attention(**inputs, isa=isa)
    assert torch.isnan(out[2, 1]).all()
    out[2, 1] = clean[2, 1]
    assert torch.equal(out, clean)


@isas
def test_strided_heads_and_a_row_without_items(isa):
    inputs = cases.Case(4, 2, 16, torch.float32, ((1, 20), (3, 5))).inputs()
    expected = tree_attention(**inputs, isa=isa)
    wide = poisoned(5, 4, 3 * 16)
    wide[:3, :, 16:32] = inputs["q"]
    wide[3:] = 1.0
    inputs["q"] = wide[:, :, 16:32]  # the plan covers three of five rows
    out = tree_attention(**inputs, isa=isa)
    assert torch.equal(out[:3], expected)
    assert torch.equal(out[3:], torch.zeros(2, 4, 16))


def test_no_rows():
    inputs = cases.Case(4, 2, 16, torch.float32, ((1, 20),)).inputs()
    inputs["q"] = inputs["q"][:0]
    inputs["plan"] = SimpleNamespace(items=np.zeros((0, 5), np.int32), blocks=np.zeros(0, np.int32))
    assert tree_attention(**inputs).shape == (0, 4, 16)


def bad_plan(items, blocks=(0, 1)):
    return {"plan": SimpleNamespace(items=np.array(items, np.int32), blocks=np.array(blocks, np.int32))}


@pytest.mark.parametrize(
    ("change", "shown"),
    [
        ({"q": torch.zeros(1, 64)}, r"\(1, 64\)"),
        ({"q": torch.zeros(1, 3, 16)}, "num_heads 3"),
        ({"q": torch.zeros(1, 4, 16, dtype=torch.float16)}, "float16"),
        ({"q": torch.zeros(1, 4, 32)[:, :, ::2]}, r"strides \(128, 32, 2\)"),
        ({"out": torch.zeros(1, 4, 8)}, r"\(1, 4, 8\)"),
        ({"v_cache": torch.zeros(2, 2, 16, 32)}, r"\(2, 2, 16, 32\)"),
        ({"k_cache": torch.zeros(5, 2, 16, 16)}, r"strides \(512, 256, 16, 1\)"),
        ({"impl": "fast"}, "'fast'"),
        ({"isa": "mmx"}, "'mmx'"),
        (bad_plan([[0, 2, 0, 20, 0]]), r"item 0 \(0, 2, 0, 20, 0\) has rows outside q"),
        (bad_plan([[0, 1, 1, 20, 0]]), "exceeds the plan's blocks"),
        (bad_plan([[0, 1, 0, 20, 0]], (0, 99)), "names a block outside the cache"),
    ],
)
def test_refuses(change, shown):
    inputs = cases.Case(4, 2, 16, torch.float32, ((1, 20),)).inputs()
    with pytest.raises(ValueError, match=shown) as error:
        tree_attention(**{**inputs, **change})
    assert change.get("isa") or "tree_attention" in str(error.value)
