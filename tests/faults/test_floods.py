"""A client that does nothing but stop: others feel little of it, and nothing of it stays."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import redis.asyncio as redis

from tests.bench.live_chats import post
from tests.bench.load import Client, Load, provider
from tests.contract.client import until
from tests.faults.conftest import FULL
from tests.faults.leaving import over_bedrock, resident
from tests.stack import ROOT, Stack, free_port, running_stack
from tests.stops.figures import percentile

# What is asked of `Turns` itself is in tests/unit/test_turns.py, and takes no time.
pytestmark = pytest.mark.skipif(not FULL, reason="floods take their time: make faults")

HOSTILE = "127.0.0.2"  # another client than the rest of the test
CONNECTIONS = 32  # of the hostile one, through both replicas
BAR = 3  # times what it was before
SECONDS = 30  # of one try, at most: how many stops that is depends on the machine
TRIES = 3  # the machine is shared: what the product does to others it does each time


@dataclass
class Street:
    """Two replicas; the port where their model provider is to be."""

    stack: Stack
    provider: int

    @property
    def ports(self) -> list[int]:
        return [replica.port for replica in self.stack.replicas]


@pytest.fixture(scope="module")
def street(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Street]:
    directory, port = Path(tmp_path_factory.mktemp("floods")), free_port()
    with running_stack(directory, replicas=0) as stack:
        for _ in range(2):
            stack.add_replica(**over_bedrock(f"http://127.0.0.1:{port}", directory))
        for replica in stack.replicas:
            replica.wait_until_live(60)
        yield Street(stack, port)


@pytest.fixture
async def bus(street: Street) -> AsyncIterator[redis.Redis]:
    client = redis.from_url(street.stack.redis_url, decode_responses=True)
    yield client
    await client.aclose()


# ---- the hostile client
class Flood:
    """The process of `tests.faults.flood`."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def do(self, line: str) -> dict[str, Any]:
        """What the line asks for; see there."""
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(line.encode() + b"\n")
        return json.loads(await self._process.stdout.readline())


@asynccontextmanager
async def flooding(ports: list[int]) -> AsyncIterator[Flood]:
    words = (HOSTILE, str(CONNECTIONS), *map(str, ports))
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.faults.flood", *words), stdin=-1, stdout=-1, cwd=ROOT
    )
    assert process.stdin
    assert process.stdout
    try:
        assert await process.stdout.readline() == b"ready\n"
        yield Flood(process)
    finally:
        process.stdin.close()
        await process.wait()


