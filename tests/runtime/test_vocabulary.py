"""Parts of a text as tokens and back: a step that is cut out of an answer keeps its spaces."""

from __future__ import annotations

from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from engine.runtime import LLM, ModelPolicy
from engine.runtime.requests import GeneratedTokens
from engine.runtime.vocabulary import Vocabulary
from engine.tasks.tokenizer import build_tokenizer
from engine.training.verifier import RowEncoder
from engine.types import Step
from engine.verifiers.prm import PRMVerifier
from tests.tiny import tiny_config, tiny_prm
from tests.verifiers.tokenizers import CHATML, byte_level, sentence_piece

ANSWER = "So x = 2.\n We add  12:\nx+12\n\n  = 14"


def metaspace(scheme: str) -> PreTrainedTokenizerFast:
    """As Mistral's later ones: ▁ for spaces, put before a text too, or before none ("never")."""
    pieces = ["<unk>", "</s>", "▁", *sorted({*ANSWER} - {" "}), "▁x", "▁=", "▁W", "So", "▁So", "▁add"]
    vocab = {piece: index for index, piece in enumerate(pieces)}
    merges = [("▁", "x"), ("▁", "="), ("▁", "W"), ("S", "o"), ("▁", "So")]
    core = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    core.decoder = decoders.Metaspace(prepend_scheme=scheme, split=False)
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="</s>", unk_token="<unk>", pad_token="</s>")


TOKENIZERS = {
    "sentence-piece": sentence_piece,
    "metaspace-first": lambda: metaspace("first"),
    "metaspace-always": lambda: metaspace("always"),
    "metaspace-never": lambda: metaspace("never"),
    "byte-level": lambda: byte_level({}, 500, CHATML),
}


def vocabulary(name: str) -> Vocabulary:
    tokenizer = TOKENIZERS[name]()
    return Vocabulary(tokenizer.backend_tokenizer, len(tokenizer))


@pytest.mark.parametrize("name", TOKENIZERS)
def test_parts_are_the_whole(name):
    """Wherever an answer is cut, its parts have the text and the tokens that they have in it."""
    words = vocabulary(name)
    prompt = words.encode("x\n")
    ids = words.encode("x\n" + ANSWER)[len(prompt) :]
    assert words.decode_part(ids) == ANSWER
    assert words.encode(ANSWER, is_start=False) == ids
    for cut in range(1, len(ids)):
        parts = words.decode_part(ids[:cut]), words.decode_part(ids[cut:])
        assert "".join(parts) == ANSWER
        tokens = [words.encode(part, is_start=False) for part in parts]
        assert words.decode_part(tokens[0] + tokens[1]) == ANSWER
    assert words.decode_part([]) == ""
    assert words.encode("", is_start=False) == []


@pytest.mark.parametrize("name", TOKENIZERS)
def test_a_stop_text_may_be_a_space(name):
    words = vocabulary(name)
    found = {words.token_texts[i] for i, is_in in enumerate(words.token_mask([" "])) if is_in}
    assert found
    assert all(" " in text for text in found)


def test_a_text_that_starts_is_encoded_as_ever():
    words, theirs = vocabulary("sentence-piece"), sentence_piece()
    assert words.encode("So x") == theirs("So x")["input_ids"]
    assert words.encode("", is_start=True) == theirs("")["input_ids"]


def model(folder: Path, name: str) -> Path:
    tokenizer = TOKENIZERS[name]()
    LlamaForCausalLM(tiny_config(LlamaConfig, tokenizer, 128)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("name", TOKENIZERS)
def test_steps_of_a_policy_and_of_a_verifier_keep_their_spaces(tmp_path, name):
    """A verifier with other tokens is given the very text, and rows of texts are trained on as they are scored."""
    llm = LLM.load(model(tmp_path / "policy", name), num_blocks=64)
    ids = tuple(llm.encode(ANSWER, is_start=False))
    steps = ModelPolicy(llm, "\n").split(GeneratedTokens(ids, (0.0,) * len(ids), "length", {}))
    assert "".join(step.text for step in steps) == ANSWER
    assert [step.text for step in steps[:2]] == ["So x = 2.\n", " We add  12:\n"]

    other = LLM.load(tiny_prm(tmp_path / "prm"), num_blocks=64)
    verifier = PRMVerifier(other, llm)
    assert not verifier.shares_tokens
    back = PRMVerifier(other, other)
    back.llm, back.shares_tokens = llm, False  # reads texts with the tokenizer above
    read = [token for step in steps for token in back._tokens(Step((), step.text, "step", 0.0))]
    assert tuple(read) == ids
    encoder = RowEncoder(TOKENIZERS[name](), (), 128, vocabulary(name))
    row = {"prompt": "x\n", "completions": [step.text for step in steps], "labels": [1.0] * len(steps)}
    assert [token for step in encoder.steps(row) for token in step] == read


CRLF = {
    "one token": ["a\r\n\r\n", "b"],
    "two tokens": ["a", "\r\n", "\r\n", "b"],
    "four tokens": ["a", "\r", "\n", "\r", "\n", "b"],
    "mixed": ["a\n", "\r\n", "b"],
    "across": ["a\r", "\n\r", "\nb"],
}


@pytest.mark.parametrize("name", CRLF)
def test_blank_lines_with_carriage_returns_end_a_step(tmp_path, name):
    tokens = CRLF[name]
    pieces = ["<eos>", *dict.fromkeys([*tokens, "c", "\n", "\r", "\n\n"])]
    core = Tokenizer(models.WordLevel({piece: i for i, piece in enumerate(pieces)}, unk_token="c"))
    core.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<eos>", pad_token="<eos>")
    LlamaForCausalLM(tiny_config(LlamaConfig, tokenizer, 128)).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    llm = LLM.load(tmp_path, num_blocks=64)
    ids = [pieces.index(token) for token in tokens]
    last = pieces.index("c")
    ends = ModelPolicy(llm, "\n\n").step_ends
    assert ends.ends([*ids, last]) == [len(ids) - (name != "across")]
    assert ends.ends([pieces.index("\r"), *ids, last]) == [len(ids) + (name == "across")]
    assert ends.ends([last, pieces.index("\n\n"), last]) == [2]
    only = ModelPolicy(llm, "\r\n").step_ends
    assert only.ends([last, pieces.index("\n"), pieces.index("\n"), last]) == []


def test_the_home_tokenizer_decodes_as_ever():
    words = Vocabulary(build_tokenizer().backend_tokenizer, 35)
    ids = words.encode("1+1=2\n", is_start=False)
    assert words.decode_part(ids) == words.decode(ids) == "1+1=2\n"
