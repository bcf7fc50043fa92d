"""Tiny random checkpoints and data that the pages under `docs/` assume beside them.

The policy is a Qwen2 with a tokenizer of its own; its verifiers have Llama trunks and another tokenizer.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from tests.tiny import tiny_config
from tests.verifiers.builders import make
from tests.verifiers.tokenizers import CHATML

# Problems in GSM8K's format, of our own.
WORD_PROBLEMS = (
    {
        "question": "Mira packs 12 boxes with 6 mugs each. Then 5 mugs break. How many mugs are whole?",
        "answer": "She packs 12 * 6 = <<12*6=72>>72 mugs.\n72 - 5 = <<72-5=67>>67 mugs are whole.\n#### 67",
    },
    {
        "question": "A bus ticket costs $3. Tom rides twice a day for 20 days. How many dollars does he pay?",
        "answer": "He rides 2 * 20 = <<2*20=40>>40 times.\nHe pays 40 * 3 = $<<40*3=120>>120.\n#### 120",
    },
    {
        "question": "A tank of 1,500 liters is one third full. How many liters fit in?",
        "answer": "It holds 1500 / 3 = <<1500/3=500>>500 liters.\n1500 - 500 = <<1500-500=1000>>1000.\n#### 1,000",
    },
    {
        "question": "Ana has 4 times as many stamps as Ben, who has 15. How many do they have together?",
        "answer": "Ana has 4 * 15 = <<4*15=60>>60 stamps.\nTogether they have 60 + 15 = <<60+15=75>>75.\n#### 75",
    },
)
FORMULAS = (
    {"problem": "What is half of $\\frac{2}{3}$?", "answer": "\\frac{1}{3}"},
    {"problem": "Solve $2x = 9$.", "answer": "4.5"},
)


def word_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer that has learned the word problems, with a chat template."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    texts = [f"{row['question']}\n{row['answer']}\n\n\\boxed{{1}}" for row in WORD_PROBLEMS]
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    core.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=512, special_tokens=special, initial_alphabet=alphabet)
    )
    tokens = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    return PreTrainedTokenizerFast(tokenizer_object=core, chat_template=CHATML, **tokens)


def word_policy(folder: Path, *, seed: int = 0, context: int = 2048) -> Path:
    """A random Qwen2 of two layers."""
    tokenizer = word_tokenizer()
    config = tiny_config(Qwen2Config, tokenizer, context, intermediate_size=48)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = Qwen2ForCausalLM(config)
        ends = tokenizer.convert_tokens_to_ids(["Ċ", tokenizer.eos_token])
        model.lm_head.weight.data[ends] *= 3  # steps and answers that end now and then
        model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def write_rows(path: Path, rows: list[dict] | tuple[dict, ...]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def lay_out(folder: Path) -> Path:
    """What the pages assume, as `docs/README.md` lists it."""
    word_policy(folder / "policy")
    make(folder / "prm", "qwen-prm", seed=1)
    make(folder / "orm", "qwen-rm", seed=2)
    make(folder / "versaprm", "versaprm", seed=3)
    write_rows(folder / "gsm8k.jsonl", WORD_PROBLEMS)
    write_rows(folder / "formulas.jsonl", FORMULAS)
    (folder / "data").mkdir()
    write_rows(folder / "data" / "train.jsonl", WORD_PROBLEMS[:1])
    write_rows(folder / "data" / "test.jsonl", WORD_PROBLEMS[1:])
    return folder
