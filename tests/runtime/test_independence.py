"""A problem's result does not depend, to the bit, on what else runs, on batch limits or on the prefix cache."""

import random

import pytest
import torch

from engine.accounting import Ledger
from engine.runtime import Batcher, ModelPolicy
from engine.search import BeamSearch, BestOfN, Lookahead
from engine.tasks import get_task, take_problems

from .builders import PROBLEMS, assert_idle, fingerprint, load_engine, models, runners, searches

STRATEGIES = [BestOfN(), BeamSearch(width=2), Lookahead(width=2, lookahead=1)]
MANY = PROBLEMS + take_problems(get_task("walks"), "test", 64 - len(PROBLEMS))
by_name = pytest.mark.parametrize("strategy", STRATEGIES, ids=lambda strategy: strategy.name)
OPTIONS = {"max_tokens": 24, "seed": 3}


def alone(folders, strategy, problems, **options) -> dict[str, str]:
    """Each problem by itself, with nothing cached."""
    engine = load_engine(folders, **options)
    results = {}
    for problem in problems:
        (result,) = engine.search([problem], strategy, 4, **OPTIONS)
        results[problem.id] = fingerprint(result)
        for llm in models(engine):
            llm.clear_cache()
    return results


def together(engine, problems, strategy) -> dict[str, str]:
    results = engine.search(problems, strategy, 4, **OPTIONS)
    assert [result.problem for result in results] == problems
    assert_idle(*runners(engine))
    return {result.problem.id: fingerprint(result) for result in results}


@by_name
def test_any_batch_and_any_order(folders, strategy):
    want = alone(folders, strategy, PROBLEMS)
    assert len(set(want.values())) == len(PROBLEMS)
    rng = random.Random(0)
    for size in (7, 64):
        problems = PROBLEMS + rng.sample(MANY[len(PROBLEMS) :], size - len(PROBLEMS))
        rng.shuffle(problems)
        got = together(load_engine(folders), problems, strategy)
        assert {name: got[name] for name in want} == want


@by_name
@pytest.mark.parametrize(("max_batch", "max_chunk"), [(1, 1), (3, 5), (7, 17)])
def test_any_batch_limit(folders, strategy, max_batch, max_chunk):
    want = alone(folders, strategy, PROBLEMS)
    engine = load_engine(folders, max_batch=max_batch, max_chunk=max_chunk)
    assert together(engine, PROBLEMS, strategy) == want


@by_name
def test_bfloat16(folders, strategy):
    want = alone(folders, strategy, PROBLEMS, dtype="bfloat16")
    engine = load_engine(folders, dtype="bfloat16", max_chunk=9)
    assert together(engine, MANY[:20], strategy).items() >= want.items()


@pytest.mark.parametrize("strategy", STRATEGIES[:2], ids=lambda strategy: strategy.name)
def test_trunk_scores(folders, strategy):
    """Scores that come out of the decode pass are as independent as the PRM's."""
    want = {}
    for problem in PROBLEMS:
        engine = load_engine(folders, has_trunk_head=True)
        (result,) = engine.search([problem], strategy, 4, verifier="trunk", **OPTIONS)
        want[problem.id] = fingerprint(result)
        assert any(candidate.scores for candidate in result.candidates)
    engine = load_engine(folders, has_trunk_head=True, max_batch=6, max_chunk=11)
    results = engine.search(MANY[:16], strategy, 4, verifier="trunk", **OPTIONS)
    assert {result.problem.id: fingerprint(result) for result in results}.items() >= want.items()


class WithoutReuse:
    """A KV tree that finds no prefix."""

    def __init__(self, tree):
        self.tree = tree

    def open(self, tokens):
        return self.tree.open(tokens, reuse=False)

    def __getattr__(self, name):
        return getattr(self.tree, name)


