"""What a subset of a pool would have cost: the same FLOPs that a search with that many samples is charged."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from engine import Engine
from engine.accounting import ModelShape, forward_flops
from engine.types import FINISHED, Candidate, Problem


@dataclass(frozen=True)
class Bills:
    """FLOPs of samples of one problem from a cold cache: the prompt once for each model, and every answer's tokens."""

    policy: ModelShape
    verifier: ModelShape | None  # None: nothing is scored
    num_prompt: int  # tokens
    delimiter: str
    judges_answers: bool = False  # one score row per answer, not one per step

    @classmethod
    def of(cls, engine: Engine, problem: Problem, verifier: str | None) -> Bills:
        """The bills of a problem; `verifier` is "prm", "orm" or None."""
        judge = None if verifier is None else getattr(engine, verifier).config.shape(has_lm_head=False)
        num_prompt = len(engine.prompt_ids(problem.prompt))
        return cls(engine.policy.config.shape(), judge, num_prompt, engine.step_delimiter, verifier == "orm")

    @property
    def of_prompt(self) -> tuple[int, int]:
        """(policy, verifier)."""
        judge = 0 if self.verifier is None else forward_flops(self.verifier, 0, self.num_prompt, 0)
        return forward_flops(self.policy, 0, self.num_prompt, 1), judge

    def of_answer(self, answer: Candidate) -> tuple[int, int]:
        """(policy, verifier) beyond the prompt. The policy does not compute the last token of an answer."""
        num_fed = answer.num_tokens - 1
        policy = forward_flops(self.policy, self.num_prompt, num_fed)
        if self.verifier is None or answer.finish not in FINISHED:
            return policy, 0
        # An end of text that follows a delimiter at once is a step that nothing judges.
        num_judged = num_fed if answer.text.endswith(self.delimiter) else answer.num_tokens
        num_scores = 1 if self.judges_answers else len(answer.scores)
        return policy, forward_flops(self.verifier, self.num_prompt, num_judged, num_scores)

    def of_answers(self, answers: Iterable[Candidate], num_rounds: int = 1) -> tuple[int, int]:
        """(policy, verifier) of a search that samples these and no others, in `num_rounds` rounds one after the other.

        Each later round runs the last token of the prompt again, for its logits.
        """
        pairs = [self.of_prompt, *map(self.of_answer, answers)]
        again = (num_rounds - 1) * forward_flops(self.policy, self.num_prompt - 1, 1)
        return again + sum(policy for policy, _ in pairs), sum(judge for _, judge in pairs)
