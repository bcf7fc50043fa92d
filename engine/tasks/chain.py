"""The home task `chain`: multi-step modular arithmetic, one line per operation.

A problem is a start value and a list of operations, applied from left to right, modulo 1,000::

    473;+38;*27;-12             the prompt, closed by a newline
    473+38=511                  one line per operation,
    511*27=797                  a newline after each line ...
    797-12=785<eos>             ... but the last, which the end-of-text token closes

`#1` and `#2` rotate the three digits to the left (``473#1=734``, ``45#1=450``). Without them an error in the
hundreds of a product never reaches the tens or the ones, and one wrong path in ten ends right by luck.

Two further kinds of line are legal and rare, so that a search has something to exploit (Snell et
al. 2024, section 5.2 and appendix E see short-cuts and idle repetition chosen by over-optimised verifiers): a
*shortcut* does two operations in one line (``511*27-12=785``) and a *check* does none (``511=511``).
"""

from __future__ import annotations

import hashlib
import math
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass, fields

from engine.errors import UserError

MODULUS = 1000
SPLITS = ("train", "validation", "test")
# A problem's split is a hash of its text: disjoint whatever seed or knobs drew it.
_SPLIT_OF_BUCKET = {0: "validation", 1: "test"}
_NUM_BUCKETS = 16

_PROBLEM = re.compile(r"(\d{1,3})((?:;[+*#-]\d{1,3})+)\n?")
_OPERATION = re.compile(r"([+*#-])(\d{1,3})")
_LINE = re.compile(r"(\d{1,3})((?:[+*#-]\d{1,3})*)=(\d{1,3})")


@dataclass(frozen=True)
class ChainConfig:
    """Options of the generator.

    An operation is a rotation with probability `rotation_rate`. The share of multiplications among a problem's
    other operations is uniform between `min_multiply` and `max_multiply`, so that problems of one depth differ
    in difficulty.
    """

    min_depth: int = 2  # operations
    max_depth: int = 10  # operations
    max_addend: int = 999  # of + and -
    min_multiply: float = 0.0  # smallest share of multiplications
    max_multiply: float = 0.7  # largest share of multiplications
    multiplier_digits: tuple[float, ...] = (0.7, 0.3)  # weights of 1, 2, 3 digits
    rotation_rate: float = 0.2  # per operation
    # Only multipliers prime to 10, under which a wrong value stays wrong; others can wipe an error out.
    keeps_errors: bool = True
    shortcut_rate: float = 0.02  # per line, in worked answers
    check_rate: float = 0.02  # per line, in worked answers

    def __post_init__(self) -> None:
        if not 1 <= self.min_depth <= self.max_depth:
            raise UserError(f"depth must satisfy 1 <= min <= max, got {self.min_depth}..{self.max_depth}")
        if not 1 <= self.max_addend < MODULUS:
            raise UserError(f"max_addend must be 1..{MODULUS - 1}, got {self.max_addend}")
        if not 1 <= len(self.multiplier_digits) <= 3 or sum(self.multiplier_digits) <= 0:
            raise UserError(f"multiplier_digits needs 1 to 3 weights, got {self.multiplier_digits}")
        for name in ("min_multiply", "max_multiply", "rotation_rate", "shortcut_rate", "check_rate"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"{name} must be within 0..1, got {getattr(self, name)}")


@dataclass(frozen=True)
class ChainProblem:
    """A start value and its operations; `text` is the prompt and `answer` the gold answer."""

    start: int
    operations: tuple[tuple[str, int], ...]  # (sign, operand)

    @property
    def text(self) -> str:
        """The prompt, e.g. "473;+38;*27" and a newline."""
        return f"{self.start}" + "".join(f";{sign}{operand}" for sign, operand in self.operations) + "\n"

    @property
    def answer(self) -> str:
        return str(self.values[-1])

    @property
    def depth(self) -> int:
        return len(self.operations)

    @property
    def values(self) -> tuple[int, ...]:
        """The depth + 1 running values, starting with `start`."""
        values = [self.start]
        for sign, operand in self.operations:
            values.append(apply(values[-1], sign, operand))
        return tuple(values)

    @property
    def split(self) -> str:
        """The split of the problem, from a hash of its text."""
        digest = hashlib.blake2b(self.text.encode(), digest_size=4).digest()
        return _SPLIT_OF_BUCKET.get(int.from_bytes(digest, "big") % _NUM_BUCKETS, "train")


def apply(value: int, sign: str, operand: int) -> int:
    """One operation of the chain, modulo 1,000; "#" rotates the three digits to the left."""
    if sign == "+":
        return (value + operand) % MODULUS
    if sign == "-":
        return (value - operand) % MODULUS
    if sign == "*":
        return (value * operand) % MODULUS
    digits, turns = f"{value:03d}", operand % 3
    return int(digits[turns:] + digits[:turns])


