"""A process that uses chats at random, in every way there is, and looks whether each got what it was promised.

    python -m tests.faults.load SECONDS SEED REDIS_URL REPLICA_URL...

It prints one JSON object: how often each thing was done, and what was not as it should be.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, cast

import httpx2 as httpx
import redis.asyncio as redis

from tests.contract.client import (
    DONE,
    STOPPED,
    Turn,
    chat_url,
    http_client,
    is_idle,
    messages_of,
    new_run,
    script,
    sending,
    stop,
    until,
)
from tests.stack import Replica

WORKERS = 6
REST = 0.15  # seconds between two turns of a worker, on average: a third of a core is enough
TURNS = 8  # of a chat, after which it is deleted: what a turn costs grows with what was said before it
SHORT = script(chunks=["one ", "two ", "three "], repeat=3, pace_ms=5)
ENDLESS = script(chunks=["tick "], repeat=3000, pace_ms=20)


class Worker:
    """One user, with chats of its own."""

    def __init__(self, n: int, load: Load) -> None:
        self._n, self._load, self._rnd = n, load, random.Random(f"{load.seed} {n}")
        self._turns: Counter[str] = Counter()
        self._http, self._bus = load.http, load.bus

    @property
    def _any(self) -> Replica:
        return self._rnd.choice(self._load.replicas)

    async def work(self, ends_at: float) -> None:
        """Until then."""
        ways: list[tuple[int, Callable[[str], Awaitable[None]]]] = [
            (4, self._finish),
            (2, self._stop),
            (3, self._stop_and_wait),
            (2, self._stop_by_name),
            (2, self._stop_many),
            (1, self._stop_by_hand),
            (3, self._stop_as_it_ends),
            (2, self._replace),
            (1, self._delete),
            (2, self._leave),
            (3, self._read),
            (1, self._stop_nobody),
        ]
        weights = [weight for weight, _ in ways]
        while time.monotonic() < ends_at:
            [(_, way)] = self._rnd.choices(ways, weights)
            chat = f"soak-{self._n}-{self._rnd.randrange(5)}"
            name = way.__name__.strip("_")
            try:
                async with asyncio.timeout(60):
                    await way(chat)
                    self._turns[chat] += 1
                    if self._turns[chat] >= TURNS:
                        del self._turns[chat]
                        await self._http.delete(chat_url(self._any, chat))
            except Exception as error:
                self._load.wrong.append(f"{time.time():.3f} {name} {chat}: {type(error).__name__}: {error}"[:600])
            self._load.done[name] += 1
            await asyncio.sleep(self._rnd.expovariate(1 / REST))

    async def _finish(self, chat: str) -> None:
        async with sending(self._http, self._any, chat, SHORT) as turn:
            await self._ended(chat, turn, DONE)

    async def _live(self, chat: str, end: Callable[[Turn], Awaitable[None]]) -> None:
        async with sending(self._http, self._any, chat, ENDLESS) as turn:
            assert turn.status == 200, (turn.status, await turn.response.aread())
            await turn.first_text()
            await end(turn)
            await self._ended(chat, turn, STOPPED)

    async def _stop(self, chat: str) -> None:
        async def end(_: Turn) -> None:
            assert (await stop(self._http, self._any, chat))["status"] == "accepted"

        await self._live(chat, end)

    async def _stop_and_wait(self, chat: str) -> None:
        async def end(turn: Turn) -> None:
            answer = await stop(self._http, self._any, chat, wait="8")
            self._load.verdicts[answer["status"]] += 1
            assert answer["status"] == "stopped", answer
            assert answer["run_id"] == turn.run_id

        await self._live(chat, end)

    async def _stop_by_name(self, chat: str) -> None:
        async def end(turn: Turn) -> None:
            answer = await stop(self._http, self._any, chat, run_id=turn.run_id, wait="8")
            self._load.verdicts[answer["status"]] += 1
            assert answer["status"] == "stopped", answer

        await self._live(chat, end)

    async def _stop_many(self, chat: str) -> None:
        async def end(_: Turn) -> None:
            ids = [f"soak-nobody-{self._n}", chat]
            url = f"{self._any.url}/api/v1/stop/bulk"
            answer = (await self._http.post(url, params={"wait": 8}, json={"chat_ids": ids})).json()
            assert [r["status"] for r in answer["results"]] == ["idle", "stopped"], answer

        await self._live(chat, end)

    async def _stop_by_hand(self, chat: str) -> None:
        async def end(_: Turn) -> None:
            await self._bus.set(f"stop:{chat}", str(int(time.time() * 1000)), ex=60)

        await self._live(chat, end)

    async def _stop_as_it_ends(self, chat: str) -> None:
        """Somewhere near the last word: whichever comes first, both must say so."""
        run_id = new_run()

        async def soon() -> dict[str, Any]:
            await asyncio.sleep(self._rnd.uniform(0, 0.12))
            return await stop(self._http, self._any, chat, run_id=run_id, wait="8")

        stopping = asyncio.create_task(soon())
        try:
            async with sending(self._http, self._any, chat, SHORT, run_id=run_id) as turn:
                await turn.finish()
                assert turn.status == 200, bytes(turn.raw)
            said, answer = turn.closing, await stopping
        finally:
            stopping.cancel()
        self._load.verdicts[answer["status"]] += 1
        # `idle`: the run had not begun. The stop that names it was kept, and met it at its beginning.
        expected = {"stopped": [[STOPPED]], "finished": [[DONE]], "idle": [[STOPPED]]}[answer["status"]]
        assert said in expected, (answer, said)
        await self._kept(chat, turn)

    async def _replace(self, chat: str) -> None:
        async def end(_: Turn) -> None:
            async with sending(self._http, self._any, chat, SHORT, params={"if_running": "stop"}) as turn:
                await self._ended(chat, turn, DONE)

        async with sending(self._http, self._any, chat, ENDLESS) as turn:
            await turn.first_text()
            await end(turn)
            await self._closed(turn, STOPPED)

    async def _delete(self, chat: str) -> None:
        async with sending(self._http, self._any, chat, ENDLESS) as turn:
            await turn.first_text()
            assert (await self._http.delete(chat_url(self._any, chat))).status_code == 200
            await self._closed(turn, STOPPED)
        assert await messages_of(self._http, self._any, chat) == []
        self._turns[chat] = 0

    async def _leave(self, chat: str) -> None:
        async with sending(self._http, self._any, chat, ENDLESS) as turn:
            await turn.first_text()
        await until(lambda: is_idle(self._http, self._any, chat), 10)

    async def _read(self, chat: str) -> None:
        await messages_of(self._http, self._any, chat)
        for path in ("/api/v1/chats?limit=20", "/api/v1/chats?status=running", "/health", "/metrics", "/"):
            assert (await self._http.get(self._any.url + path)).status_code == 200, path

    async def _stop_nobody(self, chat: str) -> None:
        answer = await stop(self._http, self._any, f"soak-nobody-{self._n}", wait="1")
        assert answer["status"] == "idle", answer

    # ---- what a stream must be
    async def _ended(self, chat: str, turn: Turn, closing: tuple[str, str]) -> None:
        await self._closed(turn, closing)
        await self._kept(chat, turn)

    async def _closed(self, turn: Turn, closing: tuple[str, str]) -> None:
        await turn.finish(30)
        self._load.streams += 1
        assert turn.status == 200, bytes(turn.raw)
        assert turn.closing == [closing], (turn.run_id, bytes(turn.raw[-300:]))

    async def _kept(self, chat: str, turn: Turn) -> None:
        last = (await messages_of(self._http, self._any, chat))[-1]
        stopped = {"stopped": True} if turn.closing == [STOPPED] else {}
        assert last == {"role": "assistant", "text": turn.text, **stopped}, (turn.run_id, last, turn.text)


class Load:
    """All workers, and what they found."""

    def __init__(self, seed: int, http: httpx.AsyncClient, bus: redis.Redis, urls: list[str]) -> None:
        self.seed, self.http, self.bus = seed, http, bus
        nobody = cast("Any", None)  # their processes are another's
        self.replicas = [Replica(url, int(url.rpartition(":")[2]), Path(), nobody) for url in urls]
        self.done: Counter[str] = Counter()
        self.verdicts: Counter[str] = Counter()
        self.streams = 0
        self.wrong: list[str] = []


async def main(seconds: float, seed: int, redis_url: str, *urls: str) -> dict[str, Any]:
    bus = redis.from_url(redis_url, decode_responses=True)
    async with http_client() as http, bus:
        load = Load(seed, http, bus, list(urls))
        ends_at = time.monotonic() + seconds
        await asyncio.gather(*(Worker(n, load).work(ends_at) for n in range(WORKERS)))
    return {"done": load.done, "verdicts": load.verdicts, "streams": load.streams, "wrong": load.wrong}


if __name__ == "__main__":
    print(json.dumps(asyncio.run(main(float(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:]))))
