"""Answers as server-sent events: comments while nothing is known, the search as it goes, then the texts in parts."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, aclosing, suppress
from dataclasses import asdict
from typing import TypeVar

from starlette.responses import Response

from engine.handle import SearchHandle
from engine.runtime.sampling import Sample
from engine.samples import SampleHandle
from engine.search import SearchEvent
from engine.serve.answers import Choice
from engine.serve.forms import Form, Json, Part

Item = TypeVar("Item")
KEEP_ALIVE = ": searching\n\n"
DONE = "data: [DONE]\n\n"


class EventStream(Response):
    """Sends events as they come. What the stack holds is given up when the stream ends, or its client has left."""

    media_type = "text/event-stream"

    def __init__(self, events: AsyncIterator[str], held: AsyncExitStack):
        super().__init__(headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self.events, self.held = events, held

    async def __call__(self, scope, receive, send) -> None:
        async with self.held, aclosing(self.events):
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            async for event in self.events:
                await send({"type": "http.response.body", "body": event.encode(), "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})


def data(payload: Json) -> str:
    """One event."""
    return f"data: {json.dumps(payload, ensure_ascii=False)}\n\n"


async def beating(items: AsyncIterator[Item], seconds: float) -> AsyncIterator[Item | None]:
    """The items, and None each time that none has come for so long."""
    coming: asyncio.Task | None = None
    try:
        while True:
            coming = coming or asyncio.ensure_future(anext(items, _END))
            done, _ = await asyncio.wait({coming}, timeout=seconds)
            if not done:
                yield None
                continue
            item, coming = coming.result(), None
            if item is _END:
                return
            yield item
    finally:
        if coming is not None:
            coming.cancel()
            with suppress(asyncio.CancelledError):
                await coming


_END = object()


class Chunks:
    """Writes the chunks of one stream."""

    def __init__(self, form: Form, *, wants_usage: bool):
        self.form, self.wants_usage = form, wants_usage
        self._sent: dict[int, tuple[int, int]] = {}  # characters and tokens of each choice

    def chunk(self, choices: Sequence[Json], **more: object) -> str:
        """With the usage only in the last one, which a client may ask for."""
        usage = {"usage": None} if self.wants_usage else {}
        return data({**self.form.head(self.form.chunk), "choices": list(choices), **usage, **more})

    def progress(self, event: SearchEvent) -> str:
        """A chunk without choices, for clients that asked for the search."""
        told = {name: value for name, value in asdict(event).items() if value is not None and value not in ("", ())}
        if event.kind not in ("spent", "done"):
            del told["generations"], told["tokens"]
        return self.chunk([], ttc={"event": told})

    def grown(self, index: int, text: str, sample: Sample | None) -> str | None:
        """What a choice has gained since its last part; None for nothing."""
        num_characters, num_tokens = self._sent.get(index, (0, 0))
        is_first = index not in self._sent
        if len(text) <= num_characters and not is_first:
            return None
        tokens, logprobs = ((), ()) if sample is None else (sample.token_ids, sample.logprobs)
        self._sent[index] = len(text), len(tokens)
        added = Part(
            index,
            text[num_characters:],
            tokens[num_tokens:],
            logprobs[num_tokens:],
            is_first=is_first,
            offset=num_characters,
        )
        return self.chunk([self.form.part(added)])

    def ended(self, index: int, choice: Choice, steps: Sequence[str], ttc: Json | None) -> list[str]:
        """The rest of a choice, step by step, and why it ends."""
        parts = [self.grown(index, text, choice.sample) for text in steps]
        told = {} if ttc is None else {"ttc": ttc}
        last = self.chunk([self.form.part(Part(index, finish_reason=choice.finish_reason))], **told)
        return [*filter(None, parts), last]


async def watched_search(
    handle: SearchHandle, chunks: Chunks, seconds: float, *, has_progress: bool
) -> AsyncIterator[str]:
    """Until a search has ended: its events, or nothing but comments."""
    source = aiter(handle) if has_progress else _until_done(handle)
    async with aclosing(beating(source, seconds)) as events:
        async for event in events:
            yield KEEP_ALIVE if event is None else chunks.progress(event)


async def _until_done(handle: SearchHandle) -> AsyncIterator[SearchEvent]:
    """No event at all, and an end."""
    task = asyncio.ensure_future(_end_of(handle))
    await asyncio.wait({task})
    return
    yield  # makes it a generator


async def _end_of(handle: SearchHandle) -> None:
    with suppress(Exception):  # whoever reads the result meets it
        await handle


async def watched_samples(handle: SampleHandle, chunks: Chunks, seconds: float) -> AsyncIterator[str]:
    """The parts of texts as they are drawn."""
    async with aclosing(beating(aiter(handle), seconds)) as events:
        async for event in events:
            if event is None:
                yield KEEP_ALIVE
            elif event.sample is not None and (grown := chunks.grown(event.index, event.sample.text, event.sample)):
                yield grown
