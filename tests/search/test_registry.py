"""Strategies survive the way into a file and back, and what a user types is checked."""

import pytest

from engine.scheduler import can_spend, parse_strategy, strategy_as_dict, strategy_from_dict, strategy_label
from engine.search import DVTS, Adaptive, BeamSearch, BestOfN, Lookahead, Majority, Rebase, Revisions
from engine.search.registry import STRATEGIES as BY_NAME
from engine.search.registry import VERIFIERS, is_judged_by, option_fields

STRATEGIES = [
    Majority(),
    BestOfN(vote="naive"),
    BeamSearch(width=2, max_duplicates=1),
    Lookahead(width=2, lookahead=3),
    DVTS(width=8),
    Rebase(temperature=0.05),
    Adaptive(vote="majority", confidence=0.9),
    Revisions(parallel=2, judge_alone=True, stop=1),
    Lookahead(width=0, stop=0.5),
]


def test_the_list_names_every_strategy_and_what_may_judge_it():
    assert list(BY_NAME) == ["majority", "best-of-n", "beam", "lookahead", "dvts", "rebase", "adaptive", "revisions"]
    assert list(VERIFIERS) == ["prm", "trunk", "orm", "oracle"]
    judged = {name: [who for who in VERIFIERS if is_judged_by(each, who)] for name, each in BY_NAME.items()}
    assert [name for name, who in judged.items() if who == list(VERIFIERS)] == ["best-of-n", "adaptive", "revisions"]
    assert [name for name, who in judged.items() if not who] == ["majority"]
    assert judged["beam"] == judged["rebase"] == ["prm", "trunk", "oracle"]


def test_options_are_named_as_on_the_command_line():
    assert list(option_fields(BeamSearch)) == ["beam_width", "num_iterations", "vote", "max_duplicates", "stop"]
    assert list(option_fields(DVTS)) == ["beam_width", "num_iterations", "vote", "stop"], "it refuses max_duplicates"
    assert list(option_fields(Rebase)) == ["rebase_temperature", "num_iterations", "vote", "stop"]
    assert option_fields(Adaptive)["adaptive_batch"].name == "batch"
    assert option_fields(Majority) == {}


@pytest.mark.parametrize("strategy", STRATEGIES, ids=strategy_label)
def test_there_and_back(strategy):
    assert strategy_from_dict(strategy_as_dict(strategy)) == strategy
    assert parse_strategy(strategy_label(strategy)) == strategy


def test_labels_name_what_is_not_the_default():
    assert strategy_label(BeamSearch()) == "beam"
    assert strategy_label(BeamSearch(width=2, vote="naive")) == "beam:width=2:vote=naive"
    assert strategy_label(BeamSearch(width=2, stop=0.95)) == "beam:width=2:stop=0.95"
    assert parse_strategy(" beam:max_duplicates=none ") == BeamSearch()


def test_what_can_be_spent():
    assert [can_spend(BeamSearch(width=4), each) for each in (-1, 0, 3, 4)] == [False, False, False, True]
    assert [can_spend(Majority(), each) for each in (-1, 0, 1)] == [False, True, True]
    assert [can_spend(DVTS(width=4), each) for each in (4, 6, 8)] == [True, False, True]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("telepathy", "'telepathy'"),
        ("beam:depth=2", "no option 'depth'; it has width"),
        ("majority:vote=naive", "it has none"),
        ("beam:width", "'beam:width'"),
        ("beam:width=wide", "'wide'"),
        ("beam:width=-1", "got -1"),
        ("dvts:width=0", "beam width must be at least 1, got 0"),
        ("beam:stop=0", "stop must be above 0 and at most 1, got 0"),
        ("beam:stop=likely", "'likely'"),
        ("adaptive:vote=majority:stop=0.9", "stop has no effect with this adaptive, which scores nothing, got 0.9"),
        ("revisions:vote=majority:stop=0.9", "stop has no effect"),
        ("majority:stop=0.9", "it has none"),
        ("beam:width=2.5", "beam width must be a whole number, got 2.5"),
        ("beam:width=true", "beam width must be a whole number, got True"),
        ("revisions:judge_alone=3", "judge_alone must be true or false, got 3"),
        ("", "''"),
    ],
)
def test_bad_texts_are_named(text, words):
    with pytest.raises(ValueError, match=words):
        parse_strategy(text)
