"""The connection of a model's call, against a server that says byte for byte what it is told."""

from __future__ import annotations

import asyncio
import base64
import functools
import gc
import inspect
import os
import socket
import ssl
import stat
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import aclosing, asynccontextmanager, suppress
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

import boto3
import pytest
import uvloop
from botocore.awsrequest import AWSPreparedRequest, AWSRequest
from botocore.config import Config
from botocore.exceptions import (
    ClientError,
    ConnectionClosedError,
    ConnectTimeoutError,
    EndpointConnectionError,
    EventStreamError,
    ProxyConnectionError,
    ReadTimeoutError,
    SSLError,
)
from strands.models import BedrockModel

from haltline import bedrock_connection
from haltline.bedrock import RunStopped, StoppableBedrockModel, _Call, close_connections
from haltline.bedrock_connection import IDLE_SECONDS, UNREAD, Connection, Connections
from haltline.runs import StopReason, StopToken, live_token
from local.fake_bedrock import frames
from tests.fake_bedrock import self_signed
from tests.stack import free_port

SESSION = boto3.Session(aws_access_key_id="test", aws_secret_access_key="test", region_name="us-west-2")
SOON = 2.0  # seconds: a deadline for what must happen, never a measure
OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
CHUNKED = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
TO_THE_END = b"HTTP/1.1 200 OK\r\n\r\n"

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def on_both_loops(test: Callable[..., Awaitable[None]]) -> Callable[..., None]:
    """Run it on asyncio's own loop and on uvloop, each of its own; nothing may be left behind."""

    async def checked(given: dict[str, Any]) -> None:
        async with nothing_left():
            await test(**given)

    def both(run: Callable[[Any], Any], **given: Any) -> None:
        run(checked(given))

    functools.update_wrapper(both, test)
    run = inspect.Parameter("run", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    both.__signature__ = inspect.Signature([run, *inspect.signature(test).parameters.values()])  # type: ignore[attr-defined]
    del both.__wrapped__  # type: ignore[attr-defined]
    marked: Callable[..., None] = pytest.mark.parametrize("run", [asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])(
        both
    )
    return marked


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return self_signed(tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="module", autouse=True)
def collections_are_short() -> Iterator[None]:
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


def open_sockets() -> int:
    count = 0
    for fd in os.listdir("/dev/fd"):
        with suppress(OSError):  # that of the listing itself
            count += stat.S_ISSOCK(os.fstat(int(fd)).st_mode)
    return count


@asynccontextmanager
async def nothing_left() -> AsyncIterator[None]:
    """No socket, no failure that nobody looked at, no task."""
    said: list[Any] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: said.append(context))
    before = open_sockets()
    yield
    async with asyncio.timeout(SOON):
        while len(asyncio.all_tasks()) > 1 or open_sockets() > before:
            await asyncio.sleep(0.01)
    gc.collect()
    assert said == []


class Server:
    """A TCP server of this loop. `handler` has each connection, and may leave it open."""

    def __init__(self, handler: Handler) -> None:
        self.handler, self.count = handler, 0
        self.writers: list[asyncio.StreamWriter] = []
        self.gone: list[asyncio.Event] = []  # the other side of each connection has closed it
        self.tasks: list[asyncio.Task[Any]] = []

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.count += 1
        self.writers.append(writer)
        self.tasks.append(cast("asyncio.Task[Any]", asyncio.current_task()))
        gone = asyncio.Event()
        self.gone.append(gone)
        with suppress(OSError, asyncio.IncompleteReadError):
            await self.handler(reader, writer)
            while await reader.read(65536):
                pass
        gone.set()

    @asynccontextmanager
    async def serve(self, tls: tuple[Path, Path] | None = None) -> AsyncIterator[str]:
        context = None
        if tls:
            context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
            context.load_cert_chain(*tls)
        server = await asyncio.start_server(self._connected, "127.0.0.1", 0, ssl=context)
        port = server.sockets[0].getsockname()[1]
        try:
            yield f"{'https' if tls else 'http'}://127.0.0.1:{port}"
        finally:
            server.close()
            for writer in self.writers:
                writer.transport.abort()
            await asyncio.wait_for(asyncio.gather(*self.tasks), SOON)


async def request_of(reader: asyncio.StreamReader) -> bytes:
    head = await reader.readuntil(b"\r\n\r\n")
    length = next(
        (int(v) for k, _, v in (h.partition(b":") for h in head.lower().split(b"\r\n")) if k == b"content-length"), 0
    )
    return head + await reader.readexactly(length)


def answers(*pieces: bytes, then: str = "") -> Handler:
    """Each request is answered so; `then`: "close" or "reset" after the first."""

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            await request_of(reader)
            for piece in pieces:
                writer.write(piece)
                await writer.drain()
                await asyncio.sleep(0.002)
            if then == "close":
                writer.close()
                return
            if then == "reset":
                reset(writer)
                return

    return handler


