"""Clients that leave in mid-stream without a word, that read next to nothing, and that never finish what they say."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import shutil
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest
import redis.asyncio as redis

from haltline.chat_routes import PING_AFTER
from haltline.connections import TAKES_NOTHING, UNSENT, set_patience
from haltline.inputs import BODY_SECONDS
from haltline.protocol import HEAD_SECONDS
from tests.contract.client import http_client, messages_of, new_chat, script, status_of, stop, until
from tests.fake_bedrock import RunningFakeBedrock, running_fake_bedrock
from tests.faults.conftest import FULL
from tests.faults.leaving import (
    WAYS,
    Host,
    Link,
    chat_request,
    connect,
    over_bedrock,
    read_until,
    resident,
    two_hosts,
    unsent,
    why_no_hosts,
)
from tests.stack import ROOT, Replica, Stack, running_stack

long = pytest.mark.skipif(not FULL, reason="waits for patience as it is shipped: make faults")

MINUTE = 60_000
SOON = 1.0  # seconds in which a client that says that it goes is noticed


@dataclass
class Street:
    """A stack whose model is the fake Bedrock."""

    stack: Stack
    fake: RunningFakeBedrock
    one: Replica
    directory: Path

    async def logged(self, predicate: Callable[[dict[str, Any]], bool], seconds: float = 10) -> dict[str, Any]:
        async def found() -> dict[str, Any] | None:
            return next(filter(predicate, self.fake.log()), None)

        return await until(found, seconds)


@pytest.fixture(scope="module")
def street(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Street]:
    directory = Path(tmp_path_factory.mktemp("clients"))
    with running_fake_bedrock(directory / "bedrock") as fake, running_stack(directory, replicas=0) as stack:
        one = stack.add_replica(module="tests.faults.impatient", **over_bedrock(fake.url, directory))
        one.wait_until_live(60)
        yield Street(stack, fake, one, directory)


@dataclass
class Stock:
    """A replica as it is shipped, on a host of its own, and the wire to its clients."""

    link: Link
    port: int


@pytest.fixture(scope="module")
def stock(street: Street) -> Iterator[Stock]:
    with on_a_host_of_its_own(street) as found:
        yield found


@contextlib.contextmanager
def on_a_host_of_its_own(street: Street) -> Iterator[Stock]:
    if why := why_no_hosts():
        pytest.skip(why)
    with two_hosts() as link:
        listener = link.listen()
        fd, port = listener.fileno(), listener.getsockname()[1]
        replica = street.stack.add_replica(
            "--fd", str(fd), pass_fds=[fd], **over_bedrock(street.fake.url, street.directory)
        )
        listener.close()
        with link.connect(port) as client:
            client.sendall(b"GET /live HTTP/1.1\r\nHost: x\r\n\r\n")
            read_until(client, b"live")
        yield Stock(link, port)
        replica.end()


@pytest.fixture
async def http() -> AsyncIterator[httpx.AsyncClient]:
    async with http_client() as client:
        yield client


@pytest.fixture
async def bus(street: Street) -> AsyncIterator[redis.Redis]:
    client = redis.from_url(street.stack.redis_url, decode_responses=True)
    yield client
    await client.aclose()


async def last_of(bus: redis.Redis, chat: str) -> Any:
    """How the chat's last run ended, None while it lives."""
    return json.loads(await bus.get(f"run:{{stop:{chat}}}") or "{}").get("last")


async def receipt_of(bus: redis.Redis, chat: str, seconds: float = 10) -> dict[str, Any]:
    """How the chat's run ended, as soon as END has said it."""
    return await until(lambda: last_of(bus, chat), seconds)


@dataclass(frozen=True)
class Phase:
    """What a run is busy with when its client goes. `upstream`: a model call is open then."""

    name: str
    script: dict[str, Any]
    heard: bytes = b""
    upstream: bool = True
    tool: str = ""


