"""A process that is forked from one that has computed on two threads: it has but one, and does not wait for another."""

import os
import signal

import torch

from ttc_kernels.rms_norm import rms_norm

MAX_SECONDS = 60


def compute() -> torch.Tensor:
    """By our kernels and by torch, each with enough work for two threads."""
    x = torch.linspace(-1, 1, 300 * 257).view(300, 257)
    return rms_norm(x, torch.ones(257), 1e-6) @ torch.linspace(-1, 1, 257 * 300).view(257, 300)


def test_a_forked_child_computes():
    torch.set_num_threads(2)
    want = compute()
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(MAX_SECONDS)  # ends one that waits
        is_right = torch.allclose(compute(), want) and torch.get_num_threads() == 1
        os._exit(0 if is_right else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert torch.get_num_threads() == 2
    assert torch.equal(compute(), want)
