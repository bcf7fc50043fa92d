"""The tokenizer of the shipped models: one token per character, so that every room and door is a token."""

from __future__ import annotations

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

PAD, EOS, UNKNOWN = "<pad>", "<eos>", "<unk>"
# Characters that the task walks does not use are spare, for the formats of later models.
_CHARACTERS = "\n0123456789+-*=; #?!|:abcdefghij"


def build_tokenizer() -> PreTrainedTokenizerFast:
    """A character tokenizer of 35 tokens, which adds no special tokens to a text."""
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
