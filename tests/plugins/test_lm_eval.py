"""The model `ttc` in the real lm-evaluation-harness: answers are those of `ttc search`, likelihoods those of `hf`."""

from __future__ import annotations

import json
import random
import sys
from functools import partial
from pathlib import Path

import datasets
import lm_eval
import pytest
from lm_eval.api.instance import Instance
from lm_eval.api.model import CachingLM
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from transformers import PreTrainedTokenizerFast

from engine.errors import UserError
from engine.plugins.eval_command import main
from engine.plugins.lm_eval import SearchingLM
from engine.prompts.stops import before_stops
from engine.results import read_rows
from engine.results.rows import FIELDS
from engine.types import Rendered
from tests.cli.conftest import comparable
from tests.docs.builders import WORD_PROBLEMS
from tests.plugins.conftest import CONTEXT, typed, written
from tests.remote.server import serving
from tests.tiny import tiny_policy, tiny_trunk_head

GSM8K = """\
task: our_gsm8k
dataset_path: json
dataset_kwargs: {data_files: {test: DATA}}
test_split: test
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{answer.split('####')[-1].strip()}}"
generation_kwargs: {until: ["</s>"], do_sample: false, temperature: 0.0}
filter_list:
  - name: last
    filter:
      - {function: regex, group_select: -1, regex_pattern: "([0-9]+)"}
      - {function: take_first}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
"""
CHOICES = """\
task: our_choices
dataset_path: json
dataset_kwargs: {data_files: {test: DATA}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: ["67", "120", "500"]
doc_to_target: 1
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
"""


@pytest.fixture(autouse=True)
def cache_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def no_other_tasks(monkeypatch):
    """lm-eval's own thousands of tasks, which its command line reads first, take it eight seconds."""
    monkeypatch.setattr(lm_eval.tasks, "TaskManager", partial(TaskManager, include_defaults=False))


@pytest.fixture
def tasks(tmp_path, problems) -> Path:
    folder = tmp_path / "tasks"
    folder.mkdir()
    for name, text in {"gsm8k": GSM8K, "choices": CHOICES}.items():
        (folder / f"{name}.yaml").write_text(text.replace("DATA", str(problems)))
    return folder


def make(options: dict, **more: object) -> SearchingLM:
    return SearchingLM.create_from_arg_obj({**options, **more}, {"batch_size": 1, "device": "cpu"})


def asked(*contexts: str, **kwargs: object) -> list[Instance]:
    """Requests of one task."""
    return [
        Instance("generate_until", {"question": text}, (text, kwargs), 0, ("task", index, 1))
        for index, text in enumerate(contexts)
    ]


# -- whole evaluations -----------------------------------------------------------------------


def command(options: dict, tasks: Path, name: str, *more: object) -> list[str]:
    named = ["--model", "ttc", "--model_args", written(options), "--tasks", name, "--include_path", tasks]
    return [str(each) for each in (*named, *more)]


def test_fifty_rows_are_those_of_a_search(options, tasks, problems, ttc, tmp_path, capsys, no_other_tasks):
    out, rows = tmp_path / "out", tmp_path / "rows.jsonl"
    named = {"pretrained" if name == "policy" else name: value for name, value in options.items()}
    status = main(command(named, tasks, "our_gsm8k", "--output_path", out, "--log_samples"))
    printed = capsys.readouterr()
    assert status == 0, printed.err
    assert "our_gsm8k" in printed.out
    outcome = ttc("search", problems, *typed(options), "--out", rows)
    assert outcome.status == 0, outcome.err
    (beside,) = out.glob("*policy/ttc_*.jsonl")  # where lm-eval put its results
    found, wanted = read_rows(beside), read_rows(rows)
    assert len(wanted) == 50
    same = [name for name in FIELDS if name not in ("answer", "correct")]  # a search is not told what is right
    shown, expected = ([{name: row[name] for name in same} for row in comparable(each)] for each in (found, wanted))
    assert shown == expected
    assert [(row["task"], row["doc_id"], row["repeat"]) for row in found] == [("our_gsm8k", n, 0) for n in range(50)]

    (samples,) = out.glob("*/samples_our_gsm8k_*.jsonl")
    texts = {row["doc_id"]: row["resps"][0][0] for row in map(json.loads, samples.read_text().splitlines())}
    for row in found:
        index = row["completions"].index(texts[row["doc_id"]])
        assert row["answers"][index] == row["pred"]
    (results,) = out.glob("*/results_*.json")
    told = json.loads(results.read_text())["config"]["ttc"]
    assert (told["strategy"], told["budget"], told["seed"], told["temperature"]) == ("best-of-n", 4, 3, 1.0)
    assert told["ledger"]["tokens"]["generated"] == sum(row["ledger"]["tokens"]["generated"] for row in found) > 0


