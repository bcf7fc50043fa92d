"""What the decoder's padding stands on: torch's matrix product gives a row the same bits in any batch >= 16."""

import pytest
import torch

from engine.model.products import padded_mm
from engine.model.workspace import MIN_ROWS

# (inputs, outputs): the home models' layers and heads, the tiny ones', and the widest of a 7B model.
SHAPES = [(32, 64), (32, 25), (96, 288), (96, 25), (96, 512), (256, 96), (1536, 256), (8960, 48)]
NUM_ROWS = [16, 17, 18, 21, 24, 31, 32, 33, 47, 48, 63, 64, 65, 96, 100, 127, 128, 129, 200, 255, 256, 257, 511]
MOST = 1027


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize(("num_in", "num_out"), SHAPES)
def test_a_row_has_the_same_bits_in_every_batch(num_in, num_out, dtype):
    generator = torch.Generator().manual_seed(num_in + num_out)
    x = torch.randn(MOST, num_in, generator=generator).to(dtype)
    weight = torch.randn(num_out, num_in, generator=generator).to(dtype)
    whole = torch.empty(MOST, num_out, dtype=dtype)
    padded_mm(x, weight, whole)
    assert NUM_ROWS[0] == MIN_ROWS
    for num_rows in NUM_ROWS:
        for first in (0, 1, MOST - num_rows):  # a row's place in the batch does not matter either
            out = torch.full((num_rows, num_out), float("nan"), dtype=dtype)
            padded_mm(x[first : first + num_rows], weight, out)
            assert torch.equal(out, whole[first : first + num_rows]), f"{num_rows} rows from row {first}"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_a_row_does_not_feel_nan_in_another(dtype):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(40, 96, generator=generator).to(dtype)
    weight = torch.randn(50, 96, generator=generator).to(dtype)
    clean, dirty = torch.empty(2, 40, 50, dtype=dtype)
    padded_mm(x, weight, clean)
    x[7] = float("nan")
    padded_mm(x, weight, dirty)
    assert dirty[7].isnan().all()
    others = [row for row in range(40) if row != 7]
    assert torch.equal(dirty[others], clean[others])
