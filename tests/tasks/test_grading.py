"""Verdicts on answers of every shape, hostile ones included, and what becomes of the processes."""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from engine.search import merge_equal, vote
from engine.tasks import Grader, Verdict, get_task
from engine.tasks.answers import boxed
from engine.tasks.grading import CutShortWarning
from engine.tasks.grading_pool import Allowance
from engine.types import Candidate

# In the shapes of MATH's gold answers: fractions, tuples, intervals, matrices, text, units, bases, money ...
GOLDS = [
    r"\frac{14}{3}", r"\dfrac{3}{56}", r"\frac 59", r"-\frac{35}{9}", r"\frac{\sqrt{3}}{3}", r"3\sqrt{13}",
    r"11\sqrt2", "42", "-3", "2.5", ".35", "1,2,3", "10,080", "11,111,111,100", r"\left( 3, \frac{\pi}{2} \right)",
    "(2,12)", "(-1,6,3)", "[-2,7]", r"(0,9) \cup (9,36)", r"(-\infty, 0) \cup (0, \infty)",
    r"\left[\frac12, \infty\right)", r"\begin{pmatrix} -1/3 \\ 2/3 \\ 5/3 \end{pmatrix}",
    r"\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}", r"\text{Evelyn}", r"\text{(C)}", "p - q", "6r^2-4r-24",
    r"(3x^2+1)(x-2)", "6 - 5i", r"x \in [-2,7]", "x=5", "y = 2x + 3", "x^2 + y^2 = 4", r"90^\circ", r"120^{\circ}",
    r"5.4 \text{ cents}", r"15\mbox{ cm}^2", r"\frac{270}{7}\text{ degrees}", r"\$32,\!348", r"\$18.90", r"36\%",
    "4343_6", r"1\frac{4}{5}", r"3\!\frac12", r"\{1,2,3\}", r"\pi", r"\pm 1", r"1 \pm \sqrt{19}",
    r"-2 + \sqrt{7}, -2-\sqrt{7}", "2k + 2", r"\cot x", r"e^{2\pi i/3}", "10^{10}", "2^{51}-1", "1:2", r"\infty",
    "Tuesday", "|x-2|", r"\log_2 3", r"\binom{5}{2}", r"8\sin \theta", r"5x^7 \ge 3",
]  # fmt: skip


@pytest.fixture(scope="module")
def grader() -> Iterator[Grader]:
    grader = Grader(num_workers=1, seconds=20.0)  # of a machine that does other things too
    yield grader
    grader.close()


def test_gold_answers_equal_themselves(grader):
    assert [gold for gold in GOLDS if grader.grade(gold, f" ${gold}$. ") is not Verdict.CORRECT] == []
    through_math_verify = grader.pool.compare(
        [(gold, gold) for gold in GOLDS], grader.seconds, [Allowance(600.0)] * len(GOLDS)
    )
    assert [gold for gold, is_equal in zip(GOLDS, through_math_verify, strict=True) if not is_equal] == []


@pytest.mark.parametrize(
    ("gold", "answer"),
    [
        (r"\frac{1}{2}", "0.5"),
        (r"\frac{1}{2}", r"\frac{2}{4}"),
        (r"\frac{1}{3}", "0.333333"),
        (r"x=5", "5"),
        ("5", "x = 5"),
        ("k+2", "2+k"),
        ("x^2-1", "(x-1)(x+1)"),
        ("1,2,3", r"\{3, 2, 1\}"),
        (r"\pm 1", "1, -1"),
        (r"\text{(C)}", "C"),
        (r"\text{Tuesday}", "tuesday"),
        (r"50\%", "0.5"),
        (r"5.4 \text{ cents}", "5.4"),
        ("[-2,7]", r"x \in [-2,7]"),
        (r"3\sqrt{13}", r"\sqrt{117}"),
        ("18", "18.0000"),
        (r"\$18.90", "18.9"),
        ("1024", "2**10"),
        ("x^2", "x**2"),
        ("2^x", "2**x"),
        (r"\ln 2", "ln(2)"),
        (r"\ln(2)", "ln 2"),
        ("e^x", "exp(x)"),
        (r"\log_{2} 3", "log_2(3)"),
        ("(1,2)", "（1，2）"),
        ("(0,1)", "]0,1["),
        ("[0,1)", "[0,1["),
        ("(0,1]", "]0,1]"),
        ("5000000", "5 million"),
        ("3000", r"3\text{ thousand}"),
        ("5 cm", "5"),
        ("5 meters", "5 m"),
        ("12 students", "12 people"),
    ],
)
def test_equal_answers(grader, gold, answer):
    assert grader.grade(gold, answer) is Verdict.CORRECT