def test_likelihood_tasks_give_the_metrics_of_hf(plain, hf, tasks):
    manager = TaskManager(include_path=str(tasks), include_defaults=False)
    both = []
    for model in (plain, hf):
        found = lm_eval.simple_evaluate(
            model=model, tasks=["our_choices"], limit=8, bootstrap_iters=0, task_manager=manager
        )
        logprobs = [sample["filtered_resps"] for sample in found["samples"]["our_choices"]]
        both.append((found["results"]["our_choices"]["acc,none"], [each for row in logprobs for each, _ in row]))
    (our_accuracy, ours), (accuracy, theirs) = both
    assert ours == pytest.approx(theirs, abs=1e-4)
    assert our_accuracy == accuracy


# -- likelihoods -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def hf(folders) -> HFLM:
    # Read as it was written: by its config alone transformers takes it for the tokenizer of Qwen2's own models.
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folders.policy)
    return HFLM(pretrained=str(folders.policy), tokenizer=tokenizer, device="cpu", dtype="float32", batch_size=4)


@pytest.fixture(scope="module")
def plain(folders) -> SearchingLM:
    return SearchingLM(policy=str(folders.policy), strategy="majority", num_blocks=1024)


def a_text(seed: int, num_words: int) -> str:
    draw = random.Random(seed)
    words = " ".join(row["question"] for row in WORD_PROBLEMS).split()
    return " ".join(draw.choice(words) for _ in range(num_words))


def test_likelihoods_are_those_of_hf(plain, hf):
    long = a_text(1, 300)
    pairs = [
        ("Mira packs 12 boxes", " with 6 mugs each."),
        ("Mira packs 12 boxes ", "with 6 mugs each."),  # a space that belongs to the continuation
        ("", "Tom rides twice a day"),
        ("<|im_end|>", "Tom rides"),
        ("", "<|im_end|>Tom"),  # the token that stands before a text is its first
        (long, " How many"),
        (long[:200], a_text(2, 60)),
        ("Mira packs 12 boxes", " x"),
        ("Mira packs 12 boxes", " with 6 mugs each."),
    ]
    greedy = hf.generate_until([Instance("generate_until", {}, ("Ana has", {"max_gen_toks": 3}), 0)])[0]
    pairs.append(("Ana has", greedy))
    requests = [Instance("loglikelihood", {}, pair, 0) for pair in pairs]
    assert len(hf.tok_encode(long)) > CONTEXT
    ours, theirs = plain.loglikelihood(requests), hf.loglikelihood(requests)
    assert [logprob for logprob, _ in ours] == pytest.approx([logprob for logprob, _ in theirs], abs=1e-4)
    assert [best for _, best in ours] == [best for _, best in theirs]
    assert ours[-1][1]
    assert plain.scored.tokens["prefilled"] > 0
    plain.llm.runner.tree.check_integrity()


