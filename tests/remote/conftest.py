import pytest

from engine.engine import Engine
from tests.cli.conftest import ttc  # noqa: F401, a fixture
from tests.remote.server import Server, serving
from tests.tiny import tiny_policy, tiny_prm


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("remote")
    return {"policy": tiny_policy(folder / "policy"), "prm": tiny_prm(folder / "prm")}


@pytest.fixture(scope="session")
def running(folders):
    with serving(folders["policy"]) as server:
        yield server


@pytest.fixture
def server(running, monkeypatch) -> Server:
    """As it is at the start; and no key of the user's own."""
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    running.reset()
    return running


@pytest.fixture
def engine(server, folders) -> Engine:
    return Engine.load(server.name, prm=folders["prm"], num_blocks=256)


@pytest.fixture
def chat(server, folders) -> Engine:
    return Engine.load(server.name, prompt_style="chat", prm=folders["prm"], num_blocks=256)
