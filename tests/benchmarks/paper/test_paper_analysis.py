"""Bins, choices, chains and verdicts of the paper's benchmark, on made-up data whose answers are known."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks.paper.chains import Attempts, by_majority, ratio_label
from benchmarks.paper.claims import findings
from benchmarks.paper.difficulty import Binning, binnings, pilot_binning
from benchmarks.paper.evidence import Evidence, Large
from benchmarks.paper.exploits import is_pretended
from benchmarks.paper.measured import Measured, difference, estimate
from benchmarks.paper.optimal import charged, compute_optimal, one_after_another, seed_means
from benchmarks.paper.pools import Pool
from benchmarks.paper.rules import (
    ABOVE,
    BELOW,
    CLOSE,
    FAILING,
    NOT_ABOVE,
    NOT_COMPARABLE,
    NOT_REPLICATED,
    REACHES,
    REPLICATED,
    SHARE,
    Claim,
    Figures,
    Unmeasured,
    judge,
    members,
    versus,
)
from benchmarks.paper.trades import difficulty_groups, trades
from engine.scheduler import Bins
from engine.types import Candidate


def measured(right, flops: float = 1.0, generations: float = 4.0) -> Measured:
    right = np.array(right, dtype=float)
    ones = np.ones_like(right)
    return Measured(right, generations * ones, flops * ones, 0 * ones, 1, (("1+1=2",),) * len(right))


def pool(num_right: int, num_samples: int, score: float) -> Pool:
    """Right answers score `score`, the wrong ones 0.1 and each for itself."""
    right = Candidate("r", "1", "eos", (score,), 0.0, 2, ())
    wrong = [Candidate(f"w{n}", str(2 + n), "eos", (0.1,), 0.0, 2, ()) for n in range(num_samples - num_right)]
    picks = [0] * num_right + [1 + n for n in range(num_samples - num_right)]
    return Pool("1", (right, *wrong), tuple(picks))


def test_bins_are_quintiles_of_pass_rate_and_of_the_verifier():
    pools = [pool(number, 10, score=1.0 - number / 20) for number in range(1, 11)]
    made = binnings(pools)
    assert made["oracle"].eases == pytest.approx([number / 10 for number in range(1, 11)])
    assert [each.tolist() for each in made["oracle"].members] == [[8, 9], [6, 7], [4, 5], [2, 3], [0, 1]]
    expected = [(number * (1 - number / 20) + (10 - number) * 0.1) / 10 for number in range(1, 11)]
    assert made["predicted"].eases == pytest.approx(expected)
    assert [len(each) for each in made["absolute"].members] == [6, 4, 0]


def test_a_pilot_sees_the_first_samples_alone():
    pools = [pool(number, 8, score=1.0) for number in (8, 4, 3, 2, 0)]
    assert pilot_binning(pools, "agreement").eases == pytest.approx([1, 1, 1 / 2, 1 / 6, 0])
    assert pilot_binning(pools, "score").eases == pytest.approx([1, 1, 0.775, 0.55, 0.1])


def test_the_best_series_of_each_bin_is_found_on_the_other_fold():
    easy_then_hard = np.repeat([1.0, 0.0], 10)
    series = {"plain": measured(easy_then_hard), "deep": measured(1 - easy_then_hard), "poor": measured(np.zeros(20))}
    binning = Binning(easy_then_hard, Bins((0.5,)))
    best = compute_optimal(series, binning, 4)
    assert best.measured.right.tolist() == [1.0] * 20
    assert best.choices == ({"plain": 10}, {"deep": 10})
    assert best.fixed.right.mean() == 0.5


def test_a_choice_that_is_luck_is_not_rewarded():
    """Each fold likes the series that fails on the other."""
    first_fold = np.tile([1.0, 0.0], 10)
    series = {"even": measured(first_fold), "odd": measured(1 - first_fold)}
    best = compute_optimal(series, Binning(np.zeros(20), Bins()), 4)
    assert best.measured.right.mean() == 0.0


def test_equals_go_to_fewer_flops_and_estimates_are_charged():
    series = {"dear": measured(np.ones(8), flops=9.0), "cheap": measured(np.ones(8), flops=2.0)}
    best = compute_optimal(series, Binning(np.zeros(8), Bins()), 4)
    assert best.measured.flops.tolist() == [2.0] * 8
    bill = charged(best.measured, 256, 10 * np.ones(8), 6 * np.ones(8))
    assert (bill.generations[0], bill.flops[0], bill.verified[0]) == (260, 12.0, 6.0)


def test_a_bin_departs_only_for_a_lead_that_is_more_than_luck():
    """On each fold of ten `lucky` wins two problems and loses two; but one less in the easiest and hardest bins."""
    base = np.tile([1.0, 1.0, 0.0, 0.0], 25)
    lucky, better = base.copy(), base.copy()
    for first in range(0, 100, 20):
        lucky[first : first + 8] = 1 - base[first : first + 8]
    lucky[[6, 7]], lucky[[84, 85]] = 0.0, 1.0
    better[:80], better[80:] = 0.0, 1.0
    binning = Binning(np.repeat([0.9, 0.7, 0.5, 0.3, 0.1], 20), Bins((0.2, 0.4, 0.6, 0.8)))

    def hard_bin(other: np.ndarray) -> dict[str, int]:
        return compute_optimal({"base": measured(base), "other": measured(other, flops=2.0)}, binning, 4).choices[4]

    assert lucky[80:].mean() == base[80:].mean() + 0.1
    assert hard_bin(lucky) == {"base": 20}
    assert hard_bin(better) == {"other": 20}


def test_seeds_one_after_another_share_their_folds():
    seeds = [measured(np.array([1.0, 0.0, 1.0, 0.0])), measured(np.array([0.0, 0.0, 1.0, 1.0]))]
    both = one_after_another(seeds)
    assert both.right.tolist() == [1, 0, 1, 0, 0, 0, 1, 1]
    assert seed_means(both, 2).right.tolist() == [0.5, 0.0, 1.0, 0.5]
    assert seed_means(both, 2).num_seeds == 2
    even, odd = measured(np.tile([1.0, 0.0], 4)), measured(np.tile([0.0, 1.0], 4))
    folds = {index: index % 4 % 2 for index in range(8)}
    best = compute_optimal({"even": even, "odd": odd}, Binning(np.zeros(8), Bins()), 4, folds)
    assert best.measured.right.tolist() == [0.0] * 8  # what one fold likes fails on the other


# -- chains -----------------------------------------------------------------------------------


def chain_row(seed: int, chains: list[int], answers: list[str], correct: bool = True) -> dict:
    ledger = {"tokens": {}, "flops": {"generated": 10, "verified": 4}}
    finishes = ["eos"] * len(answers)
    facts = {"chains": chains, "answers": answers, "finishes": finishes, "ledger": ledger, "chosen": None}
    return {"seed": seed, "correct": correct, "generations": len(answers), **facts}


def test_attempts_along_chains():
    rows = {0: chain_row(0, [0, 1, 0, 1], ["7", "3", "7", "7"]), 1: chain_row(0, [0, 1, 0, 1], ["5", "7", "7", "7"])}
    attempts = Attempts.of([rows], ["7", "5"])
    assert attempts.chains == {0: [[True, True], [False, True]], 1: [[True, False], [False, False]]}
    assert [point["accuracy"][0] for point in attempts.pass_rates()] == [0.5, 0.5]
    assert attempts.longest == 2
    assert attempts.mean_right(2, 2).tolist() == [1.0, 0.0]
    assert attempts.turned(True)[0] == pytest.approx(1 / 2)
    assert attempts.turned(False)[0] == pytest.approx(1 / 2)


def test_a_chain_that_two_cells_share_counts_once():
    long, short = {0: chain_row(0, [0, 0, 0], ["1", "2", "1"])}, {0: chain_row(0, [0, 1], ["1", "1"])}
    assert Attempts.of([short, long], ["1"]).chains == {0: [[True, False, True], [True]]}
    assert Attempts.of([short, {0: chain_row(1, [0, 1], ["2", "2"])}], ["1"]).chains[0] == [
        [True],
        [True],
        [False],
        [False],
    ]


def test_the_flat_majority_scores_nothing():
    rows = {0: chain_row(0, [0, 1, 0], ["7", "3", "7"], correct=False)}
    flat = by_majority([rows], ["7"])
    assert flat.right.tolist() == [1.0]
    assert flat.flops.tolist() == [10.0]
    assert flat.verified.tolist() == [0.0]


@pytest.mark.parametrize(
    ("num_chains", "budget", "label"),
    [(64, 64, "1:64"), (16, 64, "1:4"), (8, 64, "1:1"), (4, 64, "4:1"), (1, 16, "16:1")],
)
def test_ratios_are_sequential_to_parallel(num_chains, budget, label):
    assert ratio_label(num_chains, budget) == label


# -- rules ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "interval", "is_replicated", "why"),
    [
        (ABOVE, [0.05, 0.01, 0.09], True, "above 0"),
        (ABOVE, [0.05, 0.0, 0.09], False, "straddles"),
        (ABOVE, [-0.05, -0.09, -0.01], False, "other direction"),
        (BELOW, [-0.05, -0.09, -0.01], True, "below 0"),
        (BELOW, [0.05, 0.01, 0.09], False, "other direction"),
        (BELOW, [-0.05, -0.09, 0.01], False, "straddles"),
        (REACHES, [-0.01, -0.019, 0.01], True, "above -2 points"),
        (REACHES, [0.01, -0.021, 0.05], False, "a loss of 2 points"),
        (CLOSE, [0.0, -0.01, 0.01], True, "within 2 points"),
        (CLOSE, [0.0, -0.01, 0.03], False, "not within 2 points"),
        (NOT_ABOVE, [-0.2, -0.3, -0.1], True, "does not lie above"),
        (NOT_ABOVE, [0.2, 0.1, 0.3], False, "lies above"),
        (SHARE, [0.38, 0.3, 0.4], True, "above 10 %"),
        (SHARE, [0.12, 0.09, 0.2], False, "does not lie above"),
        (FAILING, [0.02, 0.0, 0.05], True, "below 10 %"),
        (FAILING, [0.08, 0.05, 0.11], False, "does not lie below"),
    ],
)
def test_verdicts_follow_the_interval(rule, interval, is_replicated, why):
    finding = judge(Claim("0", 1, "", "", rule, lambda evidence: Figures(interval)), None)
    assert finding.verdict == (REPLICATED if is_replicated else NOT_REPLICATED)
    assert why in finding.why
    assert finding.as_dict()["ours"] == interval


def test_what_was_not_run_is_not_comparable():
    def measure(evidence):
        raise Unmeasured("beam at 256")

    assert judge(Claim("0", 1, "", "", ABOVE, measure), None).why == "not run: beam at 256"
    finding = judge(Claim("0", 1, "", "", why="no labels"), None)
    assert (finding.verdict, finding.why) == (NOT_COMPARABLE, "no labels")


def made_evidence(**changes) -> Evidence:
    """100 problems, whose ease is their position: best-of-n is right on the easy half, beams on the hard one."""
    eases = np.linspace(0, 1, 100)
    easy = (eases > 0.5).astype(float)
    tables = {
        "best-of-n": {256: measured(easy), 64: measured(easy)},
        "beam M=4": {256: measured(1 - easy)},
        "majority": {256: measured(np.zeros(100)), 64: measured(np.zeros(100))},
        "compute-optimal, oracle": {16: measured(easy), 64: measured(np.ones(100))},
    }
    values = {
        "study": SimpleNamespace(problems=[None] * 100),
        "seeds": (0,),
        "tables": tables,
        "binnings": {"oracle": Binning(eases, Bins((0.2, 0.4, 0.6, 0.8)))},
        "optimal": {},
        "ratios": {},
        "attempts": None,
        "baseline": None,
        "large": Large(np.tile([1.0, 0.0], 50), np.ones(100), 142, 10),
        "samples": (("1+1=2",),) * 100,
        "seconds": {},
        "missing": (),
    }
    return Evidence(**(values | changes))


def test_findings_read_the_tables():
    found = {finding.claim.id: finding for finding in findings(made_evidence())}
    assert len(found) == len(findings(made_evidence()))  # ids are distinct
    assert found["1.5a"].verdict == REPLICATED
    assert found["1.5a"].figures.value[0] == pytest.approx(0.5)
    assert found["2.3"].verdict == REPLICATED  # on easy bins best-of-n wins
    assert found["2.3"].figures.parts == {"beam M=4 at 256": 0.0, "best-of-n at 256": 1.0}
    assert found["2.4"].verdict == NOT_REPLICATED or found["2.4"].figures.value[0] > 0
    assert found["2.5"].verdict == NOT_REPLICATED  # beams are right there
    assert found["1.5b"].verdict == NOT_COMPARABLE
    assert found["4.1"].why == "not run: revisions"
    assert found["5.10"].verdict == REPLICATED  # all right against every second one
    assert {finding.verdict for finding in found.values()} == {REPLICATED, NOT_REPLICATED, NOT_COMPARABLE}


def test_bins_choose_the_problems_of_a_comparison():
    evidence = made_evidence()
    assert members(evidence, (4,)).tolist() == list(range(20))
    everywhere = versus(("best-of-n", 256), ("beam M=4", 256))(evidence)
    hardest = versus(("best-of-n", 256), ("beam M=4", 256), (4,))(evidence)
    assert (everywhere.value[0], hardest.value[0]) == (0.0, -1.0)
    with pytest.raises(Unmeasured, match="five bins"):
        members(made_evidence(binnings={"oracle": Binning(np.zeros(100), Bins())}), (4,))


def test_the_exchange_takes_the_measured_budget_within_reach():
    found = trades(made_evidence())
    first = {(t.regime, t.group): t for t in found if t.version == "arxiv" and t.side == "PRM search"}
    assert (first["R << 1", "easy"].num_generations, first["R << 1", "easy"].budget) == (261, 64)
    assert first["R >> 1", "easy"].budget == 16
    assert first["R << 1", "hard"].small == 1.0
    assert first["R << 1", "hard"].large == 0.5
    assert first["R << 1", "hard"].relative_gain == pytest.approx(1.0)
    assert first["R >> 1", "hard"].small == 0.0  # fewer generations
    assert trades(made_evidence(large=None)) == []


def test_groups_of_difficulty_are_two_one_and_two_fifths():
    groups = difficulty_groups(np.array([0.9, 0.1, 0.5, 0.7, 0.3]))
    assert [each.tolist() for each in groups] == [[0, 3], [2], [1, 4]]


def test_differences_are_paired():
    one, other = np.tile([1.0, 0.0], 50), np.tile([1.0, 0.0], 50)
    assert difference(one, other) == [0.0, 0.0, 0.0]
    mean, low, high = estimate(one)
    assert low < mean == 0.5 < high


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("?5?2?=c:b5f2c=c", False),
        ("?5?2?=c:a5e2a=c", False),  # a wrong start that says so
        ("d3?1?:d3e1c", False),
        ("?5?2?=c:a5e2c=c", True),  # door 2 does not lead from e to c
        ("?5?2?=c:d2b5f2c=c", True),  # more doors than it states
        ("?5?1?=c:b5f2c=c", True),
        ("?5?2?=d:b5f2c=c", True),
        ("5?2=c:b5f2c=c", True),  # states no walk
    ],
)
def test_pretended_lines(line, expected):
    assert is_pretended(line) == expected
