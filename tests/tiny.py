"""Tiny random checkpoints, so that tests of the whole engine need no trained model."""

from __future__ import annotations

from pathlib import Path

import torch
import transformers
from safetensors.torch import save_file
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForTokenClassification,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
)

from engine.tasks.tokenizer import build_tokenizer

HIDDEN_SIZE = 32


def tiny_config(config_class: type, tokenizer: PreTrainedTokenizerBase, context: int, **fields) -> PreTrainedConfig:
    """Two layers of 32 with two query heads and a KV head, over a tokenizer's vocabulary; `fields` win."""
    defaults = {
        "vocab_size": len(tokenizer),
        "hidden_size": HIDDEN_SIZE,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": context,
        "initializer_range": 0.2,  # scores and probabilities that differ visibly
        "tie_word_embeddings": False,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    return config_class(**defaults | fields)


def tiny_policy(folder: Path, *, seed: int = 0, context: int = 1024) -> Path:
    """A random policy of two layers over the home tokenizer, as a Hugging Face folder."""
    return _save(LlamaForCausalLM, folder, seed, context)


def tiny_prm(folder: Path, *, seed: int = 1, context: int = 1024, num_labels: int = 1) -> Path:
    """A random step verifier of two layers over the home tokenizer."""
    return _save(LlamaForTokenClassification, folder, seed, context, num_labels=num_labels)


def tiny_trunk_head(folder: Path, *, seed: int = 2) -> Path:
    """A random head that fits the trunk of `tiny_policy`."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(1, HIDDEN_SIZE, generator=generator)
    save_file({"score.weight": weight, "score.bias": torch.zeros(1)}, folder / "model.safetensors")
    return folder


def tiny_family(folder: Path, model_class: str, *, seed: int = 0, dtype: torch.dtype = torch.float32, **fields) -> Path:
    """A random model of a class of transformers, norms and biases random too, over the home tokenizer.

    `fields` are of its config, on top of two layers of 32 with four query heads and two KV heads of 16.
    """
    tokenizer = build_tokenizer()
    cls = getattr(transformers, model_class)
    defaults = {
        "vocab_size": 41,
        "hidden_size": HIDDEN_SIZE,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": 512,
        "initializer_range": 0.2,
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = cls(cls.config_class(**defaults | fields))
        for name, value in model.named_parameters():
            if value.dim() == 1:
                value.data.normal_(1.0 if name.endswith("norm.weight") else 0.0, 0.3)
        model.to(dtype).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _save(model_class: type, folder: Path, seed: int, context: int, **fields: object) -> Path:
    tokenizer = build_tokenizer()
    is_tied = model_class is LlamaForCausalLM
    config = tiny_config(LlamaConfig, tokenizer, context, tie_word_embeddings=is_tied, **fields)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model_class(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
