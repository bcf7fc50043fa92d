"""The packed trunk and the one over torch's products: the same function, chosen by the model's size."""

import numpy as np
import pytest
import torch

from engine.model import Decoder, LMHead, load_checkpoint
from engine.runtime import LLM
from ttc_kernels import _native, kv_cache

NUM_BLOCKS = 64


def logits_of(decoder: Decoder, head: LMHead, texts: list[np.ndarray], chosen: list[int]) -> torch.Tensor:
    """Logits after the last token of each chosen text, all fed in one forward."""
    config = decoder.config
    tree = _native.KVTree(NUM_BLOCKS, 16)
    shape = (config.num_layers, NUM_BLOCKS, config.num_kv_heads, 16, config.head_dim)
    k, v = kv_cache.allocate(*shape, decoder.dtype)
    handles = np.array([tree.open(np.zeros(0, np.int32))[0] for _ in chosen], np.int32)
    lengths = np.array([len(texts[i]) for i in chosen], np.int32)
    tree.extend(handles, lengths, np.concatenate([texts[i] for i in chosen]))
    plan = tree.plan(handles, lengths)
    given = [torch.from_numpy(texts[chosen[i]]) for i in plan.order]
    positions, slots = torch.from_numpy(plan.positions), torch.from_numpy(plan.slots)
    hidden = decoder.forward(torch.cat(given), plan, positions, slots, k, v)
    last = torch.empty(len(chosen), dtype=torch.int64)
    last[torch.from_numpy(np.asarray(plan.order)).long()] = torch.from_numpy(np.asarray(plan.row_start[1:])).long() - 1
    return head.logits(hidden, last)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.bfloat16, 4e-2)])
def test_both_trunks_agree_and_keep_rows_apart(folders, dtype, tolerance):
    checkpoint = load_checkpoint(folders.policy, dtype)
    rng = np.random.default_rng(0)
    texts = [rng.integers(3, 25, num).astype(np.int32) for num in (1, 2, 5, 16, 17, 40)]
    everything = list(range(len(texts)))
    found = []
    for most in (0, 1_000_000):
        parts = (checkpoint.config, checkpoint.tensors)
        decoder, head = Decoder(*parts, max_packed_weights=most), LMHead(*parts, max_packed_weights=most)
        assert decoder.is_packed == (most > 0)
        together = logits_of(decoder, head, texts, everything)
        assert together.dtype == torch.float32
        for i in everything:
            assert torch.equal(logits_of(decoder, head, texts, [i])[0], together[i])
        found.append(together)
    scale = 1.0 if dtype == torch.float32 else found[0].abs().max().item()
    assert (found[0] - found[1]).abs().max() <= tolerance * scale


def test_the_models_size_decides(folders):
    checkpoint = load_checkpoint(folders.policy, torch.float32)
    config = checkpoint.config
    size = config.shape().num_matmul_params - config.vocab_size * config.hidden_size
    for most, is_packed in ((size, True), (size - 1, False)):
        assert Decoder(config, checkpoint.tensors, max_packed_weights=most).is_packed == is_packed


def test_the_batch_is_small_where_the_weights_stay_in_the_cache(folders):
    checkpoint = load_checkpoint(folders.policy, torch.float32)
    packed = Decoder(checkpoint.config, dict(checkpoint.tensors))
    large = Decoder(checkpoint.config, dict(checkpoint.tensors), max_packed_weights=0)
    assert (packed.best_batch, large.best_batch) == (128, 256)
    half = load_checkpoint(folders.policy, torch.bfloat16)
    assert Decoder(half.config, dict(half.tensors)).best_batch == 128
    assert LLM.load(folders.policy).runner.table.batch_size == 128
    assert LLM.load(folders.policy, max_batch=7).runner.table.batch_size == 7
