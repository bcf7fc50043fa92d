"""`ttc report`: a self-contained HTML page."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

from jinja2 import ChoiceLoader, Environment, FileSystemLoader, PackageLoader, StrictUndefined

from engine.accounting import PURPOSES
from engine.errors import UserError
from engine.files import write_atomically
from engine.reports import charts, svg
from engine.reports.examples import Example, choose_examples
from engine.reports.tables import StrategySummary, compare, quantity, summarize
from engine.reports.tree import tree_svg
from engine.results.rows import Row

_MEANINGS = {
    "generated": "sampled tokens that belong to an answer",
    "prefilled": "prompt and fed tokens",
    "cached": "found in the KV cache: no forward, no FLOPs",
    "recomputed": "evicted from the KV cache and made again",
    "verified": "tokens that went through the verifier",
    "lookahead": "rollouts that only score a step",
    "estimation": "spent on predicting difficulty",
}


def write_report(
    rows: Sequence[Row],
    out: str | os.PathLike[str],
    *,
    title: str = "Search report",
    seconds: Mapping[str, float] | None = None,
    facts: Mapping[str, object] | None = None,
    max_examples: int = 6,
    opens_on_example: bool = False,
) -> None:
    """Writes the page of a run atomically.

    `seconds` is the wall-clock time by strategy (see `summarize`); `facts` (hardware, commit, models ...)
    are shown under the title. With `opens_on_example` the search trees come before the tables. Raises UserError if
    there are no rows, and OSError.
    """
    shown = {"max_examples": max_examples, "opens_on_example": opens_on_example}
    page = report_html(rows, title=title, seconds=seconds, facts=facts, **shown)
    write_atomically(out, page.encode("utf-8", "replace"))


def report_html(
    rows: Sequence[Row],
    *,
    title: str = "Search report",
    seconds: Mapping[str, float] | None = None,
    facts: Mapping[str, object] | None = None,
    max_examples: int = 6,
    opens_on_example: bool = False,
) -> str:
    """The page as text; parameters as for `write_report`."""
    if not rows:
        raise UserError("a report needs at least one result row, got none")
    summaries = summarize(rows, seconds=seconds)
    curves = charts.accuracy_curves(rows)
    examples = choose_examples(rows, max_examples)
    largest = list({each.strategy: each for each in summaries}.values())  # of rising budgets the last is kept
    comparisons = compare(rows)
    main = list({(each.better, each.worse): each for each in comparisons}.values())
    purposes = [name for name in PURPOSES if any(each.tokens[name] or each.flops[name] for each in summaries)]
    return (
        page_environment()
        .get_template("report.html.j2")
        .render(
            title=title,
            facts={**_run_facts(rows), **(facts or {})},
            headline=[_headline(each, summaries) for each in summaries],
            has_seconds=any(each.seconds is not None for each in summaries),
            comparisons=main,
            more_comparisons=[each for each in comparisons if each not in main],
            accuracy_chart=charts.accuracy_chart(curves) if curves else None,
            has_sub_budgets=any(not point.is_measured for line in curves.values() for point in line),
            token_chart=charts.cost_chart(largest, "tokens"),
            flop_chart=charts.cost_chart(largest, "flops"),
            is_largest_only=len(largest) < len(summaries),
            purposes=[(name, _MEANINGS[name]) for name in purposes],
            examples=[_example_view(example) for example in examples],
            opens_on_example=opens_on_example,
        )
    )


def page_environment(*folders: str | os.PathLike[str]) -> Environment:
    """Loads templates of this package (with the style sheet `report.css`) and of `folders`, with autoescape."""
    return Environment(
        loader=ChoiceLoader([PackageLoader("engine.reports"), FileSystemLoader(folders)]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _run_facts(rows: Sequence[Row]) -> dict[str, str]:
    searches = [row for row in rows if row["strategy"] != "single"] or rows
    seeds, budgets = sorted({row["seed"] for row in rows}), sorted({row["budget"] for row in searches})
    facts = {
        "problems": f"{len({row['id'] for row in rows}):,}",
        "budget" if len(budgets) == 1 else "budgets": ", ".join(map(str, budgets)) + " generations",
        "seed" if len(seeds) == 1 else "seeds": ", ".join(map(str, seeds)),
    }
    if num_ungraded := sum(row["correct"] is None and row.get("accuracy") is None for row in rows):
        facts["rows without a verdict"] = f"{num_ungraded:,} of {len(rows):,}"
    if num_errors := sum(row.get("num_errors", 0) for row in rows):
        facts["candidates left out (NaN or Inf)"] = f"{num_errors:,}"
    if estimated := sorted({name for row in rows for name in row.get("estimated", ())}):
        facts["not counted by an endpoint, so estimated or 0"] = ", ".join(estimated)
    return facts


def _headline(summary: StrategySummary, summaries: Sequence[StrategySummary]) -> dict[str, object]:
    """The cells of one row of the headline table."""
    accuracies = [each.accuracy for each in summaries if each.accuracy is not None]
    highest = max((each.high for each in summaries if each.high is not None), default=1.0) or 1.0
    has_accuracy = summary.accuracy is not None
    return {
        "strategy": summary.strategy,
        "budget": summary.budget,
        "accuracy": f"{100 * summary.accuracy:.1f}" if has_accuracy else "–",
        "interval": f"{100 * summary.low:.1f} – {100 * summary.high:.1f}" if has_accuracy else "–",
        "bar": charts.interval_bar(summary, highest),
        "is_best": has_accuracy and summary.accuracy == max(accuracies),
        "generated": quantity(summary.tokens["generated"]),
        "forward": quantity(summary.total_tokens),
        "flops": quantity(summary.total_flops),
        "verifier": f"{100 * summary.verifier_share:.0f} %",
        "seconds": "–" if summary.seconds is None else f"{summary.seconds:,.1f}",
    }


def _example_view(example: Example) -> dict[str, object]:
    row = example.row
    verdict = {True: "right", False: "wrong", None: "not graded"}[row["correct"]]
    share = example.sample_share
    return {
        "strategy": row["strategy"],
        "budget": row["budget"],
        "seed": row["seed"],
        "id": row["id"],
        "reason": example.reason,
        "story": example.story,
        "verdict": verdict,
        "problem": svg.printable(row["problem"].strip()),
        "answer": row["answer"],
        "pred": row["pred"],
        "share": None if share is None else f"{100 * share:.0f} %",
        "num_steps": len(row["tree"]) - 1,
        "mark": {True: "✓", False: "✗", None: ""}[row["correct"]],
        "num_answers": len(row["completions"]),
        "unit": (unit := "attempt" if row["strategy"] == "revisions" else "step"),
        "tree": tree_svg(row["tree"], row["answer"], unit=unit),
    }
