"""Copies to a device and back, where the device is the CPU, and what a GPU's memory is divided into."""

import numpy as np
import pytest
import torch

from engine.model import ModelConfig, read_config, resolve_device, resolve_dtype, weight_bytes
from engine.runtime.executors.transfers import Transfers
from engine.runtime.kv import GPU_SHARE, MAX_BLOCKS, KVPool, blocks_within, bytes_per_block
from tests.runtime.builders import Folders


def test_arrays_of_all_types_in_one_copy():
    transfers = Transfers(torch.device("cpu"))
    rng = np.random.default_rng(0)
    given = [
        rng.integers(0, 1000, 5).astype(np.int32),
        rng.integers(-(2**62), 2**62, 3),
        np.zeros(0, np.int32),
        rng.standard_normal(7).astype(np.float32),
    ]
    placed = transfers.put(*given)
    kept = [array.copy() for array in given]
    for array in given:
        array[:] = 0
    assert [x.dtype for x in placed] == [torch.int32, torch.int64, torch.int32, torch.float32]
    for x, array in zip(placed, kept, strict=True):
        assert np.array_equal(x.numpy(), array)
        assert not x.numel() or x.data_ptr() % 16 == 0


def test_a_fetch_keeps_what_was_there():
    source = torch.arange(3)
    fetched = Transfers(torch.device("cpu")).fetch(source)
    source.zero_()
    assert fetched.is_there
    assert fetched.arrays()[0].tolist() == [0, 1, 2]


@pytest.fixture
def config(folders: Folders) -> ModelConfig:
    return read_config(folders.policy)


def test_models_share_the_memory_that_is_left(config):
    block = bytes_per_block(config, torch.float32)
    assert block == 2 * 2 * 16 * 1 * 16 * 4  # keys and values, layers, tokens, KV heads, head dim, bytes
    assert KVPool.allocate(config, torch.float32, 3).bytes_per_block == block
    free = int(100 * block / GPU_SHARE) + 1
    assert blocks_within(free, [config], torch.float32) == 100
    assert blocks_within(free, [config, config], torch.float32) == 50
    assert blocks_within(free, [config], torch.bfloat16) == 200
    assert blocks_within(1 << 60, [config], torch.float32) == MAX_BLOCKS
    for free in (block, -1):
        with pytest.raises(ValueError, match=r"the models leave .* MiB of the GPU's memory"):
            blocks_within(free, [config], torch.float32)


def test_weights_are_counted_without_being_read(folders, config):
    trunk_and_norms = config.shape().num_matmul_params + config.hidden_size * (2 * config.num_layers + 1)
    assert weight_bytes(folders.policy, torch.float32) == 4 * trunk_and_norms  # its embedding is its head
    assert weight_bytes(folders.policy, torch.bfloat16) == 2 * trunk_and_norms


def test_devices_and_their_types():
    assert resolve_device("cpu").is_native
    for name in ("abacus", "cuda:", "cuda:x", "cuda:-1", "cpu:0", ""):
        with pytest.raises(ValueError, match=rf"device must be 'cpu', 'cuda' or .* as 'cuda:1', got '{name}'"):
            resolve_device(name)
    assert resolve_dtype("fp16", "cuda") is resolve_dtype("float16", "cuda") is torch.float16
    with pytest.raises(ValueError, match=r"dtype must be one of .*bf16, float16, fp16; .* got 'int4'"):
        resolve_dtype("int4", "cuda")
    with pytest.raises(ValueError, match=r"bf16 \(on a GPU also float16, fp16\); .* got 'fp16'"):
        resolve_dtype("fp16")
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match=r"device 'cuda' was asked for, but torch .* sees no GPU"):
            resolve_device("cuda")
