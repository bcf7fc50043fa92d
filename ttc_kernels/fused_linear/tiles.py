"""How the Triton kernel divides a product of few rows: its tiles, the parts of its sums, and where these meet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch

NUM_WANTED = 264  # programs, about: two for each processor of an H100
MIN_STEPS = 3  # of a split: nothing hides the loads of the first one


@dataclass(frozen=True)
class Tiles:
    """A program computes (block_rows, block_out) outputs, over one of `num_splits` parts of the width."""

    num_row_blocks: int
    num_out_blocks: int
    num_splits: int
    num_products: int  # 2 where gates and ups are computed side by side
    block_rows: int
    block_out: int
    block_width: int  # of a step
    num_stages: int  # steps whose loads are under way at a time

    @property
    def num_tiles(self) -> int:
        return self.num_row_blocks * self.num_out_blocks

    @property
    def num_squares(self) -> int:
        """Sums of squares that the splits leave to the last one."""
        return 0 if self.num_splits == 1 else self.num_tiles * self.num_splits * self.block_rows

    @property
    def num_partial(self) -> int:
        """Partial products that they leave to it."""
        return self.num_squares * self.num_products * self.block_out


@lru_cache(maxsize=1024)
def tiles_of(num_rows: int, num_out: int, width: int, itemsize: int, is_gated: bool) -> Tiles:
    """The division of a product, all of it the same for up to 16 rows, for up to 32, and for more: so are a row's bits.

    Rows are read once for every block of outputs, if only from the L2 cache: wide blocks where there are many rows.
    """
    block_rows = 16 if num_rows <= 16 else 32 if num_rows <= 32 else 64
    block_out = 32 if is_gated or block_rows < 64 else 64
    block_width = (256 if block_rows == 16 else 128) // itemsize
    num_out_blocks, num_steps = -(-num_out // block_out), -(-width // block_width)
    num_splits = max(1, min(NUM_WANTED // num_out_blocks, num_steps // MIN_STEPS))
    return Tiles(
        num_row_blocks=-(-num_rows // block_rows),
        num_out_blocks=num_out_blocks,
        num_splits=-(-num_steps // -(-num_steps // num_splits)),  # none of them empty
        num_products=2 if is_gated else 1,
        block_rows=block_rows,
        block_out=block_out,
        block_width=block_width,
        num_stages=4,
    )


class Scratch:
    """Memory in which the splits of products meet, one product after the other on one stream.

    Its address does not change, so that a captured graph may use it. The counts are zero between launches.
    """

    def __init__(self, tilings: Sequence[Tiles], device: torch.device):
        self.device = device
        self.partial = torch.empty(max(tiles.num_partial for tiles in tilings), device=device)
        self.squares = torch.empty(max(tiles.num_squares for tiles in tilings), device=device)
        num_counts = max(tiles.num_tiles for tiles in tilings)
        self.arrived = torch.zeros(num_counts, dtype=torch.int32, device=device)

    def holds(self, tiles: Tiles, device: torch.device) -> bool:
        """Whether a product on the device has room."""
        needed = tiles.num_partial, tiles.num_squares, tiles.num_tiles
        buffers = self.partial, self.squares, self.arrived
        return self.device == device and all(len(x) >= num for x, num in zip(buffers, needed, strict=True))
