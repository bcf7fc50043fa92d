"""Builds ttc_kernels._native (CPU kernels, KV tree, attention plan) and, with nvcc, ttc_kernels/_cuda.so.

`build_ext` writes build/native/build.ninja and runs ninja on it, so a second build compiles only what
changed. Everything else about the package stands in pyproject.toml. Needs a C++17 compiler (CXX, or c++)
with OpenMP and the headers of this Python; neither torch nor a GPU is needed. nvcc is NVCC, or that of
CUDA_HOME, or the one on the PATH; TTC_CUDA=off builds without it. TTC_SANITIZE=address builds a module that stops at
the first access outside its memory (see tests/ttc_kernels/fuzz.py).
"""

from __future__ import annotations

import os
import platform
import re
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
# Nothing is optimised, so that it is built in a third of the time.
SANITIZE_FLAGS = ["-O0", "-fsanitize=address", "-fno-omit-frame-pointer", "-g1", "-Wno-maybe-uninitialized"]
AVX512_FLAGS = [
    *("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx2", "-mfma", "-mf16c"),
    *("-Wno-uninitialized", "-Wno-maybe-uninitialized"),  # the AVX-512 headers of gcc 12 trip these
]
ISA_FLAGS = {
    "_avx2": ["-mavx2", "-mfma", "-mf16c"],
    "_avx512": AVX512_FLAGS,
    "_avx512bf16": [*AVX512_FLAGS, "-mavx512bf16"],
}

