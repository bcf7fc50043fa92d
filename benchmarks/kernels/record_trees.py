"""Writes trees.json: the shapes of the KV trees that searches with the shipped models decode over.

    python -m benchmarks.kernels.record_trees

For each strategy it takes the end of a deep and wide round in a search of several problems at the same time: the
prompts, the steps on the paths of the branches that were decoded, and what each of them has sampled in that round.
"""

from __future__ import annotations

import json
from collections import Counter

from benchmarks.kernels.trees import RECORDED
from engine import BeamSearch, BestOfN, Engine, Lookahead, SearchResult
from engine.reports.progress import Progress
from engine.search.protocols import Strategy
from engine.tasks import take_problems

SEARCHES: tuple[tuple[Strategy, int, int], ...] = (  # strategy, budget, problems
    (BeamSearch(width=4), 64, 4),
    (Lookahead(width=4, lookahead=1), 64, 4),
    (BestOfN(), 256, 1),
)


def star(results: list[SearchResult], prompts: list[int]) -> list[tuple[int, int]]:
    """(parent, tokens) where every answer is sampled in one go: a node each, under its prompt."""
    nodes: list[tuple[int, int]] = []
    for result, length in zip(results, prompts, strict=True):
        root = len(nodes)
        nodes += [(-1, length), *((root, candidate.num_tokens) for candidate in result.candidates)]
    return nodes


def forest(results: list[SearchResult], prompts: list[int]) -> list[tuple[int, int]]:
    """(parent, tokens) of the nodes of the deepest round with half as many branches as the widest."""
    widths = Counter(len(node.address) for result in results for node in result.tree.nodes if node.address)
    depth = max(depth for depth, width in widths.items() if 2 * width >= max(widths.values()))
    nodes: list[tuple[int, int]] = []
    for result, length in zip(results, prompts, strict=True):
        tree, number = result.tree, {}
        live = [index for index, node in enumerate(tree.nodes) if len(node.address) == depth]
        for index in sorted({index for leaf in live for index in tree.path(leaf)}):
            parent = tree.nodes[index].parent
            number[index] = len(nodes)
            nodes.append((-1, length) if parent is None else (number[parent], tree.nodes[index].num_tokens))
    return nodes


def recorded(engine: Engine, strategy: Strategy, budget: int, num_problems: int) -> dict[str, object]:
    """The name and the nodes of one search."""
    problems = take_problems(engine.task, "test", num_problems)
    results = engine.search(problems, strategy, budget)
    shape = forest if strategy.stop_at_step else star
    nodes = shape(results, [len(engine.policy.encode(problem.prompt)) for problem in problems])
    return {"name": f"{strategy.name} {budget} of {num_problems} problem{'s' * (num_problems > 1)}", "nodes": nodes}


def main() -> None:
    """Writes the file."""
    engine = Engine.load("home")
    with Progress("searches:", len(SEARCHES)) as progress:
        rows = []
        for search in SEARCHES:
            rows.append(json.dumps(recorded(engine, *search)))
            progress.advance()
    RECORDED.write_text("[\n" + ",\n".join(rows) + "\n]\n")


if __name__ == "__main__":
    main()
