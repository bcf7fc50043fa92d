"""Tree attention in CUDA against its definition, by emulation: the source that nvcc compiles, run thread for thread."""

import ctypes

import pytest
import torch

from ttc_kernels.testing import assert_within_budget, poisoned
from ttc_kernels.tree_attention import cases, reference
from ttc_kernels.tree_attention.cuda import tree_attention
from ttc_kernels.tree_attention.work import AttentionWork

HALF, BF16 = torch.float16, torch.bfloat16


@pytest.fixture(scope="module")
def lib(emulated):
    return emulated


def attention_inputs(case: cases.Case, seed: int = 0) -> dict:
    inputs = case.inputs(seed)
    return inputs | {"k_cache": inputs["k_cache"].contiguous()}  # as kv_cache.allocate lays it out on a GPU


def assert_attention_agrees(inputs: dict, out: torch.Tensor, **options) -> None:
    wide = {k: v.double() if isinstance(v, torch.Tensor) else v for k, v in inputs.items()}
    exact, plain = reference.tree_attention(**wide), reference.tree_attention(**inputs)
    assert_within_budget(out, exact, plain, **options)


def attend(lib, inputs: dict, **options) -> torch.Tensor:
    """tree_attention over a work list whose partial results, and result, start as NaN."""
    q, k = inputs["q"], inputs["k_cache"]
    work = AttentionWork(q.shape[1], k.shape[1], q.shape[2], "cpu", **options)
    work.update(inputs["plan"], len(q), k.shape[0], k.shape[2])
    for partial in (work.partial, work.partial_lse):
        partial.fill_(float("nan"))
    return tree_attention(**(inputs | {"plan": work}), out=poisoned(*q.shape, dtype=q.dtype), lib=lib)


SHAPES = [(2, 1, 64), (6, 2, 64), (5, 1, 128), (4, 4, 128), (32, 1, 64)]
TREES = [
    (((1, 1),), 1, 16, 0),
    (((1, 16), (2, 1)), 1, 16, 0),
    (((1, 70), (3, 9), (2, 4)), 1, 32, 3),
    (((1, 37), (3, 5), (2, 9)), 11, 16, 4),
    (((1, 150),), 40, 64, 0),
]


