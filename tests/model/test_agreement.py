"""Our logits and scores against those of transformers, on the same checkpoint."""

import random

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForTokenClassification

from engine.types import GREEDY, Sampling, Step
from engine.verifiers.prm import PRMVerifier
from tests.runtime.builders import PROBLEMS, assert_idle, load_llm

VOCAB = range(3, 35)


@pytest.fixture(scope="module")
def theirs(folders):
    return AutoModelForCausalLM.from_pretrained(folders.policy, dtype=torch.float32).eval()


@torch.inference_mode()
def expected(model, branches) -> torch.Tensor:
    """Their logits after each branch's last token, each text in a call of its own."""
    return torch.stack([model(torch.tensor([branch.token_ids])).logits[0, -1].float() for branch in branches])


def check(llm, model, branches) -> None:
    assert (llm.next_logits(branches) - expected(model, branches)).abs().max() <= 1e-4


def draw(rng: random.Random, num_tokens: int) -> list[int]:
    return [rng.choice(VOCAB) for _ in range(num_tokens)]


@pytest.mark.parametrize("max_chunk", [1, 7, 16, 1024])
def test_prefill_in_chunks(folders, theirs, max_chunk):
    rng = random.Random(max_chunk)
    llm = load_llm(folders.policy, max_chunk=max_chunk)
    check(llm, theirs, [llm.open(draw(rng, num)) for num in (1, 2, 15, 16, 17, 32, 45)])


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_random_life_of_branches(folders, theirs, seed):
    """Opened, forked, sampled, fed, asked and pruned at random; then asked once more."""
    rng = random.Random(seed)
    llm = load_llm(folders.policy, max_batch=5, max_chunk=rng.choice([5, 64]))
    branches = [llm.open(draw(rng, rng.randint(1, 40)))]
    for _ in range(12):
        some = rng.sample(branches, rng.randint(1, len(branches)))
        action = rng.choice(["open", "fork", "fork", "extend", "extend", "feed", "ask", "prune"])
        if action == "open":
            branches.append(llm.open(rng.choice(branches).token_ids + draw(rng, rng.randint(0, 20))))
        elif action == "fork":
            branches += rng.choice(branches).fork(rng.randint(1, 3))
        elif action == "extend":
            llm.generate(some, stop=["\n"], max_tokens=rng.randint(1, 20), sampling=rng.choice([Sampling(), GREEDY]))
        elif action == "feed":
            llm.append(some, [draw(rng, rng.randint(1, 20)) for _ in some])
        elif action == "ask":
            check(llm, theirs, some)
        elif len(branches) > 2:
            branches.remove(some[0])
            some[0].close()
    check(llm, theirs, branches)
    for branch in branches:
        branch.close()
    assert_idle(llm.runner)


def test_bfloat16(folders, theirs):
    """Its weights are large, so float32 says whose rounding errs less (test_families has bounds on each logit)."""
    model = AutoModelForCausalLM.from_pretrained(folders.policy, dtype=torch.bfloat16).eval()
    llm = load_llm(folders.policy, dtype="bfloat16")
    rng = random.Random(0)
    branches = [llm.open(draw(rng, num)) for num in (1, 16, 40)]
    branches += branches[2].fork(2)
    llm.generate(branches, max_tokens=12)
    want, rounded = expected(theirs, branches), expected(model, branches)
    assert (llm.next_logits(branches) - want).square().mean() <= 1.5**2 * (rounded - want).square().mean()


def test_greedy_text_is_theirs(folders, theirs):
    llm = load_llm(folders.policy)
    for problem in PROBLEMS:
        branch = llm.open(problem.prompt)
        prompt = torch.tensor([branch.token_ids])
        (sampled,) = llm.generate([branch], max_tokens=30, sampling=GREEDY)
        with torch.inference_mode():
            whole = theirs.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=30, do_sample=False)
        assert list(sampled.token_ids) == whole[0, prompt.shape[1] :].tolist()
        assert branch.token_ids == whole[0].tolist()


def test_logprobs_are_theirs(folders, theirs):
    llm = load_llm(folders.policy)
    sampling = Sampling(temperature=0.7)
    branch = llm.open(PROBLEMS[0].prompt)
    start = branch.num_tokens
    (sampled,) = llm.generate([branch], max_tokens=30, sampling=sampling, seed=3)
    with torch.inference_mode():
        logits = theirs(torch.tensor([branch.token_ids])).logits[0, start - 1 : -1]
    want = (logits / 0.7).log_softmax(-1).gather(1, torch.tensor(sampled.token_ids)[:, None])[:, 0]
    assert torch.allclose(torch.tensor(sampled.logprobs), want, atol=1e-4)


# -- the verifier ------------------------------------------------------------------------------


