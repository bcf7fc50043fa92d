"""Replicas as actors of Ray: the rows of one process, whatever is lost."""

import os
import signal
from contextlib import closing

import pytest
import ray
from ray.cluster_utils import Cluster

from engine import BeamSearch, BestOfN, Engine, EngineConfig, SearchConfig
from engine.cli import main
from engine.cli.replicas import ReplicaOptions
from engine.distributed import Replicas, Session, search
from engine.errors import UserError
from engine.results import result_row
from engine.tasks import take_problems

NUM_PROBLEMS = 40
CONFIG = SearchConfig(8, seed=3)
STRATEGY = BeamSearch(width=2)


@pytest.fixture(scope="module")
def cluster():
    """Two machines of Ray's own making, each with room for one replica."""
    os.environ["RAY_DISABLE_IMPORT_WARNING"] = "1"
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    made.add_node(num_cpus=1)
    ray.init(address=made.address, log_to_driver=False, logging_level="error")
    yield made
    ray.shutdown()
    made.shutdown()


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine.load("home")


def wanted(engine: Engine, problems, strategy=STRATEGY) -> list:
    """The rows of one process that has seen none of the prompts."""
    for llm in (engine.policy, engine.prm):
        llm.clear_cache()
    return [result_row(each) for each in engine.search(problems, strategy, config=CONFIG)]


def test_rows_are_those_of_one_process_though_an_actor_and_a_machine_are_lost(cluster, engine):
    problems = take_problems(engine.task, "validation", NUM_PROBLEMS)
    want = wanted(engine, problems)
    found = {}

    def with_process(result):  # sent by value, as the replicas cannot import the tests
        return result_row(result), os.getpid()

    rows = search(problems, STRATEGY, EngineConfig("home"), CONFIG, Replicas(2), convert=with_process)
    for index, (row, process) in rows:
        assert index not in found, "each once"
        found[index] = row
        if len(found) == 5:
            os.kill(process, signal.SIGKILL)
        if len(found) == 12:
            (other,) = (node for node in cluster.worker_nodes)
            cluster.remove_node(other, allow_graceful=False)
            cluster.add_node(num_cpus=1)
    assert [found[index] for index in range(NUM_PROBLEMS)] == want


def test_a_problem_that_raises_or_kills_replicas_becomes_an_error_alone(cluster, engine):
    problems = [*take_problems(engine.task, "validation", 8), engine.as_problem("?1?" * 2000, 8)]
    want = wanted(engine, problems[:8], BestOfN())
    deadly = problems[4].id

    def convert(result):
        if result.problem.id == deadly:
            os.kill(os.getpid(), signal.SIGKILL)
        return result_row(result)

    options = EngineConfig("home"), CONFIG, Replicas(1)
    found = dict(search(problems, BestOfN(), *options, convert=convert, on_error="yield"))
    assert isinstance(found[8], UserError)
    assert "the context of the model holds" in str(found.pop(8))
    assert "2 replicas were lost" in str(found.pop(4))
    assert found == {index: row for index, row in enumerate(want) if index != 4}


def test_commands_write_the_files_of_one_process(cluster, tmp_path):
    search = ["search", "--limit", "6", "--strategy", "beam", "--budget", "4"]
    rollouts = ["rollouts", "--num-questions", "3", "--num-samples", "2", "--num-rollouts", "2"]
    strategies = ["--strategies", "best-of-n,beam:width=2:stop=0.9", "--budgets", "4,8"]
    calibrate = ["calibrate", "--limit", "40", *strategies, "--bins", "0.6", "--min-per-bin", "2"]
    for name, command in (("rows", search), ("labels", rollouts), ("calibration", calibrate)):
        alone, shared = tmp_path / f"{name}.jsonl", tmp_path / f"{name}-shared.jsonl"
        assert main([*command, "--out", str(alone)]) == 0
        assert main([*command, "--out", str(shared), "--ray", "auto"]) == 0
        assert shared.read_bytes() == alone.read_bytes()


def test_replicas_that_cannot_be(cluster, engine):
    problems = take_problems(engine.task, "validation", 2)
    with pytest.raises(UserError, match="needs 64 CPUs and 0 GPUs of one machine, the largest of the cluster has 1"):
        list(search(problems, STRATEGY, EngineConfig("home"), CONFIG, Replicas(1, num_cpus=64)))
    with pytest.raises(UserError, match="replicas must be at least 1, got 0"):
        Replicas(0)
    with pytest.raises(UserError, match="nowhere"):
        list(search(problems, STRATEGY, EngineConfig("/nowhere"), CONFIG, Replicas(1)))
    with pytest.raises(UserError, match="--ray is not for --policy openai:"):
        ReplicaOptions(ray="auto").asked({}, EngineConfig("openai:http://localhost:1/v1#small"))


def test_each_search_of_a_session_begins_without_the_caches_of_the_last(cluster, engine):
    problems = take_problems(engine.task, "validation", 6)
    with closing(Session(EngineConfig("home"), Replicas(1))) as session:
        for strategy in (BestOfN(), STRATEGY):
            found = dict(session.search_iter(problems, strategy, CONFIG, convert=result_row))
            assert [found[index] for index in range(6)] == wanted(engine, problems, strategy)
