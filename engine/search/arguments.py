"""What a search may be asked for."""

from __future__ import annotations

from engine.errors import UserError
from engine.search.aggregate import check_agg_strategy
from engine.search.protocols import Policy, Strategy, Verifier, judges_answers

MAX_BUDGET = 65_536  # generations of one problem, checked before anything is allocated


def check_arguments(
    strategy: Strategy,
    verifier: Verifier | None,
    *,
    budget: int,
    max_tokens: int,
    agg_strategy: str,
    num_spent: int = 0,
) -> None:
    """Raises UserError, with the value received, for what `run_search` cannot run.

    `num_spent` generations of the budget have been spent by an earlier search that this one goes on from.
    """
    if not 1 <= budget <= MAX_BUDGET:
        raise UserError(f"budget must be 1..{MAX_BUDGET} generations, got {budget}")
    if max_tokens < 1:
        raise UserError(f"max_tokens must be at least 1, got {max_tokens}")
    check_agg_strategy(agg_strategy)
    if num_spent > budget:
        raise UserError(f"budget must be at least the {num_spent} generations already spent, got {budget}")
    if num_spent < budget:
        strategy.groups(budget - num_spent)
    if strategy.is_scored and verifier is None:
        raise UserError(f"strategy {strategy.name!r} needs a verifier, got None")
    if strategy.is_scored and strategy.stop_at_step and judges_answers(verifier):
        raise UserError(
            f"strategy {strategy.name!r} scores steps, the verifier judges whole answers only: "
            "best-of-n, adaptive, revisions"
        )


def sampler(strategy: Strategy, policy: Policy, reviser: Policy | None) -> Policy:
    """Who samples for a strategy. Raises UserError for one that revises where there is no reviser."""
    if not strategy.revises:
        return policy
    if reviser is None:
        raise UserError(f"strategy {strategy.name!r} needs a reviser, got None")
    return reviser
