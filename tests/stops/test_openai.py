"""The local model, as any OpenAI-compatible one: a stop closes the connection of its call."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from haltline.events import Stopped
from haltline.settings import Settings
from tests.stops.bench import SOON, benched_with, new_name
from tests.stops.figures import figure, missed, spread

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n"


class Upstream:
    """Streams chat completions, silent at first where the message says so, and notes when its client left."""

    def __init__(self) -> None:
        self.url = ""
        self.asked, self.left_at = asyncio.Event(), asyncio.get_running_loop().create_future()
        self.sent_after = 0

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[Upstream]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
        async with server:
            yield self

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        length = next(int(line.partition(":")[2]) for line in head.split("\r\n") if line.startswith("content-length:"))
        body = json.loads(await reader.readexactly(length))
        self.asked.set()
        asked = str(body["messages"][-1]["content"])
        talking = asyncio.create_task(self._talk(writer, asked))
        with contextlib.suppress(ConnectionError):
            await reader.read()  # until the client leaves
        self.left_at.set_result(time.monotonic())
        talking.cancel()
        writer.close()

    async def _talk(self, writer: asyncio.StreamWriter, asked: str) -> None:
        if "no headers" in asked:
            return
        writer.write(HEAD)
        if "no token" in asked:
            return
        while True:
            chunk = {"choices": [{"index": 0, "delta": {"content": "on "}, "finish_reason": None}]}
            writer.write(f"data: {json.dumps({'id': 'x', 'object': 'chat.completion.chunk', **chunk})}\n\n".encode())
            self.sent_after += self.left_at.done()
            await asyncio.sleep(0.005)


async def bare_hop() -> float:
    """What the machine takes for it: a connection is closed, the other end of it sees that. In ms."""
    left: asyncio.Future[float] = asyncio.get_running_loop().create_future()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        left.set_result(time.monotonic())
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        _, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        await asyncio.sleep(0.01)
        at = time.monotonic()
        writer.close()
        return (await left - at) * 1000


@pytest.mark.parametrize("asked", ["no headers", "no token", "talk"])
async def test_a_stop_closes_the_call_of_an_openai_compatible_model(
    asked: str, valkey_url: str, tmp_path: Path, rounds: int
) -> None:
    found: list[float] = []
    bare: list[float] = []
    for _ in range(rounds):
        async with Upstream().serving() as upstream:
            settings = Settings(model_provider="local", local_model_url=upstream.url, session_dir=tmp_path)
            async with benched_with(settings, valkey_url) as bench, asyncio.timeout(SOON):
                talk = await bench.start(new_name("openai"), asked)
                await (talk.heard(3) if asked == "talk" else upstream.asked.wait())
                halted = await talk.halt()
                left_at = await upstream.left_at
            assert halted.events[-1] == Stopped()
            assert halted.receipt.upstream_closed_ms is not None
            assert upstream.sent_after == 0
            found.append((left_at - halted.stopped_at) * 1000)
            bare.append(await bare_hop())
    figure(f"OpenAI-compatible: {asked}: to the closed upstream", spread(found))
    if rounds > 1:
        assert missed(found, {0.99: 5, 1: 20}, bare) == []
