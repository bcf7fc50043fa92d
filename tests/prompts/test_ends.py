"""Where steps and answers of a search end: by token position, and for one of three reasons."""

from __future__ import annotations

from itertools import pairwise

import pytest

from engine import BeamSearch, BestOfN, Engine, Majority
from engine.accounting import Ledger
from engine.prompts import PromptFormat, has_closed_box
from engine.runtime import LLM, Batcher, GeneratedTokens, ModelPolicy
from engine.search.tree import join_steps
from engine.types import Sampling, Step
from engine.verifiers import CallableVerifier
from tests.prompts.builders import boxing_policy
from tests.runtime.builders import assert_idle, load_llm
from tests.tiny import tiny_trunk_head

EOS = 1
OPTIONS = {"max_tokens": 40, "verifier": CallableVerifier(lambda prompt, steps: len(steps[-1]) % 7 / 7)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return boxing_policy(tmp_path_factory.mktemp("models") / "policy")


def build(folder, *, delimiter: str | None = "\n\n", stops_at_box: bool = True, **limits) -> Engine:
    prompt = PromptFormat(None, None, (), "", delimiter, stops_at_box)
    return Engine(load_llm(folder, **limits), prompt=prompt)


def candidates(engine: Engine, strategy, budget: int = 32, **options) -> list:
    results = engine.search(["1+1", "2+1"], strategy, budget, **{**OPTIONS, **options})
    assert_idle(engine.policy.runner)
    return [candidate for result in results for candidate in result.candidates]


@pytest.mark.parametrize("strategy", [Majority(), BestOfN(), BeamSearch(width=2)], ids=lambda s: s.name)
@pytest.mark.parametrize("delimiter", ["\n", "\n\n", "2+"])
def test_three_reasons_to_finish(folder, strategy, delimiter):
    found = candidates(build(folder, delimiter=delimiter), strategy, 64)
    assert {candidate.finish for candidate in found} == {"eos", "boxed", "length"}
    for candidate in found:
        before_last = candidate.text[:-1] if candidate.finish == "boxed" else candidate.text
        assert not has_closed_box(before_last), "it ends where its first box is closed"
        assert has_closed_box(candidate.text) == (candidate.finish == "boxed")
        assert candidate.finish != "length" or candidate.num_tokens == 40 or strategy.name == "beam"


def test_a_box_over_several_steps_counts(folder):
    found = candidates(build(folder, delimiter="\n"), BeamSearch(width=2), 128)
    boxed = [candidate.text for candidate in found if candidate.finish == "boxed"]
    assert any("\n" in text[text.index("\\boxed{") :] for text in boxed)


def test_a_box_does_not_stop_where_it_is_not_asked_for(folder):
    found = candidates(build(folder, stops_at_box=False), BestOfN(), 64)
    assert {candidate.finish for candidate in found} == {"eos", "length"}
    assert any(has_closed_box(candidate.text) for candidate in found)


@pytest.mark.parametrize("stop_at_step", [False, True])
def test_a_delimiter_over_two_tokens(folder, stop_at_step):
    """The vocabulary has no token with two line ends: a step ends at the second, and is never blank."""
    engine = build(folder, stops_at_box=False)
    strategy = BeamSearch(width=2, max_rounds=12) if stop_at_step else BestOfN()
    results = engine.search(["1+1", "2+1"], strategy, 128, **OPTIONS)
    nodes = [node for result in results for node in result.tree.nodes if node.finish]
    ended = [node.step_text for node in nodes if node.finish == "step"]
    assert len(ended) > 20
    for text in ended:
        assert text.endswith("\n\n")
        assert text.strip()
        assert "\n\n" not in text.lstrip()[:-1]
    others = [node.step_text for node in nodes if node.finish != "step"]
    assert not [text for text in others if "\n\n" in text.lstrip()[:-1] and text.strip()]
    assert any(text.startswith("\n") for text in ended + others), "blank lines do occur"


def test_steps_are_the_same_however_they_are_sampled(folder):
    """Splitting a whole answer and stopping at each step find the same places."""
    llm = LLM.load(folder, num_blocks=64)
    policy = ModelPolicy(llm, "\n\n")
    tokens = llm.encode("1\n\n\n2\n1\n\n\n\n+\n\n")
    steps = policy.split(GeneratedTokens(tuple(tokens), (0.0,) * len(tokens), "eos", {}))
    assert [step.text for step in steps] == ["1\n\n", "\n2\n1\n\n", "\n\n+\n\n"]
    confirm = policy.step_ends.stop(True).confirm
    branch, start = llm.open("1"), 0
    for end in range(1, len(tokens) + 1):
        run = tokens[start:end]
        is_end = bool(policy.step_ends.delimiters[run[-1]]) and confirm(branch, run) == "step"
        assert is_end == (end in (3, 9, 14)), tokens[:end]
        start = end if is_end else start


def test_an_extension_that_is_not_split_is_one_step(folder):
    llm = LLM.load(folder, num_blocks=64)
    policy = ModelPolicy(llm, "\n")

    async def extend(is_split: bool) -> list[list[Step]]:
        root = await policy.open("1+1\n", ledger=Ledger())
        branches, options = root.fork(4), {"sampling": Sampling(), "stop_at_step": False, "max_tokens": 60}
        steps = await policy.extend(branches, keys=[1, 2, 3, 4], is_split=is_split, **options)
        for branch in (*branches, root):
            branch.close()
        return steps

    (_, split), (_, whole) = sorted(Batcher().run([llm], [extend(True), extend(False)], 4))
    assert max(map(len, split)) > 1
    for steps, (one,) in zip(split, whole, strict=True):
        joined = join_steps(steps)
        assert (one.token_ids, one.text, one.finish) == (joined.token_ids, joined.text, joined.finish)
        assert one.logprob == pytest.approx(sum(step.logprob for step in steps))


@pytest.mark.parametrize("strategy", [BestOfN(), BeamSearch(width=2)], ids=lambda s: s.name)
def test_suspension_and_batches_change_nothing(folder, strategy):
    wide = candidates(build(folder), strategy)
    assert candidates(build(folder, max_batch=3), strategy) == wide
    small = build(folder, num_blocks=24)
    assert candidates(small, strategy) == wide
    assert small.policy.runner.num_suspensions > 0 or strategy.name == "beam"


def test_a_trunk_head_scores_steps_of_every_ending(folder, tmp_path):
    head = tiny_trunk_head(tmp_path / "head")
    engine = Engine.load(folder, trunk_head=head, num_blocks=512, prompt_style="boxed")
    found = candidates(engine, BestOfN(), verifier="trunk")
    assert {candidate.finish for candidate in found} == {"eos", "boxed", "length"}
    for candidate in found:
        assert len(candidate.scores) == (0 if candidate.finish == "length" else _num_steps(candidate.text))


def _num_steps(text: str) -> int:
    """Steps of a finished answer, at "\\n\\n"."""
    num_steps, rest = 0, text
    while "\n\n" in rest.lstrip():
        blank = len(rest) - len(rest.lstrip())
        rest = rest[rest.index("\n\n", blank) + 2 :]
        num_steps += 1
    return num_steps + bool(rest.strip())


def test_delimiters_that_cannot_be(folder):
    llm = LLM.load(folder, num_blocks=64)
    for delimiter, words in (("", "1 to 64 characters, got ''"), ("a" * 65, "1 to 64"), ("xyz", "ends the .* 'xyz'")):
        with pytest.raises(ValueError, match=words):
            ModelPolicy(llm, delimiter)


def test_consecutive_steps_share_nothing(folder):
    """Token by token, the steps of an answer are the answer."""
    engine = build(folder, delimiter="1")
    (result, _) = engine.search(["1+1", "2+1"], BestOfN(), 8, **OPTIONS)
    for candidate in result.candidates:
        path = [node for node in result.tree.nodes if node.address == candidate.address]
        nodes = result.tree.path(result.tree.nodes.index(path[-1]))[1:]
        assert "".join(result.tree.nodes[index].step_text for index in nodes) == candidate.text
        assert all(a < b for a, b in pairwise(nodes))
