"""A replica that is told to end while requests are still coming in: none is cut off unread."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import signal
import socket
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import uvicorn
from redis.asyncio import Redis

from haltline import serve
from haltline.app import make_app
from haltline.bootstrap import make_resources
from haltline.serve import Server, listen
from haltline.settings import Settings

SOON = 10.0  # seconds: a deadline for what must happen, never a measure
BODY = b'{"message": "/script {\\"text\\": \\"said to the end\\", \\"pace_ms\\": 1}"}'


def request(chat_id: str, body: bytes = BODY) -> bytes:
    head = f"POST /api/v1/chat/{chat_id} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


def paced(ms: int) -> bytes:
    return BODY.replace(b'\\"pace_ms\\": 1', b'\\"pace_ms\\": %d' % ms)


class Listener(socket.socket):
    """A listening socket, and a table of descriptors that is full when a test says so."""

    full = False

    def accept(self) -> tuple[socket.socket, tuple[str, int]]:
        if self.full:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return super().accept()


class Ending(Server):
    """The replica's server, with a moment for the test between the order to end and the end."""

    at_the_end: Callable[[], None] = staticmethod(lambda: None)

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        await uvicorn.Server.serve(self, sockets)  # without the end of the process

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self.at_the_end()
        await super().shutdown(sockets)


@dataclass
class Replica:
    server: Ending
    listener: Listener
    address: tuple[str, int]
    serving: asyncio.Task[None]

    def connect(self) -> socket.socket:
        """The kernel lets a client in, whatever the event loop does; nothing is awaited."""
        client = socket.create_connection(self.address)
        client.setblocking(False)
        return client

    async def end(self) -> None:
        self.server.should_exit = True
        await asyncio.wait_for(asyncio.shield(self.serving), SOON)


@pytest.fixture
async def replica(valkey_url: str, tmp_path: Path) -> AsyncIterator[Replica]:
    settings = Settings(redis_url=valkey_url, model_provider="scripted", session_dir=tmp_path, shutdown_grace=5)
    resources = make_resources(settings)
    listener = Listener()
    listener.bind(("127.0.0.1", 0))
    listener.listen(100)
    listener.setblocking(False)
    ready, told = socket.socketpair()
    config = uvicorn.Config(make_app(resources), log_config=None, timeout_graceful_shutdown=5)
    server = Ending(config, resources, told.detach())
    serving = asyncio.create_task(server.serve([listener]))
    ready.setblocking(False)
    await asyncio.wait_for(asyncio.get_running_loop().sock_recv(ready, 8), SOON)
    made = Replica(server, listener, listener.getsockname(), serving)
    try:
        yield made
    finally:
        ready.close()
        await made.end()
        with contextlib.suppress(OSError):
            listener.close()


async def answer(client: socket.socket) -> str:
    """All that the server says until it closes."""
    said = b""
    with client:
        while data := await asyncio.wait_for(asyncio.get_running_loop().sock_recv(client, 65536), SOON):
            said += data
    return said.decode()


async def test_a_request_that_the_kernel_had_let_in_is_served(replica: Replica) -> None:
    clients: list[socket.socket] = []

    def let_in() -> None:
        for n in range(50):
            clients.append(replica.connect())
            clients[-1].send(request(f"let-in-{n}"))

    replica.server.at_the_end = let_in
    ending = asyncio.create_task(replica.end())
    while not clients:
        await asyncio.sleep(0)
    for client in clients:
        said = await answer(client)
        assert said.startswith("HTTP/1.1 200"), said
        assert "event: done" in said
    await ending


async def test_a_request_read_just_after_the_order_to_end_runs_to_its_end(replica: Replica) -> None:
    client = replica.connect()
    while not replica.server.server_state.connections:
        await asyncio.sleep(0)
    told = asyncio.Event()
    replica.server.at_the_end = told.set
    ending = asyncio.create_task(replica.end())
    await told.wait()
    client.send(request("just-after"))
    said = await answer(client)
    assert said.startswith("HTTP/1.1 200"), said
    assert "event: done" in said
    await ending


