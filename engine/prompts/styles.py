"""Prompt styles: the text around a problem, the same for all problems of a run."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer

from engine.errors import UserError
from engine.prompts.template import ChatTemplate, Message
from engine.prompts.text import check_encodable, read_text

# The usual prompt of the "## Step k:" format, which common PRMs were trained on.
STEPS_PROMPT = """\
Solve the following math problem efficiently and clearly:

- For simple problems (2 steps or fewer):
Provide a concise solution with minimal explanation.

- For complex problems (3 steps or more):
Use this step-by-step format:

## Step 1: [Concise description]
[Brief explanation and calculations]

## Step 2: [Concise description]
[Brief explanation and calculations]

...

Regardless of the approach, always conclude with:

Therefore, the final answer is: $\\boxed{answer}$. I hope it is correct.

Where [answer] is just the final number or expression that solves the problem."""
BOXED_PROMPT = "Please reason step by step, and put your final answer within \\boxed{}."


@dataclass(frozen=True)
class PromptStyle:
    """A named style of prompts and answers."""

    is_chat: bool | None  # None: a chat if the model has a chat template
    system: str | None = None  # the style's own system prompt
    delimiter: str | None = None  # ends a step; None: the task's
    stops_at_box: bool = False  # a closed `\boxed{}` ends the answer


_STYLES = {
    "plain": PromptStyle(is_chat=False),
    "chat": PromptStyle(is_chat=True),
    "steps": PromptStyle(is_chat=None, system=STEPS_PROMPT, delimiter="\n\n", stops_at_box=True),
    "boxed": PromptStyle(is_chat=None, system=BOXED_PROMPT, delimiter="\n\n", stops_at_box=True),
}
PROMPT_STYLES = tuple(_STYLES)


@dataclass(frozen=True)
class PromptFormat:
    """Turns a problem's prompt into the text that is given to the policy.

    A chat has the system prompt, a user and an assistant message per example, and the problem. Without
    a template these are paragraphs in the same order. `preface` is text directly before the problem.
    """

    template: ChatTemplate | None  # None: no chat, or one whose template is an endpoint's
    system: str | None
    examples: tuple[tuple[str, str], ...]  # (prompt, solution)
    preface: str
    delimiter: str | None  # None: the task's
    stops_at_box: bool
    is_served: bool = False  # a chat, whose messages an endpoint renders

    def render(self, prompt: str) -> str:
        """The whole text; of a chat that an endpoint renders its messages as JSON.

        Raises UserError if the chat template cannot be rendered.
        """
        if self.is_served:
            return json.dumps(self.conversation([{"role": "user", "content": prompt}]), ensure_ascii=False)
        if self.template is None:
            parts = [f"{self.system}\n\n"] if self.system else []
            parts += [f"{example}{solution.strip()}\n\n" for example, solution in self.examples]
            return "".join([*parts, self.preface, prompt])
        return self.render_chat([{"role": "user", "content": prompt}])

    def render_chat(self, messages: Sequence[Message]) -> str:
        """A conversation by the template, which there must be. Raises UserError as `render` does."""
        return self.template.render(self.conversation(messages), add_generation_prompt=True)

    def conversation(self, messages: Sequence[Message]) -> list[Message]:
        """The system prompt, the examples, and messages of which the last is the user's.

        A system message among them takes the place of the style's.
        """
        *earlier, last = messages
        system = [{"role": "system", "content": self.system}] if self.system else []
        if earlier and earlier[0]["role"] == "system":
            system, earlier = earlier[:1], earlier[1:]
        shown = []
        for example, solution in self.examples:
            shown.append({"role": "user", "content": example.strip()})
            shown.append({"role": "assistant", "content": solution.strip()})
        return [*system, *shown, *earlier, {**last, "content": self.preface + last["content"].strip()}]

    def end_of_turn(self, tokenizer: Tokenizer) -> int | None:
        """The token with which the chat template ends an assistant's message; None if there is no such token."""
        if self.template is None:
            return None
        rest = self.template.after_answer().lstrip()
        known = {token.content: token_id for token_id, token in tokenizer.get_added_tokens_decoder().items()}
        found = [text for text in known if text and rest.startswith(text)]
        return known[max(found, key=len)] if found else None


def build_prompt(
    folder: Path | None,
    style: str = "plain",
    *,
    system: str | None = None,
    few_shot: str | Path | None = None,
    delimiter: str | None = None,
    as_prompt: Callable[[str], str] = str,
) -> PromptFormat:
    """The format of a style for the model in `folder`; `system` and `delimiter` override the style's own.

    Without a folder the chat template is that of an endpoint, which renders the messages.
    `few_shot` is a file as read by `read_few_shot`; `as_prompt` turns an example's problem into a prompt.
    Raises UserError for an unknown style, the style "chat" without a chat template, or a bad file.
    """
    if style not in _STYLES:
        raise UserError(f"prompt_style must be one of {', '.join(PROMPT_STYLES)}, got {style!r}")
    chosen = _STYLES[style]
    is_served = folder is None and chosen.is_chat is not False
    template = None if folder is None or chosen.is_chat is False else ChatTemplate.load(folder)
    if chosen.is_chat and template is None and not is_served:
        raise UserError(f"prompt_style {style!r} needs a chat template, the model at {folder} has none")
    examples, preface = read_few_shot(few_shot) if few_shot is not None else ((), "")
    return PromptFormat(
        template=template,
        system=system if system is not None else chosen.system,
        examples=tuple((as_prompt(problem), solution) for problem, solution in examples),
        preface=preface,
        delimiter=delimiter if delimiter is not None else chosen.delimiter,
        stops_at_box=chosen.stops_at_box,
        is_served=is_served,
    )


def read_system_prompt(text_or_file: str) -> str:
    """The content of the file of this name if there is one, else the text itself."""
    try:
        is_file = Path(text_or_file).is_file()
    except (OSError, ValueError):  # too long for a name, or not one at all
        is_file = False
    return read_text(Path(text_or_file)).strip() if is_file else text_or_file


def read_few_shot(path: str | Path) -> tuple[Sequence[tuple[str, str]], str]:
    """Few-shot examples: the (problem, solution) pairs of a .jsonl file and "", or () and the text of another file.

    Raises UserError that names the file and the line.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"no few-shot file at {str(path)!r}")
    text = read_text(path)
    if path.suffix != ".jsonl":
        return (), text
    examples = []
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            examples.append(_example(line, f"{path}, line {number}"))
    if not examples:
        raise UserError(f"{path} holds no example")
    return examples, ""


def _example(line: str, origin: str) -> tuple[str, str]:
    try:
        row = json.loads(line)
        pair = (row["problem"], row["solution"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{origin}: needs 'problem' and 'solution' ({error}): {line[:60]!r}") from None
    if not all(isinstance(each, str) and each.strip() for each in pair):
        raise UserError(f"{origin}: 'problem' and 'solution' must be texts, got {line[:60]!r}")
    try:
        return check_encodable(pair[0]), check_encodable(pair[1])
    except UserError as error:
        raise UserError(f"{origin}: {error}") from None
