"""The engine as a user meets it."""

import dataclasses
import inspect
import shutil

import pytest
import torch

from engine import (
    DVTS,
    Adaptive,
    BeamSearch,
    BestOfN,
    ComputeOptimal,
    Engine,
    EngineConfig,
    Lookahead,
    Majority,
    PoolTooSmall,
    Problem,
    Rebase,
    Sampling,
    SearchConfig,
    UserError,
)
from engine.errors import sentence
from engine.runtime import LLM
from engine.runtime.checks import raise_error
from engine.scheduler import Assigned, Assignment, Bins, Calibration, CalibrationWarning, Cell, PilotSamples, Predictor
from engine.search import MAX_BUDGET
from engine.tasks import get_task, take_problems
from tests.runtime.builders import PROBLEMS, Folders, assert_idle, fingerprint, folders, runners
from tests.tiny import tiny_prm

__all__ = ["folders"]
OPTIONS = {"max_tokens": 24, "seed": 3}
STRATEGIES = [Majority(), BestOfN(), BeamSearch(width=2), Lookahead(width=2, lookahead=1), DVTS(width=2)]
STRATEGIES += [Rebase(), Adaptive(batch=2), BeamSearch(width=2, max_duplicates=0)]


@pytest.fixture
def engine(folders: Folders) -> Engine:
    return Engine.load(folders.policy, prm=folders.prm, trunk_head=folders.trunk_head, num_blocks=256)


@pytest.mark.parametrize("strategy", STRATEGIES, ids=lambda strategy: strategy.name)
def test_a_search(engine, strategy):
    problems = take_problems(get_task("walks"), "test", 3)
    results = engine.search(problems, strategy, budget=4, **OPTIONS)
    assert [result.problem for result in results] == problems
    for result in results:
        assert (result.strategy, result.budget, result.seed) == (strategy.name, 4, 3)
        assert 1 <= len(result.candidates) <= 4
        assert all(candidate.num_tokens <= 24 for candidate in result.candidates)
        assert result.correct == (result.answer == result.problem.answer)
        ended = [candidate for candidate in result.candidates if candidate.finish == "eos"]
        assert all(candidate.answer == engine.task.extract(candidate.text) for candidate in ended)
        assert all(0 <= score <= 1 for candidate in result.candidates for score in candidate.scores)
    assert_idle(*runners(engine))


def test_results_are_in_the_order_of_the_problems(engine):
    first = engine.search(PROBLEMS, BestOfN(), 2, **OPTIONS)
    found = dict(engine.search_iter(PROBLEMS[::-1], BestOfN(), 2, **OPTIONS))
    assert sorted(found) == list(range(len(PROBLEMS)))
    backwards = [found[index] for index in range(len(PROBLEMS))][::-1]
    assert [fingerprint(result) for result in backwards] == [fingerprint(result) for result in first]


def test_problems_may_be_texts_and_dicts(engine):
    texts = ["?3?5?=a", {"problem": "?3?5?=a\n", "answer": 60}, Problem("x", "?3?5?=a\n")]
    texts.append({"id": 7, "problem": "d0?", "answer": "18", "level": 3})
    results = engine.search(texts, Majority(), 2, **OPTIONS)
    assert [result.problem.id for result in results] == ["0", "1", "x", "7"]
    assert [result.problem.prompt for result in results] == ["?3?5?=a\n"] * 3 + ["d0?\n"]
    assert [result.problem.answer for result in results] == [None, "60", None, "18"]
    assert [result.correct is None for result in results] == [True, False, True, False]
    for bad, words in [
        ({"question": "1+1"}, "problem 1 .*question"),
        ({"problem": 3}, "problem 1 .*3"),
        ({"problem": "  "}, "problem 1"),
        ("", "problem 1"),
        (5, "problem 1 .*5"),
        (None, "problem 1 .*None"),
    ]:
        with pytest.raises(ValueError, match=words):
            engine.search(["b4?1?", bad], Majority(), 2)
    assert engine.search([], Majority(), 2) == []


