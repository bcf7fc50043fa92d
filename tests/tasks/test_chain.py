"""The home task: what it asks, what is right, and where an answer goes wrong."""

import itertools
import random
import re

import pytest

from engine.tasks import TASKS, get_task, take_problems
from engine.tasks.chain import (
    MODULUS,
    SPLITS,
    ChainConfig,
    ChainProblem,
    apply,
    config_from_options,
    extract_answer,
    first_wrong_step,
    is_correct,
    parse,
    problems,
    worked_answer,
)
from engine.tasks.tokenizer import build_tokenizer
from engine.types import Problem

PROBLEM = ChainProblem(473, (("+", 38), ("*", 27), ("-", 12)))  # 511, 797, 785
ANSWER = "473+38=511\n511*27=797\n797-12=785"


def take(split, num, seed=0, config=None):
    return list(itertools.islice(problems(split, seed, config), num))


def test_the_example_of_the_module():
    assert PROBLEM.text == "473;+38;*27;-12\n"
    assert PROBLEM.values == (473, 511, 797, 785)
    assert PROBLEM.answer == "785"
    assert PROBLEM.depth == 3
    assert parse(PROBLEM.text) == parse(PROBLEM.text.rstrip()) == PROBLEM
    rng = random.Random(0)
    assert worked_answer(PROBLEM, rng, ChainConfig(shortcut_rate=0, check_rate=0)) == ANSWER
    assert is_correct(PROBLEM, ANSWER)


def test_arithmetic_is_modulo_a_thousand():
    assert (apply(999, "+", 2), apply(3, "-", 5), apply(999, "*", 999)) == (1, 998, 1)
    for _ in range(200):
        value, operand = random.randrange(MODULUS), random.randrange(MODULUS)
        for sign in "+-*":
            assert apply(value, sign, operand) == eval(f"({value}{sign}{operand}) % {MODULUS}")


def test_rotations_turn_three_digits_to_the_left():
    assert (apply(473, "#", 1), apply(473, "#", 2)) == (734, 347)
    assert (apply(45, "#", 1), apply(45, "#", 2), apply(0, "#", 1)) == (450, 504, 0)
    assert all(apply(apply(value, "#", 1), "#", 2) == value for value in range(MODULUS))


def test_splits_are_disjoint():
    """No text of one split is ever drawn for another, whatever the seed or the knobs."""
    short = ChainConfig(min_depth=1, max_depth=1, max_addend=3, max_multiply=0.0)
    found = {split: {p.text for seed in range(3) for p in take(split, 400, seed, short)} for split in SPLITS}
    assert all(len(texts) > 100 for texts in found.values())
    for one, other in itertools.combinations(SPLITS, 2):
        assert not found[one] & found[other]
    for split in SPLITS:
        assert all(problem.split == split for seed in range(3) for problem in take(split, 50, seed))


def test_streams_are_reproducible():
    for split in SPLITS:
        assert take(split, 20) == take(split, 50)[:20] == take(split, 20)
        assert take(split, 20) != take(split, 20, seed=1)
    assert take("test", 20) != take("validation", 20)
    with pytest.raises(ValueError, match="'dev'"):
        next(problems("dev"))


def test_there_are_many_answers():
    answers = {problem.answer for problem in take("train", 3000)}
    assert len(answers) > 800
    assert all(0 <= int(answer) < MODULUS and answer == str(int(answer)) for answer in answers)


