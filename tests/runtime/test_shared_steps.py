"""Steps that several branches of a verifier say at the same place: read once, whoever asks and whenever."""

import pytest

from engine import Adaptive, BestOfN, ComputeOptimal, Engine
from engine.runtime import Batcher
from engine.scheduler import Bins, Calibration, Cell, PilotSamples, Predictor
from engine.tasks import take_problems
from engine.verifiers.prm import read_steps

from .builders import assert_idle, load_llm

PROMPT = "?5?2?=c;d3?\n"
STEPS = [[5, 6, 7, 3], [8, 9, 3], [4, 4, 1]]
OTHER = [[5, 6, 7, 3], [8, 8, 3]]


@pytest.fixture
def prm(folders):
    return load_llm(folders.prm)


def test_one_reading_for_all_that_say_the_same(prm):
    root = prm.open(PROMPT)
    branches = root.fork(3)
    request = prm.queue_append_steps(branches, [STEPS, OTHER, STEPS])
    prm.run(request)
    first, other, again = request.scores
    assert first == again
    assert first[:1] == other[:1]
    assert first[1] != other[1]
    assert branches[0].segment is branches[2].segment
    num_prompt, num_read = root.num_tokens, 4 + 3 + 3 + 3
    assert root.ledger.tokens["verified"] == num_read
    assert [branch.num_tokens for branch in branches] == [num_prompt + 10, num_prompt + 7, num_prompt + 10]

    apart = prm.open(PROMPT)
    (flat,) = apart.fork(1)
    flat_tokens = [token for step in STEPS for token in step]
    whole = prm.queue_append([flat], [flat_tokens], score_at=[[3, 6, 9]], purpose="verified")
    prm.run(whole)
    assert whole.scores[0] == pytest.approx(first, abs=1e-5)
    for branch in (*branches, root, apart, flat):
        branch.close()
    assert_idle(prm.runner)


def test_a_later_request_gets_what_has_been_read(prm):
    root = prm.open(PROMPT)
    first, second = root.fork(2)
    request = prm.queue_append_steps([first], [STEPS[:2]])
    prm.run(request)
    later = prm.queue_append_steps([second], [STEPS[:2]])
    assert later.is_done
    assert later.scores == request.scores
    before = root.ledger.tokens["verified"]
    prm.run(prm.queue_append_steps([first, second], [STEPS[2:], STEPS[2:]]))
    assert root.ledger.tokens["verified"] == before + 3

    for branch in (first, second):
        branch.close()
    (third,) = root.fork(1)  # nobody has it open any more: it is read anew
    again = prm.queue_append_steps([third], [STEPS[:2]])
    assert not again.is_done
    prm.run(again)
    assert again.scores == request.scores
    third.close()
    root.close()
    assert_idle(prm.runner)


def test_steps_that_never_were_read_are_not_waited_for(prm):
    """The branch that brought a step is closed before its forward: another one that waits for it has it read."""
    root = prm.open(PROMPT)
    first, second = root.fork(2)
    prm.queue_append_steps([first], [STEPS])
    request = prm.queue_append_steps([second], [OTHER])
    first.close()
    prm.run(request)
    assert None not in request.scores[0]
    assert root.ledger.tokens["verified"] == 4 + 3
    second.close()
    root.close()
    assert_idle(prm.runner)


@pytest.mark.parametrize("max_chunk", [1, 3, 6])
def test_the_same_bits_however_it_is_cut(folders, max_chunk):
    found = []
    for chunk in (max_chunk, 1024):
        prm = load_llm(folders.prm, max_chunk=chunk)
        root = prm.open(PROMPT)
        branches = root.fork(4)
        request = prm.queue_append_steps(branches, [STEPS, OTHER, STEPS[:1], [*OTHER, *STEPS]])
        prm.run(request)
        found.append(request.scores)
        for branch in (*branches, root):
            branch.close()
        assert_idle(prm.runner)
    assert found[0] == found[1]


def test_nothing_to_read_and_too_much(prm):
    root = prm.open(PROMPT)
    (branch,) = root.fork(1)
    assert prm.queue_append_steps([branch], [[]]).scores == [[]]
    with pytest.raises(ValueError, match="over the context of the model"):
        prm.queue_append_steps([branch], [[[5] * 600, [6] * 600]])
    assert branch.segment is root.segment
    assert root.ledger.tokens["cached"] == 0
    for each in (branch, root):
        each.close()
    assert_idle(prm.runner)


def test_a_step_without_tokens_has_the_score_before_it(prm):
    root = prm.open(PROMPT)
    branches = root.fork(2)

    async def read():
        return await read_steps(prm, branches, [[STEPS[0], [], STEPS[1]], [STEPS[0]]], is_shared=True)

    ((_, scores),) = Batcher().run([prm], [read()], 2)
    assert scores[0][1] == scores[0][0] == scores[1][0]
    assert scores[0][2] != scores[0][0]
    for branch in (*branches, root):
        branch.close()
    assert_idle(prm.runner)


