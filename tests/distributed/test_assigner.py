"""Windows, lost replicas and what kills them, without Ray."""

import heapq
import random

from engine.distributed.assigner import Assigner
from engine.distributed.driver import Ended, ReplicaLost, drive

NUM_REPLICAS = 64


class Simulated:
    """Replicas with a clock of their own: each works on as many items at a time as it has places, one place each."""

    def __init__(self, durations, size=NUM_REPLICAS, places=4, spare=2, deadly=(), losses=()):
        self.durations, self.size, self.places, self.spare = durations, size, places, spare
        self.now = 0.0
        self.waiting = [[] for _ in range(size)]
        self.running = [set() for _ in range(size)]
        self.events = []  # (time, replica, item)
        self.deadly = set(deadly)
        self.losses = sorted(losses)  # (time, replica)
        self.begun = []
        self.busy = 0.0
        self.most_held = 0

    def window(self, replica):
        return self.places + self.spare

    def begin(self, replica, item):
        self.begun.append(item)
        self.waiting[replica].append(item)
        self._fill(replica)
        self.most_held = max(self.most_held, len(self.waiting[replica]) + len(self.running[replica]))

    def _fill(self, replica):
        while self.waiting[replica] and len(self.running[replica]) < self.places:
            item = self.waiting[replica].pop(0)
            self.running[replica].add(item)
            heapq.heappush(self.events, (self.now + self.durations[item], replica, item))

    def _lose(self, replica):
        lost = [*self.running[replica], *self.waiting[replica]]
        self.running[replica].clear()
        self.waiting[replica].clear()
        self.events = [event for event in self.events if event[1] != replica]
        heapq.heapify(self.events)
        return [Ended(replica, item, is_lost=True) for item in lost]

    def wait(self):
        if self.losses and (not self.events or self.losses[0][0] <= self.events[0][0]):
            self.now, replica = self.losses.pop(0)
            return self._lose(replica)
        if not self.events:
            return []
        self.now, replica, item = heapq.heappop(self.events)
        if item in self.deadly:
            return self._lose(replica)
        self.busy += self.durations[item]
        self.running[replica].discard(item)
        self._fill(replica)
        return [Ended(replica, item, item)]


def durations(count: int) -> list[float]:
    """As searches have them: most are short, a few take ten times as long; the longest first, roughly."""
    rng = random.Random(0)
    made = [rng.lognormvariate(0, 0.8) for _ in range(count)]
    return [each for _, each in sorted((-each * rng.uniform(0.5, 2), each) for each in made)]


def test_64_replicas_end_within_a_twentieth_of_the_ideal():
    pool = Simulated(durations(8000))
    found = dict(drive(pool, range(8000)))
    assert found == {item: item for item in range(8000)}
    assert len(pool.begun) == 8000, "each once"
    ideal = pool.busy / (NUM_REPLICAS * pool.places)
    assert pool.now < ideal / 0.95
    assert pool.most_held <= pool.places + pool.spare


def test_what_a_lost_replica_had_is_done_again_and_nothing_else():
    times = durations(2000)
    pool = Simulated(times, losses=[(3.0, 5), (4.0, 6), (4.0, 7)])
    found = dict(drive(pool, range(2000)))
    assert found == {item: item for item in range(2000)}
    again = len(pool.begun) - 2000
    assert 0 < again <= 3 * (pool.places + pool.spare)


def test_what_kills_replicas_is_given_up_and_its_neighbours_are_not():
    pool = Simulated(durations(600), size=4, deadly=[17, 311])
    found = dict(drive(pool, range(600)))
    given_up = {item for item, value in found.items() if isinstance(value, ReplicaLost)}
    assert given_up == {17, 311}
    assert len(found) == 600
    assert pool.begun.count(17) == 2
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
