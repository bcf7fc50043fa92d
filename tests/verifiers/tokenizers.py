"""Tokenizers that have the verifier formats' own tokens, and the chat templates that go with them."""

from __future__ import annotations

import json

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<extra_0>", "<|header|>", "<|end_header|>", "<|eot|>"]
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA_CHAT = (
    "{{ bos_token }}{% for m in messages %}<|header|>{{ m['role'] }}<|end_header|>\n\n"
    "{{ m['content'] | trim }}<|eot|>{% endfor %}"
    "{% if add_generation_prompt %}<|header|>assistant<|end_header|>\n\n{% endif %}"
)
_TEXT = "So we add 12 and 34 , which gives 46 . Then x = 2 y + 1 \n hence \\frac{1}{2} - é ки the answer is"
WORDS = _TEXT.split(" ")

# Llama 3's, which Qwen's resembles: a run of line ends stays together, with the spaces before it.
_PATTERN = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
_PATTERN += r"|\s*[\r\n]+|\s+(?!\S)|\s+"


def byte_level(placed: dict[str, int], size: int, chat: str, has_bos: bool = False) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer, some of whose tokens have the ids that a format knows them by."""
    core = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(_PATTERN), behavior="isolated")
    core.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(False, use_regex=False)])
    core.decoder = decoders.ByteLevel()
    corpus = [" ".join(WORDS) * 3, "a \n\n\n\nb \n\n\n\nc", "x\n\ny\n\nz \n\n 1234 5678"] * 20
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    core.train_from_iterator(corpus, trainers.BpeTrainer(vocab_size=420, initial_alphabet=alphabet, min_frequency=1))
    core = replaced(core, placed, size)
    # Byte-level offsets as GPT-2's processor makes them: white space trimmed off.
    bos = [processors.TemplateProcessing("<|endoftext|> $A", special_tokens=[("<|endoftext|>", size)])]
    core.add_special_tokens(SPECIAL)
    core.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=True), *(bos if has_bos else [])])
    tokens = {"eos_token": "<|endoftext|>", "bos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}
    return PreTrainedTokenizerFast(tokenizer_object=core, chat_template=chat, **tokens)


def sentence_piece() -> PreTrainedTokenizerFast:
    """As Mistral's: one BPE over the whole text with ▁ for spaces; "▁ки" is 12902, "▁+" 648, "▁-" 387."""
    letters = sorted({*"".join(WORDS), *"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789+-=*.,:;?▁\\{}"})
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    merges = [("▁", "к"), ("▁к", "и"), ("▁", "+"), ("▁", "-"), ("1", "2"), ("▁", "a"), ("o", "k")]
    pieces += [letter for letter in letters if letter != "\n"] + ["".join(pair) for pair in merges]
    vocab = {piece: index for index, piece in enumerate(dict.fromkeys(pieces))}
    core = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    core.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    core.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    core = replaced(core, {"▁ки": 12902, "▁+": 648, "▁-": 387}, 13000)
    core.add_special_tokens(["<unk>", "<s>", "</s>"])
    core.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", core.token_to_id("<s>"))])
    return PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", eos_token="</s>", pad_token="</s>")


def replaced(core: Tokenizer, placed: dict[str, int], size: int) -> Tokenizer:
    """The tokenizer with some tokens at given ids and `size` tokens in all, the gaps filled with unused ones."""
    raw = json.loads(core.to_str())
    vocab, taken = raw["model"]["vocab"], {index: token for token, index in placed.items()}
    for token, index in placed.items():
        former, other = vocab[token], next((t for t, i in vocab.items() if i == index), None)
        if other is not None:
            vocab[other] = former
        vocab[token] = index
    used = set(vocab.values()) | set(taken)
    vocab.update({f"<unused{index}>": index for index in range(size) if index not in used})
    return Tokenizer.from_str(json.dumps(raw))
