"""One HTML page from the JSON: findings, plots like the paper's, and the table of each."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from benchmarks.paper.plots import bin_plots, chain_plot, line_plot, ratio_plots, trade_plots
from engine.files import write_atomically
from engine.reports.html import page_environment
from engine.reports.tables import quantity

# Which series a plot of accuracy against budget shows; the first two are the same everywhere.
LINES = {
    "Verifiers": (
        "majority",
        "best-of-n",
        "best-of-n, ORM",
        "best-of-n, exact verifier",
        "best-of-n, min",
        "best-of-n, prod",
        "best-of-n, naive",
    ),
    "Search against the PRM": (
        "majority",
        "best-of-n",
        "beam M=4",
        "beam M=sqrt(N)",
        "lookahead k=1",
        "lookahead k=3",
    ),
    "Compute-optimal": (
        "majority",
        "best-of-n",
        "compute-optimal, oracle",
        "compute-optimal, predicted",
        "compute-optimal, agreement pilot",
        "compute-optimal, score pilot",
        "compute-optimal, predicted, charged",
    ),
    "Beyond the paper": ("majority", "best-of-n", "rebase", "dvts", "beam without duplicates", "adaptive, 0.95"),
}


def write_page(results: dict, path: str | os.PathLike[str]) -> None:
    """Writes the page atomically; `results` are what `results.results` gives, or the JSON read back."""
    write_atomically(path, page_html(results).encode())


def page_html(results: dict) -> str:
    environment = page_environment(Path(__file__).parent)
    return environment.get_template("page.html.j2").render(
        facts=_facts(results),
        counts=_counts(results["findings"]),
        findings=[_finding(each) for each in results["findings"]],
        lines=[line_plot(results, title, names) for title, names in LINES.items()],
        costs=_costs(results),
        bins=bin_plots(results),
        optimal=_optimal(results),
        ratios=ratio_plots(results),
        chain=chain_plot(results),
        trades=trade_plots(results),
        missing=results["missing"],
        tuned=results["tuned"],
        windows=results["windows"],
        global_budget=results["global_budget"],
        purposes=[],
        examples=[],
    )


def _facts(results: dict) -> dict[str, str]:
    seconds = sum(results["seconds"].values())
    stages = ", ".join(f"{stage} {value / 60:.0f} min" for stage, value in results["seconds"].items() if value)
    return {
        "problems": f"{results['num_problems']} of the test split",
        "seeds": ", ".join(map(str, results["seeds"])),
        "samples for the bins": str(results["num_bin_samples"]),
        "time": f"{seconds / 60:.0f} min ({stages})",
        "processor": f"{results['hardware']['cpu']}, {results['hardware']['num_cores']} cores",
        "commit": str(results["commit"]),
    }


def _counts(findings: Sequence[dict]) -> dict[str, int]:
    verdicts = ("replicated", "not replicated", "not comparable")
    return {verdict: sum(each["verdict"] == verdict for each in findings) for verdict in verdicts}


def _finding(finding: dict) -> dict[str, object]:
    ours = finding["ours"]
    shown = "–"
    if ours is not None:
        sign = "+" if finding["is_difference"] else ""
        low, high = (f"{100 * value:{sign}.1f}" for value in ours[1:])
        shown = f"{100 * ours[0]:{sign}.1f} ({low} to {high})"
    parts = "; ".join(f"{name}: {100 * value:.1f}" for name, value in finding["parts"].items())
    return finding | {"shown": shown, "details": "; ".join(filter(None, (parts, finding["note"])))}


def _costs(results: dict) -> list[dict[str, str]]:
    """One row per series and budget: what a problem cost."""
    return [
        {
            "series": series,
            "budget": budget,
            "accuracy": f"{100 * results['accuracy'][series][budget][0]:.1f}",
            "generations": f"{cost['generations']:.1f}",
            "flops": quantity(cost["flops"]),
            "verifier": f"{100 * cost['verifier_share']:.0f} %",
            "seeds": str(cost["num_seeds"]),
        }
        for series, budgets in results["cost"].items()
        for budget, cost in budgets.items()
    ]


def _optimal(results: dict) -> list[dict[str, object]]:
    """One row per kind of bins and budget: held-out accuracy, the gain over one series for all, and the choices."""
    rows = []
    for kind, budgets in results["compute_optimal"].items():
        for budget, each in budgets.items():
            gain = each["difference"]
            rows.append(
                {
                    "kind": kind,
                    "budget": budget,
                    "generations": f"{each['generations']:.0f}",
                    "flops": quantity(each["flops"]),
                    "accuracy": "{:.1f} ({:.1f}–{:.1f})".format(*(100 * value for value in each["accuracy"])),
                    "gain": "{:+.1f} ({:+.1f} to {:+.1f})".format(*(100 * value for value in gain)),
                    "choices": [
                        ", ".join(f"{name} ({count})" for name, count in choice.items()) for choice in each["choices"]
                    ],
                }
            )
    return rows
