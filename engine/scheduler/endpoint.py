"""What can be searched where an endpoint samples: it answers whole, and nothing that it holds can be forked or read."""

from __future__ import annotations

from engine.errors import UserError
from engine.scheduler.compute_optimal import ComputeOptimal
from engine.scheduler.planner import Planner
from engine.search import Strategy
from engine.search.registry import STRATEGIES


def check_endpoint(strategy: Strategy | Planner, *, is_chat: bool) -> None:
    """Raises UserError, before anything is asked, for a strategy that an endpoint cannot sample for.

    `is_chat`: prompts are conversations, so that earlier attempts can stand in them.
    """
    name = repr(strategy.name)
    if isinstance(strategy, ComputeOptimal):
        if strategy.calibration.predictor.is_probe:
            raise UserError(
                f"strategy {name} with predictor {strategy.calibration.predictor.name!r} reads the policy's hidden "
                "state, which an endpoint does not show"
            )
        forking = {cell.strategy.name for cell in strategy.calibration.cells if cell.strategy.stop_at_step}
        name += f" by a calibration with {', '.join(sorted(forking))}" if forking else ""
    if strategy.stop_at_step:
        able = ", ".join(each for each, kind in STRATEGIES.items() if not kind.stop_at_step)
        raise UserError(
            f"strategy {name} forks answers after each step, which an endpoint cannot; these can run: {able}"
        )
    if strategy.revises and not is_chat:
        raise UserError(
            f"strategy {name} shows an endpoint its earlier attempts in a conversation: it needs a prompt style of "
            "chats (chat, steps, boxed), got 'plain'"
        )
