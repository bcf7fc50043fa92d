import pytest

from engine.engine import Engine

from .builders import assert_unused, client_of, serving


@pytest.fixture(scope="module")
def home():
    engine = Engine.load("home")
    yield engine
    assert_unused(engine)


@pytest.fixture(scope="module")
def server(home):
    with serving(home, keep_alive_seconds=0.02) as running:
        yield running


@pytest.fixture(scope="module")
def client(server):
    return client_of(server)
