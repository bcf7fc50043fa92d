"""A verifier's checkpoint and its spec, made into a model with the right head and the verifier over it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from tokenizers import Tokenizer

from engine.errors import UserError
from engine.model import (
    ModelConfig,
    ScoreHead,
    classification_head,
    linear_head,
    lm_rows_head,
    load_tokenizer,
    mlp_head,
)
from engine.prompts.template import ChatTemplate, read_tokenizer_config, special_tokens
from engine.runtime import LLM
from engine.verifiers.detect import trunk_architecture
from engine.verifiers.layouts import Layout
from engine.verifiers.model_verifier import ModelVerifier
from engine.verifiers.orm import ORMVerifier
from engine.verifiers.prm import PRMVerifier
from engine.verifiers.spec import VerifierSpec
from engine.verifiers.spec_verifier import SpecVerifier


def load_verifier_model(folder: Path, spec: VerifierSpec, **options) -> LLM:
    """The model of a verifier; options as for `LLM.load`. Raises UserError for a folder without the spec's head."""

    def make_head(config: ModelConfig, tensors: Mapping[str, torch.Tensor]) -> ScoreHead:
        return build_head(spec, config, tensors, folder)

    return LLM.load(folder, architecture=trunk_architecture(folder), make_head=make_head, **options)


def build_head(spec: VerifierSpec, config: ModelConfig, tensors: Mapping[str, torch.Tensor], folder: Path) -> ScoreHead:
    """The head that reads a spec's score rows. Raises UserError for tensors that are missing or of another shape."""
    head = spec.head
    if head.kind == "classification":
        if not config.num_labels:
            raise UserError(f"verifier spec {spec.name!r} reads a *ForTokenClassification, got {config.architecture}")
        made = classification_head(config, tensors)
        if not 0 <= _good(spec, config.num_labels) < config.num_labels:
            raise UserError(f"verifier spec {spec.name!r}: good is {head.good}, of {config.num_labels} labels")
        return replace(made, good_index=_good(spec, config.num_labels))
    if head.kind == "lm-rows":
        tokenizer = load_tokenizer(folder) if any(isinstance(row, str) for row in head.rows) else None
        rows = [_token(row, tokenizer) if isinstance(row, str) else row for row in head.rows]
        return lm_rows_head(config, tensors, rows, _good(spec, len(rows)))
    make = mlp_head if head.kind == "mlp" else linear_head
    return make(config, tensors, head.tensor, head.num_labels, _good(spec, head.num_labels))


def build_verifier(llm: LLM, spec: VerifierSpec, policy: LLM, shares_steps: bool = True) -> ModelVerifier:
    """The verifier over a loaded model. Raises UserError for a spec that its tokenizer does not fit."""
    if spec.layout == "tokens":
        return (ORMVerifier if spec.judges == "answers" else PRMVerifier)(llm, policy, shares_steps)
    folder = llm.folder
    template = ChatTemplate.load(folder) if spec.layout == "chat" else None
    bos = special_tokens(read_tokenizer_config(folder)).get("bos_token")
    if bos is not None and llm.tokenizer.token_to_id(bos) is None:
        raise UserError(f"bos_token {bos!r} of {folder} is no token of its tokenizer")
    return SpecVerifier(llm, Layout(spec, llm.tokenizer, template, bos), shares_steps)


def _good(spec: VerifierSpec, num_labels: int) -> int:
    return num_labels - 1 if spec.head.good is None else spec.head.good


def _token(text: str, tokenizer: Tokenizer) -> int:
    """The last token of a text."""
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    if not ids:
        raise UserError(f"the text {text!r} of a verifier's score is no token of its tokenizer")
    return ids[-1]
