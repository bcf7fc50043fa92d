"""Answers requests for completions: checks them, starts them, and writes what comes of them."""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass
from functools import partial

from starlette.responses import JSONResponse, Response

from engine.config import SearchConfig
from engine.counts import shown
from engine.engine import Engine
from engine.handle import Handle
from engine.samples import start_samples
from engine.serve.answers import Answer, of_samples, of_search
from engine.serve.asked import Models, Search, search_config
from engine.serve.config import ServeConfig
from engine.serve.desk import Desk, outcome
from engine.serve.errors import as_api_error, refused
from engine.serve.forms import Form
from engine.serve.page import make_page
from engine.serve.prompts import Prompts
from engine.serve.schema import ChatBody, TextBody
from engine.serve.streams import DONE, Chunks, EventStream, data, watched_samples, watched_search
from engine.types import Problem, Sampling

logger = logging.getLogger("ttc.serve")
AnyBody = ChatBody | TextBody


@dataclass(frozen=True)
class Asked:
    """A request that has been checked."""

    body: AnyBody
    problem: Problem
    num_prompt_tokens: int
    config: SearchConfig  # of plain samples: the budget is their number
    search: Search | None  # None: plain samples

    def start(self, engine: Engine) -> Handle:
        """Raises UserError for what the engine refuses."""
        if self.search is None:
            return start_samples(engine, self.problem, self.config, stop=self.body.stop, tells=self.body.stream)
        search = self.search
        return engine.submit(self.problem, search.strategy, search.config, deadline=search.deadline)

    def answer(self, result: object, handle: Handle) -> Answer:
        """From what came of the handle."""
        if self.search is None:
            return of_samples(result, handle.ledger)
        return of_search(result, self.body.n, self.search.returns)

    @property
    def label(self) -> str:
        """Of its strategy, for the metrics."""
        return "sample" if self.search is None else self.search.strategy.name


class Service:
    """One per server."""

    def __init__(self, engine: Engine, config: ServeConfig, name: str):
        self.engine, self.config = engine, config
        self.models = Models(engine, name, config.calibration)
        self.aliases = self.models.aliases()
        self.prompts = Prompts(engine)
        self.desk = Desk(engine, config.max_queue)
        self.page = make_page(self.models, engine.task)
        self.created = int(time.time())

    async def complete(self, body: AnyBody, form_class: type[Form], make_problem: Callable[[], Problem]) -> Response:
        """Answers one request. Raises APIError or UserError for one that is refused."""
        begun = time.monotonic()
        self.desk.check_open()
        asked = await self.desk.in_thread(partial(self._checked, body, make_problem))
        name = form_class.prefix + secrets.token_hex(12)
        form = form_class(self.engine.policy, name, int(time.time()), body.model, body.wants_logprobs)
        async with AsyncExitStack() as stack:
            handle = await stack.enter_async_context(self.desk.running(partial(asked.start, self.engine)))
            if body.stream:
                return EventStream(self._events(asked, handle, form, begun), stack.pop_all())
            answer = self._counted(asked, asked.answer(await outcome(handle), handle))
        choices = [form.choice(index, choice) for index, choice in enumerate(answer.choices)]
        more = {} if answer.ttc is None else {"ttc": answer.ttc}
        usage = answer.usage(asked.num_prompt_tokens)
        return JSONResponse({**form.head(form.whole), "choices": choices, "usage": usage, **more})

    def _checked(self, body: AnyBody, make_problem: Callable[[], Problem]) -> Asked:
        """In the thread for prompts."""
        sampling = Sampling(body.temperature, body.top_k, body.top_p, body.min_p)
        options = self.models.options(body.model, body.ttc)
        limit = 16 if options is None and body.limit is None and isinstance(body, TextBody) else body.limit  # OpenAI's
        limit = self.engine.task.max_tokens if limit is None else limit
        if options is None:
            config, search = search_config(body.n, body.seed, sampling, limit), None
        else:
            _check_searched(body)
            config = search_config(SearchConfig().budget, body.seed, sampling, limit)
            search = self.models.search(options, config)
            config = search.config
            if body.n > config.budget:
                raise refused(f"n must be at most the budget of {config.budget} answers, got {body.n}", "n")
        if config.budget * limit > self.config.max_request_tokens:
            most = f"{self.config.max_request_tokens} tokens"
            raise refused(f"{config.budget} answers of {limit} tokens are more than {most}, the most for a request")
        problem = make_problem()
        return Asked(body, problem, self.prompts.num_tokens(problem), config, search)

    def _counted(self, asked: Asked, answer: Answer) -> Answer:
        """Counts an answer in the metrics."""
        metrics = self.desk.metrics
        metrics.prompt_tokens.inc(asked.num_prompt_tokens)
        metrics.generation_tokens.inc(answer.num_sampled)
        metrics.generations.labels(asked.label).inc(answer.num_drawn)
        metrics.success.labels(answer.choices[0].finish_reason).inc()
        return answer

    async def _events(self, asked: Asked, handle: Handle, form: Form, begun: float) -> AsyncIterator[str]:
        """The whole of a stream; what goes wrong in it is its last event."""
        chunks = Chunks(form, wants_usage=asked.body.wants_usage)
        has_begun = False
        try:
            async with aclosing(self._texts(asked, handle, chunks)) as texts:
                async for text in texts:
                    if not has_begun and text.startswith("data:"):
                        has_begun = True
                        self.desk.metrics.first_token.observe(time.monotonic() - begun)
                    yield text
        except Exception as error:
            known = as_api_error(error)
            if known.status == 500:
                logger.exception("a stream failed")
            self.desk.metrics.failure.labels(str(known.status)).inc()
            yield data(known.body)
        yield DONE

    async def _texts(self, asked: Asked, handle: Handle, chunks: Chunks) -> AsyncIterator[str]:
        seconds, search = self.config.keep_alive_seconds, asked.search
        if search is None:
            watched = watched_samples(handle, chunks, seconds)
        else:
            watched = watched_search(handle, chunks, seconds, has_progress=search.has_progress)
        async with aclosing(watched):
            async for text in watched:
                yield text
        answer = self._counted(asked, asked.answer(await outcome(handle), handle))
        for index, choice in enumerate(answer.choices):
            steps = [choice.text] if search is None else self._steps(choice.text)
            for text in chunks.ended(index, choice, steps, answer.ttc if index == 0 else None):
                yield text
        if asked.body.wants_usage:
            yield chunks.chunk([], usage=answer.usage(asked.num_prompt_tokens))

    def _steps(self, text: str) -> list[str]:
        """A text as far as each of its steps, the last one whole."""
        delimiter = self.engine.step_delimiter
        steps, end = [], text.find(delimiter)
        while 0 <= end < len(text) - len(delimiter):
            steps.append(text[: end + len(delimiter)])
            end = text.find(delimiter, end + len(delimiter))
        return [*steps, text]


def _check_searched(body: AnyBody) -> None:
    """Refuses what only plain samples have."""
    if body.stop:
        raise refused(
            f"stop has no effect on a search, whose answers end by themselves, got {shown(body.stop)}", "stop"
        )
    if body.wants_logprobs:
        raise refused("logprobs are those of plain samples: a search keeps one for each step", "logprobs")
