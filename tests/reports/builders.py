"""Small made-up results."""

from __future__ import annotations

import random

from engine.accounting import Ledger
from engine.results import result_row
from engine.results.rows import Row
from engine.types import Candidate, Problem, SearchResult, SearchTree, TreeNode


def make_row(problem: str = "p0", **fields: object) -> Row:
    """A valid row with one completion; `fields` replace or add."""
    ledger = Ledger()
    ledger.add("generated", 12, 1200)
    row: Row = {
        "id": problem,
        "problem": "1;+1\n",
        "answer": "2",
        "pred": "2",
        "correct": True,
        "completions": ["1+1=2"],
        "scores": [[0.75]],
        "agg_scores": [0.75],
        "completion_tokens": [6],
        "strategy": "majority",
        "budget": 1,
        "seed": 0,
        "ledger": ledger.as_dict(),
    }
    return row | fields


def make_pool(answers: list[str | None], scores: list[float], **fields: object) -> Row:
    """A row whose candidates stated these answers."""
    count = len(answers)
    return make_row(
        completions=[f"={answer}" for answer in answers],
        answers=answers,
        scores=[[score] for score in scores],
        agg_scores=scores,
        completion_tokens=[3] * count,
        budget=count,
        **fields,
    )


def beam_tree(depth: int, num_beams: int, width: int, seed: int = 0) -> SearchTree:
    """The tree that a beam search leaves: every level keeps the best beams // width of its steps."""
    rng = random.Random(seed)
    nodes = [TreeNode((), None, status="root")]
    parents = [0]
    for level in range(depth):
        children = []
        for parent in parents:
            for number in range(num_beams if level == 0 else width):
                is_last = level + 1 == depth
                score, address = rng.random(), (*nodes[parent].address, number)
                finish = "eos" if is_last else "step"
                nodes.append(TreeNode(address, parent, f"{level}+{number}=<{level}>\n", score, score, 8, finish))
                children.append(len(nodes) - 1)
        parents = sorted(children, key=lambda index: -nodes[index].score)[: max(1, num_beams // width)]
        for index in parents:
            nodes[index].status = "kept"
    for index in children:
        nodes[index].status = "final"
    return SearchTree(nodes, best=parents[0])


def beam_result(depth: int = 4, num_beams: int = 8, width: int = 4, seed: int = 0, **fields: object) -> SearchResult:
    tree = beam_tree(depth, num_beams, width, seed)
    finals = [index for index, node in enumerate(tree.nodes) if node.status == "final"]
    candidates = []
    for index in finals:
        steps = [tree.nodes[at] for at in tree.path(index)[1:]]
        text, scores = "".join(step.step_text for step in steps), tuple(step.score for step in steps)
        address = tree.nodes[index].address
        answer = "7" if index == tree.best else "3"
        candidates.append(Candidate(text, answer, "eos", scores, scores[-1], 8 * depth, address))
    ledger = Ledger()
    for number, purpose in enumerate(("generated", "prefilled", "cached", "verified"), 1):
        ledger.add(purpose, 100 * number, 0 if purpose == "cached" else 10**6 * number)
    values = {
        "problem": Problem(f"b{seed}", "7;+0\n", "7"),
        "answer": "7",
        "strategy": "beam",
        "budget": num_beams,
        "seed": 0,
        "correct": True,
    } | fields
    return SearchResult(candidates=tuple(candidates), tree=tree, ledger=ledger, **values)


def beam_row(**arguments: object) -> Row:
    return result_row(beam_result(**arguments), with_tree=True)
