"""The bill against what the models really ran."""

import pytest

from engine.accounting import PURPOSES, Ledger, attention_flops
from engine.search import BeamSearch, BestOfN, Lookahead, Majority
from engine.types import Problem, TreeNode
from tests.tiny import tiny_family
from ttc_kernels.tree_attention.reference import visible_slots

from .builders import PROBLEMS, assert_idle, load_engine, load_llm, runners

STRATEGIES = [Majority(), BestOfN(), BeamSearch(width=2), Lookahead(width=2, lookahead=2)]
by_name = pytest.mark.parametrize("strategy", STRATEGIES, ids=lambda strategy: strategy.name)
OPTIONS = {"max_tokens": 40, "seed": 1}


class Meter:
    """Counts what a model runs: rows through its trunk, (query, key) pairs, rows through its head."""

    def __init__(self, llm):
        runner = llm.runner
        self.shape = runner.shape
        self.num_rows = self.num_keys = self.num_head_rows = 0
        forward, scores = runner.parts.decoder.forward, runner.executor.scores

        def counted_forward(token_ids, plan, positions, *rest):
            self.num_rows += len(token_ids)
            self.num_keys += int(positions.sum()) + len(positions)
            return forward(token_ids, plan, positions, *rest)

        def counted_scores(hidden, where):
            self.num_head_rows += len(where)
            return scores(hidden, where)

        runner.parts.decoder.forward = counted_forward
        if runner.parts.lm_head is None:
            runner.executor.scores = counted_scores
        else:
            logits = runner.parts.lm_head.logits

            def counted_logits(hidden, rows):
                self.num_head_rows += len(rows)
                return logits(hidden, rows)

            runner.parts.lm_head.logits = counted_logits
            run = runner.executor.loop.run

            def counted_run(tree, k, v, batch):
                lengths = [tree.num_tokens(handle) for handle in batch.handles.tolist()]
                decoded = run(tree, k, v, batch)
                self.num_rows += int(decoded.counts.sum())
                self.num_head_rows += int(decoded.counts.sum())
                for length, count in zip(lengths, decoded.counts.tolist(), strict=True):
                    self.num_keys += count * length + count * (count - 1) // 2
                return decoded

            runner.executor.loop.run = counted_run

    @property
    def flops(self) -> int:
        trunk = self.shape.num_matmul_params - self.shape.num_head_params
        matmul = 2 * (trunk * self.num_rows + self.shape.num_head_params * self.num_head_rows)
        return matmul + attention_flops(self.shape, self.shape.num_layers * self.num_keys)


def total(results, purpose: str | None = None, kind: str = "tokens") -> int:
    return sum(
        amount
        for result in results
        for name, amount in result.ledger.as_dict()[kind].items()
        if purpose in (None, name)
    )


@by_name
@pytest.mark.parametrize(("num_blocks", "max_chunk"), [(512, 1024), (512, 6), (16, 20)])
def test_every_flop_that_ran_is_on_the_bill_once(folders, strategy, num_blocks, max_chunk):
    engine = load_engine(folders, num_blocks=num_blocks, max_chunk=max_chunk)
    meters = [Meter(engine.policy), Meter(engine.prm)]
    results = engine.search(PROBLEMS, strategy, 8, **OPTIONS)
    assert total(results, kind="flops") == sum(meter.flops for meter in meters)
    verified = total(results, "verified", "flops")
    if num_blocks == 512:
        assert verified == meters[1].flops
        assert total(results, "recomputed") == 0 or strategy.lookahead
    assert (verified > 0) == strategy.is_scored
    assert all(amount >= 0 for result in results for amount in result.ledger.tokens.values())
    assert total(results, "estimation") == total(results, "estimation", "flops") == 0


def test_a_small_case_by_hand(folders):
    """One greedy answer to a prompt of five tokens, from one forward to the next."""
    llm = load_llm(folders.policy)
    ledger = Ledger()
    branch = llm.open([4, 5, 6, 7, 8], ledger=ledger)
    llm.generate([branch], max_tokens=4)
    assert branch.num_tokens == 9
    hidden, inter, heads, kv_heads, head_dim, vocab, layers = 32, 64, 2, 1, 16, 35, 2
    trunk = layers * hidden * (2 * heads * head_dim + 2 * kv_heads * head_dim + 3 * inter)
    head = hidden * vocab
    per_key = 4 * layers * heads * head_dim
    prompt = 5 * 2 * trunk + (1 + 2 + 3 + 4 + 5) * per_key + 2 * head  # logits of its last token alone
    decode = 3 * (2 * trunk + 2 * head) + (6 + 7 + 8) * per_key  # the fourth token is sampled, not fed
    assert ledger.flops["prefilled"] == prompt
    assert ledger.flops["generated"] == decode
    assert ledger.tokens == {**dict.fromkeys(PURPOSES, 0), "generated": 4, "prefilled": 5}
    llm.next_logits([branch])  # feeds it now
    assert ledger.flops["generated"] == decode + 2 * trunk + 9 * per_key + 2 * head
    assert ledger.tokens["generated"] == 4
    assert ledger.flops["recomputed"] == 0
    llm.next_logits([branch])  # reads the last token again
    assert ledger.tokens["recomputed"] == 1
    assert ledger.flops["recomputed"] == 2 * trunk + 9 * per_key + 2 * head


