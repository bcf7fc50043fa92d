"""Samples a policy's answers to one question: random streams, token limits and grading."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from engine.keys import branch_key
from engine.runtime import Branch, ModelPolicy
from engine.tasks import Task
from engine.types import Problem, Sampling, Step


@dataclass
class SampledAnswer:
    """An answer that is being sampled: its steps so far, and their labels."""

    address: tuple[int, ...]
    branch: Branch | None
    steps: list[Step] = field(default_factory=list)
    labels: list[float] = field(default_factory=list)
    history: list[list[int]] | None = None  # token ids of the attempts it was given, oldest first; None outside a chain
    num_rollouts: int = 0  # spent on its labels
    prefixes: list[Branch] = field(default_factory=list)  # after each step but the last, to be rolled out

    @property
    def is_live(self) -> bool:
        """Whether another step can follow."""
        return not self.steps or self.steps[-1].finish == "step"

    @property
    def is_ended(self) -> bool:
        """Whether the answer is complete, not cut off."""
        return bool(self.steps) and self.steps[-1].finish == "eos"

    @property
    def token_ids(self) -> list[int]:
        return [token for step in self.steps for token in step.token_ids]


@dataclass(frozen=True)
class Sampler:
    """Samples and grades all answers to one question."""

    policy: ModelPolicy
    task: Task
    problem: Problem
    sampling: Sampling
    seed: int

    async def extend(
        self,
        branches: Sequence[Branch],
        keys: Sequence[int],
        max_tokens: int | Sequence[int],
        *,
        stop_at_step: bool = False,
        purpose: str = "generated",
        is_split: bool = True,
    ) -> list[list[Step]]:
        """The new steps of each branch; parameters as for `ModelPolicy.extend`."""
        return await self.policy.extend(
            branches,
            keys=keys,
            sampling=self.sampling,
            stop_at_step=stop_at_step,
            max_tokens=max_tokens,
            purpose=purpose,
            is_split=is_split,
        )

    def key(self, purpose: str, address: Sequence[int]) -> int:
        """The key of a random stream; every step and every rollout has its own."""
        return branch_key(self.seed, f"{purpose}/{self.problem.id}", address)

    def room(self, steps: Sequence[Step]) -> int:
        """Tokens that an answer may still have."""
        return self.task.max_tokens - sum(len(step.token_ids) for step in steps)

    def are_right(self, answers: Sequence[Sequence[Step]]) -> list[bool]:
        """Whether each answer, given as steps, has ended and states the gold answer."""
        ended = [steps[-1].finish == "eos" for steps in answers]
        texts = ["".join(step.text for step in steps) for steps in answers]
        stated = [self.task.extract(text) if is_end else None for text, is_end in zip(texts, ended, strict=True)]
        return [bool(verdict) for verdict in self.task.are_right([(answer, self.problem.answer) for answer in stated])]

    def row(self, answer: SampledAnswer) -> dict:
        """A labelled answer as a row (see `rollouts.generate`)."""
        row = {
            "prompt": self.problem.prompt,
            "completions": [step.text for step in answer.steps],
            "labels": answer.labels,
            "token_ids": [list(step.token_ids) for step in answer.steps],
        }
        return row if answer.history is None else row | {"history": answer.history}
