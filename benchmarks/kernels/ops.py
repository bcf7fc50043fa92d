"""Every op as the benchmark and the GPU's tests see it: its inputs on a device, its check, its timed call.

A check compares with the op's reference in float64, within the error budget of ttc_kernels/testing.py, and raises
AssertionError.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from types import SimpleNamespace

import numpy as np
import torch

from benchmarks.kernels import trees
from ttc_kernels.decoder import DecoderWeights, LayerWeights, PackedDecoder
from ttc_kernels.sample import cases as sample_cases
from ttc_kernels.sample.reference import gumbel
from ttc_kernels.testing import assert_within_budget, poisoned

Outputs = dict[str, torch.Tensor]

# Elements of keys that the float64 reference of tree attention reads at most; beyond it checks a sample of rows.
MAX_REFERENCE_ELEMENTS = 40_000_000
MAX_DRAWN = 16  # rows of a sampler that are compared with the reference


@dataclass(frozen=True)
class Op:
    """One op; `kernel` is what is checked and timed, called with the inputs and `impl`."""

    name: str
    kernel: Callable
    reference: Callable
    outputs: Callable[[Callable, dict], Outputs] | None  # runs one of the two: whatever it writes
    cases: Callable[[str], list]  # by device, for the benchmark
    tiny: Callable[[], list]  # for the tests
    devices: tuple[str, ...] = ("cpu", "cuda")

    def inputs(self, case, device: str) -> dict:
        """Fresh arguments of the kernel."""
        return {name: place(value, device) for name, value in case.inputs(seed=1).items()}

    def check(self, case, impl: str, inputs: dict) -> None:
        """Raises AssertionError where the kernel leaves the budget; `inputs` stay as they are."""
        device = inputs_device(inputs)
        out = self.outputs(partial(self.kernel, impl=impl), self.inputs(case, device))
        exact = self.outputs(self.reference, {name: widen(value) for name, value in case.inputs(seed=1).items()})
        plain = self.outputs(self.reference, case.inputs(seed=1))
        for name, value in out.items():
            assert_within_budget(value.cpu(), exact[name].double(), plain[name])

    def bind(self, case, impl: str, inputs: dict) -> Callable[[], object]:
        """The call that is timed."""
        return partial(self.kernel, **inputs, impl=impl)

    def plan(self, case) -> Callable[[], object] | None:
        """Makes the plan that the kernel reads; None where it needs none."""
        return None


def like(value: tuple | list, items: Iterable[object]) -> tuple | list:
    """Other items in a tuple, named tuple or list of the same type."""
    return value._make(items) if hasattr(value, "_make") else type(value)(items)


def place(value: object, device: str) -> object:
    """A value of `inputs` on a device; a GPU's caches are contiguous, a CPU's keep their layout."""
    if isinstance(value, tuple | list):
        return like(value, (place(item, device) for item in value))
    if not isinstance(value, torch.Tensor) or device == "cpu":
        return value
    return value.to(device).contiguous()


def widen(value: object) -> object:
    """Floating-point tensors in float64."""
    if isinstance(value, tuple | list):
        return like(value, map(widen, value))
    return value.double() if isinstance(value, torch.Tensor) and value.is_floating_point() else value


def inputs_device(inputs: Mapping[str, object]) -> str:
    """Where the tensors of `inputs` are."""
    flat = [item for value in inputs.values() for item in (value if isinstance(value, tuple | list) else [value])]
    return next(item.device.type for item in flat if isinstance(item, torch.Tensor))


def _rms_norm(run: Callable, inputs: dict) -> Outputs:
    x = inputs["x"]
    out = run(**inputs, out=poisoned(*x.shape, dtype=x.dtype, device=x.device))
    return {"out": out} if inputs["residual"] is None else {"out": out, "residual": inputs["residual"]}


def _swiglu(run: Callable, inputs: dict) -> Outputs:
    x = inputs["gate_up"]
    return {"out": run(**inputs, out=poisoned(len(x), x.shape[1] // 2, dtype=x.dtype, device=x.device))}


def _fused_linear(run: Callable, inputs: dict) -> Outputs:
    x, weight = inputs["x"], inputs["weight"]
    if inputs["residual"] is None:
        num_out = len(weight) // 2 if inputs["is_gated"] else len(weight)
        inputs = inputs | {"out": poisoned(len(x), num_out, dtype=x.dtype, device=x.device)}
    return {"out": run(**inputs)}


def _rope_store_kv(run: Callable, inputs: dict) -> Outputs:
    run(**inputs)
    return {name: inputs[name] for name in ("qkv", "k_cache", "v_cache")}


def _copy_blocks(run: Callable, inputs: dict) -> Outputs:
    run(**inputs)
    return dict(zip(("k_cache", "v_cache"), inputs["caches"], strict=True))


def _step_score(run: Callable, inputs: dict) -> Outputs:
    return {"scores": run(**inputs), "state": inputs["state"]}


def _sample(run: Callable, inputs: dict) -> Outputs:
    tokens, logprobs = run(**inputs)
    return {"tokens": tokens, "logprobs": logprobs}


class Sample(Op):
    """Tokens are integers: the reference's, or one whose perturbed logit is within the tolerance of it.

    Rows are drawn by themselves, and the reference takes seconds for a large vocabulary: MAX_DRAWN are compared.
    """

    def alone(self, inputs: dict, rows: torch.Tensor) -> dict:
        """The arguments for some of the rows."""
        return {name: value[rows] for name, value in inputs.items()}

    def logits(self, inputs: dict) -> torch.Tensor:
        return inputs["logits"].double()

    def noise_inputs(self, inputs: dict) -> tuple[torch.Tensor, torch.Tensor]:
        return inputs["keys"], inputs["positions"]

    def tolerance(self, case) -> float:
        """How far a logit over the temperature, or a log-probability, may be off."""
        return 1e-5

    def check(self, case, impl: str, inputs: dict) -> None:
        rows = torch.linspace(0, case.num_rows - 1, min(case.num_rows, MAX_DRAWN)).round().long().unique()
        on_cpu, tolerance = self.alone(case.inputs(seed=1), rows), self.tolerance(case)
        drawn = self.outputs(partial(self.kernel, impl=impl), inputs)
        out = {name: value.cpu()[rows] for name, value in drawn.items()}
        expected = _drawn_by_reference(self, case, tuple(rows.tolist()))
        differs = out["tokens"] != expected["tokens"]
        if differs.any():
            assert case.temperature > 0, f"greedy tokens {out['tokens'].tolist()}, not {expected['tokens'].tolist()}"
            noise = gumbel(*self.noise_inputs(on_cpu), case.vocab)
            score = self.logits(on_cpu) / case.temperature + noise
            pair = torch.stack([out["tokens"], expected["tokens"]], 1).long()
            assert ((pair >= 0) & (pair < case.vocab)).all(), f"tokens {out['tokens'].tolist()}"
            both = score.gather(1, pair)[differs]
            gap = (both[:, 0] - both[:, 1]).abs().max().item()
            assert gap < tolerance, f"{int(differs.sum())} tokens differ, by up to {gap:.3g} of a perturbed logit"
        error = (out["logprobs"] - expected["logprobs"])[~differs].abs().max().item()
        assert error < tolerance, f"log-probabilities differ by {error:.3g}"


@lru_cache(maxsize=1)
def _drawn_by_reference(op: Sample, case, rows: tuple[int, ...]) -> Outputs:
    """Some seconds for a large vocabulary, once for all implementations of a case."""
    return op.outputs(op.reference, op.alone(case.inputs(seed=1), torch.tensor(rows)))


class SampleHead(Sample):
    """Logits of torch's product are rounded to the inputs' type, those of the CUDA kernel are summed in float32."""

    def alone(self, inputs: dict, rows: torch.Tensor) -> dict:
        sampling = like(inputs["sampling"], (column[rows] for column in inputs["sampling"]))
        return inputs | {"hidden": inputs["hidden"][rows], "sampling": sampling}

    def logits(self, inputs: dict) -> torch.Tensor:
        return inputs["hidden"].double() @ inputs["weight"].double().t()

    def noise_inputs(self, inputs: dict) -> tuple[torch.Tensor, torch.Tensor]:
        return inputs["sampling"].keys, inputs["sampling"].positions

    def tolerance(self, case) -> float:
        largest_logit = 3 * 6  # standard deviations of 3, of up to 40 million draws
        return 1e-4 if case.dtype is torch.float32 else torch.finfo(case.dtype).eps * largest_logit


class TreeAttention(Op):
    """The reference reads whole paths row by row: large cases are checked on a sample of rows."""

    def check(self, case, impl: str, inputs: dict) -> None:
        q = inputs["q"]
        out = self.kernel(**inputs, out=poisoned(*q.shape, dtype=q.dtype, device=q.device), impl=impl)
        assert torch.isfinite(out).all(), f"{(~torch.isfinite(out)).sum()} of {out.numel()} values are not finite"
        rows = sample_rows(case, len(q))
        some = rows_alone(inputs, rows)
        exact = self.reference(**{name: widen(value) for name, value in some.items()})
        assert_within_budget(out[rows.to(q.device)], exact, self.reference(**some))

    def plan(self, case) -> Callable[[], object]:
        tree, leaves, _ = case.grow(1)
        num_queries = np.full(len(leaves), case.num_queries, np.int32)
        return lambda: tree.plan(leaves, num_queries)


def sample_rows(case, num_rows: int) -> torch.Tensor:
    """Row numbers, spread evenly, first and last included; all of them where the reference is quick."""
    per_row = case.num_keys(1)[0] // num_rows * case.num_kv_heads * case.head_dim
    count = min(num_rows, max(3, MAX_REFERENCE_ELEMENTS // max(1, per_row)))
    return torch.linspace(0, num_rows - 1, count).round().long().unique()


def rows_alone(inputs: dict, rows: torch.Tensor) -> dict:
    """The arguments of tree attention for these rows only, over the blocks that they see."""
    plan, block_size = inputs["plan"], inputs["k_cache"].shape[2]
    items, blocks, number = [], [], {}
    for row_lo, row_hi, offset, num_tokens, causal in plan.items.tolist():
        inside = [(i, row) for i, row in enumerate(rows.tolist()) if row_lo <= row < row_hi]
        if not inside:
            continue
        start = len(blocks)
        for block in plan.blocks[offset : offset - (-num_tokens // block_size)].tolist():
            blocks.append(number.setdefault(block, len(number)))
        for i, row in inside:
            seen = num_tokens - (row_hi - 1 - row) if causal else num_tokens
            items.append((i, i + 1, start, max(0, seen), 0))
    used = torch.tensor(list(number), device=inputs["q"].device)
    alone = SimpleNamespace(items=np.array(items, np.int32), blocks=np.array(blocks, np.int32))
    caches = {name: inputs[name][used] for name in ("k_cache", "v_cache")}
    return {**inputs, **caches, "q": inputs["q"][rows.to(inputs["q"].device)], "plan": alone}


class Decoder(Op):
    """Timed with its weights packed, as it is used."""

    def check(self, case, impl: str, inputs: dict) -> None:
        weights = case.weights()
        out = self.kernel(weights, **case.inputs(seed=1), impl=impl)
        exact = self.reference(widen_weights(weights), **{k: widen(v) for k, v in case.inputs(seed=1).items()})
        assert_within_budget(out, exact, self.reference(weights, **case.inputs(seed=1)))

    def bind(self, case, impl: str, inputs: dict) -> Callable[[], object]:
        assert impl == "native", impl
        return partial(PackedDecoder(case.weights()).forward, **inputs)

    def plan(self, case) -> Callable[[], object]:
        return OPS["tree_attention"].plan(case.attention)


def widen_weights(weights: DecoderWeights) -> DecoderWeights:
    """All tensors in float64."""
    layers = tuple(LayerWeights(*(tensor.double() for tensor in vars(layer).values())) for layer in weights.layers)
    wide = {name: getattr(weights, name).double() for name in ("embedding", "final_norm", "cos", "sin")}
    return replace(weights, layers=layers, **wide)


def _op(name: str, kind: type[Op], outputs: Callable | None, folder: str | None = None, **options) -> Op:
    folder = folder or name
    reference = importlib.import_module(f"ttc_kernels.{folder}.reference")
    cases = importlib.import_module(f"ttc_kernels.{folder}.cases")
    options = {"cases": lambda device: cases.full(), "tiny": cases.tiny} | options
    kernel = getattr(importlib.import_module(f"ttc_kernels.{folder}"), name)
    return kind(name, kernel, getattr(reference, name), outputs, **options)


OPS = {
    op.name: op
    for op in (
        _op("rms_norm", Op, _rms_norm),
        _op("swiglu", Op, _swiglu),
        _op("fused_linear", Op, _fused_linear, devices=("cuda",)),
        _op("rope_store_kv", Op, _rope_store_kv),
        _op("copy_blocks", Op, _copy_blocks),
        _op("step_score", Op, _step_score),
        _op("sample", Sample, _sample),
        _op("sample_head", SampleHead, _sample, "sample", cases=sample_cases.head_full, tiny=sample_cases.head_tiny),
        _op("decoder", Decoder, None, devices=("cpu",)),
        _op("tree_attention", TreeAttention, None, cases=trees.grid),
    )
}