@pytest.mark.parametrize(
    ("strategy", "options", "words"),
    [
        (Majority(), {"budget": 0}, "got 0"),
        (Majority(), {"budget": -3}, "got -3"),
        (Majority(), {"budget": MAX_BUDGET + 1}, f"got {MAX_BUDGET + 1}"),
        (BeamSearch(width=8), {"budget": 4}, "4, got 8"),
        (Lookahead(width=4, lookahead=3), {"budget": 8}, "8"),
        (DVTS(width=4), {"budget": 6}, "6"),
        (BestOfN(), {"max_tokens": 0}, "max_tokens must be at least 1, got 0"),
        (BestOfN(), {"agg_strategy": "median"}, "'median'"),
        (BestOfN(), {"verifier": "judge"}, "'judge'"),
    ],
)
def test_arguments_out_of_range(engine, strategy, options, words):
    with pytest.raises(ValueError, match=words):
        engine.search(PROBLEMS, strategy, **{"budget": 4, **options})
    assert engine.policy.runner.num_ticks == 0, "refused before anything runs"


def test_options_may_be_given_as_a_config(folders, engine):
    config = SearchConfig(4, **OPTIONS)
    one_by_one = engine.search(PROBLEMS[:2], BestOfN(), 4, **OPTIONS)
    loaded = Engine.from_config(EngineConfig(folders.policy, prm=folders.prm, num_blocks=256))
    for each in (engine, loaded):
        found = each.search(PROBLEMS[:2], BestOfN(), config=config)
        assert [fingerprint(result) for result in found] == [fingerprint(result) for result in one_by_one]
    assert engine.conditions(BestOfN(), config) == engine.conditions(BestOfN(), **OPTIONS)
    with pytest.raises(UserError, match="not both"):
        engine.search(PROBLEMS[:2], BestOfN(), 4, config=config)


def test_load_takes_the_fields_of_a_config():
    shown = inspect.signature(Engine.load).parameters
    assert list(shown) == [field.name for field in dataclasses.fields(EngineConfig)]
    with pytest.raises(TypeError, match="no option 'polcy'; it has policy, prm, "):
        Engine.load(polcy="home")


@pytest.mark.parametrize("problem", ["\ud800", {"problem": "\ud800"}, Problem("x", "\ud800")])
def test_a_problem_that_is_no_unicode(engine, problem):
    with pytest.raises(UserError, match="not valid Unicode"):
        engine.search([problem], BestOfN(), 2)


def test_a_prompt_over_the_context(engine):
    long = Problem("long", "1" * 1024)
    with pytest.raises(ValueError, match="1024 tokens, the context of the model holds 1024"):
        engine.search([PROBLEMS[0], long], BestOfN(), 2, **OPTIONS)
    assert_idle(*runners(engine))
    assert len(engine.search(PROBLEMS[:1], BestOfN(), 2, **OPTIONS)) == 1


def test_verifiers(engine):
    """By name, as a function, as an object; and what happens without."""
    strategy, problems = BeamSearch(width=2), PROBLEMS[:2]
    default = engine.search(problems, strategy, 4, **OPTIONS)
    by_name = {
        name: engine.search(problems, strategy, 4, verifier=name, **OPTIONS) for name in ("prm", "trunk", "oracle")
    }
    assert [fingerprint(r) for r in default] == [fingerprint(r) for r in by_name["prm"]]
    scores = {name: [c.scores for result in results for c in result.candidates] for name, results in by_name.items()}
    assert scores["prm"] != scores["trunk"] != scores["oracle"]
    assert {score for run in scores["oracle"] for score in run} <= {0.0, 1.0}
    assert all(result.ledger.tokens["verified"] == 0 for result in by_name["trunk"] + by_name["oracle"])

    calls = []

    def judge(prompt: str, steps: list[str]) -> float:
        calls.append((prompt, steps))
        return 0.25

    results = engine.search(problems, strategy, 4, verifier=judge, **OPTIONS)
    assert {score for result in results for c in result.candidates for score in c.scores} == {0.25}
    assert {prompt for prompt, _ in calls} == {problem.prompt for problem in problems}
    again = engine.search(problems, strategy, 4, verifier=engine.resolve_verifier("prm"), **OPTIONS)
    assert [fingerprint(r) for r in again] == [fingerprint(r) for r in default]


def test_verifiers_that_are_not_there(folders):
    engine = Engine.load(folders.policy, num_blocks=64)
    for name, words in (("prm", "no PRM is loaded"), ("trunk", "no trunk head is loaded")):
        with pytest.raises(ValueError, match=f"'{name}'.*{words}"):
            engine.search(PROBLEMS, BestOfN(), 2, verifier=name)
    assert len(engine.search(PROBLEMS[:1], Majority(), 2, **OPTIONS)) == 1, "majority needs none"


