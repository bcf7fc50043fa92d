"""What a search does, step by step, on scripts."""

import math

import pytest

from engine.accounting import Ledger
from engine.config import SearchConfig
from engine.search import DVTS, BeamSearch, BestOfN, Lookahead, Majority, branch_key, check_arguments
from engine.types import GREEDY, Problem, Sampling

from .fakes import (
    PROBLEM,
    FakePolicy,
    FakeVerifier,
    hashed_judge,
    random_draw,
    scripted_draw,
    search,
)

STRATEGIES = [Majority(), BestOfN(), BeamSearch(width=2), Lookahead(width=2), DVTS(width=2)]
by_name = pytest.mark.parametrize("strategy", STRATEGIES, ids=lambda strategy: strategy.name)


def statuses(result) -> dict[tuple[int, ...], str]:
    return {node.address: node.status for node in result.tree.nodes}


def answers(result) -> list[str | None]:
    return [candidate.answer for candidate in result.candidates]


# Four first steps; (1,) and (3,) are best; each goes on with two, all of which end.
BEAM_SCRIPT = {(0,): "a\n", (1,): "b\n", (2,): "c\n", (3,): "d\n"}
BEAM_SCRIPT |= {(1, 0): "1", (1, 1): "2", (3, 0): "2", (3, 1): "3"}
BEAM_SCORES = {"a\n": 0.1, "b\n": 0.8, "c\n": 0.2, "d\n": 0.9}
BEAM_SCORES |= {"b\n1": 0.7, "b\n2": 0.3, "d\n2": 0.3, "d\n3": 0.5}


def test_beam_keeps_the_best_and_expands_each_to_its_width():
    policy = FakePolicy(scripted_draw(BEAM_SCRIPT))
    result = search(BeamSearch(width=2), 4, judge=BEAM_SCORES, policy=policy)
    assert [call["num_branches"] for call in policy.extends] == [4, 4]
    assert statuses(result) == {
        (): "root",
        **{(0,): "pruned", (1,): "kept", (2,): "pruned", (3,): "kept"},
        **{(3, 0): "final", (3, 1): "final", (1, 0): "final", (1, 1): "final"},
    }
    assert answers(result) == ["2", "3", "1", "2"]  # the better parent's children first
    assert result.answer == "1"  # 0.7 over 0.3 + 0.3 and 0.5
    assert [result.tree.nodes[index].address for index in result.tree.path(result.tree.best)] == [
        (),
        (1,),
        (1, 0),
    ]
    assert result.candidates[2].text == "b\n1"
    assert result.candidates[2].scores == (0.8, 0.7)
    assert result.candidates[2].agg_score == 0.7
    assert result.correct is True
    assert result.ledger.tokens["generated"] == 4 * 2 + 4 * 2
    assert (result.strategy, result.budget, result.seed, result.num_errors) == ("beam", 4, 0, 0)


def test_the_vote_option_decides():
    options = {"draw": scripted_draw(BEAM_SCRIPT), "judge": BEAM_SCORES | {"b\n2": 0.4, "d\n2": 0.4}}
    assert search(BeamSearch(width=2, vote="naive"), 4, **options).answer == "1"
    assert search(BeamSearch(width=2, vote="weighted"), 4, **options).answer == "2"
    options["judge"] = BEAM_SCORES
    assert search(BeamSearch(width=2, vote="weighted"), 4, **options).answer == "1"
    assert search(BeamSearch(width=2, vote="majority"), 4, **options).answer == "2"


def test_a_finished_answer_keeps_its_slot_and_the_last_parent_gets_what_is_left():
    script = {(0,): "9", (1,): "b\n", (2,): "c\n", (3,): "d\n", (2, 0): "7", (2, 1): "8", (1, 0): "6"}
    scores = {"9": 0.0, "b\n": 0.5, "c\n": 0.9, "d\n": 0.1, "c\n7": 0.5, "c\n8": 0.5, "b\n6": 0.5}
    policy = FakePolicy(scripted_draw(script))
    result = search(BeamSearch(width=2), 4, judge=scores, policy=policy)
    assert [call["num_branches"] for call in policy.extends] == [4, 3]
    assert [candidate.address for candidate in result.candidates] == [(0,), (2, 0), (2, 1), (1, 0)]


