"""What all trainings share: transformers' TrainingArguments, and the loop that resumes."""

from __future__ import annotations

import shutil
from pathlib import Path

from torch import nn
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerFast, Trainer, TrainingArguments

from engine.errors import UserError

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


def run_trainer(
    trainer_type: type[Trainer],
    model: nn.Module,
    arguments: TrainingArguments,
    train: Dataset,
    held_out: Dataset | None = None,
) -> Trainer:
    """Trains `model` from the last checkpoint in the output folder, if there is one. Items of data sets are batches."""
    trainer = trainer_type(
        model=model,
        args=arguments,
        train_dataset=train,
        eval_dataset=held_out,
        data_collator=lambda items: items[0],
    )
    trainer.train(resume_from_checkpoint=any(Path(arguments.output_dir).glob("checkpoint-*")) or None)
    return trainer
