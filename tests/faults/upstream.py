"""A model provider that breaks: a server on a raw socket, which says byte for byte what the fake Bedrock cannot."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import struct
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from local.fake_bedrock.frames import CONTENT_TYPE, event
from local.fake_bedrock.history import invalid_history

FINE = "fine again"


CLOSES = "Connection: close"  # else the next call might take a connection that is just being closed


def head(status: str = "200 OK", content_type: str = CONTENT_TYPE) -> bytes:
    """Those of an answer that is sent in chunks."""
    lines = [f"HTTP/1.1 {status}", f"Content-Type: {content_type}", "Transfer-Encoding: chunked", CLOSES, "", ""]
    return "\r\n".join(lines).encode()


def whole(status: str, body: bytes, *headers: str) -> bytes:
    """An answer that is sent at once."""
    lines = [
        f"HTTP/1.1 {status}",
        "Content-Type: application/json",
        f"Content-Length: {len(body)}",
        CLOSES,
        *headers,
        "",
        "",
    ]
    return "\r\n".join(lines).encode() + body


def part(data: bytes) -> bytes:
    """One chunk of a body."""
    return b"%x\r\n%s\r\n" % (len(data), data)


LAST = b"0\r\n\r\n"


def delta(said: dict[str, Any], block: int = 0) -> bytes:
    return event("contentBlockDelta", {"contentBlockIndex": block, "delta": said})


def text(words: str) -> bytes:
    return delta({"text": words})


START = event("messageStart", {"role": "assistant"})


def end(reason: str = "end_turn", tokens: int | None = 1) -> bytes:
    """`tokens`: what the provider says it has made, None where it does not say."""
    said = event("contentBlockStop", {"contentBlockIndex": 0}) + event("messageStop", {"stopReason": reason})
    if tokens is None:
        return said
    usage = {"inputTokens": 1, "outputTokens": tokens, "totalTokens": tokens + 1}
    return said + event("metadata", {"usage": usage, "metrics": {"latencyMs": 1}})


def tool_call(name: str, input_: dict[str, Any], id_: str) -> bytes:
    use = {"toolUseId": id_, "name": name}
    started = event("contentBlockStart", {"contentBlockIndex": 0, "start": {"toolUse": use}})
    return started + delta({"toolUse": {"input": json.dumps(input_)}})


class Exchange:
    """One request, and what is written in answer to it."""

    def __init__(self, writer: asyncio.StreamWriter, body: dict[str, Any]) -> None:
        self._writer, self.body = writer, body
        self.asked_at = time.monotonic()
        self.left_at: asyncio.Future[float] = asyncio.get_running_loop().create_future()
        self.sent = 0  # bytes
        self.over = False  # the answer was not cut short by its client

    def write(self, data: bytes) -> None:
        self._writer.write(data)
        self.sent += len(data)

    async def say(self, data: bytes) -> None:
        """Write, and wait until the client takes more."""
        self.write(data)
        await self._writer.drain()

    async def reset(self) -> None:
        """Cut the connection by a TCP reset."""
        await asyncio.sleep(0)
        sock = self._writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._writer.transport.abort()

    async def close(self) -> None:
        """Close the connection as one that has said all."""
        self._writer.close()

    async def silence(self) -> None:
        """Until the client leaves."""
        await asyncio.Event().wait()


Answer = Callable[[Exchange], Awaitable[None]]


async def fine(exchange: Exchange) -> None:
    """A whole answer, to a history that Bedrock would accept."""
    if why := invalid_history(exchange.body):
        exchange.write(
            whole("400 Bad Request", json.dumps({"message": why}).encode(), "x-amzn-errortype: ValidationException")
        )
        return
    await exchange.say(head() + part(START + text(FINE) + end()) + LAST)


@dataclass
class Upstream:
    """Answers each request as `answers` say, one after the other, the last of them for ever."""

    url: str = ""
    answers: list[Answer] = field(default_factory=lambda: [fine])
    exchanges: list[Exchange] = field(default_factory=list)
    asked: asyncio.Queue[Exchange] = field(default_factory=asyncio.Queue)
    open: int = 0  # connections

    def now(self, *answers: Answer) -> None:
        """From here on."""
        self.answers = list(answers)
        self.exchanges.clear()
        self.asked = asyncio.Queue()

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[Upstream]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0, limit=1 << 20)
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        try:
            yield self
        finally:
            server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One request a connection."""
        self.open += 1
        try:
            if body := await _request(reader):
                answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
                exchange = Exchange(writer, body)
                self.exchanges.append(exchange)
                self.asked.put_nowait(exchange)
                await _answered(exchange, answer, reader)
        finally:
            self.open -= 1
            writer.close()


async def _request(reader: asyncio.StreamReader) -> dict[str, Any]:
    try:
        lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower().split("\r\n")
        length = next(int(line.partition(":")[2]) for line in lines if line.startswith("content-length:"))
        return dict(json.loads(await reader.readexactly(length)))
    except (asyncio.IncompleteReadError, ConnectionError):
        return {}


async def _answered(exchange: Exchange, answer: Answer, reader: asyncio.StreamReader) -> None:
    """Answer, until that is over or the client leaves."""
    answering = asyncio.ensure_future(answer(exchange))
    leaving = asyncio.ensure_future(reader.read(1))  # a client has nothing to say before the answer
    await asyncio.wait({answering, leaving}, return_when=asyncio.FIRST_COMPLETED)
    exchange.over = answering.done()
    if leaving.done():
        exchange.left_at.set_result(time.monotonic())
    for task in (answering, leaving):
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError, ConnectionError):
            await task


def bytewise(data: bytes) -> Iterator[bytes]:
    """Each byte of a body in a chunk of its own."""
    return (part(data[n : n + 1]) for n in range(len(data)))
