"""A Llama-family trunk and a linear layer over weights packed once, and the decode loop that samples with both."""

from ttc_kernels.decoder.api import PackedDecoder, PackedLinear, decoder
from ttc_kernels.decoder.loop import DecodeBatch, Decoded, DecodeLoop
from ttc_kernels.decoder.weights import DecoderWeights, LayerWeights

__all__ = [
    "DecodeBatch",
    "DecodeLoop",
    "Decoded",
    "DecoderWeights",
    "LayerWeights",
    "PackedDecoder",
    "PackedLinear",
    "decoder",
]
