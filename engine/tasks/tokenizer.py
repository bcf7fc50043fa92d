"""The home models' tokenizer: one token per character, so that numbers are digits."""

from __future__ import annotations

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

PAD, EOS, UNKNOWN = "<pad>", "<eos>", "<unk>"
# Letters and marks beyond the chain's own are spare, for formats that later models need.
_CHARACTERS = "\n0123456789+-*=; #?!|:"


def build_tokenizer() -> PreTrainedTokenizerFast:
    """A character tokenizer of 25 tokens; it adds no special token of its own to a text."""
    tokens = [PAD, EOS, UNKNOWN, *_CHARACTERS]
    core = Tokenizer(models.WordLevel({token: i for i, token in enumerate(tokens)}, unk_token=UNKNOWN))
    core.pre_tokenizer = pre_tokenizers.Split(Regex("[\\s\\S]"), behavior="isolated")
    core.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token=PAD,
        eos_token=EOS,
        unk_token=UNKNOWN,
        clean_up_tokenization_spaces=False,
        model_max_length=1024,
    )
