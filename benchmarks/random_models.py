"""Checkpoints of random weights in the shapes of published models: time and memory without a download."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForTokenClassification,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from engine.tasks.tokenizer import EOS, PAD, UNKNOWN, build_tokenizer

STEP_TOKENS = 32  # one in 32 tokens of the vocabulary holds a newline: the mean length of a random step
CONTEXT = 4096

_LLAMA = {"rms_norm_eps": 1e-5, "rope_theta": 500_000.0, "vocab_size": 128_256, "head_dim": None}
# name: (class, config): the shapes of meta-llama/Llama-3.2-1B, Qwen/Qwen2.5-1.5B and an 8B verifier.
SHAPES = {
    "llama-3.2-1b": (
        LlamaForCausalLM,
        LlamaConfig(
            **{**_LLAMA, "head_dim": 64},
            hidden_size=2048,
            intermediate_size=8192,
            num_hidden_layers=16,
            num_attention_heads=32,
            num_key_value_heads=8,
            tie_word_embeddings=True,
        ),
    ),
    "qwen2.5-1.5b": (
        Qwen2ForCausalLM,
        Qwen2Config(
            vocab_size=151_936,
            hidden_size=1536,
            intermediate_size=8960,
            num_hidden_layers=28,
            num_attention_heads=12,
            num_key_value_heads=2,
            rms_norm_eps=1e-6,
            rope_theta=1_000_000.0,
            tie_word_embeddings=True,
        ),
    ),
    "prm-8b": (
        LlamaForTokenClassification,
        LlamaConfig(
            **{**_LLAMA, "head_dim": 128},
            hidden_size=4096,
            intermediate_size=14_336,
            num_hidden_layers=32,
            num_attention_heads=32,
            num_key_value_heads=8,
            tie_word_embeddings=False,
            id2label={0: "bad", 1: "good"},
        ),
    ),
}


def save_random(
    name: str, folder: Path, device: str = "cuda", dtype: torch.dtype = torch.bfloat16, **changes: object
) -> Path:
    """Writes a Hugging Face folder of one of SHAPES; `changes` replace fields of its config (tests make it tiny).

    Sampling from it is all but uniform: a step ends after STEP_TOKENS tokens on average, an answer at its limit.
    """
    model_class, config = SHAPES[name]
    fields = {
        **config.to_dict(),
        "max_position_embeddings": CONTEXT,
        "pad_token_id": 0,
        "bos_token_id": None,
        **changes,
    }
    tokenizer = build_large_tokenizer(fields["vocab_size"])
    fields["eos_token_id"] = tokenizer.eos_token_id
    config = type(config)(**{key: value for key, value in fields.items() if key != "architectures"})
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device), torch.random.fork_rng():
            torch.manual_seed(0)
            model_class(config).save_pretrained(folder)
    finally:
        torch.set_default_dtype(before)
    tokenizer.save_pretrained(folder)
    return folder


def build_large_tokenizer(vocab_size: int) -> PreTrainedTokenizerFast:
    """The home models' characters, then `vocab_size` tokens in all of made-up words, some of which end a line."""
    vocabulary = dict(build_tokenizer().get_vocab())
    for number in range(len(vocabulary), vocab_size):
        vocabulary[f"<{number}>" + "\n" * (number % STEP_TOKENS == 0)] = number
    core = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    core.pre_tokenizer = pre_tokenizers.Split("", behavior="isolated")
    core.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token=PAD,
        eos_token=EOS,
        unk_token=UNKNOWN,
        clean_up_tokenization_spaces=False,
        model_max_length=CONTEXT,
    )
