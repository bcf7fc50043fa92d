"""The `openai` client, unmodified: plain samples and searches, whole and in streams."""

import json
import math

import pytest

from engine.scheduler import ComputeOptimal, calibration_file
from engine.search import BeamSearch, BestOfN, Majority
from engine.serve.answers import ranked
from engine.types import Sampling

from .builders import PROBLEM, chat_body, connect

SEED = 3


def ask(client, **fields):
    return client.chat.completions.create(**chat_body(**fields))


def texts(answer) -> list[str]:
    return [choice.message.content for choice in answer.choices]


def test_plain_samples_are_those_of_a_majority_search(client, home):
    answer = ask(client, n=4, seed=SEED, logprobs=True)
    result = home.search([PROBLEM], Majority(), 4, seed=SEED)[0]
    by_address = sorted(result.candidates, key=lambda each: each.address)
    assert texts(answer) == [each.text for each in by_address]
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    assert {choice.finish_reason for choice in answer.choices} == {"stop"}
    assert answer.usage.completion_tokens == result.ledger.tokens["generated"]
    assert answer.usage.prompt_tokens == len(home.prompt_ids(PROBLEM + "\n"))
    for choice in answer.choices:
        tokens = choice.logprobs.content
        assert "".join(token.token for token in tokens) == choice.message.content
        assert all(token.logprob <= 0 and bytes(token.bytes).decode() == token.token for token in tokens)
    assert not hasattr(answer, "ttc"), "an ordinary answer has nothing of ours"


def test_without_a_seed_every_request_draws_anew(client):
    assert len({tuple(texts(ask(client, n=4, temperature=1.5))) for _ in range(3)}) > 1


def test_sampling_limits_and_stops(client, home):
    greedy = ask(client, temperature=0, n=2)
    assert len(set(texts(greedy))) == 1
    (whole,) = set(texts(greedy))
    cut = ask(client, temperature=0, max_completion_tokens=5)
    assert (cut.choices[0].finish_reason, cut.usage.completion_tokens) == ("length", 5)
    assert whole.startswith(texts(cut)[0])
    stopped = ask(client, temperature=0, stop=["\nd3?1", "never"])
    assert texts(stopped) == [whole[: whole.index("\nd3?1")]]
    assert stopped.choices[0].finish_reason == "stop"
    narrow = ask(client, top_p=1e-6, seed=SEED)
    assert texts(narrow) == [whole]
    for narrow in ({"top_k": 1}, {"min_p": 1.0}):
        assert texts(ask(client, seed=SEED, extra_body=narrow)) == [whole]
    rules = len(home.policy.runner.stops.table)
    for number in range(5):
        ask(client, stop=f"stop {number}", max_tokens=2)
    assert len(home.policy.runner.stops.table) == rules, "what users name is not kept"


def test_completions_are_the_same_in_the_other_form(client):
    options = {"model": "home", "prompt": PROBLEM, "seed": SEED, "max_tokens": 256}
    answer = client.completions.create(**options, logprobs=0, n=2)
    assert [choice.text for choice in answer.choices] == texts(ask(client, n=2, seed=SEED))
    for choice in answer.choices:
        assert "".join(choice.logprobs.tokens) == choice.text
        assert [choice.text[at:][:1] for at in choice.logprobs.text_offset] == [t[:1] for t in choice.logprobs.tokens]
        assert len(choice.logprobs.token_logprobs) == len(choice.logprobs.tokens)
    assert client.completions.create(model="home", prompt=[PROBLEM]).usage.completion_tokens <= 16
    parts = list(client.completions.create(**options, stream=True))
    assert "".join(part.choices[0].text for part in parts) == answer.choices[0].text


@pytest.mark.parametrize(
    ("model", "ttc", "strategy", "budget"),
    [
        ("home@beam-16", None, BeamSearch(), 16),
        ("home@beam:width=2-8", None, BeamSearch(width=2), 8),
        ("home@best-of-n-64", {"verifier": "orm"}, BestOfN(), 64),
        ("home@best-of-n-8", {"vote": "naive", "agg_strategy": "min"}, BestOfN(vote="naive"), 8),
        ("home", {}, BeamSearch(), 16),
        ("home", {"beam_width": 2, "budget": 4}, BeamSearch(width=2), 4),
        ("home", {"strategy": "majority", "budget": 8}, Majority(), 8),
    ],
)
def test_a_search_is_that_of_the_engine(client, home, model, ttc, strategy, budget):
    named = {name: ttc[name] for name in ("verifier", "agg_strategy") if ttc and name in ttc}
    result = home.search([PROBLEM], strategy, budget, seed=SEED, **named)[0]
    extra = {} if ttc is None else {"extra_body": {"ttc": ttc}}
    answer = ask(client, model=model, seed=SEED, n=3, **extra)
    wanted = [result.candidates[index].text for index in ranked(result)][:3]
    assert texts(answer) == wanted
    assert result.candidates[ranked(result)[0]].answer == result.answer == answer.ttc["answer"]
    assert len(set(wanted)) == len(wanted)
    assert answer.ttc["generations"] == budget
    assert answer.usage.completion_tokens == sum(node.num_tokens for node in result.tree.nodes)
    bill = answer.usage.ttc
    assert (bill["tokens"]["verified"] > 0, bill["flops"]["verified"] > 0) == (strategy.is_scored, strategy.is_scored)
    assert bill["total_flops"] == sum(bill["flops"].values())


