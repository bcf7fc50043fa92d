"""The home task: what it asks, what is right, and where an answer goes wrong."""

import itertools
import random
from statistics import fmean

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.tasks import TASKS, get_task, take_problems
from engine.tasks.tokenizer import build_tokenizer
from engine.tasks.walks import (
    SPLITS,
    Walk,
    WalksConfig,
    WalksProblem,
    config_from_options,
    draw_problem,
    extract_answer,
    first_wrong_step,
    make_table,
    parse,
    problems,
    worked_answer,
)
from engine.types import Problem

CONFIG = WalksConfig()
TABLE = CONFIG.table
PROBLEM = WalksProblem((Walk("52", end="c"), Walk("31", start="d")))
LINES = ["?5?2?=c:b5f2c=c", "d3?1?:d3e1c"]

_LETTERS = st.sampled_from("abcdef")
_DOORS = st.text("012345", min_size=1, max_size=7)
WALKS = st.builds(Walk, _DOORS, start=_LETTERS) | st.builds(Walk, _DOORS, end=_LETTERS)


def take(split, num, seed=0, **options):
    return list(itertools.islice(problems(split, seed, WalksConfig(**options)), num))


def test_the_example_of_the_module():
    assert PROBLEM.text == "?5?2?=c;d3?1?\n"
    assert parse(PROBLEM.text) == parse(PROBLEM.text.rstrip()) == PROBLEM
    assert PROBLEM.right_lines(TABLE) == LINES
    assert PROBLEM.answer(TABLE) == "bc"
    assert worked_answer(PROBLEM, random.Random(0), WalksConfig(wrong_rate=0)) == "\n".join(LINES)


@given(st.lists(WALKS, min_size=1, max_size=7))
def test_prompts_and_answers_go_there_and_back(walks):
    problem = WalksProblem(tuple(walks))
    assert parse(problem.text) == problem
    assert extract_answer("\n".join(problem.right_lines(TABLE))) == problem.answer(TABLE)


@given(_DOORS, _LETTERS)
def test_an_open_walk_has_exactly_one_start(doors, end):
    walk = Walk(doors, end=end)
    ends = {start: walk.rooms(TABLE, start)[-1] for start in "abcdef"}
    assert sorted(ends.values()) == [*"abcdef"]
    assert ends[walk.right_start(TABLE)] == end


@given(st.integers(4, 10), st.integers(1, 10), st.integers(0, 99))
def test_doors_are_distinct_permutations_and_none_leads_nowhere(num_rooms, num_doors, seed):
    table = make_table(num_rooms, num_doors, seed)
    rooms = "abcdefghij"[:num_rooms]
    afters = {"".join(after[room] for room in rooms) for after in table.values()}
    assert [*table] == [*"0123456789"[:num_doors]]
    assert len(afters) == num_doors
    assert rooms not in afters
    assert all(sorted(after) == [*rooms] for after in afters)


def test_the_table_is_the_tasks_and_another_seed_gives_another():
    assert "".join(TABLE["5"].values()) == "efdbca"  # every shipped model has learned this one
    assert make_table(6, 6, 0) != make_table(6, 6, 1)


def test_splits_are_disjoint():
    """No text of one split is ever drawn for another, whatever the seed or the options."""
    short = {"min_walks": 1, "max_walks": 1, "lengths": (1.0, 1.0)}
    found = {split: {p.text for p in take(split, 25, **short)} for split in SPLITS}
    for one, other in itertools.combinations(SPLITS, 2):
        assert not found[one] & found[other]
    for split in SPLITS:
        assert all(problem.split == split for seed in range(3) for problem in take(split, 50, seed))


def test_streams_are_reproducible_and_distinct():
    for split in SPLITS:
        assert take(split, 20) == take(split, 50)[:20] == take(split, 20)
        assert take(split, 20) != take(split, 20, seed=1)
        assert len({problem.text for problem in take(split, 200, max_walks=3)}) == 200
    assert take("test", 20) != take("validation", 20)
    with pytest.raises(ValueError, match="'dev'"):
        next(problems("dev"))


def test_options_that_allow_few_problems_give_them_all_and_say_so():
    one_door = {text for room in "abcdef" for door in TABLE for text in (f"{room}{door}?\n", f"?{door}?={room}\n")}
    expected = {text for text in one_door if parse(text).split == "train"}
    stream = problems("train", config=WalksConfig(min_walks=1, max_walks=1, lengths=(1.0,)))
    assert {problem.text for problem in itertools.islice(stream, len(expected))} == expected
    with pytest.raises(ValueError, match=f"walks allows only {len(expected)} problems of the split 'train'"):
        next(stream)


def test_problems_are_of_every_difficulty_and_answers_cannot_be_guessed():
    drawn = take("train", 1000)
    num_open = [sum(walk.is_open for walk in problem.walks) for problem in drawn]
    assert {*range(7)} == {*num_open}
    assert {len(problem.walks) for problem in drawn} == {3, 4, 5, 6}
    assert {len(walk.doors) for problem in drawn for walk in problem.walks} == {1, 2, 3, 4, 5}
    assert len({problem.answer(TABLE) for problem in drawn}) > 600


