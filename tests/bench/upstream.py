"""From a stop to the model provider: ms until its connection is closed, and the chunks it sent after the stop.

A fake Bedrock, a process of its own, streams answers of two seconds and logs when it sees the end of each connection.
Ours is a real run over a real Valkey, stopped through another replica's bus. Beside it, in turns, stock Strands,
stopped by `agent.cancel()` and by cancelling its task: it may never close the connection, and then the time is that
until the answer ended by itself. The least of it, in turns as well: a bare message over Valkey's pub/sub, whose hearer
closes a bare connection.

Times are from the moment the stop was given to what the log says, on the clock that all processes share. The chunks
are the text deltas that were sent and that the client had not read when the stop was given; none where the last of
them was sent before the stop.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import sys
import tempfile
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import monotonic
from typing import Any

from loguru import logger
from redis.asyncio.client import PubSub
from strands import Agent
from strands.models import Model

from haltline.tasks import cancelled
from tests.bench.figures import Figure
from tests.fake_bedrock import Line, RunningFakeBedrock, running_fake_bedrock
from tests.stack import running_stack
from tests.stops.agents import stock
from tests.stops.bench import SOON, Bench, benched, new_name, script
from tests.stops.figures import percentile

CHATS = 25  # at once
STOCK = 3  # stops of stock Strands in each phase and way
BUSY = 2.5  # ms: where the least of it takes longer, the bar tells of the machine
THREADS = 200  # of the default executor, as the product has it: stock Strands would queue for asyncio's few
OURS, BARE, CANCEL, TASK = "Haltline", "bare push and close", "agent.cancel()", "task.cancel()"


@dataclass(frozen=True)
class Phase:
    """The stop comes `ms` (from, to), at random, after the client has read `chunks`, or the fake the request."""

    name: str
    script: dict[str, Any]
    chunks: int
    ms: tuple[float, float]


@dataclass(frozen=True)
class Stop:
    """The stop of the call `name`, given `at`, when its client had read so many chunks."""

    name: str
    at: float
    read: int


Stopper = Callable[[], Awaitable[Stop]]
Outcome = tuple[float, int]  # ms until the call was over, chunks sent after the stop


def phases(answer: int) -> tuple[list[Phase], Phase]:
    """Of chats that are stopped one by one, and that of many chats at once. `answer`: ms that an answer takes."""

    def streaming(gap: int) -> dict[str, Any]:
        return {"chunks": ["word "], "repeat": answer // gap, "pace_ms": gap}

    return [
        Phase("20 ms gaps", streaming(20), 1, (0, 20)),
        Phase("80 ms gaps", streaming(80), 1, (0, 80)),
        Phase("before the first token", {"delay_ms": answer, "text": "it is there"}, 0, (0, 10)),
        Phase("stalled", {"text": "a b c d", "pace_ms": 1, "stall_after": 2, "stall_ms": answer}, 2, (5, 15)),
    ], Phase(f"{CHATS} chats at once, 50 ms gaps", streaming(50), 1, (0, 0))


def leading_to(fake: RunningFakeBedrock) -> dict[str, str]:
    """What leads botocore to `fake`."""
    return {
        "AWS_ENDPOINT_URL_BEDROCK_RUNTIME": fake.url,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
    }


def measure(quick: bool) -> list[Figure]:
    """Two figures a phase."""
    logger.remove()
    logger.add(sys.stderr, level="WARNING")
    with (
        tempfile.TemporaryDirectory() as directory,
        running_stack(Path(directory), replicas=0) as stack,
        running_fake_bedrock(Path(directory) / "bedrock") as fake,
    ):
        os.environ.update(leading_to(fake))
        found, least = asyncio.run(_measured(fake, stack.redis_url, stack.session_dir, quick=quick))
    return [figure for phase, ways in found.items() for figure in _figures(phase, ways, least[phase])]


async def _measured(
    fake: RunningFakeBedrock, redis_url: str, sessions: Path, *, quick: bool
) -> tuple[dict[str, dict[str, list[Outcome]]], dict[str, list[float]]]:
    """Outcomes by phase and way, and the times of the bare stops by phase."""
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(THREADS))
    stops, bursts = (4, 1) if quick else (50, 2)
    one_by_one, at_once = phases(700 if quick else 2000)
    found: dict[str, dict[str, list[Outcome]]] = defaultdict(lambda: defaultdict(list))
    alone: list[float] = []
    least = {phase.name: alone for phase in one_by_one} | {at_once.name: []}
    model = stock()  # before what is there is frozen: no pause of the garbage collector is to be on its account
    async with benched(fake, redis_url, sessions) as bench, _bare_stopper(bench) as bare:
        await bench.next_turn(new_name("warm"))
        await Agent(model=model, callback_handler=None).invoke_async(script(text="warm", pace_ms=0))

        async def ours() -> None:
            for phase in one_by_one:
                for n in range(stops):
                    found[phase.name][OURS].append(await _outcome(bench, await _one(phase, partial(_ours, bench))))
                    if n % 5 == 0:
                        alone.append(await bare())
            for _ in range(bursts):
                outcomes, beside = await _many(bench, at_once, [partial(_ours, bench)] * CHATS, [bare] * 8)
                found[at_once.name][OURS] += outcomes
                least[at_once.name] += beside

        async def strands() -> None:
            ways = [CANCEL, TASK]
            calls = [(p, way) for p in one_by_one for way in ways * STOCK]
            many = [(at_once, way) for way in ways * (CHATS // 2)]
            # Side by side, since each takes as long as its answer.
            given, (outcomes, _) = await asyncio.gather(
                asyncio.gather(*(_one(p, partial(_stock, bench, model, way)) for p, way in calls)),
                _many(bench, at_once, [partial(_stock, bench, model, way) for _, way in many]),
            )
            outcomes = [await _outcome(bench, stop) for stop in given] + outcomes
            for (phase, way), outcome in zip(calls + many, outcomes, strict=True):
                found[phase.name][way].append(outcome)

        await ours()
        await strands()
        await ours()
    return found, least


async def _one(phase: Phase, begin: Callable[[Phase], Awaitable[Stopper]]) -> Stop:
    stop = await begin(phase)
    await asyncio.sleep(random.uniform(*phase.ms) / 1000)
    return await stop()


async def _many(
    bench: Bench,
    phase: Phase,
    begin: Iterable[Callable[[Phase], Awaitable[Stopper]]],
    beside: Iterable[Callable[[], Awaitable[float]]] = (),
) -> tuple[list[Outcome], list[float]]:
    """All are under way when the first is stopped; the stops, and what is `beside`, come at random within 400 ms."""
    stoppers = await asyncio.gather(*(b(phase) for b in begin))

    async def late(stop: Callable[[], Awaitable[Any]]) -> Any:
        await asyncio.sleep(random.uniform(0, 0.4))
        return await stop()

    stops, times = await asyncio.gather(asyncio.gather(*map(late, stoppers)), asyncio.gather(*map(late, beside)))
    return [await _outcome(bench, stop) for stop in stops], times


async def _ours(bench: Bench, phase: Phase) -> Stopper:
    name = new_name("ours")
    talk = await bench.start(name, script(name=name, **phase.script))
    await (talk.heard(phase.chunks) if phase.chunks else _line(bench, lambda line: line.get("name") == name))

    async def stop() -> Stop:
        talk.events += await talk.execution.stream.take(0)
        read = len(talk.text.split())  # a word a chunk, however many came in one piece
        return Stop(name, (await talk.halt()).stopped_at, read)

    return stop


async def _stock(bench: Bench, model: Model, way: str, phase: Phase) -> Stopper:
    name, agent, read, reached = new_name("stock"), Agent(model=model, callback_handler=None), 0, asyncio.Event()

    async def talk() -> None:
        nonlocal read
        async for event in agent.stream_async(script(name=name, **phase.script)):
            read += "data" in event
            if read == phase.chunks:
                reached.set()

    task = asyncio.create_task(talk())
    await (reached.wait() if phase.chunks else _line(bench, lambda line: line.get("name") == name))

    async def stop() -> Stop:
        given = Stop(name, monotonic(), read)
        (task if way == TASK else agent).cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        return given

    return stop


@contextlib.asynccontextmanager
async def _bare_stopper(bench: Bench) -> AsyncIterator[Callable[[], Awaitable[float]]]:
    """Called, it returns the ms that the least of it takes."""
    channel, given = new_name("bare"), dict[str, asyncio.WriteTransport]()

    async def hear(pubsub: PubSub) -> None:
        async for message in pubsub.listen():
            if message["type"] == "message":
                given.pop(message["data"]).abort()

    async def stop() -> float:
        _, writer = await asyncio.open_connection("127.0.0.1", bench.fake.port)
        port = writer.get_extra_info("sockname")[1]
        given[str(port)] = writer.transport
        await asyncio.sleep(0.005)  # the server has accepted it
        at = monotonic()
        await bench.stopper.redis.publish(channel, str(port))

        def closed(line: Line) -> bool:  # another connection may have had the port before
            return line["event"] == "connection_closed" and line["connection"] == port and line["at"] >= at

        return float((await _line(bench, closed))["at"] - at) * 1000

    async with bench.owner.redis.pubsub() as pubsub:
        await pubsub.subscribe(channel)
        hearing = asyncio.create_task(hear(pubsub))
        try:
            yield stop
        finally:
            await cancelled(hearing, within=1)


async def _line(bench: Bench, wanted: Callable[[Line], bool]) -> Line:
    """The first such line of the log. Looked for here and not in a thread: many may look at once."""
    async with asyncio.timeout(SOON):
        while not (line := next(filter(wanted, bench.fake.log()), None)):
            await asyncio.sleep(0.005)  # a foreign process' file gives no event to wait for
    return line


async def _outcome(bench: Bench, stop: Stop) -> Outcome:
    line = await _line(bench, lambda line: line.get("name") == stop.name and line["event"] in ("closed", "completed"))
    after = line["sent"] - stop.read if line.get("last_at", 0) > stop.at else 0
    return (line["at"] - stop.at) * 1000, after


def _figures(phase: str, ways: dict[str, list[Outcome]], least: list[float]) -> Iterable[Figure]:
    times = {way: [ms for ms, _ in outcomes] for way, outcomes in ways.items()} | {BARE: least}
    p99 = {way: percentile(ms, 0.99) for way, ms in times.items()}
    more = {way: {"stops": len(ms), "p50": percentile(ms, 0.5), "max": max(ms)} for way, ms in times.items()}
    closed = p99.pop(OURS)
    busy = f"a bare push and close beside it took {p99[BARE]:.1f} ms at p99" if p99[BARE] > BUSY else ""
    yield Figure(
        *(f"stop to closed upstream, p99: {phase}", "ms", closed, p99, "p99 <= 5 ms"),
        met=closed <= 5,
        why=busy,
        more=more,
    )
    most: dict[str, float] = {way: max(chunks for _, chunks in outcomes) for way, outcomes in ways.items()}
    sent = most.pop(OURS)
    yield Figure(f"chunks sent after the stop, most: {phase}", "chunks", sent, most, "<= 1", met=sent <= 1, why=busy)
