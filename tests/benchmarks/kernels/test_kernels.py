"""The kernels' benchmark on tiny cases; no time is asserted, only what is timed and what is not."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks.kernels import trees
from benchmarks.kernels.__main__ import main
from benchmarks.kernels.attention_peers import MAX_BYTES, Paths, checked, packed, padded, per_branch
from benchmarks.kernels.gpu_peers import GPU_PEERS
from benchmarks.kernels.measure import describe
from benchmarks.kernels.ops import OPS, rows_alone, sample_rows
from benchmarks.kernels.peers import EAGER
from benchmarks.timing import Clock, Missing
from engine.results.provenance import hardware
from ttc_kernels.rms_norm import cases as rms_norm_cases
from ttc_kernels.sample import cases as sample_cases
from ttc_kernels.tree_attention.cases import Case

ROW = {
    *("op", "case", "dtype", "impl", "seconds", "gbps", "share_of_copy", "tflops", "plan_seconds"),
    *("peers", "peers_missing", "hardware", "commit"),
}
SMALL = trees.with_heads(trees.regular("small", (1, 2, 4), (20, 5, 3)), (4, 2), torch.float32, 16)
# Paths of several lengths.
RAGGED = replace(SMALL, name="ragged", nodes=((-1, 20), (0, 3), (0, 17), (-1, 5), (3, 9)))
LONGER_PATHS = Case(4, 2, 16, torch.float32, ((1, 20), (3, 5)), num_queries=2)


def with_cases(name: str, *cases) -> dict:
    return {name: replace(OPS[name], cases=lambda device: list(cases))}


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    ops = with_cases("rms_norm", *rms_norm_cases.tiny()[8:10]) | with_cases("tree_attention", SMALL)
    path = tmp_path_factory.mktemp("benchmark") / "out" / "kernels.json"
    assert main(["--threads", "1", "--json", str(path)], ops) == 0
    return json.loads(path.read_text())


def test_a_row_for_every_case_and_type(rows):
    assert [(row["op"], row["dtype"], row["impl"]) for row in rows] == [
        ("rms_norm", "float32", "native"),
        ("rms_norm", "float32", "native"),
        ("tree_attention", "float32", "native"),
    ]
    assert all(set(row) == ROW for row in rows)
    assert rows[0]["hardware"]["timer"] == "wall clock"
    assert rows[0]["hardware"]["num_threads"] == torch.get_num_threads()


def test_rates_follow_from_the_case_and_its_time(rows):
    row, copy = rows[-1], rows[-1]["hardware"]["copy_gbps"]
    assert row["gbps"] == pytest.approx(SMALL.num_bytes() / row["seconds"] / 1e9)
    assert row["tflops"] == pytest.approx(SMALL.flops() / row["seconds"] / 1e12)
    assert row["share_of_copy"] == pytest.approx(row["gbps"] / copy)
    assert row["plan_seconds"] > 0
    assert rows[0]["plan_seconds"] is None


def test_every_peer_has_a_time_or_a_reason(rows):
    assert set(rows[0]["peers"]) == {"torch_eager"}
    assert set(rows[-1]["peers"]) == {"sdpa_packed", "sdpa_per_branch", "sdpa_padded"}
    assert set(rows[-1]["peers_missing"]) == {"flex_attention", *GPU_PEERS}
    assert all(rows[-1]["peers_missing"].values())


@pytest.mark.parametrize("damage", ["value", "nan", "raises"])
def test_what_is_wrong_is_not_timed(damage, tmp_path: Path, capsys):
    right = OPS["rms_norm"].kernel

    def broken(*args, **kwargs):
        out = right(*args, **kwargs)
        if damage == "raises":
            raise RuntimeError("rms_norm: an illegal address")
        out[0, 0] = float("nan") if damage == "nan" else 1.5
        return out

    case = rms_norm_cases.tiny()[8]
    ops = {"rms_norm": replace(with_cases("rms_norm", case)["rms_norm"], kernel=broken)}
    ops |= with_cases("sample", sample_cases.tiny()[0])
    assert main(["--json", str(tmp_path / "rows.json")], ops) == 1
    assert [row["op"] for row in json.loads((tmp_path / "rows.json").read_text())] == ["sample"]
    assert "NOT TIMED: rms_norm" in capsys.readouterr().out


def test_a_wrong_token_is_not_timed(capsys):
    right = OPS["sample"].kernel

    def broken(*args, **kwargs):
        tokens, logprobs = right(*args, **kwargs)
        return (tokens + 1) % 33, logprobs

    case = next(case for case in sample_cases.tiny() if case.vocab == 33)
    assert main([], {"sample": replace(with_cases("sample", case)["sample"], kernel=broken)}) == 1
    assert "of a perturbed logit" in capsys.readouterr().out


def test_the_reference_of_a_sampler_runs_once_for_all_implementations():
    calls = []
    op = OPS["sample"]

    def counted(**arguments: object) -> tuple[torch.Tensor, torch.Tensor]:
        calls.append(len(arguments["logits"]))
        return op.reference(**arguments)

    counting = replace(op, reference=counted)
    for impl in ("native", "triton", "reference"):
        counting.check(sample_cases.tiny()[3], impl, op.inputs(sample_cases.tiny()[3], "cpu"))
    assert calls == [7]


def test_an_op_that_nothing_computes_is_a_failure(capsys):
    def refusing(*args, impl: str, **kwargs):
        raise ValueError(f"rms_norm: impl must be 'auto', got {impl!r}")

    ops = {"rms_norm": replace(with_cases("rms_norm", rms_norm_cases.tiny()[0])["rms_norm"], kernel=refusing)}
    assert main([], ops) == 1
    assert "no implementation takes it on cpu (native: rms_norm: impl must be" in capsys.readouterr().out


def test_one_op_alone_and_no_case_after_the_limit(tmp_path: Path, capsys):
    ops = with_cases("rms_norm", rms_norm_cases.tiny()[0]) | with_cases("sample", sample_cases.tiny()[0])
    path = tmp_path / "rows.json"
    assert main(["--op", "sample", "--json", str(path)], ops) == 0
    assert [row["op"] for row in json.loads(path.read_text())] == ["sample"]
    assert main(["--minutes", "0", "--json", str(path)], ops) == 0
    assert json.loads(path.read_text()) == []
    assert "2 cases were left out after 0 minutes" in capsys.readouterr().out


def test_devices():
    with pytest.raises(ValueError, match="got 'tpu'"):
        hardware("tpu")
    with pytest.raises(SystemExit):
        main(["--device", "tpu"])


# -- checks ------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", [RAGGED, LONGER_PATHS], ids=describe)
def test_a_sample_of_rows_has_the_values_of_all(case):
    op = OPS["tree_attention"]
    inputs = op.inputs(case, "cpu")
    every = op.reference(**inputs)
    rows = torch.arange(0, len(every), 2)
    assert torch.equal(op.reference(**rows_alone(inputs, rows)), every[rows])


def test_few_rows_of_a_large_case_are_checked():
    large = trees.with_heads(trees.regular("large", (1, 1024), (8192, 16)), (32, 32), torch.float32)
    assert sample_rows(large, 1024).tolist() == [0, 512, 1023]
    assert sample_rows(SMALL, 4).tolist() == [0, 1, 2, 3]


# -- peers -------------------------------------------------------------------------------------


@pytest.mark.parametrize("peer", [packed, per_branch, padded])
@pytest.mark.parametrize("case", [SMALL, RAGGED, LONGER_PATHS], ids=describe)
def test_peers_compute_what_we_do(case, peer):
    op = OPS["tree_attention"]
    inputs = op.inputs(case, "cpu")
    ours = op.kernel(**inputs, impl="native")
    checked(peer(Paths(case, inputs)), ours)()
    with pytest.raises(Missing, match="its result differs from ours by"):
        checked(peer(Paths(case, inputs)), ours + 0.1)


def test_a_peer_that_needs_too_much_memory_is_missing():
    paths = Paths(SMALL, OPS["tree_attention"].inputs(SMALL, "cpu"))
    per_key = 2 * SMALL.num_kv_heads * SMALL.head_dim * 4
    paths.claim(MAX_BYTES["cpu"] // per_key)
    with pytest.raises(Missing, match=r"needs 4\.3 GB of gathered KV, over 4 GB on cpu"):
        paths.claim(43 * 10**8 // per_key)


# -- trees and clocks --------------------------------------------------------------------------


def test_the_grid_has_every_kind_of_tree_in_every_layout():
    for device, dtypes in (("cpu", {torch.float32, torch.bfloat16}), ("cuda", {torch.bfloat16})):
        found = {(case.name, case.num_heads, case.num_kv_heads, case.dtype) for case in only_trees(device)}
        for tree in trees.sweeps():
            assert all((tree.name, *layout, dtype) in found for layout in trees.LAYOUTS for dtype in dtypes)
        assert {tree.name for tree in trees.fasttree() + trees.recorded()} <= {name for name, *_ in found}
    beams = [tree for tree in trees.sweeps() if tree.name.startswith("beam")]
    assert len(beams) == 15
    assert len(trees.fasttree()) == 15


def only_trees(device: str) -> list[trees.Tree]:
    return [case for case in trees.grid(device) if isinstance(case, trees.Tree)]


def test_names_of_cases_are_distinct():
    for device in ("cpu", "cuda"):
        names = [(describe(case), case.dtype) for case in trees.grid(device)]
        assert len(set(names)) == len(names)


def test_trees_have_the_shape_they_are_named_for():
    tree = next(tree for tree in trees.fasttree() if tree.name == "fasttree 1,2,64 x 8,256,32")
    grown, leaves, num_blocks = tree.grow()
    grown.check_integrity()
    assert len(leaves) == 64
    assert tree.num_keys() == (64 * (8 + 256 + 32), 8 + 2 * 256 + 64 * 32)
    assert num_blocks == 1 + 2 * 16 + 64 * 2 + 3
    counted = Case.num_keys(tree)  # from the plan, row by row
    assert counted == tree.num_keys()


def test_recorded_trees_grow():
    for tree in trees.recorded():
        grown, leaves, _ = tree.grow()
        grown.check_integrity()
        assert len(leaves) >= 64


def test_a_clock_calls_as_often_as_time_allows():
    calls = []
    seconds, timer = Clock("cpu", max_seconds=0.0).median(lambda: calls.append(0))
    assert (len(calls), timer) == (2, "wall clock")  # a warm-up, and one that counts
    assert seconds > 0
    calls.clear()
    Clock("cpu", max_seconds=1.0, max_repeats=5).median(lambda: calls.append(0))
    assert len(calls) == 7


@pytest.mark.parametrize("name", EAGER)
def test_every_eager_peer_runs(name):
    op = OPS[name]
    case = op.tiny()[0]
    for peer in EAGER[name].values():
        peer(case, op.inputs(case, "cpu"))()


@pytest.mark.parametrize("impl", ["native", "triton", "reference"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_sample_head_is_checked_with_its_own_logits(impl, dtype):
    """Every implementation passes, and a kernel that is off by one token does not."""
    op = OPS["sample_head"]
    cases = op.tiny()[:: 3 if impl == "triton" else 1]  # which is interpreted
    for case in [replace(case, dtype=dtype) for case in cases]:
        inputs = op.inputs(case, "cpu")
        op.check(case, impl, inputs)

        def off_by_one(**arguments: object) -> tuple[torch.Tensor, torch.Tensor]:
            tokens, logprobs = op.kernel(**arguments)
            return (tokens + 1) % arguments["weight"].shape[0], logprobs

        with pytest.raises(AssertionError):
            replace(op, kernel=off_by_one).check(case, impl, inputs)
