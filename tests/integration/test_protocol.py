"""What one connection may take of a replica: how large a head is, how long it lasts, and what is said of either."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
import uvicorn

from haltline import protocol
from haltline.protocol import MAX_HEAD_BYTES, protocol_of

SOON = 10.0  # seconds: a deadline for what must happen, never a measure
BEGUN = b"GET / HTTP/1.1\r\nHost: x\r\n"


class App:
    """Answers 200 with the request's path, at once or, below /later, when it is told to."""

    def __init__(self) -> None:
        self.go_on = asyncio.Event()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"x-replica", b"one")]})
        if scope["path"].startswith("/later"):
            await send({"type": "http.response.body", "body": b"begun ", "more_body": True})
            await self.go_on.wait()
        await send({"type": "http.response.body", "body": scope["path"].encode()})


@pytest.fixture
async def app() -> App:
    return App()


@pytest.fixture
async def port(app: App) -> AsyncIterator[int]:
    config = uvicorn.Config(app, http=protocol_of("one"), lifespan="off", log_config=None, port=0)
    server = uvicorn.Server(config)
    server.install_signal_handlers = lambda: None  # type: ignore[attr-defined]
    serving = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.01)
    yield server.servers[0].sockets[0].getsockname()[1]
    app.go_on.set()
    server.should_exit = server.force_exit = True
    await asyncio.wait_for(serving, SOON)


class Client:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    def send(self, data: bytes) -> None:
        self._writer.write(data)

    async def send_for_ever(self, data: bytes, pause: float = 0) -> None:
        """Raises: ConnectionError once the server has closed."""
        async with asyncio.timeout(SOON):
            while True:
                self.send(data)
                await self._writer.drain()
                await asyncio.sleep(pause)

    async def until(self, text: bytes) -> bytes:
        return await asyncio.wait_for(self._reader.readuntil(text), SOON)

    async def rest(self) -> bytes:
        """All that comes until the server closes."""
        said = b""
        with contextlib.suppress(ConnectionError):
            while data := await asyncio.wait_for(self._reader.read(65536), SOON):
                said += data
        return said


@contextlib.asynccontextmanager
async def client(port: int) -> AsyncIterator[Client]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    yield Client(reader, writer)
    writer.close()


async def test_what_cannot_be_read_is_answered_as_all_else_is(port: int) -> None:
    async with client(port) as one:
        one.send(b"BREW / HTTP/1.1\r\nHost: x\r\n\r\n")
        head, _, body = (await one.rest()).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 ")
    assert b"\r\nx-replica: one\r\n" in head
    assert json.loads(body) == {"detail": "The request cannot be read."}


@pytest.mark.parametrize("piece", [b"X-A: %s" % (b"a" * 20_000), b"X-A: a\r\n" * 2_500])
async def test_a_head_without_an_end_is_refused(port: int, piece: bytes) -> None:
    async with client(port) as one:
        one.send(BEGUN)
        for _ in range(MAX_HEAD_BYTES // len(piece) + 2):
            one.send(piece)
            await asyncio.sleep(0)
        said = await one.rest()
    assert said.startswith(b"HTTP/1.1 431 "), said
    assert b'{"detail":"The head of the request is larger than 128 KiB."}' in said


async def test_empty_lines_are_no_sign_of_a_request(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "HEAD_SECONDS", 0.1)
    async with client(port) as one:
        one.send(BEGUN + b"\r\n")
        await one.until(b"0\r\n\r\n")
        with pytest.raises(ConnectionError):
            await one.send_for_ever(b"\r\n", pause=0.02)


async def test_a_large_head_is_served(port: int) -> None:
    async with client(port) as one:
        one.send(BEGUN + b"X-A: " + b"a" * (MAX_HEAD_BYTES // 2) + b"\r\nConnection: close\r\n\r\n")
        assert (await one.rest()).startswith(b"HTTP/1.1 200 ")


async def test_what_trails_a_body_is_bounded_too(port: int) -> None:
    async with client(port) as one:
        one.send(b"POST /later HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        await one.until(b"begun ")
        one.send(b"1\r\na\r\n0\r\n")
        for n in range(400):
            one.send(b"X-%d: %s\r\n" % (n, b"a" * 1000))
        assert await one.rest() in (b"", b"\r\n"), "nothing may stand in an answer that has begun"


async def test_an_answer_under_way_is_not_mixed_with_that_to_what_follows_it(app: App, port: int) -> None:
    async with client(port) as one:
        one.send(b"GET /later HTTP/1.1\r\nHost: x\r\n\r\n")
        await one.until(b"begun ")
        one.send(b"BREW\r\n\r\n")
        for _ in range(50):  # turns of the event loop that both sides share: it is read by then
            await asyncio.sleep(0)
        app.go_on.set()
        assert b"HTTP/1.1" not in await one.rest()


@pytest.mark.parametrize("said", [b"", b"GE", BEGUN, BEGUN + b"X-A"])
async def test_a_client_that_does_not_say_what_it_wants_is_left(
    port: int, monkeypatch: pytest.MonkeyPatch, said: bytes
) -> None:
    monkeypatch.setattr(protocol, "HEAD_SECONDS", 0.1)
    async with client(port) as one:
        one.send(said)
        assert await one.rest() == b""


async def test_a_long_answer_is_not_cut_by_the_head_that_follows(
    app: App, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(protocol, "HEAD_SECONDS", 0.05)
    async with client(port) as one:
        one.send(b"GET /later HTTP/1.1\r\nHost: x\r\n\r\nGET / HT")
        await one.until(b"begun ")
        await asyncio.sleep(0.2)  # several times as long as the head has
        app.go_on.set()
        await one.until(b"/later")
        await one.rest()


async def test_a_body_that_nobody_waits_for_is_not_read_for_ever(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "HEAD_SECONDS", 0.2)
    async with client(port) as one:
        one.send(b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        await one.until(b"0\r\n\r\n")
        chunk = b"8000\r\n" + b"a" * 0x8000 + b"\r\n"
        with pytest.raises(ConnectionError):
            await one.send_for_ever(chunk)


async def test_nor_waited_for_for_ever(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "HEAD_SECONDS", 0.1)
    async with client(port) as one:
        one.send(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n")
        await one.until(b"0\r\n\r\n")
        with pytest.raises(ConnectionError):
            await one.send_for_ever(b"a", pause=0.02)  # each byte would put off the end of an idle connection