def test_knobs():
    config = ChainConfig(min_depth=3, max_depth=4, max_addend=9, max_multiply=0.5)
    drawn = take("train", 300, config=config)
    assert {problem.depth for problem in drawn} == {3, 4}
    addends = [operand for problem in drawn for sign, operand in problem.operations if sign in "+-"]
    assert set(addends) == set(range(1, 10))
    assert 0 < sum(sign == "*" for problem in drawn for sign, _ in problem.operations) < len(addends)
    never = take("train", 50, config=ChainConfig(max_multiply=0.0))
    assert all(sign != "*" for problem in never for sign, _ in problem.operations)
    assert {o for problem in drawn for sign, o in problem.operations if sign == "#"} == {1, 2}
    unturned = take("train", 50, config=ChainConfig(rotation_rate=0.0))
    assert all(sign != "#" for problem in unturned for sign, _ in problem.operations)
    one_digit = take("train", 100, config=ChainConfig(multiplier_digits=(1.0,)))
    assert {len(str(o)) for problem in one_digit for sign, o in problem.operations if sign == "*"} == {1}


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"min_depth": 0}, "0..10"),
        ({"min_depth": 9, "max_depth": 8}, "9..8"),
        ({"max_addend": 1000}, "1000"),
        ({"max_addend": 0}, "0"),
        ({"max_multiply": 1.5}, "1.5"),
        ({"shortcut_rate": -0.1}, "-0.1"),
        ({"rotation_rate": 1.5}, "1.5"),
        ({"multiplier_digits": ()}, r"\(\)"),
        ({"multiplier_digits": (0.0, 0.0)}, r"\(0.0, 0.0\)"),
    ],
)
def test_knobs_out_of_range(fields, words):
    with pytest.raises(ValueError, match=words):
        ChainConfig(**fields)


def test_options():
    config = config_from_options({"max_depth": "4", "shortcut_rate": "0.5", "multiplier_digits": "0.2,0.8"})
    assert config == ChainConfig(max_depth=4, shortcut_rate=0.5, multiplier_digits=(0.2, 0.8))
    assert isinstance(config.max_depth, int)
    assert config_from_options({}) == ChainConfig()
    assert config_from_options({"keeps_errors": "false"}) == ChainConfig(keeps_errors=False)
    for options, words in [
        ({"depth": "4"}, "'depth'"),
        ({"max_depth": "four"}, "'four'"),
        ({"max_depth": ""}, "max_depth"),
        ({"max_depth": "0"}, "2..0"),
        ({"max_depth": "2.7"}, "'2.7'"),
        ({"max_depth": "inf"}, "'inf'"),
        ({"max_multiply": "0.1,0.2"}, "'0.1,0.2'"),
        ({"keeps_errors": "maybe"}, "'maybe'"),
    ]:
        with pytest.raises(ValueError, match=words):
            config_from_options(options)


@pytest.mark.parametrize("rates", [(0.0, 0.0), (0.3, 0.3), (1.0, 0.0), (0.0, 0.9)])
def test_worked_answers_are_right(rates):
    config = ChainConfig(shortcut_rate=rates[0], check_rate=rates[1])
    rng = random.Random(str(rates))
    num_shortcuts = num_checks = 0
    for problem in take("train", 300, config=config):
        answer = worked_answer(problem, rng, config)
        lines = answer.split("\n")
        assert is_correct(problem, answer)
        assert first_wrong_step(problem, lines) == -1
        assert first_wrong_step(problem, [line + "\n" for line in lines[:-1]] + lines[-1:]) == -1
        num_shortcuts += sum(len(re.findall(r"[+*#-]", line)) == 2 for line in lines)
        num_checks += sum(re.fullmatch(r"(\d+)=\1", line) is not None for line in lines)
        assert not re.fullmatch(r"\d+=\d+", lines[-1]), "an answer does not end in a check"
    assert (num_shortcuts > 0, num_checks > 0) == (rates[0] > 0, rates[1] > 0)


@pytest.mark.parametrize(
    ("completion", "answer"),
    [
        ("473+38=511", "511"),
        ("473+38=511\n511*27=797\n", "797"),
        ("1+1=007", "7"),
        ("1-1=000", "0"),
        ("1+1=", None),
        ("1+1", None),
        ("", None),
        ("=12\n3", None),
        ("1+1=1234", None),
        ("1+1=2 ", "2"),
        ("1+1=x", None),
    ],
)
def test_the_answer_of_a_completion(completion, answer):
    assert extract_answer(completion) == answer


