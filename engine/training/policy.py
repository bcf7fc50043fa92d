"""Trains the home policy: next-token loss on worked answers, prompts masked out."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch.utils.data import Dataset
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, Trainer

from engine.errors import UserError
from engine.tasks import chain
from engine.tasks.tokenizer import build_tokenizer
from engine.training.arguments import can_compile, check_schedule, load_base, run_trainer, training_arguments
from engine.training.checkpoints import Checkpoints, made_of, save_model

IGNORED = -100  # the label that transformers' loss skips

# Harder than the task's default, and with any multiplier, so that the policy sees round numbers too.
TRAINING_MIX = chain.ChainConfig(max_multiply=1.0, multiplier_digits=(0.3, 0.7), keeps_errors=False)


@dataclass(frozen=True)
class PolicyRecipe:
    """Options of `ttc train policy`; the defaults give the shipped policy."""

    hidden_size: int = 96
    num_layers: int = 6
    num_heads: int = 6
    num_kv_heads: int = 2
    context: int = 1024  # tokens
    num_tokens: int = 20_000_000
    tokens_per_step: int = 6144
    learning_rate: float = 2e-3
    decay: float = 0.3  # share of the updates over which the learning rate falls to a hundredth
    bf16: bool = False  # automatic mixed precision; weights stay fp32
    bf16_weights: bool = False  # write weights in bf16: half the file size
    seed: int = 0
    data: chain.ChainConfig = TRAINING_MIX

    def __post_init__(self) -> None:
        if not 1 <= self.tokens_per_step <= self.num_tokens:
            raise UserError(f"tokens_per_step must be within 1..{self.num_tokens}, got {self.tokens_per_step}")
        check_schedule(self.decay)

    @property
    def num_steps(self) -> int:
        return self.num_tokens // self.tokens_per_step


class ChainBatches(Dataset):
    """Item i is a whole batch, which depends on (seed, i) alone, so that a resumed run sees the same data.

    `input_ids` and `labels` are (rows, longest), padded on the right. The problems of a batch have one depth, so that
    rows are of similar length and need little padding.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, recipe: PolicyRecipe):
        self.ids = tokenizer.get_vocab()
        self.recipe = recipe

    def __len__(self) -> int:
        return self.recipe.num_steps

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        recipe, config = self.recipe, self.recipe.data
        rng = random.Random(f"policy/{recipe.seed}/{index}")
        depth = rng.randint(config.min_depth, config.max_depth)
        fixed = replace(config, min_depth=depth, max_depth=depth)
        rows: list[tuple[str, str]] = []
        longest = 0
        while not rows or longest * (len(rows) + 1) <= recipe.tokens_per_step:
            problem = chain.draw_problem(rng, fixed)
            if problem.split == "train":
                rows.append((problem.text, chain.worked_answer(problem, rng, fixed)))
                longest = max(longest, len(problem.text) + len(rows[-1][1]) + 1)
        return self._encode(rows, longest)

    def _encode(self, rows: list[tuple[str, str]], longest: int) -> dict[str, torch.Tensor]:
        input_ids = torch.full((len(rows), longest), self.ids["<pad>"])
        labels = torch.full((len(rows), longest), IGNORED)
        for i, (prompt, answer) in enumerate(rows):
            ids = torch.tensor([self.ids[c] for c in prompt + answer] + [self.ids["<eos>"]])
            input_ids[i, : len(ids)] = ids
            labels[i, len(prompt) : len(ids)] = ids[len(prompt) :]
        return {"input_ids": input_ids, "labels": labels}


def build_policy(recipe: PolicyRecipe, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """A newly initialised decoder of the Llama family."""
    torch.manual_seed(recipe.seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=recipe.hidden_size,
        intermediate_size=-(-recipe.hidden_size * 8 // 3 // 32) * 32,
        num_hidden_layers=recipe.num_layers,
        num_attention_heads=recipe.num_heads,
        num_key_value_heads=recipe.num_kv_heads,
        max_position_embeddings=recipe.context,
        tie_word_embeddings=True,
        initializer_range=recipe.hidden_size**-0.5 / 2,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config)


def train_policy(
    recipe: PolicyRecipe,
    out: Path,
    work: Path,
    device: str = "cpu",
    base: Path | None = None,
    overwrite: bool = False,
) -> None:
    """Trains the policy and writes a Hugging Face folder to `out`; resumes from the last checkpoint in `work`.

    With `base`, a Hugging Face folder with the home tokenizer, training starts from its weights and keeps its
    architecture instead of the recipe's. Use another seed than the base's, which would give the same data again.
    Raises UserError for a base with another vocabulary size.
    """
    tokenizer = build_tokenizer()
    model = build_policy(recipe, tokenizer) if base is None else load_base(AutoModelForCausalLM, base)
    if model.config.vocab_size != len(tokenizer):
        raise UserError(f"{base} has {model.config.vocab_size} tokens, the home tokenizer {len(tokenizer)}")
    if device == "cpu" and can_compile():
        # Compiled, plain attention takes two thirds of the time of torch's fused one at some hundred tokens (bf16).
        model.set_attn_implementation("eager")
    schedule = {"num_updates": recipe.num_steps, "decay": recipe.decay, "bf16": recipe.bf16 or None}
    arguments = training_arguments(work, device, recipe.seed, recipe.learning_rate, **schedule)
    checkpoints = Checkpoints(work, made_of("policy", recipe, device, base=base), overwrite)
    run_trainer(Trainer, model, arguments, checkpoints, ChainBatches(tokenizer, recipe))
    model.config.use_cache = True  # the trainer turns it off
    if recipe.bf16_weights:
        model.to(torch.bfloat16)
    save_model(out, model, tokenizer)
