"""A search tree drawn from left to right: one column per step, or per attempt of a chain."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from markupsafe import Markup

from engine.reports import svg
from engine.results.rows import Row
from engine.types import FINISHED

MAX_LANES = 64
_LANE, _BOX = 28, 22  # heights of a lane, and of a node in it
_GAP = 30  # between columns
_CHARACTER = 7.0  # width in the monospaced font
_MAX_CHARACTERS = 26  # of a step's text
_SCORE = 34  # width of the score's field
_TOP = 34  # of the column headings


@dataclass
class _Shown:
    """A node as drawn: a node of the tree, or one that summarises several left out."""

    parent: int | None  # index into the list of shown nodes
    text: str
    tip: str
    classes: str
    score: float | None = None
    ending: str = ""  # shown after the text of a finished node
    depth: int = 0
    lane: int = 0  # vertical position, from the top
    children: list[int] = field(default_factory=list)


def tree_svg(nodes: list[Row], gold: str | None = None, max_lanes: int = MAX_LANES, unit: str = "step") -> Markup:
    """Draws the tree of a result row; `unit` names a node: "step", or "attempt" of a chain of revisions.

    A tree of more than `max_lanes` lanes is thinned out: pruned steps are gathered into one node per
    parent, then whole pruned branches, then the lower-scored finished ones.
    """
    for kept in _kept_nodes(nodes):
        shown = _gathered(nodes, kept, gold)
        _place(shown)
        num_lanes = max(each.lane for each in shown) + 1
        if num_lanes <= max_lanes:
            break
    num_columns = max(each.depth for each in shown) + 1
    widths = [max(_width(each) for each in shown if each.depth == depth) for depth in range(num_columns)]
    lefts = [8.0]
    for width in widths:
        lefts.append(lefts[-1] + width + _GAP)
    edges = [each for each in shown if each.parent is not None]
    edges.sort(key=lambda each: "best" in each.classes)  # drawn last, over the others
    parts = [_edge(shown[each.parent], each, lefts) for each in edges]
    parts += [_node(each, lefts[each.depth]) for each in shown]
    headings = ["problem", *(f"{unit} {depth}" for depth in range(1, num_columns))]
    parts += [svg.text(name, lefts[depth], 16, class_="tick") for depth, name in enumerate(headings)]
    width, height = lefts[-1] - _GAP + 8, _TOP + _LANE * num_lanes + 6
    label = f"search tree of {len(nodes) - 1} {unit}s"
    return svg.image(parts, (width, height), label, is_scaled=False, class_="tree")


def path_to(nodes: list[Row], index: int | None) -> set[int]:
    """Indices of a node and its ancestors."""
    path = set()
    while index is not None:
        path.add(index)
        index = nodes[index]["parent"]
    return path


def best_path(nodes: list[Row]) -> set[int]:
    """Indices of the nodes on the chosen path; empty if no answer was chosen."""
    return path_to(nodes, next((index for index, node in enumerate(nodes) if node.get("best")), None))


def _kept_nodes(nodes: list[Row]) -> Iterator[set[int]]:
    """Yields ever smaller sets of nodes to draw individually, closed under parents: from all to the best path."""
    finals = [index for index, node in enumerate(nodes) if node["status"] == "final"]
    best = best_path(nodes) | {0}
    has_children = {node["parent"] for node in nodes}
    finished = best.union(*(path_to(nodes, index) for index in finals))
    yield set(range(len(nodes)))
    yield finished | {i for i, node in enumerate(nodes) if i in has_children or node["status"] != "pruned"}
    yield finished
    finals.sort(key=lambda index: -(_score(nodes[index]) or 0.0))
    num_finals = len(finals)
    while num_finals > 1:
        num_finals = num_finals * 3 // 4
        yield best.union(*(path_to(nodes, index) for index in finals[:num_finals]))
    yield best


def _score(node: Row) -> float | None:
    return node["agg_score"] if node.get("agg_score") is not None else node.get("score")


def _gathered(nodes: list[Row], kept: set[int], gold: str | None) -> list[_Shown]:
    """The nodes to draw, parents first; all that is left out below a parent becomes one node."""
    best = best_path(nodes)
    left_out: dict[int, list[int]] = {}  # kept parent -> everything left out below it
    owner: dict[int, int] = {}
    for index, node in enumerate(nodes):
        if index not in kept:
            owner[index] = node["parent"] if node["parent"] in kept else owner[node["parent"]]
            left_out.setdefault(owner[index], []).append(index)
    place: dict[int, int] = {}
    shown: list[_Shown] = []
    for index, node in enumerate(nodes):
        if index in kept:
            place[index] = len(shown)
            shown.append(_shown_node(node, index, index in best, gold, place.get(node["parent"])))
    for parent, missing in left_out.items():
        shown.append(_gathering([nodes[index] for index in missing], place[parent]))
    for number, each in enumerate(shown):
        if each.parent is not None:
            shown[each.parent].children.append(number)
            each.depth = shown[each.parent].depth + 1
    return shown


def _shown_node(node: Row, index: int, is_best: bool, gold: str | None, parent: int | None) -> _Shown:
    if index == 0:
        return _Shown(None, "problem", "the problem", "node root" + (" best" if is_best else ""))
    step = " ".join(node.get("text", "").split()) or "(no text)"
    facts = [f"step: {step}", f"status: {node['status']}", f"tokens: {node.get('tokens', 0)}"]
    known = [name for name in ("score", "agg_score", "finish") if node.get(name) is not None]
    facts += [f"{name}: {node[name]}" for name in known]
    classes, ending = ["node", node["status"]], ""
    if node["status"] == "final" or node.get("finish") in (*FINISHED, "length", "error"):
        classes.append("finished")
        ending = {"length": "cut off", "error": "error"}.get(node.get("finish"), "")
        answer = node.get("answer")
        if not ending and answer is not None and gold is not None:
            ending = "✓" if answer == gold else "✗"
            facts.append(f"answer: {answer} ({'right' if answer == gold else 'wrong'})")
        classes.append({"✓": "right", "✗": "wrong"}.get(ending, "open"))
    if is_best:
        classes.append("best")
    return _Shown(parent, _cut(step), "\n".join(facts), " ".join(classes), node.get("score"), ending or "")


def _gathering(nodes: list[Row], parent: int) -> _Shown:
    num_finished = sum(node["status"] == "final" for node in nodes)
    what = f"+{len(nodes)} step" + "s" * (len(nodes) > 1)
    if num_finished:
        what += f", {num_finished} finished"
    scores = [node["score"] for node in nodes if node.get("score") is not None]
    tip = f"{len(nodes)} steps not drawn"
    if scores:
        tip += f", scores {min(scores):.2f} to {max(scores):.2f}"
    return _Shown(parent, what, tip, "node gathered")


def _place(shown: list[_Shown]) -> None:
    """Sets the lanes: a node shares that of its first child (so the best path runs straight along the top), and
    every further child's branch is as high as it fits below those before it."""
    # Per node, by level below it: the first lane taken and the first free below, relative to the node's own.
    contours: list[list[tuple[int, int]]] = [[] for _ in shown]
    offsets = [0] * len(shown)
    for number in reversed(range(len(shown))):  # children come after parents
        each, taken = shown[number], []
        each.children.sort(key=lambda child: _rank(shown[child]))
        for child in each.children:
            levels = contours[child]
            pairs = zip(taken, levels, strict=False)
            offsets[child] = max((free - first for (_, free), (first, _) in pairs), default=0)
            for level, (first, free) in enumerate(levels):
                low, high = first + offsets[child], free + offsets[child]
                if level < len(taken):
                    taken[level] = (taken[level][0], high)
                else:
                    taken.append((low, high))
            contours[child] = []
        contours[number] = [(0, 1), *taken]
    for number, each in enumerate(shown):
        each.lane = offsets[number] + (0 if each.parent is None else shown[each.parent].lane)


