"""Checks of what a search is asked for, before anything is opened."""

from __future__ import annotations

from engine.config import SearchConfig
from engine.counts import shown
from engine.errors import UserError
from engine.search.aggregate import check_agg_strategy
from engine.search.protocols import Strategy
from engine.verifiers.base import Verifier


def check_arguments(strategy: Strategy, verifier: Verifier | None, config: SearchConfig, *, num_spent: int = 0) -> None:
    """Raises UserError, with the value received, for what `run_search` cannot run; numbers are checked by the config.

    `num_spent` generations of the budget were spent by an earlier search that this one goes on from.
    """
    budget = config.budget
    assert config.max_tokens is not None, "the task's limit stands in for None"
    check_agg_strategy(config.agg_strategy)
    if num_spent > budget:
        raise UserError(f"budget must be at least the {num_spent} generations already spent, got {budget}")
    if num_spent < budget:
        strategy.groups(budget - num_spent)
    if not strategy.is_scored:
        return
    if verifier is None:
        raise UserError(f"strategy {strategy.name!r} needs a verifier, got None")
    if config.stop_texts and verifier.reads_trunk:
        raise UserError(
            f"a head on the policy's trunk reads at ends of steps and of texts, and at no stop texts, got "
            f"{shown(config.stop_texts)}"
        )
    if strategy.stop_at_step and verifier.judges == "answers":
        raise UserError(
            f"strategy {strategy.name!r} scores steps, the verifier judges whole answers only: "
            "best-of-n, adaptive, revisions"
        )
