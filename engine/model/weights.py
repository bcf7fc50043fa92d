"""Reads the trunk of a checkpoint: the parts that all families share, and those that some add."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch

from engine.errors import UserError
from engine.model.config import ModelConfig
from engine.model.ranks import ALONE, Ranks
from engine.model.rope import rope_tables
from engine.model.tensor_files import check_shape, fill, origin, runs, take
from ttc_kernels.decoder import DecoderWeights, LayerWeights

# Buffers in old checkpoints that follow from the configuration.
_DERIVED = ("rotary_emb.inv_freq", "self_attn.bias", "self_attn.masked_bias")


@dataclass(frozen=True)
class LayerExtras:
    """Parts of a layer that are not in LayerWeights; None where its family lacks them."""

    qkv_bias: torch.Tensor | None = None  # (Q + 2 K,)
    q_norm: torch.Tensor | None = None  # (head dim,), of every query head
    k_norm: torch.Tensor | None = None  # (head dim,), of every KV head
    window: int | None = None  # tokens that a query attends to, itself included


class _Reader:
    """Reads the layers of a checkpoint, each tensor directly into its final memory, of `like`'s type and device.

    If `is_streamed`, it yields each tensor's rows instead, several at a time, for a caller that copies them. Of several
    ranks each reads its part; `config` is that of the part.
    """

    def __init__(
        self,
        config: ModelConfig,
        tensors: Mapping[str, torch.Tensor],
        like: torch.Tensor,
        is_streamed: bool,
        ranks: Ranks,
    ):
        self.config, self.tensors, self.like, self.is_streamed = config, tensors, like, is_streamed
        self.ranks = ranks

    def layer(self, i: int) -> LayerWeights:
        config = self.config
        hidden, inter, q_out = config.hidden_size, config.intermediate_size, config.num_heads * config.head_dim

        def get(*names: str, sizes: list[int], rest: tuple[int, ...] = (hidden,)) -> torch.Tensor | Iterator:
            read = self.runs if self.is_streamed else self.stacked
            return read(i, [f"{name}.weight" for name in names], sizes, *rest)

        return LayerWeights(
            input_norm=get("input_layernorm", sizes=[hidden], rest=()),
            qkv=get("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", sizes=self.qkv_sizes),
            out=get("self_attn.o_proj", sizes=[hidden], rest=(q_out,)),
            post_norm=get("post_attention_layernorm", sizes=[hidden], rest=()),
            gate_up=get("mlp.gate_proj", "mlp.up_proj", sizes=[inter, inter]),
            down=get("mlp.down_proj", sizes=[hidden], rest=(inter,)),
        )

    @property
    def qkv_sizes(self) -> list[int]:
        kv_size = self.config.num_kv_heads * self.config.head_dim
        return [self.config.num_heads * self.config.head_dim, kv_size, kv_size]

    def stacked(self, i: int, names: list[str], sizes: list[int], *rest: int) -> torch.Tensor:
        """Tensors of a layer, of shapes (sizes[j], *rest), concatenated."""
        out = self.like.new_empty(sum(sizes), *rest)
        for name, part in zip(names, out.split(sizes), strict=True):
            stored = f"model.layers.{i}.{name}"
            if self.ranks.size == 1:
                fill(self.tensors, stored, part)
            else:  # the whole tensor is in memory for a moment
                part.copy_(self.ranks.cut(name, self.tensors[stored]))
        return out

    def runs(self, i: int, names: list[str], sizes: list[int], *rest: int) -> Iterator[torch.Tensor]:
        """The rows of what `stacked` returns, several at a time."""
        for name, size in zip(names, sizes, strict=True):
            yield from runs(self.tensors, f"model.layers.{i}.{name}", (size, *rest))

    def extras(self, i: int) -> LayerExtras:
        """The parts of layer i that are not in LayerWeights."""
        config = self.config
        qkv_bias = q_norm = k_norm = None
        if config.has_qkv_bias:
            qkv_bias = self.stacked(i, [f"self_attn.{part}_proj.bias" for part in "qkv"], self.qkv_sizes)
        if config.has_qk_norm:
            q_norm = self.stacked(i, ["self_attn.q_norm.weight"], [config.head_dim])
            k_norm = self.stacked(i, ["self_attn.k_norm.weight"], [config.head_dim])
        return LayerExtras(qkv_bias, q_norm, k_norm, config.window(i))


@dataclass(frozen=True)
class Trunk:
    """A decoder without its head."""

    weights: DecoderWeights
    extras: tuple[LayerExtras, ...]  # one per layer


def is_plain(config: ModelConfig) -> bool:
    """Whether the layers have exactly Llama's parts."""
    return not (config.has_qkv_bias or config.has_qk_norm or any(config.windows))


