"""The plots of the page, each with the rows of its table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from benchmarks.paper.trades import GROUPS, REGIMES
from engine.reports.bars import Bar, BarGroup, bar_chart
from engine.reports.charts import Point, accuracy_chart

BARRED = ("majority", "best-of-n", "beam M=4")  # by bin, as in the paper's figure


@dataclass(frozen=True)
class Plot:
    """`chart` is None where there is nothing to draw."""

    title: str
    chart: Markup | None
    columns: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()
    note: str = ""


def interval(value: Sequence[float] | None) -> str:
    """`36.1 (32.0–40.2)`, in percent."""
    return "–" if value is None else "{:.1f} ({:.1f}–{:.1f})".format(*(100 * each for each in value))


def line_plot(results: dict, title: str, names: Sequence[str]) -> Plot:
    """Accuracy against the generations that a problem took, on a log2 axis."""
    found = [name for name in names if name in results["accuracy"]]
    curves = {
        name: [
            Point(results["cost"][name][budget]["generations"], *value, is_measured=True)
            for budget, value in results["accuracy"][name].items()
        ]
        for name in found
    }
    budgets = [str(budget) for budget in results["budgets"]]
    rows = [[name, *(interval(results["accuracy"][name].get(budget)) for budget in budgets)] for name in found]
    absent = [name for name in names if name not in found]
    chart = _chart(
        curves,
        f"{title}: accuracy against budget",
        "generations per problem",
        [(each, str(each)) for each in results["budgets"]],
    )
    note = f"Not run: {', '.join(absent)}." if absent else ""
    return Plot(title, chart, ("series", *budgets), rows, note)


def _chart(curves: Mapping[str, list[Point]], label: str, x_label: str, ticks, is_log: bool = True) -> Markup | None:
    """Colours and markers in order of the lines; the first of all is that of a single sample, on other pages."""
    order = list(curves)
    if not any(curves.values()):
        return None
    return accuracy_chart(
        dict(curves),
        label=label,
        x_label=x_label,
        is_log=is_log,
        ticks=ticks,
        index_of=lambda name: order.index(name) + 1,
    )


def bin_plots(results: dict) -> list[Plot]:
    """Bars by difficulty bin: series by colour, budgets by shade."""
    titles = {
        "oracle": "Oracle bins: quintiles of pass@1",
        "predicted": "Predicted bins: quintiles of the mean final PRM score",
        "absolute": "Absolute bins: pass@1 from one half, below it, and below one tenth",
    }
    plots = []
    for kind, title in titles.items():
        found = results["bins"][kind]
        budgets = [str(budget) for budget in results["budgets"] if budget > 1][-4:]
        groups = []
        for number, (share, size) in enumerate(zip(found["pass@1"], found["num_per_bin"], strict=True)):
            bars = [
                Bar(name, budget, *found["accuracy"][name][budget][number])
                for name in BARRED
                for budget in budgets
                if budget in found["accuracy"].get(name, {})
            ]
            groups.append(BarGroup(f"{number + 1} (pass@1 {100 * share:.0f} %, n={size})", tuple(bars)))
        chart = bar_chart(groups, title, "difficulty bin, the easiest first") if any(g.bars for g in groups) else None
        columns = ("series", "budget", *(f"bin {number + 1}" for number in range(len(groups))))
        rows = [
            [name, budget, *map(interval, values)]
            for name, each in found["accuracy"].items()
            for budget, values in each.items()
        ]
        plots.append(Plot(title, chart, columns, rows))
    return plots


def ratio_plots(results: dict) -> list[Plot]:
    """Accuracy by sequential to parallel: overall for each budget and vote, and by oracle bin."""
    curves: dict[str, list[Point]] = {}
    for budget, ratios in results["ratios"].items():
        for vote in [name for name in next(iter(ratios.values())) if name not in ("chains", "flops")]:
            name = f"{budget}, {_vote(vote)}"
            curves[name] = [Point(_ratio(ratio), *each[vote], is_measured=True) for ratio, each in ratios.items()]
    ratios = sorted({ratio for each in results["ratios"].values() for ratio in each}, key=_ratio)
    ticks = [(_ratio(ratio), ratio) for ratio in ratios]
    title = "Sequential to parallel: revisions by ratio"
    rows = [
        [
            f"{budget} generations",
            ratio,
            str(each["chains"]),
            *(interval(v) for k, v in each.items() if k not in ("chains", "flops")),
        ]
        for budget, found in results["ratios"].items()
        for ratio, each in found.items()
    ]
    votes = [_vote(name) for name in _votes(results)]
    plots = [
        Plot(title, _chart(curves, title, "sequential : parallel", ticks), ("budget", "ratio", "chains", *votes), rows)
    ]
    found = results["bins"]["oracle"]
    for budget, by_ratio in found["ratios"].items():
        lines: dict[str, list[Point]] = {}
        for ratio, bins in by_ratio.items():
            for number, value in enumerate(bins):
                lines.setdefault(f"bin {number + 1}", []).append(Point(_ratio(ratio), *value, is_measured=True))
        title = f"By oracle bin, {budget} generations"
        chart = _chart(lines, title, "sequential : parallel", [(_ratio(ratio), ratio) for ratio in by_ratio])
        columns = ("ratio", *(f"bin {number + 1}" for number in range(len(found["num_per_bin"]))))
        plots.append(Plot(title, chart, columns, [[ratio, *map(interval, bins)] for ratio, bins in by_ratio.items()]))
    return plots


def _votes(results: dict) -> list[str]:
    first = next(iter(next(iter(results["ratios"].values()), {}).values()), {})
    return [name for name in first if name not in ("chains", "flops")]


def _vote(name: str) -> str:
    return {"orm": "hierarchical, ORM", "prm": "hierarchical, PRM"}.get(name, name)


def _ratio(text: str) -> float:
    """4.0 for `4:1`."""
    sequential, parallel = map(int, text.split(":"))
    return sequential / parallel


def chain_plot(results: dict) -> Plot:
    """pass@1 by number of the attempt, for the revision model and for the policy that is only shown its attempts."""
    names = {"reviser": "revision model", "policy": "policy, shown its attempts"}
    curves = {
        names[name]: [Point(each["attempt"], *each["accuracy"], is_measured=True) for each in found["pass@1"]]
        for name, found in results["chain"].items()
    }
    last = max((line[-1].budget for line in curves.values() if line), default=1)
    ticks = [(1, "1"), *((each, str(each)) for each in range(8, int(last) + 1, 8))]
    chart = _chart(curves, "pass@1 along a chain", "attempt", ticks, is_log=False)
    rows = [
        [
            names[name],
            *(interval(_at(found["pass@1"], attempt)) for attempt in (1, 4, 16, 64)),
            interval(found["right_to_wrong"]),
            interval(found["wrong_to_right"]),
        ]
        for name, found in results["chain"].items()
    ]
    columns = ("model", "attempt 1", "4", "16", "64", "right to wrong", "wrong to right")
    return Plot("pass@1 along a chain", chart, columns, rows)


def _at(points: Sequence[dict], attempt: int) -> Sequence[float] | None:
    return next((each["accuracy"] for each in points if each["attempt"] == attempt), None)


def trade_plots(results: dict) -> list[Plot]:
    """The larger policy's greedy answer against the small one's test-time compute, by difficulty and regime."""
    plots = []
    for version, title in (("arxiv", "First version of the paper"), ("iclr", "ICLR version, verifier counted")):
        trades = [each for each in results["exchange"] if each["version"] == version]
        groups = []
        for group in GROUPS:
            own = [each for each in trades if each["group"] == group]
            bars = [_level("14x model", "greedy", each["large"]) for each in own[:1]]
            for side in dict.fromkeys(each["side"] for each in own):
                bars += [
                    _level(side, regime, each["small"])
                    for regime in REGIMES
                    for each in own
                    if (each["side"], each["regime"]) == (side, regime)
                ]
            groups.append(BarGroup(group, tuple(bars)))
        chart = bar_chart(groups, title, "problems by difficulty") if trades else None
        rows = [
            [
                each["side"],
                each["regime"],
                each["group"],
                f"{each['budget']} of {each['num_generations']}",
                f"{100 * each['small']:.1f}",
                f"{100 * each['large']:.1f}",
                "{:+.1f} ({:+.1f} to {:+.1f})".format(*(100 * value for value in each["difference"])),
                "–" if each["relative_gain"] is None else f"{100 * each['relative_gain']:+.1f} %",
            ]
            for each in trades
        ]
        columns = ("small with", "R", "problems", "generations", "small", "large", "difference (points)", "relative")
        plots.append(Plot(title, chart, columns, rows))
    return plots


def _level(name: str, detail: str, accuracy: float) -> Bar:
    """A bar without an interval of its own: the table has that of the difference."""
    return Bar(name, detail, accuracy, accuracy, accuracy)
