"""Items and scores of reasoning-gym, in a grading process: `grading_worker` loads this file by its path.

It imports nothing of this package. Items are made here too, for three reasons: some generators follow the order of a
set, which only a fixed PYTHONHASHSEED settles; one seeds numpy for its whole process; and options that nothing fulfils
make others search without end.
"""

from __future__ import annotations

import copy
import dataclasses
import difflib
import json
import os
import random
import sys
import typing
from collections.abc import Callable
from datetime import date, time
from enum import Enum
from functools import lru_cache

from reasoning_gym.dataset import ProceduralDataset
from reasoning_gym.factory import DATASETS

_DRAWN = ("seed", "size")  # not options: an item is the first of a data set that its own seed makes
_MOST_NAMED = 12  # options in a message
_MIXTURE = "composite"
# What no scorer needs, and what an answer that a scorer evaluates must not do; see `_forbid`.
_FORBIDDEN = ("ctypes.", "os.", "shutil.", "socket.", "subprocess.", "pty.", "urllib.")
_HARMLESS = ("os.listdir", "os.scandir", "os.walk", "os.fwalk")  # imports look into folders


class BadTask(Exception):
    """A name, an option or a value that reasoning-gym does not have; the message is for the user."""


def load() -> Callable[..., str]:
    """What answers requests; see `_describe`, `_item` and `_score` for their arguments and replies."""
    scoring = _forbid()
    requests = {"describe": _describe, "item": _item, "score": lambda *request: _score(scoring, *request)}

    def ask(kind: str, *arguments: object) -> str:
        try:
            return requests[kind](*arguments)
        except BadTask as error:
            return json.dumps({"error": " ".join(str(error).split())})

    return ask


def _describe(name: str, options: str) -> str:
    """Whether a data set has a scorer of its own, and whether its answers have several lines, by its first item."""
    item = _made(name, options, 0)
    has_own = DATASETS[name][0].score_answer is not ProceduralDataset.score_answer
    return json.dumps({"has_own_scorer": has_own, "is_long": "\n" in (item[1]["answer"] or "")})


def _item(name: str, options: str, seed: int) -> str:
    """The question and the reference answer of an item, null where any answer that the scorer accepts is as good."""
    _, item = _made(name, options, seed)
    return json.dumps({"question": item["question"], "answer": item["answer"]})


def _score(scoring: list[bool], name: str, options: str, seed: int, reference: str | None, answer: str) -> str:
    """1 for a score of at least 1, else 0; an answer at which the scorer fails is wrong too."""
    dataset, item = _made(name, options, seed)
    if item["answer"] != reference:
        raise BadTask(f"its item of seed {seed} has the answer {_shown(item['answer'])}")
    scoring.append(True)
    try:
        return "1" if dataset.score_answer(answer, copy.deepcopy(item)) >= 1 else "0"
    except MemoryError:
        raise
    except Exception:
        return "0"
    finally:
        scoring.clear()


@lru_cache(maxsize=64)
def _made(name: str, options: str, seed: int) -> tuple[ProceduralDataset, dict]:
    random.seed(seed)  # no generator should draw from it, and none that does shall make two items of one seed
    config_class, values = _checked(name, options)
    try:
        dataset = DATASETS[name][0](config=config_class(**values, seed=seed, size=1))
        item = dataset[0]
    except (MemoryError, ImportError):
        raise
    except Exception as error:
        raise BadTask(f"cannot make an item of seed {seed}: {_said(error)}") from None
    if not isinstance(item["question"], str) or not isinstance(item["answer"], str | None):
        raise BadTask(f"its item of seed {seed} is no text")
    return dataset, item