def test_rolling_likelihoods_are_those_of_hf(plain, hf):
    texts = [a_text(3, 700), "Tom", a_text(4, 20), ""]
    assert len(hf.tok_encode(texts[0])) > 2 * CONTEXT
    requests = [Instance("loglikelihood_rolling", {}, (text,), 0) for text in texts]
    assert plain.loglikelihood_rolling(requests) == pytest.approx(hf.loglikelihood_rolling(requests), abs=1e-3)
    assert plain.max_length == hf.max_length == CONTEXT
    assert (plain.prefix_token_id, plain.eot_token_id) == (hf.prefix_token_id, hf.eot_token_id)


def test_a_continuation_that_no_window_holds_is_refused(plain):
    with pytest.raises(UserError, match=f"1 to {CONTEXT} tokens, got "):
        plain.loglikelihood([Instance("loglikelihood", {}, ("a", a_text(5, 600)), 0)])
    with pytest.raises(UserError, match="got 0"):
        plain.loglikelihood([Instance("loglikelihood", {}, ("a", ""), 0)])


# -- answers ---------------------------------------------------------------------------------


def test_until_ends_every_candidate(options):
    model = make(options)
    model.generate_until(asked("How many?", do_sample=False))
    (free,) = model.rows
    stop = max(free["completions"], key=len)[3:5]
    (text,) = model.generate_until(asked("How many?", until=[stop, "", "never"], max_gen_toks=24))
    stopped = model.rows[1]
    assert set(stopped["completions"]) == {before_stops(each, [stop]) for each in free["completions"]}
    assert "stop" in stopped["finishes"]
    assert sum(stopped["completion_tokens"]) < sum(free["completion_tokens"])
    assert text in stopped["completions"]
    assert model.generate_until(asked("How many?", until=stop)) == [text]


def test_a_head_on_the_trunk_reads_at_no_until(tmp_path):
    folders = {"policy": str(tiny_policy(tmp_path / "policy")), "trunk_head": str(tiny_trunk_head(tmp_path / "head"))}
    model = SearchingLM(**folders, verifier="trunk", strategy="best-of-n", budget=2, max_tokens=24, num_blocks=1024)
    (free,) = model.generate_until(asked("?3?"))
    (cut,) = model.generate_until(asked("?3?", until=[free[2:4]]))
    assert cut == before_stops(free, [free[2:4]]) != free
    assert model.rows[0]["completions"] == model.rows[1]["completions"]


def test_a_request_that_samples_draws_as_it_asks(options):
    model = make(options)
    drawn = model.generate_until(asked("How many?", do_sample=True, temperature=0.5, top_p=0.9, top_k=5))
    row = model.rows[-1]
    assert row["temperature"] == 0.5
    own = make(options, temperature=0.5, top_p=0.9, top_k=5)
    assert own.generate_until(asked("How many?", do_sample=False, temperature=1)) == drawn
    assert comparable(own.rows)[0] == comparable([row])[0]
    assert own.generate_until(asked("How many?", do_sample=True, temperature=0.5)) == drawn
    plainly = make(options).generate_until(asked("How many?"))
    assert plainly != drawn


def test_requests_of_one_call_may_ask_for_different_lengths(options):
    model = make({**options, "max_tokens": None})
    model.generate_until([*asked("How many?", max_gen_toks=5), *asked("How many?", max_new_tokens=20)])
    first, second = (max(row["completion_tokens"]) for row in model.rows)
    assert first == 5 < second <= 20


def test_a_repeat_is_another_draw(options):
    model = make(options)
    (request,) = asked("How many?")
    texts = model.generate_until([request, request])
    assert texts[0] != texts[1]
    assert [row["repeat"] for row in model.rows] == [0, 1]
    assert [row["id"] for row in model.rows] == ["0", "0#1"]


@pytest.mark.parametrize(
    ("kwargs", "said"),
    [
        ({"num_beams": 4}, "num_beams=4"),
        ({"do_sample": "yes"}, "do_sample must be true or false, got 'yes'"),
        ({"max_gen_toks": 0}, "max_gen_toks must be at least 1, got 0"),
        ({"max_gen_toks": 30}, "max_tokens=24 and the evaluation asks for 30"),
        ({"do_sample": True, "temperature": -1}, "temperature must be >= 0, got -1"),
        ({"temperature": "hot"}, "temperature must be a number, got 'hot'"),
        ({"until": [3]}, r"until must be texts, got \[3\]"),
    ],
)
def test_what_is_not_honoured_is_refused(options, kwargs, said):
    with pytest.raises(UserError, match=said):
        make(options).generate_until(asked("How many?", **kwargs))


