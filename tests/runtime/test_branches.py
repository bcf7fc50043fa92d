"""Live sequences: open, fork, generate, append, next_logits, close."""

import random

import pytest
import torch

from engine.errors import UserError
from engine.types import GREEDY, Sampling

from .builders import PROBLEMS, assert_idle, load_llm

PROMPT = PROBLEMS[0].prompt


@pytest.fixture
def llm(folders):
    return load_llm(folders.policy)


def test_the_example_of_the_design(llm):
    branch = llm.open("?5?2?=c\n")
    assert llm.decode(branch.token_ids) == branch.text == "?5?2?=c\n"
    beams = branch.fork(8)
    results = llm.generate(beams, stop=["\n"], max_tokens=64, sampling=Sampling(temperature=0.8), seed=0)
    assert [beam.token_ids for beam in beams] == [branch.token_ids + list(result.token_ids) for result in results]
    for result in results:
        assert result.finish in ("step", "eos", "length")
        assert len(result.token_ids) == len(result.logprobs) <= 64
        assert (result.finish == "step") == llm.decode(result.token_ids).endswith("\n")
        assert llm.decode(result.token_ids).count("\n") == (result.finish == "step")
    before = [beam.num_tokens for beam in beams]
    llm.append(beams, [[5, 6, 7]] * 8)
    assert [beam.num_tokens for beam in beams] == [num + 3 for num in before]
    logits = llm.next_logits(beams)
    assert logits.shape == (8, llm.config.vocab_size)
    assert logits.dtype is torch.float32
    beams[0].close()
    assert branch.is_open
    assert branch.text == "?5?2?=c\n"
    for beam in [*beams[1:], branch]:
        beam.close()
    assert_idle(llm.runner)


def test_closing_a_parent_keeps_its_children(llm):
    parent = llm.open(PROMPT)
    children = parent.fork(3)
    want = llm.next_logits([parent])
    parent.close()
    grandchildren = children[0].fork(2)
    children[0].close()
    assert (llm.next_logits([*children[1:], *grandchildren]) == want).all()


def test_tokens_appended_lazily_are_computed_when_they_are_needed(llm):
    at_once, lazy = llm.open(PROMPT).fork(2)
    llm.append([at_once], [[5, 6, 7]])
    num_ticks = llm.runner.num_ticks
    llm.append([lazy], [[5, 6, 7]], is_lazy=True)
    assert lazy.token_ids == at_once.token_ids
    assert (llm.runner.num_ticks, llm.runner.has_work) == (num_ticks, False)
    assert torch.equal(*(llm.next_logits([branch]) for branch in (at_once, lazy)))
    with pytest.raises(UserError, match=r"within 0\.\.34, got 35"):
        llm.append([lazy], [[5, 35]], is_lazy=True)


def test_the_order_of_branches_is_the_order_of_results(llm):
    branches = [llm.open(problem.prompt) for problem in PROBLEMS]
    logits = llm.next_logits(branches)
    assert torch.equal(llm.next_logits(branches[::-1]), logits.flip(0))
    assert len({row.numpy().tobytes() for row in logits}) == len({problem.prompt for problem in PROBLEMS})