# ---- the others
@dataclass
class Others:
    """Those who have nothing to do with it: streams at 20 tokens a second, and one stop after the other."""

    ports: list[int]
    loads: list[Load]
    stops: list[float] = field(default_factory=list)  # ms that each took
    _names: int = 0

    async def feel(self, work: Awaitable[Any]) -> tuple[list[float], list[float], Any]:
        """The times (ms) of their stops, and how late their tokens came, while `work` goes on; and what it gave."""
        self.stops.clear()
        for load in self.loads:
            load.late.clear()
        stopping = [asyncio.create_task(self._stop(port)) for port in self.ports]
        try:
            given = await work
        finally:
            for task in stopping:
                task.cancel()
            await asyncio.wait(stopping)
        return list(self.stops), [late for load in self.loads for late in load.late], given

    async def _stop(self, port: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            while True:
                self._names += 1
                since = time.perf_counter()
                writer.write(post(f"stop/other-{self._names}", {}))
                head = await reader.readuntil(b"\r\n\r\n")
                assert head.startswith(b"HTTP/1.1 200 ")
                length = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
                await reader.readexactly(int(length.partition(b":")[2]))
                self.stops.append((time.perf_counter() - since) * 1000)
                await asyncio.sleep(0.02)
        finally:
            writer.transport.abort()


@asynccontextmanager
async def others(street: Street, chats: int = 5) -> AsyncIterator[Others]:
    async with provider(street.provider):
        found = Others(street.ports, [Load(port) for port in street.ports])
        try:
            for load in found.loads:
                await load.grow(chats)
            await found.feel(asyncio.sleep(0.3))  # connections and first calls count for nothing
            yield found
        finally:
            for load in found.loads:
                load.leave()


async def live(port: int, chat: str) -> Client:
    """A run that goes on until it is stopped."""
    request = post(f"chat/{chat}", {"message": "Tell me."})
    _, client = await asyncio.get_running_loop().create_connection(lambda: Client(request, []), "127.0.0.1", port)
    await asyncio.wait_for(client.begun, 10)
    return client


async def closed(client: Client) -> bool:
    """Whether its stream has ended."""
    return bool(client.transport.is_closing())


@dataclass(frozen=True)
class Kind:
    """A flood: a line of `tests.faults.flood` a round, so many rounds. `live`: this chat has a run then."""

    line: str
    rounds: int
    live: str = ""


KINDS = {
    "one chat": Kind("stop 200 flooded", 50, live="flooded"),
    "one chat, waiting": Kind("stop 200 flooded ?wait=0.5", 4, live="flooded"),
    "chats that never were, in bulk": Kind("bulk 2 never-{n}", 5),
    "chats that never were": Kind("stop 200 never-{n}", 4),
}


@pytest.mark.timeout(150)
@pytest.mark.parametrize("kind", KINDS)
async def test_others_wait_at_most_three_times_as_long(street: Street, bus: redis.Redis, kind: str) -> None:
    for attempt in range(TRIES):
        ratios = await felt(street, KINDS[kind])
        print(kind, attempt, ratios)
        if max(ratios.values()) <= BAR:
            break
    assert max(ratios.values()) <= BAR, ratios
    await nothing_without_an_end(bus, street)


async def felt(street: Street, kind: Kind) -> dict[str, float]:
    """By how much longer others wait, p50 and p99, while it floods: the one and the other in turns."""
    calm: tuple[list[float], list[float]] = ([], [])
    under: tuple[list[float], list[float]] = ([], [])
    async with flooding(street.ports) as flood, others(street) as them:
        end, done = time.monotonic() + SECONDS, 0
        while done < kind.rounds and time.monotonic() < end:
            done += 1
            run = await live(street.ports[0], kind.live) if kind.live else None
            for into, work in ((calm, asyncio.sleep(0.5)), (under, flood.do(kind.line))):
                stops, tokens, given = await them.feel(work)
                into[0].extend(stops)
                into[1].extend(tokens)
            assert set(given["statuses"]) == {"200"}, given
            if run is not None:
                await until(lambda run=run: closed(run))
        print(done, "rounds of", kind.line)
    return {
        f"{what} p{share * 100:.0f}": round(percentile(under[n], share) / percentile(calm[n], share), 2)
        for n, what in enumerate(("stops", "tokens"))
        for share in (0.5, 0.99)
    }


async def nothing_without_an_end(bus: redis.Redis, street: Street) -> None:
    """Every key has a time to live, but for the list of chats; and that knows nobody who was only stopped."""
    keys = [key async for key in bus.scan_iter(count=1000)]
    for n in range(0, len(keys), 1000):
        pipe = bus.pipeline(transaction=False)
        for key in keys[n : n + 1000]:
            pipe.ttl(key)
        lasting = [key for key, ttl in zip(keys[n : n + 1000], await pipe.execute(), strict=True) if ttl == -1]
        assert all(key.endswith(":{chats}") for key in lasting), lasting
    listed = await bus.zrange("index:{chats}", 0, -1)
    assert not [chat for chat in listed if chat.startswith(("never-", "other-"))]


@pytest.mark.timeout(150)
async def test_nothing_of_a_flood_stays(street: Street, bus: redis.Redis) -> None:
    """A first one warms up allocators and pools; a second one leaves no more than that."""

    async def memory() -> list[int]:
        """Of Valkey and the replicas, when the time that keys have is over: it is put forward, having been seen."""
        await nothing_without_an_end(bus, street)
        keys = [key async for key in bus.scan_iter(count=1000) if not key.endswith(":{chats}")]
        for n in range(0, len(keys), 1000):
            await bus.delete(*keys[n : n + 1000])
        await bus.memory_purge()
        return [int((await bus.info("memory"))["used_memory"]), *map(resident, street.stack.replicas)]

    async with flooding(street.ports) as flood:
        await flood.do("bulk 10 first-{n}")
        await flood.do("stop 500 first-{n}")
        before = await memory()
        told = await flood.do("bulk 10 second-{n}")
        assert told["statuses"] == {"200": 10}
        await flood.do("stop 500 second-{n}")
        peak = int((await bus.info("memory"))["used_memory"])
        after = await memory()
    print("bytes before", before, "after", after, "Valkey's peak", peak)
    assert peak > before[0] * 1.5, "the flood was kept for a while"
    for was, now in zip(before, after, strict=True):
        assert now < was * 1.05
