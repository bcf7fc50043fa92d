"""Searches that end once the verifier is sure of the answer that leads the vote."""

import pytest

from engine.search import DVTS, Adaptive, BeamSearch, BestOfN, Lookahead, Majority, Rebase, Revisions
from engine.search.draw import growing

from .fakes import FakePolicy, FakeVerifier, hashed_judge, random_draw, scripted_draw, search

SCORED = [
    BestOfN,
    BeamSearch,
    Rebase,
    lambda **options: BeamSearch(width=2, **options),
    lambda **options: Lookahead(width=2, **options),
    lambda **options: DVTS(width=2, **options),
    lambda **options: Adaptive(batch=3, **options),
    lambda **options: Revisions(parallel=2, **options),
]
by_strategy = pytest.mark.parametrize("make", SCORED, ids=lambda make: make().name)


def whole(texts):
    return scripted_draw({(index,): text for index, text in enumerate(texts)})


def find(strategy, budget, **options):
    return search(strategy, budget, reviser=FakePolicy(random_draw), **options)


def test_whole_answers_stop_after_the_batch_in_which_the_leader_is_sure():
    judge = {"1": 0.6, "2": 0.96, "3": 0.1}
    policy = FakePolicy(whole("1113" + "2" * 12))
    result = search(BestOfN(stop=0.95), 16, policy=policy, judge=judge)
    # After eight answers "2" leads with 3.84 over 1.8, and its best candidate has 0.96.
    assert [call["num_branches"] for call in policy.extends] == [4, 4]
    assert (result.answer, result.num_generations, len(result.candidates)) == ("2", 8, 8)
    assert result.ledger.tokens["generated"] == sum(each.num_tokens for each in result.candidates)


def test_a_sure_answer_that_does_not_lead_the_vote_ends_nothing():
    judge = {"1": 0.9, "2": 0.96}
    result = search(BestOfN(stop=0.95), 8, whole("11121111"), judge)
    assert (result.answer, result.num_generations) == ("1", 8)
    assert search(BestOfN(stop=0.95, vote="naive"), 8, whole("11121111"), judge).num_generations == 4


def test_an_answer_leads_in_whatever_way_it_is_written():
    judge = {"1": 0.9, "one": 0.9, "2": 0.96}
    draw = whole(["1", "one", "2", "2", *"1111"])
    assert search(BestOfN(stop=0.95), 8, draw, judge).num_generations == 4

    def classify(answers):
        return [0 if answer in ("1", "one") else 1 for answer in answers]

    more = whole(["1", "one", "1", "2", *"1111"])
    assert search(BestOfN(stop=0.95, vote="majority"), 8, more, judge, classify=classify).num_generations == 8


# The first subtree, or beams of four: "a" ends sure in its second round, while others go on.
TREE = {(index,): "a\n" if index == 0 else "b\n" for index in range(16)}
TREE |= {(0, child): "1" if child == 0 else "c\n" for child in range(16)}
TREE |= {(0, child, grandchild): "2" for child in range(16) for grandchild in range(16)}
TREE |= {(index, child): "3" for index in range(1, 16) for child in range(16)}
TREE_SCORES = {"a\n": 0.5, "b\n": 0.2, "a\n1": 0.97, "a\nc\n": 0.4, "b\n3": 0.1}


@pytest.mark.parametrize("strategy", [BeamSearch, DVTS, Rebase])
def test_trees_close_what_is_live_and_draw_no_more(strategy):
    policy = FakePolicy(scripted_draw(TREE))
    result = search(strategy(stop=0.95), 16, policy=policy, judge=TREE_SCORES)
    assert [call["num_branches"] for call in policy.extends] == [4, 4]
    assert (result.answer, result.num_generations, result.budget) == ("1", 4, 16)
    live = [node for node in result.tree.nodes if node.step_text == "c\n"]
    assert live
    assert {node.status for node in live} == {"pruned"}
    assert search(strategy(), 16, scripted_draw(TREE), lambda text: TREE_SCORES.get(text, 0.1)).num_generations == 16


def test_trees_that_are_not_sure_grow():
    policy = FakePolicy(whole(["1"] * 64))
    result = search(BeamSearch(stop=0.95), 64, policy=policy, judge={"1": 0.9})
    assert [call["num_branches"] for call in policy.extends] == [4, 12, 48]
    assert (len(result.candidates), result.num_generations) == (64, 64)
    policy = FakePolicy(whole(["1"] * 12))
    search(DVTS(width=3, stop=0.95), 12, policy=policy, judge={"1": 0.9})
    assert [call["num_branches"] for call in policy.extends] == [3, 3, 3, 3]


def test_the_parts_of_a_budget():
    assert growing(64, 4) == [4, 12, 48]
    assert growing(100, 4) == [6, 19, 75]
    assert growing(15, 4) == [15]
    assert growing(3, 4) == [3]
    assert growing(36, 4, unit=2) == [8, 28]
    assert Lookahead(width=2, lookahead=2, stop=0.5).parts(64) == [15, 49]
    assert BeamSearch(width=8, stop=0.5).parts(64) == [16, 48]
    assert BeamSearch(width=0, stop=0.5).parts(16) == [4, 12]
    assert BeamSearch(width=8).parts(64) == [64]


@by_strategy
def test_one_that_is_never_sure_spends_all(make):
    result = find(make(stop=1.0), 12, judge=lambda text: hashed_judge(text) / 2)
    assert result.num_generations == 12


@by_strategy
@pytest.mark.parametrize("seed", range(8))
def test_an_early_end_spends_less_and_is_sure(make, seed):
    result = find(make(stop=0.7), 12, seed=seed)
    assert result.num_generations <= 12
    assert result.ledger.tokens["generated"] == sum(node.num_tokens for node in result.tree.nodes)
    leading = [each.agg_score for each in result.candidates if each.answer == result.answer]
    assert result.num_generations == 12 or max(leading) >= 0.7


@pytest.mark.parametrize("seed", range(8))
def test_the_answers_are_the_first_of_the_whole_budget(seed):
    early = search(BestOfN(stop=0.8), 16, seed=seed)
    assert early.candidates == search(BestOfN(), 16, seed=seed).candidates[: early.num_generations]


def test_a_search_that_goes_on_from_a_sure_one_spends_nothing_more():
    start = search(BestOfN(), 4, whole("1111"), {"1": 0.99})
    policy, verifier = FakePolicy(random_draw), FakeVerifier(hashed_judge)
    for strategy in (BestOfN(stop=0.95), BeamSearch(stop=0.95), Adaptive(stop=0.95)):
        result = search(strategy, 16, policy=policy, verifier=verifier, start=start)
        assert (result.num_generations, result.answer) == (4, "1")
    assert (policy.num_calls, verifier.num_calls) == (0, 0)


def test_what_scores_nothing_cannot_be_sure():
    assert Majority().stop is None
    with pytest.raises(ValueError, match="stop has no effect with this adaptive, which scores nothing"):
        Adaptive(vote="majority", stop=0.9)
    for bad in (0, -1, 1.5, "much", True):
        with pytest.raises(ValueError, match="stop must be"):
            BestOfN(stop=bad)
