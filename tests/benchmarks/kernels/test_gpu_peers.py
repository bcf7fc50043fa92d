"""The adapters of others' attention, each against a stand-in that computes from the arguments as they are published."""

import ast
import inspect
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from benchmarks.kernels import trees
from benchmarks.kernels.attention_peers import ATTENTION_PEERS, Paths, checked
from benchmarks.kernels.gpu_peers import (
    GPU_PEERS,
    Pages,
    fasttree,
    flashinfer_cascade,
    flashinfer_decode,
    pat,
    varlen,
    with_modules,
)
from benchmarks.kernels.ops import OPS
from benchmarks.timing import Missing
from tests.benchmarks.kernels import stand_ins, tree_stand_ins
from ttc_kernels.tree_attention.cases import Case

BEAM = trees.with_heads(trees.regular("beam", (1, 3, 6), (70, 5, 33)), (8, 2), torch.bfloat16, 64)
RAGGED = replace(BEAM, name="ragged", nodes=((-1, 70), (0, 3), (0, 47), (1, 5), (1, 9)))
FOREST = replace(BEAM, name="forest", nodes=((-1, 20), (0, 3), (-1, 5), (2, 9)))
SIX_HEADS = replace(BEAM, num_heads=12)
TWO_QUERIES = Case(8, 2, 64, torch.bfloat16, ((1, 20), (3, 5)), num_queries=2)
ADAPTERS = {
    "varlen_attn": (varlen, stand_ins.VARLEN),
    "flashinfer_decode": (flashinfer_decode, stand_ins.FLASHINFER),
    "flashinfer_cascade": (flashinfer_cascade, stand_ins.FLASHINFER),
    "fasttree": (fasttree, tree_stand_ins.FASTTREE, tree_stand_ins.KV_TREE_SIMPLE),
    "pat": (pat, tree_stand_ins.PREFIX_ATTN),
}
REFUSED = {
    ("flashinfer_cascade", "ragged"): "paths of several depths",
    ("fasttree", "forest"): "several roots",
    ("fasttree", "six"): "6 query heads for a KV head, where it takes powers of two",
    ("pat", "six"): "6 query heads for a KV head of 64: it takes 1, 2, 4 or 8",
    ("flashinfer_cascade", "two"): "causal items",
    ("flashinfer_decode", "two"): "one query row",
    ("fasttree", "two"): "one query row",
    ("pat", "two"): "one query row",
}
CASES = {"beam": BEAM, "ragged": RAGGED, "forest": FOREST, "six": SIX_HEADS, "two": TWO_QUERIES}


def inputs_of(case) -> dict:
    """As on a GPU: contiguous caches."""
    inputs = OPS["tree_attention"].inputs(case, "cpu")
    return inputs | {name: inputs[name].contiguous() for name in ("k_cache", "v_cache")}


@pytest.mark.parametrize("name", ADAPTERS)
@pytest.mark.parametrize("tree", CASES)
def test_an_adapter_gets_our_result_or_says_why_not(name, tree):
    """The scale is none of the peers' own."""
    inputs = inputs_of(CASES[tree]) | {"scale": 0.3}
    ours = OPS["tree_attention"].reference(**inputs)
    adapter, *modules = ADAPTERS[name]
    if reason := REFUSED.get((name, tree)):
        with pytest.raises(Missing, match=reason):
            adapter(Paths(CASES[tree], inputs), *modules)
        return
    call = checked(adapter(Paths(CASES[tree], inputs), *modules), ours)
    call()
    with pytest.raises(Missing, match="its result differs from ours by"):
        checked(adapter(Paths(CASES[tree], inputs), *modules), ours + 0.2)


def test_every_gpu_peer_has_a_stand_in_and_is_timed():
    assert set(ADAPTERS) == set(GPU_PEERS) <= set(ATTENTION_PEERS)


def test_the_stand_in_for_varlen_attn_has_torch_s_signature():
    """Read from its source: importing it brings a compiler, which takes seconds."""
    tree = ast.parse(Path(torch.__file__).with_name("nn").joinpath("attention", "varlen.py").read_text())
    (found,) = [x.args for x in tree.body if isinstance(x, ast.FunctionDef) and x.name == "varlen_attn"]
    published = [argument.arg for argument in found.args + found.kwonlyargs]
    assert list(inspect.signature(stand_ins.varlen_attn).parameters) == published


def test_a_peer_is_asked_for_on_every_gpu_where_it_is_installed():
    paths = SimpleNamespace(device="cuda")
    assert with_modules(lambda paths, *modules: [x.__name__ for x in modules], "json", "ast")(paths) == ["json", "ast"]
    with pytest.raises(Missing, match="cannot be imported: No module named 'a_module_that_nobody_has'"):
        with_modules(pat, "a_module_that_nobody_has")(paths)
    with pytest.raises(Missing, match="runs on a GPU only"):
        with_modules(varlen, "torch.nn.attention.varlen")(SimpleNamespace(device="cpu"))


def test_equal_pages_are_stored_once_and_no_others():
    """Of the 108 tokens of a branch the first 64 fill two pages of 32 that all share; a third one has leaves in it."""
    inputs = inputs_of(BEAM)
    pages = Pages.of(Paths(BEAM, inputs), 32)
    assert [len(table) for table in pages.tables] == [4] * 6
    assert len({table[0] for table in pages.tables}) == len({table[1] for table in pages.tables}) == 1
    assert len(pages.k) == len({page for table in pages.tables for page in table}) == 2 + 2 * 6
    first = inputs["k_cache"][:2].transpose(1, 2).flatten(0, 1)
    assert torch.equal(pages.k[pages.tables[0][0]], first)
