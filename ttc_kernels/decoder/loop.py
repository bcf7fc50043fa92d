"""Drawing many tokens with one call: the decode loop over a packed trunk and a packed head."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ttc_kernels import _native
from ttc_kernels.decoder.api import PackedDecoder, PackedLinear
from ttc_kernels.sample.api import check_sampling


@dataclass(frozen=True)
class DecodeBatch:
    """The n branches of one call of `DecodeLoop.run`, and when each of them and the call end.

    The first `max_live` branches start in the batch: their last tokens are in the tree and have no KV yet. The others
    wait outside, their last tokens not in the tree; the next of them takes the place of each branch that ends.
    """

    handles: np.ndarray
    """(n,) int32: open branches of the tree."""
    pending: np.ndarray
    """(n,) int32: each branch's last token, which is the first to be run through the model."""
    sampling: Sequence[torch.Tensor]
    """Six tensors, (n,) each: the arguments of `sample` after the logits."""
    limits: np.ndarray
    """(n,) int32: the most tokens that each branch may draw, at least 1."""
    groups: np.ndarray
    """(n,) int32 within 0 .. n - 1: a branch counts as ready once all branches of its group have ended."""
    rules: np.ndarray
    """(n,) int32: each branch's row of `table`."""
    table: np.ndarray
    """(num_rules, vocabulary + 1) bool: tokens that end a branch; the last column is the error token's, -1."""
    marks: np.ndarray | None
    """(vocabulary + 1,) bool: tokens at which the hidden state is kept; None: at none."""
    max_forwards: int
    """Forwards after which the call ends."""
    min_ready: int = 1
    """Ready branches with which the call ends."""
    max_live: int | None = None
    """The most branches in a forward; None: all."""


@dataclass(frozen=True)
class Decoded:
    """What `DecodeLoop.run` drew for n branches in F forwards."""

    tokens: np.ndarray
    """(F, n) int32: of branch i the first counts[i]; -1 where its logits had NaN or +Inf."""
    logprobs: np.ndarray
    """(F, n) float32: log-probabilities of the tokens."""
    counts: np.ndarray
    """(n,) int32: tokens that each branch drew; 0 for one that never had a place."""
    marked: np.ndarray
    """(m,) int64: the branches that drew marked tokens, in the order in which they drew them."""
    states: torch.Tensor
    """(m, hidden): the hidden states that those tokens were drawn from."""


class DecodeLoop:
    """Forward, draw, append the drawn tokens, and again, without Python in between.

    `trunk` and `head` are of the same dtype; the vocabulary is the head's.
    """

    def __init__(self, trunk: PackedDecoder, head: PackedLinear):
        if head.num_in != trunk.hidden_size or head.dtype is not trunk.dtype:
            raise ValueError(
                f"decode: the head takes {head.num_in} {head.dtype}, the trunk gives {trunk.hidden_size} {trunk.dtype}"
            )
        self.trunk, self.head = trunk, head

    def run(
        self,
        tree: _native.KVTree,
        k_cache: torch.Tensor,  # (layers, blocks, kv heads, block size, head dim)
        v_cache: torch.Tensor,  # the same
        batch: DecodeBatch,
    ) -> Decoded:
        """Draws tokens onto the branches of a batch and appends them to the tree, all but the last of each branch.

        A branch ends with its `limits[i]`th token, or one at which `table[rules[i]]` is set, and is left out of later
        forwards. The call ends after `max_forwards`, once `min_ready` branches are ready, or where the pool has no
        blocks for another token, but not before one forward. The bits of a branch's draws do not depend on the other
        branches, on `max_forwards`, `min_ready`, `max_live` or the threads. Raises ValueError for a batch whose arrays
        do not fit, and as `PackedDecoder.forward` does.
        """
        num = len(batch.handles)
        tokens = np.zeros((batch.max_forwards, num), np.int32)
        logprobs = np.zeros((batch.max_forwards, num), np.float32)
        counts = np.empty(num, np.int32)
        check_sampling("decode", batch.sampling, (num,), torch.device("cpu"))
        caches = self.trunk.native_caches(k_cache, v_cache)
        num_done, marked, states = _native.decode(
            tree, self.trunk.native, self.head.native, caches, batch, tokens, logprobs, counts
        )
        states = states.reshape(len(marked), self.trunk.hidden_size * self.trunk.dtype.itemsize)
        states = torch.from_numpy(states).view(self.trunk.dtype)
        return Decoded(tokens[:num_done], logprobs[:num_done], counts, marked, states)
