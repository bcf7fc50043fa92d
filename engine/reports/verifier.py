"""`ttc verify`: the quality of a verifier on labelled answers, as figures, a table and a page."""

from __future__ import annotations

import os
import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from rich import box
from rich.table import Table

from engine.errors import UserError
from engine.files import write_atomically
from engine.reports.html import page_environment
from engine.reports.overoptimisation import explanation, headings, notes, overoptimisation_chart, table_rows
from engine.reports.verifier_charts import reliability_chart, roc_chart
from engine.verifiers.figures import (
    Bin,
    auc,
    auc_within,
    best_threshold,
    first_errors,
    first_wrong_area,
    reliability,
    roc_points,
)


@dataclass(frozen=True)
class ScoredAnswer:
    """A labelled answer and the verifier's scores."""

    question: str
    scores: tuple[float, ...]  # one per step, or one for the whole answer
    labels: tuple[float, ...]  # one per step, within 0..1; the last says whether the answer is right
    first_wrong: int | None  # index of the first wrong step, -1 for none, None if unknown
    is_ended: bool = True  # else the last step is one that a search rejected, and no answer is given

    @property
    def is_right(self) -> bool:
        return self.labels[-1] >= 0.5

    @property
    def has_steps(self) -> bool:
        return len(self.scores) == len(self.labels)


# The figures shown for answers and for steps: heading -> key.
_FIGURES = {
    "number": "count",
    "mean score": "mean_score",
    "mean label": "mean_label",
    "ECE": "ece",
    "Brier": "brier",
    "AUC": "auc",
    "AUC within questions": "auc_within_questions",
    "AUC of first wrong steps": "auc_first_wrong",
    "pairs at the same place": "first_wrong_pairs",
    "AUC of first wrong, pooled": "auc_first_wrong_pooled",
}


def verifier_figures(answers: Sequence[ScoredAnswer], *, judges: str, seed: int = 0) -> dict:
    """All figures of the report, as JSON values.

    * `answers`: last scores of those that have ended against whether they are right
    * `steps`, if the verifier `judges` "steps": all scores against all labels, and the `FirstWrongArea`
    * `first_wrong`: how often the first wrong step is found exactly, on one half of the questions (drawn by the
      seed) with the threshold that is best on the other; null if either half lacks wrong or right answers

    Raises UserError if all answers are right or all are wrong.
    """
    ended = [answer for answer in answers if answer.is_ended]
    rights = [answer.is_right for answer in ended]
    if all(rights) or not any(rights):
        raise UserError(f"figures need right and wrong answers, got {sum(rights)} right ones of {len(rights)}")
    questions = [answer.question for answer in ended]
    ends = [answer.scores[-1] for answer in ended]
    figures: dict = {
        "num_answers": len(ended),
        "num_questions": len({answer.question for answer in answers}),
        "share_right": sum(rights) / len(rights),
        "answers": _figures(ends, [float(right) for right in rights], questions) | {"roc": roc_points(ends, rights)},
        "steps": None,
        "first_wrong": None,
    }
    if judges == "steps":
        scores = [score for answer in answers for score in answer.scores]
        labels = [label for answer in answers for label in answer.labels]
        places = [answer.question for answer in answers for _ in answer.labels]
        figures["steps"] = _figures(scores, labels, places) | _first_wrong_area(answers)
        figures["first_wrong"] = _first_wrong(answers, seed)
    return figures


def _figures(scores: Sequence[float], labels: Sequence[float], questions: Sequence[str]) -> dict:
    is_good = [label >= 0.5 for label in labels]
    found = reliability(scores, labels)
    return {
        "count": len(scores),
        "mean_score": sum(scores) / len(scores),
        "mean_label": sum(labels) / len(labels),
        "ece": found.ece,
        "brier": found.brier,
        "auc": _known(auc(scores, is_good)),
        "auc_within_questions": _known(auc_within(scores, is_good, questions)),
        "reliability": [asdict(each) for each in found.bins],
    }


