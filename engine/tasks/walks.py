"""The home task `walks`: rooms, doors, and where one must have set out.

Rooms are letters, doors are digits. A fixed table says into which room a door leads from each room; every door
permutes the rooms. The table is the task's language: no prompt states it, a policy learns it from worked answers. A
problem is a list of walks with blanks. An answer fills them in, one walk a line, after the walk as the prompt has it::

    ?5?2?=c;d3?1?               the prompt, closed by a newline
    ?5?2?=c:b5f2c=c             an open walk: from b it ends in c, as it has to
    d3?1?:d3e1c<eos>            a told walk: it begins in d, and ends in c

An *open* walk asks for the room to set out from, so that it ends where it has to. Exactly one does. To find it in one
pass, the doors have to be undone one after another before the first letter is written. To check it, the last two
letters are compared. Search pays on this asymmetry, as it does in mathematics, where a root is hard to find and easy
to substitute. A *told* walk asks where it ends, and is walked room by room. The answer is one letter for each walk: the
start of an open one, the end of a told one.
"""

from __future__ import annotations

import functools
import hashlib
import random
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields, replace

from engine.counts import are_weights, shown
from engine.errors import UserError

SPLITS = ("train", "validation", "test")
# A problem's split is a hash of its text: disjoint whatever seed or knobs drew it.
_SPLIT_OF_BUCKET = {0: "validation", 1: "test"}
_NUM_BUCKETS = 16
_MAX_WALKS = _MAX_LENGTH = 1000  # of a problem, and doors of a walk: far more than any context holds
_MAX_DRAWS = 10_000  # for a new problem; of options that allow few problems all have been drawn by then
ROOMS = "abcdefghij"
DOORS = "0123456789"
BLANK = "?"

_WALK = re.compile(r"([a-j?])((?:\d\?)+)(?:=([a-j]))?", re.ASCII)
_LINE = re.compile(r"[^:\n]+:([a-j])((?:\d[a-j])+)(=[a-j])?", re.ASCII)


@dataclass(frozen=True)
class WalksConfig:
    """Options of the generator.

    Each problem draws how many walks it has, and its own share of told ones, uniform between `min_told` and
    `max_told`, so that difficulty varies between problems. A problem is *short* with probability `short_rate`, and
    then draws the lengths of its walks by `short_lengths`. Raises UserError for a value out of range.
    """

    num_rooms: int = 6
    num_doors: int = 6
    table_seed: int = 0
    min_walks: int = 3
    max_walks: int = 6
    lengths: tuple[float, ...] = (1.0, 1.0, 1.0, 1.0, 1.0)  # weights of walks through 1, 2, ... doors
    min_told: float = 0.0
    max_told: float = 0.9
    short_rate: float = 0.0  # per problem
    short_lengths: tuple[float, ...] = (8.0, 4.0, 2.0, 1.0)
    wrong_rate: float = 0.1  # per open line, in worked answers: sets out from a wrong room, drawn at random

    def __post_init__(self) -> None:
        if not 2 <= self.num_rooms <= len(ROOMS):
            raise UserError(f"num_rooms must be 2..{len(ROOMS)}, got {self.num_rooms}")
        if not 1 <= self.num_doors <= len(DOORS):
            raise UserError(f"num_doors must be 1..{len(DOORS)}, got {self.num_doors}")
        if not 1 <= self.min_walks <= self.max_walks:
            raise UserError(f"walks must satisfy 1 <= min <= max, got {self.min_walks}..{self.max_walks}")
        if self.max_walks > _MAX_WALKS:
            raise UserError(f"max_walks must be at most {_MAX_WALKS}, got {shown(self.max_walks)}")
        if not 0 <= self.min_told <= self.max_told <= 1:
            raise UserError(f"told must satisfy 0 <= min <= max <= 1, got {self.min_told}..{self.max_told}")
        for name in ("lengths", "short_lengths"):
            weights = getattr(self, name)
            if len(weights) > _MAX_LENGTH:
                raise UserError(f"{name} must be at most {_MAX_LENGTH} weights, got {len(weights)}")
            if not are_weights(weights):
                raise UserError(f"{name} needs finite weights of at least 0, some over it, got {shown(weights)}")
        for name in ("short_rate", "wrong_rate"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"{name} must be within 0..1, got {getattr(self, name)}")

    @property
    def table(self) -> Table:
        return make_table(self.num_rooms, self.num_doors, self.table_seed)


