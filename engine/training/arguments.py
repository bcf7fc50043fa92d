"""What all trainings share: the model they start from, transformers' TrainingArguments, and the loop that resumes."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerFast, Trainer, TrainingArguments

from engine.errors import UserError
from engine.model import load_checkpoint
from engine.training.checkpoints import Checkpoints, MarkWhole, readable_errors

_MAX_SEED = 1 << 32  # numpy's


def can_compile() -> bool:
    """Whether torch.compile works on a CPU, where it needs a C++ compiler. It pays off within minutes."""
    return shutil.which("g++") is not None


def training_arguments(
    work: Path, device: str, seed: int, learning_rate: float, *, bf16: bool | None = None, **options
) -> TrainingArguments:
    """Cosine decay, and a checkpoint in `work` every 500 steps; `options` are transformers' and override ours.

    `bf16` is automatic mixed precision, by default on except on a CPU, where it pays off for wide models only.
    Raises UserError for a seed that numpy does not take.
    """
    if not 0 <= seed < _MAX_SEED:
        raise UserError(f"seed must be within 0..{_MAX_SEED - 1}, got {seed}")
    return TrainingArguments(
        output_dir=str(work),
        per_device_train_batch_size=1,  # an item of our data sets is a whole batch
        per_device_eval_batch_size=1,
        learning_rate=learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=100,
        weight_decay=0.01,
        adam_beta2=0.98,
        max_grad_norm=1.0,
        logging_steps=50,
        seed=seed,
        data_seed=seed,
        use_cpu=device == "cpu",
        bf16=device != "cpu" if bf16 is None else bf16,
        torch_compile=can_compile(),
        report_to=[],
        disable_tqdm=True,
        train_sampling_strategy="sequential",
        remove_unused_columns=False,
        **{"save_steps": 500, "save_total_limit": 2, **options},
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
