"""Searches whose policy is an endpoint: what is asked, what comes of it, and what it costs."""

import asyncio

import pytest
from transformers import LlamaConfig, LlamaForTokenClassification

from engine.accounting import Ledger
from engine.config import SearchConfig
from engine.engine import Engine
from engine.errors import UserError
from engine.keys import branch_key
from engine.search import Adaptive, BeamSearch, BestOfN, Lookahead, Majority, Rebase, Revisions
from engine.types import Problem, Step
from tests.docs.builders import word_tokenizer
from tests.tiny import tiny_config
from tests.verifiers.builders import make

OPTIONS = {"max_tokens": 24, "seed": 3}
PROBLEMS = [Problem("a", "?3?5?=a\n", "0"), Problem("b", "f0?1?4?\n", "0")]
KNOWN = ["tokens.cached", "tokens.generated", "tokens.prefilled"]


def test_best_of_n_with_a_prm_of_our_own(engine, server):
    results = engine.search(PROBLEMS, BestOfN(), 4, **OPTIONS)
    assert {path for path, _ in server.asked} == {"/completions"}
    sent = {(body["prompt"], body["seed"]): body for _, body in server.asked}
    assert len(sent) == len(server.asked) == 8
    for problem, result in zip(PROBLEMS, results, strict=True):
        keys = [branch_key(3, problem.id, (index,)) for index in range(4)]
        for key, candidate in zip(keys, sorted(result.candidates, key=lambda each: each.address), strict=True):
            body = sent[problem.prompt, key % (1 << 31)]
            assert (body["temperature"], body["top_p"], body["max_tokens"], body["stream"]) == (1.0, 1.0, 24, True)
            assert {"top_k", "min_p"}.isdisjoint(body)
            text, reason = server.sample(body)
            assert (candidate.text, candidate.finish) == (text, "eos" if reason == "stop" else "length")
            assert candidate.num_tokens == len(text) + (reason == "stop")
            if reason == "stop" and text.strip():
                assert candidate.scores == tuple(scores_of(engine, problem, text))
    assert any(candidate.scores for result in results for candidate in result.candidates)


def test_stop_texts_are_the_endpoints_affair(engine, server):
    engine.search(PROBLEMS, Majority(), config=SearchConfig(2, stop_texts=("b", "4?"), max_tokens=8))
    assert [body["stop"] for _, body in server.asked] == [["b", "4?"]] * 4
    engine.search(PROBLEMS[:1], Majority(), 1, **OPTIONS)
    assert "stop" not in server.asked[-1][1]


def scores_of(engine: Engine, problem: Problem, text: str) -> list[float]:
    """As the PRM scores the steps of a text whose token ids are known: its own, with the end of text."""
    ids = engine.prm.encode(text, is_start=False)
    (newline,) = engine.prm.encode("\n", is_start=False)
    runs, start = [], 0
    for place, token in enumerate(ids, start=1):
        if token == newline and text[start:place].strip():
            runs.append(ids[start:place])
            start = place
    if start < len(ids) and text[start:].strip():
        runs.append([*ids[start:], engine.prm.config.eos_token_ids[0]])
    with_ids = engine.prm.open(problem.prompt)
    places, tokens = [], []
    for run in runs:
        tokens += run
        places.append(len(tokens) - 1)
    request = engine.prm.queue_append([with_ids], [tokens], score_at=[places])
    engine.prm.run(request)
    with_ids.close()
    return request.scores[0]


def test_the_bill_is_what_the_server_counts(engine, server):
    (result,) = engine.search(PROBLEMS[:1], Majority(), 4, **OPTIONS)
    tokens, flops = result.ledger.tokens, result.ledger.flops
    assert tokens["generated"] == sum(each["completion_tokens"] for each in server.billed)
    assert tokens["cached"] == sum(each["prompt_tokens"] - 1 for each in server.billed)
    assert tokens["prefilled"] == 4
    assert sum(node.num_tokens for node in result.tree.nodes) == tokens["generated"]
    assert flops["generated"] == flops["prefilled"] == 0
    (judged,) = engine.search(PROBLEMS[:1], BestOfN(), 4, **OPTIONS)
    assert judged.ledger.flops["verified"] > 0
    assert judged.ledger.estimated == result.ledger.estimated
    assert result.ledger.estimated == {"flops.generated", "flops.prefilled"}


