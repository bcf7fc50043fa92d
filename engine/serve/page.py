"""The page for people: a problem is typed, and the tree is watched as it grows."""

from __future__ import annotations

import html
import json
from pathlib import Path

from engine.serve.asked import DEFAULT_STRATEGY, Models
from engine.tasks import Task, take_problems

_FILE = Path(__file__).with_name("static") / "index.html"


def make_page(models: Models, task: Task) -> str:
    """One file without links to anything else."""
    page = _FILE.read_text(encoding="utf-8")
    filled = {
        "<!--example-->": html.escape(_example(task)),
        "<!--strategies-->": "".join(map(_option, models.strategies())),
        '"<!--model-->"': json.dumps(models.name).replace("<", "\\u003c"),
    }
    for mark, text in filled.items():
        page = page.replace(mark, text)
    return page


def _option(name: str) -> str:
    chosen = " selected" if name == DEFAULT_STRATEGY else ""
    return f"<option{chosen}>{html.escape(name)}</option>"


def _example(task: Task) -> str:
    """A problem of a task that makes its own."""
    if not task.is_endless:
        return ""
    found = take_problems(task, task.splits[-1], 40)
    return max(found, key=lambda problem: len(problem.prompt)).prompt.strip()