@pytest.mark.parametrize("verifier", ["prm", "orm"])
def test_answers_of_the_home_models(verifier):
    """The scores are those of answers read one by one, and cost less: of the ORM where whole answers are the same."""
    runs = []
    for shares_steps in (True, False):
        engine = Engine.load("home", shares_steps=shares_steps)
        runs.append(engine.search(take_problems(engine.task, "test", 4), BestOfN(), 24, verifier=verifier))
    for shared, apart in zip(*runs, strict=True):
        assert [each.text for each in shared.candidates] == [each.text for each in apart.candidates]
        for ours, theirs in zip(shared.candidates, apart.candidates, strict=True):
            assert ours.scores == pytest.approx(theirs.scores, abs=1e-4)
        assert 0 < shared.ledger.flops["verified"] <= apart.ledger.flops["verified"]
    spent = [sum(result.ledger.flops["verified"] for result in run) for run in runs]
    assert spent[0] < 0.9 * spent[1]


def test_rounds_of_one_search_share_steps_with_those_before():
    """Answers drawn two at a time until the budget is spent cost a verifier what they cost when drawn at once."""
    bills = []
    for strategy in (BestOfN(), Adaptive(batch=2)):
        engine = Engine.load("home", num_blocks=2048)
        problems = take_problems(engine.task, "test", 12)
        results = engine.search(problems, strategy, 16, seed=2)
        assert engine.prm.runner.tree.num_open == 0
        bills.append({r.problem.id: (r.num_generations, r.answer, r.ledger.tokens["verified"]) for r in results})
    at_once, in_rounds = bills
    spent = [name for name, (num, _, _) in in_rounds.items() if num == 16]
    assert len(spent) >= 3, "undecided to the end"
    for name in spent:
        assert in_rounds[name] == at_once[name]


def test_branches_of_one_prompt_that_were_opened_apart(prm):
    """They stand at one place while one of them is open; who comes last pays for what is still to be fed."""
    first = prm.open(PROMPT, is_shared=True)
    other = prm.open(PROMPT)
    assert other.segment is not first.segment
    prm.run(prm.queue_append_steps([first], [STEPS[:2]]))
    later = prm.open(PROMPT, is_shared=True)
    assert later.segment is not first.segment, "it stands at the prompt's end"
    assert later.segment is first.segment.origin.origin
    prm.run(prm.queue_append_steps([later], [STEPS]))
    assert later.ledger.tokens["verified"] == len(STEPS[2])
    assert first.ledger.tokens["verified"] == len(STEPS[0]) + len(STEPS[1])
    for branch in (first, other, later):
        branch.close()
    assert not prm.runner.store.roots
    again = prm.open(PROMPT, is_shared=True)
    again.close()
    assert_idle(prm.runner)


@pytest.mark.parametrize("num_blocks", [None, 40])
def test_rounds_of_a_batch_read_nothing_twice(num_blocks):
    """The pilot's steps are known to the rounds that go on from it; in a small pool they are forgotten."""
    found = []
    for shares_steps in (True, False):
        engine = Engine.load("home", num_blocks=num_blocks, shares_steps=shares_steps)
        problems = take_problems(engine.task, "validation", 12)
        predictor = Predictor("score", 2)
        conditions = engine.conditions(PilotSamples(predictor, True))
        cells = [Cell(0, BestOfN(), budget, right, 9, budget, 1.0, 1.0) for budget, right in ((2, 3), (8, 6), (16, 8))]
        strategy = ComputeOptimal(Calibration(conditions, "some", predictor, Bins(), (9,), (2, 8, 16), tuple(cells)))
        results = engine.search_batch(problems, strategy, 12 * 8, seed=1)
        for llm in (engine.policy, engine.prm):
            assert_idle(llm.runner)
        assert not engine.prm.runner.store.roots
        assert not engine.resolve_verifier("prm").shares_roots
        found.append(results)
    shared, apart = found
    assert [(r.answer, r.num_generations) for r in shared] == [(r.answer, r.num_generations) for r in apart]
    for one, other in zip(shared, apart, strict=True):
        assert [c.agg_score for c in one.candidates] == pytest.approx([c.agg_score for c in other.candidates], abs=1e-5)
    num_more = 0
    for result in shared:
        # What the pilot has cost stands in one figure: both models' reading of the prompt, its answers, their steps.
        num_prompt = len(engine.policy.encode(result.problem.prompt))
        pilot = 2 * num_prompt + sum(candidate.num_tokens for candidate in result.candidates[:2])
        num_read = result.ledger.tokens["verified"] + result.ledger.tokens["estimation"] - pilot
        num_more += num_read - num_distinct_steps(result)
        if num_blocks is None:
            assert num_read == num_distinct_steps(result), "each step's tokens once, in whichever round"
    assert num_blocks is None or num_more > 0, "what was forgotten is read again"


def num_distinct_steps(result) -> int:
    """Tokens of the tree's steps, of those with the same texts up to their end one."""
    paths = {}
    nodes = result.tree.nodes
    for index in range(1, len(nodes)):
        texts = tuple(nodes[i].step_text for i in result.tree.path(index))
        paths[texts] = nodes[index].num_tokens
    return sum(paths.values())