def test_fewer_live_steps_than_slots_do_not_refill_the_beams():
    script = {(0,): "a\n", (1,): "2", (2,): "3", (3,): "4", (0, 0): "5\n", (0, 1): "6"}
    script |= {(0, 0, 0): "7"}
    policy = FakePolicy(scripted_draw(script))
    result = search(BeamSearch(width=3), 4, judge=lambda text: 0.5, policy=policy)
    # Three of four slots are taken, so the one live step goes on with a single child.
    assert [call["num_branches"] for call in policy.extends] == [4, 1, 1]
    assert answers(result) == ["2", "3", "4", "7"]
    assert policy.forks == [4, 1, 1], "a single child is forked too"


def test_equal_scores_keep_the_earliest():
    script = {
        (0,): "a\n",
        (1,): "a\n",
        (2,): "a\n",
        (3,): "a\n",
        (0, 0): "1",
        (0, 1): "2",
        (1, 0): "2",
        (1, 1): "1",
    }
    result = search(BeamSearch(width=2), 4, scripted_draw(script), lambda text: 0.5)
    assert [statuses(result)[(i,)] for i in range(4)] == ["kept", "kept", "pruned", "pruned"]
    assert result.answer == "1"
    assert result.tree.nodes[result.tree.best].address == (0, 0)


def test_width_decides_who_survives():
    survivors = {}
    for width in (1, 2, 4):
        nodes = search(BeamSearch(width=width), 4, judge=hashed_judge).tree.nodes
        survivors[width] = {node.address for node in nodes if node.status == "kept"}
    assert survivors[1] != survivors[2] != survivors[4]


def test_max_rounds_ends_what_is_live_as_length():
    draw = scripted_draw(BEAM_SCRIPT)
    result = search(BeamSearch(width=2, max_rounds=1), 4, draw, BEAM_SCORES)
    assert [candidate.finish for candidate in result.candidates] == ["length"] * 4
    assert result.answer is None
    assert result.tree.best is None
    assert result.correct is False
    assert search(BeamSearch(width=2, max_rounds=2), 4, draw, BEAM_SCORES).answer == "1"


def test_max_tokens_bounds_the_whole_completion():
    policy = FakePolicy(scripted_draw(BEAM_SCRIPT))
    result = search(BeamSearch(width=2), 4, judge=BEAM_SCORES, policy=policy, max_tokens=3)
    assert [call["max_tokens"] for call in policy.extends] == [[3] * 4, [1] * 4]
    assert {candidate.finish for candidate in result.candidates} == {"length"}
    assert all(candidate.num_tokens == 3 for candidate in result.candidates)
    assert result.answer is None
    assert search(BeamSearch(width=2), 4, scripted_draw(BEAM_SCRIPT), BEAM_SCORES, max_tokens=4).answer == "1"


def test_a_step_that_ends_at_the_limit_goes_nowhere():
    result = search(BeamSearch(width=2), 4, scripted_draw(BEAM_SCRIPT), BEAM_SCORES, max_tokens=2)
    assert [candidate.finish for candidate in result.candidates] == ["length"] * 4
    assert {node.finish for node in result.tree.nodes[1:]} == {"length"}


def test_truncated_answers_are_listed_but_do_not_vote():
    script = {(0,): "1\n2222222", (1,): "1\n2222222", (2,): "1\n3"}
    for strategy in (Majority(), BestOfN()):
        result = search(strategy, 3, scripted_draw(script), lambda text: 0.5, max_tokens=6)
        assert [c.finish for c in result.candidates] == ["length", "length", "eos"]
        assert answers(result) == [None, None, "3"]
        assert result.answer == "3"


def test_only_finished_steps_are_judged():
    verifier = FakeVerifier(lambda text: 0.5)
    script = {(0,): "1\n", (1,): "222222222", (2,): "5", (3,): "6\n", (0, 0): "333333", (0, 1): "4"}
    result = search(BeamSearch(width=2), 4, scripted_draw(script), max_tokens=4, verifier=verifier)
    assert sorted(verifier.judged) == ["1\n", "1\n4", "5", "6\n"]
    whole = FakeVerifier(lambda text: 0.5)
    search(BestOfN(), 2, scripted_draw({(0,): "1\n22222222", (1,): "3"}), max_tokens=4, verifier=whole)
    assert whole.judged == ["3"], "no answer that was cut off is paid for"
    assert [candidate.scores for candidate in result.candidates] == [(), (0.5,), (0.5,), (0.5, 0.5)]


