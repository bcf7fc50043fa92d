"""Delays Ctrl-C until the current unit of work is complete."""

from __future__ import annotations

import signal
import threading
from types import FrameType


class Uninterrupted:
    """A context manager that delays a KeyboardInterrupt until its block ends.

    An interrupted forward would leave branches, rows and KV blocks inconsistent: closing them would then fail with
    an error of its own, and the engine could not be used again. A second Ctrl-C in one block is not delayed. Has no
    effect outside the main thread, which alone receives signals, or where a program handles SIGINT itself.
    Reusable, but not nestable in itself.
    """

    __slots__ = ("_is_active", "_is_held")

    def __enter__(self) -> Uninterrupted:
        self._is_held = False
        self._is_active = (
            threading.current_thread() is threading.main_thread()
            and signal.getsignal(signal.SIGINT) is signal.default_int_handler
        )
        if self._is_active:
            signal.signal(signal.SIGINT, self._hold)
        return self

    def __exit__(self, *_: object) -> None:
        if self._is_active:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            if self._is_held:
                raise KeyboardInterrupt

    def _hold(self, _number: int, _frame: FrameType | None) -> None:
        if self._is_held:
            raise KeyboardInterrupt
        self._is_held = True
