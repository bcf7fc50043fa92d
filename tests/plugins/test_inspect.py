"""The provider `ttc` in the real Inspect: its answers are those of `ttc search`."""

from __future__ import annotations

import asyncio
import json
import tomllib
from pathlib import Path

import pytest
from click.testing import CliRunner
from inspect_ai import Task, eval
from inspect_ai._cli.main import inspect
from inspect_ai._util.entrypoints import clear_entry_points_state
from inspect_ai.dataset import Sample
from inspect_ai.model import (
    ChatMessageAssistant,
    ChatMessageSystem,
    ChatMessageTool,
    ChatMessageUser,
    ContentImage,
    GenerateConfig,
    get_model,
)
from inspect_ai.scorer import includes
from inspect_ai.tool import ToolInfo

from engine.errors import UserError
from engine.plugins.inspect_model import SearchingModel
from engine.results import read_rows
from tests.plugins.conftest import CONTEXT, typed

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


@pytest.fixture(autouse=True)
def installed(monkeypatch, tmp_path):
    """What an installation of this package tells Inspect, which reads it at its start; and logs in a folder."""
    groups = (
        f"[{group}]\n" + "".join(f"{name} = {where}\n" for name, where in named.items())
        for group, named in PROJECT["entry-points"].items()
    )
    info = tmp_path / "site" / f"ttc_engine-{PROJECT['version']}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Name: ttc-engine\nVersion: {PROJECT['version']}\n")
    (info / "entry_points.txt").write_text("".join(groups))
    monkeypatch.syspath_prepend(info.parent)
    clear_entry_points_state()
    monkeypatch.setenv("INSPECT_LOG_DIR", str(tmp_path / "logs"))
    monkeypatch.setenv("INSPECT_DISPLAY", "none")


def model(options: dict, **more: object) -> SearchingModel:
    named = {**options, **more}
    return SearchingModel(named.pop("policy"), **named)


def generate(api: SearchingModel, *messages: object, tools: list = [], **config: object):  # noqa: B006
    said = [ChatMessageUser(content=each) if isinstance(each, str) else each for each in messages]
    return asyncio.run(api.generate(said, tools, "none", GenerateConfig(**config)))


def as_samples(problems: Path) -> list[Sample]:
    rows = map(json.loads, problems.read_text().splitlines())
    return [Sample(input=row["question"], target=row["answer"][5:], id=index) for index, row in enumerate(rows)]


def test_an_eval_gives_the_rows_of_a_search(options, problems, ttc, tmp_path):
    policy, *_ = options.values()
    named = {name: value for name, value in options.items() if name != "policy"}
    samples = as_samples(problems)[:12]
    (log,) = eval(Task(dataset=samples, scorer=includes()), model=get_model(f"ttc/{policy}", **named))
    assert log.status == "success", log.error
    rows = tmp_path / "rows.jsonl"
    outcome = ttc("search", problems, "--limit", 12, *typed(options), "--prompt-style", "chat", "--out", rows)
    assert outcome.status == 0, outcome.err
    found = {int(sample.id): sample for sample in log.samples}
    assert len(found) == 12
    for row in read_rows(rows):
        output = found[int(row["id"])].output
        told = output.metadata["ttc"]
        assert (told["answer"], told["budget"], told["seed"]) == (row["pred"], 4, 3)
        assert row["answers"][row["completions"].index(output.completion)] == row["pred"]
        assert told["ledger"]["tokens"]["generated"] == row["ledger"]["tokens"]["generated"]
        assert told["ledger"]["flops"]["generated"] == row["ledger"]["flops"]["generated"] > 0
        assert output.usage.output_tokens == sum(row["completion_tokens"])
        assert told["choices"][0]["score"] == row["agg_scores"][row["completions"].index(output.completion)]
    assert log.stats.model_usage[f"ttc/{policy}"].output_tokens == sum(
        sample.output.usage.output_tokens for sample in log.samples
    )


def test_epochs_are_draws_of_their_own_and_runs_are_not(options):
    named = {name: value for name, value in options.items() if name != "policy"}
    model = get_model(f"ttc/{options['policy']}", memoize=False, **named)
    texts = []
    for _ in range(2):
        (log,) = eval(Task(dataset=[Sample(input="How many?", id="a")]), model=model, epochs=2)
        assert log.status == "success", log.error
        texts.append({sample.epoch: sample.output.completion for sample in log.samples})
    assert texts[0] == texts[1]
    assert texts[0][1] != texts[0][2]


def test_choices_are_the_ranked_answers(options):
    api = model(options, budget=8)
    output = generate(api, "How many?", num_choices=3)
    assert len(output.choices) == len({each["answer"] for each in output.metadata["ttc"]["choices"]}) == 3
    assert output.choices[0].message.text == generate(model(options, budget=8), "How many?").completion
    with pytest.raises(UserError, match="at most the budget of 8 answers, got 9"):
        generate(api, "How many?", num_choices=9)


def test_what_is_asked_changes_the_search(options):
    free = {name: value for name, value in options.items() if name not in ("seed", "max_tokens")}
    api = model(free)
    api._name = lambda said: "0"  # not as another question each time
    plain = generate(api, "How many?", max_tokens=24).completion
    for asked in ({"seed": 5}, {"temperature": 0.4}, {"top_p": 0.3}, {"top_k": 2}):
        assert generate(api, "How many?", max_tokens=24, **asked).completion != plain, asked
    both = {"temperature": 0.4, "seed": 5, "max_tokens": 24}
    own = generate(model({**free, **both}), "How many?").completion
    assert generate(api, "How many?", **both).completion == own
    short = generate(api, "How many?", max_tokens=3)
    assert short.usage.output_tokens <= 12
    assert short.stop_reason == "max_tokens"


