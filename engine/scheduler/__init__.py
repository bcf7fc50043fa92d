"""Which strategy and how much of a budget a problem gets, by its predicted difficulty."""

from engine.scheduler.allocation import Curve, allocate, concave_envelope, value_at
from engine.scheduler.batch import search_batch
from engine.scheduler.calibration import Calibration, Cell, Verdict, read_calibration
from engine.scheduler.compute_optimal import CalibrationWarning, ComputeOptimal
from engine.scheduler.difficulty import ABSOLUTE_EDGES, PREDICTORS, Bins, Predictor
from engine.scheduler.measure import Outcome, cross_validate, measure, members_of
from engine.scheduler.planner import Assigned, Plan, Planner, Sampled
from engine.search.registry import can_spend, parse_strategy, strategy_as_dict, strategy_from_dict, strategy_label

__all__ = [
    "ABSOLUTE_EDGES",
    "PREDICTORS",
    "Assigned",
    "Bins",
    "Calibration",
    "CalibrationWarning",
    "Cell",
    "ComputeOptimal",
    "Curve",
    "Outcome",
    "Plan",
    "Planner",
    "Predictor",
    "Sampled",
    "Verdict",
    "allocate",
    "can_spend",
    "concave_envelope",
    "cross_validate",
    "measure",
    "members_of",
    "parse_strategy",
    "read_calibration",
    "search_batch",
    "strategy_as_dict",
    "strategy_from_dict",
    "strategy_label",
    "value_at",
]
