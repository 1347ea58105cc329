"""Memory of a replica: a real process behind HTTP, with the scripted model.

- Growth, in % of what is resident (RSS), from the 1,000th run on. Half of the runs are stopped in mid-run, through
  another replica, and half are of chats that had runs before, 20 at the most; so all stretches are alike, and what each
  run leaves behind shows.
- A live chat, in KB (1,000 bytes): what the process has to itself (USS) with 0, 100 and 200 new chats live, two words
  a second each, as the slope of a line, after those runs. Beside it the same chats on FastAPI and Strands alone, which
  can stop none of them and save nothing.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from statistics import linear_regression, median

from fastapi import FastAPI

from haltline.scripted import ScriptedModel
from tests.bench import bare_strands
from tests.bench.figures import Figure
from tests.contract.client import script
from tests.stack import ROOT, Replica, clean_environment, free_port, running_stack

BAR = 300  # KB a live chat
NOISE = 2  # %: what the same replica differs by from one stretch of runs to the next, and back
AT_ONCE, EVERY = 8, 100  # runs at a time; between two looks
TIME_LIMIT = 38  # seconds for the runs of `_growth`
SLOW = script(chunks=["word "], repeat=3000, pace_ms=500)
SHORT = script(chunks=["one ", "two ", "three"], pace_ms=0)
LONG = script(chunks=["tick "], repeat=3000, pace_ms=20)


def measure(quick: bool) -> list[Figure]:
    first, last, levels = (100, 300, (0, 50)) if quick else (1000, 5000, (0, 100, 200))
    with (
        tempfile.TemporaryDirectory() as directory,
        _bare_replica(Path(directory)) as bare,
        running_stack(Path(directory), replicas=2, LOG_LEVEL="WARNING") as stack,
    ):
        bare.wait_until_live()
        replica, other = stack.replicas
        # Growth first: what many live chats have taken and given back would hide it.
        return [
            asyncio.run(_growth(replica, other, first, last)),
            asyncio.run(_live(replica, bare, levels)),
        ]


# ---- growth
async def _growth(replica: Replica, other: Replica, first: int, last: int) -> Figure:
    runs = _Runs(replica, other)
    await runs.do(first)
    seen = {runs.done: _memory(replica, "Rss")}
    until = time.monotonic() + TIME_LIMIT * (last - first) / last
    while runs.done < last and time.monotonic() < until:
        await runs.do(EVERY)
        seen[runs.done] = _memory(replica, "Rss")
    before, after = seen[first], median(list(seen.values())[-3:])
    growth = (after / before - 1) * 100
    line = linear_regression(list(seen), list(seen.values()))
    return Figure(
        f"growth of a replica from {first:,} runs to {runs.done:,}",
        "%",
        growth,
        bar=f"none (noise: {NOISE} %)",
        met=growth <= NOISE,
        more={"rss": seen, "bytes_a_run": line.slope},
    )


class _Runs:
    """Runs one after the other, AT_ONCE at a time; half of them are stopped through `stopper`."""

    def __init__(self, replica: Replica, stopper: Replica | None) -> None:
        self._replica, self._stopper = replica, stopper
        self.done = 0

    async def do(self, count: int) -> None:
        numbers = iter(range(self.done, self.done + count))
        await asyncio.gather(*(self._work(worker, numbers) for worker in range(AT_ONCE)))
        self.done += count

    async def _work(self, worker: int, numbers: Iterator[int]) -> None:
        for n in numbers:
            # A chat of many runs belongs to one worker, for it takes one run at a time.
            chat = f"new-{n}" if n // 2 % 2 else f"old-{worker}-{n // (40 * AT_ONCE)}"
            await self._run(chat, self._stopper if n % 2 else None)

    async def _run(self, chat: str, stopper: Replica | None) -> None:
        async with _sent(self._replica, f"/api/v1/chat/{chat}", LONG if stopper else SHORT) as reader:
            if stopper:
                await reader.readuntil(b"data: ")
                async with _sent(stopper, f"/api/v1/stop/{chat}", "") as answer:
                    await answer.read()
            said = await reader.read()
        assert (b"[STOPPED]" if stopper else b"[DONE]") in said, said


# ---- a live chat
async def _live(replica: Replica, bare: Replica, levels: tuple[int, ...]) -> Figure:
    await _Runs(bare, None).do(50)
    held: dict[str, list[int]] = {"ours": [], "bare": []}
    async with AsyncExitStack() as chats:
        for before, level in zip((0, *levels), levels, strict=False):
            for n in range(before, level):
                for each in (replica, bare):
                    reader = await chats.enter_async_context(_sent(each, f"/api/v1/chat/live-{n}", SLOW))
                    await reader.readuntil(b"data: ")
            await asyncio.sleep(0.5)
            for name, size in zip(held, await _settled(replica, bare), strict=True):
                held[name].append(size)
    slopes = {name: linear_regression(levels, sizes).slope / 1000 for name, sizes in held.items()}
    return Figure(
        "memory of a live chat",
        "KB",
        slopes["ours"],
        {"FastAPI and Strands alone": slopes["bare"]},
        bar=f"<= {BAR} KB",
        met=slopes["ours"] <= BAR,
        more={"live": levels, "uss": held},
    )


async def _settled(*replicas: Replica) -> list[int]:
    """Bytes of each, in the middle of what the garbage collector makes of them."""
    seen = []
    for _ in range(5):
        seen.append([_memory(each, "Private_Clean", "Private_Dirty") for each in replicas])
        await asyncio.sleep(0.1)
    return [median(sizes) for sizes in zip(*seen, strict=True)]


def _memory(replica: Replica, *names: str) -> int:
    """The sum of these lines of Linux' smaps, in bytes."""
    lines = Path(f"/proc/{replica.process.pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) * 1024 for line in lines if line.split(":")[0] in names)


@asynccontextmanager
async def _sent(replica: Replica, path: str, message: str) -> AsyncIterator[asyncio.StreamReader]:
    """A POST on a connection of its own. What comes back is read as it is: a client must cost little here."""
    reader, writer = await asyncio.open_connection("127.0.0.1", replica.port)
    body = json.dumps({"message": message}).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: application/json\r\n"
    try:
        writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        yield reader
    finally:
        writer.close()


# ---- what it is beside
def bare_app() -> FastAPI:
    """The least that streams the scripted model's answer."""
    return bare_strands.make_app(ScriptedModel())


@contextmanager
def _bare_replica(directory: Path) -> Iterator[Replica]:
    port, log = free_port(), directory / "bare.log"
    command = [sys.executable, "-m", "uvicorn", "--factory", f"{__name__}:bare_app", "--port", str(port)]
    with log.open("wb") as out:
        process = subprocess.Popen(
            [*command, "--no-access-log"], env=clean_environment(), cwd=ROOT, stdout=out, stderr=out
        )
    replica = Replica("bare", port, log, process)
    try:
        yield replica
    finally:
        replica.end()