@by_name
def test_prefix_cache_on_and_off(folders, strategy):
    """Whole blocks of another problem's prompt are used as they are, and change no bit."""
    on = load_engine(folders)
    first = together(on, PROBLEMS, strategy)
    second = together(on, PROBLEMS[::-1], strategy)  # all prompts cached now
    off = load_engine(folders)
    for runner in runners(off):
        runner.store.tree = WithoutReuse(runner.tree)
    assert first == second == together(off, PROBLEMS, strategy)

    def prefilled(engine):
        return sum(r.ledger.tokens["prefilled"] for r in engine.search(PROBLEMS, strategy, 4, **OPTIONS))

    assert prefilled(on) < prefilled(off)


def test_a_prompt_that_continues_into_another_problems_answer(folders):
    """A prompt of whole blocks, and one that goes on as a live branch of the first was sampled."""
    llm = load_engine(folders).policy
    prompt = llm.encode("?5?2?=c;d3?1?4?\n")
    assert len(prompt) == 16
    branches = llm.open(prompt).fork(8)
    llm.generate(branches, max_tokens=40)
    branch = max(branches, key=lambda branch: branch.num_tokens)
    assert branch.num_tokens >= 48
    longer = [*branch.token_ids, 5]
    cached = llm.open(longer)
    found = llm.next_logits([cached])
    assert cached.ledger.tokens["prefilled"] < len(longer) - 16, "sampled blocks were found"
    fresh = load_engine(folders).policy
    assert (found == fresh.next_logits([fresh.open(longer)])).all()


def test_the_state_at_a_prompts_end_is_what_its_logits_are_made_of(folders):
    llm = load_engine(folders).policy
    branches = [llm.open("473;+38;*27;-12\n"), llm.open("5;+7\n")]
    request = llm.queue_logits(branches)
    llm.run(request)
    found, logits = torch.stack(request.logits), llm.next_logits(branches)
    assert found.shape == (len(branches), llm.config.vocab_size + llm.config.hidden_size)
    assert (found[:, : llm.config.vocab_size] == logits).all()
    states = found[:, llm.config.vocab_size :].contiguous()
    made = llm.runner.parts.lm_head.logits(states, torch.arange(len(states)))
    torch.testing.assert_close(made, logits)
    ledger = Ledger()
    drawn = []

    async def read():
        drawn.append(await ModelPolicy(llm).prompt_state(llm.open("473;+38;*27;-12\n", ledger=ledger)))

    coroutine = read()
    request = coroutine.send(None)
    llm.run(request)
    with pytest.raises(StopIteration):
        coroutine.send(None)
    torch.testing.assert_close(torch.tensor(drawn[0]), states[0])
    assert ledger.tokens["prefilled"] + ledger.tokens["cached"] == 16


def test_the_same_seed_twice_and_another(folders):
    engine = load_engine(folders)
    trees = [
        fingerprint(engine.search(PROBLEMS[:1], BeamSearch(width=2), 4, max_tokens=24, seed=seed)[0])
        for seed in (0, 0, 1)
    ]
    assert trees[0] == trees[1]
    assert trees[0] != trees[2]


def test_raising_the_budget_keeps_the_first_samples(folders):
    engine = load_engine(folders)
    few, many = (engine.search(PROBLEMS[:2], BestOfN(), budget, **OPTIONS) for budget in (3, 9))
    for small, large in zip(few, many, strict=True):
        assert len(large.candidates) == 9
        assert large.candidates[:3] == small.candidates
        assert len({candidate.text for candidate in large.candidates}) > 1


def test_searches_of_different_kinds_side_by_side(folders):
    """One batcher, three strategies at once, each as if alone."""
    engine = load_engine(folders)
    kinds = [(strategy, problem) for strategy in STRATEGIES for problem in PROBLEMS]
    mixed = [next(searches(engine, [problem], strategy, 4, **OPTIONS)) for strategy, problem in kinds]
    got = dict(Batcher().run(models(engine), mixed, rows_each=4))
    for strategy in STRATEGIES:
        want = alone(folders, strategy, PROBLEMS)
        for index, (kind, problem) in enumerate(kinds):
            if kind is strategy:
                assert fingerprint(got[index]) == want[problem.id]