@pytest.mark.parametrize(
    ("gold", "answer"),
    [
        ("18", "19"),
        (r"\frac{1}{3}", "0.33"),
        ("(1,2)", "[1,2]"),
        ("(2,3,4)", "(3,2,4)"),
        ("x+1", "y+1"),
        (r"\text{Yes}", r"\text{No}"),
        (r"\log_2 3", "10^{10}"),  # sympy would simplify their difference for ever
        ("5", ""),
        ("5", "{{{"),
        ("5", "}}}"),
        ("5", "\0"),
        ("5", "\ud800"),
        ("5", "9" * 1_000_000),
        ("5", "{" * 10_000 + "5" + "}" * 10_000),
    ],
    ids=lambda text: ascii(text[:12]),
)
def test_other_answers(grader, gold, answer):
    assert grader.grade(gold, answer) is Verdict.INCORRECT


def test_a_gold_answer_that_nobody_understands_is_an_error(grader):
    assert grader.grade("", "5") is Verdict.ERROR
    assert grader.grade("x" * 3000, "5") is Verdict.ERROR
    assert grader.grade("x" * 3000, "x" * 3000) is Verdict.CORRECT


def test_hostile_answers_get_a_verdict_in_time_and_nothing_runs(tmp_path):
    marker = tmp_path / "marker"
    call = f"__import__('os').system('touch {marker}')"
    hostile = ["9^{9^{9^9}}", r"\prod_{k=1}^{10^7} k", "{" * 900 + "}" * 900, call, f"1+{call}", f"${call}$"]
    grader = Grader(num_workers=1, seconds=20.0, max_bytes=128 << 20)
    assert grader.grade("5", "1+x") is Verdict.INCORRECT  # starts the process
    grader.seconds = 0.3
    for answer in hostile:
        start = time.monotonic()
        assert grader.grade("5", answer) in (Verdict.ERROR, Verdict.INCORRECT)
        assert time.monotonic() - start < 1 + 1 + 30  # its own limit, the grace, and a new process on a busy machine
    assert not marker.exists()
    assert grader.grade("5", "9^{9^{9^9}}") is Verdict.ERROR
    assert grader.grade(r"\frac12", "0.5") is Verdict.CORRECT
    grader.close()


PARTS = [
    *(
        "{",
        "}",
        r"\frac",
        r"\sqrt",
        "^",
        "_",
        "9",
        "10^",
        "!",
        r"\int",
        "eval(",
        "lambda:0",
        r"\text{",
        "&",
        r"\\",
        "٣",
        "½",
    ),
    *(
        "１",
        "𝟙",
        "∞",
        "\ud800",
        "\0",
        "\u202e",
        "x",
        "(",
        ")",
        "[",
        ",",
        "=",
        "<",
        r"\log",
        r"\left",
        "%",
        "$",
        "'",
        ";",
        "\n",
    ),
]


def test_fuzz(tmp_path):
    """No verdict that an answer is right, nothing executed, no more processes than were asked for."""
    marker = tmp_path / "marker"
    rng, parts = random.Random(0), [*PARTS, f"__import__('os').system('touch {marker}')"]
    texts = ["".join(rng.choices(parts, k=rng.randint(1, 25))) for _ in range(150)]
    texts += [
        "9" * 1_000_000,
        "1/" + "9" * 1990,
        "(" * 900 + "1" + ")" * 900,
        r"\sqrt{" * 300 + "}" * 300,
        "1e999999999",
    ]
    grader = Grader(num_workers=2, seconds=1.0, problem_seconds=5.0, max_bytes=256 << 20)
    start = time.monotonic()
    verdicts = grader.grade_all([("5", text) for text in texts])
    assert time.monotonic() - start < 5 + 2 + 60  # the time of the problem, the last two pairs, and new processes
    assert Verdict.CORRECT not in verdicts
    assert len(grader.pool.process_ids) <= 2
    assert not marker.exists()
    grader.close()


