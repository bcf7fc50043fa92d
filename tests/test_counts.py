"""Numbers as users give them, and values as messages show them."""

import pytest

from engine.counts import check_count, check_real, shown
from engine.errors import UserError

HUGE = 10**5000  # Python refuses to write down so many digits


class Unshown:
    def __repr__(self) -> str:
        raise RuntimeError


@pytest.mark.parametrize("value", [[HUGE], HUGE, -HUGE, "x" * 100_000, {"a": [HUGE]}, Unshown(), [1] * 1000], ids=type)
def test_a_message_is_short_whatever_it_is_about(value):
    for check in (check_count, check_real):
        if check is check_real and isinstance(value, int):
            continue  # a number, if an infinite one
        with pytest.raises(UserError, match=r"^n must be ") as raised:
            check("n", value, *([1, 5] if check is check_count else []))
        assert len(str(raised.value)) < 130
    assert 1 <= len(shown(value)) <= 80


def test_short_values_are_shown_as_they_are():
    assert [shown(value) for value in (5, "x", None, [1], 2.5, True)] == ["5", "'x'", "None", "[1]", "2.5", "True"]
    assert shown(10**100) == "a number of 333 bits"
