"""From options to a strategy; an option that the strategy does not use is refused."""

from __future__ import annotations

from collections.abc import Collection
from types import SimpleNamespace

from engine.errors import UserError
from engine.scheduler import ComputeOptimal, Planner, calibration_file
from engine.search import DVTS, Adaptive, BeamSearch, BestOfN, Lookahead, Majority, Rebase, Revisions, Strategy

_BEAMS = ("beam", "lookahead", "dvts")
_VOTED = ("best-of-n", *_BEAMS, "rebase", "adaptive", "revisions")
_OF_ANSWERS = ("best-of-n", "adaptive", "revisions", "compute-optimal")  # what an ORM can judge
_SCORED = (*_VOTED, "compute-optimal")
STRATEGIES = ("majority", *_SCORED)
VERIFIERS = ("prm", "trunk", "orm", "oracle")

# Which values of --strategy, or of --verifier, an option is for.
_USED_BY_STRATEGY = {
    "beam_width": _BEAMS,
    "num_iterations": (*_BEAMS, "rebase"),
    "lookahead": ("lookahead",),
    "max_duplicates": ("beam", "lookahead"),
    "rebase_temperature": ("rebase",),
    "adaptive_batch": ("adaptive",),
    "confidence": ("adaptive",),
    "parallel": ("revisions",),
    "context": ("revisions",),
    "judge_alone": ("revisions",),
    "reviser": ("revisions", "compute-optimal"),
    "calibration": ("compute-optimal",),
    "total_budget": ("compute-optimal",),
    "vote": _VOTED,
    "agg_strategy": _SCORED,
    "verifier": _SCORED,
    "prm": _SCORED,
    "prm_spec": _SCORED,
    "orm": _OF_ANSWERS,
    "orm_spec": _OF_ANSWERS,
    "trunk_head": _SCORED,
}
_USED_BY_VERIFIER = {
    "judge_alone": ("orm",),
    "prm": ("prm",),
    "prm_spec": ("prm",),
    "orm": ("orm",),
    "orm_spec": ("orm",),
    "trunk_head": ("trunk",),
}
_ONLY_SCORED = ("verifier", "agg_strategy", *_USED_BY_VERIFIER)


def build_strategy(options: SimpleNamespace, given: Collection[str]) -> Strategy | Planner:
    """The strategy that the options describe; `given` are the names of those that the user typed.

    Raises UserError for an unknown name, a value out of range, or an option without effect.
    """
    _check_choice("strategy", options.strategy, STRATEGIES)
    _check_used(given, _USED_BY_STRATEGY, "strategy", options.strategy)
    if options.strategy == "majority":
        return Majority()
    check_verifier_used(options.verifier, given)
    if options.verifier == "orm" and options.strategy not in _OF_ANSWERS:
        wanted = " or ".join(_OF_ANSWERS)
        raise UserError(f"--verifier orm judges whole answers, with --strategy {wanted}, got {options.strategy!r}")
    strategy = _build(options, given)
    if not strategy.is_scored:  # by its vote or its calibration, where the name alone does not say so
        for option in _ONLY_SCORED:
            if option in given:
                flag = "--" + option.replace("_", "-")
                raise UserError(f"{flag} has no effect with this {options.strategy}, which scores nothing")
    return strategy


def _build(options: SimpleNamespace, given: Collection[str]) -> Strategy | Planner:
    name, vote = options.strategy, options.vote
    if name == "revisions":
        chosen = {"vote": vote} if "vote" in given else {}  # the default of --vote is another strategies'
        names = ("parallel", "context", "judge_alone")
        return Revisions(**{option: getattr(options, option) for option in names}, **chosen)
    if name == "best-of-n":
        return BestOfN(vote=vote)
    if name == "adaptive":
        return Adaptive(vote=vote, batch=options.adaptive_batch, confidence=options.confidence)
    if name == "rebase":
        return Rebase(temperature=options.rebase_temperature, max_rounds=options.num_iterations, vote=vote)
    if name == "compute-optimal":
        return ComputeOptimal(calibration_file(options.calibration))
    beams = {"width": options.beam_width, "max_rounds": options.num_iterations, "vote": vote}
    if name == "dvts":
        return DVTS(**beams)
    beams["max_duplicates"] = options.max_duplicates
    return BeamSearch(**beams) if name == "beam" else Lookahead(lookahead=options.lookahead, **beams)


def check_verifier_used(verifier: str, given: Collection[str]) -> None:
    """Raises UserError for an unknown verifier, and for an option that was typed for another one."""
    _check_choice("verifier", verifier, VERIFIERS)
    _check_used(given, _USED_BY_VERIFIER, "verifier", verifier)


def _check_choice(name: str, value: str, choices: Collection[str]) -> None:
    if value not in choices:
        raise UserError(f"{name} must be one of {', '.join(choices)}, got {value!r}")


def _check_used(given: Collection[str], used_by: dict[str, tuple[str, ...]], name: str, value: str) -> None:
    for option, values in used_by.items():
        if option in given and value not in values:
            flag = "--" + option.replace("_", "-")
            raise UserError(f"{flag} has no effect with --{name} {value}, only with {', '.join(values)}")