@pytest.mark.parametrize("strategy", [BestOfN(), BeamSearch(width=1)], ids=["best-of-n", "beam"])
def test_text_that_ends_in_the_delimiter_has_no_empty_last_step(strategy):
    script = {(0,): "a\nb\n", (0, 0): "b\n", (0, 0, 0): ""}
    if strategy.stop_at_step:
        script[(0,)] = "a\n"
    result = search(strategy, 1, scripted_draw(script), {"a\n": 0.2, "a\nb\n": 0.9})
    assert result.candidates[0].scores == (0.2, 0.9)
    assert result.candidates[0].agg_score == 0.9  # "last" reads the last real step
    assert result.candidates[0].address == (0, 0, 0)
    assert result.candidates[0].num_tokens == 5
    assert result.answer == "b"


def test_best_of_n_scores_once_at_the_end_and_draws_steps_as_a_chain():
    script = {(0,): "a\n1", (1,): "b\n2", (2,): "c\nd\n2"}
    scores = {"a\n": 0.1, "a\n1": 0.7, "b\n": 0.9, "b\n2": 0.3, "c\n": 0.9, "c\nd\n": 0.9, "c\nd\n2": 0.3}
    verifier, policy = FakeVerifier(scores.__getitem__), FakePolicy(scripted_draw(script))
    result = search(BestOfN(), 3, policy=policy, verifier=verifier)
    assert result.answer == "1"
    assert policy.num_calls == verifier.num_calls == 2  # open, and one call for all
    assert [node.address for node in result.tree.nodes] == [
        *[(), (0,), (0, 0), (1,), (1, 0)],
        *[(2,), (2, 0), (2, 0, 0)],
    ]
    assert [node.score for node in result.tree.nodes] == [None, 0.1, 0.7, 0.9, 0.3, 0.9, 0.9, 0.3]
    assert search(BestOfN(vote="majority"), 3, scripted_draw(script), scores).answer == "2"


def test_majority_counts_without_a_verifier():
    script = {(0,): "a\n1", (1,): "b\n2", (2,): "2"}
    result = search(Majority(), 3, scripted_draw(script))
    assert result.answer == "2"
    assert [candidate.scores for candidate in result.candidates] == [()] * 3
    assert result.tree.nodes[result.tree.best].address == (1, 0)


@pytest.mark.parametrize(("agg_strategy", "answer"), [("last", "1"), ("min", "2"), ("prod", "3"), ("mean", "4")])
def test_the_vote_sees_the_aggregation(agg_strategy, answer):
    script = {(0,): "a\nb\n1", (1,): "c\nd\n2", (2,): "3", (3,): "e\nf\n4"}
    scores = {"a\n": 0.1, "a\nb\n": 0.1, "a\nb\n1": 0.95}  # min 0.1, prod 0.01, mean 0.38
    scores |= {"c\n": 0.7, "c\nd\n": 0.7, "c\nd\n2": 0.7}  # prod 0.34, mean 0.7
    scores |= {"3": 0.69}
    scores |= {"e\n": 1.0, "e\nf\n": 0.9, "e\nf\n4": 0.3}  # min 0.3, prod 0.27, mean 0.73
    result = search(BestOfN(), 4, scripted_draw(script), scores, agg_strategy=agg_strategy)
    assert result.answer == answer


@pytest.mark.parametrize(("agg_strategy", "best"), [("last", 0), ("min", 1), ("prod", 2), ("mean", 3)])
def test_the_rank_sees_the_aggregation(agg_strategy, best):
    first, second = [0.1, 0.5, 0.45, 1.0], [0.9, 0.5, 0.7, 0.31]
    scores = {f"{i}\n": score for i, score in enumerate(first)}
    scores |= {f"{i}\n{i}\n": score for i, score in enumerate(second)}
    script = {(i,) + (0,) * depth: f"{i}\n" for i in range(4) for depth in range(2)}
    # With width 1 everyone goes on; in which order shows the rank.
    script |= {(i, 0, 0): str(i) for i in range(4)}
    scores |= {f"{i}\n{i}\n{i}": 0.5 for i in range(4)}
    result = search(BeamSearch(width=1), 4, scripted_draw(script), scores, agg_strategy=agg_strategy)
    assert result.candidates[0].address == (best, 0, 0)


