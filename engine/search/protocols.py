"""What a search needs of a policy and of a strategy; `engine.verifiers.base` says what it needs of a verifier.

All calls that cost a forward pass are coroutines: a search awaits them, and the driver of the
searches fills every forward with the pending work of all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from engine.accounting.ledger import Ledger
from engine.errors import UserError
from engine.types import Attempt, Candidate, Sampling, Step
from engine.verifiers.base import Verifier


class PolicyBranch(Protocol):
    """A live sequence of the policy. `fork` is O(1) and leaves this branch open; `close` twice raises."""

    def fork(self, num_branches: int) -> list[PolicyBranch]: ...

    def close(self) -> None: ...


class Policy(Protocol):
    """The model that samples: fakes and `engine.runtime.ModelPolicy` implement it."""

    async def open(self, prompt: str, *, ledger: Ledger, history: Sequence[Attempt] = ()) -> PolicyBranch:
        """A branch that holds the attempts of a history, oldest first and each after the prompt, and then the prompt.

        Raises UserError for what is over the context.
        """
        ...

    async def prompt_state(self, branch: PolicyBranch) -> list[float]:
        """The model's last hidden state at the end of what a branch holds, which is not changed."""
        ...

    def ask_again(self, branch: PolicyBranch, prompt: str) -> None:
        """Puts the prompt after a whole attempt, so that the next attempt follows; nothing held is computed again."""
        ...

    def num_fitting(self, prompt: str, history: Sequence[Attempt], max_tokens: int) -> int:
        """The number of latest attempts that the context holds beside the prompts and `max_tokens` of another one."""
        ...

    async def extend(
        self,
        branches: Sequence[PolicyBranch],
        *,
        keys: Sequence[int],  # 64-bit random stream of each branch
        sampling: Sampling,
        stop_at_step: bool,  # else only at end of text
        max_tokens: int | Sequence[int],  # new tokens, at least 1: one limit for all, or one per branch
        purpose: str = "generated",  # or "lookahead", "estimation": under which the bill shows them
        priorities: Sequence[float] | None = None,  # lowest is suspended first when the KV pool is full
    ) -> list[list[Step]]:
        """Samples onto each branch until a step (or the text) ends; the new steps of each branch.

        With `stop_at_step` each list has one step. Otherwise tokens are split into steps at every
        delimiter token, by token position; there is never an empty step. (An end-of-text token that
        follows a delimiter at once is a step of one token and no text; a search does not score it.)
        """
        ...


class Strategy(Protocol):
    """What the loop asks of a strategy: how many children, what is scored, who survives. Frozen data."""

    name: str  # as on the command line
    vote: str  # one of engine.search.vote.REVISION_VOTES
    scores: str  # what a verifier is asked to score at most: "steps", "answers" or "nothing"
    is_scored: bool  # whether it does so with these options; else no verifier is needed
    stop_at_step: bool  # else a round samples whole answers
    lookahead: int  # greedy steps beyond a step, at whose end it is scored
    max_rounds: int
    revises: bool  # an answer is sampled with those before it of its group in the context: see Revisions for how many
    unused_fields: tuple[str, ...]  # of the dataclass: inherited options that have no effect

    stop: float | None  # aggregated score of the leading answer's best candidate at which the search ends early

    def rows(self, budget: int) -> int:
        """The most branches that it samples at once."""
        ...

    def parts(self, budget: int) -> list[int]:
        """The budgets of searches that follow one another, each in its own groups, until one of them is sure."""
        ...

    def groups(self, budget: int) -> tuple[int, int]:
        """Number of groups that are searched independently, and the slots (answers) of each.

        Raises UserError for a budget that the strategy cannot spend.
        """
        ...

    def draw(self, candidates: Sequence[Candidate], num_left: int) -> int:
        """The number of first steps that are sampled from the prompt now, `num_left` (at least 1) at most.

        Asked at the start, and again whenever nothing is live while slots are left; 0 ends the
        search. `candidates` are those so far, in the order in which they ended. One that revises draws
        whole rounds: an attempt of every group.
        """
        ...

    def select(
        self, agg_scores: Sequence[float], num_slots: int, step_texts: Sequence[str] = ()
    ) -> list[tuple[int, int]]:
        """The survivors among one group's live steps, best first; the steps are in the order they were sampled.

        Pairs of index and number of children (at least 1), `num_slots` children at most in all.
        `step_texts` are the texts of the steps themselves, without what came before them.
        """
        ...


@dataclass(frozen=True)
class Models:
    """The models of a search."""

    policy: Policy
    """Samples, but for a strategy that revises."""

    verifier: Verifier | None = None
    """Scores. Not used, and may be None, where the strategy scores nothing."""

    reviser: Policy | None = None
    """Samples for a strategy that revises."""

    def sampler(self, strategy: Strategy) -> Policy:
        """The model that samples for a strategy. Raises UserError for one that revises where there is no reviser."""
        if not strategy.revises:
            return self.policy
        if self.reviser is None:
            raise UserError(f"strategy {strategy.name!r} needs a reviser, got None")
        return self.reviser