def test_options_change_what_is_drawn():
    def walks(**options):
        return [walk for problem in take("train", 100, **options) for walk in problem.walks]

    assert {len(p.walks) for p in take("train", 50, min_walks=2, max_walks=3)} == {2, 3}
    assert {room for walk in walks(num_rooms=3) for room in (walk.start, walk.end)} == {*"abc", None}
    assert {door for walk in walks(num_doors=2) for door in walk.doors} == {"0", "1"}
    assert {len(walk.doors) for walk in walks(lengths=(0.0, 0.0, 1.0))} == {3}
    assert all(walk.is_open for walk in walks(max_told=0.0))
    assert not any(walk.is_open for walk in walks(min_told=1.0, max_told=1.0))
    short = {"short_rate": 1.0, "short_lengths": (1.0,)}
    assert {len(walk.doors) for walk in walks(min_walks=6, **short)} == {1}
    assert PROBLEM.answer(WalksConfig(table_seed=1).table) != PROBLEM.answer(TABLE)


def test_worked_answers_start_wrongly_now_and_then_and_are_right_else():
    rng = random.Random(0)
    are_wrong = []
    for _ in range(400):
        problem = draw_problem(rng, CONFIG)
        lines = worked_answer(problem, rng, CONFIG).split("\n")
        for walk, line, right in zip(problem.walks, lines, problem.right_lines(TABLE), strict=True):
            if walk.is_open:
                are_wrong.append(line != right)
                # whatever it begins with it follows the table, and so misses its end
                start = line.partition(":")[2][0]
                assert line == walk.line(TABLE, start)
            else:
                assert line == right
    assert 0.07 < fmean(are_wrong) < 0.13
    sure = [worked_answer(p, rng, WalksConfig(wrong_rate=0)).split("\n") for p in take("train", 50)]
    assert sure == [problem.right_lines(TABLE) for problem in take("train", 50)]


@pytest.mark.parametrize(
    ("completion", "answer"),
    [
        ("\n".join(LINES), "bc"),
        ("\n".join(LINES) + "\n", "bc"),
        ("?5?2?=c:a5e2a=c", "a"),  # no line is checked
        ("x:a5e2a=c", "a"),
        (LINES[1], "c"),
        ("", None),
        ("bc", None),
        ("?5?2?=c", None),
        ("?5?2?=c:", None),
        ("?5?2?=c:b", None),
        ("?5?2?=c:b5f2=c", None),
        (f"{LINES[0]}\n\n{LINES[1]}", None),
        (f"{LINES[0]}\nd3?1?", None),
    ],
)
def test_the_answer_of_a_completion(completion, answer):
    assert extract_answer(completion) == answer


@pytest.mark.parametrize(
    ("lines", "wrong"),
    [
        ([], -1),
        (LINES, -1),
        (LINES[:1], -1),  # ends early: nothing said is wrong
        ([line + "\n" for line in LINES], -1),
        (["?5?2?=c:a5e2a=c", LINES[1]], 0),  # another start
        (["?5?2?=c:a5e2c=c", LINES[1]], 0),  # the table is left
        (["?5?1?=c:b5f2c=c", LINES[1]], 0),  # another walk is stated
        (["b5f2c=c", LINES[1]], 0),
        (LINES[::-1], 0),
        ([LINES[0], "d3?1?:d3e1d"], 1),
        ([LINES[0], ""], 1),
        ([*LINES, LINES[1]], 2),  # goes on past the end
    ],
)
def test_the_first_wrong_step(lines, wrong):
    assert first_wrong_step(PROBLEM, lines, CONFIG) == wrong


def test_an_answer_that_ends_early_has_a_wrong_last_step_as_a_task():
    """A task judges finished answers: a last line that is true but not the last one is wrong."""
    judge = get_task("walks").first_wrong_step
    problem = Problem("x", PROBLEM.text, "bc")
    assert judge(problem, [LINES[0] + "\n", LINES[1]]) == -1
    assert judge(problem, [LINES[0]]) == 0
    assert judge(problem, [LINES[0] + "\n"]) == -1  # it may still go on
    assert judge(problem, ["?5?2?=c:a5e2a=c\n", LINES[1]]) == 0
    assert judge(problem, []) == -1


@pytest.mark.parametrize(
    "text",
    ["", "?", "d", "?5?2=c", "?5?2?", "?5?2?=", "d3?1?=c", "d31", "?5?;", "?5?=c\n\n", "?5?=k", "k3?", "1;+1", "d٣?"],
)
def test_text_that_is_no_problem(text):
    with pytest.raises(ValueError, match="not a walks problem"):
        parse(text)


@pytest.mark.parametrize(("text", "named"), [("?6?=c", "'6'"), ("?5?=g", "'g'"), ("h0?", "'h'")])
def test_a_room_or_door_that_the_table_lacks_is_named(text, named):
    with pytest.raises(ValueError, match=f"not a walks problem: no room or door {named} in the table"):
        get_task("walks").first_wrong_step(Problem("x", f"{text}\n"), [])
    assert get_task("walks:num_rooms=8:num_doors=7").first_wrong_step(Problem("x", f"{text}\n"), []) == -1


