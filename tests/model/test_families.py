"""Every family's logits and scores against those of transformers, on random models that it has written itself."""

import json
import random

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForTokenClassification

from engine.model import read_config
from tests.runtime.builders import assert_idle, load_llm
from tests.tiny import tiny_family

VOCAB = range(3, 37)
WINDOW = 21  # tokens; ends within blocks
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
ORIGINAL = {"original_max_position_embeddings": 64}
YARN = {"rope_type": "yarn", "factor": 4.0, **ORIGINAL}


def rope(parameters: dict) -> dict:
    return {"rope_parameters": {"rope_theta": 500.0, **parameters}}


MODELS = {
    "llama 2": ("LlamaForCausalLM", {"num_key_value_heads": 4}),
    "llama 3, tied": ("LlamaForCausalLM", {"tie_word_embeddings": True, **rope({**LLAMA3, **ORIGINAL})}),
    "llama linear": ("LlamaForCausalLM", rope({"rope_type": "linear", "factor": 3.0})),
    "llama yarn": (
        "LlamaForCausalLM",
        {"max_position_embeddings": 64, **rope({**YARN, "beta_fast": 16.0, "attention_factor": 0.9})},
    ),
    "llama dynamic": (
        "LlamaForCausalLM",
        {"max_position_embeddings": 160, **rope({"rope_type": "dynamic", "factor": 2.0})},
    ),
    "llama MQA, head size 256": ("LlamaForCausalLM", {"num_key_value_heads": 1, "head_dim": 256}),
    "qwen2, tied": ("Qwen2ForCausalLM", {"tie_word_embeddings": True, "head_dim": 8, **rope({})}),
    "qwen2 yarn": ("Qwen2ForCausalLM", {"head_dim": 8, **rope({**YARN, "mscale": 0.8, "mscale_all_dim": 0.5})}),
    "qwen2, window in layer 1": (
        "Qwen2ForCausalLM",
        {"head_dim": 8, "use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1},
    ),
    "qwen3": ("Qwen3ForCausalLM", {"head_dim": 24, "vocab_size": 43, **rope({**YARN, "truncate": False})}),
    "qwen3, window in layer 0": (
        "Qwen3ForCausalLM",
        {
            "use_sliding_window": True,
            "sliding_window": WINDOW,
            "layer_types": ["sliding_attention", "full_attention"],
            "tie_word_embeddings": True,
        },
    ),
    "mistral": ("MistralForCausalLM", {"sliding_window": None, "head_dim": 18, "hidden_size": 40}),
    "mistral, window": ("MistralForCausalLM", {"sliding_window": WINDOW, "num_key_value_heads": 1}),
    "mistral, window of 3": ("MistralForCausalLM", {"sliding_window": 3}),
}


@torch.inference_mode()
def expected(model, branches) -> torch.Tensor:
    """Their logits after each branch's last token, each text in a call of its own."""
    return torch.stack([model(torch.tensor([branch.token_ids])).logits[0, -1].float() for branch in branches])


def draw(rng: random.Random, num_tokens: int) -> list[int]:
    return [rng.choice(VOCAB) for _ in range(num_tokens)]


def live(llm, rng: random.Random):
    """A life of branches of up to 130 tokens; yields those whose logits are to be compared at each stage."""
    prompts = [llm.open(draw(rng, num)) for num in (1, 17, 45)]
    yield prompts
    beams = prompts[2].fork(3) + prompts[1].fork(2)
    llm.append(beams, [draw(rng, num) for num in (1, 20, 33, 2, 7)])  # steps given, in chunks
    yield beams
    llm.generate(beams, max_tokens=12, seed=rng.randint(0, 99))  # decoding
    yield beams
    for pruned in (beams.pop(1), *prompts):
        pruned.close()
    grown = beams[0].fork(2) + beams[1].fork(2)
    llm.append(grown, [draw(rng, num) for num in (40, 3, 40, 16)])
    llm.generate(grown, max_tokens=5, seed=rng.randint(0, 99))
    yield grown + beams
    for branch in grown + beams:
        branch.close()
    assert_idle(llm.runner)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Folders by name and seed, made when they are first asked for."""
    made = {}

    def get(name: str, seed: int):
        if (name, seed) not in made:
            model_class, fields = MODELS[name]
            folder = tmp_path_factory.mktemp("family")
            made[name, seed] = tiny_family(folder, model_class, seed=seed, **fields)
        return made[name, seed]

    return get


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("name", MODELS)
def test_logits_are_theirs(models, name, seed):
    folder = models(name, seed)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    llm = load_llm(folder, max_chunk=(7, 16, 1024)[seed], max_batch=5)
    for branches in live(llm, random.Random(seed)):
        assert (llm.next_logits(branches) - expected(model, branches)).abs().max() <= 1e-4


@pytest.mark.parametrize(("seed", "name"), [(index % 3, name) for index, name in enumerate(MODELS)])
def test_bfloat16_logits_are_theirs(tmp_path, name, seed):
    """Logits of about 1, which bfloat16 itself states to within 4e-3."""
    model_class, fields = MODELS[name]
    folder = tiny_family(tmp_path, model_class, seed=seed, dtype=torch.bfloat16, **fields, initializer_range=0.05)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()
    llm = load_llm(folder, dtype="bf16", max_chunk=(1024, 7, 16)[seed])
    largest = 0.0
    for branches in live(llm, random.Random(seed)):
        want = expected(model, branches)
        largest = max(largest, want.abs().max().item())
        assert (llm.next_logits(branches) - want).abs().max() <= 2e-2
    assert largest > 0.5, "so small that nothing could be wrong by 2e-2"


@pytest.mark.parametrize("name", MODELS)
def test_bfloat16_rounds_no_worse_than_theirs(tmp_path, name):
    """Under large weights rounding alone moves the logits of either by several per cent; float32 says who is right."""
    model_class, fields = MODELS[name]
    folder = tiny_family(tmp_path, model_class, dtype=torch.bfloat16, **fields)
    llm, rng = load_llm(folder, dtype="bf16"), random.Random(0)
    branches = [llm.open(draw(rng, num)) for num in (1, 17, 45, 60)]
    branches += branches[3].fork(4)
    llm.append(branches[4:], [draw(rng, num) for num in (1, 20, 33, 70)])
    llm.generate(branches[4:], max_tokens=8)
    models = [AutoModelForCausalLM.from_pretrained(folder, dtype=d).eval() for d in (torch.bfloat16, torch.float32)]
    theirs, truth = (expected(model, branches) for model in models)
    ours = llm.next_logits(branches)
    assert (ours - truth).square().mean() <= 1.5**2 * (theirs - truth).square().mean()


@pytest.mark.parametrize("name", ["qwen2, window in layer 1", "qwen3, window in layer 0", "mistral, window"])
def test_a_row_does_not_feel_the_batch(models, name):
    """Windows clipped alone or among others, in parts and in one: the same bits."""
    llm = load_llm(models(name, 0))
    rng = random.Random(0)
    first = llm.open(draw(rng, 50))
    branches = [first, *(llm.open(draw(rng, num)) for num in range(1, 60))]
    branches += first.fork(20)
    llm.append(branches[60:], [draw(rng, num) for num in range(1, 21)])
    assert len({branch.num_tokens % 16 for branch in branches if branch.num_tokens > WINDOW}) == 16
    together = llm.next_logits(branches)
    for i in (0, 5, 30, 59, 61, 79):
        assert torch.equal(llm.next_logits([branches[i]])[0], together[i])
    first_again = llm.open(first.token_ids)
    assert torch.equal(llm.next_logits([first_again])[0], together[0])


@torch.inference_mode()
@pytest.mark.parametrize("family", ["Llama", "Mistral", "Qwen2", "Qwen3"])
@pytest.mark.parametrize("num_labels", [1, 2])
def test_scores_are_theirs(tmp_path, family, num_labels):
    fields = {} if family == "Llama" else {"sliding_window": WINDOW}
    if family == "Qwen2":
        fields["head_dim"] = 8
    if family.startswith("Qwen"):
        fields |= {"use_sliding_window": True, "max_window_layers": 0}
    folder = tiny_family(tmp_path, f"{family}ForTokenClassification", num_labels=num_labels, **fields)
    model = AutoModelForTokenClassification.from_pretrained(folder, dtype=torch.float32).eval()
    llm = load_llm(folder, max_chunk=9)
    rng = random.Random(0)
    texts = [draw(rng, num) for num in (6, 30, 77)]
    branches = [llm.open(text[:2]) for text in texts]
    ends = [[1, 3], [0, 20, 27], [5, 40, 74]]  # among the tokens after the first two
    request = llm.queue_append(branches, [text[2:] for text in texts], score_at=ends)
    llm.run(request)
    for text, at, scores in zip(texts, ends, request.scores, strict=True):
        logits = model(torch.tensor([text])).logits[0, [2 + i for i in at]]
        want = logits.sigmoid() if num_labels == 1 else logits.softmax(-1)
        assert scores == pytest.approx(want[:, -1].tolist(), abs=1e-5)


def test_dynamic_scaling_ends_at_the_original_length(models):
    """Beyond it, transformers changes the keys of all tokens before."""
    llm = load_llm(models("llama dynamic", 0))
    branch = llm.open([5] * 150)
    llm.append([branch], [[5] * 10])
    with pytest.raises(ValueError, match="160 tokens and 1 more are over the context of the model, 160"):
        llm.append([branch], [[5]])


def test_scaled_contexts(models):
    """Beyond `max_position_embeddings` where the scaling says so."""
    contexts = {name: read_config(models(name, 0)).context for name in MODELS}
    assert contexts["llama 2"] == contexts["llama 3, tied"] == contexts["mistral"] == 512
    assert contexts["llama linear"] == 1536
    assert contexts["llama yarn"] == 256
    assert contexts["qwen2 yarn"] == 512  # 4 * 64 is less


@pytest.mark.parametrize("name", ["llama 3, tied", "llama yarn", "qwen3", "llama linear", "qwen2, tied"])
def test_both_spellings_of_the_rope(models, name):
    folder = models(name, 0)
    config = read_config(folder)
    path = folder / "config.json"
    text = path.read_text()
    raw = json.loads(text)
    scaling = raw.pop("rope_parameters")
    raw["rope_theta"] = scaling.pop("rope_theta")
    scaling["type"] = scaling.pop("rope_type")
    path.write_text(json.dumps({**raw, "rope_scaling": None if scaling["type"] == "default" else scaling}))
    again = read_config(folder)
    path.write_text(text)
    assert again == config


def test_only_plain_trunks_are_packed(models):
    packed = {name for name in MODELS if load_llm(models(name, 0)).runner.parts.decoder.is_packed}
    assert packed == {name for name in MODELS if name.startswith("llama")} | {"mistral"}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_float16_checkpoint(tmp_path, dtype):
    """Loads in either, rounded as torch rounds."""
    folder = tiny_family(tmp_path, "Qwen2ForCausalLM", dtype=torch.float16, head_dim=8)
    llm = load_llm(folder, dtype=dtype)
    stored = load_file(folder / "model.safetensors")["model.embed_tokens.weight"]
    assert stored.dtype == torch.float16
    assert torch.equal(llm.runner.parts.decoder.embedding, stored.to(getattr(torch, dtype)))
    if dtype == "float32":
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        branch = llm.open(list(range(3, 23)))
        assert (llm.next_logits([branch]) - expected(model, [branch])).abs().max() <= 1e-4
