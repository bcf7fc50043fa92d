"""The CUDA kernels compiled for the CPU: the same sources, each thread emulated; see cuda_emulation/emulator.h."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
EMULATION = Path(__file__).with_name("cuda_emulation")
# As the GPU's compiler does not: no contraction, so that a wrong result cannot hide behind another rounding.
FLAGS = ["-std=c++17", "-O1", "-fPIC", "-shared", "-Wall", "-Werror", "-Wno-unknown-pragmas", "-ffp-contract=off"]


def compile_for_cpu(path: Path) -> None:
    """Writes a shared library with the functions that the CUDA library has."""
    sources = [*sorted(ROOT.glob("csrc/*/*.cu")), EMULATION / "self_test.cu"]
    cxx = shlex.split(os.environ.get("CXX", "c++"))
    includes = [f"-I{ROOT / 'csrc'}", f"-I{EMULATION}"]
    subprocess.run([*cxx, *FLAGS, *includes, "-x", "c++", *map(str, sources), "-o", str(path)], check=True)


def struct_fields(source: str, name: str) -> list[tuple[str, str]]:
    """(type, name) of the fields of a C++ struct without methods, in order; a pointer's type ends in " *"."""
    body = re.search(rf"struct {name} {{\n(.*?)\n}};", source, re.DOTALL)[1]
    fields = []
    for declaration in re.sub(r"//[^\n]*", "", body).split(";")[:-1]:
        kind, names = re.fullmatch(r"\s*((?:const )?\w+)\s*(.*?)\s*", declaration, re.DOTALL).groups()
        for field in re.split(r",\s*", names):
            fields.append((f"{kind} *" if "*" in field else kind, field.lstrip("* ")))
    return fields
