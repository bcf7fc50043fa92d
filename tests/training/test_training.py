"""Training in a few steps of tiny models: it learns, goes on from a base, and resumes where it was stopped."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForTokenClassification

from engine.tasks.tokenizer import build_tokenizer
from engine.tasks.walks import WalksConfig
from engine.training import arguments
from engine.training.policy import PolicyRecipe, WalksBatches, train_policy
from engine.training.prm import PRMRecipe, TrunkHeadRecipe, train_prm, train_trunk_head
from engine.training.verifier import build_classifier
from tests.tiny import tiny_family, tiny_policy

SHORT = WalksConfig(min_walks=1, max_walks=2, lengths=(1.0, 1.0))


def recipe(num_updates: int, **changes) -> PolicyRecipe:
    shape = {"hidden_size": 16, "num_layers": 1, "num_heads": 2, "num_kv_heads": 1, "data": SHORT}
    return PolicyRecipe(**{**shape, **changes}, tokens_per_step=256, num_updates=num_updates)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def policy_loss(folder: Path) -> float:
    """Mean loss over batches that no training here has seen."""
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    batches = WalksBatches(build_tokenizer(), recipe(4, seed=99))
    with torch.no_grad():
        return sum(model(**batches[i]).loss.item() for i in range(4)) / 4


def test_late_updates_draw_other_lengths():
    """Of a corpus of one walk a problem, always short: one door at first, then two."""
    tokenizer = build_tokenizer()
    one = WalksConfig(min_walks=1, max_walks=1, short_rate=1.0, short_lengths=(1.0,), max_told=0.0)
    batches = WalksBatches(tokenizer, recipe(8, data=one, late_from=0.5, late_lengths="0,1"))

    def num_doors(update: int) -> set[int]:
        prompts = [tokenizer.decode(row).split("\n")[0] for row in batches[update]["input_ids"]]
        return {sum(letter.isdigit() for letter in prompt) for prompt in prompts}

    assert [num_doors(update) for update in (0, 3, 4, 7)] == [{1}, {1}, {2}, {2}]
    again = WalksBatches(tokenizer, recipe(8, data=one, late_from=0.5, late_lengths="0,1"))
    assert again[7]["input_ids"].tolist() == batches[7]["input_ids"].tolist()  # whatever came before


@pytest.mark.parametrize("tokens_per_step", [1, 16, 100, 200])
def test_no_batch_is_empty_where_an_answer_is_longer_than_it(tokens_per_step):
    batches = WalksBatches(build_tokenizer(), PolicyRecipe(tokens_per_step=tokens_per_step, num_updates=48))
    assert all(len(batches[index]["input_ids"]) >= 1 for index in range(48))


def test_a_policy_learns_and_goes_on_from_a_base(tmp_path):
    fast = recipe(20, learning_rate=2e-2)  # of which the warm-up lets a fifth through
    train_policy(fast, tmp_path / "first", tmp_path / "work")
    assert policy_loss(tmp_path / "first") < 0.9 * math.log(35)
    longer = recipe(20, seed=1, hidden_size=64, learning_rate=2e-2)  # the base's shape counts, not the recipe's
    train_policy(longer, tmp_path / "second", tmp_path / "work2", base=tmp_path / "first")
    assert policy_loss(tmp_path / "second") < policy_loss(tmp_path / "first")
    assert weights(tmp_path / "second").keys() == weights(tmp_path / "first").keys()


def test_a_stopped_training_ends_as_an_undisturbed_one(tmp_path, monkeypatch):
    def every_four_steps(*args, **options):
        made = arguments.training_arguments(*args, **options)
        made.save_steps = 4
        return made

    monkeypatch.setattr("engine.training.policy.training_arguments", every_four_steps)
    train_policy(recipe(10), tmp_path / "whole", tmp_path / "work")
    for checkpoint in (tmp_path / "work").glob("checkpoint-*"):
        if checkpoint.name != "checkpoint-8":
            for file in checkpoint.iterdir():
                file.unlink()
            checkpoint.rmdir()
    train_policy(recipe(10), tmp_path / "resumed", tmp_path / "work")
    whole, resumed = weights(tmp_path / "whole"), weights(tmp_path / "resumed")
    for name, tensor in whole.items():
        torch.testing.assert_close(resumed[name], tensor)


def test_weights_can_be_written_in_bf16(tmp_path):
    for name, stored in (("full", torch.float32), ("half", torch.bfloat16)):
        train_policy(recipe(2, bf16_weights=name == "half"), tmp_path / name, tmp_path / f"work_{name}")
        assert {tensor.dtype for tensor in weights(tmp_path / name).values()} == {stored}
    for name, tensor in weights(tmp_path / "half").items():
        assert torch.equal(tensor, weights(tmp_path / "full")[name].bfloat16())


def test_a_base_of_another_vocabulary_is_refused(tmp_path):
    base = tiny_policy(tmp_path / "base")
    model = AutoModelForCausalLM.from_pretrained(base)
    model.resize_token_embeddings(40)
    model.save_pretrained(base)
    with pytest.raises(ValueError, match="40 tokens, the home tokenizer 35"):
        train_policy(recipe(1), tmp_path / "out", tmp_path / "work", base=base)


@pytest.fixture
def rollouts(tmp_path) -> Path:
    """Labels that a step's last digit gives away."""
    rows = []
    for i in range(200):
        steps = [f"{i}+{n}={i + n}\n" for n in range(3)]
        labels = [float((i + n) % 10 >= 5) for n in range(3)]
        rows.append({"prompt": f"{i};+0;+1;+2\n", "completions": steps, "labels": labels})
    file = tmp_path / "rollouts.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def test_verifiers_learn_their_labels(tmp_path, rollouts):
    train_policy(recipe(5), tmp_path / "policy", tmp_path / "work")
    options = {"tokens_per_step": 512, "num_updates": 90, "learning_rate": 3e-2}
    figures = train_prm(
        [rollouts], tmp_path / "policy", tmp_path / "prm", tmp_path / "prm_work", PRMRecipe(dropout=0.0, **options)
    )
    assert figures["held_out_steps"] == 72
    assert figures["auc"] > 0.7
    assert AutoModelForTokenClassification.from_pretrained(tmp_path / "prm").config.num_labels == 2
    head = TrunkHeadRecipe(**options)
    train_trunk_head([rollouts], tmp_path / "policy", tmp_path / "head", tmp_path / "head_work", head)
    assert weights(tmp_path / "head")["score.weight"].shape == (1, 16)


def test_a_prm_is_of_its_bases_family(tmp_path):
    base = tiny_family(tmp_path / "base", "Qwen2ForCausalLM")
    model = build_classifier(base, PRMRecipe(num_extra_layers=1))
    assert type(model).__name__ == "Qwen2ForTokenClassification"
    old, new = weights(base), model.state_dict()
    assert torch.equal(old["model.layers.0.self_attn.q_proj.bias"], new["model.layers.0.self_attn.q_proj.bias"])
