"""A calibration as a table for a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from engine.scheduler import Calibration


def calibration_table(calibration: Calibration) -> str:
    """Accuracy in per cent by strategy and bin at every budget, `*` on what is chosen, and what choosing is worth."""
    from engine.scheduler import strategy_label

    bins = range(calibration.bins.count)
    predictor = calibration.predictor
    of_samples = f" of {predictor.num_samples} samples" if predictor.num_samples else ""
    lines = [
        f"difficulty by {predictor.name}{of_samples}, easiest bin first; "
        f"problems per bin: {', '.join(map(str, calibration.num_per_bin))}"
    ]
    labels = list(dict.fromkeys(strategy_label(cell.strategy) for cell in calibration.cells))
    width = max(map(len, labels))
    for budget in calibration.budgets:
        at = {(strategy_label(c.strategy), c.bin): c for c in calibration.cells if c.budget == budget}
        chosen = [calibration.choose(each, budget) for each in bins]
        lines.append(f"budget {budget}")
        for label in labels:
            cells = [at[label, index] for index in bins if (label, index) in at]
            if cells:
                shown = [f"{100 * cell.accuracy:6.1f}{'*' if cell is chosen[cell.bin] else ' '}" for cell in cells]
                flops = sum(cell.flops * cell.num_problems for cell in cells) / sum(cell.num_problems for cell in cells)
                lines.append(f"  {label:{width}} {''.join(shown)}  {flops / 1e9:8.3g} GFLOPs")
        verdict = next(each for each in calibration.verdicts if each.budget == budget)
        lines.append(
            f"  cross-validated: compute-optimal {100 * verdict.compute_optimal:.1f} % "
            f"({verdict.flops / 1e9:.3g} GFLOPs), best strategy for all {100 * verdict.best_fixed:.1f} % "
            f"({verdict.best_fixed_flops / 1e9:.3g} GFLOPs)"
        )
    return "\n".join(lines)