@pytest.mark.parametrize("dtype", [HALF, BF16], ids=["fp16", "bf16"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("tree", TREES, ids=lambda tree: str(tree[0]).replace(" ", ""))
def test_tree_attention(lib, tree, shape, dtype):
    levels, num_queries, block_size, spread = tree
    case = cases.Case(*shape, dtype, levels, num_queries, block_size, spread)
    inputs = attention_inputs(case)
    assert_attention_agrees(inputs, attend(lib, inputs, split_tokens=64 if num_queries > 1 else 0))


@pytest.mark.parametrize("split_tokens", [64, 128, 0])
def test_tree_attention_over_many_tiles(lib, split_tokens):
    """A ring of three comes round several times, in wide units and in narrow ones."""
    for num_queries in (1, 30):
        inputs = attention_inputs(cases.Case(4, 2, 64, HALF, ((1, 450),), num_queries))
        assert_attention_agrees(inputs, attend(lib, inputs, split_tokens=split_tokens, num_wanted=1))


SPLIT = {"split_tokens": 64}
WAYS = [  # heads, KV heads, head size; levels, queries, block size, spread; options: what the units are like
    ((3, 1, 64), (((1, 130), (9, 17)), 1, 16, 15), {}),  # leaves around the end of a block and of a warp's tile
    ((7, 1, 128), (((1, 20), (6, 31)), 1, 32, 2), {}),  # leaves of up to 33 tokens: by a warp, and by a block
    ((4, 4, 64), (((1, 9), (40, 1)), 1, 16, 3), {"num_wanted": 1}),  # tiny leaves, several to a ticket, over 128 tokens
    ((2, 2, 64), (((1, 9), (40, 100)), 1, 16, 20), {"num_wanted": 1}),  # a warp's ring comes round several times
    ((5, 1, 64), (((1, 200), (30, 3)), 1, 16, 2), SPLIT),  # a node of 150 packed rows, tall and wide
    ((16, 1, 128), (((1, 150), (9, 16)), 1, 64, 0), SPLIT),  # 144 packed rows, tall and narrow
    ((1, 1, 64), (((1, 300),), 170, 16, 0), SPLIT),  # causal in tall units, the first of which see little
    ((3, 1, 64), (((1, 70), (2, 90)), 60, 32, 9), {"num_wanted": 1}),  # 360 rows share a node; 180 a causal one
]


@pytest.mark.parametrize(("shape", "tree", "options"), WAYS, ids=lambda x: str(x).replace(" ", ""))
def test_tree_attention_takes_every_way(lib, shape, tree, options):
    """Short, narrow, wide and tall units, from queues that are empty at the end."""
    levels, num_queries, block_size, spread = tree
    inputs = attention_inputs(cases.Case(*shape, BF16, levels, num_queries, block_size, spread))
    assert_attention_agrees(inputs, attend(lib, inputs, **options))


@pytest.mark.parametrize("scale", [60.0, 0.0, -3.0])
def test_tree_attention_of_peaked_and_flat_scores(lib, scale):
    inputs = attention_inputs(cases.Case(4, 2, 64, BF16, ((1, 70), (3, 20)))) | {"scale": scale}
    assert_attention_agrees(inputs, attend(lib, inputs), num_ulps=600)


def test_tree_attention_rows_that_are_bad_or_see_nothing_stay_alone(lib):
    inputs = attention_inputs(cases.Case(4, 2, 64, HALF, ((1, 40), (6, 20))))
    clean = attend(lib, inputs)
    wide = poisoned(8, 4, 3 * 64, dtype=HALF)
    wide[:6, :, 64:128] = inputs["q"]
    wide[6:] = 1.0
    wide[2, 1] = float("nan")
    out = attend(lib, inputs | {"q": wide[:, :, 64:128]})  # the plan covers six of eight rows
    assert torch.isnan(out[2, 1]).all()
    out[2, 1] = clean[2, 1]
    assert torch.equal(out, torch.cat([clean, torch.zeros(2, 4, 64, dtype=HALF)]))


@pytest.mark.parametrize("heads", [(6, 2), (32, 1)], ids=str)
def test_tree_attention_does_not_depend_on_who_computes_what(lib, heads):
    """Blocks and warps draw their units, and whoever comes last to a row merges it: in an order that is always the
    same, however many blocks there are. Counters and queues are left at 0."""
    set_seed, set_resident = (getattr(ctypes.CDLL(lib.path), f"ttc_test_{name}") for name in ("seed", "resident"))
    set_seed.argtypes = set_resident.argtypes = [ctypes.c_int64]
    case = cases.Case(*heads, 64, HALF, ((1, 300), (3, 70), (2, 9)))
    inputs = attention_inputs(case)
    q, k = inputs["q"], inputs["k_cache"]
    work = AttentionWork(*heads, 64, "cpu", split_tokens=64)
    work.update(inputs["plan"], len(q), k.shape[0], k.shape[2])
    before, results = work.ints.clone(), []
    try:
        for seed, num_resident in enumerate((3, 3, 1, 2, 7, 40)):
            set_seed(seed)
            set_resident(num_resident)
            work.partial.fill_(float("nan"))
            out = poisoned(*q.shape, dtype=HALF)
            results.append(tree_attention(**(inputs | {"plan": work}), out=out, lib=lib))
            assert torch.equal(work.ints, before)
    finally:
        set_seed(0)
        set_resident(3)
    assert_attention_agrees(inputs, results[0])
    assert all(torch.equal(result, results[0]) for result in results[1:])


@pytest.mark.parametrize("levels", [((1, 40), (6, 20)), ((3, 500),), ((5, 9),)], ids=str)
def test_tree_attention_is_one_launch(lib, levels):
    num_launches = ctypes.CDLL(lib.path).ttc_test_num_launches
    num_launches.restype = ctypes.c_int64
    inputs = attention_inputs(cases.Case(4, 2, 64, HALF, levels))
    before = num_launches()
    attend(lib, inputs, split_tokens=128)
    assert num_launches() - before == 1


def test_one_work_list_serves_changing_plans_at_the_same_addresses(lib):
    """What a CUDA graph that is replayed sees."""
    work = AttentionWork(4, 2, 64, "cpu", num_ints=2000, num_slots=200)
    work.may_grow = False
    addresses = [x.data_ptr() for x in (work.ints, work.partial, work.partial_lse)]
    for levels in (((1, 40), (6, 20)), ((1, 130), (2, 3)), ((6, 5),)):
        case = cases.Case(4, 2, 64, HALF, levels)
        inputs = attention_inputs(case)
        work.update(inputs["plan"], len(inputs["q"]), len(inputs["k_cache"]), 16)
        assert_attention_agrees(inputs, tree_attention(**(inputs | {"plan": work}), lib=lib))
    assert [x.data_ptr() for x in (work.ints, work.partial, work.partial_lse)] == addresses
    plan, num_blocks = cases.Case(4, 2, 64, HALF, ((1, 40), (300, 20))).plan()
    with pytest.raises(RuntimeError, match="may not grow has room for 2000 and 200"):
        work.update(plan, 300, num_blocks, 16)
    with pytest.raises(ValueError, match=r"got \(6, 4, 2, 64"):
        tree_attention(**(inputs | {"q": inputs["q"][:3], "plan": work}), lib=lib)


@pytest.mark.parametrize(
    ("change", "shown"),
    [
        ({"q": torch.zeros(1, 2, 32, dtype=HALF)}, "head_dim 64 or 128"),
        ({"q": torch.zeros(1, 2, 64)}, "torch.float32"),
        ({"k_cache": torch.zeros(4, 1, 64, 16, dtype=HALF).transpose(2, 3)}, r"strides \(1024, 1024, 1, 16\)"),
        ({"k_cache": torch.zeros(4, 1, 48, 64, dtype=HALF), "v_cache": torch.zeros(4, 1, 48, 64, dtype=HALF)}, "48"),
        ({"q": torch.zeros(1, 2, 64, dtype=HALF, device="meta")}, "q on meta"),
    ],
)
def test_tree_attention_refuses(lib, change, shown):
    inputs = attention_inputs(cases.Case(2, 1, 64, HALF, ((1, 20),)))
    with pytest.raises(ValueError, match=shown):
        tree_attention(**(inputs | change), lib=lib)