Table = dict[str, dict[str, str]]  # door -> room -> room


@functools.cache
def make_table(num_rooms: int, num_doors: int, seed: int = 0) -> Table:
    """Distinct permutations of the rooms, none of which leaves all rooms as they are, where there are enough."""
    rng = random.Random(f"walks/table/{num_rooms}/{num_doors}/{seed}")
    rooms = ROOMS[:num_rooms]
    seen = {rooms}
    table: Table = {}
    for door in DOORS[:num_doors]:
        for _ in range(100):
            after = "".join(rng.sample(rooms, num_rooms))
            if after not in seen:
                break
        seen.add(after)
        table[door] = dict(zip(rooms, after, strict=True))
    return table


@dataclass(frozen=True)
class Walk:
    """Doors in order, and the one room that is known."""

    doors: str
    start: str | None = None  # told
    end: str | None = None  # of an open walk

    @property
    def is_open(self) -> bool:
        return self.start is None

    @property
    def text(self) -> str:
        blanks = "".join(door + BLANK for door in self.doors)
        return f"{BLANK}{blanks}={self.end}" if self.is_open else f"{self.start}{blanks}"

    def rooms(self, table: Table, start: str) -> str:
        """All rooms of the walk from `start`, which is the first of them."""
        rooms = start
        for door in self.doors:
            rooms += table[door][rooms[-1]]
        return rooms

    def right_start(self, table: Table) -> str:
        if self.start is not None:
            return self.start
        return next(room for room in table[self.doors[0]] if self.rooms(table, room)[-1] == self.end)

    def answer(self, table: Table) -> str:
        start = self.right_start(table)
        return start if self.is_open else self.rooms(table, start)[-1]

    def line(self, table: Table, start: str) -> str:
        """The walk from `start` as an answer writes it."""
        first, *rest = self.rooms(table, start)
        filled = first + "".join(door + room for door, room in zip(self.doors, rest, strict=True))
        return f"{self.text}:{filled}" + (f"={self.end}" if self.is_open else "")


@dataclass(frozen=True)
class WalksProblem:
    """Walks in order; `text` is the prompt."""

    walks: tuple[Walk, ...]

    @property
    def text(self) -> str:
        """The prompt, e.g. "?5?2?=c;d3?1?" and a newline."""
        return ";".join(walk.text for walk in self.walks) + "\n"

    @property
    def split(self) -> str:
        """The split of the problem, from a hash of its text."""
        digest = hashlib.blake2b(self.text.encode(), digest_size=4).digest()
        return _SPLIT_OF_BUCKET.get(int.from_bytes(digest, "big") % _NUM_BUCKETS, "train")

    def answer(self, table: Table) -> str:
        """The gold answer: one letter per walk."""
        return "".join(walk.answer(table) for walk in self.walks)

    def right_lines(self, table: Table) -> list[str]:
        return [walk.line(table, walk.right_start(table)) for walk in self.walks]


def parse(text: str, config: WalksConfig | None = None) -> WalksProblem:
    """The problem that a prompt states. Raises UserError for text outside the grammar or the config's table."""
    table = (config or WalksConfig()).table
    known = {BLANK, "=", *table, *table[DOORS[0]]}
    walks = []
    for part in text.removesuffix("\n").split(";"):
        match = _WALK.fullmatch(part)
        if not match or (match[1] == BLANK) != (match[3] is not None):
            raise UserError(f"not a walks problem (expected e.g. '?5?2?=c;d3?1?'): {text[:80]!r}")
        if not known.issuperset(part):
            missing = min(set(part) - known)
            raise UserError(f"not a walks problem: no room or door {missing!r} in the table: {text[:80]!r}")
        walks.append(Walk(match[2].replace(BLANK, ""), None if match[1] == BLANK else match[1], match[3]))
    return WalksProblem(tuple(walks))


