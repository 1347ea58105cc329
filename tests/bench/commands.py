"""Commands that Redis is sent, as its MONITOR tells them: of a quiet chat, and of a run from its start to its end.

One replica over HTTP, its connections warm. What scripts do inside of Redis is left out (`INFO commandstats` would
count it), and so are a replica's look (ten a second) and pulse (one each 2 s), which go on for all its runs together.
Beside it, at the same time in another database of the same Valkey, `polling`, where each run asks for its stop each
100 ms.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import NamedTuple

from redis.asyncio import Redis

from haltline import chat_index, redis_scripts
from haltline.redis_pulse import PULSE_EVERY
from haltline.settings import Settings
from tests.bench import polling
from tests.bench.figures import Figure
from tests.bench.live_chats import SOON, TALKING, LiveChats, Replica
from tests.bench.shell import serving
from tests.contract.client import script
from tests.stack import running_stack

SILENT = script(chunks=["one word, ", "and after ten minutes another"], pace_ms=600_000)
SCRIPTS = {
    hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest(): f"EVALSHA {name.strip('_')}"
    for module in (redis_scripts, chat_index)
    for name, text in vars(module).items()
    if isinstance(text, str)
}
LOOK_EVERY = Settings().stop_poll_interval
OURS, POLLING = 0, 1  # databases
Sent = tuple[Counter[str], Counter[str]]  # how often each command was sent, by its name, for each of these


class Monitor:
    """Commands of clients, by their database."""

    def __init__(self, port: int) -> None:
        self._port, self._asking = port, Redis(port=port)

    async def __aenter__(self) -> Monitor:
        self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self._port)
        self._writer.write(b"MONITOR\r\n")
        await self.since()
        return self

    async def __aexit__(self, *_: object) -> None:
        self._writer.close()
        await self._asking.aclose()

    async def since(self) -> Sent:
        """Those since the last call."""
        await self._asking.echo("until here")
        found: Sent = Counter(), Counter()
        async with asyncio.timeout(SOON):
            while b'"until here"' not in (line := await self._reader.readline()):
                if b'"HELLO"' in line or b'"SELECT"' in line:  # a pool has opened one more connection
                    continue
                if told := re.match(r'\+[\d.]+ \[(\d) [^l]\S*\] "(\w+)"(?: "([^"]*)")?', line.decode()):
                    found[int(told[1])][named(told[2].upper(), told[3] or "")] += 1
        return found


def named(command: str, first: str) -> str:
    """A command by what it is for."""
    match command:
        case "EVALSHA":
            return SCRIPTS[first]
        case "MGET" if first.startswith("stop:"):
            return "look"
        case "SET" if first.startswith("replica:"):
            return "pulse"
    return command


def measure(quick: bool) -> list[Figure]:
    """Of a quiet chat, of a run, of a run with a stop."""
    with tempfile.TemporaryDirectory() as directory:
        into = Path(directory)
        with running_stack(into, 1) as stack:
            url = stack.redis_url.removesuffix("/0") + f"/{POLLING}"
            with serving(polling.make, 1, url, into / "polling") as polls:
                return asyncio.run(counted(stack.valkey.port, stack.replicas[0], polls[0], quick))


async def counted(port: int, ours: Replica, polls: Replica, quick: bool) -> list[Figure]:
    """The figures."""
    both = (ours, polls)
    chats, seconds, length = (20, 0.5, 1.0) if quick else (50, 1.5, 3.0)
    async with Monitor(port) as monitor:
        for stopped in (True, False):  # the first of each pays for connections
            await runs(monitor, both, 0.1, stopped=stopped)
        figures = [
            quiet_figure(await quiet(monitor, both, 1, seconds), await quiet(monitor, both, chats, seconds), chats)
        ]
        for stopped, what, after, most in ((False, "a run of", length, 8), (True, "a run stopped after", 1.0, 12)):
            found = await runs(monitor, both, after, stopped=stopped)
            sent, beside = of_a_run(found[OURS]), {"polling": found[POLLING].total()}
            more = {"haltline": dict(sent), "polling": dict(found[POLLING])}
            name, met = f"Redis commands of {what} {after:.0f} s", sent.total() <= most
            figures.append(Figure(name, "", sent.total(), beside, f"<= {most}", met, gated=True, more=more))
    return figures


def of_a_run(found: Counter[str]) -> Counter[str]:
    """Without what goes on for all runs: the look, and every pulse but the one with which a run begins."""
    return Counter({name: 1 if name == "pulse" else count for name, count in found.items() if name != "look"})


async def runs(monitor: Monitor, replicas: Sequence[Replica], seconds: float, *, stopped: bool) -> Sent:
    """What is sent for one run on each replica, at once, which ends by itself or by a stop."""
    talk = TALKING if stopped else script(chunks=["tick "], repeat=int(seconds * 20), pace_ms=50)
    await monitor.since()
    async with AsyncExitStack() as stack:
        live = [await stack.enter_async_context(LiveChats([replica], 1, talk)) for replica in replicas]
        if stopped:
            await asyncio.sleep(seconds)
            await asyncio.gather(*(chats.stop(chats.chats[0]) for chats in live))
        await asyncio.wait({chats.chats[0].ended for chats in live}, timeout=seconds + SOON)
        return await monitor.since()


class Quiet(NamedTuple):
    """What was sent in so many seconds in which no chat said anything."""

    sent: Sent
    seconds: float


async def quiet(monitor: Monitor, replicas: Sequence[Replica], chats: int, seconds: float) -> Quiet:
    """With so many chats on each replica."""
    async with AsyncExitStack() as stack:
        for replica in replicas:
            await stack.enter_async_context(LiveChats([replica], chats, SILENT))
        await asyncio.sleep(0.2)  # the last ones have begun
        await monitor.since()
        began = time.monotonic()
        await asyncio.sleep(seconds)
        return Quiet(await monitor.since(), time.monotonic() - began)


def quiet_figure(one: Quiet, many: Quiet, chats: int) -> Figure:
    """What a chat adds to what a replica sends for all."""
    looks, pulses = (1 + int(many.seconds / every) for every in (LOOK_EVERY, PULSE_EVERY))
    beyond = many.sent[OURS] - Counter(look=looks, pulse=pulses)
    rates = [sent.total() / many.seconds / chats for sent in (beyond, many.sent[POLLING])]
    more = {f"chats: {n}": {"seconds": q.seconds, **q.sent[OURS]} for n, q in ((1, one), (chats, many))}
    name = f"Redis commands a second of a quiet chat, {chats} on a replica"
    return Figure(name, "", rates[OURS], {"polling": rates[POLLING]}, "0", not beyond, gated=True, more=more)
