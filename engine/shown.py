"""Results, candidates, bills and running searches show themselves in a notebook."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from engine.accounting import Ledger
from engine.handle import SearchHandle
from engine.types import Candidate, SearchResult


def show_in_notebooks() -> None:
    """Gives them the methods that a notebook calls: what is shown stands on lower floors than what shows it."""
    SearchResult._repr_html_ = _shown_by("result_html")
    Candidate._repr_html_ = _shown_by("candidate_html")
    Ledger._repr_html_ = _shown_by("ledger_html")
    SearchHandle._repr_html_ = _shown_by("handle_html")
    SearchHandle._ipython_display_ = _shown_by("show_live")


def _shown_by(name: str) -> Callable[[Any], Any]:
    """A method that has a function of engine.reports.notebook show an object, imported when a notebook asks for it."""

    def show(shown: Any) -> Any:
        from engine.reports import notebook

        return getattr(notebook, name)(shown)

    return show
