"""The process that grades answers, started and killed by `grading_pool`.

A standalone script that imports nothing of this package: it must be small, since it passes a model's output to
sympy. Its kind is `math`, which compares answers with math-verify, or `gym`, which is `gym_scorer`. For each JSON line
`[..., seconds]` it writes a line: of `math`, whose requests are `[gold, answer, seconds]`, `1` (equal) or `0` (not); of
any `e` (cannot tell). A timer signal kills it after the seconds, of CPU time so that a busy machine changes no verdict,
even within C code and even if the process that started it has died.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import resource
import signal
import sys
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

_VERDICTS_PER_CLEANING = 500


def main(kind: str, max_bytes: int) -> None:
    """Serves until stdin closes; `max_bytes` is the memory it may allocate after its imports."""
    replies = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # keeps printed text out of the replies
    try:
        ask = _load_math() if kind == "math" else _load_file(f"{kind}_scorer.py")
    except ImportError as error:
        replies.write(f"missing {error}\n".encode())
        return
    _limit(max_bytes)
    signal.signal(signal.SIGPROF, signal.SIG_DFL)  # kills, even if the parent ignores it
    replies.write(b"ready\n")
    for number, line in enumerate(sys.stdin.buffer, start=1):
        *request, seconds = json.loads(line)
        signal.setitimer(signal.ITIMER_PROF, seconds)
        try:
            reply = ask(*request)
        except Exception:  # RecursionError and MemoryError too: the grader cannot tell
            reply = "e"
        signal.setitimer(signal.ITIMER_PROF, 0)
        if number % _VERDICTS_PER_CLEANING == 0:
            _clean()
        replies.write(f"{reply}\n".encode())


def _limit(max_bytes: int) -> None:
    """Limits memory, and forbids files to grow and, where the system allows it, processes to start."""
    with contextlib.suppress(FileNotFoundError):  # not Linux: only the time limit holds
        with open("/proc/self/statm") as file:
            size = int(file.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (size + max_bytes,) * 2)
    for kind in (resource.RLIMIT_FSIZE, resource.RLIMIT_CORE, resource.RLIMIT_NPROC):
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(kind, (0, 0))


def _clean() -> None:
    from sympy.core.cache import clear_cache

    clear_cache()


def _load_file(name: str) -> Callable[..., str]:
    """What a file beside this one has `load` return."""
    spec = importlib.util.spec_from_file_location(Path(name).stem, Path(__file__).with_name(name))
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module.load()


def _load_math() -> Callable[[str, str], str]:
    """Imports math-verify; returns the comparison, "1" or "0" for (gold, answer)."""
    import logging

    from math_verify import parse, verify
    from sympy import And, Expr, Float, Rel, Set, Symbol

    logging.disable(logging.CRITICAL)

    def _number(expression: Expr) -> complex | None:
        """Its value, the symbols replaced by numbers that follow from their names alone; None where there is none."""
        try:
            points = {symbol: Float(_point(symbol.name)) for symbol in expression.free_symbols}
            return complex(expression.subs(points).evalf(15))
        except MemoryError:
            raise
        except Exception:
            return None

    @lru_cache(maxsize=1024)
    def parsed(answer: str) -> list:
        text = " ".join(answer.replace("\0", " ").split())
        text = "".join(part if part == r"\$" else part.replace("$", "") for part in _split_dollars(text))
        found = parse(f"${text}$", parsing_timeout=None, raise_on_error=True)
        if not found or not isinstance(found[0], Expr) or isinstance(found[0], Symbol):
            return found
        # The parser is content with the beginning of a text. Within brackets it reads all of it or nothing.
        whole = parse(f"$({text})$", parsing_timeout=None, raise_on_error=True)
        if not whole or not isinstance(whole[0], Expr):
            return [answer]
        added = whole[0].free_symbols - found[0].free_symbols
        has_unit = any(len(symbol.name) > 2 for symbol in added)  # which the parser leaves out at a text's end
        return found if has_unit or _number(whole[0]) == _number(found[0]) else whole

    @lru_cache(maxsize=1024)
    def value(answer: str) -> complex | None:
        """The value of an answer that is an expression, where it has one that a float can hold."""
        expression = (parsed(answer) or [None])[0]
        if not isinstance(expression, Expr) or isinstance(expression, Symbol):
            return None
        number = _number(expression)
        return number if number is not None and abs(number) < float("inf") else None

    def compare(gold: str, answer: str) -> bool:
        expected = parsed(gold)
        if not expected:
            raise ValueError(f"math-verify does not understand {gold!r}")
        if _are_far_apart(value(gold), value(answer)):  # saves sympy's simplification, which can take minutes
            return False
        options = {"timeout_seconds": None, "raise_on_error": True}
        given = parsed(answer)
        if verify(expected, given, **options):
            return True
        # An interval as gold is not compared with the inequality that it is; the other way round it is.
        return any(isinstance(each, Rel | Set | And) for each in given) and verify(given, expected, **options)

    assert compare("1/2", "0.5")  # builds what the libraries build on first use
    return lambda gold, answer: "1" if compare(gold, answer) else "0"


def _split_dollars(text: str) -> list[str]:
    r"""The text split at every `\$`; these remain as parts."""
    parts = []
    for index, part in enumerate(text.split(r"\$")):
        parts += [r"\$", part] if index else [part]
    return parts


def _point(name: str) -> float:
    """A number within 1..2 derived from a symbol's name; `hash` would differ between processes."""
    return 1 + sum(ord(letter) * 31**index for index, letter in enumerate(name)) % 7919 / 7919


def _are_far_apart(first: complex | None, second: complex | None) -> bool:
    """Whether two values differ, even if either is read as a percentage."""
    if first is None or second is None:
        return False
    if min(abs(first), abs(second)) == 0 and max(abs(first), abs(second)) < 1e-9:
        return False  # what cancels out may leave the rounding of its terms
    pairs = ((first, second), (first * 100, second), (first, second * 100))
    return all(abs(a - b) > 1e-3 * max(abs(a), abs(b)) for a, b in pairs)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