def test_compute_optimal_plans(client, home):
    strategy = ComputeOptimal(calibration_file("home"))
    result = home.search([PROBLEM], strategy, 16, seed=SEED)[0]
    answer = ask(client, model="home@compute-optimal-16", seed=SEED)
    assert texts(answer) == [result.candidates[ranked(result)[0]].text]
    assert answer.ttc["plan"] == result.plan


def test_return_says_what_is_told(client, home):
    names = ["candidates", "scores", "votes", "ledger", "tree"]
    answer = ask(client, model="home@beam-8", seed=SEED, extra_body={"ttc": {"return": names}})
    result = home.search([PROBLEM], BeamSearch(), 8, seed=SEED)[0]
    told = answer.ttc
    assert [each["text"] for each in told["candidates"]] == [each.text for each in result.candidates]
    assert told["scores"] == [list(each.scores) for each in result.candidates]
    assert sum(each["votes"] for each in told["votes"]) == len(result.candidates)
    assert told["votes"][0]["answer"] == result.answer
    assert math.isclose(sum(each["score"] for each in told["votes"]), sum(each.agg_score for each in result.candidates))
    assert [node["text"] for node in told["tree"]] == [node.step_text for node in result.tree.nodes]
    assert set(told["ledger"]) == {"tokens", "flops"}
    assert set(ask(client, model="home@beam-4", seed=SEED).ttc).isdisjoint(names)


def test_a_deadline_gives_the_best_so_far(client):
    answer = ask(client, model="home@best-of-n-64", extra_body={"ttc": {"deadline_s": 0}})
    assert answer.ttc["stopped_by"] == "deadline"
    assert (texts(answer), answer.choices[0].finish_reason) == ([""], "length")


def test_a_stream_of_samples(client):
    whole = ask(client, n=3, seed=SEED, logprobs=True)
    parts = list(ask(client, n=3, seed=SEED, logprobs=True, stream=True, stream_options={"include_usage": True}))
    *chunks, last = parts
    assert (last.choices, last.usage.completion_tokens) == ([], whole.usage.completion_tokens)
    assert all(chunk.usage is None for chunk in chunks)
    for choice in whole.choices:
        own = [chunk.choices[0] for chunk in chunks if chunk.choices[0].index == choice.index]
        assert own[0].delta.role == "assistant"
        assert all(part.delta.role is None for part in own[1:])
        assert "".join(part.delta.content or "" for part in own) == choice.message.content
        assert [part.finish_reason for part in own] == [None] * (len(own) - 1) + [choice.finish_reason]
        tokens = [token for part in own if part.logprobs for token in part.logprobs.content]
        assert tokens == choice.logprobs.content
        assert len(own) > 3, "texts come as they grow"


def test_a_stream_holds_back_what_may_be_a_stop_text(client):
    whole = ask(client, temperature=0, stop="\nd3?1")
    parts = list(ask(client, temperature=0, stop="\nd3?1", stream=True))
    assert "".join(part.choices[0].delta.content or "" for part in parts) == texts(whole)[0]


def test_a_stream_of_a_search_tells_its_progress(client, home):
    fields = {"model": "home@beam-8", "seed": SEED, "stream": True}
    quiet = list(ask(client, **fields))
    assert all(chunk.choices for chunk in quiet)
    loud = list(ask(client, **fields, extra_body={"ttc": {"progress": True, "return": ["tree"]}}))
    events = [chunk.ttc["event"] for chunk in loud if not chunk.choices]
    result = home.search([PROBLEM], BeamSearch(), 8, seed=SEED)[0]
    steps = {tuple(event["address"]): event["text"] for event in events if event["kind"] == "step"}
    assert steps == {node.address: node.step_text for node in result.tree.nodes[1:]}
    assert events[-1]["kind"] == "done"
    assert events[-1]["answer"] == result.answer
    for chunks in (quiet, loud):
        said = [chunk.choices[0] for chunk in chunks if chunk.choices]
        assert "".join(part.delta.content or "" for part in said) == result.candidates[ranked(result)[0]].text
        assert sum(bool(part.delta.content) for part in said) > 1, "step by step"
    assert loud[-1].ttc["answer"] == result.answer
    assert "tree" in loud[-1].ttc


def test_a_stream_is_kept_alive_by_comments(server):
    connection = connect(server)
    body = chat_body(model="home@best-of-n-512", stream=True, seed=SEED)
    connection.request("POST", "/v1/chat/completions", json.dumps(body), {"Content-Type": "application/json"})
    answer = connection.getresponse()
    assert answer.headers.get_content_type() == "text/event-stream"
    lines = answer.read().decode().split("\n\n")
    assert lines[0] == ": searching"
    assert lines[-2:] == ["data: [DONE]", ""]


def test_sampling_fields_reach_a_search(client, home):
    fields = {"seed": SEED, "temperature": 0.7, "top_p": 0.9, "max_tokens": 30}
    answer = ask(client, model="home@majority-4", **fields, extra_body={"ttc": {"return": "candidates"}})
    sampling = Sampling(temperature=0.7, top_p=0.9)
    result = home.search([PROBLEM], Majority(), 4, seed=SEED, sampling=sampling, max_tokens=30)[0]
    assert [each["text"] for each in answer.ttc["candidates"]] == [each.text for each in result.candidates]
    assert answer.choices[0].finish_reason == "length"