def test_many_hostile_answers_to_one_problem_share_one_time():
    """Each would take a time-out of its own, four minutes together, and as long again where they are voted on."""
    hostile = [rf"\sum_{{k=1}}^{{10^9}} \sin({number}k)" for number in range(1, 257)]
    with_limits = Grader(num_workers=1, seconds=0.3, problem_seconds=0.2)
    with_limits.grade("x+1", "1+x")  # starts the process
    start = time.monotonic()
    assert with_limits.grade_all([("5", answer) for answer in hostile]) == [Verdict.ERROR] * 256
    with pytest.warns(CutShortWarning):
        assert with_limits.classify(hostile) == list(range(256))
    assert time.monotonic() - start < 100  # a few time-outs, and as many new processes on a busy machine
    with_limits.seconds = with_limits.problem_seconds = 60.0
    assert with_limits.grade("x+1", "x+2") is Verdict.INCORRECT  # the time is each problem's own
    with_limits.close()


def test_a_lone_surrogate_is_an_answer_like_others(grader):
    assert grader.grade("5", "\ud800") is Verdict.INCORRECT
    assert grader.grade("x+1", "\udfff") is Verdict.INCORRECT
    assert grader.classify(["\ud800", "x+\ud800", "1", "\ud800"]) == [0, 1, 2, 0]


def test_memory_is_bounded():
    """A number of some 75 MB, and of as much for every step of its making, is refused by a limit of 32 MiB."""
    grader = Grader(num_workers=1, seconds=30.0, max_bytes=32 << 20)
    assert grader.grade("5", "1+x") is Verdict.INCORRECT
    (process_id,) = grader.pool.process_ids
    limit, _ = resource.prlimit(process_id, resource.RLIMIT_AS)
    size = int(Path(f"/proc/{process_id}/statm").read_text().split()[0]) * resource.getpagesize()
    assert limit - grader.pool.max_bytes <= size <= limit
    assert grader.grade("5", "2^{600000001}-2^{600000000}") is not Verdict.CORRECT
    assert grader.grade("x+1", "1+x") is Verdict.CORRECT
    grader.close()


def test_classes_of_equal_answers(grader):
    answers = ["0.5", "2", r"\frac12", "2.0", r"\frac{2}{4}", "x+1", "1+x", "2"]
    assert grader.classify(answers) == [0, 1, 0, 1, 0, 5, 5, 1]
    assert grader.classify([]) == []


def test_an_answer_that_breaks_the_grader_is_a_class_of_its_own():
    grader = Grader(num_workers=1, seconds=0.3)
    assert grader.classify(["9^{9^{9^9}}", r"\frac12", "0.5", "9^{9^{9^9}}", r"\frac24"]) == [0, 1, 1, 0, 1]
    grader.close()


def test_votes_count_equal_answers_as_one(grader):
    stated = [("2", 0.9), ("0.5", 0.4), ("2", 0.1), (r"\frac12", 0.5), (r"\frac24", 0.3)]
    candidates = [Candidate("", answer, "eos", (), score, 1, ()) for answer, score in stated]
    candidates.append(Candidate("", None, "length", (), 0.0, 1, ()))
    merged = merge_equal(candidates, grader.classify)
    assert [each.answer for each in merged] == ["2", "0.5", "2", "0.5", "0.5", None]
    assert vote(candidates, "majority") == ("2", 0)
    assert vote(merged, "majority") == ("0.5", 3)
    assert vote(merged, "weighted") == ("0.5", 3)
    assert vote(merged, "naive") == ("2", 0)


