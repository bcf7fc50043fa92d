"""Sampling many tokens with one call: the decode loop over a packed trunk and a packed head."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ttc_kernels import _native
from ttc_kernels.decoder.api import PackedDecoder, PackedLinear


@dataclass(frozen=True)
class Decoded:
    """What a call of `DecodeLoop.run` drew, for n branches in F forwards."""

    tokens: np.ndarray  # (F, n) int32, -1 where a row of logits was no number
    logprobs: np.ndarray  # (F, n) float32
    hidden: torch.Tensor  # (n, hidden): the last forward's states, in the order of its plan
    rows: np.ndarray  # (n,) int64: each branch's row of `hidden`


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
        k_cache: torch.Tensor,
        v_cache: torch.Tensor,
        handles: np.ndarray,
        sampling: Sequence[torch.Tensor],
        rules: np.ndarray,
        table: np.ndarray,
        max_forwards: int,
    ) -> Decoded:
        """Samples up to `max_forwards` tokens onto each of n branches, as many onto each.

        The branches' last tokens are in the tree and have no KV yet; those of the last forward are drawn but not
        appended. It ends early after a token at which `table[rules[i], token]` is set for any branch i (-1 is the
        table's last column), and where the pool has no blocks for another token. `handles` and `rules` are int32
        (n,), `table` bool (any, vocabulary + 1), `sampling` the arguments of `sample` after the logits; none is
        changed. The bits of a branch's draws do not depend on the other branches, on `max_forwards` or the
        threads. Raises ValueError for anything else, and as `PackedDecoder.forward` does.
        """
        num = len(handles)
        tokens = np.empty((max_forwards, num), np.int32)
        logprobs = np.empty((max_forwards, num), np.float32)
        hidden = torch.empty(num, self.trunk.hidden_size, dtype=self.trunk.dtype)
        rows = np.empty(num, np.int64)
        for x in sampling:
            if x.shape != (num,) or not x.is_contiguous():
                raise ValueError(f"decode: sampling must be contiguous ({num},), got {tuple(x.shape)}")
        num_done = _native.decode(
            tree,
            self.trunk.native,
            self.head.native,
            self.trunk._native_caches(k_cache, v_cache),
            handles,
            [x.data_ptr() for x in sampling],
            rules,
            table,
            tokens,
            logprobs,
            hidden.data_ptr(),
            rows,
        )
        return Decoded(tokens[:num_done], logprobs[:num_done], hidden, rows)
