"""What `ttc calibrate` measures where nothing is named."""

import pytest

from engine.cli.grid import GridOptions, build_grid
from engine.scheduler import strategy_label


def labels(options: GridOptions, verifier: str = "prm", *, has_reviser: bool = False) -> list[str]:
    grid = build_grid(options, verifier, has_reviser=has_reviser)
    return list(dict.fromkeys(strategy_label(strategy) for strategy, _ in grid.cells))


def test_all_kinds_that_the_models_can_run_with_and_without_stopping():
    scored = ["best-of-n", "beam:width=2", "beam", "beam:width=0", "dvts", "rebase"]
    found = labels(GridOptions())
    assert found == ["majority", "adaptive:vote=majority", *scored, *(f"{each}:stop=0.95" for each in scored)]
    with_reviser = labels(GridOptions(), has_reviser=True)
    ratios = ["revisions:parallel=1", "revisions"]
    assert set(with_reviser) - set(found) == {*ratios, *(f"{each}:stop=0.95" for each in ratios)}
    assert "revisions" in labels(GridOptions(), "orm", has_reviser=True)
    assert "beam" not in labels(GridOptions(), "orm")


def test_what_no_budget_suits_is_left_out_unless_it_was_named():
    assert "beam" not in labels(GridOptions(budgets="6"))
    with pytest.raises(ValueError, match="beam can spend none of the budgets after the 4 of the pilot, got '6'"):
        labels(GridOptions(strategies="beam", budgets="6"))


def test_searches_that_stop_come_last():
    assert labels(GridOptions(strategies="beam:stop=0.9,majority")) == ["majority", "beam:stop=0.9"]
