"""Options made from dataclasses: a field's type, default and docstring line are those of its option."""

from __future__ import annotations

import ast
import importlib
import inspect
import textwrap
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from functools import wraps
from itertools import pairwise
from typing import Annotated

import typer
from typer.core import TyperCommand
from typer.models import ArgumentInfo, OptionInfo, ParameterInfo


class Given(frozenset[str]):
    """The names of the options that the user typed."""


@dataclass(frozen=True)
class Pairs:
    """How a field that is a dataclass is typed: as name=value pairs over its default."""

    help: str
    read: Callable[[object, list[str] | None], object]  # (default, pairs typed) -> value


def option(text: str, *flags: str) -> OptionInfo:
    """An option with its help; `flags` where they do not follow from the parameter's name."""
    return typer.Option(*flags, help=text)


def command(
    panels: Mapping[str, str] | None = None, pairs: Mapping[type, Pairs] | None = None
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Makes a function a command: each parameter that is a dataclass is taken as one option per field.

    A parameter of type `Given` gets the names that were typed; all others are options as typer knows them. Where two
    parameters have an option of one name it is one option, described by the first. `panels` names the options that
    the command has, in order, under the heading of each panel; without it the command has all of them.
    A field's metadata may hold `flags` (other than --name and --no-name), `help` (else the docstring line below the
    field) and `argument` (it has no flag). `pairs` says which dataclasses are typed as name=value.
    """

    def decorate(run: Callable[..., None]) -> Callable[..., None]:
        parameters = inspect.signature(run, eval_str=True).parameters.values()
        groups = {each.name: _Group(each, pairs or {}) for each in parameters}
        options: dict[str, inspect.Parameter] = {}
        for group in groups.values():
            for each in group.options():
                options.setdefault(each.name, each)
        chosen = list(options.values()) if panels is None else _laid_out(options, panels)

        @wraps(run)
        def call(ctx: typer.Context, **values: object) -> None:
            typed = Given(name for name in values if ctx.get_parameter_source(name).name == "COMMANDLINE")
            run(**{name: group.value(values, typed) for name, group in groups.items()})

        context = inspect.Parameter("ctx", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context)
        call.__signature__ = inspect.Signature([context, *chosen])
        call.__annotations__ = {each.name: each.annotation for each in (context, *chosen)}
        return call

    return decorate


def lazy(app: typer.Typer, name: str, where: str, text: str) -> None:
    """Adds a command whose module is only imported (some import torch, in seconds) when it is called.

    `where` is "module:function", `text` its line in the list of commands.
    """

    class Lazy(TyperCommand):
        def make_context(self, info_name, args, parent=None, **extra):
            module, _, function = where.partition(":")
            alone = typer.Typer(add_completion=False)
            alone.command(name)(getattr(importlib.import_module(module), function))
            return typer.main.get_command(alone).make_context(info_name, args, parent, **extra)

    app.command(name, cls=Lazy, help=text)(lambda: None)


def field_docs(cls: type) -> dict[str, str]:
    """The docstring line below each field of a dataclass; a field that is declared anew may leave it out."""
    docs: dict[str, str] = {}
    for each in reversed(cls.__mro__):
        if "__dataclass_fields__" in vars(each):
            docs |= _docs_in_source(each)
    return docs


def _docs_in_source(cls: type) -> dict[str, str]:
    try:
        source = inspect.getsource(cls)
    except (OSError, TypeError):  # made while running, or shipped without its source
        return {}
    (definition,) = ast.parse(textwrap.dedent(source)).body
    return {
        statement.target.id: inspect.cleandoc(below.value.value)
        for statement, below in pairwise(definition.body)
        if isinstance(statement, ast.AnnAssign)
        and isinstance(below, ast.Expr)
        and isinstance(below.value, ast.Constant)
        and isinstance(below.value.value, str)
    }


class _Group:
    """The options that one parameter of a command stands for, and its value from theirs."""

    def __init__(self, parameter: inspect.Parameter, pairs: Mapping[type, Pairs]):
        self.parameter, self.kind, self.pairs = parameter, parameter.annotation, pairs

    def options(self) -> Iterator[inspect.Parameter]:
        if is_dataclass(self.kind):
            yield from self._of_fields(self.kind)
        elif self.kind is not Given:
            yield self.parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)

    def value(self, values: Mapping[str, object], typed: Given) -> object:
        if is_dataclass(self.kind):
            return self._made(self.kind, values)
        return typed if self.kind is Given else values[self.parameter.name]

    def _of_fields(self, cls: type, *, is_nested: bool = False) -> Iterator[inspect.Parameter]:
        hints, docs = typing.get_type_hints(cls), field_docs(cls)
        for field in fields(cls):
            hint = hints[field.name]
            if hint in self.pairs:
                yield _parameter(field.name, list[str] | None, None, option(self.pairs[hint].help))
            elif is_dataclass(hint):
                yield from self._of_fields(hint, is_nested=True)
            else:
                # The docstring line of a value inside another one says what is taken without the option.
                info = _info(field, docs.get(field.name), shows_default=not is_nested)
                yield _parameter(field.name, _plain(hint), _default(field), info)

    def _made(self, cls: type, values: Mapping[str, object]) -> object:
        """The dataclass with the values of its fields; those that the command has no option for keep their default."""
        hints, taken = typing.get_type_hints(cls), {}
        for field in fields(cls):
            hint = hints[field.name]
            if hint in self.pairs:
                taken[field.name] = self.pairs[hint].read(_default(field), values[field.name])
            elif is_dataclass(hint):
                taken[field.name] = self._made(hint, values)
            elif field.name in values:
                taken[field.name] = values[field.name]
        return cls(**taken)


def _laid_out(options: Mapping[str, inspect.Parameter], panels: Mapping[str, str]) -> list[inspect.Parameter]:
    """Arguments, and then the options in the order of the panels."""
    chosen = [each for each in options.values() if isinstance(_info_of(each), ArgumentInfo)]
    for panel, names in panels.items():
        for name in names.split():
            _info_of(options[name]).rich_help_panel = panel or None
            chosen.append(options[name])
    return chosen


def _info_of(parameter: inspect.Parameter) -> ParameterInfo:
    return parameter.annotation.__metadata__[0]


def _info(field: Field, doc: str | None, *, shows_default: bool) -> ParameterInfo:
    text = field.metadata.get("help", doc)
    if field.metadata.get("argument"):
        return typer.Argument(help=text)
    flags = [field.metadata["flags"]] if "flags" in field.metadata else []
    return typer.Option(*flags, help=text, show_default=shows_default)


def _parameter(name: str, kind: object, default: object, info: ParameterInfo) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, info])


def _default(field: Field) -> object:
    return field.default if field.default is not MISSING else field.default_factory()


def _plain(hint: object) -> object:
    """What is typed for a value of several kinds: the first of them, or nothing where that is one."""
    if typing.get_origin(hint) not in (typing.Union, types.UnionType):
        return hint
    first, *others = typing.get_args(hint)
    return first | None if type(None) in others else first