def test_what_the_server_does_not_count_is_said_to_be_estimated(engine, server):
    server.tells_usage = False
    (result,) = engine.search(PROBLEMS[:1], Majority(), 4, **OPTIONS)
    texts = [each.text for each in result.candidates]
    assert result.ledger.tokens["generated"] == sum(map(len, texts)), "a piece is a token"
    assert {*KNOWN, "flops.generated"} < result.ledger.estimated


def test_an_endpoint_that_does_not_stream(engine, server):
    want = [each.candidates for each in engine.search(PROBLEMS, BestOfN(), 4, **OPTIONS)]
    server.streams = False
    assert [each.candidates for each in engine.search(PROBLEMS, BestOfN(), 4, **OPTIONS)] == want


def test_a_larger_budget_keeps_the_samples_of_a_smaller_one(engine):
    few, many = (engine.search(PROBLEMS[:1], Majority(), budget, **OPTIONS)[0] for budget in (2, 4))
    texts = {each.address: each.text for each in many.candidates}
    assert all(texts[each.address] == each.text for each in few.candidates)


def test_sampling_is_sent(engine, server):
    from engine.types import Sampling

    sampling = Sampling(0.5, top_k=7, top_p=0.9, min_p=0.1)
    server.answer = lambda body: "1"
    engine.search(PROBLEMS[:1], Majority(), 1, sampling=sampling, **OPTIONS)
    _, body = server.asked[0]
    assert [body[name] for name in ("temperature", "top_k", "top_p", "min_p")] == [0.5, 7, 0.9, 0.1]


def test_adaptive_stops_when_answers_agree(server):
    engine = Engine.load(server.name, task="math")
    server.answer = lambda body: r"So \boxed{2}"
    (result,) = engine.search(PROBLEMS[:1], Adaptive(vote="majority"), 64, **OPTIONS)
    assert (result.answer, len(server.asked)) == ("2", result.num_generations)
    assert result.num_generations < 64


def test_revisions_stand_in_the_conversation(chat, server):
    server.answer = lambda body: f"{len(body['messages'])}\n#{body['seed'] % 10}"
    (result,) = chat.search(PROBLEMS[:1], Revisions(parallel=2, context=2, vote="majority"), 8, **OPTIONS)
    assert len(result.candidates) == 8
    said = {body["seed"]: server.answer(body) for _, body in server.asked}
    for _, body in server.asked:
        assert [message["role"] for message in body["messages"]] == ["user", "assistant"] * 2 + ["user"] or len(
            body["messages"]
        ) in (1, 3)
        assert all(message["content"] == PROBLEMS[0].prompt.strip() for message in body["messages"][::2])
        assert {message["content"] for message in body["messages"][1::2]} <= set(said.values())
    assert sorted(len(body["messages"]) for _, body in server.asked) == [1, 1, 3, 3, 5, 5, 5, 5]
    assert {path for path, _ in server.asked} == {"/chat/completions"}


def test_revisions_leave_out_what_the_context_does_not_hold(server, folders):
    server.model_fields = {"max_model_len": 60}
    server.answer = lambda body: "1234567890#1"
    chat = Engine.load(server.name, prompt_style="chat")
    chat.search(PROBLEMS[:1], Revisions(parallel=1, context=4, vote="majority"), 4, **OPTIONS)
    # 60 tokens hold 24 of an answer, the prompt of 7, and one attempt of 13 after a prompt.
    assert [len(body["messages"]) for _, body in server.asked] == [1, 3, 3, 3]


