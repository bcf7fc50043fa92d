"""What a search needs of a policy and of a verifier; fakes and models both provide it.

All calls that cost a forward pass are coroutines: a search awaits them, and whoever drives the
searches fills every forward with the pending work of all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from engine.accounting.ledger import Ledger
from engine.types import Candidate, Problem, Sampling, Step

Attempt = tuple[Step, ...]  # a whole answer that another one revises


class PolicyBranch(Protocol):
    """A live sequence of the policy. `fork` is O(1) and leaves this branch open; `close` twice raises."""

    token_ids: list[int]  # prompt and everything after it

    def fork(self, num_branches: int) -> list[PolicyBranch]: ...

    def close(self) -> None: ...


class Policy(Protocol):
    async def open(self, prompt: str, *, ledger: Ledger, history: Sequence[Attempt] = ()) -> PolicyBranch:
        """A branch that holds the attempts of a history, oldest first and each after the prompt, and then the prompt.

        Raises UserError for what is over the context.
        """
        ...

    def ask_again(self, branch: PolicyBranch, prompt: str) -> None:
        """Has a branch that ends with a whole attempt stand before the next one; nothing it holds is computed again."""
        ...

    def num_fitting(self, prompt: str, history: Sequence[Attempt], max_tokens: int) -> int:
        """How many of the latest attempts the context holds beside the prompts and `max_tokens` of another one."""
        ...

    async def extend(
        self,
        branches: Sequence[PolicyBranch],
        *,
        keys: Sequence[int],  # 64-bit random stream of each branch
        sampling: Sampling,
        stop_at_step: bool,  # else only at end of text
        max_tokens: int | Sequence[int],  # new tokens, at least 1: one limit for all, or one per branch
        purpose: str = "generated",  # or "lookahead", "estimation": who pays
        priorities: Sequence[float] | None = None,  # lowest is suspended first when the KV pool is full
    ) -> list[list[Step]]:
        """Samples onto each branch until a step (or the text) ends; the new steps of each branch.

        With `stop_at_step` each list has one step. Otherwise tokens are split into steps at every
        delimiter token, by token position; there is never an empty step. (An end-of-text token that
        follows a delimiter at once is a step of one token and no text; a search does not score it.)
        """
        ...


class VerifierBranch(Protocol):
    """The verifier's side of a policy branch; forks in lockstep with it."""

    def fork(self, num_branches: int) -> list[VerifierBranch]: ...

    def close(self) -> None: ...


class Verifier(Protocol):
    async def open(self, problem: Problem, *, ledger: Ledger, history: Sequence[Attempt] = ()) -> VerifierBranch:
        """A branch that answers are judged on. Only a verifier with `reads_history` is given a history: the attempts,
        oldest first, that the next one revises. On its branches each answer that has been scored joins them."""
        ...

    async def score(self, branches: Sequence[VerifierBranch], steps: Sequence[Sequence[Step]]) -> list[list[float]]:
        """Appends the steps to each branch; one score in [0, 1] per step (NaN flags a numeric failure)."""
        ...


def judges_answers(verifier: Verifier | None) -> bool:
    """Whether a verifier (with `judges = "answers"`) scores whole answers, each given to it as a single step."""
    return getattr(verifier, "judges", "steps") == "answers"


def reads_history(verifier: Verifier | None) -> bool:
    """Whether a verifier (with `reads_history = True`) judges an attempt knowing those before it."""
    return getattr(verifier, "reads_history", False)


class Strategy(Protocol):
    """What the loop asks of a strategy: how many children, what is scored, who survives. Frozen data."""

    name: str  # as on the command line
    vote: str  # one of engine.search.vote.REVISION_VOTES
    scores: str  # what a verifier is asked to score at most: "steps", "answers" or "nothing"
    is_scored: bool  # whether it does so with these options; else no verifier is needed
    stop_at_step: bool  # else a round samples whole answers
    lookahead: int  # greedy steps beyond a step, at whose end it is scored
    max_rounds: int
    revises: bool  # every answer after a group's first is sampled with those before it in the context
    unused_fields: tuple[str, ...]  # of the dataclass: inherited options that have no effect

    def rows(self, budget: int) -> int:
        """How many branches it samples at once, at most."""
        ...

    def groups(self, budget: int) -> tuple[int, int]:
        """Number of groups that are searched independently, and the slots (answers) of each.

        Raises UserError for a budget that the strategy cannot spend.
        """
        ...

    def draw(self, candidates: Sequence[Candidate], num_left: int) -> int:
        """How many first steps are sampled from the prompt now, `num_left` (at least 1) at most.

        Asked at the start, and again whenever nothing is live while slots are left; 0 ends the
        search. `candidates` are those so far, in the order in which they ended. One that revises draws
        whole rounds: an attempt of every group.
        """
        ...

    def select(
        self, agg_scores: Sequence[float], num_slots: int, step_texts: Sequence[str] = ()
    ) -> list[tuple[int, int]]:
        """Of one group's live steps, in the order they were sampled: who survives, best first.

        Pairs of index and number of children (at least 1), `num_slots` children at most in all.
        `step_texts` are the texts of the steps themselves, without what came before them.
        """
        ...