PHASES = [
    Phase("before the provider's headers", {"headers_ms": MINUTE}),
    Phase("before the first token", {"delay_ms": MINUTE}),
    Phase("between tokens", {"text": "on and on ", "repeat": 9999, "pace_ms": 5}, heard=b"data: on"),
    Phase("silent model", {"text": "one two three", "repeat": 9, "pace_ms": 1, "stall_after": 3}, heard=b"three"),
    Phase("async tool", {}, upstream=False, tool="work_async"),
    Phase("tool in a thread", {}, upstream=False, tool="work_in_a_thread"),
]


async def begin(
    street: Street,
    phase: Phase,
    chat: str,
    more: bytes = b"",
    connecting: Callable[[], socket.socket] | None = None,
) -> socket.socket:
    """A client whose run has come to this phase. `more`: sent behind the request."""
    told = {"name": chat, **phase.script}
    mark = street.directory / chat
    if phase.tool:
        told["tools"] = [{"name": phase.tool, "input": {"mark": str(mark)}}]
    client = await asyncio.to_thread(connecting or (lambda: connect(street.one.port)))
    client.sendall(chat_request(chat, script(**told)) + more)
    await asyncio.to_thread(read_until, client, phase.heard or b"\r\n\r\n")
    if phase.tool:
        await until(lambda: asyncio.to_thread(mark.exists))
    else:
        await street.logged(lambda line: line["event"] == "request" and line.get("name") == chat)
    return client


async def noticed(street: Street, bus: redis.Redis, chat: str, left_at: float, *, upstream: bool) -> dict[str, Any]:
    """The receipt of a run whose client left at this time, checked."""
    receipt = await receipt_of(bus, chat)
    assert time.monotonic() - left_at < SOON
    assert (receipt["outcome"], receipt["reason"]) == ("stopped", "disconnect")
    if upstream:
        closed = await street.logged(lambda line: line["event"] == "closed" and line.get("name") == chat)
        assert closed["at"] - left_at < SOON
    return receipt


@pytest.mark.parametrize("phase", PHASES, ids=lambda phase: phase.name)
async def test_a_client_that_leaves_ends_its_run_within_a_second(
    street: Street, bus: redis.Redis, phase: Phase
) -> None:
    async def leave(way: str) -> None:
        chat = new_chat("leaves")
        client = await begin(street, phase, chat)
        left_at = time.monotonic()
        WAYS[way](client)
        with client:
            await noticed(street, bus, chat, left_at, upstream=phase.upstream)

    await asyncio.gather(*map(leave, WAYS))


@pytest.mark.parametrize("way", WAYS)
async def test_a_client_that_leaves_before_its_run_has_begun(
    street: Street, http: httpx.AsyncClient, bus: redis.Redis, way: str
) -> None:
    """Its message is either taken and stopped, or never was: nothing runs on, and nothing is an error of ours."""
    chat = new_chat("leaves-at-once")
    client = connect(street.one.port)
    client.sendall(chat_request(chat, script(name=chat, delay_ms=MINUTE)))
    WAYS[way](client)
    with client:
        with contextlib.suppress(TimeoutError) if way == "reset" else contextlib.nullcontext():
            await until(lambda: said_of(street, chat, "| request"), 2)  # of a reset one maybe nothing was read
        if f"chat_id=<{chat}>" in street.one.log.read_text():
            assert (await receipt_of(bus, chat))["reason"] == "disconnect"
    assert (await status_of(http, street.one, chat))["status"] != "running"
    assert "Traceback" not in street.one.log.read_text()


async def said_of(street: Street, chat: str, what: str) -> bool:
    lines = await asyncio.to_thread(lambda: street.one.log.read_text().splitlines())
    return any(chat in line and what in line for line in lines)


@pytest.mark.parametrize("way", WAYS)
async def test_a_client_that_sent_a_second_request_behind_is_seen_to_leave(
    street: Street, bus: redis.Redis, way: str
) -> None:
    """What is queued behind a stream must not keep the server from reading that the client has gone."""

    async def leave(with_it: bool) -> None:
        chat, second = new_chat("pipelined"), new_chat("never")
        behind = chat_request(second, script(name=second, text="never"))
        client = await begin(street, PHASES[1], chat, more=behind if with_it else b"")
        if not with_it:
            client.sendall(behind)
        left_at = time.monotonic()
        WAYS[way](client)
        with client:
            await noticed(street, bus, chat, left_at, upstream=True)
        assert street.fake.log(second) == []

    await asyncio.gather(leave(True), leave(False))