@lru_cache(maxsize=64)
def _checked(name: str, options: str) -> tuple[type, dict[str, object]]:
    """The class of a data set's options, and the values of those that are given."""
    if name not in DATASETS:
        near = difflib.get_close_matches(name, DATASETS, n=3, cutoff=0.5)
        named = f"; did you mean {' or '.join(near)}?" if near else f"; it has {', '.join(list(DATASETS)[:8])}, ..."
        raise BadTask(f"reasoning-gym has no data set {name[:80]!r}{named}")
    if name == _MIXTURE:
        raise BadTask("it mixes other data sets, and options cannot name them: name one data set")
    config_class = DATASETS[name][1]
    fields = {field.name: field for field in dataclasses.fields(config_class) if field.name not in _DRAWN}
    values: dict[str, object] = {}
    for text in options.split(":") if options else ():
        option, sign, value = text.partition("=")
        if not sign:
            raise BadTask(f"an option is written name=value, got {text[:80]!r}")
        if option in _DRAWN:
            raise BadTask(f"{option} is no option: the split and --seed draw the seed of each item, got {text[:80]!r}")
        if option not in fields:
            near = difflib.get_close_matches(option, fields, n=3, cutoff=0.5)
            known = [*near, *(each for each in fields if each not in near)]
            more = ", ..." if len(known) > _MOST_NAMED else ""
            has = f"it has {', '.join(known[:_MOST_NAMED])}{more}" if known else "it has none"
            raise BadTask(f"no option {option[:80]!r}; {has}")
        if option in values:
            raise BadTask(f"option {option} is given twice, the second time as {value[:80]!r}")
        values[option] = _read(fields[option], value)
    try:
        config = config_class(**values)
        if hasattr(config, "validate"):
            config.validate()
    except Exception as error:
        got = f", got {options[:80]!r}" if options else ""
        raise BadTask(f"{_said(error)}{got}") from None
    return config_class, values


def _read(field: dataclasses.Field, text: str) -> object:
    """The value of an option by the kind of its default. Raises BadTask for a text that is none."""
    default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
    is_real = field.type in (float, "float")
    try:
        if isinstance(default, list | tuple) or "list" in str(field.type):
            kind = type(default[0]) if default else str
            return type(default or [])(_value(kind, part) for part in text.split(","))
        if default is None:
            return _value(next((kind for kind in typing.get_args(field.type) if kind is not type(None)), str), text)
        return _value(float if is_real else type(default), text)
    except (ValueError, KeyError):
        raise BadTask(f"option {field.name} needs {_wanted(field.type, default)}, got {text[:80]!r}") from None
    except TypeError:
        raise BadTask(f"option {field.name} cannot be written as a text, got {text[:80]!r}") from None


def _value(kind: type, text: str) -> object:
    if kind is bool:
        return {"true": True, "false": False}[text.lower()]
    if kind in (date, time):
        return kind.fromisoformat(text)  # 0930 and 20260131 need no colon
    if kind in (int, float, str) or issubclass(kind, Enum):
        return kind(text)
    raise TypeError(f"no text is a {kind.__name__}")


def _wanted(kind: object, default: object) -> str:
    if isinstance(default, Enum):
        return f"one of {', '.join(each.value for each in type(default))}"
    kinds = [each.__name__ for each in typing.get_args(kind) if each is not type(None)]
    return f"a value like {_shown(default)}" if default is not None else f"a value of type {' or '.join(kinds)}"


def _forbid() -> list[bool]:
    """Has Python refuse writing, processes and the network while the list that it returns holds anything.

    Some scorers evaluate the answer as Python or by sympy's parser, so a model's text can call anything. This stops
    what a text does by chance; it is no sandbox against one that is made to break out.
    """
    scoring: list[bool] = []

    def hook(event: str, arguments: tuple) -> None:
        if not scoring:
            return
        writes = event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        if writes or (event.startswith(_FORBIDDEN) and event not in _HARMLESS):
            raise PermissionError(f"an answer may not call {event}")

    sys.addaudithook(hook)
    return scoring


def _said(error: Exception) -> str:
    return str(error)[:200] or f"its options do not fit together ({type(error).__name__})"


def _shown(value: object) -> str:
    text = ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
    return repr(text if len(text) <= 80 else f"{text[:77]}...")
