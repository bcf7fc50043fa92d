"""The error that a user can cause and fix."""

from __future__ import annotations


class UserError(ValueError):
    """An input that cannot be used; the message is one sentence that shows the value received.

    The command line prints it and exits with status 2. A ValueError of any other kind is a bug and keeps its traceback.
    """


class ServiceError(UserError):
    """What serves all problems is out of order, so that no later one would fare better."""


def sentence(error: Exception) -> str:
    """What an error says, in one line: a UserError's own words, the file of an OSError, the kind of any other."""
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    said = " ".join(line.strip() for line in str(error).splitlines())
    return said if isinstance(error, UserError | OSError) and said else f"{type(error).__name__}: {said}"
