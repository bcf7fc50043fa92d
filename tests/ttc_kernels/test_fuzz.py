"""A few of the random calls that `make fuzz` makes in its minutes."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from tests.ttc_kernels.fuzz import OPS, call_ops, calls, variants


def test_random_calls():
    counts: Counter = Counter()
    call_ops(random.Random(1), counts, num_calls=300)
    assert sum(counts.values()) == 300
    assert {name.split()[0] for name in counts} == set(OPS)
    assert {name.split()[1] for name in counts} == {"done", "refused"}


@pytest.mark.parametrize("op", OPS)
def test_a_tensor_that_is_needed_cannot_be_none(op):
    """The native code takes None for a null pointer."""
    function, arguments = next((function, given) for name, function, given in calls(random.Random(0)) if name == op)
    optional = {".residual", ".norm", ".bias", ".head.bias", ".mask", ".head[1]"}
    for name, spoilt in variants(arguments, lambda x: None):
        if name not in optional:
            with pytest.raises((ValueError, TypeError, AttributeError)):
                function(**spoilt)