# By its own score (0,) is best; where the greedy rollouts lead, (1,) is.
AHEAD_SCRIPT = {(0,): "a\n", (1,): "b\n", (0, 0): "1", (0, 1): "1", (1, 0): "2", (1, 1): "2"}
AHEAD_SCORES = {"a\n": 0.9, "b\n": 0.2, "a\nx\n": 0.3, "b\ny\n": 0.8, "a\n1": 0.5, "b\n2": 0.5}
AHEAD_GREEDY = {"a\n": "x\n", "b\n": "y\n", "a\nx\n": "u", "b\ny\n": "v\n"}


def test_lookahead_scores_a_step_by_where_it_leads():
    draw = scripted_draw(AHEAD_SCRIPT, AHEAD_GREEDY)
    assert search(BeamSearch(width=2), 2, draw, AHEAD_SCORES).answer == "1"
    policy, verifier = FakePolicy(draw), FakeVerifier(AHEAD_SCORES.__getitem__)
    result = search(Lookahead(width=2, lookahead=1), 4, policy=policy, verifier=verifier)
    assert result.answer == "2"
    assert [node.score for node in result.tree.nodes[1:3]] == [0.3, 0.8]
    assert [(call["num_branches"], call["purpose"]) for call in policy.extends] == [
        (2, "generated"),
        (2, "lookahead"),
        (2, "generated"),
    ]
    assert policy.extends[1]["sampling"] == GREEDY
    assert result.ledger.tokens["lookahead"] == 4
    assert result.ledger.tokens["generated"] == 4 + 4
    assert all("x" not in node.step_text and "y" not in node.step_text for node in result.tree.nodes)


def test_a_deeper_lookahead_looks_further_and_stops_where_the_text_ends():
    draw = scripted_draw(AHEAD_SCRIPT, AHEAD_GREEDY)
    scores = AHEAD_SCORES | {"a\nx\nu": 1.0, "b\ny\nv\n": 0.1}
    policy = FakePolicy(draw)
    result = search(Lookahead(width=2, lookahead=2), 6, judge=scores, policy=policy)
    assert result.answer == "1"
    assert [node.score for node in result.tree.nodes[1:3]] == [1.0, 0.1]
    policy = FakePolicy(scripted_draw(AHEAD_SCRIPT, AHEAD_GREEDY | {"b\ny\n": "v"}))
    search(Lookahead(width=2, lookahead=5), 12, judge=scores | {"b\ny\nv": 0.1}, policy=policy)
    rollouts = [call for call in policy.extends if call["purpose"] == "lookahead"]
    assert [call["num_branches"] for call in rollouts] == [2, 2], "both texts end after two steps"


def test_a_rollout_that_is_cut_off_counts_up_to_its_last_finished_step():
    greedy = AHEAD_GREEDY | {"a\n": "xxxxxxxx\n"}
    options = {"judge": AHEAD_SCORES, "max_tokens": 5}
    result = search(Lookahead(width=2), 4, scripted_draw(AHEAD_SCRIPT, greedy), **options)
    assert [node.score for node in result.tree.nodes[1:3]] == [0.9, 0.8]  # no rollout step to judge
    assert result.answer == "1"


def test_a_rollout_stays_within_the_limit_of_its_completion():
    draw = scripted_draw(AHEAD_SCRIPT, AHEAD_GREEDY | {"a\nx\n": "wwwww"})
    for max_tokens, scores in [(4, [0.3, 0.8]), (6, [0.3, 0.1])]:
        judge = AHEAD_SCORES | {"b\ny\nv\n": 0.1}  # a cut-off step is not in it
        policy = FakePolicy(draw)
        result = search(Lookahead(width=2, lookahead=2), 6, judge=judge, policy=policy, max_tokens=max_tokens)
        assert [node.score for node in result.tree.nodes[1:3]] == scores
        limits = [call["max_tokens"] for call in policy.extends if call["purpose"] == "lookahead"]
        # At a limit of 4 both are there after one step, and a second is not asked for.
        assert limits == [[2, 2]] if max_tokens == 4 else [[4, 4], [2, 2]]


