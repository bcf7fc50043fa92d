"""Accuracy and cost per strategy, as numbers and as tables for a terminal or in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from engine.accounting import PURPOSES
from engine.results.rows import Row
from engine.results.statistics import bootstrap_interval, mean_interval

STRATEGY_ORDER = (
    "single",
    "majority",
    "best-of-n",
    "beam",
    "lookahead",
    "dvts",
    "revisions",
    "compute-optimal",
)
# The pairs compared under a table; the first is expected to be better.
_COMPARISONS = (
    ("best-of-n", "single"),
    ("best-of-n", "majority"),
    ("beam", "best-of-n"),
    ("lookahead", "beam"),
    ("dvts", "beam"),
    ("compute-optimal", "best-of-n"),
)


@dataclass(frozen=True)
class StrategySummary:
    """One strategy at one budget. Token and FLOP figures are means over rows (one problem, one seed)."""

    strategy: str
    budget: int  # generations
    num_rows: int
    num_problems: int
    num_seeds: int
    num_graded: int  # rows with a verdict
    num_errors: int  # candidates left out for NaN or Inf, over all rows
    accuracy: float | None  # 0..1; None if no row has a verdict
    low: float | None  # 95 % interval
    high: float | None
    tokens: dict[str, float]  # by purpose
    flops: dict[str, float]  # by purpose
    seconds: float | None  # wall-clock time of all rows together

    @property
    def total_tokens(self) -> float:
        """Tokens that went through a forward, all but the cached ones."""
        return sum(amount for purpose, amount in self.tokens.items() if purpose != "cached")

    @property
    def total_flops(self) -> float:
        return sum(self.flops.values())

    @property
    def verifier_share(self) -> float:
        """The verifier's share of the FLOPs, 0..1."""
        return self.flops["verified"] / self.total_flops if self.total_flops else 0.0

    def as_dict(self) -> dict[str, object]:
        """All fields and derived figures, as JSON values."""
        derived = ("total_tokens", "total_flops", "verifier_share")
        return asdict(self) | {name: getattr(self, name) for name in derived}


def accuracy_of(row: Row) -> float | None:
    """A row's accuracy: `accuracy` (0..1, a mean over samples) if it has this field, else `correct` as 0 or 1."""
    if row.get("accuracy") is not None:
        return float(row["accuracy"])
    return None if row["correct"] is None else float(row["correct"])


def strategy_key(strategy: str) -> tuple[int, str]:
    """A sort key: known strategies in STRATEGY_ORDER, then unknown ones by name."""
    is_known = strategy in STRATEGY_ORDER
    return (STRATEGY_ORDER.index(strategy) if is_known else len(STRATEGY_ORDER), strategy)


def group_rows(rows: Iterable[Row]) -> dict[tuple[str, int], list[Row]]:
    """Rows by (strategy, budget), sorted by `strategy_key` and budget."""
    groups: dict[tuple[str, int], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["strategy"], row["budget"]), []).append(row)
    return dict(sorted(groups.items(), key=lambda item: (strategy_key(item[0][0]), item[0][1])))


def summarize(rows: Iterable[Row], *, seconds: Mapping[str, float] | None = None) -> list[StrategySummary]:
    """One summary per strategy and budget.

    `seconds` is the wall-clock time by strategy, used for strategies with one budget; otherwise it is the
    sum of the rows' optional field `seconds`.
    """
    groups = group_rows(rows)
    num_budgets = {strategy: sum(name == strategy for name, _ in groups) for strategy, _ in groups}
    summaries = []
    for (strategy, budget), group in groups.items():
        total = (seconds or {}).get(strategy) if num_budgets[strategy] == 1 else None
        summaries.append(_summary(strategy, budget, group, total))
    return summaries


def _summary(strategy: str, budget: int, rows: Sequence[Row], seconds: float | None) -> StrategySummary:
    graded = [(accuracy, row["id"]) for row in rows if (accuracy := accuracy_of(row)) is not None]
    accuracy = low = high = None
    if graded:
        values, problems = zip(*graded, strict=True)
        accuracy = sum(values) / len(values)
        low, high = mean_interval(values, problems)
    if seconds is None and all(row.get("seconds") is not None for row in rows):
        seconds = sum(row["seconds"] for row in rows)
    return StrategySummary(
        strategy=strategy,
        budget=budget,
        num_rows=len(rows),
        num_problems=len({row["id"] for row in rows}),
        num_seeds=len({row["seed"] for row in rows}),
        num_graded=len(graded),
        num_errors=sum(row.get("num_errors", 0) for row in rows),
        accuracy=accuracy,
        low=low,
        high=high,
        tokens=_mean_by_purpose(rows, "tokens"),
        flops=_mean_by_purpose(rows, "flops"),
        seconds=seconds,
    )


