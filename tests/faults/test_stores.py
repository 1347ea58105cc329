"""The session store breaks: the user hears of it, the chat is as it was before, and goes on when the store does.

A replica in a mount namespace of its own, whose SESSION_DIR lies on a tmpfs that is filled, made read-only, moved away;
and runs over a real S3 client, whose S3 refuses, resets and is silent.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import resource
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest
import pytest_asyncio

from haltline.chats import ChatStoreError
from haltline.chats_s3 import S3ChatStore
from haltline.events import Done, Failed, Stopped
from haltline.runs import Outcome
from haltline.settings import Settings
from tests.contract.client import (
    DONE,
    STOPPED,
    chat_url,
    http_client,
    live_run,
    messages_of,
    new_chat,
    said,
    say,
    script,
    stop,
)
from tests.faults.conftest import FULL
from tests.integration.conftest import aws, bucket, moto, valkey_url
from tests.moto import REGION, Aws
from tests.stack import Replica, Stack, running_stack
from tests.stops.bench import SOON, Bench, benched_with, new_name

__all__ = ["aws", "bucket", "moto", "valkey_url"]

pytestmark = pytest.mark.timeout(180)

Times = Callable[[int, int], int]

KILOBYTES = 400  # of the disk
HI = script(chunks=["Hello"])
LONG = script(chunks=["tick "], repeat=3000, pace_ms=5)
RUN_ENDS = 0.3  # seconds that the run of SHORT takes
SHORT = script(chunks=["tick "], repeat=30, pace_ms=10)


@pytest_asyncio.fixture
async def http() -> AsyncIterator[httpx.AsyncClient]:
    async with http_client() as client:
        yield client


# ---- a disk of its own


@dataclass
class Disk:
    """A tmpfs at `at`, which only processes of one mount namespace see; `root` leads there from outside."""

    holder: subprocess.Popen[bytes]
    at: Path
    _filling: Path = field(init=False)

    def __post_init__(self) -> None:
        self._filling = self.seen / "filling"

    @property
    def seen(self) -> Path:
        return Path(f"/proc/{self.holder.pid}/root") / self.at.relative_to("/")

    @property
    def sessions(self) -> Path:
        return self.seen / "sessions"

    @property
    def inside(self) -> list[str]:
        """A command that starts what follows it in that namespace."""
        return ["nsenter", "-t", str(self.holder.pid), "-m", "--"]

    def run(self, *command: str) -> None:
        ended = subprocess.run([*self.inside, *command], capture_output=True, text=True, check=False)
        assert ended.returncode == 0, ended.stderr

    @contextlib.contextmanager
    def full(self) -> Iterator[None]:
        try:
            with self._filling.open("wb") as file, contextlib.suppress(OSError):
                while True:
                    os.write(file.fileno(), bytes(4096))
            yield
        finally:
            self._filling.unlink(missing_ok=True)

    @contextlib.contextmanager
    def read_only(self) -> Iterator[None]:
        """As a disk becomes that has errors, for all who use it. What is being written then makes it wait."""
        try:
            for _ in range(500):
                command = [*self.inside, "mount", "-o", "remount,ro", str(self.at)]
                if subprocess.run(command, capture_output=True, check=False).returncode == 0:
                    break
                time.sleep(0.01)
            else:
                raise AssertionError("never read-only")
            yield
        finally:
            self.run("mount", "-o", "remount,rw", str(self.at))

    @contextlib.contextmanager
    def moved_away(self) -> Iterator[None]:
        away = self.seen / "away"
        self.sessions.rename(away)
        try:
            yield
        finally:
            assert not self.sessions.exists(), "something made it anew"
            away.rename(self.sessions)

    @contextlib.contextmanager
    def another_volume(self) -> Iterator[None]:
        """What is there while a volume is not mounted: a directory, with nothing in it."""
        place = str(self.at / "sessions")
        self.run("mount", "-t", "tmpfs", "-o", "size=100k", "none", place)
        try:
            yield
            assert os.listdir(self.sessions) == [], "something was written beside the volume"
        finally:
            self.run("umount", place)

    def files(self) -> dict[str, bytes]:
        """Every file but the locks, which are empty."""
        return {
            str(p.relative_to(self.sessions)): p.read_bytes()
            for p in sorted(self.sessions.rglob("*"))
            if p.is_file() and ".locks" not in p.parts
        }


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Disk]:
    at = Path(tmp_path_factory.mktemp("disk")).resolve()
    mount = f"mount -t tmpfs -o size={KILOBYTES}k none '{at}' && mkdir '{at}/sessions' && echo ready && exec cat"
    try:
        holder = subprocess.Popen(
            ["unshare", "-m", "--propagation", "private", "sh", "-c", mount],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
    except OSError as error:
        pytest.skip(f"no mount namespace can be made: {error}")
    assert holder.stdin
    assert holder.stdout
    assert holder.stderr
    try:
        if holder.stdout.readline() != b"ready\n":
            pytest.skip(f"no disk can be mounted in a namespace: {holder.stderr.read().decode().strip()}")
        yield Disk(holder, at)
    finally:
        holder.stdin.close()  # it ends with it, the namespace with its last process, and the disk with the namespace
        holder.wait(10)
        holder.stdout.close()
        holder.stderr.close()


@pytest.fixture(scope="module")
def on_disk(disk: Disk, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with running_stack(Path(tmp_path_factory.mktemp("on-disk")), replicas=0) as stack:
        replica = stack.add_replica(inside=disk.inside, SESSION_DIR=str(disk.at / "sessions"))
        replica.wait_until_live()
        yield stack


@pytest.fixture
def replica(on_disk: Stack) -> Replica:
    return on_disk.replicas[0]


@contextlib.contextmanager
def no_more_files(replica: Replica) -> Iterator[None]:
    """Whatever it wants to open now, it cannot. What is open stays so."""
    pid = replica.process.pid
    before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (0, before[1]))
    try:
        yield
    finally:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, before)


async def connected(http: httpx.AsyncClient, replica: Replica) -> None:
    """Have a connection that the next request goes over, since a replica without files cannot take another."""
    assert (await http.get(f"{replica.url}/live")).status_code == 200


BREAKS = ["full", "read_only", "moved_away", "another_volume", "no_more_files"]
UNWRITABLE = {  # what a user is told
    "full": "No space left on device",
    "read_only": "Read-only file system",
    "moved_away": "the session store's directory (SESSION_DIR) is gone",
    "another_volume": "the session store's directory (SESSION_DIR) is gone",
    "no_more_files": "Too many open files",
}
UNREADABLE = ["moved_away", "another_volume", "no_more_files"]  # the chats, too


def broken(how: str, disk: Disk, replica: Replica) -> contextlib.AbstractContextManager[None]:
    return no_more_files(replica) if how == "no_more_files" else getattr(disk, how)()


def clean(line: str, disk: Disk) -> str:
    """A line for a user, which names no path and no class."""
    assert str(disk.at) not in line
    assert ".json" not in line
    assert "Error" not in line.removeprefix("[ERROR]")
    assert line.splitlines() == [line]
    return line


async def test_a_run_on_a_broken_store(
    disk: Disk, on_disk: Stack, replica: Replica, http: httpx.AsyncClient, times: Times
) -> None:
    """503 with the reason where it shows before the stream, an error in it else; and nothing is changed."""
    for how in BREAKS * times(1, 5):
        chat, untouched = new_chat("store"), new_chat("untouched")
        for name in (chat, untouched):
            assert (await say(http, replica, name, HI)).closing == [DONE]
        before = disk.files()
        await connected(http, replica)
        with broken(how, disk, replica):
            for name in (chat, new_chat("fresh")):
                turn = await say(http, replica, name, HI)
                if how in UNREADABLE:
                    assert turn.status == 503
                    assert turn.headers["retry-after"]
                    assert UNWRITABLE[how] in clean(json.loads(bytes(turn.raw))["detail"], disk)
                else:
                    assert turn.text == ""
                    [(event, line)] = turn.closing
                    assert event == "error"
                    assert line.startswith("[ERROR] The answer could not be saved: ")
                    assert UNWRITABLE[how] in clean(line, disk)
            answer = await http.delete(chat_url(replica, chat))
            if how == "full":
                assert answer.status_code == 200  # which needs no room
                chat = untouched
            else:
                assert answer.status_code == 503
                assert UNWRITABLE[how] in clean(answer.json()["detail"], disk)
            for place in (chat_url(replica, chat), f"{chat_url(replica, chat)}/messages"):
                assert (await http.get(place)).status_code == (503 if how in UNREADABLE else 200)
        after = disk.files()
        assert after.items() <= before.items(), "a chat was changed, or a file was left"
        assert len(after) == len(before) - (how == "full")
        # It works again, without a restart.
        assert (await say(http, replica, chat, HI)).closing == [DONE]
        assert await messages_of(http, replica, chat) == said(HI, "Hello") * 2
        assert (await http.delete(chat_url(replica, chat))).status_code == 200


async def test_a_store_that_breaks_in_mid_run(
    disk: Disk, on_disk: Stack, replica: Replica, http: httpx.AsyncClient, times: Times, rnd: random.Random
) -> None:
    """At a random moment, before the run ends: what was saved until then stays, and the user hears of the rest."""
    for how in BREAKS * times(1, 8):
        chat = new_chat("mid")
        await say(http, replica, chat, HI)
        async with live_run(http, replica, chat, SHORT) as turn:
            await asyncio.sleep(rnd.uniform(0, RUN_ENDS / 2))  # meant to be a random moment
            before = disk.files()
            with broken(how, disk, replica):
                await turn.finish()
        [(event, line)] = turn.closing
        assert event == "error", turn.closing
        assert line.startswith("[ERROR] The answer could not be saved: ")
        assert UNWRITABLE[how] in clean(line, disk)
        assert disk.files() == before
        # The turn that has no answer is closed by the next one.
        assert (await say(http, replica, chat, HI)).closing == [DONE]
        assert await messages_of(http, replica, chat) == [
            *said(HI, "Hello"),
            *said(SHORT, "", stopped=True),
            *said(HI, "Hello"),
        ]


async def test_a_stop_on_a_broken_store_says_that_nothing_was_saved(
    disk: Disk, on_disk: Stack, replica: Replica, http: httpx.AsyncClient, times: Times
) -> None:
    for how in BREAKS if FULL else ["full", "no_more_files"]:
        chat = new_chat("stop")
        async with live_run(http, replica, chat, LONG) as turn:
            await connected(http, replica)
            with broken(how, disk, replica):
                answer = await stop(http, replica, chat, wait="5")
                await turn.finish()
        assert (answer["status"], answer.get("saved")) == ("stopped", False)
        assert turn.closing == [STOPPED]
        assert (await say(http, replica, chat, HI)).closing == [DONE]


async def test_a_list_that_cannot_be_made_is_not_taken_for_a_short_one(
    disk: Disk, on_disk: Stack, replica: Replica, http: httpx.AsyncClient
) -> None:
    """Redis has lost the list, and the store that it is made from cannot be read: later all chats are in it."""
    chats = [new_chat("listed") for _ in range(3)]
    for chat in chats:
        await say(http, replica, chat, HI)
    url = f"{replica.url}/api/v1/chats?limit=200"
    lose_list(on_disk)
    loop = disk.sessions / "loop.json"
    loop.symlink_to("loop.json")  # one file of many that cannot be opened
    answer = await http.get(url)
    loop.unlink()
    assert answer.status_code == 503, answer.text
    for how in UNREADABLE:
        lose_list(on_disk)
        await connected(http, replica)
        with broken(how, disk, replica):
            answer = await http.get(url)
        assert answer.status_code == 503, answer.text
        clean(answer.json()["detail"], disk)
        listed = (await http.get(url)).json()["chats"]
        assert {chat["chat_id"] for chat in listed} >= set(chats)


async def test_what_a_full_disk_leaves_does_not_grow(
    disk: Disk, on_disk: Stack, replica: Replica, http: httpx.AsyncClient, times: Times
) -> None:
    chat = new_chat("grow")
    await say(http, replica, chat, HI)
    with disk.full():
        before = disk.files()
        for _ in range(times(3, 30)):
            await say(http, replica, chat, HI)
            await say(http, replica, new_chat("none"), HI)
        assert disk.files() == before
    assert len(os.listdir(f"/proc/{replica.process.pid}/fd")) < 100


def lose_list(stack: Stack) -> None:
    import redis

    with redis.Redis.from_url(stack.redis_url) as client:
        client.delete("index:{chats}", "info:{chats}", "live:{chats}", "whole:{chats}", "gone:{chats}")


# ---- S3


@dataclass
class Faulty:
    """Stands before S3 and passes all on, unless `breaks` says otherwise of a request's method and target."""

    behind: int  # its port
    url: str = ""
    how: str = ""
    breaks: Callable[[str, str], bool] = lambda method, target: False
    broke: int = 0
    left: int = -1  # how many are still to break, -1 for all
    _serving: set[asyncio.Task[None]] = field(default_factory=set)

    @contextlib.asynccontextmanager
    async def serving(self) -> AsyncIterator[Faulty]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0, limit=1 << 20)
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        try:
            yield self
        finally:
            server.close()
            if self._serving:  # those that are silent
                await asyncio.wait(self._serving)

    @contextlib.contextmanager
    def broken(self, how: str, breaks: Callable[[str, str], bool], times: int = -1) -> Iterator[None]:
        self.how, self.breaks, self.broke, self.left = how, breaks, 0, times
        try:
            yield
        finally:
            self.breaks = lambda method, target: False

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task
        self._serving.add(task)
        try:
            await self._answer(reader, writer)
        finally:
            writer.close()
            self._serving.discard(task)

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            request = await reader.readuntil(b"\r\n\r\n")
            method, target = request.decode("latin-1").split(" ", 2)[:2]
            lines = request.decode("latin-1").lower().split("\r\n")
            if "expect: 100-continue" in lines:
                writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            length = next((int(x.partition(":")[2]) for x in lines if x.startswith("content-length:")), 0)
            request += await reader.readexactly(length)
            if self.left and self.breaks(method, target):
                self.left -= 1
                self.broke += 1
                await self._break(request, writer)
            else:
                writer.write(await self._passed_on(request))

    async def _break(self, request: bytes, writer: asyncio.StreamWriter) -> None:
        match self.how:
            case "SlowDown" | "InternalError":
                status = "503 Slow Down" if self.how == "SlowDown" else "500 Internal Server Error"
                body = f"<Error><Code>{self.how}</Code><Message>of bucket-1</Message></Error>"
                writer.write(f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode())
            case "reset":
                writer.transport.abort()
            case "cut off":
                writer.write(b'HTTP/1.1 200 OK\r\nContent-Length: 1000\r\nETag: "1"\r\n\r\n{')
            case "lost":
                await self._passed_on(request)
            case "silence":
                await asyncio.sleep(1.5)

    async def _passed_on(self, request: bytes) -> bytes:
        head, _, body = request.partition(b"\r\n\r\n")
        keep = [line for line in head.split(b"\r\n") if not line.lower().startswith((b"expect:", b"connection:"))]
        reader, writer = await asyncio.open_connection("127.0.0.1", self.behind)
        writer.write(b"\r\n".join([*keep, b"Connection: close", b"", b""]) + body)
        answer = await reader.read()
        writer.close()
        return (
            answer.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n", 1)
            if b"onnection: close" not in answer
            else answer
        )