def test_the_trunk_head_scores_the_hidden_state_that_draws_the_delimiter(folders, engine):
    """Against transformers: the state before the step's last token, through the head."""
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folders.policy, dtype=torch.float32).eval()
    head = load_file(folders.trunk_head / "model.safetensors")
    (result,) = engine.search(PROBLEMS[:1], BestOfN(), 24, verifier="trunk", **OPTIONS)
    num_checked = 0
    for candidate in result.candidates:
        if not is_plain(candidate):
            continue
        tokens = engine.policy.encode(PROBLEMS[0].prompt + candidate.text)
        with torch.inference_mode():
            hidden = model.model(torch.tensor([tokens])).last_hidden_state[0]
        scores = (hidden @ head["score.weight"][0] + head["score.bias"]).sigmoid()
        (newline,) = engine.policy.encode("\n")
        start = len(tokens) - len(candidate.text)
        places = [i - 1 for i in range(start, len(tokens)) if tokens[i] == newline]
        if tokens[-1] != newline:  # the end of the text is drawn from its last character
            places.append(len(tokens) - 1)
        assert list(candidate.scores) == pytest.approx(scores[places].tolist(), abs=1e-5)
        num_checked += len(places)
    assert num_checked >= 4


def test_sampling_options_reach_the_model(engine):
    def text(**options) -> list[str]:
        (result,) = engine.search(PROBLEMS[:1], Majority(), 3, **OPTIONS, **options)
        return [candidate.text for candidate in result.candidates]

    assert len(set(text(sampling=Sampling(temperature=0.0)))) == 1
    assert text() == text(sampling=Sampling(temperature=1.0)) != text(sampling=Sampling(top_k=3))


def test_a_pool_that_is_too_small_for_a_problem(folders):
    engine = Engine.load(folders.policy, prm=folders.prm, num_blocks=5)
    with pytest.raises(PoolTooSmall, match=r"needs 19 KV blocks, the pool has 5"):
        engine.search(PROBLEMS, BestOfN(), 2)
    with pytest.raises(ValueError, match="the pool has 5"):  # it is a ValueError
        engine.search(PROBLEMS, BestOfN(), 2)
    assert len(engine.search(PROBLEMS[3:], Majority(), 2, max_tokens=20)) == 2


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"device": "abacus"}, "'abacus'"),
        ({"dtype": "fp8"}, "'fp8'"),
        ({"max_batch": 0}, "got 0"),
        ({"num_blocks": 0}, "got 0"),
        ({"task": "sums"}, "'sums'"),
        ({"prm": "nowhere"}, "'nowhere'"),
        ({"trunk_head": "nowhere"}, "'nowhere'"),
        ({"policy": "nowhere"}, "'nowhere'"),
    ],
)
def test_loading_what_cannot_be_loaded(folders, options, words):
    with pytest.raises(ValueError, match=words):
        Engine.load(**{"policy": folders.policy, "num_blocks": 64, **options})


def test_models_in_each_others_place(folders, tmp_path):
    with pytest.raises(ValueError, match="not a step verifier"):
        Engine.load(folders.policy, prm=folders.policy, num_blocks=64).search(PROBLEMS, BestOfN(), 2)
    engine = Engine(LLM.load(folders.prm, num_blocks=64))
    with pytest.raises(ValueError, match="no LM head"):
        engine.search(PROBLEMS, Majority(), 2)
    broken = shutil.copytree(folders.prm, tmp_path / "prm")
    (broken / "config.json").write_text("{")
    with pytest.raises(ValueError, match="not valid JSON"):
        Engine.load(folders.policy, prm=broken, num_blocks=64)


