"""A KV pool that is too small for what runs at once: everything ends, and nothing comes out differently."""

import random

import pytest
import torch

from engine.model import Placement
from engine.runtime import Batcher, PoolTooSmall
from engine.runtime.preemption import choose_victim
from engine.search import DVTS, BeamSearch, BestOfN, Lookahead
from engine.types import GREEDY, Sampling

from .builders import PROBLEMS, assert_idle, bound_ticks, fingerprint, load_engine, load_llm, models, runners, searches

NATIVE = Placement(torch.device("cpu"), "native")
STRATEGIES = [BestOfN(), BeamSearch(width=2), Lookahead(width=2, lookahead=1), DVTS(width=4)]
by_name = pytest.mark.parametrize("strategy", STRATEGIES, ids=lambda strategy: strategy.name)
BUDGET = 16
OPTIONS = {"max_tokens": 48, "seed": 1}
LEAST = 15  # blocks that hold one prompt and one answer, cut into many steps


def run_all(engine, strategy, rows_each=1, **options):
    """All problems at once, whatever room there is; results by problem id."""
    coroutines = list(searches(engine, PROBLEMS, strategy, BUDGET, **{**OPTIONS, **options}))
    results = dict(Batcher().run(models(engine), coroutines, rows_each))
    for result in results.values():
        if isinstance(result, Exception):
            raise result
    assert_idle(*runners(engine))
    return {result.problem.id: fingerprint(result) for result in results.values()}, results.values()


