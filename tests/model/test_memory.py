"""The most anonymous memory that loading takes, in a fork of its own of a process that has imported all."""

import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest
import torch
from safetensors.torch import save_file

from engine.tasks.tokenizer import build_tokenizer
from ttc_kernels import _native

HIDDEN, INTER, HEADS, KV_HEADS, HEAD_DIM = 512, 1536, 8, 2, 64
# Layers and vocabulary by name: 19 M weights, of which the trunk is too many to be packed; 20 M in a trunk and a head
# that are packed.
SIZES = {"torch": (6, 1000), "packed": (4, 9000)}
# Imports once; what loads is a fork for each line, which says when it is ready to load, has loaded, and may end.
LOAD = """
import os, sys

import torch

import engine.loading
from engine import Engine

torch.set_num_threads(1)
torch.ones(64, 64) @ torch.ones(64, 64)
stdin = open(0, "rb", buffering=0)  # a fork that reads ahead would take the line of the next one with it
while line := stdin.readline():
    if child := os.fork():
        assert os.waitpid(child, 0)[1] == 0
        continue
    folder, dtype = line.decode().split()
    print(os.getpid(), flush=True)
    stdin.readline()
    loaded = Engine.load(folder, dtype=dtype)
    print("loaded", flush=True)
    stdin.readline()
    os._exit(0)
"""


@pytest.fixture(scope="module")
def loader() -> Iterator[subprocess.Popen]:
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    with subprocess.Popen([sys.executable, "-c", LOAD], text=True, bufsize=1, env=environment, **pipes) as process:
        yield process
        process.stdin.close()
        assert process.wait() == 0


@pytest.fixture(scope="module", params=SIZES)
def checkpoints(tmp_path_factory, request):
    """Folders by stored type, 38 to 80 MB."""
    num_layers, vocab_size = SIZES[request.param]
    generator = torch.Generator().manual_seed(0)
    q_out, kv_out = HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM
    shapes = {"model.embed_tokens": (vocab_size, HIDDEN), "lm_head": (vocab_size, HIDDEN), "model.norm": (HIDDEN,)}
    for i in range(num_layers):
        layer = {"self_attn.q_proj": (q_out, HIDDEN), "self_attn.k_proj": (kv_out, HIDDEN)}
        layer |= {"self_attn.v_proj": (kv_out, HIDDEN), "self_attn.o_proj": (HIDDEN, q_out)}
        layer |= {"mlp.gate_proj": (INTER, HIDDEN), "mlp.up_proj": (INTER, HIDDEN), "mlp.down_proj": (HIDDEN, INTER)}
        layer |= {"input_layernorm": (HIDDEN,), "post_attention_layernorm": (HIDDEN,)}
        shapes |= {f"model.layers.{i}.{name}": shape for name, shape in layer.items()}
    tensors = {f"{name}.weight": torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    config = {
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": HIDDEN,
        "intermediate_size": INTER,
        "num_hidden_layers": num_layers,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "head_dim": HEAD_DIM,
        "vocab_size": vocab_size,
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-6,
    }
    folders = {}
    for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        folders[name] = tmp_path_factory.mktemp(name)
        save_file({key: value.to(dtype) for key, value in tensors.items()}, folders[name] / "model.safetensors")
        (folders[name] / "config.json").write_text(json.dumps(config))
        build_tokenizer().save_pretrained(folders[name])
    return folders, sum(value.numel() for value in tensors.values())


def anonymous(process_id: int) -> int:
    """RssAnon of a process, in bytes."""
    with open(f"/proc/{process_id}/status") as file:
        return next(int(line.split()[1]) << 10 for line in file if line.startswith("RssAnon"))


@pytest.mark.parametrize(
    ("stored", "loaded"), [("bfloat16", "float32"), ("float32", "float32"), ("bfloat16", "bfloat16")]
)
def test_weights_are_in_memory_once(checkpoints, loader, stored, loaded):
    folders, num_weights = checkpoints
    size = num_weights * getattr(torch, loaded).itemsize
    # Without products of bf16 pairs a packed trunk and head are kept in float32.
    has_products = any("bf16" in isa for isa in _native.decoder_isas())
    widest = size if loaded == "float32" or has_products else 2 * size
    loader.stdin.write(f"{folders[stored]} {loaded}\n")
    process_id = int(loader.stdout.readline())
    before = peak = anonymous(process_id)
    loader.stdin.write("load\n")
    finished = select.poll()
    finished.register(loader.stdout, select.POLLIN)
    while not finished.poll(0):
        peak = max(peak, anonymous(process_id))
        time.sleep(0.0005)
    assert loader.stdout.readline() == "loaded\n"
    peak = max(peak, anonymous(process_id))
    loader.stdin.write("end\n")
    assert size * 0.99 <= peak - before <= 1.1 * widest