def _rank(each: _Shown) -> tuple[bool, bool, bool, bool, float]:
    """A sort key: the best path, then leaves (finished before pruned, then by score), then longer branches."""
    is_leaf = not each.children
    is_pruned = "pruned" in each.classes
    is_gathered = "gathered" in each.classes
    return "best" not in each.classes, not is_leaf, is_gathered, is_pruned, -(each.score or 0.0)


def _cut(content: str) -> str:
    return content if len(content) <= _MAX_CHARACTERS else content[: _MAX_CHARACTERS - 1] + "…"


def _width(each: _Shown) -> float:
    length = len(each.text) + (len(each.ending) + 1 if each.ending else 0)
    return length * _CHARACTER + 18 + (_SCORE if each.score is not None else 0)


def _middle(each: _Shown) -> float:
    return _TOP + _LANE * each.lane + _LANE / 2


def _edge(parent: _Shown, child: _Shown, lefts: list[float]) -> Markup:
    x1, y1 = lefts[parent.depth] + _width(parent), _middle(parent)
    x2, y2 = lefts[child.depth], _middle(child)
    start = x2 - _GAP  # the curve begins where the parent's column ends, so that it crosses no box
    bend = x2 - _GAP / 2
    path = f"M{x1:.1f} {y1:.1f}H{start:.1f}C{bend:.1f} {y1:.1f} {bend:.1f} {y2:.1f} {x2:.1f} {y2:.1f}"
    return svg.element("path", d=path, class_=child.classes.replace("node", "edge"))


def _node(each: _Shown, x: float) -> Markup:
    y, width = _middle(each) - _BOX / 2, _width(each)
    radius = _BOX / 2 if "finished" in each.classes else 4
    parts = [svg.element("title", each.tip)]
    parts.append(svg.element("rect", x=x, y=y, width=width, height=_BOX, rx=radius, class_="box"))
    if each.score is not None:
        left, bottom, length = x + 6, y + _BOX - 3, width - 12
        filled = length * min(max(each.score, 0.0), 1.0)
        parts.append(svg.line(left, bottom, left + length, bottom, class_="rail"))
        parts.append(svg.line(left, bottom, left + filled, bottom, class_="score-bar"))
        parts.append(svg.text(f"{each.score:.2f}", x + width - 9, y + 14, "end", class_="score"))
    parts.append(svg.text(each.text, x + 9, y + 14, class_="step"))
    if each.ending:
        after = x + 9 + (len(each.text) + 1) * _CHARACTER
        parts.append(svg.text(each.ending, after, y + 14, class_="ending"))
    return svg.group(parts, class_=each.classes)
