"""Pretrains a verifier's trunk without labels, on telling the tokens of worked answers from a policy's samples.

This is replaced token detection (Clark et al. 2020, ELECTRA) with the policy as the generator, so that its mistakes
are those that the verifier will meet. The trunk learns to compare each token with what should be there. Monte-Carlo
rollouts teach this only slowly, because an answer has many tokens but one first mistake.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import Dataset
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast, Trainer

from engine.errors import UserError
from engine.tasks.chain import ChainConfig
from engine.training.arguments import load_base, read_tokenizer, run_trainer, training_arguments
from engine.training.checkpoints import Checkpoints, made_of, save_model
from engine.training.policy import IGNORED, TRAINING_MIX, ChainBatches, PolicyRecipe
from engine.training.verifier import UNLABELLED, VerifierRecipe, build_classifier, held_out_figures, step_loss

_HELD_OUT_TOKENS = 200_000


@dataclass(frozen=True)
class DiscriminatorRecipe:
    """Options of `ttc train discriminator`; the defaults give the base of the shipped PRM."""

    num_extra_layers: int = 2  # on top of the base's; initialised to add nothing
    num_tokens: int = 10_000_000
    tokens_per_step: int = 6144
    learning_rate: float = 1e-3
    temperature: float = 1.0  # of the samples that replace tokens
    seed: int = 2
    data: ChainConfig = TRAINING_MIX

    def __post_init__(self) -> None:
        if self.num_extra_layers < 1:  # the base's last output is trained as a language model's, not as a score's
            raise UserError(f"num_extra_layers must be at least 1, got {self.num_extra_layers}")
        if not 1 <= self.tokens_per_step <= self.num_tokens:
            raise UserError(f"tokens_per_step must be within 1..{self.num_tokens}, got {self.tokens_per_step}")
        if self.temperature <= 0:
            raise UserError(f"temperature must be over 0, got {self.temperature}")

    @property
    def corpus(self) -> PolicyRecipe:
        """The recipe of the worked answers, which are drawn as for a policy."""
        return PolicyRecipe(
            num_tokens=self.num_tokens, tokens_per_step=self.tokens_per_step, seed=self.seed, data=self.data
        )


class ReplacedTokens(Dataset):
    """Item i is a batch of worked answers in which the policy has resampled every token, given the worked answer
    before it. It depends on (seed, i) alone, so that a resumed run sees the same data.

    All tensors are (rows, longest). In each line `labels` are 1 before its first token that differs from the worked
    answer, and 0 from there on. They are UNLABELLED in the prompt and in padding, and with `only_line_ends`
    everywhere but at a line's last token. `next_ids` are the worked answer's next tokens, IGNORED once a line has
    gone wrong.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerFast,
        policy: PreTrainedModel,
        recipe: DiscriminatorRecipe,
        only_line_ends: bool = False,
    ):
        self.corpus = ChainBatches(tokenizer, recipe.corpus)
        self.policy, self.recipe, self.only_line_ends = policy.eval(), recipe, only_line_ends
        self.ends = torch.tensor([tokenizer.get_vocab()["\n"], tokenizer.eos_token_id])  # what ends a line

    def __len__(self) -> int:
        return len(self.corpus)

    @torch.no_grad()
    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        batch = self.corpus[index]
        ids, targets = batch["input_ids"], batch["labels"]
        generator = torch.Generator().manual_seed(random.Random(f"replaced/{self.recipe.seed}/{index}").getrandbits(63))
        logits = self.policy(ids.to(self.policy.device)).logits[:, :-1].float().cpu() / self.recipe.temperature
        sampled = torch.multinomial(logits.softmax(-1).flatten(0, 1), 1, generator=generator).view_as(ids[:, 1:])
        in_answer = targets != IGNORED
        # Line ends stay in place, so that the lines of the sample and of the worked answer match.
        fixed = ~in_answer[:, 1:] | torch.isin(ids[:, 1:], self.ends) | torch.isin(sampled, self.ends)
        mixed = ids.clone()
        mixed[:, 1:] = torch.where(fixed, ids[:, 1:], sampled)
        wrong = self._gone_wrong(mixed != ids, ids)
        judged = in_answer & torch.isin(ids, self.ends) if self.only_line_ends else in_answer
        labels = torch.where(judged, (~wrong).float(), UNLABELLED)
        next_ids = torch.full_like(ids, IGNORED)
        next_ids[:, :-1] = targets[:, 1:].masked_fill(wrong[:, :-1], IGNORED)
        return {"input_ids": mixed, "labels": labels, "next_ids": next_ids}

    def _gone_wrong(self, replaced: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        """Whether each position's line has a replaced token, at the position or before it."""
        so_far = replaced.long().cumsum(1)
        is_end = torch.isin(ids, self.ends)
        at_last_end = torch.where(is_end, so_far, 0).roll(1, 1)
        at_last_end[:, 0] = 0
        return so_far > at_last_end.cummax(1).values


class Discriminator(nn.Module):
    """A token classifier that is still trained as a language model below its extra layers.

    The language modelling loss keeps the base's prediction of each token available to the extra layers.
    """

    def __init__(self, classifier: PreTrainedModel, base: PreTrainedModel):
        super().__init__()
        self.classifier = classifier
        self.depth = base.config.num_hidden_layers
        self.norm = base.model.norm

    def forward(self, input_ids: torch.Tensor, labels: torch.Tensor, next_ids: torch.Tensor) -> dict:
        """`loss`, the sum of both, and `logits`, (batch, length, 2); the arguments are an item of ReplacedTokens."""
        outputs = self.classifier(input_ids, output_hidden_states=True)
        expected = self.norm(outputs.hidden_states[self.depth]) @ self.classifier.model.embed_tokens.weight.T
        lm_loss = nn.functional.cross_entropy(expected.flatten(0, 1), next_ids.flatten(), ignore_index=IGNORED)
        return {"loss": step_loss(outputs.logits, labels) + lm_loss, "logits": outputs.logits}


def train_discriminator(
    recipe: DiscriminatorRecipe,
    base: Path,
    policy: Path,
    out: Path,
    work: Path,
    device: str = "cpu",
    overwrite: bool = False,
) -> dict:
    """Trains a two-label token classifier that starts from the decoder `base`, and writes it to `out`.

    Resumes from the last checkpoint in `work`. Returns figures on held-out lines.
    """
    tokenizer = read_tokenizer(base)
    lm = load_base(AutoModelForCausalLM, base)
    shape = VerifierRecipe(num_extra_layers=recipe.num_extra_layers, dropout=0.0, seed=recipe.seed)
    classifier = build_classifier(base, shape)
    generator = load_base(AutoModelForCausalLM, policy).to(device)
    data = ReplacedTokens(tokenizer, generator, recipe)
    arguments = training_arguments(work, device, recipe.seed, recipe.learning_rate, max_steps=recipe.corpus.num_steps)
    checkpoints = Checkpoints(work, made_of("discriminator", recipe, device, base=base, policy=policy), overwrite)
    run_trainer(Trainer, Discriminator(classifier, lm), arguments, checkpoints, data)
    save_model(out, classifier, tokenizer)
    unseen = replace(recipe, seed=recipe.seed + 1, num_tokens=_HELD_OUT_TOKENS)
    return held_out_figures(classifier, ReplacedTokens(tokenizer, generator, unseen, only_line_ends=True), device)
