"""The other side of the comparison: transformers alone, as somebody would put it together who knows it well.

Best-of-N is one `generate` with `num_return_sequences`. Beam search calls `generate` once per step for all
live beams in one left-padded batch, stops each of them at a newline or at the end of text, and scores the
children by one padded forward of the PRM over their whole texts. The KV cache lives within a `generate` and is
not carried from step to step.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoModelForTokenClassification

ATTENTIONS = ("sdpa", "eager")


def load(folder: Path, dtype: torch.dtype, attention: str, *, is_verifier: bool = False) -> torch.nn.Module:
    """A causal LM, or a step verifier, in evaluation mode."""
    auto = AutoModelForTokenClassification if is_verifier else AutoModelForCausalLM
    return auto.from_pretrained(folder, dtype=dtype, attn_implementation=attention).eval()


@torch.inference_mode()
def best_of_n(policy: torch.nn.Module, prompt: list[int], num_answers: int, num_new: int) -> torch.Tensor:
    """(num_answers, num_new) sampled tokens at temperature 1; the checkpoint names no end-of-text token."""
    ids = torch.tensor([prompt])
    out = policy.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        num_return_sequences=num_answers,
        max_new_tokens=num_new,
        use_cache=True,
    )
    return out[:, len(prompt) :]


@dataclass
class Beam:
    """One partial answer: prompt and completion, and the PRM's score of its last step."""

    token_ids: list[int]
    score: float = 0.0
    finish: str = "step"


@dataclass
class BeamSearchResult:
    """What a search made: its ended beams, and every token that it sampled."""

    ended: list[Beam] = field(default_factory=list)
    num_tokens: int = 0
    num_rounds: int = 0


@dataclass
class PlainBeamSearch:
    """The selection rule of `engine.BeamSearch`: an ended answer keeps its slot, the R slots that are left go
    on from the best ceil(R / width) steps."""

    policy: torch.nn.Module
    prm: torch.nn.Module
    newline: int
    eos: int
    pad: int
    budget: int
    width: int
    max_tokens: int
    max_rounds: int = 40

    @torch.inference_mode()
    def __call__(self, prompt: list[int]) -> BeamSearchResult:
        result = BeamSearchResult()
        live = [Beam(prompt) for _ in range(self.budget)]
        while live:
            result.num_rounds += 1
            children = self.expand(live, len(prompt) + self.max_tokens)
            result.num_tokens += sum(
                len(child.token_ids) - len(parent.token_ids) for child, parent in zip(children, live, strict=True)
            )
            self.score(children)
            if result.num_rounds == self.max_rounds:
                return BeamSearchResult(result.ended + children, result.num_tokens, result.num_rounds)
            result.ended += [child for child in children if child.finish != "step"]
            going = [child for child in children if child.finish == "step"]
            live = self.select(going, self.budget - len(result.ended))
        return result

    @property
    def delimiters(self) -> Collection[int]:
        """The tokens that end a step."""
        return (self.newline,)

    def expand(self, live: list[Beam], max_length: int, *, is_greedy: bool = False) -> list[Beam]:
        """One step more on every beam."""
        room = max(max_length - len(beam.token_ids) for beam in live)
        prompts = [beam.token_ids for beam in live]
        new = self.complete(prompts, room, [*self.delimiters, self.eos], is_greedy=is_greedy)
        return [self.child(beam, tokens, max_length) for beam, tokens in zip(live, new, strict=True)]

    def complete(
        self, prompts: list[list[int]], num_new: int, stops: list[int], *, is_greedy: bool = False
    ) -> list[list[int]]:
        """The tokens after every prompt, up to a stop token or more: one left-padded `generate`."""
        longest = max(map(len, prompts))
        ids = torch.full((len(prompts), longest), self.pad)
        mask = torch.zeros_like(ids)
        for row, prompt in enumerate(prompts):
            ids[row, longest - len(prompt) :] = torch.tensor(prompt)
            mask[row, longest - len(prompt) :] = 1
        out = self.policy.generate(
            ids.to(self.policy.device),
            attention_mask=mask.to(self.policy.device),
            do_sample=not is_greedy,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            max_new_tokens=num_new,
            eos_token_id=stops,
            pad_token_id=self.pad,
            use_cache=True,
        )
        return out[:, longest:].tolist()

    def child(self, beam: Beam, tokens: list[int], max_length: int) -> Beam:
        """The beam with its new step, which the batch may have padded or made too long."""
        ids = list(beam.token_ids)
        for token in tokens[: max_length - len(ids)]:
            ids.append(token)
            if token == self.eos:
                return Beam(ids, finish="eos")
            if token in self.delimiters and len(ids) < max_length:
                return Beam(ids, finish="step")
        return Beam(ids, finish="length")

    def score(self, beams: list[Beam]) -> None:
        """Scores the last step of every beam: one right-padded forward of the PRM over the whole texts."""
        longest = max(len(beam.token_ids) for beam in beams)
        ids = torch.full((len(beams), longest), self.pad)
        mask = torch.zeros_like(ids)
        for row, beam in enumerate(beams):
            ids[row, : len(beam.token_ids)] = torch.tensor(beam.token_ids)
            mask[row, : len(beam.token_ids)] = 1
        logits = self.prm(ids.to(self.prm.device), attention_mask=mask.to(self.prm.device)).logits.cpu()
        last = logits[torch.arange(len(beams)), mask.sum(1) - 1].float()
        good = last[:, 0].sigmoid() if last.shape[1] == 1 else last.softmax(1)[:, -1]
        for beam, score in zip(beams, good.tolist(), strict=True):
            beam.score = score

    def select(self, going: list[Beam], num_slots: int) -> list[Beam]:
        """The parents of the next round, each as often as it has children."""
        ranked = sorted(going, key=lambda beam: -beam.score)[: -(-num_slots // self.width)]
        parents = [beam for beam in ranked for _ in range(self.width)]
        return parents[:num_slots]
