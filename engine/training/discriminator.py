"""Pretraining a verifier's trunk without a label: telling the corpus's own tokens from a policy's samples.

Replaced token detection (Clark et al. 2020, ELECTRA) with the policy itself as the generator, so that the
mistakes it shows are those that the verifier will meet. What it learns, comparing what was said with what
ought to follow, Monte-Carlo rollouts teach only slowly: an answer has many tokens and one first mistake.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import Dataset
from transformers import LlamaForCausalLM, LlamaForTokenClassification, PreTrainedTokenizerFast, Trainer

from engine.errors import UserError
from engine.tasks.chain import ChainConfig
from engine.training.arguments import training_arguments
from engine.training.policy import IGNORED, TRAINING_MIX, ChainBatches, PolicyRecipe
from engine.training.verifier import UNLABELLED, VerifierRecipe, build_classifier, held_out_figures, step_loss

_HELD_OUT_TOKENS = 200_000


@dataclass(frozen=True)
class DiscriminatorRecipe:
    """What `ttc train discriminator` does; the default is what the shipped PRM starts from."""

    num_extra_layers: int = 2  # on top of the base's; they add nothing before training
    num_tokens: int = 10_000_000
    tokens_per_step: int = 6144
    learning_rate: float = 1e-3
    temperature: float = 1.0  # of the samples that replace tokens
    seed: int = 2
    data: ChainConfig = TRAINING_MIX

    def __post_init__(self) -> None:
        if self.num_extra_layers < 1:  # the last layer's output is the score's, no language model's
            raise UserError(f"num_extra_layers must be at least 1, got {self.num_extra_layers}")
        if self.temperature <= 0:
            raise UserError(f"temperature must be over 0, got {self.temperature}")

    @property
    def corpus(self) -> PolicyRecipe:
        """The worked answers, drawn as for a policy."""
        return PolicyRecipe(
            num_tokens=self.num_tokens, tokens_per_step=self.tokens_per_step, seed=self.seed, data=self.data
        )


class ReplacedTokens(Dataset):
    """Item i is a batch of worked answers of which every token was sampled anew by the policy, given the
    worked answer before it. It follows from (seed, i) alone, so that a resumed run sees the same data.

    `labels` are 1 up to the first token of a line that differs from the worked answer's, 0 from there to the
    line's end, UNLABELLED in prompt and padding and, with `only_line_ends`, everywhere but at a line's last
    token. `next_ids` are the worked answer's next tokens, IGNORED where a line has gone wrong already.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerFast,
        policy: LlamaForCausalLM,
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
        # An end stays where it is: lines of the sample and of the worked answer must match.
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
        """Whether a replaced token stands in the line of each position, at it or before it."""
        so_far = replaced.long().cumsum(1)
        is_end = torch.isin(ids, self.ends)
        at_last_end = torch.where(is_end, so_far, 0).roll(1, 1)
        at_last_end[:, 0] = 0
        return so_far > at_last_end.cummax(1).values


class Discriminator(nn.Module):
    """A token classifier that goes on as a language model below its extra layers.

    The second loss keeps what the base expects at each token at hand, for the extra layers to compare.
    """

    def __init__(self, classifier: LlamaForTokenClassification, base: LlamaForCausalLM):
        super().__init__()
        self.classifier = classifier
        self.depth = base.config.num_hidden_layers
        self.norm = base.model.norm

    def forward(self, input_ids: torch.Tensor, labels: torch.Tensor, next_ids: torch.Tensor) -> dict:
        outputs = self.classifier(input_ids, output_hidden_states=True)
        expected = self.norm(outputs.hidden_states[self.depth]) @ self.classifier.model.embed_tokens.weight.T
        lm_loss = nn.functional.cross_entropy(expected.flatten(0, 1), next_ids.flatten(), ignore_index=IGNORED)
        return {"loss": step_loss(outputs.logits, labels) + lm_loss, "logits": outputs.logits}


def train_discriminator(
    recipe: DiscriminatorRecipe, base: Path, policy: Path, out: Path, work: Path, device: str = "cpu"
) -> dict:
    """Trains a `LlamaForTokenClassification` that starts from the decoder `base` and writes it to `out`.

    Resumes from the last checkpoint in `work`; returns figures of how well it tells lines that it has not seen.
    """
    tokenizer = PreTrainedTokenizerFast.from_pretrained(base)
    lm = LlamaForCausalLM.from_pretrained(base)
    shape = VerifierRecipe(num_extra_layers=recipe.num_extra_layers, dropout=0.0, seed=recipe.seed)
    classifier = build_classifier(base, shape)
    generator = LlamaForCausalLM.from_pretrained(policy).to(device)
    data = ReplacedTokens(tokenizer, generator, recipe)
    arguments = training_arguments(work, device, recipe.seed, recipe.learning_rate, max_steps=recipe.corpus.num_steps)
    trainer = Trainer(
        model=Discriminator(classifier, lm), args=arguments, train_dataset=data, data_collator=lambda items: items[0]
    )
    trainer.train(resume_from_checkpoint=any(work.glob("checkpoint-*")) or None)
    classifier.save_pretrained(out)
    tokenizer.save_pretrained(out)
    unseen = replace(recipe, seed=recipe.seed + 1, num_tokens=_HELD_OUT_TOKENS)
    return held_out_figures(classifier, ReplacedTokens(tokenizer, generator, unseen, only_line_ends=True), device)