@by_name
@pytest.mark.parametrize("sampling", [GREEDY, Sampling()], ids=["greedy", "sampled"])
def test_a_quarter_of_the_pool_gives_the_same_tokens(folders, strategy, sampling):
    roomy = load_engine(folders, num_blocks=2048)
    want, results = run_all(roomy, strategy, sampling=sampling)
    assert all(runner.num_suspensions == 0 for runner in runners(roomy))
    assert all(result.ledger.tokens["recomputed"] == 0 for result in results if strategy.lookahead == 0)

    demands = [runner.max_used for runner in runners(roomy)]
    num_blocks, prm_blocks = (max(demand // 4, LEAST) for demand in demands)
    tight = load_engine(folders, num_blocks=num_blocks, prm_blocks=prm_blocks, max_chunk=24)
    got, results = run_all(tight, strategy, sampling=sampling)
    assert got == want
    assert demands[0] >= 2 * num_blocks
    assert tight.policy.runner.num_suspensions > 0
    assert sum(result.ledger.tokens["recomputed"] for result in results) > 0


@by_name
def test_the_verifiers_pool_alone_is_small(folders, strategy):
    roomy = load_engine(folders)
    want, _ = run_all(roomy, strategy)
    demand = roomy.prm.runner.max_used
    tight = load_engine(folders, prm_blocks=max(demand // 4, LEAST), max_chunk=10)
    got, results = run_all(tight, strategy)
    assert got == want
    assert demand > 2 * tight.prm.runner.tree.num_blocks
    assert tight.policy.runner.num_suspensions == 0
    if strategy.stop_at_step:  # whole answers are scored once, and never needed again
        assert sum(result.ledger.tokens["recomputed"] for result in results) > 0


def test_one_search_after_the_other_through_the_engine(folders):
    want = [fingerprint(r) for r in load_engine(folders).search(PROBLEMS, BestOfN(), BUDGET, **OPTIONS)]
    tight = load_engine(folders, num_blocks=16, max_batch=9)
    assert [fingerprint(r) for r in tight.search(PROBLEMS, BestOfN(), BUDGET, **OPTIONS)] == want
    assert tight.policy.runner.num_suspensions > 0
    assert_idle(*runners(tight))


@pytest.mark.parametrize(
    ("seed", "device"),
    [*((seed, "cpu") for seed in range(6)), *((seed, NATIVE) for seed in (2, 3))],
    ids=lambda value: "the path of a GPU" if value is NATIVE else str(value),
)
def test_random_lives_in_a_small_pool(folders, seed, device):
    """Branches opened, forked, fed, sampled, asked and closed at random, in a pool of any size that holds one."""
    rooms = [4096, random.Random(seed).randint(14, 30)]
    tokens, llms = [], []
    for num_blocks in rooms:
        rng = random.Random(seed)
        llm = load_llm(folders.policy, num_blocks=num_blocks, max_batch=rng.choice([2, 8, 64]), device=device)
        llm.runner.max_chunk = rng.choice([3, 20, 1024])
        bound_ticks(llm.runner)
        tokens.append(live(llm, rng))
        llms.append(llm)
    if device != "cpu":  # torch's products there are not the same bits in every batch
        tokens = [
            [[getattr(s, "token_ids", s) for s in each] for each in log if isinstance(each, list)] for log in tokens
        ]
    assert tokens[0] == tokens[1]
    assert llms[0].runner.num_suspensions == 0
    for llm in llms:
        assert_idle(llm.runner)


def live(llm, rng: random.Random) -> list:
    """What came out of a random life: sampled tokens, and logits as bytes."""
    branches, log = [], []
    for _ in range(25):
        if not branches or (len(branches) < 20 and rng.random() < 0.2):
            prompt = [rng.randrange(3, 25) for _ in range(rng.randint(1, 40))]
            branches.append(llm.open(prompt))
            branches += branches[-1].fork(rng.randint(1, 6))
        some = rng.sample(branches, rng.randint(1, len(branches)))
        some = [branch for branch in some if branch.num_tokens < 90]
        action = rng.choice(["extend", "extend", "feed", "ask", "fork", "close"])
        if action == "extend" and some:
            log.append(llm.generate(some, stop=["\n"], max_tokens=rng.randint(1, 30), seed=rng.randint(0, 9)))
        elif action == "feed" and some:
            llm.append(some, [[rng.randrange(3, 25) for _ in range(rng.randint(1, 12))] for _ in some])
        elif action == "ask" and some:
            log.append(llm.next_logits(some).numpy().tobytes())
        elif action == "fork" and some:
            branches += some[0].fork(rng.randint(1, 3))
        elif action == "close" and some:
            branches.remove(some[-1])
            some[-1].close()
    log.append([branch.token_ids for branch in branches])
    for branch in branches:
        branch.close()
    return log


def test_a_problem_larger_than_the_pool(folders):
    """Refused at once, by name and number; the engine goes on with the next."""
    engine = load_engine(folders, num_blocks=6, prm_blocks=64)
    options = {"max_tokens": 20}
    with pytest.raises(PoolTooSmall, match=r"needs 8 KV blocks, the pool has 6"):
        engine.search([PROBLEMS[3], PROBLEMS[0]], BestOfN(), 4, max_tokens=70)
    assert_idle(*runners(engine))
    with pytest.raises(PoolTooSmall, match=r"a branch of 215 tokens needs 14 KV blocks, the pool has 6"):
        engine.policy.next_logits([engine.policy.open([4] * 215)])
    (result,) = engine.search([PROBLEMS[3]], BestOfN(), 4, **options)
    assert len(result.candidates) == 4


def test_a_problem_larger_than_the_verifiers_pool(folders):
    engine = load_engine(folders, prm_blocks=3)
    with pytest.raises(PoolTooSmall, match="the pool has 3"):
        engine.search(PROBLEMS[:1], BestOfN(), 2, max_tokens=70)
    assert_idle(*runners(engine))
    assert len(engine.search([PROBLEMS[3]], BestOfN(), 2, max_tokens=20)) == 1


def test_a_request_that_is_refused_changes_nothing(folders):
    """The first branch would fit, the second would not: neither is touched."""
    llm = load_llm(folders.policy, num_blocks=8)
    short, long = llm.open([4] * 10), llm.open([4] * 100)
    calls = [
        lambda: llm.generate([short, long], max_tokens=60),
        lambda: llm.append([short, long], [[5] * 10, [5] * 60]),
        lambda: llm.next_logits([short, llm.open([4] * 130)]),
    ]
    for call in calls:
        with pytest.raises(PoolTooSmall, match="the pool has 8"):
            call()
        assert not llm.runner.has_work
    assert (short.num_tokens, long.num_tokens) == (10, 100)
    assert len(llm.generate([short], max_tokens=3)[0].token_ids) <= 3


def test_the_oldest_problem_is_not_suspended(folders):
    """The search that was opened first runs as if alone: it never re-computes a sampled token."""
    engine = load_engine(folders, num_blocks=18)
    coroutines = list(searches(engine, PROBLEMS, BestOfN(), 3, **OPTIONS))
    results = dict(Batcher().run(models(engine), coroutines, rows_each=1))
    assert engine.policy.runner.num_suspensions > 0
    assert results[0].ledger.tokens["recomputed"] == 0


def test_equal_segments_give_way_in_the_order_they_came(folders):
    """Every run repeats it: of several ranks each gives up the same segment."""
    llm = load_llm(folders.policy)
    store, branches = llm.runner.store, llm.open("1+2\n").fork(12)
    llm.append(branches, [[5, 6]] * 12)
    for branch in branches:
        assert choose_victim(store, (), frozenset(), may_suspend=True) is branch.segment
        branch.close()