async def test_a_client_that_had_stopped_reading_is_seen_to_leave(street: Street, bus: redis.Redis) -> None:
    """What waits for a client to take it must not keep the server from seeing that it has gone."""

    async def leave(way: str) -> None:
        chat = new_chat("full")
        client = await held_up(street, chat)
        left_at = time.monotonic()
        WAYS[way](client)
        with client:
            await noticed(street, bus, chat, left_at, upstream=True)

    await asyncio.gather(*map(leave, WAYS))


# ---- who reads next to nothing
ENDLESS: dict[str, Any] = {"chunks": ["x" * 16_000], "repeat": 10**6, "pace_ms": 0}
MEBIBYTE = 1 << 20


async def held_up(
    street: Street, chat: str, connecting: Callable[[], socket.socket] | None = None, host: Host | None = None
) -> socket.socket:
    """A client that has taken the first bytes of an endless answer and no more, with all buffers full by now."""
    client = await asyncio.to_thread(connecting or (lambda: connect(street.one.port, receive_buffer=4096)))
    client.sendall(chat_request(chat, script(name=chat, **ENDLESS)))
    await asyncio.to_thread(read_until, client, b"data: x")
    last, since = 0, time.monotonic()
    while time.monotonic() - since < 0.3 or not last:
        if (now := unsent(client, host)) != last:
            last, since = now, time.monotonic()
        await asyncio.sleep(0.02)
    return client


async def test_who_reads_nothing_costs_bounded_memory_and_is_stopped_at_once(
    street: Street, http: httpx.AsyncClient, bus: redis.Redis, times: Callable[[int, int], int]
) -> None:
    warm = new_chat("warm")
    (await held_up(street, warm)).close()  # what a first stream loads, and the allocator keeps, is not the slow ones'
    await receipt_of(bus, warm)
    chats = [new_chat("slow") for _ in range(times(4, 12))]
    before = resident(street.one)
    async with contextlib.AsyncExitStack() as leaving:
        for client in await asyncio.gather(*(held_up(street, chat) for chat in chats)):
            leaving.enter_context(client)
            assert unsent(client) < MEBIBYTE // 2
        held = (resident(street.one) - before) / len(chats)
        assert held < 5 * MEBIBYTE, "of an answer that has no end"
        sent_at = time.monotonic()
        told = await asyncio.gather(*(stop(http, street.one, chat, wait="5") for chat in chats))
        assert [t["status"] for t in told] == ["stopped"] * len(chats)
        for chat in chats:
            closed = await street.logged(lambda line, chat=chat: line["event"] == "closed" and line.get("name") == chat)
            assert closed["at"] - sent_at < 3 * SOON, "many at once, and each has its turn"
            assert (await receipt_of(bus, chat))["reason"] == "user"
        print(f"{held / MEBIBYTE:.2f} MiB a stream held up")


# ---- who never finishes what it says
CHAT = b"POST /api/v1/chat/never HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
UNFINISHED = {
    "nothing": (b"", b""),
    "a head": (b"POST /api/v1/chat/never HTTP/1.1\r\nHost: x\r\nX-A: ", b"a"),
    "a head behind an answer": (b"GET /live HTTP/1.1\r\nHost: x\r\n\r\n", b"a", b"GET /live HTTP/1.1\r\nX-A: "),
    "empty lines behind an answer": (b"GET /live HTTP/1.1\r\nHost: x\r\n\r\n", b"\r\n"),
    "a body": (CHAT + b"Content-Length: 60000\r\n\r\n{", b" "),
    "a body in chunks": (CHAT + b"Transfer-Encoding: chunked\r\n\r\n1\r\n{\r\n", b"1\r\n \r\n"),
    "a body nobody reads": (b"GET /live HTTP/1.1\r\nHost: x\r\nContent-Length: 60000\r\n\r\n", b" "),
}


