"""The decode loop against one forward, one product with the head and one draw at a time."""

import dataclasses

import numpy as np
import pytest
import torch

from ttc_kernels import _native, kv_cache
from ttc_kernels.decoder import DecodeBatch, DecodeLoop, PackedDecoder, PackedLinear, cases
from ttc_kernels.sample import sample

ISAS = _native.decoder_isas()
VOCABULARY = cases.VOCABULARY
HOME = cases.Case(2, 96, 256, 6, 2, 16, torch.float32, ((1, 1),))


class Branches:
    """Branches of different lengths over one prompt, their last tokens without KV; those of all but the first
    `num_live` are not in the tree."""

    def __init__(self, case: cases.Case, num: int, num_blocks: int = 400, seed: int = 0, num_live: int | None = None):
        rng = np.random.default_rng(seed)
        self.num = num
        self.num_live = num if num_live is None else num_live
        self.tree = _native.KVTree(num_blocks, 16)
        root, _ = self.tree.open(np.zeros(0, np.int32))
        self.tree.extend(np.array([root], np.int32), np.array([20], np.int32), np.zeros(20, np.int32))
        forks = np.asarray(self.tree.fork(root, num), np.int32)
        lengths = rng.integers(1, 40, num).astype(np.int32)
        # No last token alone in a block (one branch starts in the prompt's last): where the others' KV is must not
        # depend on num_live.
        lengths += np.isin(lengths % 16, (1, 13))
        runs = np.split(rng.integers(0, VOCABULARY, lengths.sum()).astype(np.int32), lengths.cumsum()[:-1])
        order = rng.permutation(num)
        self.pending = np.array([runs[i][-1] for i in order], np.int32)
        for i in order[self.num_live :]:
            runs[i] = runs[i][:-1]
        self.tree.extend(forks, np.array([len(run) for run in runs], np.int32), np.concatenate(runs))
        self.handles = forks[order]  # not in the order of the plan
        shape = (case.num_layers, num_blocks, case.num_kv_heads, 16, case.head_dim)
        self.k, self.v = kv_cache.allocate(*shape, case.dtype)
        generator = torch.Generator().manual_seed(1)
        self.k.copy_(torch.randn(shape, generator=generator))
        self.v.copy_(torch.randn(shape, generator=generator))
        self.keys = torch.from_numpy(rng.integers(0, 1 << 60, num))
        self.limits = np.full(num, 1000, np.int32)
        self.groups = np.arange(num, dtype=np.int32)
        self.rules = np.zeros(num, np.int32)
        self.table = np.zeros((2, VOCABULARY + 1), bool)
        self.table[:, -1] = True
        self.marks: np.ndarray | None = None

    def sampling(self) -> tuple[torch.Tensor, ...]:
        lengths = [self.tree.num_tokens(handle) for handle in self.handles.tolist()]
        positions = torch.tensor(lengths, dtype=torch.int32)
        positions[self.num_live :] += 1
        some = torch.arange(self.num) % 3
        ones = torch.ones(self.num)
        return self.keys, positions, 0.5 * some, some.int() * 4, ones - 0.1 * some, ones * 0.01

    def loop(self, loop: DecodeLoop, max_forwards: int, min_ready: int = 1):
        batch = DecodeBatch(
            handles=self.handles,
            pending=self.pending,
            sampling=self.sampling(),
            limits=self.limits,
            groups=self.groups,
            rules=self.rules,
            table=self.table,
            marks=self.marks,
            max_forwards=max_forwards,
            min_ready=min_ready,
            max_live=self.num_live,
        )
        return loop.run(self.tree, self.k, self.v, batch)

    def step(self, trunk: PackedDecoder, head: PackedLinear, isa: str):
        """One forward with the ops themselves: tokens, log-probabilities, hidden states, in the branches' order."""
        plan = self.tree.plan(self.handles, np.ones(self.num, np.int32))
        inputs = (torch.from_numpy(x) for x in (plan.positions, plan.slots))
        hidden = trunk.forward(torch.from_numpy(plan.tokens), plan, *inputs, self.k, self.v)
        rows = torch.empty(self.num, dtype=torch.int64)
        rows[torch.from_numpy(plan.order).long()] = torch.arange(self.num)
        drawn = sample(head.forward(hidden, rows), *self.sampling(), isa=isa)
        return *(x.numpy() for x in drawn), hidden[rows]

    def append(self, tokens: np.ndarray) -> None:
        self.tree.extend(self.handles, np.ones(self.num, np.int32), tokens)


