"""The error that a user can cause and fix."""

from __future__ import annotations


class UserError(ValueError):
    """An input that cannot be used; the message is one sentence that shows the value received.

    The command line prints it and exits with status 2. A ValueError of any other kind is a bug and keeps its traceback.
    """
