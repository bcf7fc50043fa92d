"""Windows, lost replicas and what kills them, without Ray."""

from benchmarks.reliability.replicas import NUM_REPLICAS, Simulated, durations
from engine.distributed.assigner import Assigner
from engine.distributed.driver import ReplicaLost, drive


def test_64_replicas_end_within_a_twentieth_of_the_ideal():
    pool = Simulated(durations(8000))
    found = dict(drive(pool, range(8000)))
    assert found == {item: item for item in range(8000)}
    assert pool.num_begun.total() == 8000, "each once"
    ideal = pool.busy / (NUM_REPLICAS * pool.places)
    assert pool.now < ideal / 0.95
    assert pool.most_held <= pool.places + pool.spare


def test_what_a_lost_replica_had_is_done_again_and_nothing_else():
    times = durations(2000)
    pool = Simulated(times, losses=[(3.0, 5), (4.0, 6), (4.0, 7)])
    found = dict(drive(pool, range(2000)))
    assert found == {item: item for item in range(2000)}
    again = pool.num_begun.total() - 2000
    assert 0 < again <= 3 * (pool.places + pool.spare)


def test_what_kills_replicas_is_given_up_and_its_neighbours_are_not():
    pool = Simulated(durations(600), size=4, deadly=[17, 311])
    found = dict(drive(pool, range(600)))
    given_up = {item for item, value in found.items() if isinstance(value, ReplicaLost)}
    assert given_up == {17, 311}
    assert len(found) == 600
    assert pool.num_begun[17] == 2
    assert "2 replicas were lost" in str(found[17])


def test_a_suspect_is_alone():
    assigner = Assigner(range(6), 2)
    assert assigner.next_for(0, 2) == [0, 1]
    assert assigner.next_for(1, 2) == [2, 3]
    assert not assigner.lost(0, 0)
    assert not assigner.lost(0, 1)
    assert assigner.next_for(0, 2) == [4]  # its share of what is left
    assigner.ended(0, 4)
    assert assigner.next_for(0, 2) == [5]
    assert assigner.next_for(0, 2) == [], "not beside another"
    assigner.ended(0, 5)
    assert assigner.next_for(0, 2) == [0]
    assert assigner.next_for(0, 2) == []
    assert assigner.next_for(1, 3) == [], "it holds two"
    assigner.ended(1, 2)
    assigner.ended(1, 3)
    assert assigner.next_for(1, 3) == [1]
    assert assigner.lost(0, 0), "given up"
    assigner.ended(1, 1)
    assert assigner.is_done


def test_nothing_to_do():
    assert list(drive(Simulated([], size=2), [])) == []
