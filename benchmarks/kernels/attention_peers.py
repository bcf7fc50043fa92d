"""The peers of tree attention: torch's attentions over a dense KV of every branch, and over the tree with a mask.

Gathering KV is not timed. Shapes: B branches, Q query rows of a branch, H heads, K KV heads, G = H / K, L keys, D.
A peer returns its call and a function that brings the call's result into the order of the op's rows, (rows, H, D).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F

from benchmarks.kernels.gpu_peers import GPU_PEERS
from benchmarks.kernels.ops import inputs_device
from benchmarks.timing import Call, Missing
from ttc_kernels.tree_attention.reference import visible_slots

ToRows = Callable[[object], torch.Tensor]
MAX_BYTES = {"cpu": 4 * 10**9, "cuda": 40 * 10**9}  # that a peer may need beside the op's own data
COMPILED = "beam 64 x (1024 + 16)"  # FlexAttention takes some ten seconds to compile for a shape


@dataclass(frozen=True)
class Group:
    """Branches of one length, their KV gathered."""

    branches: torch.Tensor  # (B,) numbers in the plan's order
    k: torch.Tensor  # (B, K, L, D)
    v: torch.Tensor


class Paths:
    """The branches of a case one by one: their query rows, and the slots of the keys that they see."""

    def __init__(self, case, inputs: dict):
        self.case, self.inputs, self.device = case, inputs, inputs_device(inputs)
        starts = torch.as_tensor(inputs["plan"].row_start).long()
        counts = (starts[1:] - starts[:-1]).tolist()
        assert len(set(counts)) == 1, "every branch has as many query rows"
        self.num_queries, self.num_branches = counts[0], len(counts)

    @cached_property
    def slots(self) -> list[torch.Tensor]:
        """The slots that the last query row of every branch sees."""
        every = visible_slots(self.inputs["plan"], self.case.block_size, len(self.inputs["q"]))
        return every[self.num_queries - 1 :: self.num_queries]

    @cached_property
    def lengths(self) -> list[int]:
        return [len(slots) for slots in self.slots]

    def claim(self, num_keys: int) -> None:
        """Raises Missing if a dense KV of `num_keys` tokens is over the device's limit."""
        num_bytes = 2 * num_keys * self.case.num_kv_heads * self.case.head_dim * self.case.dtype.itemsize
        limit = MAX_BYTES[self.device]
        if num_bytes > limit:
            raise Missing(f"needs {num_bytes / 1e9:.1f} GB of gathered KV, over {limit / 1e9:.0f} GB on {self.device}")

    def gather(self, branches: list[int], length: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of branches, (B, K, length, D); zeros behind the end of a shorter one."""
        case, found = self.case, []
        for cache in (self.inputs["k_cache"], self.inputs["v_cache"]):
            dense = cache.new_zeros(len(branches), case.num_kv_heads, length, case.head_dim)
            for row, branch in enumerate(branches):
                slots = self.slots[branch].to(cache.device)
                picked = cache[slots // case.block_size, :, slots % case.block_size]
                dense[row, :, : len(slots)] = picked.transpose(0, 1)
            found.append(dense)
        return found[0], found[1]

    @cached_property
    def groups(self) -> list[Group]:
        """The branches by length, so that nothing is padded."""
        self.claim(sum(self.lengths))
        by_length: dict[int, list[int]] = {}
        for branch, length in enumerate(self.lengths):
            by_length.setdefault(length, []).append(branch)
        return [Group(torch.tensor(branches), *self.gather(branches, length)) for length, branches in by_length.items()]

    @cached_property
    def queries(self) -> torch.Tensor:
        """(B, H, Q, D), contiguous."""
        q = self.inputs["q"]
        return q.reshape(self.num_branches, self.num_queries, *q.shape[1:]).transpose(1, 2).contiguous()

    def causal(self, length: int) -> torch.Tensor | None:
        """(Q, L) bool: which keys a row sees; None where it is all of them."""
        if self.num_queries == 1:
            return None
        return torch.ones(self.num_queries, length, dtype=torch.bool, device=self.device).tril(
            length - self.num_queries
        )

    def to_rows(self, results: list[tuple[torch.Tensor, torch.Tensor]]) -> torch.Tensor:
        """(rows, H, D) of pairs of branch numbers and their (B, H, Q, D) results."""
        out = torch.empty_like(self.queries)
        for branches, part in results:
            out[branches.to(out.device)] = part.reshape(len(branches), *out.shape[1:])
        return out.transpose(1, 2).flatten(0, 1)


def per_branch(paths: Paths) -> tuple[Call, ToRows]:
    """A call of SDPA for every branch, as a loop over sequences would make them."""
    parts = [
        (group.branches[i : i + 1], paths.queries[branch][None], group.k[i : i + 1], group.v[i : i + 1])
        for group in paths.groups
        for i, branch in enumerate(group.branches.tolist())
    ]
    masks = {length: paths.causal(length) for length in set(paths.lengths)}
    gqa = paths.case.num_heads != paths.case.num_kv_heads

    def call() -> list:
        return [(branch, _sdpa(q, k, v, masks[k.shape[2]], paths.inputs["scale"], gqa)) for branch, q, k, v in parts]

    return call, paths.to_rows


def packed(paths: Paths) -> tuple[Call, ToRows]:
    """The strong one: the query heads of a KV head are rows of one product, branches of one length one batch."""
    case, num = paths.case, paths.num_queries
    rows = case.num_heads // case.num_kv_heads * num
    parts = []
    for group in paths.groups:
        q = paths.queries[group.branches.to(paths.device)].reshape(-1, case.num_kv_heads, rows, case.head_dim)
        mask = paths.causal(group.k.shape[2])
        parts.append((group.branches, q, group.k, group.v, None if mask is None else mask.repeat(rows // num, 1)))

    def call() -> list:
        return [(branches, _sdpa(q, k, v, mask, paths.inputs["scale"])) for branches, q, k, v, mask in parts]

    return call, paths.to_rows


def padded(paths: Paths) -> tuple[Call, ToRows]:
    """One batch of all branches, the shorter ones padded and masked."""
    longest, everyone = max(paths.lengths), torch.arange(paths.num_branches)
    paths.claim(paths.num_branches * longest)
    if len(paths.groups) == 1:
        k, v, mask = paths.groups[0].k, paths.groups[0].v, paths.causal(longest)
    else:
        if paths.num_queries > 1:
            raise Missing("branches of several lengths with several query rows each")
        k, v = paths.gather(everyone.tolist(), longest)
        lengths = torch.tensor(paths.lengths, device=paths.device)
        mask = (torch.arange(longest, device=paths.device) < lengths[:, None])[:, None, None]
    gqa = paths.case.num_heads != paths.case.num_kv_heads
    q, scale = paths.queries, paths.inputs["scale"]
    return lambda: [(everyone, _sdpa(q, k, v, mask, scale, gqa))], paths.to_rows


def _sdpa(q, k, v, mask: torch.Tensor | None, scale: float, gqa: bool = False) -> torch.Tensor:
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale, enable_gqa=gqa)


def flex(paths: Paths) -> tuple[Call, ToRows]:
    """FlexAttention, compiled: all rows over the distinct keys of the tree, under a mask of ancestors."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    case, inputs = paths.case, paths.inputs
    if getattr(case, "name", "") != COMPILED:
        raise Missing(f"compiled for one tree alone, {COMPILED}, as every shape takes some ten seconds")
    distinct, first, behind = branches_below_keys(paths)
    place = (distinct // case.block_size, slice(None), distinct % case.block_size)
    k, v = (inputs[name][place].transpose(0, 1)[None].contiguous() for name in ("k_cache", "v_cache"))
    q = inputs["q"].transpose(0, 1)[None].contiguous()

    def is_ancestor(batch, head, row, key):
        return (row >= first[key]) & (row < behind[key])

    mask = create_block_mask(is_ancestor, None, None, q.shape[2], k.shape[2], device=paths.device)
    compiled = torch.compile(flex_attention, dynamic=False)
    gqa = case.num_heads != case.num_kv_heads

    def call() -> torch.Tensor:
        with torch.no_grad():
            return compiled(q, k, v, block_mask=mask, scale=inputs["scale"], enable_gqa=gqa)

    return call, lambda out: out[0].transpose(0, 1)


def branches_below_keys(paths: Paths) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(slots of the distinct keys of the tree, first branch that sees each, first that sees it no more)."""
    distinct, number = torch.cat(paths.slots).unique(return_inverse=True)
    owner = torch.arange(paths.num_branches).repeat_interleave(torch.tensor(paths.lengths))
    sees = torch.zeros(paths.num_branches, len(distinct), dtype=torch.bool)
    sees[owner, number] = True
    first = sees.int().argmax(0)  # the branches below a key are a range, as the plan is depth-first
    return tuple(part.to(paths.device) for part in (distinct, first, first + sees.sum(0)))


# Those that share a gathered KV are next to each other.
ATTENTION_PEERS: dict[str, Callable[[Paths], tuple[Call, ToRows]]] = {
    "sdpa_packed": packed,
    "sdpa_per_branch": per_branch,
    "sdpa_padded": padded,
    "flex_attention": flex,
    **GPU_PEERS,
}


def checked(peer: tuple[Call, ToRows], ours: torch.Tensor) -> Call:
    """The call of a peer. Raises Missing if its result is not `ours`, (rows, H, D)."""
    call, to_rows = peer
    theirs = to_rows(call())
    limit = 1e-4 if ours.dtype is torch.float32 else 3e-2
    difference = ((theirs.float() - ours.float()).abs().max() / ours.float().abs().max()).item()
    if not difference <= limit:
        raise Missing(f"its result differs from ours by {difference:.2g} of the largest value")
    return call


def attention_peers(case, inputs: dict, ours: torch.Tensor) -> Iterator[tuple[str, Callable[[], Call]]]:
    """(name, function that builds the call) of every peer."""
    paths = Paths(case, inputs)
    for name, peer in ATTENTION_PEERS.items():
        yield name, lambda peer=peer: checked(peer(paths), ours)
