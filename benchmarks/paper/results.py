"""The one JSON file: settings, accuracies with intervals, bins, ratios, chains, exchange, findings, what is missing."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import numpy as np

from benchmarks.paper.chains import ratio_label
from benchmarks.paper.claims import findings
from benchmarks.paper.evidence import Evidence
from benchmarks.paper.measured import Measured, difference, estimate, flat
from benchmarks.paper.settings import CONTEXT, PILOT
from benchmarks.paper.trades import trades
from engine.results.provenance import commit, hardware

GLOBAL_BUDGET = Path(__file__).parent.parent / "results" / "global_budget.json"
BY_BIN = ("majority", "best-of-n", "best-of-n, ORM", "beam M=4", "beam M=sqrt(N)", "lookahead k=1", "rebase", "dvts")
TUNED = (
    "Nothing was tuned on the test split. The models were trained and selected on the training and validation "
    "splits, as their cards in engine/home say. Widths, lookahead depths, votes and ratios are the paper's; rebase and "
    "adaptive have their default options. Strategies by difficulty bin are chosen on one half of a bin's test problems "
    "and measured on the other, as in the paper. Which numbers of chains run at 256 is taken from the paper's figure, "
    f"and the margin of 'reaches' and the pilot of {PILOT} samples were set before anything was run. {CONTEXT} "
    "attempts stand before a revision (the paper: 4), as the reviser was trained on few, and the ORM judges each alone "
    "(the paper: with those before it), as it was trained."
)


def results(evidence: Evidence) -> dict[str, object]:
    """The whole report as JSON values."""
    settings = evidence.study.settings
    made = {
        "num_problems": evidence.num_problems,
        "seeds": list(evidence.seeds),
        "budgets": list(settings.budgets),
        "num_bin_samples": settings.num_bin_samples,
        "hardware": hardware(),
        "commit": commit(),
        "seconds": {stage: round(seconds, 1) for stage, seconds in evidence.seconds.items()},
        "windows": "pools: means over all disjoint windows of a budget's size, of which the first is the search itself",
        "tuned": TUNED,
        "accuracy": {},
        "cost": {},
        "bins": {kind: _binning(evidence, kind) for kind in evidence.binnings},
        "compute_optimal": {kind: _optimal(evidence, kind) for kind in evidence.optimal},
        "ratios": {str(budget): _ratios(evidence, budget) for budget in sorted(evidence.ratios)},
        "chain": _chains(evidence),
        "exchange": [asdict(trade) | {"relative_gain": trade.relative_gain} for trade in trades(evidence)],
        "large": _large(evidence),
        "global_budget": json.loads(GLOBAL_BUDGET.read_text()) if GLOBAL_BUDGET.is_file() else None,
        "findings": [finding.as_dict() for finding in findings(evidence)],
        "missing": list(evidence.missing),
    }
    for series, budget, measured in flat(evidence.tables):
        made["accuracy"].setdefault(series, {})[str(budget)] = measured.accuracy
        made["cost"].setdefault(series, {})[str(budget)] = _cost(measured)
    return made


def _cost(measured: Measured) -> dict[str, float]:
    """Means per problem."""
    flops = float(measured.flops.mean())
    return {
        "generations": float(measured.generations.mean()),
        "flops": flops,
        "verifier_share": float(measured.verified.mean()) / flops,
        "num_seeds": measured.num_seeds,
    }


def _binning(evidence: Evidence, kind: str) -> dict[str, object]:
    """Accuracy of the main series by bin, the easiest first."""
    binning = evidence.binnings[kind]
    members = [each for each in binning.members if len(each)]
    names = [name for name in BY_BIN if name in evidence.tables]
    return {
        "edges": list(binning.bins.edges),
        "names": [binning.bins.describe(index) for index, each in enumerate(binning.members) if len(each)],
        "num_per_bin": [len(each) for each in members],
        "pass@1": [float(evidence.binnings["oracle"].eases[each].mean()) for each in members],
        "accuracy": {name: _by_bin(evidence.tables[name], members) for name in names},
        "ratios": {
            str(budget): {
                ratio_label(count, budget): [estimate(pair[0].right[each]) for each in members]
                for count, pair in sorted(ratios.items(), reverse=True)
            }
            for budget, ratios in sorted(evidence.ratios.items())
        },
    }


def _by_bin(budgets: Mapping[int, Measured], members: list[np.ndarray]) -> dict[str, list]:
    return {str(budget): [estimate(each.right[own]) for own in members] for budget, each in sorted(budgets.items())}


def _optimal(evidence: Evidence, kind: str) -> dict[str, dict]:
    """Held-out accuracy, against the best single series on the same folds, and what was chosen."""
    return {
        str(budget): {
            "accuracy": each.measured.accuracy,
            "best_fixed": each.fixed.accuracy,
            "difference": difference(each.measured.right, each.fixed.right),
            **_cost(each.measured),
            "choices": list(each.choices),
        }
        for budget, each in evidence.optimal[kind].items()
    }


def _ratios(evidence: Evidence, budget: int) -> dict[str, dict]:
    """Accuracy by sequential:parallel, most parallel first: the vote that was run, and the flat majority."""
    return {
        ratio_label(count, budget): {
            "chains": count,
            evidence.study.models.revision_verifier: voted.accuracy,
            "majority": majority.accuracy,
            "flops": float(voted.flops.mean()),
        }
        for count, (voted, majority) in sorted(evidence.ratios[budget].items(), reverse=True)
    }


def _chains(evidence: Evidence) -> dict[str, object]:
    """pass@1 by attempt, and the shares of attempts that turn, for the reviser and for the untrained policy."""
    made = {}
    for name, attempts in (("reviser", evidence.attempts), ("policy", evidence.baseline)):
        if attempts is not None:
            turns = {"right_to_wrong": attempts.turned(True), "wrong_to_right": attempts.turned(False)}
            made[name] = {"pass@1": attempts.pass_rates(), **turns}
    return made


def _large(evidence: Evidence) -> dict[str, object] | None:
    large = evidence.large
    if large is None:
        return None
    return {
        "params": large.params,
        "params_small": large.small_params,
        "size_ratio": large.size_ratio,
        "greedy": estimate(large.right),
        "flops": float(large.flops.mean()),
    }
