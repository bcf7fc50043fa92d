"""Plain samples: their ends, what is shown while they grow, and what they leave behind."""

import pytest

from engine.config import SearchConfig
from engine.engine import Engine
from engine.runtime.sampling import as_sample
from engine.runtime.vocabulary import completing
from engine.samples import start_samples
from engine.search import Majority
from engine.types import Problem

from .builders import PROBLEMS, assert_idle, load_engine, runners

CONFIG = SearchConfig(4, seed=2, max_tokens=14)


@pytest.fixture
def engine(folders) -> Engine:
    return load_engine(folders)


def draw(engine: Engine, problem: Problem, config: SearchConfig = CONFIG, **options):
    return start_samples(engine, problem, config, **options).result(60)


def test_they_are_those_of_a_majority_search(engine):
    results = engine.search(PROBLEMS, Majority(), config=CONFIG)
    handles = [start_samples(engine, problem, CONFIG) for problem in PROBLEMS]
    for handle, result in zip(handles, results, strict=True):
        candidates = {each.address[0]: each for each in result.candidates}
        for index, sample in enumerate(handle.result(60)):
            assert (sample.text, sample.num_sampled) == (candidates[index].text, candidates[index].num_tokens)
        assert handle.ledger.tokens["generated"] == result.ledger.tokens["generated"]
    assert_idle(*runners(engine))


def test_a_stop_text_ends_them_wherever_its_tokens_do(engine):
    whole = draw(engine, PROBLEMS[0])
    text = whole[0].text
    for length in (1, 2, 3):
        stop = text[4 : 4 + length]
        sample = draw(engine, PROBLEMS[0], stop=[stop, "no such"])[0]
        assert (sample.text, sample.finish) == (text[: text.index(stop)], "stop")
        assert sample.token_ids == whole[0].token_ids[: len(sample.token_ids)]
        assert len(sample.logprobs) == len(sample.token_ids)
        assert sample.num_sampled == len(sample.token_ids) + length
    assert len(engine.policy.runner.stops._free) == 1, "a rule is used again"
    assert_idle(*runners(engine))


def test_what_may_change_is_not_shown_yet(engine):
    ids = engine.policy.encode("12;3")
    shown = [as_sample(engine.policy, ids[:end], [0.0] * end, [";4", "2;3;"], None).text for end in range(5)]
    assert shown == ["", "1", "1", "1", "1"]
    assert as_sample(engine.policy, ids, [0.0] * 4, [";4"], "length").text == "12;3"
    assert as_sample(engine.policy, ids, [0.0] * 4, [";3", "2"], "step").text == "1"
    assert as_sample(engine.policy, ids, [0.0] * 4, [";"], None).finish is None


def test_they_tell_how_they_grow(engine):
    handle = start_samples(engine, PROBLEMS[0], CONFIG, tells=True)
    samples = handle.result(60)
    assert handle.events[-1].kind == "done"
    for event in handle.events[:-1]:
        whole, part = samples[event.index], event.sample
        assert whole.text.startswith(part.text)
        assert part.finish is None
        assert whole.token_ids[: len(part.token_ids)] == part.token_ids
        assert whole.logprobs[: len(part.logprobs)] == part.logprobs
    quiet = start_samples(engine, PROBLEMS[0], CONFIG)
    assert quiet.result(60) == samples
    assert [event.kind for event in quiet.events] == ["done"]


def test_tokens_that_may_complete_a_text():
    tokens = ["a", "b", "ab", "xab", "bc", "ca", "\ufffd"]
    assert completing(tokens, ["ab"]).tolist() == [False, True, True, True, True, False, False]
    assert completing(tokens, []).tolist() == [False] * 7
    assert completing(tokens, ["aé"]).tolist() == [False, False, False, False, False, False, True]


def test_cancelled_ones_leave_nothing(engine):
    handles = [start_samples(engine, problem, CONFIG, stop=["7"]) for problem in PROBLEMS]
    for handle in handles[::2]:
        handle.cancel()
    for handle in handles[1::2]:
        assert len(handle.result(60)) == 4
    engine.search([PROBLEMS[0]], Majority(), 1)  # after the steps that close the others
    assert_idle(*runners(engine))
    assert len(engine.policy.runner.stops._free) == len(engine.policy.runner.stops.table) - 2