class FakePool:
    """Finds answers equal that have the same letters; a comparison takes seconds of the allowance alone."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.num_compared = seconds, 0

    def compare(self, pairs, seconds, allowances):
        return [
            None if allowance.is_spent else self._compare(pair, allowance)
            for pair, allowance in zip(pairs, allowances, strict=True)
        ]

    def _compare(self, pair, allowance):
        allowance.seconds -= self.seconds
        self.num_compared += 1
        return sorted(pair[0]) == sorted(pair[1])


def with_fake_pool(seconds: float, **options) -> Grader:
    grader = Grader(problem_seconds=60.0, **options)
    grader.pool = FakePool(seconds)
    return grader


@pytest.mark.parametrize("seconds", [0.001, 1.9])
def test_classes_do_not_depend_on_the_speed_of_the_machine(seconds):
    """The most frequent answers are compared first, and the bound is one of comparisons."""
    grader = with_fake_pool(seconds, max_comparisons=30)
    rare = [f"x+{letter}" for letter in "abcdefgh"]
    with pytest.warns(CutShortWarning, match=r"2 of 11 distinct .*max_comparisons=30"):
        classes = grader.classify([*rare, "y+z", "z+y", "a+x", "y+z", "z+y"])
    assert classes == [0, 1, 2, 3, 4, 5, 6, 7, 8, 8, 10, 8, 8]
    assert grader.pool.num_compared == 30


def test_the_time_is_each_problems_own_where_gold_answers_are_the_same():
    grader = with_fake_pool(50.0)
    pairs = [("x+1", f"x+{number}") for number in (2, 3, 4)] + [("x+1", "1+x"), ("x+1", "x+4")]
    verdicts = grader.grade_all(pairs, ["first"] * 3 + ["second"] * 2)
    wrong = Verdict.INCORRECT
    assert verdicts == [wrong, wrong, Verdict.ERROR, Verdict.CORRECT, wrong]


def test_plain_numbers_need_no_process():
    grader = Grader()
    wrong = [(str(index), f"{index + 1}.0") for index in range(5000)]
    right = [(f"{index},000", f"${index}000.00") for index in range(1, 999)]
    start = time.process_time()
    verdicts = grader.grade_all([*wrong, *right])
    assert time.process_time() - start < 2  # GSM8K's 1,319 in 5 s need a tenth of that rate
    assert verdicts == [Verdict.INCORRECT] * len(wrong) + [Verdict.CORRECT] * len(right)
    assert grader.pool.process_ids == []


def test_a_killed_process_is_replaced(grader):
    assert grader.grade("x", "1+x") is Verdict.INCORRECT
    (process_id,) = grader.pool.process_ids
    os.kill(process_id, signal.SIGKILL)
    assert grader.grade("x+3", "3+x") in (Verdict.CORRECT, Verdict.ERROR)
    assert grader.grade("x+4", "4+x") is Verdict.CORRECT
    assert grader.pool.process_ids != [process_id]


def test_the_time_that_a_process_waits_for_a_processor_does_not_count():
    """It is stopped for twice its limit, as on a machine that has other things to do."""
    grader = Grader(num_workers=1, seconds=0.5)
    assert grader.grade("x+3", "3+x") is Verdict.CORRECT
    (process_id,) = grader.pool.process_ids
    os.kill(process_id, signal.SIGSTOP)
    threading.Timer(1.0, os.kill, (process_id, signal.SIGCONT)).start()
    assert grader.grade("x+5", "5+x") is Verdict.CORRECT
    assert grader.pool.process_ids == [process_id]
    grader.close()


@pytest.mark.parametrize("with_signal", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_process_leaves_no_process_behind(with_signal):
    code = """
