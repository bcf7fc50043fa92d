"""A few of the random calls that `make fuzz` makes in its minutes."""

from __future__ import annotations

import random
from collections import Counter

from tests.ttc_kernels.fuzz import OPS, call_ops


def test_random_calls():
    counts: Counter = Counter()
    call_ops(random.Random(1), counts, num_calls=300)
    assert sum(counts.values()) == 300
    assert {name.split()[0] for name in counts} == set(OPS)
    assert {name.split()[1] for name in counts} == {"done", "refused"}
