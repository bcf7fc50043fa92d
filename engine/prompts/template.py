"""Chat templates: read from a checkpoint's folder, and rendered in a sandboxed process."""

from __future__ import annotations

import contextlib
import json
import select
import subprocess
import sys
import time
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path

from engine.errors import UserError
from engine.prompts.text import read_text

MAX_SOURCE = 1 << 18  # characters of a template
_WORKER = Path(__file__).with_name("worker.py")
_START_SECONDS, _WALL_SECONDS = 120.0, 60.0  # far above the worker's own limit, for a busy machine
_ANSWER = "ANSWER"  # stands for any text of an assistant
_REFUSED = "TemplateError:"  # what raise_exception raises
_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")

Message = Mapping[str, str]  # "role" and "content"


class ChatTemplate:
    """Renders messages as text. Raises UserError for a template that fails, or exceeds its limits."""

    def __init__(self, source: str, tokens: Mapping[str, str] | None = None, *, origin: str = "the chat template"):
        if len(source) > MAX_SOURCE:
            raise UserError(f"{origin} has {len(source)} characters, at most {MAX_SOURCE} are read")
        self.source, self.tokens, self.origin = source, dict(tokens or {}), origin
        self._worker: _Worker | None = None

    @classmethod
    def load(cls, folder: Path) -> ChatTemplate | None:
        """A checkpoint's template, from `chat_template.jinja` or else tokenizer_config.json; None if it has none.

        Raises UserError for a damaged file.
        """
        config = read_tokenizer_config(folder)
        path = folder / "chat_template.jinja"
        if path.is_file():
            if path.stat().st_size > 4 * MAX_SOURCE:
                raise UserError(f"{path} has {path.stat().st_size} bytes, a chat template has {MAX_SOURCE} at most")
            source = read_text(path)
        else:
            path, source = folder / "tokenizer_config.json", config.get("chat_template")
        if isinstance(source, list):  # several with names
            named = {each.get("name"): each.get("template") for each in source if isinstance(each, dict)}
            source = named.get("default")
        if source is None:
            return None
        if not isinstance(source, str):
            raise UserError(f"{path}: chat_template must be a text, got {str(source)[:60]!r}")
        return cls(source, special_tokens(config), origin=f"the chat template of {path}")

    def render(self, messages: Sequence[Message], *, add_generation_prompt: bool = False) -> str:
        """The text of a conversation. Raises UserError for a template that cannot be rendered.

        A system prompt that the template refuses, as Gemma's does, stands before what the user says first instead.
        """
        answer = self._ask(messages, add_generation_prompt)
        if answer.get("error", "").startswith(_REFUSED) and [m["role"] for m in messages[:2]] == ["system", "user"]:
            system, first, *others = messages
            first = {**first, "content": f"{system['content'].strip()}\n\n{first['content']}"}
            answer = self._ask([first, *others], add_generation_prompt)
        if "error" in answer:
            raise UserError(f"{self.origin} cannot be rendered: {answer['error']}")
        return answer["text"]

    def _ask(self, messages: Sequence[Message], add_generation_prompt: bool) -> dict:
        """The worker's answer: a "text" or an "error". Raises UserError for a template that had to be stopped."""
        if self._worker is None:
            self._worker = _Worker()
        variables = {
            "messages": [dict(message) for message in messages],
            "add_generation_prompt": add_generation_prompt,
            "tools": None,
            "documents": None,
            **self.tokens,
        }
        answer = self._worker.ask({"source": self.source, "variables": variables})
        if answer is None:
            self._worker = None
            raise UserError(f"{self.origin} was stopped: it takes more time or memory than a template may")
        return answer

    def after_answer(self) -> str:
        """What the template writes after an assistant's message, such as `<|im_end|>`; "" if it writes no such one."""
        messages = ({"role": "user", "content": "?"}, {"role": "assistant", "content": _ANSWER})
        try:
            _, found, rest = self.render(messages).rpartition(_ANSWER)
        except UserError:  # a template that refuses two messages may still render what it is asked for
            return ""
        return rest if found else ""


def read_tokenizer_config(folder: Path) -> dict:
    """The content of `tokenizer_config.json`, empty if there is none. Raises UserError for a damaged file."""
    path = folder / "tokenizer_config.json"
    if not path.is_file():
        return {}
    try:
        config = json.loads(read_text(path))
    except ValueError as error:  # bad JSON, or not UTF-8
        raise UserError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(config, dict):
        raise UserError(f"{path} must hold a JSON object, got {str(config)[:40]!r}")
    return config


def special_tokens(config: dict) -> dict[str, str]:
    """The special tokens in a tokenizer_config.json, name -> text."""
    named = {name: config.get(name) for name in _TOKENS}
    texts = {name: token.get("content") if isinstance(token, dict) else token for name, token in named.items()}
    return {name: text for name, text in texts.items() if isinstance(text, str)}


class _Worker:
    """The process that renders templates; it ends with this object, or with this process."""

    def __init__(self) -> None:
        # Started by path and with -P, so that it imports from neither this package nor the current folder.
        command = [sys.executable, "-P", str(_WORKER)]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL)
        weakref.finalize(self, _stop, self.process)
        if self._read(_START_SECONDS) is None:
            raise RuntimeError("the process that renders chat templates did not start")

    def ask(self, request: dict) -> dict | None:
        """The reply to a request; None if the process had to be stopped, or stopped itself."""
        try:
            self.process.stdin.write(json.dumps(request).encode() + b"\n")
            self.process.stdin.flush()
        except OSError:
            return None
        return self._read(_WALL_SECONDS)

    def _read(self, seconds: float) -> dict | None:
        deadline, line = time.monotonic() + seconds, b""
        stdout = self.process.stdout
        while not line.endswith(b"\n"):
            left = deadline - time.monotonic()
            ready, _, _ = select.select([stdout], [], [], max(left, 0.0))
            part = stdout.read1() if ready else b""
            if not part:
                _stop(self.process)
                return None
            line += part
        return json.loads(line)


def _stop(process: subprocess.Popen) -> None:
    """Ends the process and closes its pipes."""
    process.kill()
    for pipe in (process.stdin, process.stdout):
        with contextlib.suppress(OSError):  # what was not yet written is lost with it
            pipe.close()
    process.wait()
