"""Trains a revision model on its own attempts and right answers (Snell et al. 2024, section 6.1 and appendix H).

Trajectories are built from parallel samples: a right answer, preceded by k attempts at the same question, k uniform in
0..4 or of given odds. Only the right answer is trained on. Each epoch draws other trajectories. There are two ways to
choose the attempts:

* "wrong", the paper's: wrong answers. The last one is the closest to the right answer by character edit distance, so
  that the model sees a mistake and its correction; the others are random.
* "sampled", ours: any of the question's samples, right ones too, as in the chains of a search. The model thus learns to
  keep a right attempt, and the number of attempts does not reveal how hard the question is.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby
from operator import itemgetter
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast, Trainer, TrainingArguments

from engine.counts import are_weights
from engine.errors import UserError
from engine.prompts.histories import after_attempts
from engine.runtime.vocabulary import Vocabulary
from engine.training.arguments import (
    UpdatesRecipe,
    load_base,
    read_tokenizer,
    run_trainer,
    training_arguments,
)
from engine.training.batches import DrawnBatches, FixedBatches, Packing, Source, check_tokens
from engine.training.checkpoints import Checkpoints, checkpoint_folders, is_whole, made_of, save_model
from engine.training.mixes import Rollouts, mix_figures, read_heaps
from engine.training.policy import IGNORED
from engine.training.stepwise import read_stepwise

_NUM_EVALUATIONS = 8


@dataclass(frozen=True)
class RevisionRecipe(UpdatesRecipe):
    """Options of `ttc train revision`; the Makefile has those of the shipped reviser."""

    num_updates: int = 1500
    tokens_per_step: int = 3072
    learning_rate: float = 1e-3
    held_out: float = 0.05
    max_attempts: int = 4  # before the right answer
    attempt_weights: str = ""  # odds of 0, 1, ... attempts, e.g. 0.1,0.5,0.4; by default all are as likely
    attempts: str = "sampled"  # any samples; or "wrong", as in the paper, the closest last
    max_right: int = 2  # right answers used per question and epoch; easy questions have many
    bf16: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("max_attempts", "max_right"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.attempts not in ("wrong", "sampled"):
            raise UserError(f"attempts must be 'wrong' or 'sampled', got {self.attempts!r}")
        if len(self.odds) > self.max_attempts + 1:
            raise UserError(
                f"max_attempts is {self.max_attempts}, got attempt_weights {self.attempt_weights!r} for more"
            )

    @property
    def odds(self) -> tuple[float, ...]:
        """Of each number of attempts before the right answer. Raises UserError for what are no weights."""
        if not self.attempt_weights:
            return (1.0,) * (self.max_attempts + 1)
        try:
            odds = tuple(map(float, self.attempt_weights.split(",")))
        except ValueError:
            odds = ()
        if not are_weights(odds):
            raise UserError(f"attempt_weights must be numbers like 0.1,0.5,0.4, got {self.attempt_weights!r}")
        return odds


@dataclass(frozen=True)
class Attempt:
    """A sampled answer: its text, by which attempts are compared, and its token ids, end of text included."""

    text: str
    token_ids: tuple[int, ...]
    is_right: bool


@dataclass(frozen=True)
class Trajectory:
    """Attempts, oldest first, and the right answer that follows them."""

    prompt: str
    attempts: tuple[Attempt, ...]
    right: Attempt


@dataclass
class Counts:
    """Statistics of the questions and their trajectories."""

    questions: int = 0
    never_right: int = 0  # without a right answer, hence without trajectories
    never_wrong: int = 0  # without a wrong answer
    by_attempts: dict[int, int] = field(default_factory=dict)  # attempts before the right answer -> trajectories

    def __str__(self) -> str:
        lengths = ", ".join(f"{count} with {number}" for number, count in sorted(self.by_attempts.items()))
        return (
            f"{self.questions} questions ({self.never_right} never right, {self.never_wrong} never wrong), "
            f"trajectories by attempts before the right one: {lengths}"
        )


def read_attempts(paths: Sequence[Path], tokenizer: PreTrainedTokenizerFast) -> list[tuple[str, list[Attempt]]]:
    """(prompt, attempts) of every question, from files of `ttc rollouts --num-rollouts 0`.

    An attempt is right if the label of its last step is at least 0.5. Raises UserError as `read_stepwise` does.
    """
    rows = sorted((row for path in paths for row in read_stepwise(path)), key=lambda row: row["prompt"])
    return [
        (prompt, [_attempt(row, tokenizer) for row in group]) for prompt, group in groupby(rows, lambda r: r["prompt"])
    ]


def _attempt(row: dict, tokenizer: PreTrainedTokenizerFast) -> Attempt:
    text = "".join(row["completions"])
    if "token_ids" in row:
        ids = [token for step in row["token_ids"] for token in step]
    else:  # only the end of text separates the attempts of a history
        words = Vocabulary(tokenizer.backend_tokenizer, len(tokenizer))
        ids = [*words.encode(text, is_start=False), tokenizer.eos_token_id]
    return Attempt(text, tuple(ids), row["labels"][-1] >= 0.5)


def build_trajectories(
    questions: Iterable[tuple[str, Sequence[Attempt]]], recipe: RevisionRecipe, epoch: int = 0
) -> tuple[list[Trajectory], Counts]:
    """Trajectories of all questions with a right answer, others in each epoch. Equal wrong attempts count as one."""
    trajectories: list[Trajectory] = []
    counts = Counts()
    odds = recipe.odds
    for prompt, attempts in questions:
        counts.questions += 1
        distinct = list({attempt.text: attempt for attempt in attempts}.values())
        wrong = [attempt for attempt in distinct if not attempt.is_right]
        if not any(attempt.is_right for attempt in attempts):
            counts.never_right += 1
            continue
        counts.never_wrong += not wrong
        rng = random.Random(f"revision/{recipe.seed}/{epoch}/{prompt}")
        right = [attempt for attempt in attempts if attempt.is_right]  # with repetitions
        for answer in rng.sample(right, min(recipe.max_right, len(right))):
            (num_attempts,) = rng.choices(range(len(odds)), odds)
            if recipe.attempts == "wrong":
                history = _closest_last(answer, wrong, num_attempts, rng)
            else:
                others = [attempt for attempt in attempts if attempt is not answer]
                history = tuple(rng.sample(others, min(num_attempts, len(others))))
            counts.by_attempts[len(history)] = counts.by_attempts.get(len(history), 0) + 1
            trajectories.append(Trajectory(prompt, history, answer))
    return trajectories, counts


def _closest_last(
    right: Attempt, wrong: Sequence[Attempt], num_attempts: int, rng: random.Random
) -> tuple[Attempt, ...]:
    """Up to `num_attempts` wrong answers, the closest to the right one last."""
    from rapidfuzz.distance import Levenshtein  # of the train extra

    if not num_attempts or not wrong:
        return ()
    closest = min(wrong, key=lambda attempt: Levenshtein.distance(attempt.text, right.text))
    others = [attempt for attempt in wrong if attempt is not closest]
    return (*rng.sample(others, min(num_attempts - 1, len(others))), closest)


def encode(
    trajectory: Trajectory, tokenizer: PreTrainedTokenizerFast, context: int | None = None
) -> tuple[list[int], list[int]]:
    """Token ids of a trajectory, with the prompt before every attempt, and labels, IGNORED before the right answer.

    As in a search, the oldest attempts are left out if not all have room in the model's `context`.
    """
    prompt, answer = tokenizer(trajectory.prompt)["input_ids"], list(trajectory.right.token_ids)
    attempts = [attempt.token_ids for attempt in trajectory.attempts]
    while attempts and context is not None and len(after_attempts(prompt, attempts)) + len(answer) > context:
        attempts = attempts[1:]
    ids = after_attempts(prompt, attempts)
    return ids + answer, [IGNORED] * len(ids) + answer


@dataclass(frozen=True)
class TrajectoryEncoder:
    """Makes what is trained on of questions with a right answer."""

    tokenizer: PreTrainedTokenizerFast
    recipe: RevisionRecipe
    context: int  # tokens
    vocabulary: Vocabulary

    def check(self, questions: Iterable[tuple[str, Sequence[Attempt]]]) -> None:
        """Raises UserError for tokens that the model has no row for, or right answers that exceed its context."""
        for prompt, attempts in questions:
            prompt_ids = self.tokenizer(prompt)["input_ids"]
            for attempt in attempts:
                check_tokens([*prompt_ids, *attempt.token_ids], prompt, self.vocabulary)
                num_tokens = len(prompt_ids) + len(attempt.token_ids)
                if attempt.is_right and num_tokens > self.context:
                    raise UserError(
                        f"the answer to {prompt[:60]!r} has {num_tokens} tokens, over the context of {self.context}"
                    )

    def rows(self, questions: Iterable[tuple[str, Sequence[Attempt]]], epoch: int = 0) -> list[tuple]:
        """Token ids and labels of the trajectories of an epoch."""
        trajectories, _ = build_trajectories(questions, self.recipe, epoch)
        return [encode(trajectory, self.tokenizer, self.context) for trajectory in trajectories]


def train_revision(
    rollouts: Rollouts,
    base: Path,
    out: Path,
    work: Path,
    recipe: RevisionRecipe,
    device: str = "cpu",
    overwrite: bool = False,
) -> dict:
    """Fine-tunes `base`, a folder with a causal decoder and its tokenizer, and writes a Hugging Face folder to `out`.

    There are eight evaluations. The checkpoint of the one after the lowest held-out loss is kept, or the last
    (appendix H keeps one slightly after the loss starts to rise, because that loss is off-policy). Resumes from
    the last checkpoint in `work`. Returns held-out figures and statistics of the data. Raises UserError for rollouts
    without trajectories to train on, or answers that exceed the base's context.
    """
    tokenizer = read_tokenizer(base)
    found: list[Counts] = []
    heaps = read_heaps(rollouts, lambda paths: _learnable(paths, tokenizer, recipe, found), recipe, itemgetter(0))
    model = load_base(AutoModelForCausalLM, base)
    if device == "cpu":
        model.set_attn_implementation("eager")  # see train_policy
    vocabulary = Vocabulary(tokenizer.backend_tokenizer, model.config.vocab_size)
    encoder = TrajectoryEncoder(tokenizer, recipe, model.config.max_position_embeddings, vocabulary)
    for heap in heaps:
        encoder.check(heap.train + heap.held)
    packing = Packing.of(tokenizer, recipe.tokens_per_step, IGNORED)
    sources = [Source(partial(encoder.rows, heap.train), heap.weight) for heap in heaps]
    batches = DrawnBatches(sources, packing, recipe.num_updates, recipe.seed)
    held = [encoder.rows(heap.held) for heap in heaps]
    checkpoints = Checkpoints(work, made_of("revision", recipe, device, base=base, rollouts=rollouts), overwrite)
    everything = FixedBatches([row for rows in held for row in rows], packing)
    run_trainer(Trainer, model, _arguments(work, device, recipe), checkpoints, batches, everything)
    losses = held_out_losses(work)
    step = chosen_step(losses)
    if not is_whole(chosen := work / f"checkpoint-{step}"):
        raise UserError(f"{chosen}, the best of the training, is not whole: start anew with --overwrite")
    model = AutoModelForCausalLM.from_pretrained(chosen, dtype=torch.float32, use_safetensors=True)
    model.config.use_cache = True  # the trainer turns it off
    save_model(out, model, tokenizer)
    model.to(device)
    figures = mix_figures(
        heaps, batches, held, lambda rows: {"held_out_loss": _loss(model, FixedBatches(rows, packing))}
    )
    return {"data": "; ".join(map(str, found)), **figures, "step": step, "of_steps": max(losses)}


def _learnable(
    paths: Sequence[Path], tokenizer: PreTrainedTokenizerFast, recipe: RevisionRecipe, found: list[Counts]
) -> list[tuple[str, list[Attempt]]]:
    """The questions of some files that have a right answer; appends statistics of all. Raises UserError for none."""
    questions = read_attempts(paths, tokenizer)
    found.append(build_trajectories(questions, recipe)[1])
    learnable = [question for question in questions if any(attempt.is_right for attempt in question[1])]
    if not learnable:
        raise UserError(f"{', '.join(map(str, paths))} holds nothing to train on: {found[-1]}")
    return learnable


def _arguments(work: Path, device: str, recipe: RevisionRecipe) -> TrainingArguments:
    every = -(-recipe.num_updates // _NUM_EVALUATIONS)
    often = {"eval_strategy": "steps", "eval_steps": every, "save_steps": every, "save_total_limit": None}
    return training_arguments(work, device, **recipe.schedule, bf16=recipe.bf16 or None, **often)


@torch.no_grad()
def _loss(model: PreTrainedModel, batches: FixedBatches) -> float:
    """The mean over batches, as transformers' Trainer evaluates it."""
    model.eval()
    losses = [
        model(**{name: tensor.to(model.device) for name, tensor in batch.items()}).loss.item() for batch in batches
    ]
    return sum(losses) / len(losses)


def held_out_losses(work: Path) -> dict[int, float]:
    """Held-out loss by step, from the trainer's state in the last checkpoint."""
    last = checkpoint_folders(work)[-1]
    history: Iterator[dict] = iter(json.loads((last / "trainer_state.json").read_text())["log_history"])
    return {entry["step"]: entry["eval_loss"] for entry in history if "eval_loss" in entry}


def chosen_step(losses: dict[int, float]) -> int:
    """The step of the evaluation after the lowest loss, or the last; `losses` maps steps to held-out losses."""
    steps = sorted(losses)
    lowest = min(steps, key=lambda step: losses[step])
    return next((step for step in steps if step > lowest), lowest)
