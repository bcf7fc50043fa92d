"""Formats of verifiers as data: how a problem and its steps are laid out, where a score is read, and by which head.

A spec is a YAML file; those in `specs/` are built in, a user's own may start from one of them with
`base: NAME`. Nothing in it is run.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import yaml

from engine.errors import UserError

_FOLDER = Path(__file__).with_name("specs")
_MAX_BYTES = 1 << 16

_CHOICES = {
    "judges": ("steps", "answers"),
    "layout": ("tokens", "text", "pieces", "chat"),
    "turns": ("joined", "alternating"),
    "score_at": ("tag", "before-tag", "last"),
    "tag_ids_kept": ("all", "last"),
    "overlong": ("error", "flag", "last"),
}
# Fields that mean something for some layouts only.
_LAYOUTS_OF = {
    "system": ("chat",),
    "turns": ("chat",),
    "between": ("text",),
    "tag_ids_kept": ("pieces",),
    "has_bos": ("pieces",),
    "split_lines": ("pieces",),
    "special_tokens": ("text", "pieces", "chat"),
    **dict.fromkeys(
        ("problem", "step", "tag", "tag_ids", "strip_problem", "strip_steps", "max_tokens", "overlong"),
        ("text", "pieces", "chat"),
    ),
}
_HEAD_KINDS = {"classification": (), "linear": ("tensor", "num_labels"), "mlp": ("tensor", "num_labels")}
_HEAD_KINDS["lm-rows"] = ("rows",)


@dataclass(frozen=True)
class Head:
    """The head that reads the scored rows. One label is a sigmoid; of several, the softmax's share of `good` counts."""

    kind: str  # classification (`score`, labels of config.json), linear, mlp (linear, ReLU, linear), lm-rows
    tensor: str = ""  # name before ".weight", of linear and mlp
    num_labels: int = 0
    rows: tuple[int | str, ...] = ()  # of the LM head: token ids, or texts whose last token is meant
    good: int | None = None  # index of the label; None: the last one


@dataclass(frozen=True)
class Rule:
    """Conditions on a checkpoint by which a format is detected; every one that is given must hold."""

    architecture: str  # with * for any text
    num_labels: int | None = None
    labels: tuple[str, ...] | None = None  # names in config.json, in order
    tensor: str | None = None  # name of one that the checkpoint holds

    @property
    def num_conditions(self) -> int:
        return sum(value is not None for value in dataclasses.astuple(self))


@dataclass(frozen=True)
class VerifierSpec:
    """One format.

    Layouts: "tokens" is the policy's own tokens; "text" one text, tokenized whole; "pieces" the
    problem and each step tokenized alone; "chat" a conversation, rendered by the chat template of
    the checkpoint. The tag follows each step, in the verifier's branch only.
    """

    name: str
    layout: str
    score_at: str  # tag: its last token; before-tag: the token that predicts it; last: the last token of all
    head: Head
    detect: tuple[Rule, ...] = ()
    judges: str = "steps"  # or whole "answers", each read once: an ORM
    system: str | None = None  # of a chat
    turns: str = "joined"  # of a chat: one assistant turn of all steps; or a user turn per step, answered by the tag
    problem: str = "{problem}"  # also {bos}; before a first alternating step it is the same turn
    step: str = "{step}"
    tag: str = ""
    between: str = ""  # steps, of a text
    tag_ids: tuple[int, ...] = ()  # of the token that is read; others say that the tokenizer is not the format's
    tag_ids_kept: str = "all"  # of pieces: the tag's tokens, or the last of them alone
    special_tokens: bool = False  # those that the tokenizer puts around a text
    has_bos: bool = False  # of pieces: a bos token, where the tokenizer has one, comes first
    split_lines: bool = False  # of pieces: each line of a step is a piece, the tag after each
    strip_problem: bool = True
    strip_steps: bool = True
    max_tokens: int | None = None  # None: the context of the model
    overlong: str = "error"  # a step beyond: an error; "flag": NaN, which leaves the answer out; "last": as the last

    def __post_init__(self) -> None:
        if self.score_at != "last" and not self.tag:
            raise UserError(f"verifier spec {self.name!r}: score_at {self.score_at!r} needs a tag")
        if self.judges == "steps" and self.layout != "tokens" and self.score_at == "last":
            raise UserError(f"verifier spec {self.name!r}: score_at 'last' is for answers, or for layout tokens")
        if self.layout == "tokens" and self.score_at != "last":
            raise UserError(f"verifier spec {self.name!r}: layout 'tokens' needs score_at 'last'")
        if self.layout == "pieces" and self.score_at == "before-tag":
            raise UserError(f"verifier spec {self.name!r}: score_at 'before-tag' is not for layout 'pieces'")
        for field, name in (("problem", "{problem}"), ("step", "{step}")):
            if name not in getattr(self, field):
                raise UserError(f"verifier spec {self.name!r}: {field} must hold {name}, got {getattr(self, field)!r}")
        if self.max_tokens is not None and self.max_tokens < 1:
            raise UserError(f"verifier spec {self.name!r}: max_tokens must be at least 1, got {self.max_tokens}")


