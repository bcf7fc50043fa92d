"""The trunk of a Llama-family model in one call, a linear layer, over weights packed once, and sampling with both."""

from ttc_kernels.decoder.api import PackedDecoder, PackedLinear, decoder
from ttc_kernels.decoder.loop import Decoded, DecodeLoop
from ttc_kernels.decoder.weights import DecoderWeights, LayerWeights

__all__ = ["DecodeLoop", "Decoded", "DecoderWeights", "LayerWeights", "PackedDecoder", "PackedLinear", "decoder"]
