"""Trains a revision model on its own attempts and right answers (Snell et al. 2024, section 6.1 and appendix H).

Trajectories are built from parallel samples: a right answer, preceded by k attempts at the same question, k uniform in
0..4. Only the right answer is trained on. There are two ways to choose the attempts:

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
from itertools import groupby
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, Trainer

from engine.errors import UserError
from engine.prompts.histories import after_attempts
from engine.runtime.vocabulary import Vocabulary
from engine.training.arguments import can_compile, load_base, read_tokenizer, run_trainer, training_arguments
from engine.training.batches import LengthBatches, check_tokens
from engine.training.checkpoints import Checkpoints, checkpoint_folders, is_whole, made_of, save_model
from engine.training.policy import IGNORED
from engine.training.stepwise import read_stepwise
from engine.training.verifier import split_questions


@dataclass(frozen=True)
class RevisionRecipe:
    """Options of `ttc train revision`; with the data of `make models`, the defaults give the shipped reviser."""

    max_attempts: int = 4  # before the right answer
    attempts: str = "sampled"  # any samples; or "wrong", as in the paper, the closest last
    max_right: int = 2  # right answers used per question; easy questions have many
    num_epochs: float = 2.0
    tokens_per_step: int = 6144
    learning_rate: float = 5e-4
    held_out: float = 0.05  # share of questions kept for evaluation
    bf16: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("max_attempts", 1), ("max_right", 1), ("tokens_per_step", 1)):
            if getattr(self, name) < least:
                raise UserError(f"{name} must be at least {least}, got {getattr(self, name)}")
        if self.attempts not in ("wrong", "sampled"):
            raise UserError(f"attempts must be 'wrong' or 'sampled', got {self.attempts!r}")
        if not 0 < self.held_out < 1:
            raise UserError(f"held_out must be within (0, 1), got {self.held_out}")
        if self.num_epochs <= 0:
            raise UserError(f"num_epochs must be over 0, got {self.num_epochs}")


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
    questions: Iterable[tuple[str, Sequence[Attempt]]], recipe: RevisionRecipe
) -> tuple[list[Trajectory], Counts]:
    """Trajectories of all questions with a right answer. Wrong attempts with equal texts count as one."""
    trajectories: list[Trajectory] = []
    counts = Counts()
    for prompt, attempts in questions:
        counts.questions += 1
        distinct = list({attempt.text: attempt for attempt in attempts}.values())
        wrong = [attempt for attempt in distinct if not attempt.is_right]
        if not any(attempt.is_right for attempt in attempts):
            counts.never_right += 1
            continue
        counts.never_wrong += not wrong
        rng = random.Random(f"revision/{recipe.seed}/{prompt}")
        right = [attempt for attempt in attempts if attempt.is_right]  # with repetitions
        for answer in rng.sample(right, min(recipe.max_right, len(right))):
            num_attempts = rng.randint(0, recipe.max_attempts)
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


def encode(trajectory: Trajectory, tokenizer: PreTrainedTokenizerFast) -> tuple[list[int], list[int]]:
    """Token ids of a trajectory, with the prompt before every attempt, and labels, IGNORED before the right answer."""
    prompt = tokenizer(trajectory.prompt)["input_ids"]
    ids = after_attempts(prompt, [attempt.token_ids for attempt in trajectory.attempts])
    answer = list(trajectory.right.token_ids)
    return ids + answer, [IGNORED] * len(ids) + answer


def train_revision(
    rollouts: Sequence[Path],
    base: Path,
    out: Path,
    work: Path,
    recipe: RevisionRecipe,
    device: str = "cpu",
    overwrite: bool = False,
) -> dict:
    """Fine-tunes `base`, a folder with a causal decoder and its tokenizer, and writes a Hugging Face folder to `out`.

    There are four evaluations per epoch. The checkpoint of the one after the lowest held-out loss is kept, or the
    last (appendix H keeps one slightly after the loss starts to rise, because that loss is off-policy). Resumes from
    the last checkpoint in `work`. Returns held-out figures and statistics of the data. Raises UserError for rollouts
    without trajectories to train on, or trajectories that exceed the base's context.
    """
    tokenizer = read_tokenizer(base)
    trajectories, counts = build_trajectories(read_attempts(rollouts, tokenizer), recipe)
    rows = [{"prompt": each.prompt, "trajectory": each} for each in trajectories]
    train, held = split_questions(rows, recipe.held_out, recipe.seed) if rows else ([], [])
    if not train:
        raise UserError(f"{', '.join(map(str, rollouts))} holds nothing to train on: {counts}")
    model = load_base(AutoModelForCausalLM, base)
    if device == "cpu" and can_compile():
        model.set_attn_implementation("eager")  # see train_policy
    limits = model.config.max_position_embeddings, Vocabulary(tokenizer.backend_tokenizer, model.config.vocab_size)
    batches = [_batches(part, tokenizer, recipe, *limits) for part in (train, held)]
    steps_each = max(1, len(batches[0]) // 4)
    arguments = training_arguments(
        work,
        device,
        recipe.seed,
        recipe.learning_rate,
        bf16=recipe.bf16 or None,
        num_train_epochs=recipe.num_epochs,
        eval_strategy="steps",
        eval_steps=steps_each,
        save_steps=steps_each,
        save_total_limit=None,
    )
    checkpoints = Checkpoints(work, made_of("revision", recipe, device, base=base, rollouts=rollouts), overwrite)
    run_trainer(Trainer, model, arguments, checkpoints, *batches)
    losses = held_out_losses(work)
    step = chosen_step(losses)
    if not is_whole(chosen := work / f"checkpoint-{step}"):
        raise UserError(f"{chosen}, the best of the training, is not whole: start anew with --overwrite")
    model = AutoModelForCausalLM.from_pretrained(chosen, dtype=torch.float32, use_safetensors=True)
    model.config.use_cache = True  # the trainer turns it off
    save_model(out, model, tokenizer)
    return {"data": str(counts), "held_out_loss": losses[step], "step": step, "of_steps": max(losses)}


def _batches(
    rows: Sequence[dict],
    tokenizer: PreTrainedTokenizerFast,
    recipe: RevisionRecipe,
    context: int,
    vocabulary: Vocabulary,
) -> LengthBatches:
    encoded = [encode(row["trajectory"], tokenizer) for row in rows]
    for (ids, _), row in zip(encoded, rows, strict=True):
        check_tokens(ids, row["prompt"], vocabulary)
    longest = max(len(ids) for ids, _ in encoded)
    if longest > context:
        raise UserError(f"a trajectory has {longest} tokens, over the context of {context}: take fewer max_attempts")
    return LengthBatches(encoded, tokenizer, no_label=IGNORED, tokens_per_step=recipe.tokens_per_step, seed=recipe.seed)


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
