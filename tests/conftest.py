"""One thread in each process that runs tests, no deadlines, and no way out to a model hub."""

import atexit
import fcntl
import gc
import os
import sys
from pathlib import Path

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"  # before transformers is imported
if os.environ.get("TTC_DEVICE") != "cuda":  # where Triton's kernels run on the GPU, as tests/gpu asserts
    os.environ["TRITON_INTERPRET"] = "1"  # before torch._dynamo, which brings triton, is imported
# Before torch brings OpenMP. As many processes run tests as there are processors: a thread that spins while it waits
# for another that is not running costs thirty times what it computes.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["OMP_WAIT_POLICY"] = "passive"
# Compiling a model for training takes a minute and a half, the trainings of the tests seconds.
os.environ["TORCHDYNAMO_DISABLE"] = "1"

from hypothesis import settings

settings.register_profile("shared machine", deadline=None)
settings.load_profile("shared machine")

# Folders and files that `make quick` leaves out: each takes over three seconds of a processor.
SLOW = [
    *("benchmarks", "docs", "plugins", "serve", "training", "test_home.py", "test_package.py", "test_revisions.py"),
    *(
        f"cli/test_{name}.py"
        for name in ("calibrate", "demo", "formats", "merge", "on_error", "options", "real_rows", "search", "train")
    ),
    *(
        f"model/test_{name}.py"
        for name in ("families", "fields", "hub", "launches", "memory", "mutations", "products", "ranks")
    ),
    *("remote/test_own_server.py", "runtime/executors", "tasks/test_grading.py", "prompts/test_template.py"),
    *(f"verifiers/test_{name}.py" for name in ("engine", "families", "formats")),
    *(
        f"runtime/test_{name}.py"
        for name in ("abort", "independence", "limits", "one_thread", "preemption", "shared_steps")
    ),
    *(
        f"ttc_kernels/test_{name}.py"
        for name in ("choice", "cuda_build", "cuda_attention", "cuda_kernels", "cuda_sample", "kv_tree", "sample_head")
    ),
    *(f"ttc_kernels/test_{name}.py" for name in ("tensors", "tree_attention")),
    *(
        f"ttc_kernels/test_triton_{name}.py"
        for name in ("compiles", "fused_linear", "kv", "rows", "sample", "step_score")
    ),
    "ttc_kernels/test_triton_tree_attention.py",
]
# Files with tests of many seconds each: begun last, one of them would keep a single process at work.
FIRST = ("test_gpu.py", "test_ranks.py", "test_triton_compiles.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    slow = {Path(__file__).parent / name for name in SLOW}
    assert all(path.exists() for path in slow), "SLOW names files that are no more"
    for item in items:
        if not slow.isdisjoint((item.path, *item.path.parents)):
            item.add_marker(pytest.mark.slow)
    items.sort(key=lambda item: item.path.name not in FIRST)


def pytest_collection_finish(session: pytest.Session) -> None:
    """Keeps garbage collections, of which transformers and accelerate make hundreds, from searching all that is there
    before the first test: modules, and the tests themselves."""
    gc.collect()
    gc.freeze()
    # Not when a session ends, as one within a test does (benchmarks/gpu runs pytest): all others would be searched.
    atexit.register(gc.unfreeze)  # triton's modules say what they find alive when they are taken down


@pytest.fixture(autouse=True)
def one_thread():
    """For the next test too, where a benchmark that ran in this process has set another number."""
    yield
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)


@pytest.fixture(scope="session")
def emulated(tmp_path_factory: pytest.TempPathFactory):
    """The CUDA kernels compiled for the CPU, by the first of the processes that run the tests; the others wait."""
    from tests.ttc_kernels.cuda_library import compile_for_cpu  # brings torch
    from ttc_kernels.cuda import Library

    folder = tmp_path_factory.getbasetemp()
    path = (folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder) / "emulated.so"
    with open(path.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            compile_for_cpu(path)
    return Library(path, device_type="cpu")
