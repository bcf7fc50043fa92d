"""What does not agree is not timed: both sides of a comparison must compute the same numbers first."""

from __future__ import annotations

import torch

from benchmarks.throughput import plain
from engine import LLM
from engine.errors import UserError

MAX_DIFFERENCE = {"float32": 1e-4, "bfloat16": 5e-2}  # of logits: relative to the largest one


def check_logits(llm: LLM, policy: torch.nn.Module, prompt: list[int], dtype: str) -> float:
    """The largest difference of both sides' next-token logits, relative to the largest logit.

    Raises UserError if it is over the limit of `dtype`.
    """
    branch = llm.open(prompt)
    ours = llm.next_logits([branch])[0]
    branch.close()
    with torch.inference_mode():
        theirs = policy(torch.tensor([prompt])).logits[0, -1].float()
    difference = ((ours - theirs).abs().max() / theirs.abs().max()).item()
    return _checked("logits", difference, MAX_DIFFERENCE[dtype])


def check_score(prm: LLM, search: plain.PlainBeamSearch, prompt: list[int]) -> float:
    """The difference of both sides' PRM scores of one text, float32. Raises UserError if it is too large."""
    root = prm.open(prompt[:-1])
    request = prm.queue_append([root], [prompt[-1:]], score_at=[[0]])
    prm.run(request)
    root.close()
    whole = plain.Beam(prompt)
    with torch.inference_mode():
        search.score([whole])
    return _checked("scores", abs(request.scores[0][0] - whole.score), MAX_DIFFERENCE["float32"])


def _checked(name: str, difference: float, most: float) -> float:
    if not difference <= most:
        raise UserError(f"{name} of both sides differ by {difference:.2g}, at most {most:g} is allowed")
    return difference