def _mean_by_purpose(rows: Sequence[Row], part: str) -> dict[str, float]:
    return {name: sum(row["ledger"][part].get(name, 0) for row in rows) / len(rows) for name in PURPOSES}


@dataclass(frozen=True)
class Comparison:
    """The difference in accuracy of two strategies on the problems and seeds of both, in percentage points."""

    better: str
    worse: str
    budget: int  # generations, of `better`
    points: float
    low: float  # 95 % interval
    high: float

    def __str__(self) -> str:
        interval = f"(95 % interval {self.low:+.1f} to {self.high:+.1f}, by problem)"
        level = f"{self.points:.1f} points above"
        if self.points <= 0:
            level = f"not above but {-self.points:.1f} points below" if self.points else "level with"
        return f"At budget {self.budget} {self.better} is {level} {self.worse} {interval}."


def compare(rows: Iterable[Row]) -> list[Comparison]:
    """The comparisons of all usual pairs of strategies that have a common budget (`single` has any)."""
    groups = group_rows(rows)
    found = []
    for better, worse in _COMPARISONS:
        for (strategy, budget), group in groups.items():
            if strategy != better:
                continue
            singles = [rows for (name, _), rows in groups.items() if name == worse == "single"]
            other = groups.get((worse, budget)) or (singles[0] if singles else [])
            if comparison := _compare(better, worse, budget, group, other):
                found.append(comparison)
    return found


def _compare(better: str, worse: str, budget: int, ours: list[Row], theirs: list[Row]) -> Comparison | None:
    """Compares rows of the same problem and seed; None if there are none."""
    baseline = {(row["id"], row["seed"]): accuracy_of(row) for row in theirs}
    differences, problems = [], []
    for row in ours:
        old, new = baseline.get((row["id"], row["seed"])), accuracy_of(row)
        if old is not None and new is not None:
            differences.append(100 * (new - old))
            problems.append(row["id"])
    if not differences:
        return None
    low, high = bootstrap_interval(differences, problems)
    return Comparison(better, worse, budget, sum(differences) / len(differences), low, high)


COLUMNS = ("strategy", "budget", "n", "accuracy % (95 %)", "gen.", "forward", "FLOPs", "verif.", "s")
_LEGEND = (
    "n: problems x seeds; per problem: gen. (tokens of answers), forward (all tokens through a "
    "model), FLOPs; verif.: the verifier's share of FLOPs; s: for all"
)


def table_cells(summaries: Iterable[StrategySummary]) -> list[list[str]]:
    """The cells under COLUMNS."""
    cells = []
    for each in summaries:
        accuracy = "-"
        if each.accuracy is not None:
            accuracy = f"{100 * each.accuracy:.1f} ({100 * each.low:.1f}-{100 * each.high:.1f})"
        cells.append(
            [
                each.strategy,
                str(each.budget),
                f"{each.num_problems}" + (f"x{each.num_seeds}" if each.num_seeds > 1 else ""),
                accuracy,
                quantity(each.tokens["generated"]),
                quantity(each.total_tokens),
                quantity(each.total_flops),
                f"{100 * each.verifier_share:.0f} %",
                "-" if each.seconds is None else f"{each.seconds:.1f}",
            ]
        )
    return cells


def quantity(amount: float) -> str:
    """An amount with three significant digits and a decimal prefix: 0, 950, 12.3 k, 4.56 M."""
    for prefix in ("", " k", " M", " G", " T", " P", " E"):
        if abs(amount) < 999.5 or prefix == " E":
            break
        amount /= 1000
    if not prefix and amount == int(amount):
        return str(int(amount))
    digits = 0 if abs(amount) >= 99.95 else 1 if abs(amount) >= 9.995 else 2
    return f"{amount:.{digits}f}{prefix}"


def terminal_table(summaries: Iterable[StrategySummary], comparisons: Iterable[Comparison] = ()) -> Group:
    """A rich table that fits 80 columns, with a legend and the comparisons below it."""
    table = Table(box=box.SIMPLE_HEAD, padding=0, show_edge=False)
    table.add_column(COLUMNS[0], min_width=10, overflow="fold")
    for name in COLUMNS[1:]:
        table.add_column(name, justify="right", no_wrap=True)
    for cells in table_cells(summaries):
        table.add_row(*map(Text, cells))
    return Group(table, Text(_LEGEND, style="dim"), *(Text(str(comparison)) for comparison in comparisons))


def markdown_table(summaries: Iterable[StrategySummary], comparisons: Iterable[Comparison] = ()) -> str:
    """The same cells as a Markdown table, the comparisons as a list below it."""
    lines = ["| " + " | ".join(COLUMNS) + " |", "|---" * len(COLUMNS) + "|"]
    for cells in table_cells(summaries):
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    notes = [f"- {comparison}" for comparison in comparisons]
    return "\n".join([*lines, "", _LEGEND + ".", *([""] if notes else []), *notes]) + "\n"
