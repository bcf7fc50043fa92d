"""What holds for every search: no branch outlives it, and no budget is overshot."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.search import DVTS, Adaptive, BeamSearch, BestOfN, Lookahead, Majority, Rebase

from .fakes import FakePolicy, FakeVerifier, drive, hashed_judge, random_draw, search, start

STRATEGIES = [Majority(), BestOfN(), BeamSearch(width=2), Lookahead(width=2, lookahead=2), DVTS(width=2)]
STRATEGIES += [Rebase(), Adaptive(batch=3), BeamSearch(width=2, stop=0.8), DVTS(width=2, stop=0.9), BestOfN(stop=0.9)]
by_name = pytest.mark.parametrize("strategy", STRATEGIES, ids=lambda strategy: strategy.name)
BUDGET = 8


def count_awaits(strategy) -> int:
    policy, verifier = FakePolicy(random_draw), FakeVerifier(hashed_judge)
    drive(start(strategy, policy, verifier, budget=BUDGET))
    assert policy.num_calls >= 2
    return policy.num_calls + verifier.num_calls


@by_name
@pytest.mark.parametrize("throw", [False, True], ids=["close", "throw"])
def test_a_search_aborted_at_any_await_leaves_no_branch_open(strategy, throw):
    for num_awaits in range(count_awaits(strategy)):
        policy, verifier = FakePolicy(random_draw), FakeVerifier(hashed_judge)
        coroutine = start(strategy, policy, verifier, budget=BUDGET)
        for _ in range(num_awaits + 1):
            coroutine.send(None)
        if throw:
            with pytest.raises(KeyboardInterrupt):
                coroutine.throw(KeyboardInterrupt())
        else:
            coroutine.close()
        assert (policy.num_open, verifier.num_open) == (0, 0)


@by_name
def test_a_call_that_fails_leaves_no_branch_open(strategy):
    num_failures = 0
    for fail_at in range(count_awaits(strategy)):
        for which in (0, 1):
            policy = FakePolicy(random_draw, fail_at if which == 0 else None)
            verifier = FakeVerifier(hashed_judge, fail_at if which == 1 else None)
            try:
                drive(start(strategy, policy, verifier, budget=BUDGET))
            except RuntimeError:
                num_failures += 1
            assert (policy.num_open, verifier.num_open) == (0, 0)
    assert num_failures == count_awaits(strategy), "every call was made to fail once"


def test_a_branch_that_cannot_be_closed_does_not_keep_the_others_open():
    policy, verifier = FakePolicy(random_draw), FakeVerifier(hashed_judge)
    coroutine = start(BeamSearch(width=2), policy, verifier, budget=4)
    coroutine.send(None)
    coroutine.send(None)  # four branches are being extended
    assert policy.num_open == 4
    close, num_left = policy.close_branch, []

    def failing_close(branch):
        close(branch)
        if not num_left:
            num_left.append(policy.num_open)
            raise RuntimeError("fake failure")

    policy.close_branch = failing_close
    with pytest.raises(RuntimeError):
        coroutine.close()
    assert num_left == [3]
    assert policy.num_open == 0


def drawing(share_ended: float, share_errors: float):
    """Short lines, a share of which end the text or are errors."""

    def draw(key, text, new_text):
        rng = random.Random(f"{key}/{text}")
        if rng.random() < share_errors:
            return "!"
        return rng.choice("12") * rng.randint(1, 3) + ("" if rng.random() < share_ended else "\n")

    return draw


@st.composite
def strategies_with_budget(draw):
    width, budget = draw(st.integers(1, 5)), draw(st.integers(1, 24))
    limits = {"width": width, "max_rounds": draw(st.integers(1, 6))}
    lookahead = draw(st.integers(0, 3))
    return draw(
        st.sampled_from(
            [
                (Majority(), budget),
                (BestOfN(), budget),
                (BeamSearch(**limits), max(width, budget)),
                (BeamSearch(**limits, max_duplicates=draw(st.integers(0, 3))), max(width, budget)),
                (Rebase(temperature=draw(st.sampled_from([1e-3, 0.2, 10.0])), max_rounds=limits["max_rounds"]), budget),
                (Adaptive(batch=width, confidence=draw(st.sampled_from([0.6, 0.9, 1.0]))), budget),
                (DVTS(**limits), budget * width),
                (Lookahead(**limits, lookahead=lookahead), max(width, budget) * (lookahead + 1)),
            ]
        )
    )


@settings(max_examples=150)
@given(
    strategies_with_budget(),
    st.sampled_from([0.0, 0.1, 0.5, 0.9]),
    st.sampled_from([0.0, 0.0, 0.3]),
    st.integers(0, 5),
    st.integers(1, 30),
)
def test_a_budget_is_never_overshot(strategy_and_budget, share_ended, share_errors, seed, max_tokens):
    strategy, budget = strategy_and_budget
    policy = FakePolicy(drawing(share_ended, share_errors))
    result = search(strategy, budget, policy=policy, seed=seed, max_tokens=max_tokens)

    num_beams = budget // (strategy.lookahead + 1)
    assert 1 <= len(result.candidates) <= num_beams
    sampled = [call for call in policy.extends if call["purpose"] == "generated"]
    rollouts = [call for call in policy.extends if call["purpose"] == "lookahead"]
    if isinstance(strategy, Adaptive):
        assert sum(call["num_branches"] for call in sampled) == result.num_generations <= budget
        assert all(call["num_branches"] <= strategy.batch for call in sampled)
        check_tree(result)
        return
    assert sampled[0]["num_branches"] == num_beams
    assert result.num_generations == num_beams * (strategy.lookahead + 1) <= budget
    assert len(sampled) <= strategy.max_rounds
    # An answer holds its slot from its first step on: sampled in a round, or ended before it.
    num_ended = 0
    for depth, call in enumerate(sampled, start=1):
        assert call["num_branches"] + num_ended <= num_beams
        if strategy.stop_at_step:
            num_ended += sum(len(candidate.address) == depth for candidate in result.candidates)
    # A round of rollouts is at most as wide as the beams, and there are `lookahead` of them per round.
    assert all(call["num_branches"] <= num_beams for call in rollouts)
    assert len(rollouts) <= strategy.lookahead * len(sampled)

    assert all(candidate.num_tokens <= max_tokens for candidate in result.candidates)
    assert result.ledger.tokens["generated"] == sum(node.num_tokens for node in result.tree.nodes)
    check_tree(result)


def check_tree(result):
    """The tree's own rules, and that candidates are its final nodes."""
    nodes = result.tree.nodes
    assert nodes[0].status == "root"
    assert len({node.address for node in nodes}) == len(nodes)
    parents = {node.parent for node in nodes}
    for index, node in enumerate(nodes[1:], start=1):
        assert node.parent < index
        assert nodes[node.parent].address == node.address[:-1]
        assert (index in parents) == (node.status == "kept")
    final = {node.address: index for index, node in enumerate(nodes) if node.status == "final"}
    assert set(final) == {candidate.address for candidate in result.candidates}
    for candidate in result.candidates:
        path = [nodes[index] for index in result.tree.path(final[candidate.address])]
        assert candidate.text == "".join(node.step_text for node in path)
        assert candidate.num_tokens == sum(node.num_tokens for node in path)
        assert candidate.finish == path[-1].finish
        assert list(candidate.scores) == [node.score for node in path if node.score is not None]
        assert (candidate.answer is None) == (candidate.finish != "eos")
    assert (result.answer is None) == all(candidate.finish != "eos" for candidate in result.candidates)
    assert (result.answer is None) == (result.tree.best is None)
    if result.tree.best is not None:
        assert nodes[result.tree.best].status == "final"
