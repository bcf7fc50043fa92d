"""Trains the home policy: next-token loss on worked answers, prompts masked out."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.utils.data import Dataset
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, Trainer

from engine.errors import UserError
from engine.tasks import walks
from engine.tasks.tokenizer import build_tokenizer
from engine.training.arguments import check_schedule, check_seed, load_base, run_trainer, training_arguments
from engine.training.checkpoints import Checkpoints, made_of, save_model

IGNORED = -100  # the label that transformers' loss skips

# With fewer walks and fewer told ones than in the task's problems, and most of them short: how a walk of one or two
# doors is undone is learned from many short ones, long before walks of five doors teach anything of it.
TRAINING_MIX = walks.WalksConfig(min_walks=1, max_told=0.6, short_rate=0.7)
_POOL = 24  # batches that are drawn together, so that each can have rows of similar length
_FILL = 0.97  # of a pool: batches end with the row that fills them, and so are a little too full
_MULTIPLE = 8  # of tokens in a row, padding included

Row = tuple[str, str]  # prompt, worked answer


@dataclass(frozen=True)
class PolicyRecipe:
    """Options of `ttc train policy`; the defaults give the shipped policy."""

    hidden_size: int = 96
    num_layers: int = 6
    num_heads: int = 3
    num_kv_heads: int = 1
    context: int = 1024  # tokens
    num_updates: int = 2012
    tokens_per_step: int = 2048  # on average, without padding
    learning_rate: float = 2e-3
    decay: float = 0.3  # share of the updates over which the learning rate falls to a hundredth
    bf16: bool = False  # automatic mixed precision; weights stay fp32
    bf16_weights: bool = False  # write weights in bf16: half the file size
    seed: int = 0
    late_from: float = 0.5635  # share of the updates after which short problems are drawn by `late_lengths`
    late_lengths: str = "2,6,2,1"  # weights of 1, 2, ... doors: once one is found, two are next
    data: walks.WalksConfig = TRAINING_MIX

    def __post_init__(self) -> None:
        for name in ("num_updates", "tokens_per_step"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not 0 <= self.late_from <= 1:
            raise UserError(f"late_from must be within 0..1, got {self.late_from}")
        check_schedule(self.learning_rate, self.decay)
        check_seed(self.seed)
        self._late_data()  # raises for bad weights

    def stage(self, index: int) -> tuple[int, walks.WalksConfig]:
        """The stage of the corpus, 0 or 1, that an update takes its rows from, and its problems."""
        if index < round(self.late_from * self.num_updates):
            return 0, self.data
        return 1, self._late_data()

    def _late_data(self) -> walks.WalksConfig:
        try:
            return walks.config_from_options({"short_lengths": self.late_lengths}, self.data)
        except UserError as error:
            raise UserError(f"late_lengths are the short_lengths of late updates: {error}") from None


class WalksBatches(Dataset):
    """Item i is a whole batch, which depends on (seed, i) alone, so that a resumed run sees the same data.

    `input_ids` and `labels` are (rows, longest), padded on the right. Batches are drawn by pools, sorted by length and
    shuffled, so that rows of a batch are of similar length and need little padding.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, recipe: PolicyRecipe):
        self.ids = tokenizer.get_vocab()
        self.recipe = recipe
        self.pool: tuple[tuple[int, int], list[list[Row]]] | None = None  # the last one: (stage, number), its batches

    def __len__(self) -> int:
        return self.recipe.num_updates

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        stage, config = self.recipe.stage(index)
        number = index // _POOL
        if self.pool is None or self.pool[0] != (stage, number):
            rng = random.Random(f"B/{stage}/{self.recipe.seed}/{number}")  # B: the form of corpus that was kept
            self.pool = (stage, number), _draw_pool(rng, config, self.recipe.tokens_per_step)
        return self._encode(self.pool[1][index % _POOL])

    def _encode(self, rows: list[Row]) -> dict[str, torch.Tensor]:
        longest = max(map(_num_tokens, rows))
        shape = len(rows), -(-longest // _MULTIPLE) * _MULTIPLE
        input_ids, labels = torch.full(shape, self.ids["<pad>"]), torch.full(shape, IGNORED)
        for i, (prompt, answer) in enumerate(rows):
            ids = torch.tensor([self.ids[c] for c in prompt + answer] + [self.ids["<eos>"]])
            input_ids[i, : len(ids)] = ids
            labels[i, len(prompt) : len(ids)] = ids[len(prompt) :]
        return {"input_ids": input_ids, "labels": labels}


def _draw_pool(rng: random.Random, config: walks.WalksConfig, tokens_per_step: int) -> list[list[Row]]:
    """Batches of about equally many tokens, each of rows of similar length, in random order. None is empty."""
    rows: list[Row] = []
    total = 0
    while total < _POOL * tokens_per_step * _FILL or len(rows) < _POOL:
        problem = walks.draw_problem(rng, config)
        if problem.split == "train":
            rows.append((problem.text, walks.worked_answer(problem, rng, config)))
            total += _num_tokens(rows[-1])
    batches: list[list[Row]] = [[]]
    num_seen = 0
    for num_left, row in zip(reversed(range(len(rows))), sorted(rows, key=_num_tokens), strict=True):
        num_seen += _num_tokens(row)
        batches[-1].append(row)
        num_wanted = _POOL - len(batches)
        if num_wanted and (num_seen >= total / _POOL * len(batches) or num_left == num_wanted):
            batches.append([])
    rng.shuffle(batches)
    return batches


def _num_tokens(row: Row) -> int:
    prompt, answer = row
    return len(prompt) + len(answer) + 1  # the end of text


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
    if device == "cpu":
        model.set_attn_implementation("eager")  # faster than torch's fused one at some hundred tokens
    schedule = {"num_updates": recipe.num_updates, "decay": recipe.decay, "bf16": recipe.bf16 or None}
    arguments = training_arguments(work, device, recipe.seed, recipe.learning_rate, **schedule)
    checkpoints = Checkpoints(work, made_of("policy", recipe, device, base=base), overwrite)
    run_trainer(Trainer, model, arguments, checkpoints, WalksBatches(tokenizer, recipe))
    model.config.use_cache = True  # the trainer turns it off
    if recipe.bf16_weights:
        model.to(torch.bfloat16)
    save_model(out, model, tokenizer)
