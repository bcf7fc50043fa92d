"""Builds a model's prompt from a problem: chat templates, system prompts, few-shot examples. Text only, no tensors."""

from engine.prompts.boxed import has_closed_box
from engine.prompts.styles import PROMPT_STYLES, PromptFormat, build_prompt, read_system_prompt
from engine.prompts.template import ChatTemplate

__all__ = ["PROMPT_STYLES", "ChatTemplate", "PromptFormat", "build_prompt", "has_closed_box", "read_system_prompt"]
