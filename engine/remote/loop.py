"""An event loop in a thread of its own, for work that mostly waits."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import Future
from typing import Any

from engine.errors import UserError


class LoopThread:
    """Runs coroutines; its thread is started when there is a first one."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._pid = os.getpid()

    def run(self, coroutine: Coroutine[Any, Any, Any]) -> Future:
        """Starts a coroutine, from any thread. Its future may be cancelled from any thread, and so cancels it.

        Raises UserError in a forked child, which has no such thread, and whose connections are its parent's.
        """
        if self._pid != os.getpid():
            coroutine.close()
            raise UserError(f"an endpoint is loaded in the process that asks it, got one of process {self._pid}")
        if self._thread is None:
            self._loop = asyncio.new_event_loop()
            self._thread = threading.Thread(target=_serve, args=(self._loop,), name="ttc endpoint", daemon=True)
            self._thread.start()
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    def close(self, last: Callable[[], Awaitable[None]]) -> None:
        """Has the thread cancel what runs, await `last`, and end. Waits for none of it: this may be that thread."""
        if self._thread is not None and self._pid == os.getpid():
            self.run(_end(last))


def _serve(loop: asyncio.AbstractEventLoop) -> None:
    loop.run_forever()
    loop.close()


async def _end(last: Callable[[], Awaitable[None]]) -> None:
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await last()
    asyncio.get_running_loop().stop()
