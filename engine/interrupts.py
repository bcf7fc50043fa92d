"""Ctrl-C between two steps of the work, never inside one."""

from __future__ import annotations

import signal
import threading
from types import FrameType


class Uninterrupted:
    """A context manager that holds a KeyboardInterrupt back until its block has ended.

    A forward that is left half-way leaves branches, rows and KV blocks at odds: closing them would then fail with
    an error of its own, and the engine could not be used again. A second Ctrl-C inside one block is not held back.
    Does nothing outside the main thread, which alone gets signals, and where a program handles SIGINT itself.
    Can be used again, not nested in itself.
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
