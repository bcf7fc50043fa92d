"""What a user may ask of a model: checks that run before anything is queued or changed."""

from __future__ import annotations

from collections.abc import Sequence

from engine.errors import UserError
from engine.model import ModelConfig
from engine.runtime.branch import Branch, BranchOwner
from engine.runtime.runner import Runner


def check_prompt(prompt: str | Sequence[int], tokens: Sequence[int], config: ModelConfig) -> None:
    """Raises UserError for an empty prompt, a token outside the vocabulary, or more tokens than the context holds."""
    if not tokens:
        raise UserError(f"the prompt is empty: {prompt!r}")
    if len(tokens) >= config.context:
        raise UserError(f"the prompt has {len(tokens)} tokens, the context of the model holds {config.context}")
    check_tokens(tokens, config)


def check_tokens(tokens: Sequence[int], config: ModelConfig) -> None:
    """Raises UserError for a token outside the vocabulary."""
    if len(tokens) and not 0 <= min(tokens) <= max(tokens) < config.vocab_size:
        token = next(token for token in tokens if not 0 <= token < config.vocab_size)
        raise UserError(f"tokens must be within 0..{config.vocab_size - 1}, got {token}")


def check_branches(branches: Sequence[Branch], owner: BranchOwner) -> None:
    """Raises UserError for a branch that is closed, busy, named twice, or another model's."""
    for branch in branches:
        branch.check_free()
        if branch.owner is not owner:
            raise UserError(f"branch {branch.address} belongs to the model at {branch.owner.folder}")
    if len(set(branches)) < len(branches):
        raise UserError(f"each branch may be named once, got {[branch.address for branch in branches]}")


def check_runs(branches: Sequence[Branch], runs: Sequence[Sequence[Sequence[int]]], runner: Runner) -> None:
    """Raises UserError if the runs of tokens, some for each branch, cannot be appended to the branches."""
    config = runner.parts.decoder.config
    for branch, new in zip(branches, runs, strict=True):
        for run in new:
            check_tokens(run, config)
        num_more = sum(map(len, new))
        if branch.num_tokens + num_more > config.context:
            raise UserError(
                f"{branch.num_tokens} tokens and {num_more} more are over the context of the model, {config.context}"
            )
        runner.check_fit(branch.segment, *map(len, new))


def token_limits(branches: Sequence[Branch], max_tokens: int | Sequence[int], runner: Runner) -> list[int]:
    """How many tokens each branch may be extended by; less than asked where the context ends.

    Raises UserError for a limit below 1, and PoolTooSmall.
    """
    limits = [max_tokens] * len(branches) if isinstance(max_tokens, int) else max_tokens
    if limits and min(limits) < 1:
        raise UserError(f"max_tokens must be at least 1, got {min(limits)}")
    context = runner.parts.decoder.config.context
    limits = [min(limit, context - branch.num_tokens) for limit, branch in zip(limits, branches, strict=True)]
    for branch, limit in zip(branches, limits, strict=True):
        runner.check_fit(branch.segment, limit)
    return limits
