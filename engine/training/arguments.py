"""What all trainings share: the model they start from, transformers' TrainingArguments, and the loop that resumes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerFast, Trainer, TrainingArguments

from engine.counts import shown
from engine.errors import UserError
from engine.model import load_checkpoint
from engine.training.checkpoints import Checkpoints, MarkWhole, readable_errors

_MAX_SEED = 1 << 32  # numpy's


@dataclass(frozen=True)
class UpdatesRecipe:
    """The options that trainings on the rows of `ttc rollouts` share."""

    num_updates: int = 2000  # of the optimizer, each on one batch
    tokens_per_step: int = 2048  # in a batch at most, padding included
    learning_rate: float = 8e-4
    warmup: int = 50  # updates over which the learning rate rises
    decay: float = 0.3  # share of the updates over which the learning rate falls to a hundredth
    held_out: float = 0.1  # share of questions kept for evaluation
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("num_updates", "tokens_per_step"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} must be at least 1, got {getattr(self, name)}")
        check_schedule(self.learning_rate, self.decay, self.warmup)
        check_seed(self.seed)
        if not 0 < self.held_out < 1:
            raise UserError(f"held_out must be within (0, 1), got {self.held_out}")

    @property
    def schedule(self) -> dict[str, int | float]:
        """What `training_arguments` takes of a recipe."""
        return {name: getattr(self, name) for name in ("seed", "learning_rate", "num_updates", "warmup", "decay")}


def check_schedule(learning_rate: float, decay: float, warmup: int = 0) -> None:
    """Raises UserError for what no learning rate can follow."""
    if not 0 < learning_rate < math.inf:
        raise UserError(f"learning_rate must be a number over 0, got {learning_rate}")
    if warmup < 0:
        raise UserError(f"warmup must be at least 0, got {warmup}")
    if not 0 <= decay <= 1:
        raise UserError(f"decay must be within 0..1, got {decay}")


def check_seed(seed: int) -> None:
    """Raises UserError for a seed that numpy does not take."""
    if not 0 <= seed < _MAX_SEED:
        raise UserError(f"seed must be within 0..{_MAX_SEED - 1}, got {shown(seed)}")


def training_arguments(
    work: Path,
    device: str,
    seed: int,
    learning_rate: float,
    *,
    num_updates: int,
    warmup: int = 100,
    decay: float = 0.3,
    bf16: bool | None = None,
    **options,
) -> TrainingArguments:
    """Warm-up, a constant learning rate, and a linear decay to a hundredth over the last share of the updates.

    There is a checkpoint in `work` after each eighth, and at most 500 updates apart; `options` are transformers' and
    override ours. `bf16` is automatic mixed precision, by default on except on a CPU, where it pays off for wide
    models only. Raises UserError as `check_seed`.
    """
    check_seed(seed)
    num_decay = round(decay * num_updates)
    return TrainingArguments(
        output_dir=str(work),
        per_device_train_batch_size=1,  # an item of our data sets is a whole batch
        per_device_eval_batch_size=1,
        max_steps=num_updates,
        learning_rate=learning_rate,
        lr_scheduler_type="warmup_stable_decay",
        lr_scheduler_kwargs={"num_decay_steps": num_decay, "decay_type": "linear", "min_lr_ratio": 0.01},
        warmup_steps=min(warmup, num_updates - num_decay),  # or the decay would begin before it
        weight_decay=0.01,
        adam_beta2=0.98,
        max_grad_norm=1.0,
        logging_steps=50,
        seed=seed,
        data_seed=seed,
        use_cpu=device == "cpu",
        bf16=device != "cpu" if bf16 is None else bf16,
        report_to=[],
        disable_tqdm=True,
        train_sampling_strategy="sequential",
        remove_unused_columns=False,
        **{"save_steps": min(500, -(-num_updates // 8)), "save_total_limit": 2, **options},
    )


def read_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """The tokenizer of a Hugging Face folder. Raises UserError where there is none that can be read."""
    try:
        return PreTrainedTokenizerFast.from_pretrained(folder)
    except ValueError as error:
        raise UserError(f"the tokenizer of {folder} cannot be read: {error}") from None


def load_base(auto_class: type, folder: Path) -> PreTrainedModel:
    """The float32 model of a Hugging Face folder, by one of transformers' Auto classes.

    As in a search it is read from safetensors alone and no code of its own is run. Raises UserError as
    `load_checkpoint` does.
    """
    load_checkpoint(folder, torch.float32)  # reads no tensor
    safe = {"use_safetensors": True, "trust_remote_code": False, "local_files_only": True}
    return auto_class.from_pretrained(folder, dtype=torch.float32, **safe)


def run_trainer(
    trainer_type: type[Trainer],
    model: nn.Module,
    arguments: TrainingArguments,
    checkpoints: Checkpoints,  # in the output folder
    train: Dataset,
    held_out: Dataset | None = None,
) -> Trainer:
    """Trains `model` from the last whole checkpoint, if there is one. Items of data sets are batches.

    Raises UserError as `Checkpoints.opened` does.
    """
    trainer = trainer_type(
        model=model,
        args=arguments,
        train_dataset=train,
        eval_dataset=held_out,
        data_collator=lambda items: items[0],
        callbacks=[MarkWhole()],
    )
    with checkpoints.opened() as start, readable_errors(checkpoints.folder):
        trainer.train(resume_from_checkpoint=None if start is None else str(start))
    return trainer