def parse(text: str) -> ChainProblem:
    """The problem that a prompt states. Raises UserError for text outside the grammar."""
    match = _PROBLEM.fullmatch(text)
    if not match:
        raise UserError(f"not a chain problem (expected e.g. '473;+38;*27'): {text[:80]!r}")
    operations = tuple((sign, int(operand)) for sign, operand in _OPERATION.findall(match[2]))
    return ChainProblem(int(match[1]), operations)


def draw_problem(rng: random.Random, config: ChainConfig) -> ChainProblem:
    """Draws a problem, which may belong to any split."""
    depth = rng.randint(config.min_depth, config.max_depth)
    multiply = rng.uniform(config.min_multiply, config.max_multiply)
    operations = []
    for _ in range(depth):
        if rng.random() < config.rotation_rate:
            operations.append(("#", rng.randint(1, 2)))
        elif rng.random() < multiply:
            (digits,) = rng.choices(range(1, len(config.multiplier_digits) + 1), config.multiplier_digits)
            operations.append(("*", _draw_multiplier(rng, digits, config.keeps_errors)))
        else:
            operations.append((rng.choice("+-"), rng.randint(1, config.max_addend)))
    return ChainProblem(rng.randrange(MODULUS), tuple(operations))


def _draw_multiplier(rng: random.Random, digits: int, keeps_errors: bool) -> int:
    while True:
        multiplier = rng.randint(2 if digits == 1 else 10 ** (digits - 1), 10**digits - 1)
        if not keeps_errors or math.gcd(multiplier, MODULUS) == 1:
            return multiplier


def problems(split: str, seed: int = 0, config: ChainConfig | None = None) -> Iterator[ChainProblem]:
    """An endless stream of problems of one split. Raises UserError for an unknown split."""
    if split not in SPLITS:
        raise UserError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")
    config = config or ChainConfig()
    rng = random.Random(f"chain/{split}/{seed}")
    while True:
        problem = draw_problem(rng, config)
        if problem.split == split:
            yield problem


def worked_answer(problem: ChainProblem, rng: random.Random, config: ChainConfig) -> str:
    """A correct answer, lines joined by newlines, with shortcut and check lines at the config's rates."""
    lines = []
    values, position = problem.values, 0
    while position < problem.depth:
        if lines and rng.random() < config.check_rate:
            lines.append(f"{values[position]}={values[position]}")
        taken = 2 if position + 2 <= problem.depth and rng.random() < config.shortcut_rate else 1
        done = "".join(f"{s}{o}" for s, o in problem.operations[position : position + taken])
        lines.append(f"{values[position]}{done}={values[position + taken]}")
        position += taken
    return "\n".join(lines)


def extract_answer(completion: str) -> str | None:
    """The value after the last `=`, without leading zeros; None if the text does not end in one."""
    match = re.search(r"=(\d{1,3})\s*$", completion)
    return str(int(match[1])) if match else None


def is_correct(problem: ChainProblem, completion: str) -> bool:
    """Whether the final answer is the gold answer; the steps are not looked at."""
    return extract_answer(completion) == problem.answer


def first_wrong_step(problem: ChainProblem, steps: list[str]) -> int:
    """Index of the first wrong step, or -1.

    A step is right if it starts from the running value, does the next zero, one or two operations
    of the problem in order, and states their true result. An answer that ends early need not have a
    wrong step.
    """
    values, position = problem.values, 0
    for index, step in enumerate(steps):
        match = _LINE.fullmatch(step.strip())
        if not match:
            return index
        done = tuple((s, int(o)) for s, o in _OPERATION.findall(match[2]))
        after = position + len(done)
        in_order = len(done) <= 2 and done == problem.operations[position:after]
        if not in_order or int(match[1]) != values[position] or int(match[3]) != values[after]:
            return index
        position = after
    return -1


def config_from_options(options: dict[str, str]) -> ChainConfig:
    """A configuration from names and values as text. Raises UserError for an unknown name or a bad value."""
    known = {field.name: field for field in fields(ChainConfig)}
    values: dict[str, object] = {}
    for name, text in options.items():
        if name not in known:
            raise UserError(f"chain has no option {name!r}; it has {', '.join(known)}")
        read, wanted = _READERS.get(str(known[name].type), (_floats, "numbers with commas between"))
        try:
            values[name] = read(text)
        except (KeyError, ValueError):
            raise UserError(f"chain option {name} needs {wanted}, got {text!r}") from None
    return ChainConfig(**values)  # type: ignore[arg-type]


def _floats(text: str) -> tuple[float, ...]:
    return tuple(float(part) for part in text.split(","))


_READERS = {
    "int": (int, "a whole number"),
    "float": (float, "a number"),
    "bool": ({"true": True, "false": False, "1": True, "0": False}.__getitem__, "true or false"),
}