def test_a_verifier_of_its_own_vocabulary(folders, tmp_path):
    """The same PRM with its tokens numbered otherwise gives the same scores: steps go by their text."""
    from safetensors.torch import load_file, save_file
    from tokenizers import Tokenizer

    other = shutil.copytree(folders.prm, tmp_path / "prm")
    text = (other / "tokenizer.json").read_text()
    tokenizer = Tokenizer.from_str(text)
    one, two = tokenizer.token_to_id("1"), tokenizer.token_to_id("2")
    text = text.replace(f'"1": {one}', f'"1": {two}', 1).replace(f'"2": {two}', f'"2": {one}', 1)
    (other / "tokenizer.json").write_text(text)
    assert Tokenizer.from_str(text).token_to_id("1") == two
    tensors = load_file(other / "model.safetensors")
    embedding = tensors["model.embed_tokens.weight"].clone()
    embedding[[one, two]] = embedding[[two, one]]
    tensors["model.embed_tokens.weight"] = embedding
    save_file(tensors, other / "model.safetensors")
    want, got = (
        Engine.load(folders.policy, prm=prm, num_blocks=256).search(PROBLEMS, BestOfN(), 8, **OPTIONS)
        for prm in (folders.prm, other)
    )
    num_checked = 0
    for one_result, other_result in zip(want, got, strict=True):
        for mine, theirs in zip(one_result.candidates, other_result.candidates, strict=True):
            assert mine.text == theirs.text
            if is_plain(mine):
                assert mine.scores == theirs.scores
                num_checked += len(mine.scores)
    assert num_checked >= 5


def is_plain(candidate) -> bool:
    """Ended, and without the padding and unknown tokens that a random model samples and no text shows."""
    return candidate.finish == "eos" and candidate.num_tokens == len(candidate.text) + 1


def calibration_for(engine: Engine, *cells: Cell) -> Calibration:
    """Of one bin, for searches with OPTIONS."""
    predictor = Predictor("agreement", 2)
    conditions = engine.conditions(PilotSamples(predictor, True), max_tokens=OPTIONS["max_tokens"])
    budgets = tuple(sorted({cell.budget for cell in cells}))
    return Calibration(conditions, "some", predictor, Bins(), (9,), budgets, cells)


def test_a_strategy_for_each_problem(engine):
    cell = Cell(0, BeamSearch(width=2), 6, 5, 9, 6.0, 1.0, 1.0)
    strategy = ComputeOptimal(calibration_for(engine, cell))
    results = engine.search(PROBLEMS, strategy, 6, **OPTIONS)
    plain = engine.search(PROBLEMS, BestOfN(), 2, **OPTIONS)
    for result, pilot in zip(results, plain, strict=True):
        assert result.candidates[:2] == pilot.candidates
        assert (result.strategy, result.num_generations) == ("compute-optimal", 6)
        tokens = result.ledger.tokens
        assert tokens["estimation"] >= sum(candidate.num_tokens for candidate in pilot.candidates)
    assert sum(result.ledger.tokens["verified"] for result in results) > 0  # an answer that was cut off is not scored
    few = Engine.load(engine.policy.folder, prm=engine.prm.folder, num_blocks=256, max_batch=3)
    again = few.search(PROBLEMS[::-1], strategy, 6, **OPTIONS)[::-1]
    assert [fingerprint(result) for result in again] == [fingerprint(result) for result in results]
    assert_idle(*runners(engine))


def test_a_search_goes_on_to_the_same_answers(engine):
    """On models, where prompts are read again from the cache: what a larger budget would have drawn."""
    plain = engine.search(PROBLEMS, BestOfN(), 7, **OPTIONS)
    pilots = engine.search(PROBLEMS, BestOfN(), 3, **OPTIONS)
    plans = {pilot.problem.id: Assignment(BestOfN(), 7, pilot) for pilot in pilots}
    longer = engine.search(PROBLEMS, Assigned(plans), 7, **OPTIONS)
    assert [result.candidates for result in longer] == [result.candidates for result in plain]
    early = engine.search(PROBLEMS, Adaptive(batch=2), 7, **OPTIONS)
    assert [r.candidates for r in early] == [
        p.candidates[: r.num_generations] for p, r in zip(plain, early, strict=True)
    ]


