"""A server under load, and under clients that leave: `python -m benchmarks.serving [--seconds 120] [--requests 1000]`.

First --clients requests of mixed strategies are kept open for --seconds, by clients in a process of their own: no error
may come, no request may wait more than five times the median, the rate must be at least 0.9 of `engine.search` on the
same problems (strategy by strategy, measured before and after), and the KV blocks must be free afterwards. Then
--requests are sent, of which half are cancelled at random moments: nothing may leak, and the others' texts must be
those of an undisturbed run. The exit status is 1 where that is not so.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context

from benchmarks.options import check_counts, make_parser, settings
from benchmarks.reliability.aborts import leaked_blocks
from benchmarks.timing import seconds_of
from engine.engine import Engine
from engine.loading import clear_caches
from engine.results.provenance import provenance, write_json
from engine.search.registry import parse_strategy
from engine.serve.answers import ranked
from engine.serve.config import ServeConfig
from engine.serve.server import Server
from engine.tasks import get_task
from engine.tasks.task import take_problems

SEARCHES = (("majority", 8), ("best-of-n", 8), ("beam", 8), ("dvts", 8), ("adaptive", 8), ("revisions", 8))
MAX_WAIT, MIN_RATE = 5.0, 0.9
SETTLE_SECONDS = 10.0  # for what was cancelled last


Address = tuple[str, int]


@dataclass(frozen=True)
class Ask:
    """A request: a problem and how it is searched. The same one has the same answer."""

    prompt: str
    strategy: str
    budget: int
    seed: int

    @property
    def body(self) -> bytes:
        model = f"home@{self.strategy}-{self.budget}"
        said = [{"role": "user", "content": self.prompt}]
        return json.dumps({"model": model, "messages": said, "seed": self.seed}).encode()


@dataclass(frozen=True)
class Answered:
    """What came of a request, and after how long."""

    ask: Ask
    status: int  # 0: its client has left
    text: str
    begun: float
    seconds: float


def make_asks(num_problems: int, seed: int) -> list[Ask]:
    """Problems of the home task, each with a strategy in turn."""
    problems = take_problems(get_task("walks"), "test", num_problems)
    return [Ask(each.prompt.strip(), *SEARCHES[index % len(SEARCHES)], seed) for index, each in enumerate(problems)]


async def send(address: Address, ask: Ask, leaves_after: float | None = None) -> Answered:
    """Sends a request over a connection of its own; a client that leaves closes it, whatever has come."""
    begun = time.perf_counter()
    reader, writer = await asyncio.open_connection(*address)
    head = "POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Type: application/json\r\n"
    try:
        writer.write(f"{head}Content-Length: {len(ask.body)}\r\n\r\n".encode() + ask.body)
        content = await asyncio.wait_for(reader.read(), leaves_after)
    except TimeoutError:
        return Answered(ask, 0, "", begun, time.perf_counter() - begun)
    finally:
        writer.close()
    head, _, body = content.partition(b"\r\n\r\n")
    status = int(head.split()[1])
    text = json.loads(body)["choices"][0]["message"]["content"] if status == 200 else body.decode()
    return Answered(ask, status, text, begun, time.perf_counter() - begun)


async def load(address: Address, asks: Sequence[Ask], num_clients: int, seconds: float) -> list[Answered]:
    """Each client sends one request after another until the time is over; what runs then is waited for."""
    end, answers, turn = time.perf_counter() + seconds, [], iter(range(sys.maxsize))

    async def client() -> None:
        while time.perf_counter() < end:
            answers.append(await send(address, asks[next(turn) % len(asks)]))

    await asyncio.gather(*(client() for _ in range(num_clients)))
    return answers


async def disturb(address: Address, asks: Sequence[Ask], num_clients: int, seed: int) -> list[Answered]:
    """All requests, half of which are given up at a random moment; `num_clients` at a time."""
    places, rng = asyncio.Semaphore(num_clients), random.Random(seed)
    moments = [rng.uniform(0, 2) if rng.random() < 0.5 else None for _ in asks]

    async def one(ask: Ask, moment: float | None) -> Answered:
        async with places:
            return await send(address, ask, moment)

    return await asyncio.gather(*map(one, asks, moments))


def elsewhere(clients: Callable[..., Coroutine[None, None, list[Answered]]], *args: object) -> list[Answered]:
    """What `clients` returns in a process of its own, as clients are not where the server is."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(_run, clients, args).result()


def _run(clients: Callable[..., Coroutine[None, None, list[Answered]]], args: tuple) -> list[Answered]:
    return asyncio.run(clients(*args))