def test_options_as_text():
    config = config_from_options({"max_walks": "4", "wrong_rate": "0.5", "lengths": "1,2"})
    assert config == WalksConfig(max_walks=4, wrong_rate=0.5, lengths=(1.0, 2.0))
    assert isinstance(config.max_walks, int)
    assert config_from_options({}) == WalksConfig()
    assert config_from_options({"max_walks": "4"}, WalksConfig(max_told=0.5)) == WalksConfig(max_walks=4, max_told=0.5)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("walks=4", "walks has no option 'walks'; it has num_rooms, "),
        ("max_walks", "an option of walks is written name=value, got 'max_walks'"),
        ("max_walks=4:", "an option of walks is written name=value, got ''"),
        (":", "an option of walks is written name=value, got ''"),
        ("max_walks=4:max_walks=5", "walks option max_walks is given twice, got '4' and '5'"),
        ("max_walks=100000000", "max_walks must be at most 1000, got 100000000"),
        (f"lengths={'0,' * 1000}1", "lengths must be at most 1000 weights, got 1001"),
        (f"max_walks={'9' * 5000}", r"option max_walks needs a whole number, got '9+\.\.\."),
        ("max_walks=four", "option max_walks needs a whole number, got 'four'"),
        ("max_walks=2.7", "option max_walks needs a whole number, got '2.7'"),
        ("max_walks=2", r"1 <= min <= max, got 3\.\.2"),
        ("min_walks=0", r"1 <= min <= max, got 0\.\.6"),
        ("max_told=much", "option max_told needs a number, got 'much'"),
        ("max_told=1.5", r"0 <= min <= max <= 1, got 0\.0\.\.1\.5"),
        ("wrong_rate=-0.1", r"wrong_rate must be within 0\.\.1, got -0\.1"),
        ("short_rate=nan", r"short_rate must be within 0\.\.1, got nan"),
        ("lengths=1;2", "option lengths needs numbers with commas between, got '1;2'"),
        ("lengths=0,0", r"lengths needs finite weights of at least 0, some over it, got \(0\.0, 0\.0\)"),
        ("lengths=1e308,1e308", r"lengths needs finite weights of at least 0, some over it, got \(1e\+308, 1e\+308\)"),
        ("lengths=nan", r"lengths needs finite weights of at least 0, some over it, got \(nan,\)"),
        ("short_lengths=inf", r"short_lengths needs finite weights of at least 0, some over it, got \(inf,\)"),
        ("num_rooms=1", r"num_rooms must be 2\.\.10, got 1"),
        ("num_doors=11", r"num_doors must be 1\.\.10, got 11"),
    ],
)
def test_a_bad_option_is_refused_in_one_sentence(options, words):
    with pytest.raises(ValueError, match=words) as caught:
        get_task(f"walks:{options}")
    assert "\n" not in str(caught.value)


def test_the_task():
    task = get_task("walks")
    assert TASKS["walks"] is task
    some, more = take_problems(task, "test", 5), take_problems(task, "test", 9)
    assert more[:5] == some
    assert len({problem.id for problem in more}) == 9
    for problem, stated in zip(more, take("test", 9), strict=True):
        assert problem.prompt == stated.text == task.prompt(stated.text) == task.prompt(stated.text.strip())
        assert problem.answer == stated.answer(TABLE) == task.extract("\n".join(stated.right_lines(TABLE)))
        assert problem.metadata == {"walks": len(stated.walks), "open": sum(walk.is_open for walk in stated.walks)}
    with pytest.raises(ValueError, match="'sums'"):
        get_task("sums")
    with pytest.raises(ValueError, match="'dev'"):
        take_problems(task, "dev", 5)
    with pytest.raises(ValueError, match="got 0"):
        take_problems(task, "test", 0)


def test_a_task_with_options_draws_and_judges_by_them():
    task = get_task("walks:max_told=0:table_seed=1")
    assert task.name == "walks:max_told=0:table_seed=1"
    drawn = take_problems(task, "test", 20)
    assert all(problem.metadata["open"] == problem.metadata["walks"] for problem in drawn)
    lines = parse(drawn[0].prompt).right_lines(WalksConfig(table_seed=1).table)
    assert task.first_wrong_step(drawn[0], lines) == -1
    assert get_task("walks").first_wrong_step(drawn[0], lines) >= 0


def test_the_tokenizer_covers_the_task():
    """One token per character, there and back, and nothing unknown in any problem or answer."""
    tokenizer = build_tokenizer()
    for problem in take("train", 50, num_rooms=10, num_doors=10):
        text = problem.text + worked_answer(problem, random.Random(0), WalksConfig(num_rooms=10, num_doors=10))
        ids = tokenizer.encode(text)
        assert len(ids) == len(text)
        assert tokenizer.unk_token_id not in ids
        assert tokenizer.decode(ids) == text
    assert tokenizer.decode([5, tokenizer.eos_token_id], skip_special_tokens=True) == tokenizer.decode([5])