def built_in_names() -> list[str]:
    """The names of the specs that come with the package."""
    return sorted(path.stem for path in _FOLDER.glob("*.yaml"))


def load_spec(name_or_file: str | Path) -> VerifierSpec:
    """A built-in spec by its name, or a file. Raises UserError that names what is wrong with it."""
    name = str(name_or_file)
    path = _FOLDER / f"{name}.yaml" if name in built_in_names() else Path(name)
    if not path.is_file():
        raise UserError(f"verifier spec {name!r} is neither a file nor one of {', '.join(built_in_names())}")
    return parse_spec(_read(path), path.stem)


def built_in_specs() -> list[VerifierSpec]:
    """All specs that come with the package."""
    return [load_spec(name) for name in built_in_names()]


def parse_spec(raw: object, name: str) -> VerifierSpec:
    """A spec from what its file states; fields that it leaves out come from its base."""
    if not isinstance(raw, dict):
        raise UserError(f"verifier spec {name!r} must be a mapping, got {str(raw)[:60]!r}")
    base = raw.get("base")
    if base is not None:
        if base not in built_in_names():
            raise UserError(f"verifier spec {name!r}: base must be one of {', '.join(built_in_names())}, got {base!r}")
        inherited = _read(_FOLDER / f"{base}.yaml")
        if "base" in inherited:
            inherited = _read(_FOLDER / f"{inherited['base']}.yaml") | inherited
        raw = inherited | raw
    fields = {key: value for key, value in raw.items() if key != "base"}
    where = f"verifier spec {name!r}"
    _check_fields(VerifierSpec, fields, where)
    for key, choices in _CHOICES.items():
        if key in fields and fields[key] not in choices:
            raise UserError(f"{where}: {key} must be one of {', '.join(choices)}, got {fields[key]!r}")
    for key in fields:
        layouts = _LAYOUTS_OF.get(key)
        if layouts is not None and fields["layout"] not in layouts:
            raise UserError(f"{where}: {key} has no effect with layout {fields['layout']!r}, got {fields[key]!r}")
    fields["head"] = _head(fields["head"], where)
    rules = fields.get("detect", [])
    fields["detect"] = tuple(_part(Rule, rule, f"{where}: detect") for rule in rules)
    if "tag_ids" in fields:
        fields["tag_ids"] = tuple(fields["tag_ids"])
    return VerifierSpec(name=name, **fields)


def _read(path: Path) -> object:
    if path.stat().st_size > _MAX_BYTES:
        raise UserError(f"{path} has {path.stat().st_size} bytes, a verifier spec has {_MAX_BYTES} at most")
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path} is not valid YAML: {reason}") from None


def _head(raw: object, where: str) -> Head:
    head = _part(Head, raw, f"{where}: head")
    if head.kind not in _HEAD_KINDS:
        raise UserError(f"{where}: head kind must be one of {', '.join(_HEAD_KINDS)}, got {head.kind!r}")
    for field in _HEAD_KINDS[head.kind]:
        if not getattr(head, field):
            raise UserError(f"{where}: a head of kind {head.kind!r} needs {field}")
    num_labels = len(head.rows) or head.num_labels
    if head.good is not None and num_labels and not 0 <= head.good < num_labels:
        raise UserError(f"{where}: good must be within 0..{num_labels - 1}, got {head.good}")
    return head


def _part(part: type, raw: object, where: str):
    """A Head or a Rule from its mapping."""
    if not isinstance(raw, dict):
        raise UserError(f"{where} must be a mapping, got {str(raw)[:60]!r}")
    _check_fields(part, raw, where)
    return part(**{key: tuple(value) if isinstance(value, list) else value for key, value in raw.items()})


# What a field may hold, by its annotation.
_TYPES = {
    "str": str,
    "str | None": str,
    "int": int,
    "int | None": int,
    "bool": bool,
    "tuple[int, ...]": [int],
    "tuple[str, ...] | None": [str],
    "tuple[int | str, ...]": [int, str],
    "tuple[Rule, ...]": [dict],
    "Head": dict,
}


def _check_fields(part: type, raw: dict, where: str) -> None:
    """Raises UserError for a field that is unknown, missing, or of another type."""
    known = {field.name: field for field in dataclasses.fields(part) if field.name != "name"}
    for key, value in raw.items():
        if key not in known:
            raise UserError(f"{where} has no field {key!r}; it has {', '.join(known)}")
        wanted = _TYPES[known[key].type]
        if isinstance(wanted, list):
            is_right = isinstance(value, list) and all(type(each) in wanted for each in value)
            shown = "a list of " + " or ".join(each.__name__ for each in wanted)
        else:
            is_right, shown = type(value) is wanted, wanted.__name__
        if not is_right:
            raise UserError(f"{where}: {key} must be {shown}, got {value!r}")
    for field in known.values():
        if field.default is dataclasses.MISSING and field.name not in raw:
            raise UserError(f"{where} needs the field {field.name!r}")
