"""Random calls of the KV tree and of the ops for some minutes: `python -m tests.ttc_kernels.fuzz --seconds 60`.

`make fuzz` runs it on a module that AddressSanitizer watches: the first access outside of an array ends the process
with the place in the C++ code. Most calls of an op have one argument spoilt (another type, device, length, layout or
content). They may raise any exception, and may not touch memory that is not theirs.
"""

from __future__ import annotations

import argparse
import dataclasses
import faulthandler
import importlib
import importlib.util
import inspect
import itertools
import os
import random
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

if built := os.environ.get("TTC_NATIVE"):  # the module to be tested, in the place of the one beside the package
    spec = importlib.util.spec_from_file_location("ttc_kernels._native", next(Path(built).glob("_native*.so")))
    import torch  # before it: brings the OpenMP runtime

    sys.modules["ttc_kernels._native"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules["ttc_kernels._native"])

import numpy as np
import torch
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.ttc_kernels.test_kv_tree import KVTreeMachine
from ttc_kernels import OPS as MODULES
from ttc_kernels import _native

OPS = (*MODULES, "sample_head")
# Fields of cases that may have any value.
_SIZES = ("num_rows", "num_scores", "num_out", "size", "vocab", "hidden", "width")
_DTYPES = (torch.float32, torch.bfloat16, torch.float64, torch.int32, torch.int64, torch.uint8, torch.bool)
_EXTREMES = (-(2**31), -7, -1, 0, 1, 2**15, 2**31 - 1)


def calls(rng: random.Random) -> Iterator[tuple[str, Callable, dict]]:
    """Ops with arguments of one of their tests' cases, some sizes drawn anew."""
    while True:
        op = rng.choice(OPS)
        module = importlib.import_module(f"ttc_kernels.{'sample' if op == 'sample_head' else op}")
        cases = importlib.import_module(f"{module.__name__}.cases")
        case = rng.choice(cases.head_tiny() if op == "sample_head" else cases.tiny())
        seed = rng.randrange(1 << 16)
        arguments = {"weights": case.weights(seed)} if op == "decoder" else {}
        if op != "decoder":  # whose sizes must fit one another
            sizes = {field: rng.choice([1, rng.randint(2, 40), rng.randint(41, 300)]) for field in _SIZES}
            case = dataclasses.replace(case, **{field: sizes[field] for field in vars(case) if field in _SIZES})
        yield op, getattr(module, op), arguments | case.inputs(seed)


def variants(value: object, change: Callable[[torch.Tensor], object], name: str = "") -> Iterator[tuple[str, object]]:
    """Copies of nested arguments, each with another one of their arrays changed, and the name of that one."""
    if isinstance(value, torch.Tensor):
        yield name, change(value)
    elif isinstance(value, np.ndarray):
        changed = change(torch.from_numpy(value))
        yield name, changed.numpy() if isinstance(changed, torch.Tensor) and changed.is_cpu else changed
    elif isinstance(value, _native.Plan):
        yield from variants(SimpleNamespace(items=value.items.copy(), blocks=value.blocks.copy()), change, name)
    elif isinstance(value, tuple | list):
        for i, part in enumerate(value):
            for inner, changed in variants(part, change, f"{name}[{i}]"):
                parts = [*value[:i], changed, *value[i + 1 :]]
                yield inner, type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    elif isinstance(value, dict) or hasattr(value, "__dict__"):
        fields = value if isinstance(value, dict) else vars(value)
        for field, part in fields.items():
            for inner, changed in variants(part, change, f"{name}.{field}"):
                parts = fields | {field: changed}
                yield inner, parts if isinstance(value, dict) else type(value)(**parts)


def spoilt(arguments: dict, rng: random.Random) -> dict:
    """The arguments with one array changed at random."""
    names = [name for name, _ in variants(arguments, lambda x: x)]
    chosen = rng.randrange(len(names))
    return next(itertools.islice(variants(arguments, lambda x: _changed(x, rng)), chosen, None))[1]


def _changed(x: torch.Tensor, rng: random.Random) -> object:
    places = torch.tensor(rng.sample(range(x.numel()), min(x.numel(), 99)), dtype=torch.int64)
    extremes = torch.tensor([rng.choice([*_EXTREMES, len(x) if x.dim() else 0]) for _ in places])
    ways: list[Callable[[], object]] = [
        lambda: x.to("meta"),
        lambda: x.to(rng.choice(_DTYPES)),
        lambda: x[: rng.randint(0, max(len(x) - 1, 0))],
        lambda: torch.cat([x, x]),
        lambda: x.transpose(0, -1),
        lambda: x[:1].expand_as(x),
        lambda: x.flip(0)[..., ::2],
        lambda: x.reshape(-1)[0],
        lambda: x[None],
        lambda: x.flatten().index_copy(0, places, extremes.to(x.dtype)).view_as(x),
        lambda: rng.choice([None, 3, "x", [1]]),
    ]
    try:
        return rng.choice(ways)()
    except (IndexError, RuntimeError):  # not to be done with this one: no elements, or of no dimension
        return x[..., None]


def call_ops(rng: random.Random, counts: Counter, num_calls: int) -> None:
    """Calls ops, and counts what became of the calls."""
    for op, function, arguments in itertools.islice(calls(rng), num_calls):
        if "isa" in inspect.signature(function).parameters:
            arguments["isa"] = rng.choice(_native.decoder_isas() if op == "decoder" else _native.supported_isas())
        is_spoilt = rng.random() < 0.8
        try:
            function(**spoilt(arguments, rng) if is_spoilt else arguments)
            counts[f"{op} done"] += 1
        except Exception:
            if not is_spoilt:
                raise
            counts[f"{op} refused"] += 1


def call_tree(num_examples: int) -> None:
    """The KV tree beside its model, in random calls that hypothesis draws."""
    options = {"deadline": None, "database": None, "suppress_health_check": [*HealthCheck]}
    options["phases"] = [Phase.generate]  # making an example smaller may take longer than there is time
    run_state_machine_as_test(KVTreeMachine, settings=settings(max_examples=num_examples, **options))


def main(argv: list[str] | None = None) -> None:
    """Calls both in turn until the time has come; whatever is found ends the process."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 32), help="of the ops' calls")
    options = parser.parse_args(argv)
    faulthandler.enable()  # a crash tells which call it was in
    print(f"seed {options.seed}, module {_native.__file__}", flush=True)
    counts: Counter = Counter()
    rng, start = random.Random(options.seed), time.monotonic()
    while time.monotonic() - start < options.seconds:
        call_ops(rng, counts, num_calls=200)
        call_tree(10)
        counts["KV tree examples"] += 10
    for name, count in sorted(counts.items()):
        print(f"{name:28}{count:8}")


if __name__ == "__main__":
    main()
