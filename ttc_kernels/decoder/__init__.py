"""The trunk of a Llama-family model in one call, and a linear layer, over weights packed once."""

from ttc_kernels.decoder.api import PackedDecoder, PackedLinear, decoder
from ttc_kernels.decoder.weights import DecoderWeights, LayerWeights

__all__ = ["DecoderWeights", "LayerWeights", "PackedDecoder", "PackedLinear", "decoder"]