def make(case: cases.Case, isa: str = "auto") -> tuple[PackedDecoder, PackedLinear]:
    weights = case.weights()
    return PackedDecoder(weights, isa=isa), PackedLinear(weights.embedding, isa=isa)


def models() -> list[cases.Case]:
    """Rows that go apart; two blocks of a head that no vector fills; a layer beyond the cache; long paths."""
    return [
        HOME,
        dataclasses.replace(HOME, dtype=torch.bfloat16),
        cases.Case(2, 33, 41, 3, 1, 24, torch.float32, ((1, 1),)),
        cases.Case(1, 256, 640, 4, 2, 32, torch.float32, ((1, 1),)),
    ]


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("case", models(), ids=lambda case: f"{case.hidden}-{case.dtype}")
@pytest.mark.parametrize("num", [1, 3, 30, 67])
def test_the_same_bits_as_the_ops(case, num, isa):
    trunk, head = make(case, isa)
    want, got = Branches(case, num), Branches(case, num)
    got.marks = np.arange(VOCABULARY + 1) % 3 == 0
    tokens, logprobs, marked, states, num_forwards = [], [], [], [], 20
    for step in range(num_forwards):
        if step:
            want.append(tokens[-1])
        drawn, logprob, hidden = want.step(trunk, head, isa.removesuffix("_bf16"))
        tokens.append(drawn)
        logprobs.append(logprob)
        marked.append(np.flatnonzero(got.marks[drawn]))
        states.append(hidden[marked[-1]])
    num_threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1 + num % 2)
        decoded = got.loop(DecodeLoop(trunk, head), num_forwards)
    finally:
        torch.set_num_threads(num_threads)
    assert np.array_equal(decoded.tokens, tokens)
    assert np.array_equal(decoded.logprobs, logprobs)
    assert decoded.counts.tolist() == [num_forwards] * num
    assert np.array_equal(decoded.marked, np.concatenate(marked))
    assert torch.equal(decoded.states, torch.cat(states))
    assert [got.tree.tokens(handle).tolist() for handle in got.handles] == [
        want.tree.tokens(handle).tolist() for handle in want.handles
    ]
    assert torch.equal(got.k, want.k)
    assert torch.equal(got.v, want.v)
    got.tree.check_integrity()


def test_it_ends_with_the_first_token_that_the_table_names():
    trunk, head = make(HOME)
    loop = DecodeLoop(trunk, head)
    free = Branches(HOME, 40).loop(loop, 30).tokens
    row, token = 7, free[12, 7]
    first = int(np.flatnonzero(free[:, row] == token)[0])
    branches = Branches(HOME, 40)
    branches.rules[row] = 1
    branches.table[1, token] = True
    assert np.array_equal(branches.loop(loop, 30).tokens, free[: first + 1])


def first_of(free: np.ndarray, row: int, token: int) -> int:
    """How many tokens a branch draws until that one."""
    return int(np.flatnonzero(free[:, row] == token)[0]) + 1