def test_one_budget_for_all_problems(engine):
    cells = (Cell(0, Majority(), 4, 3, 9, 4.0, 1.0, 1.0), Cell(0, BestOfN(), 8, 5, 9, 8.0, 1.0, 1.0))
    strategy = ComputeOptimal(calibration_for(engine, *cells))
    results = engine.search_batch(PROBLEMS, strategy, 21, **OPTIONS)
    assert [result.problem for result in results] == PROBLEMS
    assert sum(result.num_generations for result in results) == 21
    with pytest.raises(ValueError, match=r"at least 2 for each of .* got 3"):
        engine.search_batch(PROBLEMS, strategy, 3, **OPTIONS)
    with pytest.warns(CalibrationWarning, match=r"max_tokens was 24, now 12\): majority"):
        results = engine.search_batch(PROBLEMS, strategy, 21, **{**OPTIONS, "max_tokens": 12})
    assert {(result.strategy, result.num_generations) for result in results} == {("majority", 21 // len(PROBLEMS))}


def test_conditions_name_what_accuracies_depend_on(engine, folders, tmp_path):
    plain = engine.conditions(BestOfN())
    assert plain == engine.conditions(BestOfN(), seed=5, verifier="prm")
    changes = [
        {"verifier": "trunk"},
        {"verifier": len},
        {"sampling": Sampling(top_k=3)},
        {"max_tokens": 3},
        {"agg_strategy": "min"},
    ]
    found = [engine.conditions(BestOfN(), **change) for change in changes]
    other_prm = tiny_prm(tmp_path / "prm", seed=77)
    found.append(Engine.load(folders.policy, prm=other_prm, num_blocks=64).conditions(BestOfN()))
    changed = {"prm": folders.prm, "num_blocks": 64, "prompt_style": "plain", "system_prompt": "12"}
    found.append(Engine.load(folders.policy, **changed).conditions(BestOfN()))
    found.append(Engine.load(folders.prm, prm=folders.prm, num_blocks=64).conditions(BestOfN()))
    assert all(each != plain for each in found)
    assert engine.conditions(Majority()) == engine.conditions(Majority(), verifier="trunk", agg_strategy="min")


@pytest.mark.parametrize("problems", ["?5?2?=c", {"problem": "?5?2?=c"}, Problem("0", "b4?\n"), None, 5])
def test_problems_that_are_no_list(engine, problems):
    """A text would be searched letter by letter, a row name by name."""
    with pytest.raises(UserError, match="problems must be a list of problems, got "):
        engine.search(problems, BestOfN(), 4)


def test_a_problem_whose_prompt_is_no_text(engine):
    with pytest.raises(UserError, match="the prompt of problem 'a' must be a text, got None"):
        engine.search([Problem("a", None)], BestOfN(), 4)


@pytest.mark.parametrize("strategy", ["majority", None, 5, [BestOfN()], BestOfN])
def test_a_strategy_that_is_none(engine, strategy):
    with pytest.raises(UserError, match="strategy must be a strategy such as BestOfN"):
        engine.search(["?5?2?=c"], strategy, 4)


def test_a_search_that_fails_may_leave_the_others_alone(engine):
    """What an overlong prompt or a verifier raises stands for the result; a grader that fails cannot tell."""

    def judge(prompt, steps):
        if prompt == PROBLEMS[1].prompt:
            raise RuntimeError("a verifier\nbroke")
        return 0.5

    def compare(pairs, problems):
        if pairs[0][0] == "broken":
            raise KeyError("a grader")
        return [False] * len(pairs)

    engine.task = dataclasses.replace(engine.task, extract=lambda text: "7", compare=compare)
    asked = [*PROBLEMS[:3], Problem("long", "?1" * 4000), dataclasses.replace(PROBLEMS[2], answer="broken")]
    options = {"verifier": judge, **OPTIONS, "max_tokens": 300}  # so that an answer ends
    found = dict(engine.search_iter(asked, BestOfN(), 2, **options, on_error="yield"))
    assert {index: type(each).__name__ for index, each in found.items()} == {
        **{0: "SearchResult", 1: "RuntimeError", 2: "SearchResult"},
        **{3: "UserError", 4: "SearchResult"},
    }
    assert (found[2].correct, found[4].correct, found[4].answer) == (False, None, "7")
    assert sentence(found[1]) == "RuntimeError: a verifier broke"
    alone = engine.search([asked[0], asked[2]], BestOfN(), 2, **options)
    assert [fingerprint(found[index]) for index in (0, 2)] == [fingerprint(each) for each in alone]
    with pytest.raises(RuntimeError, match="a verifier"):
        list(engine.search_iter(asked[:3], BestOfN(), 2, **options))
    with pytest.raises(UserError, match="on_error must be raise or yield, got 'skip'"):
        list(engine.search_iter(asked, BestOfN(), 2, **options, on_error="skip"))
    assert_idle(*runners(engine))


def test_the_error_of_a_gpu_ends_all():
    """Every later call in its process fails too, and each problem would be said to be at fault."""
    raise_error("a result", "raise")
    raise_error(ValueError("x"), "yield")
    for error, on_error in (
        (torch.AcceleratorError("illegal access", 700), "yield"),
        (ValueError(), "raise"),
    ):
        with pytest.raises(type(error)):
            raise_error(error, on_error)
