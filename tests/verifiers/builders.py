"""Tiny checkpoints of every verifier format, with tokenizers that have the formats' own tokens.

`make(name)` gives a folder; `reference(name)` gives the scores that the format's own code gets from
plain transformers. Neither looks at our specs or layouts.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path

import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForTokenClassification, PreTrainedTokenizerFast

from engine.accounting import Ledger
from engine.types import Problem, Step
from engine.verifiers.detect import find_spec
from engine.verifiers.loading import build_verifier, load_verifier_model
from engine.verifiers.spec_verifier import SpecVerifier
from tests.runtime.builders import NAN
from tests.tiny import HIDDEN_SIZE, tiny_config
from tests.verifiers.tokenizers import CHATML, LLAMA_CHAT, WORDS, byte_level, sentence_piece

SYSTEM = "Please reason step by step, and put your final answer within \\boxed{}."


def random_steps(rng: random.Random, num_steps: int, has_lines: bool = True) -> list[str]:
    """Texts as a policy writes them, with its delimiter."""
    words = [word for word in WORDS if has_lines or word != "\n"]
    return [" ".join(rng.choices(words, k=rng.randint(2, 12))).strip() + " ok\n\n" for _ in range(num_steps)]


def as_steps(texts: Sequence[str]) -> list[Step]:
    return [Step((1,), text, "step") for text in texts]


# -- checkpoints -------------------------------------------------------------------------------

TAG = "ĠĊĊĊĊ"  # " \n\n\n\n" in byte-level letters
_TOKENIZERS = {
    "qwen-prm": lambda: byte_level({}, 520, CHATML),
    "qwen-rm": lambda: byte_level({}, 520, CHATML),
    "sequence": lambda: byte_level({}, 520, CHATML),
    "math-shepherd": sentence_piece,
    "rlhflow": lambda: byte_level({"+": 10, "-": 12}, 520, LLAMA_CHAT, has_bos=True),
    "versaprm": lambda: byte_level({TAG: 23535, "+": 10, "-": 12}, 23600, LLAMA_CHAT, has_bos=True),
    "versaprm-qwen": lambda: byte_level({TAG: 22701, "+": 10, "-": 12}, 23600, CHATML),
    "skywork": lambda: byte_level({}, 520, CHATML),
    "trl": lambda: byte_level({}, 520, CHATML),
    "trl-paragraphs": lambda: byte_level({}, 520, CHATML),
}
_CLASSES = {"trl": "ForTokenClassification", "trl-paragraphs": "ForTokenClassification"}
_CLASSES["sequence"] = "ForSequenceClassification"
_RENAMED = {"qwen-prm": "ForProcessRewardModel", "qwen-rm": "ForRewardModel"}
FORMATS = tuple(_TOKENIZERS)
MUST_BE_NAMED = ("math-shepherd", "rlhflow", "versaprm", "versaprm-qwen", "trl", "trl-paragraphs")


def make(folder: Path, name: str, seed: int = 0, family: str = "Llama", context: int = 1024, **fields) -> Path:
    """A random checkpoint of a format over a trunk of a family, norms and biases included; `fields` of its config."""
    tokenizer = _TOKENIZERS[name]()
    fields = {"num_labels": 1 if name == "sequence" else 2, **fields}
    config = tiny_config(getattr(transformers, f"{family}Config"), tokenizer, context, **fields)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = getattr(transformers, family + _CLASSES.get(name, "ForCausalLM"))(config)
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.data += 0.2 * torch.randn_like(parameter)
        model.save_pretrained(folder)
        _add_head(folder, name)
    tokenizer.save_pretrained(folder)
    return folder


def _add_head(folder: Path, name: str) -> None:
    """Heads that transformers has no class for, and the names of their classes."""
    path = folder / "model.safetensors"
    tensors, size = load_file(path), HIDDEN_SIZE
    if name in ("qwen-prm", "qwen-rm"):
        labels = 2 if name == "qwen-prm" else 1
        shapes = {"score.0.weight": (size, size), "score.0.bias": (size,)}
        shapes |= {"score.2.weight": (labels, size), "score.2.bias": (labels,)}
        tensors |= {key: 0.3 * torch.randn(shape) for key, shape in shapes.items()}
    if name == "skywork":
        tensors |= {"v_head.summary.weight": 0.3 * torch.randn(1, size), "v_head.summary.bias": torch.randn(1)}
    save_file(tensors, path, metadata={"format": "pt"})
    if name in _RENAMED:
        config = json.loads((folder / "config.json").read_text())
        config["architectures"] = [config["architectures"][0].replace("ForCausalLM", _RENAMED[name])]
        (folder / "config.json").write_text(json.dumps(config))


# -- what the formats' own code computes -------------------------------------------------------


class Reference:
    """One model of a format in plain transformers."""

    def __init__(self, folder: Path, name: str, dtype: torch.dtype = torch.float32):
        self.name, self.folder = name, folder
        self.tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
        if name in ("trl", "trl-paragraphs"):
            self.model = AutoModelForTokenClassification.from_pretrained(folder, dtype=dtype)
        elif name in ("math-shepherd", "rlhflow", "versaprm", "versaprm-qwen"):
            self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
        else:
            self.model = AutoModel.from_pretrained(folder, dtype=dtype)
            tensors = {key: tensor.to(dtype) for key, tensor in load_file(folder / "model.safetensors").items()}
            self.head = _heads(name, tensors)
        self.model.eval()

    @torch.inference_mode()
    def scores(self, problem: str, steps: Sequence[str]) -> list[float]:
        """One score per step of a whole text; of an ORM one for the answer that the steps are."""
        steps = [step.strip() for step in steps]
        method = self.name.replace("-qwen", "").replace("-paragraphs", "").replace("-", "_")
        return getattr(self, f"_{method}")(problem, steps)

    def _run(self, ids: Sequence[int]) -> torch.Tensor:
        out = self.model(input_ids=torch.tensor([list(ids)]))
        return (out.logits if hasattr(out, "logits") else self.head(out.last_hidden_state))[0].float()

    def _qwen_chat(self, problem: str, answer: str) -> list[int]:
        messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": problem}]
        messages.append({"role": "assistant", "content": answer})
        text = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=False)
        return self.tokenizer.encode(text, add_special_tokens=False)

    def _qwen_prm(self, problem: str, steps: list[str]) -> list[float]:
        ids = torch.tensor(self._qwen_chat(problem, "<extra_0>".join(steps) + "<extra_0>"))
        is_tag = ids == self.tokenizer.encode("<extra_0>")[0]
        return self._run(ids.tolist()).softmax(-1)[is_tag][:, 1].tolist()

    def _qwen_rm(self, problem: str, steps: list[str]) -> list[float]:
        return self._run(self._qwen_chat(problem, "\n\n".join(steps)))[-1].sigmoid().tolist()

    def _sequence(self, problem: str, steps: list[str]) -> list[float]:
        messages = [{"role": "user", "content": problem}, {"role": "assistant", "content": "\n\n".join(steps)}]
        text = self.tokenizer.apply_chat_template(messages, tokenize=False)
        return self._run(self.tokenizer.encode(text, add_special_tokens=False))[-1].sigmoid().tolist()

    def _math_shepherd(self, problem: str, steps: list[str]) -> list[float]:
        text = f"{problem} " + "\n".join(f"{step} ки" for step in steps)
        ids = torch.tensor(self.tokenizer.encode(text))
        scores = self._run(ids.tolist())[:, [648, 387]].softmax(-1)[:, 0]
        # The steps say ки as well: of its tags, those that end a line of the text.
        ends = [i for i in range(len(ids)) if ids[i] == 12902 and (i + 1 == len(ids) or self._is_line_end(ids, i))]
        assert len(ends) == len(steps)
        return scores[ends].tolist()

    def _is_line_end(self, ids: torch.Tensor, index: int) -> bool:
        return self.tokenizer.convert_ids_to_tokens(int(ids[index + 1])) == "<0x0A>"

    def _rlhflow(self, problem: str, steps: list[str]) -> list[float]:
        plus, minus = (self.tokenizer.encode(sign)[-1] for sign in "+-")
        scores, conversation = [], []
        for index, step in enumerate(steps):
            content = f"{problem} {step}" if index == 0 else step
            conversation += [{"role": "user", "content": content}, {"role": "assistant", "content": "+"}]
            text = self.tokenizer.apply_chat_template(conversation, tokenize=False)
            logits = self._run(self.tokenizer.encode(text, add_special_tokens=False))[-3, [plus, minus]]
            scores.append(logits.softmax(-1)[0].item())
        return scores

    def _versaprm(self, problem: str, steps: list[str]) -> list[float]:
        tag = {"versaprm": 23535, "versaprm-qwen": 22701}[self.name]
        ids = self.tokenizer.encode(problem + " \n\n" + " \n\n\n\n".join(steps) + " \n\n\n\n")
        scores = self._run(ids)[:, [12, 10]].softmax(-1)[:, 1]
        return scores[torch.tensor(ids) == tag].tolist()

    def _skywork(self, problem: str, steps: list[str]) -> list[float]:
        ids = self.tokenizer.encode(self.tokenizer.bos_token + problem + "\n")
        newline = self.tokenizer.encode("\n")[-1]
        flags = [0] * len(ids)
        for step in steps:
            for line in step.split("\n"):
                line_ids = (self.tokenizer.encode(line) if line != "" else []) + [newline]
                ids += line_ids
                flags += [0] * len(line_ids)
            flags[-1] = 1
        return self._run(ids)[torch.tensor(flags) == 1, 0].sigmoid().tolist()

    def _trl(self, problem: str, steps: list[str]) -> list[float]:
        separator = "\n\n" if self.name == "trl-paragraphs" else "\n"
        encode = self.tokenizer.encode
        separator_ids, ends = encode(separator, add_special_tokens=False), []
        ids = encode(problem, add_special_tokens=False)
        if self.tokenizer.bos_token_id is not None:
            ids = [self.tokenizer.bos_token_id, *ids]
        for step in steps:
            ids += encode(step, add_special_tokens=False) + separator_ids
            ends.append(len(ids) - 1)
        return self._run(ids).softmax(-1)[ends, 1].tolist()


def _heads(name: str, tensors: dict[str, torch.Tensor]):
    def linear(x: torch.Tensor, key: str) -> torch.Tensor:
        return torch.nn.functional.linear(x, tensors[f"{key}.weight"], tensors.get(f"{key}.bias"))

    if name == "skywork":
        return lambda hidden: linear(hidden, "v_head.summary")
    if name == "sequence":
        return lambda hidden: linear(hidden, "score")
    return lambda hidden: linear(linear(hidden, "score.0").relu(), "score.2")


# -- our side ----------------------------------------------------------------------------------

ORMS = ("qwen-rm", "sequence")


def load(folder, name, dtype="float32", num_blocks=512) -> SpecVerifier:
    """The verifier as an engine loads it, its unused KV poisoned."""
    judges = "answers" if name in ORMS else "steps"
    spec = find_spec(folder, name if name in MUST_BE_NAMED else None, judges=judges)
    assert spec.name == name
    llm = load_verifier_model(folder, spec, dtype=dtype, num_blocks=num_blocks)
    llm.runner.pool.k.fill_(NAN)
    llm.runner.pool.v.fill_(NAN)
    return build_verifier(llm, spec, llm)


def run(verifier, coroutine):
    """Drives one coroutine over the verifier's model."""
    try:
        request = coroutine.send(None)
        while True:
            verifier.llm.run(request)
            request = coroutine.send(None)
    except StopIteration as stop:
        return stop.value


def open_branch(verifier, problem: str, ledger: Ledger | None = None):
    return run(verifier, verifier.open(Problem("p", problem), ledger=ledger or Ledger()))


def whole(verifier, problem: str, texts: list[str]) -> list[float]:
    """The scores of a whole answer on a branch of its own."""
    branch = open_branch(verifier, problem)
    (scores,) = run(verifier, verifier.score([branch], [as_steps(texts)]))
    branch.close()
    return scores