def test_a_temperature_that_the_arguments_contradict_is_refused(options):
    with pytest.raises(UserError, match=r"temperature=0\.7 and the evaluation asks for 0.5"):
        make(options, temperature=0.7).generate_until(asked("How many?", do_sample=True, temperature=0.5))


def test_what_asks_for_nothing_is_taken(options):
    assert make(options).generate_until(asked("How many?", num_beams=1, top_k=-1, until=None)) != [""]


def test_a_problem_that_fails(options, tmp_path):
    requests = asked("How many?", a_text(6, 600))
    with pytest.raises(UserError, match=r"task task, document 1: .* tokens"):
        make(options).generate_until(requests)
    model = make(options, on_error="row", ledger=str(tmp_path / "rows.jsonl"))
    texts = model.generate_until(requests)
    assert texts[0]
    assert texts[1] == ""
    first, second = map(json.loads, (tmp_path / "rows.jsonl").read_text().splitlines())
    assert "error" not in first
    assert f"holds {CONTEXT}" in second["error"]
    assert "ttc" in model.get_model_info()


def test_an_endpoint_answers_and_tells_no_likelihoods(folders):
    with serving(folders.policy) as server:
        named = {"policy": server.name, "prm": str(folders.prm), "task": "gsm8k", "max_tokens": 8, "num_blocks": 256}
        model = SearchingLM(**named, strategy="best-of-n", budget=2, prompt_style="chat")
        (text,) = model.generate_until(asked("How many?", until=["9"]))
        assert [body["stop"] for _, body in server.asked] == [["9"]] * 2
    (row,) = model.rows
    assert text == before_stops(row["completions"][row["agg_scores"].index(max(row["agg_scores"]))], ["9"])
    with pytest.raises(UserError, match=r"tells no likelihoods of given texts: .* got openai:"):
        model.loglikelihood([Instance("loglikelihood", {}, ("a", "b"), 0)])
    with pytest.raises(UserError, match="needs a chat template"):
        model.chat_template(True)


# -- conversations ---------------------------------------------------------------------------


def test_conversations_are_rendered_as_hf_renders_them(options, hf):
    model = make(options)
    said = [
        {"role": "system", "content": "Count."},
        {"role": "user", "content": "2 and 3?"},
        {"role": "assistant", "content": "5"},
        {"role": "user", "content": "How many?"},
    ]
    text = model.apply_chat_template(said)
    assert text == hf.apply_chat_template(said)
    begun = [*said, {"role": "assistant", "content": "There are"}]
    assert model.apply_chat_template(begun, add_generation_prompt=False) == hf.apply_chat_template(
        begun, add_generation_prompt=False
    )
    assert model.chat_template(True) == hf.chat_template(True)
    model.generate_until(asked(text))
    (row,) = model.rows
    assert row["problem"] == "How many?"  # what verifiers are told
    problem = model.engine.as_problem({"problem": "How many?", "id": "0"}, 0)
    (alone,) = model.engine.search([problem], model.searcher.strategy, config=model.searcher.config)
    assert row["completions"] != [each.text for each in alone.candidates]
    given = Rendered(text)
    assert model.engine.prompt_ids(given) == model.engine.policy.encode(text, is_start=False)


