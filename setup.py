"""Builds ttc_kernels._native, the one compiled module: CPU kernels, KV tree and attention plan.

`build_ext` writes build/native/build.ninja and runs ninja on it, so a second build compiles only what
changed. Everything else about the package stands in pyproject.toml. Needs a C++17 compiler (CXX, or c++)
with OpenMP and the headers of this Python; torch is not needed.
"""

from __future__ import annotations

import os
import platform
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pybind11
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

# The build's own paths are relative to this folder: a copied tree, its build folder included, stays built.
os.chdir(Path(__file__).resolve().parent)

# No -ffast-math and no contraction: a row's bits must follow from the source alone, not from how the compiler
# happened to fuse a loop and its tail. Kernels that want a fused multiply-add say so.
COMPILE_FLAGS = [
    "-std=c++17",
    "-O3",
    "-fPIC",
    "-fopenmp",
    "-fvisibility=hidden",
    "-ffp-contract=off",
    "-fno-math-errno",
    "-Wall",
    "-Wextra",
]
# Not linked with -fopenmp: the module takes the OpenMP runtime that torch brings (ttc_kernels/__init__.py):
# two pools of spinning threads in one process ruin both. `-z now` turns a missing symbol into an ImportError
# instead of a crash at the first parallel region.
LINK_FLAGS = ["-shared", "-Wl,-z,now"]
AVX512_FLAGS = [
    *("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx2", "-mfma", "-mf16c"),
    *("-Wno-uninitialized", "-Wno-maybe-uninitialized"),  # the AVX-512 headers of gcc 12 trip these
]
ISA_FLAGS = {
    "_avx2": ["-mavx2", "-mfma", "-mf16c"],
    "_avx512": AVX512_FLAGS,
    "_avx512bf16": [*AVX512_FLAGS, "-mavx512bf16"],
}

RULES = """\
rule compile
  command = {cxx} -MMD -MF $out.d {flags} $isa -c $in -o $out
  depfile = $out.d
  deps = gcc
  description = compile $in

rule link
  command = {cxx} {link} $in -o $out
  description = link $out
"""


def isa_flags(source: Path) -> list[str]:
    """Extra flags of the files that ISA_FLAGS names, which compile to nothing elsewhere than on x86-64."""
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return []
    return next((flags for suffix, flags in ISA_FLAGS.items() if source.stem.endswith(suffix)), [])


def compiler() -> list[str]:
    """The compiler's command line. Raises CompileError where it, or the headers of Python, are missing."""
    cxx = shlex.split(os.environ.get("CXX", "c++"))
    if not cxx or shutil.which(cxx[0]) is None:
        raise CompileError(f"no C++ compiler: {' '.join(cxx)!r} not found (install g++, or set CXX)")
    header = Path(sysconfig.get_path("include"), "Python.h")
    if not header.exists():
        raise CompileError(f"no headers of Python {platform.python_version()}: {header} not found")
    return cxx


def quote(text: str | Path) -> str:
    """A path as ninja writes it."""
    return str(text).replace("$", "$$").replace(" ", "$ ").replace(":", "$:")


class NinjaBuild(build_ext):
    """Compiles through ninja, in a folder that outlives the command."""

    def build_extension(self, ext: Extension) -> None:
        folder = Path("build/native")
        folder.mkdir(parents=True, exist_ok=True)
        module = folder / Path(self.get_ext_filename(ext.name)).name
        (folder / "build.ninja").write_text(self.ninja_file(ext, folder, module))
        try:
            subprocess.run([sys.executable, "-m", "ninja", "-f", str(folder / "build.ninja")], check=True)
        except subprocess.CalledProcessError as error:
            raise CompileError(f"ninja exited with status {error.returncode}") from None
        target = Path(self.get_ext_fullpath(ext.name))
        target.parent.mkdir(parents=True, exist_ok=True)
        fresh = target.with_name(f".{target.name}.{os.getpid()}")
        shutil.copyfile(module, fresh)
        os.replace(fresh, target)  # a process that has the old module mapped keeps it

    def ninja_file(self, ext: Extension, folder: Path, module: Path) -> str:
        """The text of build.ninja: one object per source, one module."""
        includes = [f"-I{path}" for path in ("csrc", pybind11.get_include(), sysconfig.get_path("include"))]
        # One object folder per Python and platform, as pybind11 ties the objects to both.
        objects_folder = folder / str(sysconfig.get_config_var("SOABI"))
        cxx = shlex.join(compiler()).replace("$", "$$")
        rules = RULES.format(
            cxx=cxx,
            flags=shlex.join(COMPILE_FLAGS + includes).replace("$", "$$"),
            link=shlex.join(LINK_FLAGS).replace("$", "$$"),
        )
        lines = [f"builddir = {quote(folder)}", rules]
        objects = []
        for source in map(Path, ext.sources):
            objects.append(quote(objects_folder / source.with_suffix(".o")))
            lines.append(f"build {objects[-1]}: compile {quote(source)}")
            lines.append(f"  isa = {' '.join(isa_flags(source))}")
        lines.append(f"build {quote(module)}: link {' '.join(objects)}")
        return "\n".join(lines) + "\n"


setup(
    ext_modules=[
        Extension(
            "ttc_kernels._native",
            sources=["csrc/bindings.cpp", *sorted(map(str, Path("csrc").glob("*/*.cpp")))],
            depends=sorted(map(str, Path("csrc").rglob("*.h"))),
        )
    ],
    cmdclass={"build_ext": NinjaBuild},
)
