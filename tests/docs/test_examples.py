"""Every example of the pages under `docs/` does what the page shows.

Marks that a page may put before a block, as HTML comments:
`file: NAME` writes the block to that file; `needs the Hub` runs it offline, where it must get as far as the Hub.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from engine.cli import main
from tests.docs.builders import lay_out

ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "docs").glob("*.md"))
_BLOCK = re.compile(r"(?:^<!-- (?P<mark>[^\n]*) -->\n)?^```(?P<kind>\w*)\n(?P<text>.*?)^```$", re.M | re.S)
_HUB = "needs the Hub"


@dataclass(frozen=True)
class Block:
    kind: str  # console, bash, python, text, or a file's
    text: str
    mark: str | None
    line: int


def blocks(page: Path) -> list[Block]:
    text = page.read_text()
    found = _BLOCK.finditer(text)
    return [Block(each["kind"], each["text"], each["mark"], text.count("\n", 0, each.start()) + 1) for each in found]


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return lay_out(tmp_path_factory.mktemp("docs"))


@pytest.fixture
def here(models, tmp_path, monkeypatch) -> Path:
    """A folder laid out as the pages assume, and an empty cache of the Hub."""
    from huggingface_hub import constants

    for each in models.iterdir():
        (tmp_path / each.name).symlink_to(each)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "datasets"))
    if "datasets" in sys.modules:
        monkeypatch.setattr(sys.modules["datasets"].config, "HF_DATASETS_CACHE", tmp_path / "datasets")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_page(page: Path, here: Path):
    names: dict[str, object] = {}
    shown = ""  # by the last block of Python or of a shell
    for block in blocks(page):
        where = f"{page.name}, line {block.line}"
        if block.mark and block.mark.startswith("file: "):
            (here / block.mark.removeprefix("file: ")).write_text(block.text)
        elif block.kind == "console":
            run_console(block, where)
        elif block.kind == "python":
            assert block.mark is None, where
            shown = run_python(block, names, where)
        elif block.kind == "bash":
            shown = run_bash(block, here, where)
        else:
            assert (block.kind, block.mark) == ("text", None), f"{where}: nothing checks this block"
            assert_shown(block.text.splitlines(), shown, where)


def run_console(block: Block, where: str) -> None:
    """Runs its commands; the lines below each must be in what it prints."""
    assert block.mark in (None, _HUB), where
    for part in re.split(r"^\$ ", block.text, flags=re.M)[1:]:
        command, *expected = part.splitlines()
        program, *arguments = shlex.split(command)
        assert program == "ttc", where
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            status = main(arguments)
        printed = f"{err.getvalue()}{out.getvalue()}"
        if block.mark == _HUB:
            assert (status, "Hub" in printed, printed.count("\n")) == (2, True, 1), f"{where}: {printed}"
        else:
            assert status == (2 if "error: " in part else 0), f"{where}: {printed}"
            assert expected, f"{where}: shows nothing of what {command!r} prints"
            assert_shown(expected, printed, where)


def run_python(block: Block, names: dict[str, object], where: str) -> str:
    """Runs a block after those before it on its page; what it prints."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(compile(block.text, where, "exec"), names)
    return out.getvalue()


def run_bash(block: Block, here: Path, where: str) -> str:
    """Runs a block in a shell whose `ttc` is this one; what it prints on stdout at its end."""
    program = here / "bin" / "ttc"
    program.parent.mkdir(exist_ok=True)
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m engine.cli "$@"\n')
    program.chmod(0o755)
    places = {"PATH": f"{program.parent}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    run = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", block.text], env=os.environ | places, capture_output=True, text=True
    )
    assert run.returncode == 0, f"{where}: {run.stderr}"
    return run.stdout


def assert_shown(expected: list[str], printed: str, where: str) -> None:
    """Each line is among those printed, in this order; `...` stands for any text."""
    lines = iter(printed.splitlines())
    for wanted in expected:
        pattern = ".*".join(map(re.escape, wanted.split("...")))
        assert any(re.fullmatch(pattern, line.rstrip()) for line in lines), f"{where}: no {wanted!r} in\n{printed}"


def test_pages_point_at_each_other_and_are_all_listed():
    for page in PAGES:
        for name in re.findall(r"\]\((\w[\w./-]*\.md)\)", page.read_text()):
            assert (page.parent / name).is_file(), f"{page.name} names {name}"
    listed = set(re.findall(r"\]\((\w+\.md)\)", (PAGES[0].parent / "README.md").read_text()))
    assert listed == {page.name for page in PAGES} - {"README.md"}


def test_a_page_that_is_wrong_fails(here):
    """The checks of this file can fail."""
    grade = "$ ttc grade gsm8k.jsonl\n"
    with pytest.raises(AssertionError, match="completions"):
        run_console(Block("console", f"{grade}4 rows ...\n", None, 1), "x")
    with pytest.raises(AssertionError, match="no 'error: something else'"):
        run_console(Block("console", f"{grade}error: something else\n", None, 1), "x")
    with pytest.raises(AssertionError, match="shows nothing"):
        run_console(Block("console", "$ ttc --help\n", None, 1), "x")
    with pytest.raises(AssertionError, match="no 'b'"):
        assert_shown(["a", "b"], "b\na\n", "x")
