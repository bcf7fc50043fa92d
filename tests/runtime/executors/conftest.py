import pytest
import torch

from ttc_kernels.choice import load_triton


@pytest.fixture
def few_programs(monkeypatch):
    """Attention by Triton is shared out among four programs: its interpreter runs one after the other."""
    monkeypatch.setattr(load_triton("tree_attention", torch.empty(0)), "NUM_WANTED", 4)
