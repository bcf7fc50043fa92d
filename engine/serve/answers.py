"""What comes of a request: choices, usage and the `ttc` object, the same for both forms of completions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from engine.accounting import Ledger
from engine.results.rows import tree_nodes
from engine.runtime.sampling import Sample
from engine.search.ranking import ranked
from engine.search.vote import voters_by_answer
from engine.serve.errors import APIError
from engine.types import FINISHED, Candidate, SearchResult


@dataclass(frozen=True)
class Choice:
    """One text that is returned; `sample` has its tokens, where they are known one by one."""

    text: str
    finish_reason: str  # "stop" or "length"
    sample: Sample | None = None


@dataclass(frozen=True)
class Answer:
    """What a request is answered with."""

    choices: Sequence[Choice]
    num_sampled: int  # tokens
    ledger: Ledger
    num_drawn: int  # answers
    ttc: dict[str, object] | None = None

    def usage(self, num_prompt_tokens: int) -> dict[str, object]:
        """OpenAI's counts, and the whole bill."""
        return {
            "prompt_tokens": num_prompt_tokens,
            "completion_tokens": self.num_sampled,
            "total_tokens": num_prompt_tokens + self.num_sampled,
            "ttc": {**self.ledger.as_dict(), "total_flops": self.ledger.total_flops},
        }


def of_samples(samples: Sequence[Sample], ledger: Ledger) -> Answer:
    """Plain samples in the order in which they were drawn. Raises APIError where the model returned NaN."""
    if any(sample.finish == "error" for sample in samples):
        raise APIError(500, "the model returned NaN or Inf on this prompt", code="model_error")
    choices = [Choice(each.text, _reason(each.finish), each) for each in samples]
    return Answer(choices, sum(each.num_sampled for each in samples), ledger, len(samples))


def of_search(result: SearchResult, num_choices: int, returns: Sequence[str]) -> Answer:
    """The distinct answers of a search, ranked."""
    chosen = [result.candidates[index] for index in ranked(result)][:num_choices]
    choices = [Choice(each.text, _reason(each.finish)) for each in chosen] or [Choice("", "length")]
    # Those of a pilot that the search went on from are on the bill as estimation, with what they cost beside.
    num_sampled = sum(node.num_tokens for node in result.tree.nodes) + result.ledger.tokens["lookahead"]
    return Answer(choices, num_sampled, result.ledger, result.num_generations, _told(result, returns))


def _reason(finish: str | None) -> str:
    return "stop" if finish in (*FINISHED, "stop") else "length"


def _told(result: SearchResult, returns: Sequence[str]) -> dict[str, object]:
    """What is always told of a search, and what was asked for."""
    told: dict[str, object] = {
        "answer": result.answer,
        "strategy": result.strategy,
        "budget": result.budget,
        "generations": result.num_generations,
        "seed": result.seed,
        "stopped_by": result.stopped_by,
    }
    if result.plan is not None:
        told["plan"] = result.plan
    more = {"candidates": _candidates, "scores": _scores, "votes": _votes, "ledger": _ledger, "tree": _tree}
    return told | {name: more[name](result) for name in returns}


def _candidates(result: SearchResult) -> list[dict[str, object]]:
    return [_candidate(each) for each in result.candidates]


def _candidate(candidate: Candidate) -> dict[str, object]:
    return {
        "text": candidate.text,
        "answer": candidate.answer,
        "finish": candidate.finish,
        "score": _finite(candidate.agg_score),
        "tokens": candidate.num_tokens,
    }


def _scores(result: SearchResult) -> list[list[float | None]]:
    return [[_finite(score) for score in each.scores] for each in result.candidates]


def _votes(result: SearchResult) -> list[dict[str, object]]:
    """Of every answer, the candidates that state it, the sum of their scores and the highest."""
    votes = []
    for answer, voters in voters_by_answer(result.candidates).items():
        scores = [result.candidates[index].agg_score for index in voters]
        votes.append({"answer": answer, "votes": len(voters), "score": math.fsum(scores), "best": max(scores)})
    return sorted(votes, key=lambda each: (each["answer"] != result.answer, -each["score"], -each["votes"]))


def _ledger(result: SearchResult) -> dict[str, dict[str, int]]:
    return result.ledger.as_dict()


def _tree(result: SearchResult) -> list[dict[str, object]]:
    return tree_nodes(result.tree, {each.address: each.answer for each in result.candidates})


def _finite(score: float) -> float | None:
    return score if math.isfinite(score) else None
