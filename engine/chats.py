"""Whole conversations for an engine's policy."""

from __future__ import annotations

from dataclasses import replace

from engine.engine import Engine
from engine.prompts import ChatTemplate, PromptFormat

_PLAIN = PromptFormat(template=None, system=None, examples=(), preface="", delimiter=None, stops_at_box=False)


def chat_format(engine: Engine) -> PromptFormat | None:
    """What renders conversations, by the chat template of the policy's folder; None where it has none.

    The token with which the template ends a turn ends the policy's texts from now on. Raises UserError for a damaged
    template.
    """
    form = engine.prompt or _PLAIN
    template = form.template or ChatTemplate.load(engine.policy.folder)
    if template is None:
        return None
    chat = replace(form, template=template)
    end = chat.end_of_turn(engine.policy.tokenizer)
    if end is not None and end < engine.policy.config.vocab_size:
        engine.policy.add_end_token(end)
    return chat
