"""The client of stops over HTTP: many live chats, each with its stream read, at the least CPU a stream."""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import time
from collections.abc import Sequence
from typing import Any, Protocol

from tests.contract.client import script

SOON = 20.0  # seconds: a deadline for what must happen
AT_ONCE = 12  # chats that begin together
STOPPED = b"event: stopped\ndata: [STOPPED]\n\n"
TALKING = script(chunks=["tick "], repeat=12_000, pace_ms=50)  # ten minutes, 20 tokens a second

_numbers = itertools.count()


class Replica(Protocol):
    """Where chats live."""

    name: str
    port: int


class Chat(asyncio.Protocol):
    """One chat and the connection that reads its stream. Times are of `time.monotonic`."""

    def __init__(self, replica: Replica, message: str) -> None:
        self.replica, self.chat_id = replica, f"{replica.name}-{next(_numbers)}-{time.monotonic_ns()}"
        loop = asyncio.get_running_loop()
        self.talks, self.ended = loop.create_future(), loop.create_future()
        self.stopped: asyncio.Future[float] = loop.create_future()
        self._message, self._tail = message, b""

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        transport.write(post(f"chat/{self.chat_id}", {"message": self._message}))

    def data_received(self, data: bytes) -> None:
        at = time.monotonic()
        self._tail = self._tail[-len(STOPPED) :] + data  # a frame may come in pieces
        if STOPPED in self._tail and not self.stopped.done():
            self.stopped.set_result(at)
        elif not self.talks.done() and b"\ndata: " in self._tail:
            self.talks.set_result(None)

    def connection_lost(self, _: Exception | None) -> None:
        self.ended.set_result(None)

    async def begin(self) -> Chat:
        """Connect, send, wait for the first text. Raises: TimeoutError."""
        await asyncio.get_running_loop().create_connection(lambda: self, "127.0.0.1", self.replica.port)
        await asyncio.wait({self.talks, self.ended}, timeout=SOON, return_when=asyncio.FIRST_COMPLETED)
        assert self.talks.done(), self._tail
        return self


class LiveChats:
    """`count` live chats spread over `replicas`; whoever is stopped is replaced."""

    def __init__(self, replicas: Sequence[Replica], count: int, message: str = TALKING) -> None:
        self._replicas, self._count, self._message = replicas, count, message
        self.chats: list[Chat] = []

    async def __aenter__(self) -> LiveChats:
        places = asyncio.Semaphore(AT_ONCE)

        async def begin(n: int) -> Chat:
            async with places:
                return await Chat(self._replicas[n % len(self._replicas)], self._message).begin()

        self.chats = list(await asyncio.gather(*map(begin, range(self._count))))
        self._callers = {r.port: await asyncio.open_connection("127.0.0.1", r.port) for r in self._replicas}
        return self

    async def __aexit__(self, *_: object) -> None:
        """Leave, and wait until the replicas have ended what was left behind: it must weigh on no other measurement."""
        for chat in self.chats:
            chat.transport.abort()
        async with asyncio.timeout(SOON):
            for replica in self._replicas:
                while (await self.call(replica, "GET", "/health"))["live_runs"]:
                    await asyncio.sleep(0.02)
        for _, writer in self._callers.values():
            writer.close()

    async def call(self, replica: Replica, method: str, path: str) -> Any:
        """Ask on a connection that is open. Returns the answer's JSON."""
        reader, writer = self._callers[replica.port]
        writer.write(f"{method} {path} HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n".encode())
        async with asyncio.timeout(SOON):
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            body = await reader.readexactly(int(head.partition(b"content-length: ")[2].split(b"\r\n")[0]))
        assert head.startswith(b"http/1.1 200"), head + body
        return json.loads(body)

    async def stop(self, chat: Chat) -> float:
        """Stop a chat through another replica, where there is one. Returns ms from the call to the closing frame."""
        through = random.choice([r for r in self._replicas if r is not chat.replica] or [chat.replica])
        at = time.monotonic()
        await self.call(through, "POST", f"/api/v1/stop/{chat.chat_id}")
        async with asyncio.timeout(SOON):
            return (await chat.stopped - at) * 1000

    async def stops(self, samples: int) -> list[float]:
        """The times of so many stops, one after the other, each of any of the chats."""
        found = []
        # Spread evenly, or stops would fall into step with the text, and those of a single chat with its polling.
        pauses = [(n + 0.5) / samples * max(0.02, 0.1 / self._count) for n in range(samples)]
        random.shuffle(pauses)
        for pause in pauses:
            await asyncio.sleep(pause)
            n = random.randrange(self._count)
            found.append(await self.stop(self.chats[n]))
            self.chats[n] = await Chat(self.chats[n].replica, self._message).begin()
        return found


def post(path: str, body: dict[str, Any]) -> bytes:
    """A request."""
    data = json.dumps(body).encode()
    head = f"POST /api/v1/{path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {len(data)}"
    return head.encode() + b"\r\n\r\n" + data
