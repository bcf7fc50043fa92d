"""What a user may ask of a model: checks that run before anything is queued or changed."""

from __future__ import annotations

import operator
from collections.abc import Sequence

import torch

from engine.accounting.ledger import PURPOSES
from engine.counts import check_count, shown
from engine.errors import ServiceError, UserError
from engine.model import ModelConfig
from engine.runtime.branch import Branch, BranchOwner
from engine.runtime.runner import Runner


def check_on_error(on_error: str) -> None:
    """Raises UserError for what is no way to treat the error of one of several searches."""
    if on_error not in ("raise", "yield"):
        raise UserError(f"on_error must be raise or yield, got {on_error!r}")


def raise_error(result: object, on_error: str) -> None:
    """Raises an error that stands for a result, unless it is to be yielded.

    That of a GPU is raised in any case: in a process whose GPU has failed, every later call fails too. So is that of
    an endpoint which no problem gets an answer from.
    """
    is_last = isinstance(result, torch.AcceleratorError | ServiceError)
    if isinstance(result, Exception) and (on_error == "raise" or is_last):
        raise result


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


def as_ints(name: str, values: Sequence[int]) -> list[int]:
    """Whole numbers of a list or an array as ints. Raises UserError for others."""
    try:
        return list(map(operator.index, values))
    except TypeError:
        raise UserError(f"{name} must be whole numbers, got {shown(values)}") from None


def check_each(branches: Sequence[Branch], **given: Sequence | None) -> None:
    """Raises UserError where something is given, but not one for each branch."""
    for name, values in given.items():
        if values is None or ((is_sized := hasattr(values, "__len__")) and len(values) == len(branches)):
            continue
        got = len(values) if is_sized else shown(values)
        raise UserError(f"{name} must be given for each of {len(branches)} branches, got {got}")


def check_places(places: Sequence[Sequence[int]], runs: Sequence[Sequence[Sequence[int]]]) -> None:
    """Raises UserError for a place that is no index into its branch's new tokens, of which there is one run each."""
    for at, (new,) in zip(places, runs, strict=True):
        if at and not 0 <= min(at) <= max(at) < len(new):
            raise UserError(f"score_at must be indices into the {len(new)} new tokens, got {shown(at)}")


def check_purpose(purpose: str) -> None:
    """Raises UserError for what is no entry of a ledger."""
    if purpose not in PURPOSES:
        raise UserError(f"purpose must be one of {', '.join(PURPOSES)}, got {purpose!r}")


def signed_keys(keys: Sequence[int]) -> list[int]:
    """Keys of 64 bits as signed numbers, as numpy holds them. Raises UserError for others."""
    keys = as_ints("keys", keys)
    if keys and not 0 <= min(keys) <= max(keys) < 1 << 64:
        raise UserError(f"keys must be within 0..2^64 - 1, got {shown(next(key for key in keys if key >> 64))}")
    return [key - (1 << 64) if key >> 63 else key for key in keys]


def check_branches(branches: Sequence[Branch], owner: BranchOwner) -> None:
    """Raises UserError for a branch that is closed, busy, named twice, or another model's."""
    for branch in branches:
        branch.check_free()
        if branch.owner is not owner:
            raise UserError(f"branch {branch.address} belongs to the model at {branch.owner.folder}")
    if len(set(branches)) < len(branches):
        raise UserError(f"each branch may be named once, got {[branch.address for branch in branches]}")


def checked_runs(
    branches: Sequence[Branch], runs: Sequence[Sequence[Sequence[int]]], runner: Runner
) -> list[list[list[int]]]:
    """The runs of tokens, some for each branch, as ints. Raises UserError if they cannot be appended."""
    check_each(branches, tokens=runs)
    config = runner.parts.decoder.config
    checked = [[as_ints("tokens", run) for run in new] for new in runs]
    check_tokens([token for new in checked for run in new for token in run], config)
    for branch, new in zip(branches, checked, strict=True):
        lengths = [len(run) for run in new]
        if branch.num_tokens + sum(lengths) > config.context:
            raise UserError(
                f"{branch.num_tokens} tokens and {sum(lengths)} more are over the context of the model, "
                f"{config.context}"
            )
        runner.check_fit(branch.segment, *lengths)
    return checked


def check_steps(runs: Sequence[Sequence[Sequence[int]]]) -> None:
    """Raises UserError for a step without tokens, which no score could be read at."""
    if not all(step for steps in runs for step in steps):
        raise UserError(f"a step has at least 1 token, got {shown(runs)}")


def token_limits(branches: Sequence[Branch], max_tokens: int | Sequence[int], runner: Runner) -> list[int]:
    """How many tokens each branch may be extended by; less than asked where the context ends.

    Raises UserError for a limit below 1, and PoolTooSmall.
    """
    is_one = not isinstance(max_tokens, Sequence)
    limits = [check_count("max_tokens", max_tokens)] * len(branches) if is_one else as_ints("max_tokens", max_tokens)
    check_each(branches, max_tokens=limits)
    if limits:
        check_count("max_tokens", min(limits))
    context = runner.parts.decoder.config.context
    limits = [min(limit, context - branch.num_tokens) for limit, branch in zip(limits, branches, strict=True)]
    for branch, limit in zip(branches, limits, strict=True):
        runner.check_fit(branch.segment, limit)
    return limits