def test_chats_have_a_system_prompt_and_examples(server, tmp_path):
    (tmp_path / "shots.jsonl").write_text('{"problem": "1+1", "solution": "2"}\n')
    chat = Engine.load(
        server.name, task="math", prompt_style="boxed", few_shot=tmp_path / "shots.jsonl", system_prompt="Be right."
    )
    server.answer = lambda body: r"So \boxed{2} and more"
    server.piece = 4
    (result,) = chat.search(["What is 1+1?"], Majority(), 1, max_tokens=30)
    _, body = server.asked[0]
    assert [each["role"] for each in body["messages"]] == ["system", "user", "assistant", "user"]
    assert body["messages"][0]["content"] == "Be right."
    assert body["messages"][-1]["content"].endswith("What is 1+1?")
    (candidate,) = result.candidates
    assert (candidate.finish, candidate.text, result.answer) == ("boxed", r"So \boxed{2}", "2")


def test_a_verifier_with_a_text_format_and_none_that_needs_the_policys_tokens(server, tmp_path):
    engine = Engine.load(server.name, prm=make(tmp_path / "text", "qwen-prm", seed=1), num_blocks=256)
    server.answer = lambda body: f"1*2=2\n{body['seed'] % 7}\n#2"
    (result,) = engine.search(PROBLEMS[:1], BestOfN(), 2, **OPTIONS)
    assert [len(each.scores) for each in result.candidates] == [3, 3]
    tokenizer = word_tokenizer()
    LlamaForTokenClassification(tiny_config(LlamaConfig, tokenizer, 512, num_labels=1)).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    engine = Engine.load(server.name, prm=tmp_path, num_blocks=256)
    with pytest.raises(UserError, match=r"reads the tokens that a policy samples, and openai:http.* tells texts alone"):
        engine.search(PROBLEMS[:1], BestOfN(), 2, **OPTIONS)


@pytest.mark.parametrize("strategy", [BeamSearch(), Lookahead(), Rebase()])
def test_strategies_that_fork_are_refused_by_name(engine, server, strategy):
    with pytest.raises(
        UserError, match=f"strategy '{strategy.name}' forks .* majority, best-of-n, adaptive, revisions"
    ):
        engine.search(PROBLEMS, strategy, 8, **OPTIONS)
    with pytest.raises(UserError, match=f"strategy '{strategy.name}' forks"):
        engine.submit(PROBLEMS[0], strategy, budget=8, **OPTIONS)
    assert not server.asked


def test_revisions_of_plain_texts_and_heads_on_the_trunk_are_refused(engine, server):
    with pytest.raises(UserError, match=r"'revisions' .* a prompt style of chats .* got 'plain'"):
        engine.search(PROBLEMS, Revisions(), 8, **OPTIONS)
    with pytest.raises(UserError, match=r"verifier 'trunk' .* openai:http"):
        engine.search(PROBLEMS, BestOfN(), 8, verifier="trunk", **OPTIONS)
    assert not server.asked


def test_what_has_no_effect_on_an_endpoint_is_refused(server, folders):
    for options, said in (
        ({"reviser": str(folders["policy"])}, "an endpoint revises its own answers"),
        ({"trunk_head": "home"}, "a trunk head is on a policy's trunk"),
        ({"tensor_parallel": 2}, "tensor_parallel has no effect"),
        ({"request_timeout": 0}, "request_timeout must be above 0"),
        ({"max_batch": 0}, "max_batch must be at least 1"),
    ):
        with pytest.raises(UserError, match=said):
            Engine.load(server.name, **options)


def test_at_most_max_batch_requests_are_in_flight(server):
    engine = Engine.load(server.name, max_batch=3)
    server.answer, server.delay = (lambda body: "12"), 0.005
    engine.search(PROBLEMS, Majority(), 8, **OPTIONS)
    assert len(server.asked) == 16
    assert server.most_in_flight <= 3


def test_a_branch_is_closed_once_and_what_runs_is_taken_back(engine):
    async def run():
        branch = await engine._policy.open("1", ledger=Ledger(), history=[(Step((), "2", "eos"),)])
        assert branch.turns == ("1", "2", "1")
        branch.close()
        with pytest.raises(UserError, match="closed already"):
            branch.close()

    asyncio.run(run())
