"""How near the ideal many replicas come, and what their driver needs, without a cluster.

`python -m benchmarks.reliability.replicas` drives 64 simulated replicas, whose clocks are their own, over as many
problems as are asked for: the loop and the windows of `ttc search --ray`, with searches that only take time. It prints
the share of the ideal makespan (all places of all replicas busy to the end), how many searches were begun twice because
replicas were lost, and the driver's memory.
"""

from __future__ import annotations

import heapq
import random
import resource
import sys
import time
from array import array
from collections import Counter
from collections.abc import Iterable, Sequence

from benchmarks.options import make_parser
from engine.distributed.driver import Ended, drive
from engine.results.provenance import provenance, write_json

NUM_REPLICAS = 64


class Simulated:
    """Replicas with a clock of their own: each works on as many items at a time as it has places, one place each."""

    def __init__(
        self,
        durations: Sequence[float],
        size: int = NUM_REPLICAS,
        places: int = 4,
        spare: int = 2,
        deadly: Iterable[int] = (),
        losses: Iterable[tuple[float, int]] = (),
    ):
        """`deadly` items kill the replica that comes to their end; `losses` are (time, replica) of other deaths."""
        self.durations, self.size, self.places, self.spare = durations, size, places, spare
        self.now = 0.0
        self.waiting: list[list[int]] = [[] for _ in range(size)]
        self.running: list[set[int]] = [set() for _ in range(size)]
        self.events: list[tuple[float, int, int]] = []  # time, replica, item
        self.deadly = set(deadly)
        self.losses = sorted(losses)  # (time, replica)
        self.num_begun = Counter[int]()
        self.busy = 0.0
        self.most_held = 0

    def window(self, replica: int) -> int:
        return self.places + self.spare

    def begin(self, replica: int, item: int) -> None:
        self.num_begun[item] += 1
        self.waiting[replica].append(item)
        self._fill(replica)
        self.most_held = max(self.most_held, len(self.waiting[replica]) + len(self.running[replica]))

    def _fill(self, replica: int) -> None:
        while self.waiting[replica] and len(self.running[replica]) < self.places:
            item = self.waiting[replica].pop(0)
            self.running[replica].add(item)
            heapq.heappush(self.events, (self.now + self.durations[item], replica, item))

    def _lose(self, replica: int) -> list[Ended]:
        lost = [*self.running[replica], *self.waiting[replica]]
        self.running[replica].clear()
        self.waiting[replica].clear()
        self.events = [event for event in self.events if event[1] != replica]
        heapq.heapify(self.events)
        return [Ended(replica, item, is_lost=True) for item in lost]

    def wait(self) -> list[Ended]:
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


def durations(count: int) -> array[float]:
    """As searches have them: most are short, a few take ten times as long; the longest first, roughly."""
    rng = random.Random(0)
    made = [rng.lognormvariate(0, 0.8) for _ in range(count)]
    return array("d", (each for _, each in sorted((-each * rng.uniform(0.5, 2), each) for each in made)))


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status."""
    parser = make_parser("reliability.replicas", __doc__)
    parser.add_argument("--num-problems", type=int, default=1_000_000)
    parser.add_argument("--num-losses", type=int, default=64, help="Replicas that are lost on the way.")
    options = parser.parse_args(arguments)
    times = durations(options.num_problems)
    ideal = sum(times) / (NUM_REPLICAS * 4)
    rng = random.Random(1)
    losses = [(rng.uniform(0, ideal), rng.randrange(NUM_REPLICAS)) for _ in range(options.num_losses)]
    pool, begun = Simulated(times, losses=losses), time.perf_counter()
    num_ended = sum(1 for _ in drive(pool, range(options.num_problems)))
    figures = {
        "problems": num_ended,
        "replicas": NUM_REPLICAS,
        "replicas lost": options.num_losses,
        "share of the ideal makespan": round(ideal / pool.now, 4),
        "searches begun twice": pool.num_begun.total() - options.num_problems,
        "driver, microseconds per problem, simulation included": round(
            1e6 * (time.perf_counter() - begun) / options.num_problems, 1
        ),
        "driver, MB at most": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    } | provenance()
    for name, value in figures.items():
        print(f"{name}: {value}")
    write_json(options.json, figures)
    return 0


if __name__ == "__main__":
    sys.exit(main())