def reset(writer: asyncio.StreamWriter) -> None:
    if (found := writer.get_extra_info("socket")) is None:  # it is closed
        return
    with socket.socket(fileno=os.dup(found.fileno())) as own:
        own.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
    writer.transport.abort()


def prepared(url: str, body: bytes = b"{}", **headers: str) -> AWSPreparedRequest:
    return cast("AWSPreparedRequest", AWSRequest("POST", url + "/model/m/converse-stream", headers, body).prepare())


@functools.cache  # to read the certificates takes its time
def plain() -> Connections:
    return Connections(None, None)


async def body_of(connection: Connection, seconds: float | None = SOON) -> bytes:
    await connection.head(seconds)
    said = b""
    while piece := await connection.read(seconds):
        said += piece
    return said


@asynccontextmanager
async def connected(
    url: str, connections: Connections | None = None, seconds: float = SOON
) -> AsyncIterator[Connection]:
    connections = connections or plain()
    connection = Connection(url)
    try:
        await connection.connect(connections.tls, connections.proxy, seconds)
        yield connection
    finally:
        connection.abort()


# ---- answers

ANSWERS: dict[str, tuple[bytes, bytes]] = {
    "content-length": (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", b"hello"),
    "empty": (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", b""),
    "chunked": (CHUNKED + b"5\r\nhello\r\n1;ext=1\r\n,\r\n6\r\n world\r\n0\r\n\r\n", b"hello, world"),
    "trailers": (CHUNKED + b"2\r\nok\r\n0\r\nX-Sum: 1\r\n\r\n", b"ok"),
    "to the end": (TO_THE_END + b"hello", b"hello"),
    "continue": (b"HTTP/1.1 100 Continue\r\nx-a: 1\r\n\r\nHTTP/1.1 103 Early Hints\r\n\r\n" + OK, b"ok"),
    "no content": (b"HTTP/1.1 204 No Content\r\n\r\n", b""),
    "HTTP/1.0": (b"HTTP/1.0 200 OK\r\n\r\nold", b"old"),
}


class Wire:
    """A transport that notes what is asked of it."""

    def __init__(self) -> None:
        self.sent, self.reading, self.aborted = b"", True, False

    def write(self, data: bytes) -> None:
        self.sent += data

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True

    def abort(self) -> None:
        self.aborted = True

    def get_write_buffer_size(self) -> int:
        return 0

    def get_extra_info(self, name: str) -> Any:
        return None


def on_a_wire(url: str = "http://h") -> tuple[Connection, Wire]:
    connection, wire = Connection(url), Wire()
    connection.connection_made(wire)  # type: ignore[arg-type]
    connection.send(prepared(url), None)
    return connection, wire


@pytest.mark.parametrize("kind", ANSWERS)
@on_both_loops
async def test_an_answer_cut_at_every_byte(kind: str) -> None:
    raw, body = ANSWERS[kind]
    for cuts in [*([cut] for cut in range(len(raw) + 1)), [*range(1, len(raw))]]:
        connection, _ = on_a_wire()
        for start, end in zip([0, *cuts], [*cuts, len(raw)], strict=True):
            connection.data_received(raw[start:end])
        connection.connection_lost(None)
        assert await body_of(connection) == body
        assert connection.status in (200, 204)
        assert "x-a" not in connection.headers


@pytest.mark.parametrize("kind", ANSWERS)
@on_both_loops
async def test_an_answer_over_a_socket(kind: str) -> None:
    raw, body = ANSWERS[kind]
    ends = kind in ("to the end", "HTTP/1.0")
    server = Server(answers(raw[:20], raw[20:-1], raw[-1:], then="close" if ends else ""))
    async with server.serve() as url, connected(url) as connection:
        connection.send(prepared(url), None)
        assert await body_of(connection) == body
        assert connection.reusable is not ends


@on_both_loops
async def test_a_header_that_is_said_twice_is_joined() -> None:
    connection, _ = on_a_wire()
    connection.data_received(b"HTTP/1.1 200 OK\r\nX-A: 1\r\nx-a: 2\r\nContent-Length: 0\r\n\r\n")
    assert connection.headers["x-a"] == "1, 2"


BROKEN: dict[str, tuple[bytes, bytes | None]] = {  # what is said, and the body that is read before it fails
    "nothing": (b"", None),
    "half a head": (b"HTTP/1.1 200 OK\r\ncontent-le", None),
    "not HTTP": (b"SSH-2.0-OpenSSH_9.2\r\n", None),
    "a switch of protocols": (b"HTTP/1.1 101 Switching\r\nconnection: upgrade\r\nupgrade: x\r\n\r\n", None),
    "half a body": (b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhel", b"hel"),
    "half a chunk": (CHUNKED + b"5\r\nhel", b"hel"),
    "no last chunk": (CHUNKED + b"3\r\nhel\r\n", b"hel"),
    "a wrong chunk": (CHUNKED + b"3\r\nhel\r\nzz\r\n", b"hel"),
    "a large wrong chunk": (CHUNKED + b"%x\r\n%s\r\nzz\r\n" % (3 * UNREAD, b"a" * 3 * UNREAD), b"a" * 3 * UNREAD),
}


@pytest.mark.parametrize("then", ["close", "reset"])
@pytest.mark.parametrize("kind", BROKEN)
@on_both_loops
async def test_an_answer_that_breaks_off(kind: str, then: str) -> None:
    """What arrived before is read first."""
    raw, body = BROKEN[kind]
    async with Server(answers(raw, then=then)).serve() as url, connected(url) as connection:
        connection.send(prepared(url), None)
        said = b""
        with pytest.raises(ConnectionClosedError):  # noqa: PT012 - where, is what this is about
            await connection.head(SOON)
            while piece := await connection.read(SOON):
                said += piece
        assert said == (body or b"") or (then == "reset" and (body or b"").startswith(said))
        assert not connection.reusable


@pytest.mark.parametrize("how", ["reset", "time out", "stop"])
@on_both_loops
async def test_a_body_that_ends_with_its_connection_is_whole_only_where_the_other_side_ended_it(how: str) -> None:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request_of(reader)
        writer.write(TO_THE_END + b"hello")
        await ended.wait()
        reset(writer)

    ended = asyncio.Event()
    async with Server(handler).serve() as url, connected(url) as connection:
        connection.send(prepared(url), None)
        await connection.head(SOON)
        assert await connection.read(SOON) == b"hello"
        rest = asyncio.create_task(connection.read(0.02 if how == "time out" else SOON))
        await asyncio.sleep(0)
        failure: type[Exception] = {"reset": ConnectionClosedError, "time out": ReadTimeoutError, "stop": RunStopped}[
            how
        ]
        if how == "reset":
            ended.set()
        elif how == "stop":
            connection.abort(RunStopped())
        with pytest.raises(failure):
            await rest
        ended.set()


# ---- time


@on_both_loops
async def test_only_silence_counts_and_only_while_someone_waits() -> None:
    pieces = [CHUNKED, *[b"1\r\na\r\n"] * 6, b"0\r\n\r\n"]

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request_of(reader)
        for piece in pieces:
            writer.write(piece)
            await asyncio.sleep(0.06)
        await request_of(reader)

    async with Server(handler).serve() as url, connected(url) as connection:
        connection.send(prepared(url), None)
        await connection.head(0.2)
        await asyncio.sleep(0.25)
        assert await body_of(connection, 0.2) == b"aaaaaa"
        connection.send(prepared(url), None)
        with pytest.raises(ReadTimeoutError):
            await connection.head(0.05)


@on_both_loops
async def test_what_came_in_time_is_not_too_late_where_the_loop_was_busy() -> None:
    connection, _ = on_a_wire()
    reading = asyncio.create_task(connection.head(0.02))
    await asyncio.sleep(0)
    asyncio.get_running_loop().call_soon(connection.data_received, OK)
    time.sleep(0.05)
    await reading


@pytest.mark.parametrize("silent", ["TCP", "TLS", "a proxy", "a proxy's TLS"])
@on_both_loops
async def test_a_connection_that_does_not_come_about_in_time(silent: str) -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=0 if silent == "TCP" else 9) as server:
        waiting = [socket.socket() for _ in range(3)]
        for other in waiting:
            if silent == "TCP":  # its queue is full
                other.setblocking(False)
                other.connect_ex(server.getsockname())
        place = f"127.0.0.1:{server.getsockname()[1]}"
        proxy = {"a proxy": f"http://{place}", "a proxy's TLS": f"https://{place}"}.get(silent)
        connections = Connections(None, proxy)
        with pytest.raises(ConnectTimeoutError):
            await Connection(f"https://{place}").connect(connections.tls, connections.proxy, 0.05)
        for other in waiting:
            other.close()


@pytest.mark.parametrize("scheme", ["http", "https"])
@on_both_loops
async def test_a_server_that_is_not_there(scheme: str) -> None:
    with pytest.raises(EndpointConnectionError):
        await Connection(f"{scheme}://127.0.0.1:{free_port()}").connect(plain().tls, None, SOON)
    with pytest.raises(EndpointConnectionError):
        await Connection(f"{scheme}://nowhere.invalid").connect(plain().tls, None, SOON)


# ---- TLS and proxies


@pytest.mark.parametrize("then", ["close", "reset", "rubbish"])
@on_both_loops
async def test_a_handshake_that_breaks_off(then: str) -> None:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        if then == "reset":
            reset(writer)
        else:
            writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n" if then == "rubbish" else b"")
            writer.close()

    async with Server(handler).serve() as url:
        with pytest.raises(SSLError if then == "rubbish" else EndpointConnectionError):
            await Connection(url.replace("http", "https")).connect(plain().tls, None, SOON)


@on_both_loops
async def test_certificates(certificate: tuple[Path, Path]) -> None:
    async with Server(answers(OK)).serve(certificate) as url:
        with pytest.raises(SSLError):
            await Connection(url).connect(plain().tls, None, SOON)
        trusting = Connections(str(certificate[0]), None)
        with pytest.raises(SSLError):  # another name
            await Connection(url.replace("127.0.0.1", "localhost")).connect(trusting.tls, None, SOON)
        async with connected(url, trusting) as connection:
            for _ in range(2):
                connection.send(prepared(url), None)
                assert await body_of(connection) == b"ok"


class Proxy(Server):
    """Takes CONNECT and joins the two, and answers the rest itself; refuses where it is told to."""

    def __init__(self, answer: bytes = b"HTTP/1.1 200 Connection established\r\n\r\n") -> None:
        super().__init__(self._proxy)
        self.answer, self.heads = answer, list[bytes]()

    async def _proxy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = await request_of(reader)
        self.heads.append(request)
        method, target, _ = request.split(b" ", 2)
        if method != b"CONNECT":
            writer.write(OK)
            return
        writer.write(self.answer)
        if b" 200 " not in self.answer:
            if not self.answer.startswith(b"HTTP") or b"close" in self.answer:
                writer.close()
            return
        host, _, port = target.decode().rpartition(":")
        there, back = await asyncio.open_connection(host, int(port))

        async def pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
            with suppress(OSError):
                while data := await source.read(65536):
                    sink.write(data)
            sink.close()

        await asyncio.gather(pump(reader, back), pump(there, writer))


@pytest.mark.parametrize("proxy_tls", [False, True])
@pytest.mark.parametrize("server_tls", [False, True])
@on_both_loops
async def test_through_a_proxy(certificate: tuple[Path, Path], server_tls: bool, proxy_tls: bool) -> None:
    proxy, big = Proxy(), b"x" * 300_000
    server = Server(answers(b"HTTP/1.1 200 OK\r\ncontent-length: 300000\r\n\r\n" + big))
    async with (
        proxy.serve(certificate if proxy_tls else None) as proxy_url,
        server.serve(certificate if server_tls else None) as url,
    ):
        connections = Connections(str(certificate[0]), proxy_url.replace("://", "://us%40er:pa%3Ass@"))
        async with connected(url, connections) as connection:
            for _ in range(2 if server_tls else 1):
                connection.send(prepared(url), connections.proxy)
                assert await body_of(connection) == (big if server_tls else b"ok")
    (head,) = proxy.heads
    target = f"CONNECT {url[8:]} " if server_tls else f"POST {url}/model/m/converse-stream "
    assert head.startswith(target.encode())
    assert f"\r\nHost: {urlsplit(url).netloc}\r\n".encode() in head
    assert b"Proxy-Authorization: Basic " + base64.b64encode(b"us@er:pa:ss") in head


@pytest.mark.parametrize(
    ("answer", "failure"),
    [
        (b"HTTP/1.1 407 Who are you\r\ncontent-length: 0\r\n\r\n", ProxyConnectionError),
        (b"HTTP/1.1 403 No\r\nconnection: close\r\n\r\nno", ProxyConnectionError),
        (b"SSH-2.0\r\n", ConnectionClosedError),
        (b"", ConnectionClosedError),
    ],
)
@on_both_loops
async def test_a_proxy_that_refuses(answer: bytes, failure: type[Exception], certificate: tuple[Path, Path]) -> None:
    for tls in (None, certificate):
        async with Proxy(answer).serve(tls) as url:
            connections = Connections(str(certificate[0]), url)
            with pytest.raises(failure):
                await Connection("https://127.0.0.1:9").connect(connections.tls, connections.proxy, SOON)


@on_both_loops
async def test_a_proxy_that_closes_as_it_agrees() -> None:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request_of(reader)
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        writer.close()

    async with Server(handler).serve() as url:
        connections = Connections(None, url)
        with pytest.raises((ConnectionClosedError, EndpointConnectionError)):
            await Connection("https://127.0.0.1:9").connect(connections.tls, connections.proxy, SOON)


# ---- kept for the next call


async def used(connections: Connections, url: str) -> Connection:
    connection = connections.take(url) or Connection(url)
    if not connection.connected:
        await connection.connect(connections.tls, connections.proxy, SOON)
    connection.send(prepared(url), None)
    await body_of(connection)
    return connection


@pytest.mark.parametrize("tls", [False, True])
@on_both_loops
async def test_a_connection_is_used_again(certificate: tuple[Path, Path], tls: bool) -> None:
    server, connections = Server(answers(OK)), Connections(str(certificate[0]), None)
    async with server.serve(certificate if tls else None) as url:
        for _ in range(3):
            connections.give_back(await used(connections, url))
        assert server.count == 1
        assert connections.take(url.replace("127.0.0.1", "localhost")) is None
        connections.close()


LATER: dict[str, bytes | None] = {
    "closed": None,
    "answered twice": OK,
    "told to go": b"HTTP/1.1 408 Slow\r\n\r\n",
    "a byte": b"H",
}


@pytest.mark.parametrize("seen", [True, False])
@pytest.mark.parametrize("later", LATER)
@on_both_loops
async def test_a_connection_on_which_more_was_said_while_idle_is_not_used_again(later: str, seen: bool) -> None:
    """`seen`: whether the loop had its turn since."""
    server, connections = Server(answers(OK)), plain()
    async with server.serve() as url:
        connection = await used(connections, url)
        connections.give_back(connection)
        fd = server.writers[0].get_extra_info("socket").fileno()
        with socket.socket(fileno=os.dup(fd)) as peer:
            if (more := LATER[later]) is None:
                peer.shutdown(socket.SHUT_RDWR)
            else:
                peer.sendall(more)
        if seen:
            await asyncio.sleep(0.02)
        assert connections.take(url) is None
        connections.close()
        await asyncio.wait_for(server.gone[0].wait(), SOON)


@on_both_loops
async def test_a_connection_whose_end_is_about_to_be_told_is_not_used_again(certificate: tuple[Path, Path]) -> None:
    server, connections = Server(answers(OK)), Connections(str(certificate[0]), None)
    async with server.serve(certificate) as url:
        connection = await used(connections, url)
        connections.give_back(connection)
        cast("Any", connection)._socket.abort()
        await asyncio.sleep(0)  # TLS knows, and tells it in the next turn
        assert connections.take(url) is None


@pytest.mark.parametrize("more", [OK, b"HTTP/1.1 408 Slow\r\ncontent-length: 0\r\n\r\n", b"x", b"HTTP/1."])
@on_both_loops
async def test_more_than_the_answer_is_no_part_of_it(more: bytes) -> None:
    for at_once in (True, False):
        connection, _ = on_a_wire()
        connection.data_received(OK + more if at_once else OK)
        if not at_once:
            connection.data_received(more)
        assert await body_of(connection) == b"ok"
        assert connection.status == 200
        assert not connection.reusable


@pytest.mark.parametrize(
    "said",
    [
        b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\nok",
        b"HTTP/1.0 200 OK\r\ncontent-length: 2\r\n\r\nok",
    ],
)
@on_both_loops
async def test_a_connection_that_is_to_end_is_not_used_again(said: bytes) -> None:
    server, connections = Server(answers(said)), plain()
    async with server.serve() as url:
        connections.give_back(await used(connections, url))
        assert connections.take(url) is None
        await asyncio.wait_for(server.gone[0].wait(), SOON)


@on_both_loops
async def test_no_connection_is_kept_too_long_and_not_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bedrock_connection, "IDLE_CONNECTIONS", 2)
    server, connections = Server(answers(OK)), plain()
    async with server.serve() as url:
        three = [await used(connections, url) for _ in range(3)]
        for connection in three:
            connections.give_back(connection)
        await asyncio.wait_for(server.gone[0].wait(), SOON)
        three[1].idle_since -= IDLE_SECONDS + 1
        assert connections.take(url) is three[2]
        await asyncio.wait_for(server.gone[1].wait(), SOON)
        assert connections.take(url) is None
        three[2].abort()


# ---- a slow reader


@pytest.mark.parametrize("tls", [False, True])
@pytest.mark.parametrize("end", ["", "close"])
@on_both_loops
async def test_a_slow_reader_of_a_large_answer(certificate: tuple[Path, Path], tls: bool, end: str) -> None:
    size = 20_000_000
    head = TO_THE_END if end else b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % size
    server, connections = Server(answers(head + b"y" * size, then=end)), Connections(str(certificate[0]), None)
    async with server.serve(certificate if tls else None) as url, connected(url, connections) as connection:
        connection.send(prepared(url), None)
        await connection.head(SOON)
        await asyncio.sleep(0.05)
        held = connection._size
        assert held < 2_000_000
        total = 0
        while piece := await connection.read(SOON):
            total += len(piece)
            if total < 2_000_000:
                await asyncio.sleep(0.001)
        assert total == size
        assert connection.reusable is (not end)


@pytest.mark.parametrize("tls", [False, True])
@pytest.mark.parametrize("whole", [True, False])
@on_both_loops
async def test_what_arrived_before_the_end_is_read_though_reading_was_paused(
    certificate: tuple[Path, Path], tls: bool, whole: bool
) -> None:
    size = 3 * UNREAD
    raw = CHUNKED + b"%x\r\n%s\r\n" % (size, b"z" * size) + (b"0\r\n\r\n" if whole else b"")
    server, connections = Server(answers(raw, then="close")), Connections(str(certificate[0]), None)
    async with server.serve(certificate if tls else None) as url, connected(url, connections) as connection:
        connection.send(prepared(url), None)
        await asyncio.sleep(0.1)
        said = b""
        with suppress(ConnectionClosedError):
            while piece := await connection.read(SOON):
                said += piece
            assert whole
        assert said == b"z" * size
        assert connection.take() == b""


# ---- ended


POINTS = ["before", "connecting", "handshake", "head", "body", "paused", "after"]


@pytest.mark.parametrize("elsewhere", [False, True])
@pytest.mark.parametrize("point", POINTS)
@on_both_loops
async def test_an_end_at_each_point(point: str, elsewhere: bool, certificate: tuple[Path, Path]) -> None:
    raw = {"head": b"", "body": CHUNKED, "paused": CHUNKED + b"%x\r\n" % (1 << 30) + b"a" * (1 << 20)}.get(point, OK)

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if point != "handshake":
            await request_of(reader)
            writer.write(raw)

    server, tls, go_on = Server(handler), point == "handshake", asyncio.Event()

    def end(connection: Connection) -> None:
        if elsewhere:
            thread = threading.Thread(target=connection.shut_from_elsewhere)
            thread.start()
            thread.join()
        else:
            connection.abort(RunStopped())
            connection.abort(RunStopped())

    async def talk(connection: Connection) -> bytes:
        await connection.connect(plain().tls, None, SOON)
        connection.send(prepared(url), None)
        if point == "paused":
            await go_on.wait()
        return await body_of(connection)

    async with server.serve() as url:
        connection = Connection(url.replace("http", "https") if tls else url)
        if point == "before":
            end(connection)
        talking = asyncio.create_task(talk(connection))
        if point == "connecting":
            await asyncio.sleep(0)
        elif point == "after":
            await talking
        elif point != "before":
            await asyncio.sleep(0.05)
            assert not talking.done()
        if point != "before":
            end(connection)
        if point == "paused":
            go_on.set()
        await asyncio.wait({talking}, timeout=SOON)
        assert talking.done()
        if point == "after":
            assert talking.result() == b"ok"
        else:
            assert isinstance(talking.exception(), (RunStopped, ConnectionClosedError, EndpointConnectionError))
        assert not connection.reusable
        connection.abort()
        connection.abort()
        if elsewhere:
            connection.shut_from_elsewhere()
        for gone in server.gone:
            await asyncio.wait_for(gone.wait(), SOON)


@on_both_loops
async def test_a_descriptor_that_is_another_connections_by_now_is_not_shut() -> None:
    server = Server(answers(OK))
    async with server.serve() as url, connected(url) as old, connected(url) as new:
        cast("Any", old)._socket = new._socket  # what its number leads to
        old.shut_from_elsewhere()
        new.send(prepared(url), None)
        assert await body_of(new) == b"ok"


# ---- requests


@pytest.mark.parametrize("tls", [False, True])
@on_both_loops
async def test_a_large_request_to_a_server_that_reads_slowly(certificate: tuple[Path, Path], tls: bool) -> None:
    body = os.urandom(4_000_000)

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        await asyncio.sleep(0.05)
        got = await reader.readexactly(len(body))
        writer.write(OK if got == body else b"")

    connections = Connections(str(certificate[0]), None)
    async with Server(handler).serve(certificate if tls else None) as url, connected(url, connections) as connection:
        connection.send(prepared(url, body), None)
        assert await body_of(connection) == b"ok"
        assert connection.reusable


@pytest.mark.parametrize("tls", [False, True])
@pytest.mark.parametrize("then", ["wait", "say no more", "close", "nothing"])
@on_both_loops
async def test_a_large_request_that_is_not_read(certificate: tuple[Path, Path], then: str, tls: bool) -> None:
    """An answer that comes before the request was sent is read, and the connection is not used again."""
    answered = b"HTTP/1.1 413 Too Large\r\ncontent-length: 2\r\n\r\nno"

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        if then != "nothing":
            writer.write(answered)
        if then == "say no more" and not tls:
            writer.write_eof()
        elif then == "close":
            writer.close()
        await ended.wait()
        writer.transport.abort()

    ended = asyncio.Event()
    connections = Connections(str(certificate[0]), None)
    async with Server(handler).serve(certificate if tls else None) as url, connected(url, connections) as connection:
        connection.send(prepared(url, bytes(20_000_000)), None)
        if then == "nothing":
            with pytest.raises(ReadTimeoutError):
                await connection.head(0.1)
        else:
            with suppress(*([ConnectionClosedError] if then == "close" else [])):  # its reset may overtake the answer
                assert await body_of(connection) == b"no"
                assert connection.status == 413
        assert not connection.reusable
        connections.give_back(connection)
        assert connections.take(url) is None
        ended.set()


@on_both_loops
async def test_a_server_that_says_no_more_and_reads_no_more() -> None:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        writer.write_eof()
        await ended.wait()
        writer.transport.abort()

    ended = asyncio.Event()
    async with Server(handler).serve() as url, connected(url) as connection:
        connection.send(prepared(url, bytes(20_000_000)), None)
        with pytest.raises(ConnectionClosedError):
            await connection.head(SOON)
        ended.set()


ENDPOINTS = {
    "plain": ("http://127.0.0.1:{port}", False),
    "a path": ("http://127.0.0.1:{port}/a%20b/", False),
    "an upper case": ("http://LocalHost:{port}", False),
    "a proxy": ("http://bedrock.example", True),
    "a proxy, the usual port": ("http://bedrock.example:80/p", True),
    "a proxy, another port": ("http://[2001:db8::1]:8080", True),
}
ARN = "arn:aws:bedrock:us-west-2:123456789012:inference-profile/us.amazon.nova-lite-v1:0"


@pytest.mark.parametrize("endpoint", ENDPOINTS)
@on_both_loops
async def test_a_request_is_what_botocore_itself_sends(endpoint: str) -> None:
    requests: list[bytes] = []

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        requests.append(await request_of(reader))
        writer.write(b"HTTP/1.1 404 No\r\nconnection: close\r\ncontent-length: 2\r\n\r\n{}")
        writer.close()

    def parts(request: bytes) -> Any:
        head, _, body = request.partition(b"\r\n\r\n")
        line, *lines = head.decode().split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        signed = headers.pop("authorization").partition("Signature=")[0]
        for name in ("amz-sdk-invocation-id", "x-amz-date"):
            del headers[name]
        headers["user-agent"] = headers["user-agent"].split("Botocore")[0]
        return line, headers, signed, body

    server = Server(handler)
    async with server.serve() as url:
        to, proxied = ENDPOINTS[endpoint]
        config = Config(retries={"total_max_attempts": 1, "mode": "standard"}, proxies={"http": url} if proxied else {})
        for kind in (BedrockModel, StoppableBedrockModel):
            model: Any = kind(
                endpoint_url=to.format(port=urlsplit(url).port),
                boto_client_config=config,
                boto_session=SESSION,
                model_id=ARN,
            )
            messages: Any = [{"role": "user", "content": [{"text": "Grüße, 世界"}]}]
            with pytest.raises(ClientError):
                async for _ in model.stream(messages, system_prompt="be kind"):
                    pass
            model.client.close()
    theirs, ours = map(parts, requests)
    theirs[1]["host"] = theirs[1]["host"].removesuffix(":80")  # signed without
    assert ours == theirs


# ---- text that arrives together


def frame(event: dict[str, Any]) -> bytes:
    ((kind, payload),) = event.items()
    return frames.event(kind, payload)


def text(words: str, block: int | None = 0, **more: Any) -> dict[str, Any]:
    index = {} if block is None else {"contentBlockIndex": block}
    return {"contentBlockDelta": {"delta": {"text": words}, **index, **more}}


END: dict[str, Any] = {"contentBlockStop": {"contentBlockIndex": 0}}


def stream_of(*events: dict[str, Any], whole: bool = True) -> bytes:
    body = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in map(frame, events))
    return body + (b"0\r\n\r\n" if whole else b"")


HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: application/vnd.amazon.eventstream\r\ntransfer-encoding: chunked\r\n\r\n"
START: dict[str, Any] = {"messageStart": {"role": "assistant"}}
STOP: dict[str, Any] = {"messageStop": {"stopReason": "end_turn"}}


def model_at(url: str, **how: Any) -> Any:
    config = Config(retries={"total_max_attempts": 1, "mode": "standard"}, **how)
    return StoppableBedrockModel(endpoint_url=url, boto_client_config=config, boto_session=SESSION, model_id="m")


HELLO: Any = [{"role": "user", "content": [{"text": "hello"}]}]


@on_both_loops
async def test_what_arrives_together_comes_as_one_and_what_arrives_alone_comes_at_once() -> None:
    more = asyncio.Event()

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request_of(reader)
        for part in (
            HEAD + stream_of(START, text("one "), text("two "), text("three "), whole=False),
            stream_of(text("four "), whole=False),
            stream_of(text("five "), text("six"), END, STOP),
        ):
            more.clear()
            writer.write(part)
            await asyncio.wait_for(more.wait(), SOON)  # it says no more before this was told

    async with Server(handler).serve() as url:
        told = []
        async for event in model_at(url).stream(HELLO):
            if words := event.get("contentBlockDelta", {}).get("delta", {}).get("text"):
                told.append(words)
                more.set()
        more.set()
        assert told == ["one two three ", "four ", "five six"]
        close_connections()


