"""The provider `ttc` of Inspect: every generation is a search."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from inspect_ai.model import (
    ChatCompletionChoice,
    ChatMessage,
    ChatMessageAssistant,
    ContentReasoning,
    ContentText,
    GenerateConfig,
    ModelAPI,
    ModelOutput,
    ModelUsage,
)
from inspect_ai.solver._task_state import sample_state
from inspect_ai.tool import ToolChoice, ToolInfo

from engine.chats import chat_format
from engine.config import SearchConfig
from engine.counts import check_count, shown
from engine.errors import UserError
from engine.plugins.options import Searcher
from engine.prompts.boxed import after_thoughts
from engine.prompts.stops import before_stops
from engine.prompts.text import check_encodable
from engine.runtime import LLM
from engine.search.ranking import ranked
from engine.serve.answers import of_search
from engine.types import Problem, Rendered, SearchResult

# What a generation honours, what Inspect sees to itself, and what asks for nothing. All else is refused.
_HONOURED = ("max_tokens", "temperature", "top_p", "top_k", "seed", "num_choices", "stop_seqs")
_INSPECTS_OWN = (
    *("max_retries", "timeout", "attempt_timeout", "stream_idle_timeout", "max_connections", "adaptive_connections"),
    *("system_message", "cache", "max_tool_output", "reasoning_history", "fail_on_refusal"),
)
_NOTHING = {"frequency_penalty": 0, "presence_penalty": 0, "logit_bias": {}, "logprobs": False, "best_of": 1}
_STOP_REASONS = {"stop": "stop", "length": "max_tokens"}


class SearchingModel(ModelAPI):
    """`ttc/POLICY`; model arguments (`-M`) are the options of `ttc search`, by their names with underscores.

    Raises UserError for whatever `ttc search` refuses.
    """

    def __init__(
        self,
        model_name: str,
        base_url: str | None = None,
        api_key: str | None = None,
        config: GenerateConfig | None = None,
        **options: object,
    ):
        super().__init__(model_name, base_url, api_key, [], config or GenerateConfig())
        if base_url is not None:
            raise UserError(f"ttc searches here, and not at a URL, got {shown(base_url)}")
        if options.get("policy", model_name) != model_name:
            raise UserError(
                f"the policy is what follows ttc/, {model_name!r}, got policy={shown(options['policy'])} too"
            )
        self.searcher = Searcher.load({**options, "policy": model_name})
        self.engine = self.searcher.engine
        policy = self.engine.policy
        is_plain = self.searcher.models.prompt_style == "plain" and "prompt_style" in self.searcher.given
        self._chat = chat_format(self.engine) if isinstance(policy, LLM) and not is_plain else None
        self.base_url = f"ttc:{self.searcher.digest()}"  # Inspect's cache asks for it, and not for our options
        self._num_asked: Counter[int] = Counter()  # by a hash of the sample and what is said in it

    async def generate(
        self, input: list[ChatMessage], tools: list[ToolInfo], tool_choice: ToolChoice, config: GenerateConfig
    ) -> ModelOutput:
        """The ranked answers of a search. Raises UserError for a field that is not honoured."""
        if tools:
            raise UserError(f"ttc calls no tools, got {shown([tool.name for tool in tools])}")
        search, num_choices = self._asked(config)
        problem = self._problem(input)
        num_prompt_tokens = None
        if isinstance(self.engine.policy, LLM):
            num_prompt_tokens, context = len(self.engine.prompt_ids(problem.asked)), self.engine.policy.config.context
            if num_prompt_tokens >= context:
                said = f"the prompt has {num_prompt_tokens} tokens, the context of the model holds {context}"
                return ModelOutput.from_content(self.model_name, said, stop_reason="model_length", error=said)
        result = await self.engine.submit(problem, self.searcher.strategy, search)
        return self._output(result, num_choices, num_prompt_tokens, tuple(config.stop_seqs or ()))

    def _asked(self, config: GenerateConfig) -> tuple[SearchConfig, int]:
        """How a generation is searched, and how many of its answers are returned."""
        for name, value in config.model_dump(exclude_none=True).items():
            if name not in (*_HONOURED, *_INSPECTS_OWN) and not (name in _NOTHING and value == _NOTHING[name]):
                raise UserError(f"ttc honours no {name}={shown(value)}; it honours {', '.join(_HONOURED)}")
        sampling = {"temperature": config.temperature, "top_p": config.top_p, "top_k": config.top_k}
        stops = [text for text in config.stop_seqs or () if text]
        asked = {"max_tokens": config.max_tokens, "seed": config.seed, "stop_texts": stops}
        search = self.searcher.with_asked(**asked, **sampling)
        num_choices = 1 if config.num_choices is None else check_count("num_choices", config.num_choices)
        if num_choices > search.budget:
            raise UserError(f"num_choices must be at most the budget of {search.budget} answers, got {num_choices}")
        return search, num_choices

    def _problem(self, input: Sequence[ChatMessage]) -> Problem:
        """The user's last message, in its conversation where there is a chat template.

        Its id, which seeds its draws, is the sample's; another epoch, and the same question asked again, have others.
        """
        said = [{"role": message.role, "content": check_encodable(_text(message))} for message in input]
        if not said or said[-1]["role"] != "user" or not said[-1]["content"].strip():
            raise UserError("the last message must be a text of the user's")
        if self._chat is None and len(said) > 1:
            raise UserError(
                "without a chat template the policy takes one message of a user's, got "
                f"{shown([message['role'] for message in said])}"
            )
        problem = self.engine.as_problem({"problem": said[-1]["content"], "id": self._name(said)}, 0)
        if self._chat is None:
            return problem
        return replace(problem, conversation=Rendered(self._chat.render_chat(said)))

    def _name(self, said: Sequence[dict[str, str]]) -> str:
        state = sample_state()
        name, epoch, where = ("0", 1, "") if state is None else (state.sample_id, state.epoch, state.uuid)
        key = hash((where, *(text for message in said for text in message.values())))
        self._num_asked[key] += 1
        parts = [str(name)]
        parts += [f"epoch {epoch}"] if epoch > 1 else []
        parts += [f"again {self._num_asked[key] - 1}"] if self._num_asked[key] > 1 else []
        return "#".join(parts)

    def _output(
        self, result: SearchResult, num_choices: int, num_prompt_tokens: int | None, stop: Sequence[str]
    ) -> ModelOutput:
        answer = of_search(result, num_choices, ("ledger", "votes"))
        best = [result.candidates[index] for index in ranked(result)][:num_choices]
        if num_prompt_tokens is None:
            num_prompt_tokens = result.ledger.tokens["prefilled"]
        ranks = [
            {"answer": each.answer, "score": each.agg_score if math.isfinite(each.agg_score) else None} for each in best
        ]
        return ModelOutput(
            model=self.model_name,
            choices=[self._choice(choice.text, choice.finish_reason, stop) for choice in answer.choices],
            usage=ModelUsage(
                input_tokens=num_prompt_tokens,
                output_tokens=answer.num_sampled,
                total_tokens=num_prompt_tokens + answer.num_sampled,
            ),
            input_context_tokens=num_prompt_tokens,
            metadata={"ttc": {**answer.ttc, "choices": ranks, "total_flops": result.ledger.total_flops}},
        )

    def _choice(self, text: str, finish: str, stop: Sequence[str]) -> ChatCompletionChoice:
        """Thoughts, where a text has any, are told apart from the answer."""
        shown_text = after_thoughts(text)
        thoughts = text.removesuffix(shown_text) if text.endswith(shown_text) else ""
        kept = before_stops(shown_text, stop)
        content = [ContentReasoning(reasoning=thoughts), ContentText(text=kept)] if thoughts else kept
        message = ChatMessageAssistant(content=content, model=self.model_name, source="generate")
        reason = "stop" if kept != shown_text else _STOP_REASONS[finish]
        return ChatCompletionChoice(message=message, stop_reason=reason)

    # -- what Inspect asks -------------------------------------------------------------------

    def max_connections(self) -> int:
        """Searches that Inspect runs at once: what fills the policy's batch, and a few that wait."""
        rows = self.searcher.strategy.rows(self.searcher.config.budget)
        places = self.engine.policy.runner.num_wanted_rows
        return max(4, -(-places // rows) + 2)

    def connection_key(self) -> str:
        """Models of other options have connections of their own."""
        return self.base_url

    def max_tokens(self) -> int:
        return self.searcher.config.max_tokens

    async def count_text_tokens(self, text: str) -> int:
        """By the policy's tokenizer; by Inspect's own estimate for an endpoint."""
        policy = self.engine.policy
        return len(policy.vocabulary.encode(text)) if isinstance(policy, LLM) else await super().count_text_tokens(text)

    def close(self) -> None:
        """Cancels what still runs."""
        self.engine.close()


def _text(message: ChatMessage) -> str:
    """What a message says, without thoughts. Raises UserError for one that is no text."""
    if message.role == "tool" or getattr(message, "tool_calls", None):
        raise UserError(f"ttc calls no tools, got a message of role {message.role!r} with a call")
    if isinstance(message.content, str):
        return message.content
    kinds = {part.type for part in message.content} - {"text", "reasoning"}
    if kinds:
        raise UserError(f"ttc reads texts alone, got a message with {', '.join(sorted(kinds))}")
    return message.text
