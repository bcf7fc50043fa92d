"""One thread at a time: a second one gets an error at once, not a crash and not its turn some day."""

from __future__ import annotations

import threading

from engine.errors import UserError

_GRACE = 0.05  # seconds: a thread that gives something back is gone by then


class OneThread:
    """A context manager around work on what only one thread may touch. The thread inside may enter again."""

    def __init__(self, what: str):
        self.what = what
        self._lock = threading.RLock()

    def __enter__(self) -> OneThread:
        """Raises UserError where another thread is inside."""
        if not self._lock.acquire(timeout=_GRACE):
            raise self._taken()
        return self

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def after_others(self) -> threading.RLock:
        """Enters for what has to be given back in any case: waits for the thread inside, whose step ends some time."""
        return self._lock

    def _taken(self) -> UserError:
        return UserError(f"{self.what} is in use by another thread: load one for each thread, or take turns")
