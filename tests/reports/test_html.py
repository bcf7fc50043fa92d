import itertools
import re
from html.parser import HTMLParser

import pytest

from engine.reports import report_html, write_report
from engine.reports.charts import accuracy_chart, accuracy_curves, strategy_index
from engine.reports.examples import choose_examples
from engine.reports.svg import nice_ticks
from tests.reports.builders import beam_row, make_pool, make_row

_VOID = {"meta", "input", "br", "link", "img"}


class Checker(HTMLParser):
    """Fails on tags that do not close; collects what a browser would fetch or run."""

    def __init__(self):
        super().__init__()
        self.open, self.outside, self.text = [], [], []

    def handle_starttag(self, tag, attributes):
        if tag not in _VOID:
            self.open.append(tag)
        self.outside += [(tag, name) for name, _ in attributes if name in ("src", "href", "srcset", "data", "onclick")]
        self.outside += [(tag, "")] if tag in ("script", "link", "iframe", "img") else []

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def checked(page):
    checker = Checker()
    checker.feed(page)
    assert checker.open == []
    assert checker.outside == []
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)|@import|url\(", page)
    return " ".join("".join(checker.text).split())


def sample_rows():
    rows = []
    for n in range(6):
        answers = ["7" if n < 2 else "3", "3", "3", "7" if n < 4 else "3"]
        share = answers.count("7") / 4
        rows.append(make_row(f"b{n}", strategy="single", correct=None, accuracy=share, budget=1))
        for strategy in ("majority", "best-of-n"):
            pred = "3" if strategy == "majority" or n > 1 else "7"
            fields = {"answer": "7", "pred": pred, "correct": pred == "7", "strategy": strategy}
            rows.append(make_pool(answers, [0.9, 0.1, 0.2, 0.8], problem=f"b{n}", **fields))
        row = beam_row(seed=n, num_beams=4, width=2)
        rows.append(row if n else row | {"correct": False})
    return rows


def test_the_page_is_whole_and_needs_nothing_outside(tmp_path):
    out = tmp_path / "deep" / "report.html"
    write_report(sample_rows(), out, title="Demo & more", seconds={"beam": 2.5}, facts={"hardware": "2 <cores>"})
    page = out.read_text(encoding="utf-8")
    text = checked(page)
    for expected in (
        "Demo & more",
        "2 <cores>",
        "Accuracy and cost",
        "share of FLOPs",
        "budget (generations",
        "accuracy (%)",
        "tokens per problem",
        "FLOPs per problem",
        "gold answer",
        "best-of-n",
        "2.5",
    ):
        assert expected in text
    assert page.count("<svg") == 4 + 3 + page.count('class="example"')
    assert [path.name for path in out.parent.iterdir()] == ["report.html"]


def test_text_of_problems_and_models_is_escaped():
    evil = "</style><script>alert(1)</script>\"'&\x00\ud800"
    row = beam_row()
    row["tree"][1]["text"] = evil
    row |= {"id": evil, "problem": evil, "pred": evil, "answer": evil, "strategy": evil}
    page = report_html([row], title=evil, facts={evil: evil})
    checked(page)
    assert "<script" not in page
    assert page.count("</style>") == 1


@pytest.mark.parametrize(
    "rows",
    [
        [make_row()],
        [make_row(correct=None)],
        [make_row(correct=False, answers=[None])],
        [make_row(strategy="single", accuracy=0.0)],
        [
            make_row(budget=budget, strategy=name)
            for budget in range(1, 40)
            for name in ("dvts", "beam", "own", "own 2")
        ],
        [make_row(completions=[], scores=[], agg_scores=[], completion_tokens=[], answers=[], pred=None)],
        [make_row(tree=[{"parent": None, "status": "root"}])],
        [make_row(ledger={"tokens": {}, "flops": {}})],
    ],
)
def test_odd_rows_make_a_page_too(rows):
    text = checked(report_html(rows))
    has_verdict = any(row["correct"] is not None for row in rows)
    assert ("No row has a verdict" in text) != has_verdict


def test_no_rows_are_refused(tmp_path):
    with pytest.raises(ValueError, match="at least one result row"):
        write_report([], tmp_path / "report.html")
    assert list(tmp_path.iterdir()) == []


def test_examples_start_with_what_search_rescues():
    examples = choose_examples(sample_rows())
    first = examples[0]
    assert first.row["strategy"] == "beam"
    assert first.row["correct"]
    assert first.sample_share == 0.25
    assert first.reason == "solved by search"
    assert examples[-1].row["id"] == "b0"
    assert examples[-1].reason == "the search fails"
    assert len({id(example.row) for example in examples}) == len(examples) <= 6
    assert len(choose_examples(sample_rows(), 1)) == 1
    assert choose_examples([make_row()]) == []


def test_a_rescued_problem_has_its_story():
    first, *others = choose_examples(sample_rows())
    num_pruned = sum(node["status"] == "pruned" for node in first.row["tree"])
    assert "25 % of single samples are right" in first.story
    assert f"dropped {num_pruned} of {len(first.row['tree']) - 1}" in first.story
    assert others[-1].reason == "the search fails"
    assert others[-1].story == ""
    assert first.story in checked(report_html(sample_rows()))


def test_a_page_may_open_on_an_example():
    usual, opened = (checked(report_html(sample_rows(), opens_on_example=each)) for each in (False, True))
    assert usual.index("Accuracy and cost") < usual.index("Inside a search")
    assert opened.index("Inside a search") < opened.index("Accuracy and cost")


def test_examples_show_one_problem_under_every_strategy():
    rows = [
        beam_row(seed=n) | {"id": f"b{n}", "strategy": name} for n in range(3) for name in ("beam", "dvts", "lookahead")
    ]
    examples = choose_examples(rows)
    same = [example.row["strategy"] for example in examples if example.row["id"] == examples[0].row["id"]]
    assert sorted(same) == ["beam", "dvts", "lookahead"]


def test_labels_at_the_right_end_keep_apart():
    names = ("majority", "best-of-n", "beam", "lookahead", "dvts", "revisions", "compute-optimal")
    for correct in (True, False):
        rows = [make_row(strategy=name, budget=4, correct=correct) for name in names]
        chart = accuracy_chart(accuracy_curves(rows))
        heights = sorted(float(y) for y in re.findall(r'y="([\d.]+)"[^>]*class="series"', chart))
        assert len(heights) == len(names)
        assert min(b - a for a, b in itertools.pairwise(heights)) >= 16.9
        assert heights[0] > 0
        assert heights[-1] < 360
    assert len({strategy_index(name) for name in names}) == len(names)


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0, 97), (43, 100), (0, 3.7e12), (99.9, 99.95)])
def test_ticks_are_round_and_cover_the_range(low, high):
    ticks = nice_ticks(low, high)
    assert ticks[0] <= low + 1e-6 * high
    assert ticks[-1] >= high * (1 - 1e-9)
    assert 3 <= len(ticks) <= 9
