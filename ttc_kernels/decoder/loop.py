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

    tokens: np.ndarray  # (F, n) int32, -1 where a row of logits was no number; a branch's first counts[i] are its own
    logprobs: np.ndarray  # (F, n) float32
    counts: np.ndarray  # (n,) int32: tokens that each branch drew
    marked: np.ndarray  # (m,) int64: branches, in the order in which they drew a token that `marks` names
    states: torch.Tensor  # (m, hidden): what those tokens were drawn from


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
        pending: np.ndarray,
        sampling: Sequence[torch.Tensor],
        limits: np.ndarray,
        groups: np.ndarray,
        rules: np.ndarray,
        table: np.ndarray,
        marks: np.ndarray | None,
        max_forwards: int,
        min_ready: int = 1,
        max_live: int | None = None,
    ) -> Decoded:
        """Samples up to `max_forwards` tokens onto each of n branches.

        The last tokens, `pending`, of the first `max_live` branches (None: of all) are in the tree and have no KV
        yet; the last that each draws is not appended. The other branches stand by, their last tokens not in the tree:
        the next of them takes the place of each branch that ends, and may thus draw nothing. A branch ends, and is
        left out of the forwards that follow, with its `limits[i]`th token or one at which `table[rules[i], token]` is
        set (-1 is the table's last column). The call ends early once `min_ready` branches have ended, those counted
        of whose group none goes on, and where the pool has no blocks for another token. The hidden states at tokens
        that `marks` names are kept. `handles`, `pending`, `limits`, `groups` (0 .. n - 1) and `rules` are int32 (n,),
        `table` bool (any, vocabulary + 1), `marks` bool (vocabulary + 1,), `sampling` the arguments of `sample` after
        the logits; none is changed. The bits of a branch's draws do not depend on the other branches, on
        `max_forwards`, `min_ready`, `max_live` or the threads. Raises ValueError for anything else, and as
        `PackedDecoder.forward` does.
        """
        num = len(handles)
        tokens = np.zeros((max_forwards, num), np.int32)
        logprobs = np.zeros((max_forwards, num), np.float32)
        counts = np.empty(num, np.int32)
        for x in sampling:
            if x.shape != (num,) or not x.is_contiguous():
                raise ValueError(f"decode: sampling must be contiguous ({num},), got {tuple(x.shape)}")
        num_done, marked, states = _native.decode(
            tree,
            self.trunk.native,
            self.head.native,
            self.trunk._native_caches(k_cache, v_cache),
            handles,
            pending,
            [x.data_ptr() for x in sampling],
            limits,
            groups,
            rules,
            table,
            marks,
            tokens,
            logprobs,
            counts,
            min_ready,
            num if max_live is None else max_live,
        )
        states = states.reshape(len(marked), self.trunk.hidden_size * self.trunk.dtype.itemsize)
        states = torch.from_numpy(states).view(self.trunk.dtype)
        return Decoded(tokens[:num_done], logprobs[:num_done], counts, marked, states)
