"""`ttc exchange`: train a bigger model, or let a small one think longer?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

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
        float | None, typer.Option(help="Of the larger model's one greedy answer, 0..1; without it, the break-even.")
    ] = None,
    version: Annotated[str, typer.Option(help="arxiv, or iclr, which counts the verifier.")] = "arxiv",
) -> None:
    """Says whether total FLOPs are better spent on a larger model or on searching with the small one."""
    from engine.accounting import Exchange
    from engine.cli.strategies import calibration_file
    from engine.scheduler import read_calibration

    trade = Exchange(params_small, params_large, tokens_pretrain, tokens_inference, version)
    if accuracy_large is not None and not 0 <= accuracy_large <= 1:
        raise ValueError(f"accuracy_large must be within 0..1, got {accuracy_large}")
    typer.echo(answer(trade, read_calibration(calibration_file(calibration)), accuracy_large))


def answer(trade: Exchange, calibration: Calibration, accuracy_large: float | None) -> str:
    """The figures line by line, and the verdict in the last one.

    The small model's accuracy is the cross-validated one at the largest measured budget that its
    FLOPs pay for. Raises ValueError where they pay for less than the smallest.
    """
    from engine.scheduler import strategy_label

    affordable = [verdict for verdict in calibration.verdicts if verdict.budget <= trade.num_generations]
    if not affordable:
        least = min((verdict.budget for verdict in calibration.verdicts), default=None)
        raise ValueError(
            f"the small model may spend {trade.num_generations} answers per question, "
            f"the calibration measured none below {least}"
        )
    verdict = affordable[-1]
    lines = [
        f"M = {trade.size_ratio:.4g} times the parameters, R = {trade.token_ratio:.4g} inference per pretraining token",
        _flops("larger model, one answer", trade, trade.params_large, 1.0),
        _flops("small model, as much in all", trade, trade.params_small, trade.multiple),
        f"the small model may sample {trade.num_generations:,} answers per question where the larger one gives one",
    ]
    for index, count in enumerate(calibration.num_per_bin):
        cell = calibration.choose(index, verdict.budget)
        where = f"{calibration.bins.describe(index)}, {count} problems"
        lines.append(f"  {where}: {strategy_label(cell.strategy)}, {100 * cell.accuracy:.1f} %")
    if verdict.budget < trade.num_generations:
        lines.append(f"measured are budgets up to {verdict.budget}; what more answers bring is not counted")
    small = f"{100 * verdict.compute_optimal:.1f} % (compute-optimal, cross-validated, budget {verdict.budget})"
    if accuracy_large is None:
        lines.append(f"think longer, unless the larger model's greedy answer is right in more than {small}")
    else:
        is_better = verdict.compute_optimal >= accuracy_large
        choice = "think longer" if is_better else "train bigger"
        lines.append(f"{choice}: the small model reaches {small}, the larger one {100 * accuracy_large:.1f} %")
    return "\n".join(lines)


def _flops(who: str, trade: Exchange, params: float, multiple: float) -> str:
    pretraining, inference = trade.pretrain_flops(params), trade.inference_flops(params, multiple)
    return f"{who}: {pretraining:.3g} FLOPs of pretraining + {inference:.3g} of inference"
