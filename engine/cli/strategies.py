"""From options to a strategy; an option that the strategy does not use is refused."""

from __future__ import annotations

from collections.abc import Collection
from types import SimpleNamespace

from engine.search import DVTS, BeamSearch, BestOfN, Lookahead, Majority, Strategy

_BEAMS = ("beam", "lookahead", "dvts")
_SCORED = ("best-of-n", *_BEAMS)
STRATEGIES = ("majority", *_SCORED)
VERIFIERS = ("prm", "trunk", "orm", "oracle")

# Which values of --strategy, or of --verifier, an option is for.
_USED_BY_STRATEGY = {
    "beam_width": _BEAMS,
    "num_iterations": _BEAMS,
    "lookahead": ("lookahead",),
    "vote": _SCORED,
    "agg_strategy": _SCORED,
    "verifier": _SCORED,
    "prm": _SCORED,
    "prm_spec": _SCORED,
    "orm": ("best-of-n",),
    "orm_spec": ("best-of-n",),
    "trunk_head": _SCORED,
}
_USED_BY_VERIFIER = {
    "prm": ("prm",),
    "prm_spec": ("prm",),
    "orm": ("orm",),
    "orm_spec": ("orm",),
    "trunk_head": ("trunk",),
}


def build_strategy(options: SimpleNamespace, given: Collection[str]) -> Strategy:
    """The strategy that the options describe; `given` are the names of those that the user typed.

    Raises ValueError for an unknown name, a value out of range, or an option without effect.
    """
    _check_choice("strategy", options.strategy, STRATEGIES)
    _check_used(given, _USED_BY_STRATEGY, "strategy", options.strategy)
    if options.strategy == "majority":
        return Majority()
    _check_choice("verifier", options.verifier, VERIFIERS)
    _check_used(given, _USED_BY_VERIFIER, "verifier", options.verifier)
    if options.verifier == "orm" and options.strategy != "best-of-n":
        raise ValueError(f"--verifier orm judges whole answers, with --strategy best-of-n, got {options.strategy!r}")
    if options.strategy == "best-of-n":
        return BestOfN(vote=options.vote)
    beams = {"width": options.beam_width, "max_rounds": options.num_iterations, "vote": options.vote}
    if options.strategy == "lookahead":
        return Lookahead(lookahead=options.lookahead, **beams)
    return BeamSearch(**beams) if options.strategy == "beam" else DVTS(**beams)


def _check_choice(name: str, value: str, choices: Collection[str]) -> None:
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}")


def _check_used(given: Collection[str], used_by: dict[str, tuple[str, ...]], name: str, value: str) -> None:
    for option, values in used_by.items():
        if option in given and value not in values:
            flag = "--" + option.replace("_", "-")
            raise ValueError(f"{flag} has no effect with --{name} {value}, only with {', '.join(values)}")
