"""`ttc exchange`: train a bigger model, or let a small one think longer?"""

from __future__ import annotations

from collections.abc import Sequence
from operator import mul
from typing import TYPE_CHECKING, Annotated

import typer

from engine.commands import parse_numbers
from engine.errors import UserError

if TYPE_CHECKING:
    from engine.accounting import Exchange
    from engine.scheduler import Calibration


def exchange(
    params_small: Annotated[float, typer.Option(help="Parameters of the small model, e.g. 6e5.")],
    params_large: Annotated[float, typer.Option(help="Parameters of the larger model.")],
    tokens_pretrain: Annotated[float, typer.Option(help="Tokens of pretraining, the same for both.")],
    tokens_inference: Annotated[float, typer.Option(help="Tokens of all answers in use, one per question.")],
    calibration: Annotated[str, typer.Option(help="File of `ttc calibrate`, of the small model.")] = "home",
    accuracy_large: Annotated[
        str | None,
        typer.Option(
            help="Of the larger model's one greedy answer, 0..1, or one per bin, easiest first, as in 0.9,0.5,0.1; "
            "without it, the break-even."
        ),
    ] = None,
    version: Annotated[str, typer.Option(help="arxiv, or iclr, which counts the verifier.")] = "arxiv",
) -> None:
    """Says whether total FLOPs are better spent on a larger model or on searching with the small one."""
    from engine.accounting import Exchange
    from engine.scheduler import calibration_file, read_calibration

    trade = Exchange(params_small, params_large, tokens_pretrain, tokens_inference, version)
    measured = read_calibration(calibration_file(calibration))
    typer.echo(answer(trade, measured, _accuracies(accuracy_large, measured)))


def _accuracies(text: str | None, calibration: Calibration) -> list[float]:
    """None, one for all, or one for every bin. Raises UserError for anything else."""
    if text is None:
        return []
    values = parse_numbers("accuracy_large", text, float)
    if not all(0 <= value <= 1 for value in values):
        raise UserError(f"accuracy_large must be within 0..1, got {text}")
    if len(values) not in (1, calibration.bins.count):
        raise UserError(
            f"accuracy_large must be one value, or one for each of {calibration.bins.count} bins, got {text}"
        )
    return values


def answer(trade: Exchange, calibration: Calibration, accuracy_large: Sequence[float] = ()) -> str:
    """The figures line by line, and the verdict in the last one.

    The small model's accuracy is the cross-validated one at the largest measured budget that its
    FLOPs pay for, samples of a difficulty predictor that does not re-use them included. Of a bin it is that of
    the strategy that was best there, on the same problems. `accuracy_large` is none, one for all, or one for
    every bin. Raises UserError where the FLOPs pay for less than the smallest budget.
    """
    from engine.scheduler import strategy_label

    predictor = calibration.predictor
    extra = predictor.num_samples - predictor.num_spent  # drawn beside the budget, only to predict
    affordable = [verdict for verdict in calibration.verdicts if verdict.budget + extra <= trade.num_generations]
    if not affordable:
        least = min((verdict.budget for verdict in calibration.verdicts), default=None)
        beside = f", and predicts difficulty from {extra} more" if extra else ""
        raise UserError(
            f"the small model may spend {trade.num_generations} answers per question, "
            f"the calibration measured none below {least}{beside}"
        )
    verdict = affordable[-1]
    by_bin = accuracy_large if len(accuracy_large) == calibration.bins.count > 1 else ()
    lines = [
        f"M = {trade.size_ratio:.4g} times the parameters, R = {trade.token_ratio:.4g} inference per pretraining token",
        _flops("larger model, one answer", trade, trade.params_large, 1.0),
        _flops("small model, as much in all", trade, trade.params_small, trade.multiple),
        f"the small model may sample {trade.num_generations:,} answers per question where the larger one gives one",
    ]
    for index, count in enumerate(calibration.num_per_bin):
        cell = calibration.choose(index, verdict.budget)
        where = f"{calibration.bins.describe(index)}, {count} problems"
        line = f"  {where}: {strategy_label(cell.strategy)}, {100 * cell.accuracy:.1f} %"
        if by_bin:
            line += f", the larger model {100 * by_bin[index]:.1f} %: {_choice(cell.accuracy, by_bin[index])}"
        lines.append(line)
    if extra:
        lines.append(f"{extra} of the answers only predict difficulty")
    if verdict.budget + extra < trade.num_generations:
        lines.append(f"measured are budgets up to {verdict.budget}; what more answers bring is not counted")
    small = f"{100 * verdict.compute_optimal:.1f} % (compute-optimal, cross-validated, budget {verdict.budget})"
    if not accuracy_large:
        lines.append(f"think longer, unless the larger model's greedy answer is right in more than {small}")
    else:
        weights = calibration.num_per_bin if by_bin else (1,)
        large = sum(map(mul, weights, accuracy_large)) / sum(weights)
        choice = _choice(verdict.compute_optimal, large)
        lines.append(f"{choice}: the small model reaches {small}, the larger one {100 * large:.1f} %")
    return "\n".join(lines)


def _choice(small: float, large: float) -> str:
    return "think longer" if small >= large else "train bigger"


def _flops(who: str, trade: Exchange, params: float, multiple: float) -> str:
    pretraining, inference = trade.pretrain_flops(params), trade.inference_flops(params, multiple)
    return f"{who}: {pretraining:.3g} FLOPs of pretraining + {inference:.3g} of inference"
