"""The packed decoder and the packed linear layer: what may be passed, and who computes it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch

from ttc_kernels import _native
from ttc_kernels.checks import check_tensor, describe
from ttc_kernels.decoder import reference
from ttc_kernels.decoder.weights import DecoderWeights, LayerWeights, Matrix

_CPU = torch.device("cpu")
# The parts of a layer, as LayerPart of csrc/decoder/packed.h numbers them.
_PARTS = ("input_norm", "qkv", "out", "post_norm", "gate_up", "down")


def decoder(weights: DecoderWeights, *args, impl: str = "auto", isa: str = "auto", **kwargs) -> torch.Tensor:
    """One forward of a decoder, with the arguments, result and errors of `PackedDecoder.forward`.

    `impl` is "auto" or "native", which pack the weights for this call alone (keep a `PackedDecoder` to call again), or
    "reference" (any dtype and strides). Raises ValueError for anything else.
    """
    if impl == "reference":
        return reference.decoder(weights, *args, **kwargs)
    if impl != "auto" and impl != "native":
        raise ValueError(f"decoder: impl must be 'auto', 'native' or 'reference', got {impl!r}")
    return PackedDecoder(weights, isa=isa).forward(*args, **kwargs)


class PackedDecoder:
    """A trunk whose weights are copied once, into the order in which the kernel reads them.

    All tensors of `weights` are contiguous, on a CPU, float32 or all bfloat16 (summed in float32, rounded where
    plain torch rounds); cos and sin are float32. The embedding and these tables are not copied, so later changes of
    them show; the other weights are, and a matrix may be given as runs of its rows. `isa` picks the native build:
    "auto", or one of `_native.decoder_isas()`. Raises ValueError for anything else.
    """

    def __init__(self, weights: DecoderWeights, *, isa: str = "auto"):
        shapes = _check_weights(weights)
        self.dtype = weights.embedding.dtype
        self.hidden_size = weights.embedding.shape[1]
        self._cache_shape = (len(weights.layers), weights.num_kv_heads, weights.head_dim)
        self._read_in_place = (weights.embedding, weights.cos, weights.sin)  # kept alive
        sizes = _native.DecoderSizes(
            num_heads=weights.num_heads,
            num_kv_heads=weights.num_kv_heads,
            head_dim=weights.head_dim,
            hidden=self.hidden_size,
            intermediate=shapes.down[1],
            vocabulary=len(weights.embedding),
            max_position=len(weights.cos),
            eps=weights.rms_eps,
        )
        self.native = _native.PackedDecoder(
            sizes, len(weights.layers), weights.embedding, weights.cos, weights.sin, weights.final_norm, isa
        )
        for i, layer in enumerate(weights.layers):
            for part, name in enumerate(_PARTS):
                runs = _runs(f"layers[{i}].{name}", getattr(layer, name), self.dtype, getattr(shapes, name))
                for first, rows in runs:
                    self.native.fill(i, part, rows, first)
        self._caches: tuple[torch.Tensor, torch.Tensor, object] | None = None

    def forward(
        self,
        token_ids: torch.Tensor,  # (rows,) int32, contiguous
        plan,  # KVTree.plan(...), or any object with its `items` and `blocks`
        positions: torch.Tensor,  # (rows,) int32, contiguous
        slots: torch.Tensor,  # (rows,) int32, contiguous; -1 stores nothing, no other may occur twice
        k_cache: torch.Tensor,  # (layers, blocks, kv heads, block size, head dim), of `kv_cache.allocate`
        v_cache: torch.Tensor,  # the same
        out: torch.Tensor | None = None,  # (rows, hidden), contiguous; written and returned
    ) -> torch.Tensor:
        """Hidden states after the final norm, (rows, hidden); the rows' keys and values are stored in the caches.

        The caches and `out` have the weights' dtype. The bits of a row depend on its own token, position and path
        alone, not on the batch or the threads. Raises ValueError for anything else, and for a token, position, slot or
        block out of range.
        """
        rows, hidden = token_ids.shape[0], self.hidden_size
        for name, x in (("token_ids", token_ids), ("positions", positions), ("slots", slots)):
            check_tensor("decoder", name, x, (rows,), torch.int32, _CPU)
        if out is None:
            out = torch.empty(rows, hidden, dtype=self.dtype)
        else:
            check_tensor("decoder", "out", out, (rows, hidden), self.dtype, _CPU)
        caches = self.native_caches(k_cache, v_cache)
        self.native.forward(token_ids, positions, slots, plan, caches, out)
        return out

    def native_caches(self, k_cache: torch.Tensor, v_cache: torch.Tensor):
        """The caches as a native struct, which is kept for later calls with the same caches."""
        if self._caches is None or self._caches[0] is not k_cache or self._caches[1] is not v_cache:
            self._check_caches(k_cache, v_cache)
            self._caches = (k_cache, v_cache, _native.Caches(k_cache, v_cache))
        return self._caches[2]

    def _check_caches(self, k_cache: torch.Tensor, v_cache: torch.Tensor) -> None:
        shape, (num_layers, num_kv_heads, head_dim) = k_cache.shape, self._cache_shape
        if (
            len(shape) != 5
            or v_cache.shape != shape
            or (shape[0], shape[2], shape[4]) != self._cache_shape
            or shape[3] % 16
            or any(x.dtype is not self.dtype or not x.is_cpu for x in (k_cache, v_cache))
            or k_cache.stride(3) != 1
            or v_cache.stride(4) != 1
        ):
            raise ValueError(
                f"decoder: k_cache and v_cache must be ({num_layers}, blocks, {num_kv_heads}, a multiple of 16, "
                f"{head_dim}) {self.dtype} as kv_cache.allocate makes them, got {describe(k_cache)}, "
                f"{describe(v_cache)}"
            )


class PackedLinear:
    """x @ weight.T in float32, over a copy of the weight in the order in which the kernel reads it.

    `weight` is (num_out, num_in), contiguous, float32 or bfloat16, on a CPU; `isa` as for `PackedDecoder`.
    Raises ValueError for anything else.
    """

    def __init__(self, weight: torch.Tensor, *, isa: str = "auto"):
        _check_tensor("weight", weight, weight.dtype, (*weight.shape,) if weight.dim() == 2 else ("num_out", "num_in"))
        self._fill(weight, weight.dtype, *weight.shape, isa)

    @classmethod
    def from_runs(
        cls, runs: Iterable[torch.Tensor], dtype: torch.dtype, num_out: int, num_in: int, *, isa: str = "auto"
    ) -> PackedLinear:
        """A layer whose weight is given as runs of its rows, in order, each packed before the next is read."""
        linear = cls.__new__(cls)
        linear._fill(runs, dtype, num_out, num_in, isa)
        return linear

    def _fill(self, weight: Matrix, dtype: torch.dtype, num_out: int, num_in: int, isa: str) -> None:
        self.num_out, self.num_in, self.dtype = num_out, num_in, dtype
        self.native = _native.PackedLinear(num_out, num_in, dtype is torch.bfloat16, isa)
        for first, rows in _runs("weight", weight, dtype, (num_out, num_in)):
            self.native.fill(rows, first)

    def forward(self, x: torch.Tensor, rows: torch.Tensor | None = None) -> torch.Tensor:
        """x[rows] @ weight.T, (len(rows), num_out) float32; without `rows`, of all rows of x.

        x is (any, num_in) of the weight's dtype with adjacent elements; `rows` int64, contiguous. The bits of a
        row depend on that row alone. Raises ValueError for anything else, and for a row outside x.
        """
        if x.dim() != 2 or x.shape[1] != self.num_in or x.dtype is not self.dtype or x.stride(1) != 1 or not x.is_cpu:
            raise ValueError(f"packed_linear: x must be (rows, {self.num_in}) {self.dtype}, got {describe(x)}")
        if rows is not None:
            check_tensor("packed_linear", "rows", rows, (len(rows),), torch.int64, _CPU)
        out = torch.empty(len(x) if rows is None else len(rows), self.num_out)
        self.native.forward(x, rows, out)
        return out


def _check_weights(weights: DecoderWeights) -> LayerWeights:
    """The shapes that a layer must have. Raises ValueError where a tensor outside the layers does not fit."""
    if not weights.layers:
        raise ValueError("decoder: at least one layer is needed, got none")
    vocabulary, hidden = weights.embedding.shape
    dtype, dim = weights.embedding.dtype, weights.head_dim
    q_out, kv_out = weights.num_heads * dim, weights.num_kv_heads * dim
    inter = weights.intermediate_size or weights.layers[0].down.shape[-1]
    _check_tensor("embedding", weights.embedding, dtype, (vocabulary, hidden))
    _check_tensor("final_norm", weights.final_norm, dtype, (hidden,))
    _check_tensor("cos", weights.cos, torch.float32, (weights.cos.shape[0], dim // 2))
    _check_tensor("sin", weights.sin, torch.float32, (weights.cos.shape[0], dim // 2))
    return LayerWeights(
        (hidden,), (q_out + 2 * kv_out, hidden), (hidden, q_out), (hidden,), (2 * inter, hidden), (hidden, inter)
    )


def _runs(name: str, matrix: Matrix, dtype: torch.dtype, shape: tuple) -> Iterator[tuple[int, torch.Tensor]]:
    """(first row, rows) for each run of a matrix; a tensor is one run. Raises ValueError for another shape."""
    if isinstance(matrix, torch.Tensor):
        _check_tensor(name, matrix, dtype, shape)
        matrix = [matrix]
    first = 0
    for rows in matrix:
        _check_tensor(name, rows, dtype, (min(len(rows), shape[0] - first), *shape[1:]))
        yield first, rows
        first += len(rows)
    if first != shape[0]:
        raise ValueError(f"decoder: the runs of {name} must have {shape[0]} rows together, got {first}")


def _check_tensor(name: str, x: torch.Tensor, dtype: torch.dtype, shape: tuple) -> None:
    is_float = dtype is torch.float32 or dtype is torch.bfloat16
    if not is_float:
        raise ValueError(f"decoder: {name} must be float32 or bfloat16, got {describe(x)}")
    check_tensor("decoder", name, x, shape, dtype, _CPU)
