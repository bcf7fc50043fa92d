"""What lm-evaluation-harness asks for in a request's generation options."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from lm_eval.models.utils import normalize_gen_kwargs

from engine.config import SearchConfig
from engine.counts import check_count, check_real, shown
from engine.errors import UserError
from engine.plugins.options import Searcher

_LIMITS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")  # the first that is named counts
_SAMPLING = ("temperature", "top_p", "top_k", "min_p")
_NOTHING = {"num_beams": 1, "repetition_penalty": 1}  # what asks for nothing; other values are refused


@dataclass(frozen=True)
class Asked:
    """How one request is searched."""

    config: SearchConfig
    until: tuple[str, ...]  # texts before which an answer ends


def read_gen_kwargs(searcher: Searcher, named: Mapping[str, object]) -> Asked:
    """What a request's options mean.

    As in lm-eval's own models, `do_sample` is true if there is a temperature above 0 and it is not named. A request
    that does not sample asks for one answer that is always the same; a search gives that, by its seed, and draws as the
    model's arguments say. One that samples draws at its own temperature, top_p, top_k and min_p.
    Raises UserError for an option that is not honoured, a wrong value, and one that the model's arguments contradict.
    """
    for name, value in named.items():
        if name not in (*_LIMITS, *_SAMPLING, "until", "do_sample") and _NOTHING.get(name) != value:
            there = ", ".join((*_LIMITS[:1], *_SAMPLING, "until", "do_sample"))
            raise UserError(f"ttc honours no generation option {name}={shown(value)}; it honours {there}")
    if named.get("do_sample") not in (None, True, False):
        raise UserError(f"do_sample must be true or false, got {shown(named['do_sample'])}")
    limits = [check_count(name, named[name]) for name in _LIMITS if named.get(name) is not None]
    sampling = {name: check_real(name, named[name]) for name in _SAMPLING if named.get(name) is not None}
    if "top_k" in sampling:
        sampling["top_k"] = check_count("top_k", named["top_k"], -1)
        sampling["top_k"] = max(0, sampling["top_k"])  # where others write -1 for all
    meant = normalize_gen_kwargs(dict(named))
    until, drawn = _texts(named.get("until")), sampling if meant["do_sample"] else {}
    config = searcher.with_asked(max_tokens=limits[0] if limits else None, stop_texts=until, **drawn)
    return Asked(config, until)


def _texts(until: object) -> tuple[str, ...]:
    """One text or several; an empty one ends nothing."""
    texts = [until] if isinstance(until, str) else [] if until is None else until
    if not isinstance(texts, list | tuple) or not all(isinstance(each, str) for each in texts):
        raise UserError(f"until must be texts, got {shown(until)}")
    return tuple(each for each in texts if each)
