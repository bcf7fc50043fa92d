"""Each tensor that an op takes, replaced by one that it must refuse: an exception, and the process lives on."""

import contextlib
import importlib
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass, replace

import numpy as np
import pytest
import torch

from ttc_kernels import OPS, _native
from ttc_kernels.decoder import DecodeBatch, DecodeLoop, PackedDecoder, PackedLinear
from ttc_kernels.decoder import cases as decoder_cases
from ttc_kernels.sample import cases as sample_cases
from ttc_kernels.sample import sample_head

Call = tuple[str, Callable, dict]
WRONG = {
    "on another device": lambda x: x.to("meta"),
    "of another type": lambda x: x.to(torch.complex64),
    "with a dimension more": lambda x: x[None],
    "without dimensions": lambda x: x.new_zeros(()),
    "a list": lambda x: x.tolist(),
    "an address": lambda x: x.data_ptr(),
}
SIZES = {
    "a row less": lambda x: x[:-1],
    "a row more": lambda x: torch.cat([x, x[:1]]) if len(x) else x.new_zeros(1, *x.shape[1:]),
    "nothing": lambda x: x[:0],
    "a column less": lambda x: x[..., :-1],
    "columns apart": lambda x: torch.stack([x, x], -1)[..., 0],
    "one row again and again": lambda x: x[:1].expand(x.shape),
}
# A cache to be copied may be of any type, and a block of any dimensions.
ANYTHING = [("copy_blocks", "of another type"), ("copy_blocks", "with a dimension more")]


def replaced(value: object, wrong: Callable, name: str = "") -> Iterator[tuple[str, object]]:
    """(name of a tensor, `value` with that tensor alone replaced), for every tensor in it."""
    if isinstance(value, torch.Tensor):
        yield name, wrong(value)
    elif isinstance(value, dict):
        for key, each in value.items():
            yield from ((at, {**value, key: new}) for at, new in replaced(each, wrong, key))
    elif isinstance(value, tuple):
        names = getattr(value, "_fields", None) or [f"{name}[{index}]" for index in range(len(value))]
        for index, each in enumerate(value):
            for at, new in replaced(each, wrong, names[index]):
                items = [*value[:index], new, *value[index + 1 :]]
                yield at, type(value)(*items) if hasattr(value, "_fields") else tuple(items)
    elif is_dataclass(value):
        for field in fields(value):
            for at, new in replaced(getattr(value, field.name), wrong, field.name):
                yield at, replace(value, **{field.name: new})


def op_calls(op: str) -> Iterator[Call]:
    """Every case of an op, with the outputs and masks that its caller may give."""
    if op == "decoder":
        yield from decoder_calls()
        return
    function = getattr(importlib.import_module(f"ttc_kernels.{op}"), op)
    for case in importlib.import_module(f"ttc_kernels.{op}.cases").tiny():
        inputs = case.inputs()
        if op in ("rms_norm", "tree_attention"):
            x = inputs["x" if op == "rms_norm" else "q"]
            inputs["out"] = x.new_empty(x.shape)
        elif op == "swiglu":
            inputs["out"] = inputs["gate_up"].new_empty(case.num_rows, case.size)
        elif op == "step_score":
            inputs["mask"] = torch.ones(case.num_scores, dtype=torch.bool)
        yield op, function, inputs
    if op == "sample":
        for case in sample_cases.head_tiny():
            marks = torch.zeros(case.vocab + 1, dtype=torch.bool)
            yield "sample_head", sample_head, {**case.inputs(), "marks": marks}


def decoder_calls() -> Iterator[Call]:
    """A forward, the packing of weights, a packed linear layer, and the decode loop."""
    for case in (decoder_cases.tiny()[1], decoder_cases.tiny()[6]):
        weights, inputs = case.weights(), case.inputs()
        inputs["out"] = torch.empty(len(inputs["token_ids"]), case.hidden, dtype=case.dtype)
        yield "decoder", PackedDecoder(weights).forward, inputs
        yield "decoder", PackedDecoder, {"weights": weights}
        linear = PackedLinear(weights.embedding)
        yield "packed_linear", linear.forward, {"x": weights.embedding[:5], "rows": torch.arange(4)}
        yield "packed_linear", PackedLinear, {"weight": weights.embedding}
        sampling = sample_cases.Case(3, decoder_cases.VOCABULARY).inputs()
        del sampling["logits"]
        caches = {name: inputs[name] for name in ("k_cache", "v_cache")}
        yield "decode", decode_of(case), {**caches, "sampling": tuple(sampling.values())}


def decode_of(case: decoder_cases.Case) -> Callable:
    """A decode loop over the case's model and three branches of its own tree."""
    weights = case.weights()
    loop = DecodeLoop(PackedDecoder(weights), PackedLinear(weights.embedding))

    def decode(k_cache: torch.Tensor, v_cache: torch.Tensor, sampling: tuple) -> object:
        tree = _native.KVTree(8, 16)
        handles = np.array([tree.open([])[0] for _ in range(3)], np.int32)
        ones, groups = np.ones(3, np.int32), np.arange(3, dtype=np.int32)
        tree.extend(handles, ones, ones)
        table = np.zeros((1, decoder_cases.VOCABULARY + 1), bool)
        batch = DecodeBatch(handles, ones, sampling, 3 * ones, groups, 0 * ones, table, None, 3)
        return loop.run(tree, k_cache, v_cache, batch)

    return decode


@pytest.mark.parametrize("op", OPS)
def test_every_tensor_is_checked(op):
    num_refused = 0
    for name, call, arguments in op_calls(op):
        for kind, wrong in WRONG.items():
            for argument, changed in replaced(arguments, wrong):
                if (name, kind) in ANYTHING and argument != "pairs":
                    continue
                with pytest.raises((ValueError, TypeError, AttributeError, RuntimeError, IndexError)):
                    print(call(**changed), f"{name} has taken {argument} {kind}")
                num_refused += 1
    assert num_refused > 50


@pytest.mark.parametrize("op", OPS)
def test_no_size_ends_the_process(op):
    """Some of these sizes fit: an op may have any number of rows."""
    for _, call, arguments in op_calls(op):
        for wrong in SIZES.values():
            for _, changed in replaced(arguments, wrong):
                with contextlib.suppress(ValueError, RuntimeError, IndexError):
                    call(**changed)


def test_the_tree_takes_no_tensors_of_another_kind():
    tree = _native.KVTree(8)
    (handle, _), ones = tree.open([]), torch.ones(1, dtype=torch.int32)
    handles = ones * handle
    calls = [
        lambda x: tree.open(x),
        lambda x: tree.extend(x, ones, ones),
        lambda x: tree.extend(handles, x, ones),
        lambda x: tree.extend(handles, ones, x),
        lambda x: tree.rewrite(x, ones, ones, ones),
        lambda x: tree.rewrite(handles, x, ones, ones),
        lambda x: tree.rewrite(handles, ones, x, ones),
        lambda x: tree.rewrite(handles, ones, ones, x),
        lambda x: tree.plan(x, ones),
        lambda x: tree.plan(handles, x),
        lambda x: tree.blocks_needed(x, ones),
        lambda x: tree.blocks_needed(handles, x),
        lambda x: tree.unique_tokens(x),
        lambda x: tree.path_tokens(x),
    ]
    for call in calls:
        for wrong in (ones.to("meta"), ones.float(), ones[None], ones[0], ones.cfloat(), None, 0, "1"):
            with pytest.raises((ValueError, TypeError)):
                call(wrong)
        tree.check_integrity()
    tree.extend(handles, ones, ones)
