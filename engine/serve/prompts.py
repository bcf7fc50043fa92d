"""Problems from messages and prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from engine.chats import chat_format
from engine.engine import Engine
from engine.prompts.text import check_encodable
from engine.serve.errors import refused
from engine.serve.schema import ChatMessage
from engine.types import Problem, Rendered

_ROLES = {"developer": "system"}


class Prompts:
    """Makes problems for an engine. A policy with a chat template is given whole conversations by it."""

    def __init__(self, engine: Engine):
        self.engine = engine
        self._chat = chat_format(engine)

    def of_chat(self, messages: Sequence[ChatMessage]) -> Problem:
        """The last message, the user's, with the conversation before it where there is a chat template.

        Raises UserError for a template that refuses it.
        """
        if messages[-1].role != "user" or not messages[-1].text.strip():
            raise refused("the last message must be a text of the user's", "messages")
        problem = self.of_text(messages[-1].text)
        if self._chat is None:
            return problem
        said = [{"role": _ROLES.get(each.role, each.role), "content": check_encodable(each.text)} for each in messages]
        return replace(problem, conversation=Rendered(self._chat.render_chat(said)))

    def of_text(self, text: str) -> Problem:
        """A problem as `Engine.search` takes it alone."""
        if not text.strip():
            raise refused("a prompt must be a text that is not blank", "prompt")
        return self.engine.as_problem(text, 0)

    def num_tokens(self, problem: Problem) -> int:
        """Tokens that the policy is given. Raises APIError for more than its context holds."""
        num_tokens, context = len(self.engine.prompt_ids(problem.asked)), self.engine.policy.config.context
        if num_tokens >= context:
            message = f"the prompt has {num_tokens} tokens, the context of the model holds {context}"
            raise refused(message, code="context_length_exceeded")
        return num_tokens