def test_a_stop_text_ends_an_answer(options):
    one = {**options, "strategy": "majority", "budget": 1, "prm": None}
    whole = generate(model(one), "How many?").completion
    cut = generate(model(one), "How many?", stop_seqs=[whole[3:5]])
    assert (cut.completion, cut.stop_reason) == (whole[: whole.find(whole[3:5])], "stop")
    assert cut.usage.output_tokens < 24


def test_a_conversation_is_rendered_whole(options):
    said = [
        ChatMessageSystem(content="Count."),
        ChatMessageUser(content="2 and 3?"),
        ChatMessageAssistant(content="5"),
        ChatMessageUser(content="How many?"),
    ]
    api = model(options)
    output = generate(api, *said)
    rendered = api._chat.render_chat([{"role": each.role, "content": each.text} for each in said])
    assert output.usage.input_tokens == len(api.engine.policy.encode(rendered, is_start=False))
    assert generate(model(options, prompt_style="plain"), "How many?").usage.input_tokens < output.usage.input_tokens
    with pytest.raises(UserError, match="without a chat template the policy takes one message"):
        generate(model(options, prompt_style="plain"), *said)


def test_the_same_question_again_is_another_draw(options):
    api = model(options)
    assert generate(api, "How many?").completion != generate(api, "How many?").completion


def test_a_prompt_over_the_context(options):
    output = generate(model(options), "many mugs " * CONTEXT)
    assert output.stop_reason == "model_length"
    assert f"holds {CONTEXT}" in output.error


def image() -> ChatMessageUser:
    return ChatMessageUser(content=[ContentImage(image="data:image/png;base64,AAAA")])


@pytest.mark.parametrize(
    ("messages", "more", "said"),
    [
        (["x"], {"tools": [ToolInfo(name="bash", description="")]}, r"calls no tools, got \['bash'\]"),
        (["x"], {"logprobs": True}, "honours no logprobs=True"),
        (["x"], {"reasoning_effort": "low"}, "honours no reasoning_effort='low'"),
        (["x"], {"frequency_penalty": 0.5}, "honours no frequency_penalty=0.5"),
        (["x"], {"extra_body": {"a": 1}}, "honours no extra_body="),
        (["x"], {"max_tokens": 30}, "max_tokens=24 and the evaluation asks for 30"),
        (["x"], {"seed": 4}, "seed=3 and the evaluation asks for 4"),
        (["x"], {"temperature": -1.0}, "temperature must be >= 0, got -1.0"),
        (["x"], {"num_choices": 0}, "num_choices must be at least 1, got 0"),
        ([" "], {}, "must be a text of the user's"),
        (["x", ChatMessageAssistant(content="y")], {}, "must be a text of the user's"),
        ([image()], {}, "texts alone, got a message with image"),
        ([ChatMessageTool(content="4"), "x"], {}, "calls no tools, got a message of role 'tool'"),
    ],
)
def test_what_is_not_honoured_is_refused(options, messages, more, said):
    with pytest.raises(UserError, match=said):
        generate(model(options), *messages, **more)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"base_url": "http://x"}, "not at a URL, got 'http://x'"),
        ({"budgt": 3}, "no option 'budgt'"),
        ({"strategy": "beem"}, "strategy must be one of .* got 'beem'"),
    ],
)
def test_arguments_that_are_refused(options, more, said):
    with pytest.raises(UserError, match=said):
        model(options, **more)
    with pytest.raises(UserError, match="follows ttc/"):
        SearchingModel("home", policy="other")


def test_what_asks_for_nothing_is_taken(options):
    assert generate(model(options), "How many?", frequency_penalty=0, logprobs=False, max_connections=3).completion


def test_connections_and_caches_are_those_of_a_configuration(options):
    one, other = model(options), model(options, budget=2)
    assert one.connection_key() == one.base_url == model(options).base_url != other.base_url
    assert other.max_connections() > one.max_connections() >= 4
    assert asyncio.run(one.count_text_tokens("How many?")) == len(one.engine.policy.encode("How many?"))
    assert one.max_tokens() == 24


def test_cancelling_a_sample_ends_its_search(options):
    api = model(options, max_tokens=200)

    async def cancelled() -> None:
        asked = asyncio.ensure_future(
            api.generate([ChatMessageUser(content="How many?")], [], "none", GenerateConfig())
        )
        await asyncio.sleep(0.02)
        asked.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asked

    asyncio.run(cancelled())
    api.engine.search(["How many?"], api.searcher.strategy, config=api.searcher.config)  # after its last step
    pool = api.engine.policy.runner.tree
    assert pool.num_free_blocks + pool.num_cached_blocks == pool.num_blocks
    api.close()


def test_the_command_line_passes_its_arguments_on(options, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("counting.py").write_text(
        "from inspect_ai import Task, task\nfrom inspect_ai.dataset import Sample\n\n"
        "@task\ndef counting():\n    return Task(dataset=[Sample(input='How many?', id='a')])\n"
    )
    arguments = [part for name, value in options.items() if name != "policy" for part in ("-M", f"{name}={value}")]
    named = ["eval", "counting.py", "--model", f"ttc/{options['policy']}", *arguments, "--log-format", "json"]
    run = CliRunner().invoke(inspect, named)
    assert run.exit_code == 0, run.output
    (log,) = (tmp_path / "logs").glob("*.json")
    read = json.loads(log.read_text())
    assert read["status"] == "success", read
    told = read["samples"][0]["output"]["metadata"]["ttc"]
    assert (told["strategy"], told["budget"], told["seed"]) == ("best-of-n", 4, 3)
