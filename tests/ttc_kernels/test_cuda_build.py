"""How the CUDA library is built, what the build refuses, and how it is loaded and called."""

import ctypes
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.ttc_kernels.cuda_library import ROOT, struct_fields
from ttc_kernels import cuda
from ttc_kernels.copy_blocks.cuda import CopyBlocksArgs, copy_blocks
from ttc_kernels.sample.cuda import FilteredSampleArgs, SampleHeadArgs
from ttc_kernels.step_score.cuda import StepScoreArgs
from ttc_kernels.tree_attention.cuda import AttentionArgs

LIBRARY = ROOT / "ttc_kernels" / "_cuda.so"
KERNEL = "_ZN3ttc3gpu20tree_attention_unitsINS0_4Bf16ELi128EEEvNS0_13AttentionArgsE"
PTXAS = f"""\
ptxas info    : Compiling entry function '_Z5otherv' for 'sm_80'
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Compiling entry function '{KERNEL}' for 'sm_90a'
ptxas info    : Function properties for {KERNEL}
    %d bytes stack frame, %d bytes spill stores, %d bytes spill loads
ptxas info    : Used 249 registers, used 1 barriers
"""


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what is compiled, with the CPU module's objects, so that only CUDA is compiled again."""
    copy = tmp_path_factory.mktemp("cuda_build")
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy2(ROOT / name, copy)
    for name in ("csrc", "ttc_kernels", "build/native"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    return copy


def fake_nvcc(folder: Path, log: str) -> Path:
    """A program that makes empty objects and says what nvcc would."""
    folder.mkdir()
    (folder / "log").write_text(log)
    program = folder / "nvcc"
    program.write_text(
        '#!/bin/sh\nwhile [ $# -gt 0 ]; do\n  if [ "$1" = -o ]; then echo built > "$2"; fi\n  shift\ndone\n'
        f"cat '{folder / 'log'}'\n"
    )
    program.chmod(0o755)
    return program


def build(tree: Path, **env: str) -> subprocess.CompletedProcess[str]:
    """`setup.py build_ext --inplace` with these variables and none of the caller's that choose a CUDA compiler."""
    kept = {k: v for k, v in os.environ.items() if k not in ("NVCC", "CUDA_HOME", "TTC_CUDA")}
    command = [sys.executable, "setup.py", "--quiet", "build_ext", "--inplace"]
    return subprocess.run(command, cwd=tree, env=kept | env, capture_output=True, text=True)


@pytest.mark.parametrize("sizes", [(8, 0, 0), (0, 4, 0), (0, 0, 12)])
def test_a_spill_or_a_stack_frame_fails_the_build(tree, tmp_path, sizes):
    done = build(tree, NVCC=str(fake_nvcc(tmp_path / "cuda", PTXAS % sizes)))
    assert done.returncode != 0
    assert f"does not fit its registers: {KERNEL} for sm_90a: {sizes[0]} bytes stack frame" in done.stderr


def test_a_silent_ptxas_fails_the_build(tree, tmp_path):
    done = build(tree, NVCC=str(fake_nvcc(tmp_path / "cuda", "")))
    assert done.returncode != 0
    assert "ptxas tells nothing about tree attention" in done.stderr


def test_nvcc_is_found_and_can_be_left_out(tree, tmp_path):
    """By NVCC, by CUDA_HOME, on the PATH; off builds without it and takes away what an earlier build left."""
    built = tree / "ttc_kernels" / "_cuda.so"
    folder = tmp_path / "home" / "bin"
    folder.parent.mkdir()
    nvcc = fake_nvcc(folder, PTXAS % (0, 0, 0))
    path = os.environ["PATH"]
    for env in ({"NVCC": str(nvcc)}, {"CUDA_HOME": str(tmp_path / "home")}, {"PATH": f"{folder}:{path}"}):
        done = build(tree, **env)
        assert done.returncode == 0, done.stdout + done.stderr
        assert built.read_text() == "built\n"
        left_out = build(tree, **env, TTC_CUDA="off")
        assert left_out.returncode == 0, left_out.stdout + left_out.stderr
        assert not built.exists()


def test_wrong_settings_are_refused(tree):
    missing = build(tree, NVCC="no-such-nvcc")
    assert missing.returncode != 0
    assert "NVCC names no program: 'no-such-nvcc'" in missing.stderr
    mode = build(tree, TTC_CUDA="maybe")
    assert mode.returncode != 0
    assert "TTC_CUDA must be 'auto' or 'off', got 'maybe'" in mode.stderr
    sanitizer = build(tree, TTC_SANITIZE="thread")
    assert sanitizer.returncode != 0
    assert "TTC_SANITIZE must be 'address' or empty, got 'thread'" in sanitizer.stderr


def test_python_and_the_sources_agree_on_the_functions():
    sources = "".join(path.read_text() for path in sorted(ROOT.glob("csrc/*/*.cu")))
    exported = re.findall(r"TTC_EXPORT const char\* ttc_(\w+)\(([^)]*)\)", sources)
    assert {name for name, _ in exported} == set(cuda.CUDA_OPS)
    for _, parameters in exported:
        assert re.fullmatch(r"int64_t device, int64_t stream, const ttc::gpu::\w+Args\* args", parameters)


@pytest.mark.parametrize("args", [AttentionArgs, CopyBlocksArgs, FilteredSampleArgs, SampleHeadArgs, StepScoreArgs])
def test_python_and_the_sources_agree_on_the_arguments(args):
    """The fields of each struct: their names, types and order."""
    paths = [*ROOT.glob("csrc/*/*.cu"), *ROOT.glob("csrc/*/*.h")]
    (source,) = [text for text in (path.read_text() for path in paths) if f"struct {args.__name__} {{" in text]
    types = {"int32_t": ctypes.c_int32, "int64_t": ctypes.c_int64, "float": ctypes.c_float}
    fields = struct_fields(source, args.__name__)
    assert [(name, ctypes.c_void_p if "*" in kind else types[kind]) for kind, name in fields] == list(args._fields_)


def test_the_library_is_there_where_it_was_built():
    """And where it was not, asking for it says so."""
    if not LIBRARY.exists():
        with pytest.raises(RuntimeError, match=r"built without CUDA: _cuda\.so is missing"):
            cuda.library()
        return
    assert cuda.library().device_type == "cuda"
    code = (
        "import ctypes, sys; ctypes.CDLL(sys.argv[1])\n"
        "print(*(line.split()[-1] for line in open('/proc/self/maps') if 'cudart' in line or 'torch' in line))"
    )
    loaded = subprocess.run([sys.executable, "-c", code, str(LIBRARY)], capture_output=True, text=True)
    assert (loaded.returncode, loaded.stdout.strip()) == (0, "")
    for hidden in ("cudaLaunchKernel", "cudaGetDevice"):  # its CUDA runtime is its own
        assert not hasattr(ctypes.CDLL(str(LIBRARY)), hidden)


def test_a_library_of_another_version_says_so(tmp_path):
    """An older one has not all functions; what was copied in part is no library at all."""
    broken = tmp_path / "_cuda.so"
    broken.write_bytes(b"\x7fELF")
    for path in (Path("libc.so.6"), broken):
        with pytest.raises(RuntimeError, match=rf"^{path.name} is broken or of another version, build it again: .+"):
            cuda.Library(path)


class Failing(cuda.Library):
    """A library whose launches fail, wherever the tests run: its device does not exist."""

    def check_device(self, op: str, **tensors: torch.Tensor | None) -> torch.device:
        return torch.device("cpu", 99)


def test_a_failed_launch_names_the_op_and_its_shapes(emulated):
    caches, pairs = [torch.zeros(2, 3, 16)], torch.tensor([[0, 1]], dtype=torch.int32)
    lib = Failing(emulated.path, "cpu")
    with pytest.raises(RuntimeError, match=r"copy_blocks: cudaErrorInvalidDevice from CUDA for 1 pairs .*\(2, 3, 16\)"):
        copy_blocks(caches, pairs, lib=lib)
    if LIBRARY.exists():
        with pytest.raises(RuntimeError, match=r"copy_blocks: cudaError\w+ from CUDA for one block"):
            cuda.library().call(
                "copy_blocks", torch.device("cpu", 99), lambda: "one block", CopyBlocksArgs(num_pairs=1)
            )


def test_shapes_are_described_only_where_a_launch_fails(emulated):
    args = CopyBlocksArgs(num_pairs=0)

    def shapes() -> str:
        raise AssertionError("nothing has failed")

    emulated.call("copy_blocks", torch.device("cpu"), shapes, args)


def test_every_kernel_waits_for_the_one_before_it():
    """From sm_90 on a kernel may be started before the one whose results it reads has ended."""
    paths = [*ROOT.glob("csrc/*/*.cu"), *ROOT.glob("csrc/*/*_gpu.h")]
    sources = "".join(path.read_text() for path in paths)
    bodies = re.findall(r"\nTTC_KERNEL\(\w+\) \w+\([^)]*\) \{\n(.*)", sources)
    assert len(bodies) == sources.count("\nTTC_KERNEL(") > 4
    assert {body.strip() for body in bodies} == {"await_earlier_kernels();"}


def test_tensors_must_lie_on_one_device_of_the_right_kind(emulated):
    lib, x = emulated, torch.zeros(1)
    assert lib.check_device("op", x=x, bias=None) == x.device
    with pytest.raises(
        ValueError, match="op: the CUDA kernel takes tensors on one cpu device, got x on cpu, y on meta"
    ):
        lib.check_device("op", x=x, y=x.to("meta"))