async def test_a_request_that_still_waits_for_the_bus_runs_to_its_end(replica: Replica, redis: Redis) -> None:
    client = replica.connect()
    while not replica.server.server_state.connections:
        await asyncio.sleep(0)
    await redis.client_pause(700)  # ms, longer than LAST_REQUESTS
    client.send(request("slow-bus"))
    said = (await asyncio.gather(answer(client), replica.end()))[0]
    assert said.startswith("HTTP/1.1 200"), said
    assert "event: done" in said


async def test_who_keeps_a_connection_is_told_to_close_it(replica: Replica) -> None:
    client = replica.connect()
    loop = asyncio.get_running_loop()
    live = b"GET /live HTTP/1.1\r\nHost: x\r\n\r\n"
    client.send(live)
    assert b"connection: close" not in await asyncio.wait_for(loop.sock_recv(client, 4096), SOON)
    told = asyncio.Event()
    replica.server.at_the_end = told.set
    ending = asyncio.create_task(replica.end())
    await told.wait()
    await asyncio.sleep(0)
    client.send(live)
    assert "connection: close" in await answer(client)
    await ending


async def test_streams_have_their_closing_frames_where_no_descriptor_is_left(replica: Replica) -> None:
    client = replica.connect()
    client.send(request("no-descriptor", paced(9)))
    while not replica.server.server_state.tasks:
        await asyncio.sleep(0)

    def fill_the_table() -> None:
        replica.listener.full = True
        replica.connect().close()

    replica.server.at_the_end = fill_the_table
    said = (await asyncio.gather(answer(client), replica.end()))[0]
    assert "event: done" in said


async def test_a_request_that_never_comes_whole_does_not_hold_a_replica_that_ends(
    replica: Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serve, "LAST_BODIES", 0.05)
    half, stream = replica.connect(), replica.connect()
    half.send(request("half")[:-5])
    # One that begins a second request on the connection of its stream keeps the stream.
    stream.send(request("whole", paced(300)) + request("half-too")[:-5])
    while len(replica.server.server_state.tasks) < 2:
        await asyncio.sleep(0)
    ending = asyncio.create_task(replica.end())
    assert await answer(half) == ""
    assert not ending.done()
    assert "event: done" in await answer(stream)
    await ending


async def test_a_second_ctrl_c_ends_the_grace_and_each_stream_has_its_closing_frame(replica: Replica) -> None:
    client = replica.connect()
    client.send(request("impatient", paced(60_000)))
    said = asyncio.create_task(answer(client))
    while not replica.server.server_state.tasks:
        await asyncio.sleep(0)
    told = asyncio.Event()
    replica.server.at_the_end = told.set
    replica.server.handle_exit(signal.SIGINT, None)
    await told.wait()
    replica.server.handle_exit(signal.SIGTERM, None)
    await asyncio.sleep(0)
    assert not said.done()
    replica.server.handle_exit(signal.SIGINT, None)
    frames = await asyncio.wait_for(said, 4)  # the grace is 5 s
    assert [line for line in frames.splitlines() if line.startswith("event: ")] == ["event: error"]
    await replica.end()


async def test_nobody_is_let_in_after_the_order_to_end(replica: Replica) -> None:
    told = asyncio.Event()
    replica.server.at_the_end = told.set
    ending = asyncio.create_task(replica.end())
    await told.wait()
    await asyncio.sleep(0)
    with pytest.raises(ConnectionRefusedError):
        replica.connect()
    await ending


async def test_a_frame_waits_for_no_acknowledgement_of_the_one_before() -> None:
    taken: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    def let_in(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        taken.set_result(writer.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
        writer.close()

    listener = listen(Settings(host="127.0.0.1", port=0))
    async with await asyncio.start_server(let_in, sock=listener):
        _, writer = await asyncio.open_connection(*listener.getsockname())
        assert await asyncio.wait_for(taken, SOON)
        writer.close()
        await writer.wait_closed()
