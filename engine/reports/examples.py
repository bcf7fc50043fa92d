"""Chooses the search trees that a report shows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from engine.reports.tables import accuracy_of, strategy_key
from engine.reports.tree import best_path
from engine.results.pools import sample_accuracy
from engine.results.rows import Row


@dataclass(frozen=True)
class Example:
    """A row whose search tree is shown."""

    row: Row
    sample_share: float | None  # 0..1, share of single samples that solve the problem, where known
    reason: str  # why it is shown

    @property
    def story(self) -> str:
        """One sentence on why the search found what single samples miss; "" where it did not, or nobody knows."""
        nodes, share = self.row["tree"], self.sample_share
        num_pruned = sum(node["status"] == "pruned" for node in nodes)
        if not self.row["correct"] or share is None or share >= 0.5 or not num_pruned:
            return ""
        alone = f"{100 * share:.0f} % of single samples are" if share else "no single sample is"
        return (
            f"One answer has to get every step right at once, and {alone} right; the search has each step scored as "
            f"it is made, dropped {num_pruned} of {len(nodes) - 1} and went on from the others alone."
        )


def choose_examples(rows: Sequence[Row], max_examples: int = 6) -> list[Example]:
    """Chooses rows with trees.

    The first is a problem that a search solves but single samples mostly do not, followed by the same problem
    under the other strategies, another such problem and a failed search.
    """
    with_tree = [row for row in rows if row.get("tree") and len(row["tree"]) > 1]
    if not with_tree:
        return []
    shares = _sample_shares(rows)
    ranked = sorted(with_tree, key=lambda row: -_interest(row, shares.get(row["id"])))
    first = ranked[0]
    chosen = [(first, _reason(first, shares))]

    def take(row: Row | None, reason: str) -> None:
        if row is not None and all(row is not old for old, _ in chosen):
            chosen.append((row, reason))

    same = [row for row in with_tree if row["id"] == first["id"] and row["seed"] == first["seed"]]
    for row in sorted(same, key=lambda row: (strategy_key(row["strategy"]), -row["budget"])):
        if row["strategy"] not in {old["strategy"] for old, _ in chosen}:
            take(row, "the same problem")
    others = [row for row in ranked if row["id"] != first["id"]]
    failed = next((row for row in others if row["correct"] is False and best_path(row["tree"])), None)
    num_before = max(1, max_examples - 2)
    chosen = chosen[:num_before]
    solved = next((row for row in others if row["correct"]), None)
    take(solved, _reason(solved, shares) if solved else "")
    take(failed, "the search fails")
    return [Example(row, shares.get(row["id"]), reason) for row, reason in chosen[:max_examples]]


def _sample_shares(rows: Sequence[Row]) -> dict[str, float]:
    """Share of single samples that solve each problem, from `single` rows or else the samples of other strategies."""
    for strategies in (("single",), ("majority", "best-of-n")):
        seen: dict[str, list[float]] = {}
        for row in rows:
            if row["strategy"] in strategies:
                share = accuracy_of(row) if strategies == ("single",) else sample_accuracy(row)
                if share is not None:
                    seen.setdefault(row["id"], []).append(share)
        if seen:
            return {problem: sum(values) / len(values) for problem, values in seen.items()}
    return {}


def _interest(row: Row, share: float | None) -> float:
    nodes = row["tree"]
    depth = max((len(steps) for steps in row["scores"]), default=0)
    has_choices = any(node["status"] == "pruned" for node in nodes)
    # A problem that no sample solves is a fluke rather than a lesson; one in ten is about right.
    hardness = 0.0 if share is None else 2 * (1 - share) - (1.0 if share == 0 else 0.0)
    return (
        (3.0 if row["correct"] else 0.0)
        + hardness
        + (2.0 if has_choices else 0.0)
        + (1.0 if best_path(nodes) else 0.0)
        + (0.5 if 3 <= depth <= 6 else 0.0)
        + (0.5 if len(nodes) <= 400 else 0.0)  # drawn whole
    )


def _reason(row: Row, shares: dict[str, float]) -> str:
    share = shares.get(row["id"])
    if not row["correct"]:
        return "the search fails" if row["correct"] is False else "not graded"
    return "solved by search" if share is not None and share < 0.5 else "solved"