@pytest.mark.parametrize(
    ("lines", "wrong"),
    [
        ([], -1),
        (ANSWER.split("\n"), -1),
        (["473+38=511"], -1),  # ends early: nothing said is wrong
        (["473+38*27=797", "797-12=785"], -1),  # a shortcut
        (["473+38=511", "511*27-12=785"], -1),
        (["473=473", "473+38=511", "511=511", "511=511", "511*27=797", "797-12=785", "785=785"], -1),  # checks
        (["473+38*27-12=785"], 0),  # three at once
        (["473+38=512"], 0),  # wrong result
        (["473+38=511", "511*27=798", "798-12=786"], 1),  # later lines do not matter
        (["473+38=511", "511*27=798", "797-12=785"], 1),
        (["473+38=511", "512*27=824"], 1),  # another value than the running one
        (["473+38=511", "511-12=499"], 1),  # an operation left out
        (["473*27=771"], 0),  # out of order
        (["473+39=512"], 0),  # another operand
        (["473-38=435"], 0),  # another sign
        (["473+38=511", "511=512"], 1),  # a check that is false
        (["473+38=511", "511*27=797", "797-12=785", "785+1=786"], 3),  # goes on past the end
        (["473+38=511\n", "511*27=797\n", "797-12=785"], -1),
        (["473+38=511", ""], 1),
        (["473 + 38 = 511"], 0),
        (["473#1=734"], 0),  # an operation that was not asked for
        (["473+38=0511"], 0),
        (["473+38=511 so"], 0),
        (["="], 0),
        (["473+38="], 0),
    ],
)
def test_the_first_wrong_step(lines, wrong):
    assert first_wrong_step(PROBLEM, lines) == wrong


def test_an_answer_that_ends_early_has_a_wrong_last_step_as_a_task():
    """A task judges finished answers: a last line that is true but not the answer is wrong."""
    judge = get_task("chain").first_wrong_step
    problem = Problem("x", PROBLEM.text, PROBLEM.answer)
    assert judge(problem, ["473+38=511\n", "511*27=797\n", "797-12=785"]) == -1
    assert judge(problem, ["473+38=511\n", "511*27=797"]) == 1
    assert judge(problem, ["473+38=511\n", "511*27=797\n"]) == -1  # it may still go on
    assert judge(problem, ["473+38=512\n", "511*27=797"]) == 0
    assert judge(problem, []) == -1


@pytest.mark.parametrize("text", ["", "473", "473;", "473;38", "4733;+1", "473;+1234", "473;+38\n\n", "a;+1", "1;+1;"])
def test_text_that_is_no_problem(text):
    with pytest.raises(ValueError, match="not a chain problem"):
        parse(text)


def test_the_task():
    task = get_task("chain")
    assert TASKS["chain"] is task
    some, more = take_problems(task, "test", 5), take_problems(task, "test", 9)
    assert more[:5] == some
    assert len({problem.id for problem in more}) == 9
    for problem, stated in zip(more, take("test", 9), strict=True):
        assert problem.prompt == stated.text == task.prompt(stated.text) == task.prompt(stated.text.strip())
        assert problem.answer == stated.answer
        assert task.extract(worked_answer(stated, random.Random(0), ChainConfig())) == stated.answer
    with pytest.raises(ValueError, match="'sums'"):
        get_task("sums")
    with pytest.raises(ValueError, match="'dev'"):
        take_problems(task, "dev", 5)
    with pytest.raises(ValueError, match="got 0"):
        take_problems(task, "test", 0)


def test_the_tokenizer_covers_the_task():
    """One token per character, there and back, and nothing unknown in any problem or answer."""
    tokenizer = build_tokenizer()
    for problem in take("train", 50):
        text = problem.text + worked_answer(problem, random.Random(0), ChainConfig(check_rate=0.2))
        ids = tokenizer.encode(text)
        assert len(ids) == len(text)
        assert tokenizer.unk_token_id not in ids
        assert tokenizer.decode(ids) == text
    assert tokenizer.decode([5, tokenizer.eos_token_id], skip_special_tokens=True) == tokenizer.decode([5])
