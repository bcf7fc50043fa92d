"""What a notebook shows of results, candidates, bills and of a search that runs."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

from jinja2 import Template

from engine.accounting import Ledger
from engine.handle import SearchHandle
from engine.reports.html import page_environment
from engine.reports.tables import quantity
from engine.reports.tree import tree_svg
from engine.results.rows import Row, tree_nodes
from engine.search import SearchEvent
from engine.types import Candidate, Problem, SearchResult

_UNITS = {"revisions": "attempt"}
_PERIOD = 0.2  # seconds between two pictures of a search that runs


def result_html(result: SearchResult) -> str:
    """The answer, the search tree and the bill."""
    lead = {
        "answer": result.answer,
        "correct": {None: "", True: "yes", False: "no"}[result.correct],
        "strategy": result.strategy,
        "generations": f"{result.num_generations} of {result.budget}",
        "plan": result.plan,
        "stopped by": result.stopped_by,
    }
    nodes = tree_nodes(result.tree, {each.address: each.answer for each in result.candidates})
    tree = tree_svg(nodes, result.problem.answer, unit=_UNITS.get(result.strategy, "step"))
    return _page(problem=result.problem, lead=lead, tree=tree, ledger=result.ledger)


def candidate_html(candidate: Candidate) -> str:
    """The text, what it states and its scores."""
    scores = " ".join(f"{score:.3f}" for score in candidate.scores)
    lead = {"answer": candidate.answer, "finish": candidate.finish, "tokens": candidate.num_tokens, "scores": scores}
    return _page(lead=lead, text=candidate.text)


def ledger_html(ledger: Ledger) -> str:
    """Tokens and FLOPs by purpose."""
    return _page(ledger=ledger)


def handle_html(handle: SearchHandle) -> str:
    """The tree of a search as far as it has come, its answers and its bill; the result, once there is one."""
    if handle.outcome is not None:
        return result_html(handle.outcome)
    events = list(handle.events)
    last = next((event for event in reversed(events) if event.kind in ("spent", "done")), SearchEvent("spent"))
    lead = {
        "answer": last.answer,
        "generations": last.generations,
        "answers": sum(event.kind == "answer" for event in events),
        "state": "done" if handle.is_done else "running",
    }
    tree = tree_svg(_nodes(events), handle.problem.answer)
    return _page(problem=handle.problem, lead=lead, tree=tree, ledger=handle.ledger)


def show_live(handle: SearchHandle, display: Callable[..., Any] | None = None) -> asyncio.Task | None:
    """Shows a handle in a notebook, and goes on showing it as events come; what IPython calls to display one.

    `display` is that of IPython, which makes what `update` replaces. Outside a running event loop it shows the present.
    """
    if display is None:
        from IPython.display import display
    shown = display({"text/html": handle_html(handle)}, raw=True, display_id=True)
    try:
        return asyncio.get_running_loop().create_task(_follow(handle, shown))
    except RuntimeError:
        return None


async def _follow(handle: SearchHandle, shown: Any) -> None:
    updated = 0.0
    async for event in handle:
        if event.kind == "done" or time.monotonic() > updated + _PERIOD:
            updated = time.monotonic()
            shown.update({"text/html": handle_html(handle)}, raw=True)
            await asyncio.sleep(0)


def _nodes(events: Sequence[SearchEvent]) -> list[Row]:
    """The tree that events tell of, as a row holds it."""
    nodes: list[Row] = [{"parent": None, "status": "root", "score": None, "text": "", "tokens": 0, "finish": None}]
    places: dict[tuple[int, ...], int] = {(): 0}
    for event in events:
        if event.kind == "step":
            parent = places[event.address[:-1]]
            places[event.address] = len(nodes)
            shown = {"score": event.score, "text": event.text, "tokens": 0, "finish": None}
            nodes.append({"parent": parent, "status": "kept", **shown})
        elif event.kind in ("kept", "pruned"):
            nodes[places[event.address]]["status"] = event.kind
        elif event.kind == "answer":
            nodes[places[event.address]] |= {"status": "final", "answer": event.answer, "finish": "eos"}
    return nodes


@cache
def _template() -> Template:
    return page_environment().get_template("notebook.html.j2")


def _page(
    *,
    problem: Problem | None = None,
    lead: dict[str, object] | None = None,
    text: str | None = None,
    tree: str | None = None,
    ledger: Ledger | None = None,
) -> str:
    bill = [] if ledger is None else [(name, ledger.tokens[name], ledger.flops[name]) for name in ledger.tokens]
    return _template().render(
        problem=None if problem is None else problem.prompt,
        lead=[(name, value) for name, value in (lead or {}).items() if value not in (None, "")],
        text=text,
        tree=tree,
        bill=[(name, f"{tokens:,}", quantity(flops)) for name, tokens, flops in bill if tokens or flops],
    )