def expected(engine: Engine, asks: Sequence[Ask]) -> dict[Ask, str]:
    """The texts of an undisturbed run."""
    texts: dict[Ask, str] = {}
    for search in dict.fromkeys((ask.strategy, ask.budget, ask.seed) for ask in asks):
        own = list(dict.fromkeys(ask for ask in asks if (ask.strategy, ask.budget, ask.seed) == search))
        problems = [engine.as_problem(ask.prompt, 0) for ask in own]  # one that is asked for alone has the number 0
        results = engine.search(problems, parse_strategy(search[0]), search[1], seed=search[2])
        for ask, result in zip(own, results, strict=True):
            texts[ask] = result.candidates[ranked(result)[0]].text
    return texts


def engine_rate(engine: Engine, asks: Sequence[Ask]) -> float:
    """Searches per second of `engine.search`, one call for each strategy over all its problems."""
    by_search: dict[tuple[str, int], list[str]] = {}
    for ask in asks:
        by_search.setdefault((ask.strategy, ask.budget), []).append(ask.prompt)
    clear_caches(engine)

    def search_all() -> None:
        for (strategy, budget), prompts in by_search.items():
            engine.search(prompts, parse_strategy(strategy), budget)

    return len(asks) / seconds_of(search_all)


def used_blocks(server: Server, engine: Engine) -> int:
    """Blocks that are still held once nothing runs and the caches are empty; every tree must be whole."""
    end = time.monotonic() + SETTLE_SECONDS
    while (server.service.desk.handles or engine.policy.runner.has_work) and time.monotonic() < end:
        time.sleep(0.05)
    time.sleep(0.1)  # the step that closes what was cancelled last
    return leaked_blocks(engine)


def waits(answers: Sequence[Answered]) -> dict[str, dict[str, float]]:
    """Median and longest seconds of each strategy's requests."""
    found: dict[str, list[float]] = {}
    for each in answers:
        found.setdefault(each.ask.strategy, []).append(each.seconds)
    return {name: {"median": statistics.median(each), "longest": max(each)} for name, each in found.items()}


def under_load(server: Server, engine: Engine, args: argparse.Namespace, asks: Sequence[Ask]) -> dict[str, object]:
    """The report of the first part."""
    before = engine_rate(engine, asks)
    clear_caches(engine)
    answers = elsewhere(load, server.address, asks, args.clients, args.seconds)
    rate = len(answers) / (max(each.begun + each.seconds for each in answers) - min(each.begun for each in answers))
    ratio = rate / statistics.mean((before, engine_rate(engine, asks)))
    seconds = [each.seconds for each in answers]
    longest = max(seconds) / statistics.median(seconds)
    statuses, used = Counter(each.status for each in answers), used_blocks(server, engine)
    is_well = set(statuses) == {200} and longest <= MAX_WAIT and ratio >= MIN_RATE and used == 0
    return {
        "num_requests": len(answers),
        "statuses": dict(statuses),
        "waits": waits(answers),
        "longest_over_median": longest,
        "requests_per_second": rate,
        "rate_over_engine_search": ratio,
        "used_blocks": used,
        "is_well": is_well,
    }


def with_leavers(server: Server, engine: Engine, args: argparse.Namespace, asks: Sequence[Ask]) -> dict[str, object]:
    """The report of the second part."""
    chosen = [asks[index % len(asks)] for index in range(args.requests)]
    want = expected(engine, chosen)
    answers = elsewhere(disturb, server.address, chosen, args.clients, args.seed)
    used = used_blocks(server, engine)
    wrong = sum(each.status == 200 and each.text != want[each.ask] for each in answers)
    statuses = Counter(each.status for each in answers)
    return {
        "statuses": dict(statuses),
        "wrong_texts": wrong,
        "used_blocks": used,
        "is_well": set(statuses) <= {0, 200} and wrong == used == 0,
    }


def main(argv: Sequence[str] | None = None) -> int:
    parser = make_parser("serving", __doc__)
    parser.add_argument("--seconds", type=int, default=120, help="of load")
    parser.add_argument("--clients", type=int, default=200, help="requests that are open at a time")
    parser.add_argument("--requests", type=int, default=1000, help="of the second part")
    parser.add_argument("--problems", type=int, default=240, help="of the home task")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    check_counts(parser, args)
    asks = make_asks(args.problems, args.seed)
    engine = Engine.load("home")
    server = Server(engine, ServeConfig(port=0), "home")
    server.start()
    try:
        report = {
            **provenance(),
            "settings": settings(args),
            "load": under_load(server, engine, args, asks),
            "leavers": with_leavers(server, engine, args, asks),
        }
    finally:
        server.stop()
    write_json(args.json, report)
    print(json.dumps({name: report[name] for name in ("load", "leavers")}, indent=1))
    return 0 if report["load"]["is_well"] and report["leavers"]["is_well"] else 1


if __name__ == "__main__":
    sys.exit(main())