async def drips(port: int, begin: bytes, drop: bytes, then: bytes = b"", *, seconds: float) -> tuple[float, bytes]:
    """Say `begin`, `then` when that was answered, and `drop` ten times a second.

    How long until the server closed (s), and what it answered.
    """
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    since, answered = time.monotonic(), b""
    writer.write(begin)
    try:
        if then:
            answered += await reader.readuntil(b"}")
            writer.write(then)
        while time.monotonic() - since < seconds:
            with contextlib.suppress(TimeoutError):
                if not (data := await asyncio.wait_for(reader.read(65536), 0.1)):
                    break
                answered += data
            writer.write(drop)
    except OSError:
        pass
    finally:
        writer.transport.abort()
    return time.monotonic() - since, answered


async def test_a_request_that_never_ends_is_given_up(street: Street, http: httpx.AsyncClient) -> None:
    """It holds no chat meanwhile either."""
    given_up = asyncio.gather(*(drips(street.one.port, *say, seconds=10) for say in UNFINISHED.values()))
    await asyncio.sleep(0.3)
    assert (await status_of(http, street.one, "never"))["status"] == "new"
    answers = dict(zip(UNFINISHED, await given_up, strict=True))
    for name, (seconds, _) in answers.items():
        assert seconds < 1 + 5, name
    for name in ("a body", "a body in chunks"):
        _, said = answers[name]
        assert said.startswith(b"HTTP/1.1 408 "), name
        assert b"x-replica: replica1" in said
        assert said.endswith(b'{"detail":"The body did not come within 1 s."}')
    assert (await status_of(http, street.one, "never"))["status"] == "new"


# ---- who is to be left alone
@pytest.fixture(scope="module")
def patient(street: Street) -> Replica:
    """A replica as it is shipped, but for ON_DISCONNECT."""
    settings = over_bedrock(street.fake.url, street.directory) | {"ON_DISCONNECT": "continue"}
    replica = street.stack.add_replica(**settings)
    replica.wait_until_live(60)
    return replica


@long
@pytest.mark.parametrize("way", WAYS)
async def test_a_run_that_is_to_go_on_without_its_client_ends_by_itself(
    street: Street, patient: Replica, http: httpx.AsyncClient, bus: redis.Redis, way: str
) -> None:
    chat = new_chat("goes-on")
    phase = Phase("", {"chunks": ["and on "], "repeat": 60, "pace_ms": 10}, heard=b"data: and")
    client = await begin(street, phase, chat, connecting=lambda: connect(patient.port))
    WAYS[way](client)
    with client:
        receipt = await receipt_of(bus, chat)
    assert (receipt["outcome"], receipt["saved"]) == ("done", True)
    [_, answer] = await messages_of(http, street.one, chat)
    assert answer == {"role": "assistant", "text": "and on " * 60}
    assert [line["sent"] for line in street.fake.log(chat) if line["event"] == "completed"] == [60]


# ---- patience as it is shipped
@long
@pytest.mark.timeout(150)
async def test_patience_as_it_is_shipped(street: Street, stock: Stock, bus: redis.Redis) -> None:
    """All at the same time, for it is long."""
    shipped = street.stack.add_replica(**over_bedrock(street.fake.url, street.directory))
    await asyncio.to_thread(shipped.wait_until_live, 60)
    await asyncio.gather(
        hosts_that_vanish(street, stock, bus),
        a_byte_a_second(street, shipped, bus),
        requests_that_never_end(shipped),
    )


async def hosts_that_vanish(street: Street, stock: Stock, bus: redis.Redis, port: int = 0) -> None:
    """Not noticed within a second: a network that is slow or changes looks the same for longer than that."""
    phases = PHASES[:5]  # a tool in a thread ends by itself sooner
    chats = {phase.name: new_chat("vanishes") for phase in phases}
    clients = [
        await begin(street, phase, chats[phase.name], connecting=lambda: stock.link.connect(port or stock.port))
        for phase in phases
    ]
    gone_at = time.monotonic()
    stock.link.cut()

    async def gone(phase: Phase) -> float:
        # A silent run gives the kernel nothing to wait for until a ping is said; it asks by itself about as late.
        silence = 0 if phase.name == "between tokens" else PING_AFTER
        receipt = await receipt_of(bus, chats[phase.name], TAKES_NOTHING + silence + 10)
        assert (receipt["outcome"], receipt["reason"]) == ("stopped", "disconnect")
        if phase.upstream:
            await street.logged(lambda line: line["event"] == "closed" and line.get("name") == chats[phase.name])
        return time.monotonic() - gone_at

    noticed = await asyncio.gather(*map(gone, phases))
    print(dict(zip(chats, (round(seconds, 1) for seconds in noticed), strict=True)))
    assert min(noticed) > 13, "a network that was away for this long is to be waited for"
    for client in clients:
        client.close()


