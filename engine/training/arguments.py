"""What all our trainings share of transformers' TrainingArguments."""

from __future__ import annotations

import shutil
from pathlib import Path

from transformers import TrainingArguments


def can_compile() -> bool:
    """Whether torch.compile can be used on a CPU, where it needs a C++ compiler; it pays within minutes."""
    return shutil.which("g++") is not None


def training_arguments(
    work: Path, device: str, seed: int, learning_rate: float, *, bf16: bool | None = None, **options
) -> TrainingArguments:
    """Checkpoints every 500 steps into `work`, cosine decay; options go to transformers and override ours.

    `bf16` is automatic mixed precision, by default off the CPU only: there it pays for wide models alone.
    """
    return TrainingArguments(
        output_dir=str(work),
        per_device_train_batch_size=1,  # an item of our data sets is a batch already
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
