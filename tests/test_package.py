"""What is shipped, what may import what, and which versions are admitted."""

import importlib
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import entry_points, version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

import ttc_kernels

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("engine", "ttc_kernels")
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def run(*command: str | Path, cwd: Path = ROOT, **env: str) -> subprocess.CompletedProcess[str]:
    """Runs a command and keeps what it prints."""
    return subprocess.run(
        [str(part) for part in command], cwd=cwd, env=os.environ | env, capture_output=True, text=True
    )


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the working tree; what is compiled comes along, so that nothing is compiled again."""
    copy = tmp_path_factory.mktemp("copy") / "tree"
    unwanted = shutil.ignore_patterns(".venv", ".git", "__pycache__", "out", "dist", "lib.*", "bdist.*", ".*_cache")
    shutil.copytree(ROOT, copy, ignore=unwanted)
    return copy


@pytest.fixture(scope="module")
def wheel(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built by pip from the copy, without a network."""
    folder = tmp_path_factory.mktemp("wheel")
    pip = (sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", folder)
    built = run(*pip, ".", cwd=tree, PIP_NO_INDEX="1")
    assert built.returncode == 0, built.stdout + built.stderr
    return next(folder.glob("*.whl"))


def test_wheel_holds_the_two_packages_and_nothing_else(tree: Path, wheel: Path) -> None:
    shipped = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    sources = (path for package in PACKAGES for path in (tree / package).rglob("*") if path.is_file())
    assert shipped == {path.relative_to(tree).as_posix() for path in sources}
    assert any(name.startswith("ttc_kernels/_native.") for name in shipped)
    pickles = {".bin", ".ckpt", ".pickle", ".pkl", ".pt", ".pth"}
    assert not [name for name in shipped if Path(name).suffix in pickles]


def test_wheel_runs_without_the_repository_and_with_one_openmp(wheel: Path, tmp_path: Path) -> None:
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    code = (
        "import engine, ttc_kernels; print(engine.__file__, ttc_kernels._native.__file__)\n"
        "paths = {line.split()[-1] for line in open('/proc/self/maps') if '/' in line}\n"
        "print(*(p for p in paths if any(n in p.rsplit('/')[-1] for n in ('libgomp', 'libiomp', 'libomp'))))"
    )
    done = run(sys.executable, "-c", code, cwd=tmp_path, PYTHONPATH=str(tmp_path / "site"))
    assert done.returncode == 0, done.stderr
    modules, runtimes = done.stdout.splitlines()
    assert all(path.startswith(str(tmp_path / "site")) for path in modules.split())
    assert len(runtimes.split()) == 1, "two OpenMP runtimes"


def test_imports_point_down_the_floors(tree: Path) -> None:
    lint = Path(sys.executable).with_name("lint-imports")
    kept = run(lint, "--no-cache", cwd=tree)
    assert kept.returncode == 0, kept.stdout
    upward = tree / "engine" / "model" / "upward.py"
    upward.write_text("import engine.search\n")
    broken = run(lint, "--no-cache", cwd=tree)
    upward.unlink()
    assert broken.returncode == 1
    assert "engine.model.upward" in broken.stdout


def test_ops_are_the_folders() -> None:
    folder = Path(ttc_kernels.__file__).parent
    assert set(ttc_kernels.OPS) == {path.parent.name for path in folder.glob("*/__init__.py")}
    for op in ttc_kernels.OPS:
        assert callable(getattr(importlib.import_module(f"ttc_kernels.{op}.api"), op))
        importlib.import_module(f"ttc_kernels.{op}.reference")
        cases = importlib.import_module(f"ttc_kernels.{op}.cases")
        assert cases.tiny()
        assert callable(cases.full)


@pytest.mark.parametrize(
    ("package", "admitted", "refused"),
    [
        ("torch", ["2.11.0", "2.12.1", "2.13.0", "2.13.0+cpu"], ["2.10.0", "3.0.0"]),
        ("transformers", ["5.17.0", "5.23.0"], ["4.57.0", "6.0.0"]),
    ],
)
def test_version_ranges(package: str, admitted: list[str], refused: list[str]) -> None:
    requirements = {r.name: r.specifier for r in map(Requirement, PYPROJECT["project"]["dependencies"])}
    assert all(requirements[package].contains(number) for number in [*admitted, version(package)])
    assert not any(requirements[package].contains(number) for number in refused)


def test_python_range() -> None:
    requires = SpecifierSet(PYPROJECT["project"]["requires-python"])
    assert [minor for minor in range(9, 15) if f"3.{minor}" in requires] == [11, 12, 13, 14]


def test_installed_distribution() -> None:
    assert version("ttc-engine") == PYPROJECT["project"]["version"]
    (script,) = entry_points(group="console_scripts", name="ttc")
    assert callable(script.load())


def test_build_needs_no_torch() -> None:
    assert not any("torch" in requirement for requirement in PYPROJECT["build-system"]["requires"])
    sources = [path.read_text() for path in (ROOT / "csrc").rglob("*") if path.suffix in (".cpp", ".h")]
    assert not any(f"#include <{name}" in text for text in sources for name in ("torch/", "ATen/", "c10/"))


def test_native_module_brings_no_openmp_of_its_own() -> None:
    code = (
        "import importlib.util as util, sys\n"
        "spec = util.spec_from_file_location('ttc_kernels._native', sys.argv[1])\n"
        "util.module_from_spec(spec)"
    )
    alone = run(sys.executable, "-c", code, ttc_kernels._native.__file__)
    assert alone.returncode == 1
    assert re.search(r"undefined symbol: (GOMP|omp)_", alone.stderr)
