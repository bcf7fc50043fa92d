"""The model that a training starts from is read as in a search: no pickle, no code, no sizes that the tensors lack."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel, AutoModelForTokenClassification

from engine.errors import UserError
from engine.training.arguments import load_base
from engine.training.orm import ORMRecipe, train_orm
from engine.training.policy import PolicyRecipe, train_policy
from engine.training.prm import PRMRecipe, TrunkHeadRecipe, train_prm, train_trunk_head
from engine.training.revision import RevisionRecipe, train_revision
from engine.training.verifier import build_classifier
from tests.model.folders import change_config
from tests.tiny import tiny_policy

TRAININGS = {
    "policy": lambda base, rows, *to: train_policy(PolicyRecipe(), *to, base=base),
    "prm": lambda base, rows, *to: train_prm([rows], base, *to, PRMRecipe()),
    "orm": lambda base, rows, *to: train_orm([rows], base, *to, ORMRecipe()),
    "trunk-head": lambda base, rows, *to: train_trunk_head([rows], base, *to, TrunkHeadRecipe()),
    "revision": lambda base, rows, *to: train_revision([rows], base, *to, RevisionRecipe()),
}


@pytest.fixture
def rows(tmp_path) -> Path:
    file = tmp_path / "rows.jsonl"
    lines = [{"prompt": f"{i};+1\n", "completions": [f"{i}+1=2"], "labels": [i % 2]} for i in range(8)]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file


@pytest.mark.parametrize("kind", TRAININGS)
def test_a_base_of_pickles_is_refused(tmp_path, rows, kind):
    """transformers by itself reads pytorch_model.bin where safetensors are missing."""
    base = tiny_policy(tmp_path / "base")
    torch.save(load_file(base / "model.safetensors"), base / "pytorch_model.bin")
    (base / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"model.safetensors is missing \(pickled .bin files are not read\)"):
        TRAININGS[kind](base, rows, tmp_path / "out", tmp_path / "work")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", TRAININGS)
def test_a_base_larger_than_its_tensors_is_refused(tmp_path, rows, kind):
    base = tiny_policy(tmp_path / "base")
    change_config(base, num_hidden_layers=4000)
    with pytest.raises(UserError, match="num_hidden_layers is 4000"):
        TRAININGS[kind](base, rows, tmp_path / "out", tmp_path / "work")


@pytest.mark.parametrize("fields", [{}, {"architectures": ["TrapForCausalLM"], "model_type": "trap"}], ids=str)
def test_code_of_a_base_is_never_run(tmp_path, fields):
    base = tiny_policy(tmp_path / "base")
    (base / "trap.py").write_text(f"open({str(tmp_path / 'run')!r}, 'w')\nclass Model: pass\n")
    remote = dict.fromkeys(("AutoConfig", "AutoModel", "AutoModelForCausalLM"), "trap.Model")
    change_config(base, auto_map=remote, text_config={"auto_map": remote}, **fields)
    if not fields:
        assert type(load_base(AutoModel, base)).__name__ == "LlamaModel"
    else:
        with pytest.raises(UserError, match="TrapForCausalLM"):
            load_base(AutoModel, base)
    assert not (tmp_path / "run").exists()


def test_a_verifier_is_gone_on_from_with_its_head(tmp_path, rows):
    recipe = PRMRecipe(num_updates=2, num_extra_layers=1, dropout=0.0)
    train_prm([rows], tiny_policy(tmp_path / "policy"), tmp_path / "first", tmp_path / "work", recipe)
    ids = torch.arange(3, 23)[None]

    def logits(model) -> torch.Tensor:
        with torch.no_grad():
            return model.eval()(input_ids=ids).logits

    first = AutoModelForTokenClassification.from_pretrained(tmp_path / "first")
    assert first.config.num_hidden_layers == 3
    for num_more in (0, 1):  # what is on top adds nothing at first
        model = build_classifier(tmp_path / "first", PRMRecipe(num_extra_layers=num_more, seed=5))
        assert (model.config.num_hidden_layers, model.config.classifier_dropout) == (3 + num_more, 0.05)
        torch.testing.assert_close(logits(model), logits(first))

    still = PRMRecipe(num_updates=2, learning_rate=1e-9, dropout=0.0)
    train_prm({rows: 1.0}, tmp_path / "first", tmp_path / "second", tmp_path / "work2", still)
    old, new = (load_file(tmp_path / name / "model.safetensors") for name in ("first", "second"))
    assert old.keys() == new.keys()
    assert "score.weight" in old
    for name, tensor in old.items():
        torch.testing.assert_close(new[name], tensor)