def test_pruned_and_finished_branches_are_closed_before_the_next_round():
    policy = FakePolicy(scripted_draw(BEAM_SCRIPT))
    search(BeamSearch(width=2), 4, judge=BEAM_SCORES, policy=policy)
    assert [call["num_open"] for call in policy.extends] == [4, 4]


def test_without_rollouts_lookahead_is_beam_search():
    for seed in range(5):
        beam = search(BeamSearch(width=2), 8, seed=seed)
        ahead = search(Lookahead(width=2, lookahead=0), 8, seed=seed)
        assert (ahead.tree, ahead.candidates, ahead.ledger) == (beam.tree, beam.candidates, beam.ledger)


def test_dvts_groups_do_not_compete():
    policy = FakePolicy(scripted_draw(BEAM_SCRIPT | {(0, 0): "3", (0, 1): "3"}))
    scores = BEAM_SCORES | {"a\n": 0.85, "a\n3": 0.6}  # (0,) and (1,) share a group; (3,) and (0,) are best
    result = search(DVTS(width=2), 4, judge=scores | {"b\n": 0.8}, policy=policy)
    assert [statuses(result)[(i,)] for i in range(4)] == ["kept", "pruned", "pruned", "kept"]
    scores |= {"a\n": 0.1, "b\n": 0.2, "c\n": 0.8}  # now a beam keeps (2,) and (3,), of one group
    draw = scripted_draw(BEAM_SCRIPT | {(2, 0): "3", (2, 1): "3"})
    scores |= {"c\n3": 0.5}
    beam, dvts = search(BeamSearch(width=2), 4, draw, scores), search(DVTS(width=2), 4, draw, scores)
    assert [statuses(beam)[(i,)] for i in range(4)] == ["pruned", "pruned", "kept", "kept"]
    assert [statuses(dvts)[(i,)] for i in range(4)] == ["pruned", "kept", "pruned", "kept"]


def test_a_dvts_group_that_ended_gives_its_slots_to_nobody():
    script = {(0,): "1", (1,): "2", (2,): "c\n", (3,): "d\n", (3, 0): "3", (3, 1): "4"}
    policy = FakePolicy(scripted_draw(script))
    search(DVTS(width=2), 4, judge={"1": 0, "2": 0, "c\n": 0.1, "d\n": 0.2, "d\n3": 0, "d\n4": 0}, policy=policy)
    assert [call["num_branches"] for call in policy.extends] == [4, 2]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_score_that_is_no_number_flags_its_candidate_alone(bad):
    script = {(0,): "a\n1", (1,): "b\n2", (2,): "3"}
    scores = {"a\n": 0.1, "a\n1": 0.2, "b\n": 0.5, "b\n2": 0.9, "3": 0.3}
    clean = search(BestOfN(), 3, scripted_draw(script), scores)
    result = search(BestOfN(), 3, scripted_draw(script), scores | {"b\n": bad})
    assert (clean.answer, result.answer) == ("2", "3")
    assert (clean.num_errors, result.num_errors) == (0, 1)
    assert [candidate.finish for candidate in result.candidates] == ["eos", "error", "eos"]
    assert result.candidates[::2] == clean.candidates[::2]
    assert answers(result)[1] is None


def test_an_error_of_the_policy_takes_its_slot_and_leaves_the_others_alone():
    draw = scripted_draw(BEAM_SCRIPT | {(0,): "!"})
    result = search(BeamSearch(width=2), 4, draw, BEAM_SCORES)
    assert result.num_errors == 1
    assert [candidate.address for candidate in result.candidates] == [(0,), (3, 0), (3, 1), (1, 0)]
    assert result.answer == "1"
    every = scripted_draw({(i,): "!" for i in range(4)})
    for strategy in (Majority(), BestOfN(), BeamSearch(width=2), DVTS(width=2)):
        result = search(strategy, 4, every)
        assert (result.answer, result.num_errors) == (None, 4)


def test_nothing_is_spent_on_the_rollout_of_an_error():
    policy = FakePolicy(scripted_draw(AHEAD_SCRIPT, AHEAD_GREEDY))
    result = search(Lookahead(width=2), 4, judge=AHEAD_SCORES | {"b\n": math.nan}, policy=policy)
    assert [call["num_branches"] for call in policy.extends] == [2, 1, 1]
    assert (result.answer, result.num_errors) == ("1", 1)


