"""Llama-family decoders on our ops, loaded from Hugging Face folders."""

from engine.model.config import ModelConfig, read_config
from engine.model.heads import LMHead, ScoreHead, classification_head, load_trunk_head
from engine.model.loader import (
    HOME,
    Checkpoint,
    load_checkpoint,
    load_tokenizer,
    resolve_dtype,
    resolve_folder,
)
from engine.model.transformer import Decoder

__all__ = [
    "HOME",
    "Checkpoint",
    "Decoder",
    "LMHead",
    "ModelConfig",
    "ScoreHead",
    "classification_head",
    "load_checkpoint",
    "load_tokenizer",
    "load_trunk_head",
    "read_config",
    "resolve_dtype",
    "resolve_folder",
]