@pytest.mark.parametrize("how", ["break", "exception", "cancel", "stop", "closed", "error"])
@on_both_loops
async def test_leaving_while_text_is_held(how: str) -> None:
    """Every way out, at the first event, with text behind it that arrived with it."""
    rest = frames.exception("modelStreamErrorException", "no") if how == "error" else b""

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request_of(reader)
        writer.write(HEAD + stream_of(START, text("a"), text("b"), END, text("c", 1), whole=False))
        if rest:
            writer.write(b"%x\r\n%s\r\n0\r\n\r\n" % (len(rest), rest))
        if how == "closed":
            writer.close()

    server, token, told = Server(handler), StopToken(), list[Any]()
    live_token.set(token)

    async def talk() -> None:
        async with aclosing(model_at(url).stream(HELLO)) as events:
            async for event in events:
                told.append(event)
                if how == "exception":
                    raise KeyError("mine")
                if how == "break":
                    break
                if how == "stop":
                    token.stop(StopReason.USER)
                if how == "cancel" and not task.cancelling():
                    task.cancel()
                    task.cancel()

    async with server.serve() as url:
        task = asyncio.create_task(talk())
        await asyncio.wait({task}, timeout=SOON)
        assert task.done()
        if how == "cancel":
            assert task.cancelled()
        else:
            expected = {
                "exception": KeyError,
                "stop": RunStopped,
                "closed": ConnectionClosedError,
                "error": EventStreamError,
            }
            failure = task.exception()
            assert type(failure) is expected.get(how, type(None))
        if how in ("closed", "error"):
            assert told == [START, text("ab"), END, text("c", 1)]
        close_connections()  # an answer that ends with an error was read to its end
        await asyncio.wait_for(server.gone[0].wait(), SOON)