def test_an_error_in_a_rollout_flags_the_step_it_was_to_score():
    draw = scripted_draw(AHEAD_SCRIPT, AHEAD_GREEDY | {"b\n": "!"})
    result = search(Lookahead(width=2), 4, draw, AHEAD_SCORES)
    assert result.num_errors == 1
    assert (result.candidates[0].address, result.answer) == ((1,), "1")


@by_name
def test_the_same_seed_gives_the_same_tree_and_another_another(strategy):
    first, again, other = (search(strategy, 8, seed=seed) for seed in (3, 3, 4))
    assert (first.tree, first.candidates) == (again.tree, again.candidates)
    assert first.tree != other.tree


def test_keys_follow_the_addresses():
    policy = FakePolicy(scripted_draw(BEAM_SCRIPT))
    search(BeamSearch(width=2), 4, judge=BEAM_SCORES, policy=policy)
    addresses = [[(0,), (1,), (2,), (3,)], [(3, 0), (3, 1), (1, 0), (1, 1)]]
    assert [call["keys"] for call in policy.extends] == [
        [branch_key(0, PROBLEM.id, address) for address in round_] for round_ in addresses
    ]
    assert policy.extends[1]["priorities"] == [0.9, 0.9, 0.8, 0.8], "the pool suspends the worst first"


def test_sampling_reaches_the_policy_and_the_given_ledger_pays():
    policy, sampling, ledger = FakePolicy(scripted_draw(BEAM_SCRIPT)), Sampling(temperature=0.7), Ledger()
    ledger.add("generated", 100)
    result = search(BeamSearch(width=2), 4, judge=BEAM_SCORES, policy=policy, sampling=sampling, ledger=ledger)
    assert [call["sampling"] for call in policy.extends] == [sampling, sampling]
    assert result.ledger is ledger
    assert ledger.tokens["generated"] == 116


@pytest.mark.parametrize("strategy", [Majority(), BestOfN()], ids=["majority", "best-of-n"])
def test_more_samples_keep_the_first(strategy):
    small, large = search(strategy, 3), search(strategy, 9)
    assert large.candidates[:3] == small.candidates
    assert len({candidate.text for candidate in large.candidates}) > 3


def test_grades():
    draw = scripted_draw(BEAM_SCRIPT)  # answers "1"

    def correct(grade=None, problem=PROBLEM):
        return search(BeamSearch(width=2), 4, draw, BEAM_SCORES, problem=problem, grade=grade).correct

    assert correct() is True
    assert correct(problem=Problem("p", "prompt;", answer="2")) is False
    assert correct(problem=Problem("p", "prompt;")) is None
    assert correct(lambda answer, gold: answer == gold * 2) is False
    assert correct(lambda answer, gold: None) is None
    assert correct(lambda answer, gold: 1 / 0) is None


@pytest.mark.parametrize(
    ("strategy", "options", "received"),
    [
        (BeamSearch(width=2), {"budget": 0}, "got 0"),
        (BeamSearch(width=2), {"budget": -3}, "got -3"),
        (Majority(), {"budget": 10**9}, "got 1000000000"),
        (BeamSearch(width=8), {"budget": 4}, "got 8"),
        (Lookahead(width=4), {"budget": 4}, "got 4"),
        (DVTS(width=4), {"budget": 6}, "got 6"),
        (BestOfN(), {"budget": 4, "max_tokens": 0}, "got 0"),
        (BestOfN(), {"budget": 4, "agg_strategy": "max"}, "'max'"),
    ],
)
def test_bad_values_are_refused_before_anything_is_opened(strategy, options, received):
    policy, verifier = FakePolicy(random_draw), FakeVerifier(hashed_judge)
    with pytest.raises(ValueError, match=received):
        search(strategy, policy=policy, verifier=verifier, **options)
    assert policy.num_opened == verifier.num_opened == 0


@pytest.mark.parametrize("strategy", [BestOfN(), BeamSearch(width=2)], ids=["best-of-n", "beam"])
def test_a_scored_strategy_needs_a_verifier(strategy):
    with pytest.raises(ValueError, match="got None"):
        check_arguments(strategy, None, SearchConfig(budget=4, max_tokens=9))
    check_arguments(Majority(), None, SearchConfig(budget=4, max_tokens=9))
