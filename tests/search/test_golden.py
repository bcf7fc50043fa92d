"""Every strategy replays a stored tree.

After a wanted change of behaviour, `python -m tests.search.test_golden` writes the trees again;
read the difference before keeping it.
"""

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from engine.search import DVTS, Adaptive, BeamSearch, BestOfN, Lookahead, Majority, Rebase, Revisions

from .fakes import FakePolicy, random_draw, search

FOLDER = Path(__file__).parent / "golden"
STRATEGIES = {
    "majority": Majority(),
    "best-of-n": BestOfN(),
    "beam": BeamSearch(width=2),
    "beam-diverse": BeamSearch(width=2, max_duplicates=0),
    "lookahead": Lookahead(width=2, lookahead=1),
    "dvts": DVTS(width=2),
    "rebase": Rebase(),
    "revisions": Revisions(parallel=2, context=2),
    "adaptive": Adaptive(batch=2, confidence=0.6),
}


def as_json(strategy) -> str:
    """A search in one line per node and candidate."""
    reviser = FakePolicy(random_draw)
    result = search(strategy, 8, seed=0, reviser=reviser)
    assert reviser.num_open == 0
    lines = {"nodes": result.tree.nodes, "candidates": result.candidates}
    fields = [f'"{name}": {json.dumps(getattr(result, name))}' for name in ("strategy", "budget", "answer")]
    fields.append(f'"best": {result.tree.best}')
    fields.append(f'"tokens": {json.dumps({k: v for k, v in result.ledger.tokens.items() if v})}')
    for name, rows in lines.items():
        fields.append(f'"{name}": [\n  ' + ",\n  ".join(json.dumps(asdict(row)) for row in rows) + "\n]")
    return "{\n" + ",\n".join(fields) + "\n}\n"


@pytest.mark.parametrize("name", STRATEGIES)
def test_the_golden_tree_is_replayed(name):
    stored = (FOLDER / f"{name}.json").read_text()
    assert json.loads(as_json(STRATEGIES[name])) == json.loads(stored)


if __name__ == "__main__":
    for name, strategy in STRATEGIES.items():
        (FOLDER / f"{name}.json").write_text(as_json(strategy))
