"""The tests that docs/reliability.md names are there, and every promise has one."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROWS = re.findall(r"^\| (\d+) \|.*?\|(.*)\|$", (ROOT / "docs" / "reliability.md").read_text(), re.M)


def test_there_are_twenty():
    assert [int(number) for number, _ in ROWS] == [*range(1, 21)]


@pytest.mark.parametrize(("number", "shown"), ROWS, ids=lambda part: part if part.isdigit() else "")
def test_what_is_named_is_there(number: str, shown: str):
    named = re.findall(r"`(\S+?\.py)(?:::(\w+))?`", shown)
    assert named
    for file, name in named:
        text = (ROOT / "tests" / file).read_text()
        assert not name or re.search(rf"^(def {name}\(|{name} = )", text, re.M), f"{file} has no {name}"