def test_branches_that_have_ended_are_left_out_and_change_no_other():
    trunk, head = make(HOME)
    loop = DecodeLoop(trunk, head)
    free = Branches(HOME, 40).loop(loop, 30)
    branches = Branches(HOME, 40)
    want = np.full(40, 30)
    branches.limits[[2, 5, 39]] = want[[2, 5, 39]] = 1, 9, 30
    branches.rules[[7, 20]] = 1
    token = free.tokens[12, 7]
    branches.table[1, token] = True
    want[7] = first_of(free.tokens, 7, token)
    if token in free.tokens[:, 20]:
        want[20] = first_of(free.tokens, 20, token)
    branches.marks = np.ones(VOCABULARY + 1, bool)
    before = [branches.tree.num_tokens(handle) for handle in branches.handles.tolist()]
    decoded = branches.loop(loop, 30, min_ready=40)
    assert decoded.counts.tolist() == want.tolist()
    for row, count in enumerate(want):
        assert np.array_equal(decoded.tokens[:count, row], free.tokens[:count, row])
        assert np.array_equal(decoded.logprobs[:count, row], free.logprobs[:count, row])
        assert branches.tree.num_tokens(int(branches.handles[row])) == before[row] + count - 1, "all but the last"
    assert np.bincount(decoded.marked, minlength=40).tolist() == want.tolist()
    branches.tree.check_integrity()


@pytest.mark.parametrize("num_live", [1, 9, 39])
def test_branches_that_stand_by_take_the_places_of_those_that_end(num_live):
    trunk, head = make(HOME)
    loop = DecodeLoop(trunk, head)
    free = Branches(HOME, 40)
    want = free.loop(loop, 30)
    branches = Branches(HOME, 40, num_live=num_live)
    branches.limits[:] = np.arange(40) * 7 % 13 + 1
    branches.marks = np.ones(VOCABULARY + 1, bool)
    decoded = branches.loop(loop, 300, min_ready=40)
    assert decoded.counts.tolist() == branches.limits.tolist()
    assert len(decoded.tokens) >= branches.limits.sum() / num_live, "so many at once, no more"
    for row, count in enumerate(decoded.counts):
        assert np.array_equal(decoded.tokens[:count, row], want.tokens[:count, row])
        assert np.array_equal(decoded.logprobs[:count, row], want.logprobs[:count, row])
        tokens = branches.tree.tokens(int(branches.handles[row])).tolist()
        assert tokens == free.tree.tokens(int(free.handles[row])).tolist()[: len(tokens)]
    assert np.bincount(decoded.marked, minlength=40).tolist() == branches.limits.tolist()
    branches.tree.check_integrity()


def test_what_stands_by_stays_as_it_is_until_a_place_is_free():
    trunk, head = make(HOME)
    branches = Branches(HOME, 9, num_live=4)
    branches.limits[:] = 3, 9, 2, 9, 9, 9, 9, 9, 9
    before = [branches.tree.num_tokens(handle) for handle in branches.handles.tolist()]
    decoded = branches.loop(DecodeLoop(trunk, head), 30, min_ready=2)
    assert decoded.counts.tolist() == [3, 3, 2, 3, 1, 0, 0, 0, 0]
    num_more = [branches.tree.num_tokens(handle) - was for handle, was in zip(branches.handles, before, strict=True)]
    assert num_more == [2, 2, 1, 2, 1, 0, 0, 0, 0], "the last of each is not in the tree"
    branches.tree.check_integrity()


def test_what_stands_by_is_left_where_the_pool_has_no_block_for_it():
    """24 branches of a block or two each, whose next blocks are those that two more would start with."""
    trunk, head = make(HOME)
    loop = DecodeLoop(trunk, head)
    want = Branches(HOME, 24)
    tight = Branches(HOME, 24, num_blocks=64, num_live=20)
    tight.limits[:4] = 2
    decoded = tight.loop(loop, 60, min_ready=24)
    free = want.loop(loop, 60).tokens
    assert 0 < len(decoded.tokens) < 60
    for row, count in enumerate(decoded.counts):
        assert np.array_equal(decoded.tokens[:count, row], free[:count, row])
    tight.tree.check_integrity()


