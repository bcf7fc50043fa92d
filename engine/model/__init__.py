"""Decoders of the Llama family, loaded from Hugging Face folders and run on the ops of `ttc_kernels`."""

from engine.model.config import ModelConfig, named_architecture, read_config, read_raw_config
from engine.model.heads import (
    LMHead,
    ScoreHead,
    classification_head,
    linear_head,
    lm_rows_head,
    load_trunk_head,
    mlp_head,
)
from engine.model.loader import (
    HOME,
    Checkpoint,
    load_checkpoint,
    load_tokenizer,
    resolve_dtype,
    resolve_folder,
    tensor_names,
    weight_bytes,
)
from engine.model.placement import CPU, Placement, resolve_device
from engine.model.ranks import Ranks
from engine.model.transformer import Decoder

__all__ = [
    "CPU",
    "HOME",
    "Checkpoint",
    "Decoder",
    "LMHead",
    "ModelConfig",
    "Placement",
    "Ranks",
    "ScoreHead",
    "classification_head",
    "linear_head",
    "lm_rows_head",
    "load_checkpoint",
    "load_tokenizer",
    "load_trunk_head",
    "mlp_head",
    "named_architecture",
    "read_config",
    "read_raw_config",
    "resolve_device",
    "resolve_dtype",
    "resolve_folder",
    "tensor_names",
    "weight_bytes",
]