def _first_wrong_area(answers: Sequence[ScoredAnswer]) -> dict:
    known = [answer for answer in answers if answer.first_wrong is not None]
    columns = ([getattr(answer, name) for answer in known] for name in ("scores", "first_wrong", "question"))
    return {name: _known(value) for name, value in asdict(first_wrong_area(*columns)).items()}


def _known(value: float) -> float | None:
    return None if value != value else value


def _first_wrong(answers: Sequence[ScoredAnswer], seed: int) -> dict | None:
    known = [answer for answer in answers if answer.first_wrong is not None]
    questions = sorted({answer.question for answer in known})
    random.Random(f"verify/{seed}").shuffle(questions)
    chosen = set(questions[: len(questions) // 2])
    halves = [[answer for answer in known if (answer.question in chosen) == is_first] for is_first in (True, False)]
    if any({answer.first_wrong >= 0 for answer in half} != {True, False} for half in halves):
        return None
    (tuning, tuning_places), (scores, places) = (
        ([answer.scores for answer in half], [answer.first_wrong for answer in half]) for half in halves
    )
    found = first_errors(scores, places, best_threshold(tuning, tuning_places))
    return asdict(found) | {"f1": found.f1}


def verifier_table(figures: Mapping) -> Table:
    """The figures without the curves, for a terminal."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), show_edge=False)
    columns = _columns(figures)
    table.add_column("", no_wrap=True)
    for name, _ in columns:
        table.add_column(name, justify="right", no_wrap=True)
    for name, *cells in zip(_FIGURES, *(cells for _, cells in columns), strict=True):
        table.add_row(name, *cells)
    return table


def first_wrong_line(figures: Mapping) -> str:
    """The figures of `first_wrong` in words."""
    found = figures["first_wrong"]
    if found is None:
        return "first wrong steps: not measured"
    return (
        f"first wrong step found in {100 * found['found']:.1f} % of {found['num_wrong']:,} wrong answers, none seen in "
        f"{100 * found['cleared']:.1f} % of {found['num_right']:,} right ones (F1 {found['f1']:.3f}, "
        f"threshold {found['threshold']:.3g} from the other half of the questions)"
    )


def _columns(figures: Mapping) -> list[tuple[str, list[str]]]:
    """The cells of all figures, for answers and, where they are scored, for steps."""
    parts = [part for part in ("answers", "steps") if figures[part] is not None]
    return [(part, [_shown(figures[part].get(key)) for key in _FIGURES.values()]) for part in parts]


def _shown(value: float | int | None) -> str:
    return "–" if value is None else f"{value:,}" if isinstance(value, int) else f"{value:.3f}"


def write_verifier_report(
    figures: Mapping | None, searched: Mapping | None, out: str | os.PathLike[str], *, title: str, facts: Mapping
) -> None:
    """Writes the page atomically; `facts` (verifier, data ...) are shown under the title. Raises OSError.

    `figures` are those of `verifier_figures`, `searched` those of `overoptimisation`; either may be missing.
    """
    parts = {"searched": None, "rows": None} | ({} if figures is None else _label_parts(figures))
    if searched is not None:
        parts["searched"] = {
            "chart": overoptimisation_chart(searched),
            "headings": headings(searched),
            "rows": table_rows(searched),
            "notes": notes(searched),
            "explanation": explanation(),
        }
    template = page_environment().get_template("verifier.html.j2")
    page = template.render(title=title, facts=facts, purposes=[], examples=[], **parts)
    write_atomically(out, page.encode("utf-8", "replace"))


def _label_parts(figures: Mapping) -> dict:
    """What the page shows of scores against labels."""
    charts = {
        part: reliability_chart([Bin(**each) for each in figures[part]["reliability"]], label)
        for part, label in (("answers", "share of right answers"), ("steps", "mean label of steps"))
        if figures[part] is not None
    }
    return {
        "names": list(_FIGURES),
        "rows": _columns(figures),
        "first_wrong": first_wrong_line(figures),
        "answers": charts["answers"],
        "steps": charts.get("steps"),
        "roc": roc_chart(figures["answers"]["roc"]),
        "auc": f"{figures['answers']['auc']:.3f}",
    }
