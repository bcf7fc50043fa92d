"""A tiny policy whose few tokens make boxes often."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from tests.tiny import tiny_config

_TOKENS = ["<pad>", "<eos>", "<unk>", "\\boxed{", "}", "{", "\n", "1", "2", "+"]


def boxing_policy(folder: Path, seed: int = 0) -> Path:
    """A random model over ten tokens, `\\boxed{` one of them."""
    core = Tokenizer(models.WordLevel({token: i for i, token in enumerate(_TOKENS)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Split(Regex(r"\\boxed\{|[\s\S]"), behavior="isolated")
    core.decoder = decoders.Fuse()
    special = {"pad_token": "<pad>", "eos_token": "<eos>", "unk_token": "<unk>"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, **special)
    config = tiny_config(LlamaConfig, tokenizer, 4096, initializer_range=0.05, tie_word_embeddings=True)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