def random_steps(rng: random.Random, num_steps: int) -> list[Step]:
    """Steps of 1 to 20 tokens."""
    return [Step(tuple(draw(rng, rng.randint(1, 20))), "?", "step") for _ in range(num_steps)]


@torch.inference_mode()
def expected_scores(folder, texts: list[tuple[list[int], list[Step]]]) -> list[list[float]]:
    """Theirs: one padded batch over whole texts, read at the last token of every step."""
    model = AutoModelForTokenClassification.from_pretrained(folder, dtype=torch.float32).eval()
    flat = [prompt + [token for step in steps for token in step.token_ids] for prompt, steps in texts]
    longest = max(map(len, flat))
    tokens = torch.tensor([text + [0] * (longest - len(text)) for text in flat])
    mask = torch.tensor([[1] * len(text) + [0] * (longest - len(text)) for text in flat])
    logits = model(tokens, attention_mask=mask).logits
    probabilities = logits.sigmoid() if logits.shape[-1] == 1 else logits.softmax(-1)
    scores = []
    for row, (prompt, steps) in enumerate(texts):
        ends = torch.tensor([len(step.token_ids) for step in steps]).cumsum(0) + len(prompt) - 1
        scores.append(probabilities[row, ends, -1].tolist())
    return scores


def run(llm, coroutine):
    """Drives one coroutine over one model."""
    try:
        request = coroutine.send(None)
        while True:
            llm.run(request)
            request = coroutine.send(None)
    except StopIteration as stop:
        return stop.value


@pytest.mark.parametrize("which", ["prm", "two_label_prm"])
@pytest.mark.parametrize("max_chunk", [3, 1024])
def test_scores(folders, which, max_chunk):
    """Fed at once, step by step over forks, alone and beside others: their scores, and the same bits."""
    folder = getattr(folders, which)
    llm = load_llm(folder, max_chunk=max_chunk)
    verifier = PRMVerifier(llm, load_llm(folders.policy))
    rng = random.Random(max_chunk)
    prompts = [llm.encode(problem.prompt) for problem in PROBLEMS]
    texts = [(prompt, random_steps(rng, rng.randint(1, 5))) for prompt in prompts]
    want = expected_scores(folder, texts)

    branches = [llm.open(prompt) for prompt, _ in texts]
    at_once = run(llm, verifier.score(branches, [steps for _, steps in texts]))
    alone = []
    for prompt, steps in texts:
        branch = llm.open(prompt)
        alone += run(llm, verifier.score([branch], [steps]))
        branch.close()
    one_by_one: list[list[float]] = [[] for _ in texts]
    heads = [llm.open(prompt) for prompt, _ in texts]
    for depth in range(5):
        going = [i for i, (_, steps) in enumerate(texts) if depth < len(steps)]
        forks = [heads[i].fork(2) for i in going]
        for i in going:
            heads[i].close()
        pruned = [fork[1] for fork in forks]
        kept = [fork[0] for fork in forks]
        new = [[texts[i][1][depth]] for i in going] + [random_steps(rng, 1) for _ in pruned]
        scores = run(llm, verifier.score(kept + pruned, new))
        for i, fork, (score,) in zip(going, forks, scores, strict=False):
            one_by_one[i].append(score)
            heads[i] = fork[0]
            fork[1].close()
    assert at_once == alone
    for got in (at_once, one_by_one):
        assert [len(scores) for scores in got] == [len(steps) for _, steps in texts]
        for ours, theirs in zip(got, want, strict=True):
            assert ours == pytest.approx(theirs, abs=1e-5)
    for branch in branches + heads:
        branch.close()
    assert_idle(llm.runner)


def test_a_saturated_score_passes(folders):
    llm = load_llm(folders.prm)
    verifier = PRMVerifier(llm, load_llm(folders.policy))
    for sign, want in ((1, 1.0), (-1, 0.0)):
        llm.runner.parts.score_head.weight.copy_(0 * llm.runner.parts.score_head.weight)
        llm.runner.parts.score_head.bias.fill_(sign * 200.0)
        branch = llm.open("1+1\n")
        assert run(llm, verifier.score([branch], [random_steps(random.Random(0), 2)])) == [[want, want]]


def test_a_text_over_the_verifiers_context_is_an_error(folders):
    """Never a silent cut."""
    llm = load_llm(folders.prm)
    verifier = PRMVerifier(llm, load_llm(folders.policy))
    branch = llm.open([5] * 1000)
    step = Step((5,) * 30, "?", "step")
    with pytest.raises(ValueError, match=r"1000 tokens and 30 more .* 1024"):
        run(llm, verifier.score([branch], [[step]]))
    assert len(run(llm, verifier.score([branch], [[Step((5,) * 24, "?", "step")]]))[0]) == 1