def test_a_task_whose_contexts_are_conversations(options, tasks):
    """lm-eval's function, unlike its command line, does not tell a model that it asks for conversations."""
    model = make(options, prompt_style="plain")
    manager = TaskManager(include_path=str(tasks), include_defaults=False)
    asked_for = {"tasks": ["our_gsm8k"], "limit": 2, "bootstrap_iters": 0, "task_manager": manager}
    lm_eval.simple_evaluate(model=model, **asked_for, apply_chat_template=True)
    lm_eval.simple_evaluate(model=model, **asked_for)
    chats, plain = model.rows[:2], model.rows[2:]
    questions = [row["problem"] for row in plain]
    assert [row["problem"] for row in chats] == questions
    for rows, style in ((chats, "chat"), (plain, "plain")):
        engine = make(options, prompt_style=style).engine
        wanted = engine.search(questions, model.searcher.strategy, config=model.searcher.config)
        assert [row["completions"] for row in rows] == [[each.text for each in found.candidates] for found in wanted]


def test_conversations_that_cannot_be_are_refused(options):
    model = make(options)
    with pytest.raises(UserError, match="none by name, got 'rag'"):
        model.chat_template("rag")
    model.chat_template(True)
    with pytest.raises(UserError, match="--cache_requests, got 'from a file'"):
        model.generate_until(asked("from a file"))
    bare = SearchingLM(policy="home", strategy="majority")
    with pytest.raises(UserError, match="needs a chat template"):
        bare.chat_template(True)


# -- caches and arguments --------------------------------------------------------------------


def test_a_cache_belongs_to_one_configuration(options, tmp_path):
    path, requests = str(tmp_path / "cache.db"), asked("How many?", do_sample=False)
    first = make(options)
    text = CachingLM(first, path).generate_until(requests)
    again = make(options)
    assert CachingLM(again, path).generate_until(requests) == text
    assert again.rows == []  # nothing was searched
    for more in ({"seed": 4}, {"budget": 2}, {"strategy": "majority", "prm": None}, {"temperature": 0.5}):
        with pytest.raises(UserError, match=r"answers of another strategy, .*cache\.db"):
            CachingLM(make({**options, **more}), path)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"budgt": 4}, "no option 'budgt'; there are adaptive_batch, agg_strategy"),
        ({"budget": "many"}, "budget must be a whole number, got 'many'"),
        ({"budget": True}, "budget must be a whole number, got True"),
        ({"temperature": "hot"}, "temperature must be a number, got 'hot'"),
        ({"shares_steps": 1}, "shares_steps must be true or false, got 1"),
        ({"policy": [1]}, r"policy must be a text, got \[1\]"),
        ({"beam_width": 2}, "--beam-width has no effect with --strategy best-of-n"),
        ({"total_budget": 9}, "no option 'total_budget'"),
        ({"prm": None}, "--verifier prm .* needs --prm"),
        ({"pretrained": "home"}, "policy and pretrained are one option, got .* and 'home'"),
        ({"on_error": "cry"}, "on_error must be stop or row, got 'cry'"),
        ({"batch_size": 8}, "a batch size has no effect .* got 8"),
    ],
)
def test_arguments_that_are_refused(options, more, said):
    with pytest.raises(UserError, match=said):
        SearchingLM.create_from_arg_obj({**options, **more})


def test_lm_evals_own_device_is_not_that_of_every_machine(options, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    own = {"batch_size": "auto", "device": "cuda:0"}
    with pytest.warns(UserWarning, match="ttc runs on the CPU"):
        assert SearchingLM.create_from_arg_string(written(options), own).searcher.models.device == "cpu"
    assert SearchingLM.create_from_arg_obj({**options, "device": "cpu"}, own).searcher.models.device == "cpu"


def test_the_command_says_what_is_wrong_in_a_sentence(options, tasks, capsys, monkeypatch, no_other_tasks):
    status = main(command({**options, "budget": 0}, tasks, "our_gsm8k"))
    assert (status, capsys.readouterr().err.splitlines()[-1]) == (2, "error: budget must be at least 1, got 0")
    monkeypatch.setitem(sys.modules, "lm_eval._cli", None)
    status = main(["--model", "ttc"])
    said = "error: `ttc-eval` needs lm_eval._cli, which is missing: pip install 'ttc-engine[eval]'\n"
    assert (status, capsys.readouterr().err) == (2, said)