def read_trunk(
    config: ModelConfig, tensors: Mapping[str, torch.Tensor], is_streamed: bool = False, ranks: Ranks = ALONE
) -> Trunk:
    """Reads the trunk of a checkpoint, or a rank's part of it; no tensor is in memory twice.

    If `is_streamed`, a layer's weights are iterators over runs of rows, which `PackedDecoder` copies. Raises
    UserError for a tensor that is missing or of another shape, and for sizes that the ranks do not divide.
    """
    config = ranks.part(config, origin(tensors))
    embedding = take(tensors, "model.embed_tokens.weight", (config.vocab_size, config.hidden_size))
    reader = _Reader(config, tensors, embedding, is_streamed, ranks)
    tables = rope_tables(config.rope, config.rope_theta, config.head_dim, config.context)
    cos, sin = (table.to(embedding.device) for table in tables)
    weights = DecoderWeights(
        num_heads=config.num_heads,
        num_kv_heads=config.num_kv_heads,
        head_dim=config.head_dim,
        rms_eps=config.rms_eps,
        embedding=embedding,
        layers=tuple(reader.layer(i) for i in range(config.num_layers)),
        final_norm=take(tensors, "model.norm.weight", (config.hidden_size,)),
        cos=cos,
        sin=sin,
        intermediate_size=config.intermediate_size,
    )
    return Trunk(weights, tuple(reader.extras(i) for i in range(config.num_layers)))


def check_trunk(config: ModelConfig, tensors: Mapping[str, torch.Tensor]) -> None:
    """Compares the trunk that the config describes with the names and shapes of the tensors, and reads none.

    Raises UserError for a tensor that is missing, of another shape, or that would not be read, so that the model
    would silently lack it.
    """
    for name, shape in _outer_shapes(config).items():
        check_shape(tensors, name, shape)
    expected, layer = {*_outer_shapes(config), "lm_head.weight"}, _layer_shapes(config)
    for i in range(config.num_layers):
        for part, shape in layer.items():
            if (name := f"model.layers.{i}.{part}") not in tensors:
                raise UserError(
                    f"{origin(tensors)}the checkpoint lacks tensor {name!r}, and config.json says that "
                    f"num_hidden_layers is {config.num_layers}"
                )
            check_shape(tensors, name, shape)
            expected.add(name)
    for name in tensors:
        if name.startswith(("model.", "lm_head.")) and name not in expected and not name.endswith(_DERIVED):
            raise UserError(
                f"{origin(tensors)}tensor {name!r} has no place in {config.architecture} "
                f"with {config.num_layers} layers as the config describes it"
            )


def _outer_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    hidden = config.hidden_size
    return {"model.embed_tokens.weight": (config.vocab_size, hidden), "model.norm.weight": (hidden,)}


def _layer_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """The parts of every layer, by their names in it."""
    hidden, inter = config.hidden_size, config.intermediate_size
    sizes = {"q": config.num_heads * config.head_dim, **dict.fromkeys("kv", config.num_kv_heads * config.head_dim)}
    shapes = {f"self_attn.{part}_proj.weight": (size, hidden) for part, size in sizes.items()}
    shapes |= {"input_layernorm.weight": (hidden,), "post_attention_layernorm.weight": (hidden,)}
    shapes |= {"self_attn.o_proj.weight": (hidden, sizes["q"]), "mlp.down_proj.weight": (hidden, inter)}
    shapes |= {"mlp.gate_proj.weight": (inter, hidden), "mlp.up_proj.weight": (inter, hidden)}
    if config.has_qkv_bias:
        shapes |= {f"self_attn.{part}_proj.bias": (size,) for part, size in sizes.items()}
    if config.has_qk_norm:
        shapes |= {f"self_attn.{part}_norm.weight": (config.head_dim,) for part in "qk"}
    return shapes