@long
@pytest.mark.timeout(150)
@pytest.mark.skipif(not shutil.which("nginx"), reason="no nginx here")
async def test_a_host_that_vanishes_behind_nginx(street: Street, bus: redis.Redis, tmp_path: Path) -> None:
    """With what nginx.conf and docker-compose.yml of the Compose stack say of it."""
    [listen] = re.findall(r"listen 80 default_server(.*);", (ROOT / "local/nginx.conf").read_text())
    [retries] = re.findall(r'net.ipv4.tcp_retries2: "(\d+)"', (ROOT / "docker-compose.yml").read_text())
    with on_a_host_of_its_own(street) as stock:
        stock.link.server.run("sysctl", "-w", f"net.ipv4.tcp_retries2={retries}")
        conf = tmp_path / "nginx.conf"
        conf.write_text(f"""
            daemon off; pid {tmp_path}/pid; error_log {tmp_path}/error; events {{}}
            http {{ access_log off; server {{
                listen {stock.link.address}:8080{listen};
                location / {{
                    proxy_pass http://{stock.link.address}:{stock.port}; proxy_http_version 1.1;
                    proxy_buffering off; proxy_read_timeout 15m; proxy_set_header Connection close;
                }}
            }} }}""")
        nginx = subprocess.Popen(["ip", "netns", "exec", stock.link.server.name, "nginx", "-c", str(conf)])

        async def serves() -> bool:
            with contextlib.suppress(ConnectionRefusedError):
                stock.link.connect(8080).close()
                return True
            return False

        try:
            await until(serves)
            await hosts_that_vanish(street, stock, bus, port=8080)
        finally:
            nginx.terminate()
            nginx.wait()


async def a_byte_a_second(street: Street, shipped: Replica, bus: redis.Redis) -> None:
    """Its run is held up, and goes on when it reads; who has had no room for anything for TAKES_NOTHING has left."""
    chat = new_chat("byte")
    client = await held_up(street, chat, lambda: connect(shipped.port, receive_buffer=4096))
    with client:
        for _ in range(TAKES_NOTHING // 3):
            assert client.recv(1)
            await asyncio.sleep(1)
            assert not await last_of(bus, chat), "it has not left"
        taken = 0
        while taken < MEBIBYTE:  # more than all buffers hold: it goes on
            taken += len(await asyncio.to_thread(client.recv, 65536))
        assert not await last_of(bus, chat)
        stalled_at = time.monotonic()
        receipt = await receipt_of(bus, chat, TAKES_NOTHING + 30)
        assert receipt["reason"] == "disconnect"
        print("a client without room had left after", round(time.monotonic() - stalled_at, 1), "s")


async def requests_that_never_end(shipped: Replica) -> None:
    given_up = await asyncio.gather(*(drips(shipped.port, *say, seconds=90) for say in UNFINISHED.values()))
    bars = [BODY_SECONDS if name in ("a body", "a body in chunks") else HEAD_SECONDS for name in UNFINISHED]
    for name, (seconds, said), bar in zip(UNFINISHED, given_up, bars, strict=True):
        assert bar * 0.8 < seconds < bar + 10, name
        assert (b" 408 " in said) == (bar == BODY_SECONDS), name


def test_the_kernel_is_asked_to_tell_of_clients_that_vanish() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        set_patience(listener)
        with socket.create_connection(listener.getsockname()), listener.accept()[0] as taken:
            assert taken.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
            options = (socket.TCP_USER_TIMEOUT, socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT)
            assert [taken.getsockopt(socket.IPPROTO_TCP, o) for o in options] == [30_000, 15, 5, 3]
            assert taken.getsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT) == UNSENT