@by_name
def test_generated_tokens_are_those_of_all_candidates(folders, strategy):
    """Pruned ones too; rollouts are apart."""
    results = load_engine(folders).search(PROBLEMS, strategy, 8, **OPTIONS)
    for result in results:
        tokens = result.ledger.tokens
        assert tokens["generated"] == sum(node.num_tokens for node in result.tree.nodes)
        if not strategy.stop_at_step:
            assert tokens["generated"] == sum(candidate.num_tokens for candidate in result.candidates)
    assert (total(results, "lookahead") > 0) == bool(strategy.lookahead)


@pytest.mark.parametrize("shares_steps", [True, False])
def test_a_step_costs_the_verifier_its_own_tokens(folders, shares_steps):
    """The prompt once, every judged step once, whatever the depth: never a text again, nor the same one twice."""
    depths = []
    for problem in PROBLEMS:
        engine = load_engine(folders, shares_steps=shares_steps)
        meter = Meter(engine.prm)
        (result,) = engine.search([problem], BeamSearch(width=2), 8, **OPTIONS)
        judged = [node for node in result.tree.nodes if node.score is not None]
        depths.append(max(len(node.address) for node in judged))
        if shares_steps:
            judged = list({said(result.tree.nodes, node): node for node in judged}.values())
        own = len(engine.policy.encode(problem.prompt)) + sum(node.num_tokens for node in judged)
        assert result.ledger.tokens["verified"] == meter.num_rows == own
        assert meter.num_head_rows == len(judged)
    assert max(depths) >= 3


def said(nodes: list[TreeNode], node: TreeNode) -> tuple[str, ...]:
    """The steps up to a node."""
    return (*said(nodes, nodes[node.parent]), node.step_text) if node.parent is not None else ()


def test_prefilled_and_cached_add_up(folders):
    """Each of four samples stands on the whole prompt: it is run once, and read the other times."""
    engine = load_engine(folders)
    num_samples, length = 4, len(engine.policy.encode(PROBLEMS[0].prompt))
    problems = [Problem(str(index), PROBLEMS[0].prompt) for index in range(3)]
    expected = length
    for problem in problems:
        (result,) = engine.search([problem], Majority(), num_samples, **OPTIONS)
        tokens = result.ledger.tokens
        assert tokens["prefilled"] == expected
        assert tokens["prefilled"] + tokens["cached"] == num_samples * length
        assert result.ledger.flops["cached"] == 0
        # The next one finds whole blocks of all but the last token, whose logits it needs.
        expected = length - (length - 1) // 16 * 16
    assert expected < length


def test_recomputed_only_when_suspended(folders):
    roomy, tight = load_engine(folders), load_engine(folders, num_blocks=9)
    strategy = Majority()
    free = roomy.search(PROBLEMS, strategy, 8, **OPTIONS)
    bound = tight.search(PROBLEMS, strategy, 8, **OPTIONS)
    assert total(free, "recomputed") == total(free, "recomputed", "flops") == 0
    assert tight.policy.runner.num_suspensions > 0
    assert total(bound, "recomputed") > 0
    for name in ("generated", "lookahead", "verified"):
        assert total(free, name) == total(bound, name)
    assert total(free, "generated", "flops") == total(bound, "generated", "flops")
    assert_idle(*runners(roomy), *runners(tight))


def test_a_bill_per_problem(folders):
    """What one problem pays does not depend on who else is searched (but for prompts found in the cache)."""
    strategy = BeamSearch(width=2)
    engine = load_engine(folders)
    together = engine.search(PROBLEMS[3:], strategy, 4, **OPTIONS)
    for problem, result in zip(PROBLEMS[3:], together, strict=True):
        (alone,) = load_engine(folders).search([problem], strategy, 4, **OPTIONS)
        assert alone.ledger == result.ledger


def test_a_sliding_window_is_billed_as_it_is_read(tmp_path):
    """(query, key) pairs that each layer is given, rows, and rows through the head: all on the bill."""
    fields = {"use_sliding_window": True, "sliding_window": 21, "max_window_layers": 1, "head_dim": 8}
    llm = load_llm(tiny_family(tmp_path, "Qwen2ForCausalLM", **fields))
    trunk, lm_head = llm.runner.parts.decoder._trunk, llm.runner.parts.lm_head
    attend, logits = trunk._attend, lm_head.logits
    pairs, num_rows, num_head_rows = {False: 0, True: 0}, 0, 0  # pairs by whether the layer has a window

    def counted_attend(work, k, v, plan, parts):
        nonlocal num_rows
        has_window = k.data_ptr() != llm.runner.pool.k.data_ptr()
        for part in parts or [plan]:
            rows = int(part.items[:, 1].max())
            pairs[has_window] += sum(map(len, visible_slots(part, llm.runner.tree.block_size, rows)))
            num_rows += 0 if has_window else rows
        attend(work, k, v, plan, parts)

    def counted_logits(hidden, rows):
        nonlocal num_head_rows
        num_head_rows += len(rows)
        return logits(hidden, rows)

    trunk._attend, lm_head.logits = counted_attend, counted_logits
    ledger = Ledger()
    branch = llm.open(list(range(3, 36)), ledger=ledger)
    beams = branch.fork(3)
    llm.generate(beams, max_tokens=20)
    llm.append(beams[:1], [[5] * 40])
    llm.next_logits(beams)
    shape = llm.runner.shape
    assert shape.windows == (21,)
    assert 0 < pairs[True] < pairs[False] / 1.5
    matmul = 2 * ((shape.num_matmul_params - shape.num_head_params) * num_rows + shape.num_head_params * num_head_rows)
    assert ledger.total_flops == matmul + attention_flops(shape, pairs[False] + pairs[True])