def draw_problem(rng: random.Random, config: WalksConfig) -> WalksProblem:
    """One problem of any split."""
    rooms = ROOMS[: config.num_rooms]
    told = rng.uniform(config.min_told, config.max_told)
    weights = config.short_lengths if rng.random() < config.short_rate else config.lengths
    walks = []
    for _ in range(rng.randint(config.min_walks, config.max_walks)):
        (length,) = rng.choices(range(1, len(weights) + 1), weights)
        doors = "".join(rng.choices(DOORS[: config.num_doors], k=length))
        room = rng.choice(rooms)
        walks.append(Walk(doors, start=room) if rng.random() < told else Walk(doors, end=room))
    return WalksProblem(tuple(walks))


def problems(split: str, seed: int = 0, config: WalksConfig | None = None) -> Iterator[WalksProblem]:
    """An endless stream of distinct problems of a split; the first n do not depend on how many are taken.

    Raises UserError for an unknown split, and where the options allow no further problem.
    """
    if split not in SPLITS:
        raise UserError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")
    config = config or WalksConfig()
    rng = random.Random(f"walks/{split}/{seed}")
    seen: set[str] = set()
    while True:
        drawn = (draw_problem(rng, config) for _ in range(_MAX_DRAWS))
        problem = next((each for each in drawn if each.split == split and each.text not in seen), None)
        if problem is None:
            raise UserError(f"walks allows only {len(seen)} problems of the split {split!r}, got the options {config}")
        seen.add(problem.text)
        yield problem


def worked_answer(problem: WalksProblem, rng: random.Random, config: WalksConfig) -> str:
    """A worked answer as people write them, lines joined by newlines.

    An open walk sets out from a wrong room at the config's rate, and then misses its end. Without such lines a
    policy learns to copy the end from the prompt instead of walking there, and its wrong lines look right.
    """
    table, rooms = config.table, ROOMS[: config.num_rooms]
    lines = []
    for walk in problem.walks:
        start = walk.right_start(table)
        if walk.is_open and rng.random() < config.wrong_rate:
            start = rng.choice([room for room in rooms if room != start])
        lines.append(walk.line(table, start))
    return "\n".join(lines)


def extract_answer(completion: str) -> str | None:
    """One letter per line, as it was written; None where a line is no filled walk. No line is checked."""
    letters = ""
    for line in completion.strip().split("\n"):
        match = _LINE.fullmatch(line)
        if not match:
            return None
        letters += match[1] if match[3] else match[2][-1]
    return letters


def first_wrong_step(problem: WalksProblem, steps: list[str], config: WalksConfig) -> int:
    """Index of the first line that is not the one right line of its walk, or -1.

    An answer that ends early need not have a wrong line.
    """
    right = problem.right_lines(config.table)
    for index, step in enumerate(steps):
        if index >= len(right) or step.strip() != right[index]:
            return index
    return -1


def config_from_options(options: dict[str, str], config: WalksConfig | None = None) -> WalksConfig:
    """`config` with some options given as text. Raises UserError for an unknown name or a bad value."""
    known = {field.name: field for field in fields(WalksConfig)}
    values: dict[str, object] = {}
    for name, text in options.items():
        if name not in known:
            raise UserError(f"walks has no option {name!r}; it has {', '.join(known)}")
        read, wanted = _READERS.get(str(known[name].type), (_floats, "numbers with commas between"))
        try:
            values[name] = read(text)
        except ValueError:
            raise UserError(f"walks option {name} needs {wanted}, got {shown(text)}") from None
    return replace(config or WalksConfig(), **values)  # type: ignore[arg-type]


def as_pairs(texts: Iterable[str]) -> dict[str, str]:
    """Options by name, of texts such as "max_told=0". Raises UserError for one without a `=`, or given twice."""
    options: dict[str, str] = {}
    for text in texts:
        name, sign, value = text.partition("=")
        if not sign:
            raise UserError(f"an option of walks is written name=value, got {text!r}")
        if name in options:
            raise UserError(f"walks option {name} is given twice, got {options[name]!r} and {value!r}")
        options[name] = value
    return options


def _floats(text: str) -> tuple[float, ...]:
    return tuple(float(part) for part in text.split(","))


_READERS = {"int": (int, "a whole number"), "float": (float, "a number")}
