"""Which strategy and how much of a budget a problem gets, by its predicted difficulty."""

from engine.scheduler.allocation import Curve, allocate, concave_envelope, value_at
from engine.scheduler.batch import search_batch
from engine.scheduler.calibration import Calibration, Cell, Verdict, calibration_file, read_calibration
from engine.scheduler.chance import Chances, fit_chances, stopping_at
from engine.scheduler.compute_optimal import CalibrationWarning, ComputeOptimal
from engine.scheduler.difficulty import ABSOLUTE_EDGES, PREDICTORS, Bins, Predictor
from engine.scheduler.endpoint import check_endpoint
from engine.scheduler.measure import Outcome, cross_validate, measure, members_of
from engine.scheduler.planner import Assigned, Assignment, PilotSamples, Planner
from engine.search.registry import can_spend, parse_strategy, strategy_as_dict, strategy_from_dict, strategy_label

__all__ = [
    "ABSOLUTE_EDGES",
    "PREDICTORS",
    "Assigned",
    "Assignment",
    "Bins",
    "Calibration",
    "CalibrationWarning",
    "Cell",
    "Chances",
    "ComputeOptimal",
    "Curve",
    "Outcome",
    "PilotSamples",
    "Planner",
    "Predictor",
    "Verdict",
    "allocate",
    "calibration_file",
    "can_spend",
    "check_endpoint",
    "concave_envelope",
    "cross_validate",
    "fit_chances",
    "measure",
    "members_of",
    "parse_strategy",
    "read_calibration",
    "search_batch",
    "stopping_at",
    "strategy_as_dict",
    "strategy_from_dict",
    "strategy_label",
    "value_at",
]
