"""What else computes an op's result: torch's eager operations on the same data.

A peer is built only when it is about to be timed, so that copies of data do not pile up, and raises `Missing` where
it cannot run. Those of tree attention are in attention_peers.py and gpu_peers.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
import torch.nn.functional as F

from benchmarks.kernels.attention_peers import attention_peers
from benchmarks.kernels.ops import Op
from benchmarks.timing import Call
from engine.model.unpacked import TorchDecoder
from engine.model.weights import LayerExtras, Trunk
from ttc_kernels.rms_norm import rms_norm
from ttc_kernels.step_score import reference as step_score_reference
from ttc_kernels.swiglu import swiglu


def _rms_norm(case, inputs: dict) -> Call:
    x, residual = inputs["x"], inputs["residual"]

    def call() -> torch.Tensor:
        summed = x if residual is None else residual.add_(x)
        return F.rms_norm(summed, summed.shape[-1:], inputs["weight"], inputs["eps"])

    return call


def _swiglu(case, inputs: dict) -> Call:
    gate, up = inputs["gate_up"].chunk(2, dim=-1)
    return lambda: F.silu(gate) * up


def _separate(case, inputs: dict) -> Call:
    """torch's product, which can add the residual itself, between launches of our own rms_norm and swiglu."""
    x, norm, residual, transposed = inputs["x"], inputs["norm"], inputs["residual"], inputs["weight"].t()
    product = x.new_empty(len(x), transposed.shape[1])

    def call() -> torch.Tensor:
        rows = x if norm is None else rms_norm(x, norm, inputs["eps"])
        if residual is not None and not case.is_gated:
            return residual.addmm_(rows, transposed)
        torch.mm(rows, transposed, out=product)
        result = swiglu(product, out=product[:, : case.num_out]) if case.is_gated else product
        return result if residual is None else residual.add_(result)

    return call


def _rope_store_kv(case, inputs: dict) -> Call:
    """The rows that are stored, and their blocks, are known beforehand."""
    qkv, k_cache, v_cache = inputs["qkv"], inputs["k_cache"], inputs["v_cache"]
    heads = qkv.view(len(qkv), -1, case.head_dim)
    rotated, value = heads[:, : case.num_heads + case.num_kv_heads], heads[:, case.num_heads + case.num_kv_heads :]
    positions = inputs["positions"].long()
    rows = (inputs["slots"] >= 0).nonzero()[:, 0]
    slots = inputs["slots"][rows].long()
    block, offset = slots // case.block_size, slots % case.block_size
    low = case.head_dim // 2

    def call() -> None:
        if inputs["bias"] is not None:
            qkv.add_(inputs["bias"])
        cos = inputs["cos"][positions].to(qkv.dtype).repeat(1, 2)[:, None]
        sin = inputs["sin"][positions].to(qkv.dtype).repeat(1, 2)[:, None]
        turned = rotated * cos + torch.cat([-rotated[..., low:], rotated[..., :low]], -1) * sin
        heads[:, : case.num_heads] = turned[:, : case.num_heads]
        k_cache[block, :, offset] = turned[rows, case.num_heads :]
        v_cache[block, :, offset] = value[rows]

    return call


def _copy_blocks(case, inputs: dict) -> Call:
    source, destination = inputs["pairs"].long().unbind(1)

    def call() -> None:
        for cache in inputs["caches"]:
            cache.index_copy_(1, destination, cache.index_select(1, source))

    return call


def _sample(case, inputs: dict) -> Call:
    """The filters as transformers' logits processors apply them; torch's own random numbers."""
    logits = inputs["logits"]
    if case.temperature == 0:
        return lambda: _with_logprob(logits.argmax(-1, keepdim=True), logits)

    def call() -> tuple[torch.Tensor, torch.Tensor]:
        scaled = kept = logits / case.temperature
        if case.top_k:
            least = kept.topk(min(case.top_k, case.vocab)).values[:, -1:]
            kept = kept.masked_fill(kept < least, -torch.inf)
        if case.top_p < 1:
            ranked, order = kept.sort(descending=False)
            is_out = ranked.softmax(-1).cumsum(-1) <= 1 - case.top_p
            is_out[:, -1:] = False
            kept = kept.masked_fill(is_out.scatter(1, order, is_out), -torch.inf)
        probabilities = kept.softmax(-1)
        if case.min_p:
            low = probabilities < case.min_p * probabilities.amax(-1, keepdim=True)
            probabilities = kept.masked_fill(low, -torch.inf).softmax(-1)
        return _with_logprob(torch.multinomial(probabilities, 1), scaled)

    return call


def _sample_head(case, inputs: dict) -> Call:
    """torch's product and a draw from it."""
    hidden, weight = inputs["hidden"], inputs["weight"]

    def call() -> tuple[torch.Tensor, torch.Tensor]:
        logits = F.linear(hidden, weight).float()
        return _sample(case, {"logits": logits})()

    return call


def _with_logprob(tokens: torch.Tensor, scaled: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return tokens, scaled.log_softmax(-1).gather(1, tokens)


def _scores(inputs: dict) -> torch.Tensor:
    weight, bias, good_index = inputs["head"]
    logits = F.linear(inputs["hidden"][inputs["rows"].long()], weight, bias).float()
    return logits[:, 0].sigmoid() if logits.shape[1] == 1 else logits.softmax(-1)[:, good_index]


def _scores_only(case, inputs: dict) -> Call:
    """Without the fold into the running aggregates: less work than the op does."""
    return lambda: _scores(inputs)


def _step_score(case, inputs: dict) -> Call:
    """The fold one score after the other, as scores of one slot depend on each other."""
    state, counts, slot = inputs["state"], inputs["counts"], inputs["slot"]

    def call() -> None:
        for s, score in zip(slot.tolist(), _scores(inputs), strict=True):
            state[s] = step_score_reference.fold(state[s], int(counts[s]), score)
            counts[s] += 1

    return call


def _layer_by_layer(case, inputs: dict) -> Call:
    """Our own trunk of separate ops over torch's matrix products."""
    weights = case.weights()
    decoder = TorchDecoder(Trunk(weights, (LayerExtras(),) * len(weights.layers)))
    return lambda: decoder.forward(**inputs)


EAGER: dict[str, dict[str, Callable[[object, dict], Call]]] = {
    "rms_norm": {"torch_eager": _rms_norm},
    "swiglu": {"torch_eager": _swiglu},
    "fused_linear": {"separate": _separate},
    "rope_store_kv": {"torch_eager": _rope_store_kv},
    "copy_blocks": {"torch_eager": _copy_blocks},
    "sample": {"torch_eager": _sample},
    "sample_head": {"torch_eager": _sample_head},
    "step_score": {"torch_eager": _step_score, "torch_scores_only": _scores_only},
    "decoder": {"layer_by_layer": _layer_by_layer},
}


def peers(op: Op, case, device: str, inputs: dict, impl: str) -> Iterator[tuple[str, Callable[[], Call]]]:
    """(name, function that builds the call) of every peer; building one raises Missing where it cannot run."""
    if op.name == "tree_attention":
        yield from attention_peers(case, inputs, op.kernel(**inputs, impl=impl))
    for name, peer in EAGER.get(op.name, {}).items():
        yield name, partial(peer, case, op.inputs(case, device))