# For sm_80 and newer. The library brings its own CUDA runtime, hidden from the one that torch has loaded, and uses
# no part of torch: one build serves every version of it.
NVCC_FLAGS = [
    "-std=c++17",
    "-O3",
    "-Icsrc",
    "-Xcompiler=-fPIC,-fvisibility=hidden,-Wall",
    "-gencode=arch=compute_80,code=sm_80",
    "-gencode=arch=compute_90a,code=sm_90a",
    "-gencode=arch=compute_90,code=compute_90",  # PTX, which the driver of a newer chip compiles
    "-Xptxas=-v",  # what it says of registers and spills stays beside the object
]
CUDA_LINK_FLAGS = ["-shared", "-cudart=static", "-Xlinker=--exclude-libs=ALL", "-Xlinker=-Bsymbolic"]
CUDA_LIBRARY = "_cuda.so"  # in ttc_kernels/

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
CUDA_RULES = """
rule compile_cuda
  command = {nvcc} -MMD -MF $out.d {flags} -c $in -o $out > $out.log 2>&1 || {{ cat $out.log; exit 1; }}
  depfile = $out.d
  deps = gcc
  description = compile $in

rule link_cuda
  command = {nvcc} {link} $in -o $out
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


def find_nvcc() -> str | None:
    """The CUDA compiler, or None where there is none to be used. Raises CompileError for a wrong NVCC or TTC_CUDA."""
    mode = os.environ.get("TTC_CUDA", "auto")
    if mode not in ("auto", "off"):
        raise CompileError(f"TTC_CUDA must be 'auto' or 'off', got {mode!r}")
    if mode == "off":
        return None
    if named := os.environ.get("NVCC"):
        if found := shutil.which(named):
            return found
        raise CompileError(f"NVCC names no program: {named!r}")
    home = os.environ.get("CUDA_HOME")
    return (home and shutil.which(str(Path(home, "bin", "nvcc")))) or shutil.which("nvcc")


def check_ptxas(log: str) -> None:
    """Raises CompileError where the log of a tree attention file tells of a spill or a stack frame, or of nothing.

    Either sends what the kernel keeps in registers through memory at every tile.
    """
    kernel, num_seen = "", 0
    for line in log.splitlines():
        if named := re.search(r"Compiling entry function '(\S+)' for '(\S+)'", line):
            kernel = " for ".join(named.groups())
        elif sizes := re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", line):
            num_seen += 1
            if any(map(int, sizes.groups())):
                raise CompileError(f"a kernel of tree attention does not fit its registers: {kernel}: {line.strip()}")
    if not num_seen:
        raise CompileError("ptxas tells nothing about tree attention: its log has no line on stack frames and spills")


def sanitize_flags() -> list[str]:
    """What TTC_SANITIZE adds to the compiler's and the linker's flags. Raises CompileError for a wrong one."""
    mode = os.environ.get("TTC_SANITIZE", "")
    if mode not in ("", "address"):
        raise CompileError(f"TTC_SANITIZE must be 'address' or empty, got {mode!r}")
    return SANITIZE_FLAGS if mode else []


def quote(text: str | Path) -> str:
    """A path as ninja writes it."""
    return str(text).replace("$", "$$").replace(" ", "$ ").replace(":", "$:")


def install(built: Path, target: Path) -> None:
    """Puts a built file in its place; a process that has the old one mapped keeps it."""
    target.parent.mkdir(parents=True, exist_ok=True)
    fresh = target.with_name(f".{target.name}.{os.getpid()}")
    shutil.copyfile(built, fresh)
    os.replace(fresh, target)


class NinjaBuild(build_ext):
    """Compiles through ninja, in a folder that outlives the command."""

    def build_extension(self, ext: Extension) -> None:
        folder = Path("build/sanitized" if sanitize_flags() else "build/native")
        folder.mkdir(parents=True, exist_ok=True)
        module = folder / Path(self.get_ext_filename(ext.name)).name
        nvcc = find_nvcc()
        text = self.ninja_file(ext, folder, module)
        if nvcc:
            text += self.cuda_part(nvcc, folder)
        (folder / "build.ninja").write_text(text)
        try:
            subprocess.run([sys.executable, "-m", "ninja", "-f", str(folder / "build.ninja")], check=True)
        except subprocess.CalledProcessError as error:
            raise CompileError(f"ninja exited with status {error.returncode}") from None
        target = Path(self.get_ext_fullpath(ext.name))
        install(module, target)
        library = target.with_name(CUDA_LIBRARY)
        if nvcc:
            for log in sorted((folder / "cuda").glob("tree_attention_*.o.log")):
                check_ptxas(log.read_text())
            install(folder / CUDA_LIBRARY, library)
        else:
            library.unlink(missing_ok=True)  # what an earlier build left

    def copy_extensions_to_source(self) -> None:
        """Where --inplace puts what was built: the CUDA library goes along with the module, or goes away with it."""
        super().copy_extensions_to_source()
        package = self.extensions[0].name.rpartition(".")[0]
        built = Path(self.build_lib, *package.split("."), CUDA_LIBRARY)
        target = Path(self.get_finalized_command("build_py").get_package_dir(package), CUDA_LIBRARY)
        if built.exists():
            install(built, target)
        else:
            target.unlink(missing_ok=True)

    def ninja_file(self, ext: Extension, folder: Path, module: Path) -> str:
        """The text of build.ninja: one object per source, one module."""
        includes = [f"-I{path}" for path in ("csrc", pybind11.get_include(), sysconfig.get_path("include"))]
        # One object folder per Python and platform, as pybind11 ties the objects to both.
        objects_folder = folder / str(sysconfig.get_config_var("SOABI"))
        cxx = shlex.join(compiler()).replace("$", "$$")
        rules = RULES.format(
            cxx=cxx,
            flags=shlex.join(COMPILE_FLAGS + sanitize_flags() + includes).replace("$", "$$"),
            link=shlex.join(LINK_FLAGS + sanitize_flags()).replace("$", "$$"),
        )
        lines = [f"builddir = {quote(folder)}", rules]
        objects = []
        for source in map(Path, ext.sources):
            objects.append(quote(objects_folder / source.with_suffix(".o")))
            lines.append(f"build {objects[-1]}: compile {quote(source)}")
            lines.append(f"  isa = {' '.join(isa_flags(source))}")
        lines.append(f"build {quote(module)}: link {' '.join(objects)}")
        return "\n".join(lines) + "\n"

    def cuda_part(self, nvcc: str, folder: Path) -> str:
        """What build.ninja holds besides where there is nvcc: one object per source, one library."""
        flags, link = shlex.join(NVCC_FLAGS), shlex.join(CUDA_LINK_FLAGS)
        lines = [CUDA_RULES.format(nvcc=shlex.quote(nvcc).replace("$", "$$"), flags=flags, link=link)]
        objects = []
        for source in sorted(Path("csrc").glob("*/*.cu")):
            objects.append(quote(folder / "cuda" / f"{source.stem}.o"))
            lines.append(f"build {objects[-1]}: compile_cuda {quote(source)}")
        lines.append(f"build {quote(folder / CUDA_LIBRARY)}: link_cuda {' '.join(objects)}")
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