@pytest.mark.parametrize(("min_ready", "num_forwards"), [(1, 4), (2, 4), (3, 7), (5, 7), (6, 12), (7, 12)])
def test_it_ends_once_enough_branches_are_of_groups_that_have_ended(min_ready, num_forwards):
    """Groups of two, three and two branches, whose last ends at the 4th, 7th and 12th token."""
    trunk, head = make(HOME)
    branches = Branches(HOME, 7)
    branches.groups[:] = 0, 1, 1, 2, 0, 2, 1
    branches.limits[:] = 4, 1, 7, 12, 2, 3, 5
    decoded = branches.loop(DecodeLoop(trunk, head), 30, min_ready)
    assert len(decoded.tokens) == num_forwards
    assert decoded.counts.tolist() == np.minimum(branches.limits, num_forwards).tolist()


def test_it_ends_where_the_pool_does():
    trunk, head = make(HOME)
    loop = DecodeLoop(trunk, head)
    roomy, tight = Branches(HOME, 24), Branches(HOME, 24, num_blocks=64)
    want, got = roomy.loop(loop, 60).tokens, tight.loop(loop, 60).tokens
    assert 0 < len(got) < 60
    assert np.array_equal(got, want[: len(got)])
    with pytest.raises(_native.OutOfBlocks):
        tight.append(got[-1])
    tight.tree.check_integrity()


def test_a_row_that_is_no_number_ends_it():
    case = dataclasses.replace(HOME, num_layers=1)
    weights = case.weights()
    loop = DecodeLoop(PackedDecoder(weights), PackedLinear(weights.embedding))
    branches = Branches(case, 9)
    plan = branches.tree.plan(branches.handles, np.ones(9, np.int32))
    branches.k[:, plan.slots[3] // 16, :, :, :] = torch.nan  # only that branch's own block
    decoded = branches.loop(loop, 5)
    assert len(decoded.tokens) == 1
    assert (decoded.tokens[0] == -1).sum() == 1
    assert np.isnan(decoded.logprobs[decoded.tokens == -1]).all()


def test_refusals():
    trunk, head = make(HOME)
    loop, branches = DecodeLoop(trunk, head), Branches(HOME, 3)
    with pytest.raises(ValueError, match=r"the head takes 33 torch.float32, the trunk gives 96"):
        DecodeLoop(trunk, PackedLinear(torch.zeros(25, 33)))
    with pytest.raises(ValueError, match="both sizes at least 1"):
        branches.loop(loop, 0)
    branches.rules[1] = 2
    with pytest.raises(ValueError, match=r"rule 2 of branch 1 is outside 0\.\.1"):
        branches.loop(loop, 1)
    branches.rules[1] = 0
    branches.table = branches.table[:, 1:].copy()
    with pytest.raises(ValueError, match=r"table must be \(rules, vocabulary \+ 1\)"):
        branches.loop(loop, 1)
    branches = Branches(HOME, 3)
    branches.marks = np.zeros(VOCABULARY, bool)
    with pytest.raises(ValueError, match=r"marks \(vocabulary \+ 1\)"):
        branches.loop(loop, 1)
    branches.marks = None
    with pytest.raises(ValueError, match="min_ready must be at least 1, got 0"):
        branches.loop(loop, 1, min_ready=0)
    branches.num_live = 0
    with pytest.raises(ValueError, match="max_live must be at least 1, got 0"):
        branches.loop(loop, 1)
    branches.num_live = 3
    branches.limits[2] = 0
    with pytest.raises(ValueError, match=r"limit 0 of branch 2 is outside 1\.\."):
        branches.loop(loop, 1)
    branches.limits[2], branches.groups[0] = 1, 3
    with pytest.raises(ValueError, match=r"group 3 of branch 0 is outside 0\.\.2"):
        branches.loop(loop, 1)
    branches = Branches(HOME, 3)
    branches.keys = branches.keys[:2]
    with pytest.raises(ValueError, match=r"must be contiguous, \(3,\) torch.*, got \(2,\)"):
        branches.loop(loop, 1)
