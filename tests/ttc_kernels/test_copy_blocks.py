"""copy_blocks against its definition."""

import pytest
import torch

from ttc_kernels import kv_cache
from ttc_kernels.copy_blocks import cases, copy_blocks


@pytest.mark.parametrize("case", cases.tiny(), ids=str)
def test_matches_the_reference(case):
    inputs = case.inputs()
    before = [cache.clone() for cache in inputs["caches"]]
    expected = [cache.clone() for cache in inputs["caches"]]
    copy_blocks(expected, inputs["pairs"], impl="reference")
    copy_blocks(**inputs)
    for cache, wanted, old in zip(inputs["caches"], expected, before, strict=True):
        assert torch.equal(cache, wanted)
        assert torch.equal(cache, old) == (case.num_pairs == 0)


def test_large_copies_on_two_threads():
    inputs = cases.Case(40, 4, 90, 2, 32, torch.float32).inputs()
    expected = [cache.clone() for cache in inputs["caches"]]
    copy_blocks(expected, inputs["pairs"], impl="reference")
    copy_blocks(**inputs)
    assert all(map(torch.equal, inputs["caches"], expected))


def test_strided_layers():
    pool = torch.arange(2 * 3 * 4 * 5).view(2, 3, 4, 5)
    caches = [pool[::2, :2], pool[:, :, 1:3]]
    with pytest.raises(ValueError, match=r"strides \(60, 20, 5, 1\)"):
        copy_blocks(caches, torch.tensor([[0, 1]], dtype=torch.int32))
    copy_blocks(caches[:1], torch.tensor([[1, 0]], dtype=torch.int32))
    assert torch.equal(pool[0, 0], pool[0, 1])
    assert pool[1, 0, 0, 0] == 60


@pytest.mark.parametrize("impl", ["auto", "reference"])
@pytest.mark.parametrize(
    ("pairs", "shown"),
    [
        (torch.tensor([[0, 4]], dtype=torch.int32), r"\[\[0, 4\]\] is outside the cache of 4"),
        (torch.tensor([[-1, 0]], dtype=torch.int32), "outside"),
        (torch.tensor([[0, 1], [2, 1]], dtype=torch.int32), "written twice"),
        (torch.tensor([[0, 1], [1, 2]], dtype=torch.int32), "written and read"),
        (torch.tensor([[0, 1]]), "int64"),
        (torch.tensor([0, 1], dtype=torch.int32), r"\(2,\)"),
    ],
)
def test_refuses(pairs, shown, impl):
    caches = kv_cache.allocate(2, 4, 1, 16, 8)
    with pytest.raises(ValueError, match=shown):
        copy_blocks(caches, pairs, impl=impl)
    assert not any(cache.any() for cache in caches)


def test_refuses_an_unknown_impl():
    with pytest.raises(ValueError, match="'fast'"):
        copy_blocks([], torch.zeros(0, 2, dtype=torch.int32), impl="fast")


def test_cache_layout():
    k, v = kv_cache.allocate(2, 3, 4, 32, 8, torch.bfloat16)
    assert k.shape == v.shape == (2, 3, 4, 32, 8)
    assert k.stride(3) == 1
    assert v.is_contiguous()
    assert k.dtype == v.dtype == torch.bfloat16
    assert not k.any()
    assert not v.any()


@pytest.mark.parametrize("sizes", [(0, 1, 1, 16, 8), (1, 1, 1, 24, 8), (1, 1, 1, 16, 7)], ids=str)
def test_cache_refuses(sizes):
    with pytest.raises(ValueError, match="block_size"):
        kv_cache.allocate(*sizes)