# ---- races


class Interrupting:
    """A call's loop: as whoever stops the call gets to it, the call lets go of its connection, and another has it."""

    def __init__(self, call: _Call) -> None:
        self._call = call

    def call_soon_threadsafe(self, _: Any) -> None:
        self._call.close()


@pytest.mark.parametrize("moment", ["before", "within", "after"])
@on_both_loops
async def test_a_stop_from_a_thread_closes_no_other_calls_connection(moment: str) -> None:
    """It fires as the call has read its answer to the end, and another takes the connection over."""
    server, connections = Server(answers(OK)), plain()
    async with server.serve() as url:
        call = _Call(connections, Config(), None)
        connection = call._connection = await used(connections, url)
        call._thread = 0  # what is not this thread's is another's
        if moment == "within":
            call._loop = cast("Any", Interrupting(call))
        elif moment == "after":
            call.close()
        call._stop()
        call.close()
        taken = connections.take(url)
        if moment == "before":  # it was shut, and the loop has not heard of it
            assert taken is None
        else:
            assert taken is connection
            taken.send(prepared(url), None)
            assert await body_of(taken) == b"ok"
            taken.abort()


@pytest.mark.parametrize("outcome", ["done", "failed", "fails later"])
@pytest.mark.parametrize("end", ["stop", "thread", "cancel"])
@on_both_loops
async def test_an_end_while_something_is_awaited(outcome: str, end: str) -> None:
    """In the very turn of the loop in which it is over; its failure is nobody's."""
    loop = asyncio.get_running_loop()
    call = _Call(plain(), Config(), None)
    awaited: asyncio.Future[str] = loop.create_future()
    either = asyncio.create_task(call._either(awaited))
    await asyncio.sleep(0.01)

    def settle() -> None:
        if not awaited.done():
            awaited.set_result("done") if outcome == "done" else awaited.set_exception(OSError("no"))

    if outcome != "fails later":
        settle()
    if end == "stop":
        call._end()
    elif end == "thread":
        call._thread = 0
        thread = threading.Thread(target=call._stop)
        thread.start()
        thread.join()
    else:
        either.cancel()
        either.cancel()
    await asyncio.wait({either}, timeout=SOON)
    settle()
    assert either.done()
    if end == "cancel":
        assert either.cancelled()
    elif outcome == "fails later":
        assert isinstance(either.exception(), RunStopped)
    else:
        assert either.exception() is None or isinstance(either.exception(), OSError)


@on_both_loops
async def test_a_connection_that_comes_about_as_the_call_is_stopped_sends_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    requests: list[bytes] = []

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        requests.append(await request_of(reader))

    connect = Connection.connect
    token = StopToken()
    live_token.set(token)

    async def as_it_is_stopped(connection: Connection, *args: Any) -> None:
        await connect(connection, *args)
        token.stop(StopReason.USER)

    monkeypatch.setattr(Connection, "connect", as_it_is_stopped)
    server = Server(handler)
    async with server.serve() as url:
        with pytest.raises(RunStopped):
            async for _ in model_at(url).stream(HELLO):
                pass
        await asyncio.wait_for(server.gone[0].wait(), SOON)
    assert requests == []
