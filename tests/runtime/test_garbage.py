"""Collections are rarer while searches run, and as they were afterwards."""

import gc

import pytest

from engine import BestOfN
from engine.runtime.garbage import fewer_collections

from .builders import PROBLEMS, load_engine


@pytest.fixture(autouse=True)
def thresholds():
    before = gc.get_threshold()
    yield before
    gc.set_threshold(*before)


def test_the_outermost_sets_and_restores(thresholds):
    first, second = fewer_collections(), fewer_collections()
    first.__enter__()
    raised = gc.get_threshold()
    assert raised[0] > thresholds[0]
    assert raised[1:] == thresholds[1:]
    second.__enter__()
    first.__exit__(None, None, None)  # runs may end in any order
    assert gc.get_threshold() == raised
    second.__exit__(None, None, None)
    assert gc.get_threshold() == thresholds


@pytest.mark.parametrize("own", [(0, 10, 10), (10**6, 5, 5)])
def test_what_the_user_has_set_stays(own):
    gc.set_threshold(*own)
    with fewer_collections():
        assert gc.get_threshold() == own
    assert gc.get_threshold() == own


def test_what_is_set_meanwhile_stays():
    with fewer_collections():
        gc.set_threshold(123, 4, 5)
    assert gc.get_threshold() == (123, 4, 5)


def test_searches_leave_it_as_it_was(folders, thresholds):
    engine = load_engine(folders)
    engine.search(PROBLEMS, BestOfN(), 4, max_tokens=10)
    assert gc.get_threshold() == thresholds
    running = engine.search_iter(PROBLEMS, BestOfN(), 4, max_tokens=10)
    next(running)
    assert gc.get_threshold() != thresholds
    running.close()
    assert gc.get_threshold() == thresholds
