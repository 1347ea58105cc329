"""A model provider that streams at an even pace, and the clients that read what became of it, in one event loop.

Each chunk of text is the time it was sent, in microseconds of time.monotonic(), which all processes of a machine share;
so a client can tell how late it comes, however frames were cut. Both sides do as little as they can, for they share the
machine with what is measured.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import re
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from local.fake_bedrock import frames
from tests.bench.live_chats import post

PACE = 0.05  # seconds between two chunks of a chat: 20 tokens a second
STAMP = re.compile(rb"\d{16}")
_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: application/vnd.amazon.eventstream\r\ntransfer-encoding: chunked\r\n\r\n"


def _now() -> int:
    return time.monotonic_ns() // 1000


def _chunk(kind: str, payload: dict[str, Any]) -> bytes:
    """An event of ConverseStream as a chunk of HTTP."""
    message = frames.event(kind, payload)
    return b"%x\r\n%b\r\n" % (len(message), message)


class Provider(asyncio.Protocol):
    """Bedrock's ConverseStream for whoever asks: chunks until the client leaves. `sent` counts those of all."""

    sent = 0

    def connection_made(self, transport: Any) -> None:
        """A client is here."""
        self._transport, self._read, self._timer = transport, b"", None

    def data_received(self, data: bytes) -> None:
        """Answer as soon as the whole request is there."""
        self._read += data
        head, _, body = self._read.partition(b"\r\n\r\n")
        length = re.search(rb"content-length: *(\d+)", head, re.IGNORECASE)
        if length and len(body) >= int(length[1]):
            self._read = b""
            self._transport.write(_HEAD + _chunk("messageStart", {"role": "assistant"}))
            self._loop = asyncio.get_running_loop()
            self._due = self._loop.time()
            self._say()

    def _say(self) -> None:
        text = f"{_now():016d} "
        self._transport.write(_chunk("contentBlockDelta", {"contentBlockIndex": 0, "delta": {"text": text}}))
        Provider.sent += 1
        self._due += PACE
        self._timer = self._loop.call_at(self._due, self._say)

    def connection_lost(self, _: Exception | None) -> None:
        """The client has left."""
        if self._timer:
            self._timer.cancel()


class Client(asyncio.Protocol):
    """One chat's stream. `late` has how late each chunk of it came, in ms."""

    def __init__(self, request: bytes, late: list[float]) -> None:
        self._request, self._late, self._rest = request, late, b""
        self.begun = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: Any) -> None:
        """Send the message."""
        self.transport = transport
        transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        """Note the time of every chunk in it."""
        now, data = _now(), self._rest + data
        end = 0
        for stamp in STAMP.finditer(data):
            self._late.append((now - int(stamp[0])) / 1000)
            end = stamp.end()
        self._rest = data[max(end, len(data) - 15) :]
        if not self.begun.done():
            if end:
                self.begun.set_result(None)
            elif data.startswith((b"HTTP/1.1 4", b"HTTP/1.1 5")):
                self.begun.set_exception(RuntimeError(data.decode()))

    def connection_lost(self, _: Exception | None) -> None:
        """The stream has ended."""
        if not self.begun.done():
            self.begun.set_exception(RuntimeError("the stream ended before its first text"))


class Load:
    """Chats at `port`, more and more of them."""

    def __init__(self, port: int) -> None:
        self._port, self.late, self.clients = port, [], []  # type: ignore[var-annotated]
        self._names = itertools.count()

    async def grow(self, chats: int) -> None:
        """Until there are so many chats, a few at a time. Raises: TimeoutError."""
        while len(self.clients) < chats:
            some = [await self._begin() for _ in range(min(10, chats - len(self.clients)))]
            self.clients += some
            async with asyncio.timeout(5):
                await asyncio.gather(*(client.begun for client in some))

    async def _begin(self) -> Client:
        request = post(f"chat/load-{next(self._names)}-{_now()}", {"message": "Tell me."})
        _, client = await asyncio.get_running_loop().create_connection(
            lambda: Client(request, self.late), "127.0.0.1", self._port
        )
        return client

    async def heard(self, seconds: float) -> tuple[list[float], int]:
        """How late the chunks of the next seconds come, in ms, and how many were sent meanwhile."""
        self.late.clear()
        sent = Provider.sent
        await asyncio.sleep(seconds)
        return list(self.late), Provider.sent - sent

    def leave(self) -> None:
        """All hang up."""
        for client in self.clients:
            client.transport.abort()
        self.clients.clear()


@asynccontextmanager
async def provider(port: int = 0) -> AsyncIterator[int]:
    """The model provider, listening on the port that this yields."""
    server = await asyncio.get_running_loop().create_server(Provider, "127.0.0.1", port, backlog=2048)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(1):
                await server.wait_closed()
