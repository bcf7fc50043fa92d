"""Bodies of any values: each is answered or refused in OpenAI's form, and the server lives on."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from .builders import PROBLEM, assert_unused, call, serving

WILD = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.just("\ud800")
    | st.just(10**400),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)


def mostly(*values):
    """One of the values, and once in a while anything."""
    return st.integers(0, 15).flatmap(lambda number: st.sampled_from(values) if number else WILD)


def some(**fields):
    return st.fixed_dictionaries({}, optional=fields)


TTC = some(
    strategy=mostly("majority", "best-of-n", "beam", "lookahead", "dvts", "rebase", "adaptive", "compute-optimal"),
    budget=mostly(1, 4, 16),
    verifier=mostly("prm", "prm", "trunk", "orm", "oracle"),
    agg_strategy=mostly("last", "mean"),
    deadline_s=mostly(0, 0.01, 5),
    vote=mostly("naive", "weighted"),
    progress=mostly(True, False),
    beam_width=mostly(1, 2, 0),
    stop=mostly(0.5, 1.0),
    **{"return": mostly("tree", ["votes", "scores"])},
)
SHARED = {
    "n": mostly(1, 2),
    "seed": mostly(0, -1, 2**62),
    "temperature": mostly(0, 1, 1e30),
    "top_p": mostly(0.5, 1e-30),
    "top_k": mostly(0, 3),
    "stop": mostly("a", ["\n", "="], "é"),
    "max_tokens": mostly(1, 8),
    "stream": st.booleans(),
    "ttc": TTC,
}
MODELS = mostly("home", "home", "home@beam-4", "home@best-of-n-2", "home@majority-3", "home@", "home@@-1")
MESSAGES = mostly([{"role": "user", "content": PROBLEM}], [{"role": "user", "content": "1\x00é\n"}])
CHAT = st.builds(dict, some(logprobs=mostly(True), **SHARED), model=MODELS, messages=MESSAGES)
TEXT = st.builds(dict, some(logprobs=mostly(0), **SHARED), model=MODELS, prompt=mostly(PROBLEM, ["?5?2?=c"]))


@pytest.fixture(scope="module")
def server(home):
    with serving(home, max_request_tokens=512) as running:
        yield running


@pytest.mark.parametrize(("path", "bodies"), [("chat/completions", CHAT), ("completions", TEXT)])
def test_any_body(home, server, path, bodies):
    @settings(max_examples=80, database=None, derandomize=True)
    @given(bodies)
    def check(body):
        status, answer, headers = call(server, "POST", f"/v1/{path}", json.dumps(body).encode())
        assert status in (200, 400), (body, answer)
        if status == 400:
            assert set(answer["error"]) == {"message", "type", "param", "code"}
        elif headers["content-type"].startswith("text/event-stream"):
            assert answer.endswith("data: [DONE]\n\n")
            assert '"server_error"' not in answer, body
        else:
            assert answer["choices"]

    check()
    assert_unused(home)
