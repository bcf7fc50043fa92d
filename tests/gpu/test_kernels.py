"""Every op's kernels on the GPU against the reference in float64, over the tiny cases in each type they may get."""

import dataclasses

import pytest
import torch

from benchmarks.kernels.measure import describe
from benchmarks.kernels.ops import OPS
from ttc_kernels.fused_linear import Scratch, fused_linear, tiles_of
from ttc_kernels.fused_linear.cases import Case as LinearCase
from ttc_kernels.tree_attention import cases, prefill

TYPES = (torch.bfloat16, torch.float16, torch.float32)
ON_GPU = [op for op in OPS.values() if "cuda" in op.devices]


def cases_of(op) -> list:
    """The tiny cases in all types, each once; those that know no type as they are."""
    tiny = op.tiny()
    if not hasattr(tiny[0], "dtype"):
        return tiny
    shapes = [case for case in tiny if case.dtype is torch.float32]
    return [dataclasses.replace(case, dtype=dtype) for dtype in TYPES for case in shapes]


PAIRS = [pytest.param(op, case, id=f"{op.name}-{case}") for op in ON_GPU for case in cases_of(op)]


@pytest.mark.parametrize(("op", "case"), PAIRS)
def test_triton_is_within_the_error_budget(op, case):
    op.check(case, "triton", op.inputs(case, "cuda"))


def taken_by_cuda(op, cases: list) -> list[str]:
    """Checks the cases that the hand-written kernel takes; it refuses the others with a sentence."""
    taken = []
    for case in cases:
        try:
            op.check(case, "cuda", op.inputs(case, "cuda"))
        except ValueError:
            continue
        taken.append(describe(case))
    return taken


@pytest.mark.parametrize("name", ["tree_attention", "copy_blocks", "step_score", "sample_head"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_cuda_is_within_the_error_budget(name, dtype):
    cases = [case for case in cases_of(OPS[name]) if case.dtype is dtype]
    assert taken_by_cuda(OPS[name], cases), "the kernel takes none of the cases"


def tensors(result) -> list[torch.Tensor]:
    return list(result) if isinstance(result, tuple) else [result]


def test_filtered_sampling_in_cuda_is_within_the_tolerance():
    op = OPS["sample"]
    assert len(taken_by_cuda(op, op.tiny())) == len(op.tiny())


@pytest.mark.parametrize("name", ["rms_norm", "swiglu", "fused_linear", "sample", "tree_attention"])
def test_a_graph_replays_the_same_bits(name):
    op = OPS[name]
    case = cases_of(op)[0]
    call = op.bind(case, "triton", op.inputs(case, "cuda"))
    expected = tensors(call())
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = tensors(call())
    for tensor in found:
        tensor.fill_(-7)
    graph.replay()
    torch.cuda.synchronize()
    assert all(map(torch.equal, found, expected))


HALVES = (  # of an MLP
    LinearCase(16, 1024, 1536, torch.bfloat16, has_norm=True, is_gated=True),
    LinearCase(16, 1536, 1024, torch.bfloat16),
)
TILINGS = [tiles_of(16, case.num_out, case.width, 2, case.is_gated) for case in HALVES]


def mlps(halves: list[dict], scratch: Scratch, wait) -> torch.Tensor:
    """The residual after a hundred MLPs; `wait` follows every launch."""
    up, down = halves
    residual = up["x"].clone()
    for _ in range(100):
        activated = fused_linear(**up | {"x": residual}, scratch=scratch, impl="triton")
        wait()
        fused_linear(**down | {"x": activated, "residual": residual}, scratch=scratch, impl="triton")
        wait()
    return residual


def test_launches_that_overlap_leave_what_single_ones_do():
    """From sm_90 on each may start while the one before it runs, alone and in a graph; all share the scratch."""
    assert all(tiles.num_splits > 1 for tiles in TILINGS)
    halves = [OPS["fused_linear"].inputs(case, "cuda") for case in HALVES]
    scratch = Scratch(TILINGS, halves[0]["x"].device)
    expected = mlps(halves, scratch, torch.cuda.synchronize)
    assert expected.isfinite().all()
    assert torch.equal(mlps(halves, scratch, lambda: None), expected)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = mlps(halves, scratch, lambda: None)
    for _ in range(3):
        graph.replay()
        assert torch.equal(captured, expected)
    assert not scratch.arrived.any()


@pytest.mark.parametrize("dtype", TYPES)
def test_long_prefill_is_within_the_error_budget(dtype):
    """Of a prompt alone, and of the end of one beside a branch that decodes; by what is installed here."""
    for levels, num_queries in ((((1, 600),), 600), (((1, 300), (2, 400)), 350)):
        case = cases.Case(8, 2, 64, dtype, levels, num_queries=num_queries)
        inputs = OPS["tree_attention"].inputs(case, "cuda")
        assert prefill.split_of(inputs["plan"], inputs["q"], inputs["k_cache"]).rest is None
        OPS["tree_attention"].check(case, "auto", inputs)