from engine.tasks import Grader
grader = Grader(num_workers=2, seconds=20.0)
grader.grade_all([("x", "1+x"), ("x", "2+x")])
print(*grader.pool.process_ids, flush=True)
grader.seconds = 1.0
grader.grade_all([("5", "9^{9^{9^9}}"), ("6", "9^{9^{9^9}}")])
"""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a child inherits "ignored"
    try:
        process = subprocess.Popen(
            [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
    finally:
        signal.signal(signal.SIGINT, before)
    workers = [int(number) for number in process.stdout.readline().split()]
    assert len(workers) == 2
    assert all(map(_is_running, workers))
    process.send_signal(with_signal)
    assert process.wait() != 0
    deadline = time.monotonic() + 30  # a killed process's workers still have their time-out
    while any(map(_is_running, workers)):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def _is_running(process_id: int) -> bool:
    try:
        return Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize(
    ("module", "error", "message"),
    [
        ("raise ImportError('no such thing')", ValueError, r"grading needs math-verify.*no such thing"),
        ("import os; os._exit(1)", RuntimeError, "end before they are ready"),
    ],
)
def test_math_verify_that_is_missing_or_broken(tmp_path, monkeypatch, module, error, message):
    (tmp_path / "math_verify.py").write_text(module)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    grader = Grader(num_workers=1)
    with pytest.raises(error, match=message):
        grader.grade("x", "1+x")
    assert grader.pool.process_ids == []


def test_options_are_checked():
    for options in ({"num_workers": 0}, {"seconds": -1.0}, {"max_bytes": 0}):
        with pytest.raises(ValueError, match=f"{next(iter(options))}.* got"):
            Grader(**options)


def test_tasks_grade():
    gsm8k, math = get_task("gsm8k"), get_task("math500")
    assert gsm8k.gold("2 * 40 = <<2*40=80>>80\n80 + 1,000 = 1,080\n#### 1,080") == "1080"
    assert gsm8k.extract("so 1,080 dollars") == "1080"
    assert gsm8k.are_right([("1080", "1080"), (None, "1080"), ("1081", "1080")]) == [True, False, False]
    assert math.gold("$\\frac{1}{2}$") == r"\frac{1}{2}"
    assert math.grade(r"\frac{2}{4}", r"\frac{1}{2}") is True
    assert math.grade("7", "") is None
    assert math.classify(["7", "7.0"]) == [0, 0]
    assert get_task("walks").are_right([("7", "7"), ("07", "7"), (None, "7")]) == [True, False, False]
    with pytest.raises(ValueError, match=r"oracle.*math500"):
        math.first_wrong_step(None, [])


CASES = [json.loads(line) for line in Path(__file__).with_name("grading.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case['task']}-{case['completion'][-24:]!a}")
def test_completions_with_gold_and_verdict(case):
    task = get_task(case["task"])
    assert task.are_right([(task.extract(case["completion"]), task.gold(case["gold"]))]) == [case["right"]]


@pytest.mark.parametrize(
    ("gold", "answer"),
    [
        ("4", r"4\sqrt(2)"),
        ("1", r"1+\frac{1}{\mathrm{e}}"),
        ("1", "1+1/e"),
        ("2", r"2^{\aleph_0}"),
        (r"\frac{\pi}{2^{98}}", r"\frac{\pi}{2^{99}}"),
        ("4", r"4 \quad (x > 2)"),
        ("3m+2g", "3m+2"),
        ("x^2 m", "x^2"),
        ("n^2+2m", "n^2+2"),
    ],
)
def test_the_beginning_of_an_answer_is_not_the_answer(grader, gold, answer):
    assert grader.grade(gold, answer) is Verdict.INCORRECT


@pytest.mark.parametrize(
    ("gold", "answer"),
    [
        (r"\frac{\pi}{2}", "pi/2"),
        (r"(-\infty, 3)", "x<3"),
        (r"(0, 12.5)", "0 < x < 12.5"),
        (r"(1000, 2)", "(1,000, 2)"),
        (r"\infty", "∞"),
        (r"\sqrt{2}", "√2"),
    ],
)
def test_the_same_in_another_notation(grader, gold, answer):
    assert grader.grade(gold, answer) is Verdict.CORRECT
    assert grader.grade(answer, gold) is Verdict.CORRECT


LOOKS = [
    *(
        r"\mathbf{%s}",
        r"\textbf{%s}",
        r"\color{red}%s",
        r"\large %s",
        r"\displaystyle %s",
        "{%s}",
        r"\boxed{%s}",
        "$%s$",
    ),
    *(r"\quad %s\quad", "~%s~", r"\ %s\ ", r"\,%s\;", "%s.", "**%s**", r"%s\text{}", "\n%s\n"),
]


@pytest.mark.parametrize("look", LOOKS)
def test_the_look_of_an_answer_changes_no_verdict(grader, look):
    """Each of the completions with a box, its content written otherwise."""
    for case in CASES:
        content = boxed(case["completion"])
        if content is None or "boxed{}" in case["completion"] or "think" in case["completion"]:
            continue
        if ("bf" in look and r"\begin" in content) or (look in ("%s.", "%s..") and content.endswith(".")):
            continue  # no LaTeX, and an ellipsis
        task = get_task(case["task"])
        answer = task.extract(rf"So \boxed{{{look % content}}}")
        assert task.are_right([(answer, task.gold(case["gold"]))]) == [case["right"]], (case, answer)


AROUND = [
    "Let me think: 3 + 4 = 7.\n\n%s",
    "<think>\\boxed{99}\n#### 99</think>%s",
    "%s\n\nI hope it is correct.",
    "%s\n",
]


@pytest.mark.parametrize("around", AROUND)
def test_the_text_around_an_answer_changes_no_verdict(around):
    for case in CASES:
        if case["completion"] and "think" not in case["completion"]:
            task = get_task(case["task"])
            answer = task.extract(around % case["completion"])
            assert task.are_right([(answer, task.gold(case["gold"]))]) == [case["right"]], (case, answer)


SENTENCES = [
    *(
        "The answer is %s",
        "The answer is: %s.",
        "The final answer is $%s$. I hope it is correct.",
        "The answer is **%s**.",
    ),
    *(
        "So the answer is $%s$ because we added 5.",
        r"The answer is \(%s\).",
        "The answer is %s. This follows from step 2.",
    ),
    *(
        "The answer is %s!",
        "The answer is `%s`.",
        "The answer is *%s*.",
        "The answer is approximately %s.",
        "**Answer:** %s",
    ),
    *("The answer is:\n\n$$\n%s\n$$", "The answer is\n\\[\n%s\n\\]\nDone.", "So the answer is %s, which is 6 times 7."),
    *("The answer is therefore $%s$.", "The answer is:\n\n$$%s$$", "The answer is:\n%s\n", "Answer: %s", "#### **%s**"),
    *(
        "**Answer: the answer is %s**",
        "The answer is 1. No: the answer is %s. Thanks!",
        "Final Answer: \\boxed{%s}\n\nCheck: 2+2=4.",
    ),
]


@pytest.mark.parametrize("sentence", SENTENCES)
@pytest.mark.parametrize(
    ("task", "answers"),
    [("math", ["7", "-3", r"\frac{1}{2}", "1000", r"2\sqrt{3}"]), ("gsm8k", ["7", "-3", "1000", "2.5"])],
)
def test_an_answer_is_found_in_any_sentence(task, answers, sentence):
    task = get_task(task)
    found = [(task.extract(sentence % answer), answer) for answer in answers]
    assert task.are_right(found) == [True] * len(answers), found


@pytest.mark.parametrize(
    ("gold", "answer"),
    [
        (r"\emptyset", r"\varnothing"),
        ("2^{1/3}", "∛2"),
        (r"12\pi", "12π cm^2"),
        ("12", "x = 12 m"),
        ("20", "20 km/h"),
        ("60 mph", "60 miles per hour"),
        (r"9\text{ meters per second}", r"9\ \text{m/s}"),
        ("5", "5 m/s"),
        ("1000", "x = 1,000"),
        ("5", r"\text{Area} = 5"),
        ("5", r"\text{The answer is } 5"),
        (r"\frac{4}{33}", r"0.\overline{12}"),
        (r"\{1,2\}", "{2, 1}"),
        ("f(x)=2x", "2x"),
    ],
)
def test_fresh_pairs_that_are_equal(grader, gold, answer):
    assert grader.grade(gold, answer) is Verdict.CORRECT


@pytest.mark.parametrize(
    ("gold", "answer"),
    [
        ("5", r"5\ldots"),
        (r"\text{east}", r"\text{seat}"),
        (r"\text{east}", r"\textbf{seat}"),
        ("10", r"4 10/3\ "),
        ("4", r"4 \quad (x > 2)"),
        ("7", r"7 \text{ or } 8"),
        ("100!", "101!"),
        ("10^{100}", "10^{100}+1"),
        ("x<3", r"x\le 3"),
        (r"2\pi L", r"2\pi"),
        (r"\pi", r"\pi g"),
        ("9 m/s", "9 m/h"),
        (r"9\text{ m/s}", r"9\text{ m/s}^2"),
        ("5 cm", "5 m"),
        ("5 kg", r"5\text{ g}"),
        (r"5.4 \text{ cents}", r"5.4 \text{ dollars}"),
        ("[0,1]", "]0,1["),
        ("5", "5 million"),
    ],
)
def test_fresh_pairs_that_differ(grader, gold, answer):
    assert grader.grade(gold, answer) is Verdict.INCORRECT