@pytest.mark.parametrize("max_chunk", [1, 5, 1024])
def test_asking_for_logits_changes_nothing(folders, max_chunk):
    """The same life with and without questions between the steps: the same tokens and logits, bit for bit."""
    lives = []
    for asks in (False, True):
        rng = random.Random(4)
        llm = load_llm(folders.policy, max_chunk=max_chunk)
        log = []

        def ask(branches, llm=llm, asks=asks):
            if asks:
                first = llm.next_logits(branches)
                some = branches[: 1 + len(branches) // 2]
                assert torch.equal(llm.next_logits(branches), first)
                assert torch.equal(llm.next_logits(some), first[: len(some)])

        root = llm.open(PROMPT)
        ask([root])
        beams = root.fork(4)
        ask([beams[0], root])
        for length in (1, 15, 16, 7):
            log.append(llm.generate(beams, stop=["\n"], max_tokens=length))
            ask(beams)
            ask(beams[:2])
            llm.append(beams[1:], [[rng.randrange(3, 25) for _ in range(rng.randint(1, 18))] for _ in beams[1:]])
            ask(beams)
            fork = beams[1].fork(1)
            ask(fork)
            log.append(llm.generate(fork, max_tokens=9, sampling=GREEDY))
            beams[1].close()
            beams[1] = fork[0]
        log.append([beam.token_ids for beam in beams])
        log.append(llm.next_logits([*beams, root]).numpy().tobytes())
        lives.append(log)
    assert lives[0] == lives[1]


def test_logits_do_not_feel_the_branches_beside(llm):
    alone = [llm.next_logits([llm.open(problem.prompt)])[0] for problem in PROBLEMS]
    llm.clear_cache()
    branches = [llm.open(problem.prompt) for problem in PROBLEMS for _ in range(7)]
    together = llm.next_logits(branches)
    for index, want in enumerate(alone):
        assert (together[7 * index : 7 * index + 7] == want).all()


def test_one_extension_or_many(llm):
    """Greedy text does not depend on where sampling paused (nor, within rounding, do the logits)."""
    once, twice = (llm.open(PROMPT) for _ in range(2))
    llm.generate([once], max_tokens=40, sampling=GREEDY)
    for length in (1, 2, 20, 17):
        llm.generate([twice], max_tokens=length, sampling=GREEDY)
    assert twice.token_ids[: once.num_tokens] == once.token_ids
    once.close()
    twice.close()
    assert_idle(llm.runner)


def test_seeds_addresses_and_options(llm):
    def texts(num_branches=4, **options):
        root = llm.open(PROMPT)
        beams = root.fork(num_branches)
        llm.generate(beams, max_tokens=20, **options)
        found = [tuple(beam.token_ids) for beam in beams]
        for beam in [*beams, root]:
            beam.close()
        return found

    want = texts()
    assert len(set(want)) == 4, "siblings have streams of their own"
    assert texts() == want
    assert texts(9)[:4] == want, "more siblings keep the first"
    assert texts(seed=1) != want
    options = [{"temperature": 0.5}, {"temperature": 2.0}, {"top_k": 2}, {"top_p": 0.3}, {"min_p": 0.5}]
    others = [texts(sampling=Sampling(**option)) for option in options]
    assert all(other != want for other in others)
    assert len({tuple(other) for other in others}) == len(options)
    greedy = texts(sampling=GREEDY)
    assert len(set(greedy)) == 1
    assert greedy == texts(sampling=Sampling(top_k=1)) == texts(sampling=GREEDY, seed=9)


def test_forking_in_parts_gives_the_same_children(llm):
    root = llm.open(PROMPT)
    whole, parts = root.fork(4), llm.open(PROMPT)
    pieces = [*parts.fork(1), *parts.fork(3)]
    assert [branch.address for branch in whole] == [branch.address for branch in pieces]
    llm.generate(whole + pieces, max_tokens=12)
    assert [branch.token_ids for branch in whole] == [branch.token_ids for branch in pieces]


def test_limits_of_length(folders):
    llm = load_llm(folders.policy)
    context = llm.config.context
    with pytest.raises(ValueError, match=f"{context} tokens, the context of the model holds {context}"):
        llm.open([5] * context)
    branch = llm.open([5] * (context - 3))
    (sampled,) = llm.generate([branch], max_tokens=50)
    assert len(sampled.token_ids) <= 3
    while branch.num_tokens < context:
        llm.append([branch], [[5]])
    (nothing,) = llm.generate([branch], max_tokens=50)
    assert (nothing.token_ids, nothing.finish) == ((), "length")
    assert llm.next_logits([branch]).isfinite().all()
    with pytest.raises(ValueError, match=rf"{context} tokens and 1 more .*{context}"):
        llm.append([branch], [[5]])
    branch.close()
    assert_idle(llm.runner)


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ("", "empty: ''"),
        ([], r"empty: \[\]"),
        ([5, 35], r"within 0\.\.34, got 35"),
        ([5, -1, 7], r"within 0\.\.34, got -1"),
    ],
)
def test_prompts_that_are_refused(llm, prompt, words):
    with pytest.raises(ValueError, match=words):
        llm.open(prompt)
    assert_idle(llm.runner)


def test_misuse(llm):
    branch, other = llm.open(PROMPT), llm.open(PROMPT)
    cases = [
        (lambda: llm.generate([branch], max_tokens=0), "max_tokens must be at least 1, got 0"),
        (lambda: llm.generate([other, branch], max_tokens=-5), "at least 1, got -5"),
        (lambda: llm.generate([branch], stop=["no such text"]), "'no such text'"),
        (lambda: llm.generate([branch], stop=[""]), "''"),
        (lambda: llm.generate([branch, other, branch]), "named once"),
        (lambda: llm.next_logits([branch, branch]), "named once"),
        (lambda: llm.append([branch], [[5, 35]]), r"within 0\.\.34, got 35"),
        (lambda: llm.append([other, branch], [[5], [-3]]), r"within 0\.\.34, got -3"),
        (lambda: llm.append([branch, other], [[5]]), "tokens must be given for each of 2 branches, got 1"),
        (lambda: branch.fork(0), "at least 1, got 0"),
        (lambda: branch.fork(-2), "at least 1, got -2"),
    ]
    for call, words in cases:
        with pytest.raises(ValueError, match=words):
            call()
        assert not llm.runner.has_work
    assert branch.num_tokens == other.num_tokens == len(llm.encode(PROMPT))
    llm.generate([branch, other], max_tokens=3)  # neither is stuck


def test_a_closed_branch(llm):
    branch = llm.open(PROMPT)
    child = branch.fork(1)[0]
    branch.close()
    calls = [
        branch.close,
        lambda: branch.fork(1),
        lambda: llm.generate([branch]),
        lambda: llm.generate([child, branch]),
        lambda: llm.append([branch], [[5]]),
        lambda: llm.next_logits([branch]),
    ]
    for call in calls:
        with pytest.raises(ValueError, match=r"branch \(\) is closed"):
            call()
    llm.generate([child], max_tokens=3)
    child.close()
    assert_idle(llm.runner)


def test_models_without_the_head_that_is_asked_for(folders, llm):
    prm = load_llm(folders.prm)
    branch = prm.open(PROMPT)
    with pytest.raises(ValueError, match="no LM head"):
        prm.next_logits([branch])
    with pytest.raises(ValueError, match="no LM head to sample"):
        prm.generate([branch])
    with pytest.raises(ValueError, match="belongs to the model at"):
        llm.next_logits([branch])
    assert not prm.runner.has_work


def test_no_branch_no_logits(llm):
    assert llm.next_logits([]).shape == (0, 35)
    assert llm.generate([]) == []
    llm.append([], [])


def test_no_limits_below_one(folders):
    for options in ({"max_batch": 0}, {"num_blocks": 0}):
        (name,) = options
        with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
            type(load_llm(folders.policy)).load(folders.policy, **{"num_blocks": 8, **options})