HOW = ["SlowDown", "InternalError", "reset", "silence"]


def is_put(method: str, target: str) -> bool:
    return method == "PUT"


def is_get(method: str, target: str) -> bool:
    return method == "GET"


def is_list(method: str, target: str) -> bool:
    return method == "GET" and "list-type" in target


def is_delete(method: str, target: str) -> bool:
    return method == "DELETE"


@pytest.fixture
async def s3(aws: Aws, bucket: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[tuple[Faulty, S3ChatStore]]:
    async with Faulty(int(aws.url.rpartition(":")[2])).serving() as faulty:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", faulty.url)
        yield faulty, S3ChatStore(bucket, REGION, silence=0.5)


@pytest.fixture
async def on_s3(
    s3: tuple[Faulty, S3ChatStore], valkey_url: str, tmp_path: Path
) -> AsyncIterator[tuple[Bench, Faulty, S3ChatStore]]:
    faulty, store = s3
    settings = Settings(model_provider="scripted", session_dir=tmp_path, agent="tests.stops.agents:make")
    async with benched_with(settings, valkey_url, store=store) as bench:
        yield bench, faulty, store


def told(words: str, bucket: str) -> str:
    assert bucket not in words
    assert not any(x in words for x in ("127.0.0.1", "://", "Error", "Exception", "<"))
    return words


async def turn(bench: Bench, chat: str, message: str = HI) -> tuple[str, Any]:
    talk = await bench.start(chat, message)
    async with asyncio.timeout(SOON):
        await talk.rest()
    await talk.execution.ended(SOON)
    return talk.text, talk.events[-1]


long_round = pytest.mark.skipif(not FULL, reason="in the long round; test_chats_s3 has the short one")


@long_round
@pytest.mark.parametrize("how", HOW)
async def test_an_s3_that_fails_at_each_step(
    how: str, on_s3: tuple[Bench, Faulty, S3ChatStore], bucket: str, times: Times, rnd: random.Random
) -> None:
    bench, faulty, store = on_s3
    index = bench.runner._deps.index
    for _ in range(times(1, 3)):
        chat = new_name("s3")
        assert await turn(bench, chat) == ("Hello", Done())
        before = await store.load(chat)
        with faulty.broken(how, is_get), pytest.raises(ChatStoreError) as error:  # which the API answers by 503
            await bench.start(chat, HI)
        told(str(error.value), bucket)
        assert bench.runner.live_count == 0

        with faulty.broken(how, is_put):  # at the opening write
            text, closing = await turn(bench, chat)
        assert text == ""
        assert isinstance(closing, Failed)
        assert told(closing.reason, bucket).startswith("The answer could not be saved: S3 ")
        assert await store.load(chat) == before

        talk = await bench.start(chat, SHORT)  # at the closing one
        await talk.heard(rnd.randint(1, 20))
        opened = await store.load(chat)
        with faulty.broken(how, is_put):
            await talk.rest()
            receipt = await talk.execution.ended(SOON)
        assert receipt is not None
        assert not receipt.saved
        assert told(talk.events[-1].reason, bucket).startswith("The answer could not be saved: S3 ")
        assert await store.load(chat) == opened

        talk = await bench.start(chat, LONG)  # at that of a stopped run
        await talk.heard(2)
        with faulty.broken(how, is_put):
            halted = await talk.halt()
        assert halted.events[-1] == Stopped()
        assert halted.receipt.outcome is Outcome.STOPPED
        assert not halted.receipt.saved

        with faulty.broken(how, is_delete), pytest.raises(ChatStoreError) as error:
            await store.delete(await store.load(chat))
        told(str(error.value), bucket)
        with faulty.broken(how, is_list), pytest.raises(ChatStoreError) as error:
            await index.rebuild("")
        told(str(error.value), bucket)
        with faulty.broken(how, lambda m, t: is_get(m, t) and not is_list(m, t)), pytest.raises(ChatStoreError):
            await index.rebuild("")  # a list that lacks what could not be read would be taken for the whole

        assert await turn(bench, chat) == ("Hello", Done())  # it works again
        kept = [(m["role"], m["text"], m.get("stopped", False)) for m in (await store.load(chat)).messages]
        assert kept == [
            *[("user", HI, False), ("assistant", "Hello", False)],
            *[("user", SHORT, False), ("assistant", "", True)],
            *[("user", LONG, False), ("assistant", "", True)],
            *[("user", HI, False), ("assistant", "Hello", False)],
        ]
        await store.delete(await store.load(chat))


@long_round
@pytest.mark.parametrize("how", [*HOW[:3], "lost"])
async def test_an_s3_that_fails_once_is_asked_again(
    how: str, on_s3: tuple[Bench, Faulty, S3ChatStore], times: Times
) -> None:
    """At each step; with `lost` it has done what it was asked, and nobody heard."""
    bench, faulty, store = on_s3
    chat = new_name("once")
    for breaks in (is_put, is_get, is_put):
        with faulty.broken(how, breaks, times=1):
            assert await turn(bench, chat) == ("Hello", Done())
        assert faulty.broke == 1
    assert [m["text"] for m in (await store.load(chat)).messages] == [HI, "Hello"] * 3
    with faulty.broken(how, is_delete, times=1):
        await store.delete(await store.load(chat))
    assert (await store.load(chat)).version == 0
