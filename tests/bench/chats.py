"""What it takes to restore and to save a long chat, and to list many. Milliseconds on the clock.

- A chat of 500 messages, all of which its agent remembers (with Strands' own window of 40 everybody has less to do),
  in files and in S3. *Restore*: from the store to an agent that is ready to be called. *Save*: at the end of a turn,
  the snapshot and the closing write, which for files includes fsync. Beside it Strands' FileSessionManager and
  S3SessionManager with the same agent: to restore it, and all that they write in one turn.
  S3 is moto's server, on loopback and in a process of its own. What the disk, or moto and botocore, take for as many
  bytes is beside it, too. Strands writes a small file a message, and without fsync.
- The first page of the list of chats in front of 100, 1,000 and 10,000 chats in files, beside a look at each file.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import boto3
from pydantic_core import to_json
from strands import Agent
from strands.agent.conversation_manager import NullConversationManager
from strands.models import Model
from strands.session import FileSessionManager, RepositorySessionManager, S3SessionManager

from haltline import default_agent
from haltline.agent import AgentSource
from haltline.chat_index import ChatIndex
from haltline.chats import ChatDocument, ChatStore, FileChatStore
from haltline.chats_s3 import S3ChatStore
from haltline.models import make_model
from haltline.redis_bus import RedisBus
from haltline.settings import Settings
from haltline.transcript import close_turn, open_turn
from tests.bench.figures import Figure
from tests.contract.client import script
from tests.moto import REGION
from tests.stack import ROOT, running_stack
from tests.stops.bench import collected_as_in_a_replica
from tests.stops.figures import percentile

Times = defaultdict[str, list[float]]  # milliseconds of each time

BAR = 10  # ms
FLAT = 1.25  # times as long in front of 100 times as many chats
CHAT, BUCKET, PAGE = "long-chat", "chats", 50
ANSWER = "This is one of many sentences in an answer that is as long as answers are. " * 8
QUESTION = script(chunks=[ANSWER[:300], ANSWER[300:]], pace_ms=0)


def measure(quick: bool) -> list[Figure]:
    messages, sizes = (100, (100, 1000)) if quick else (500, (100, 1000, 10_000))
    with tempfile.TemporaryDirectory() as directory, collected_as_in_a_replica():
        return [
            *asyncio.run(_long(Path(directory), messages, quick)),
            *asyncio.run(_list(Path(directory), sizes, rounds=20 if quick else 100, scans=2 if quick else 4)),
        ]


# ---- a long chat
def make_agent(model: Model, **more: Any) -> Agent:
    """The shipped agent, but for its memory."""
    return Agent(
        model=model,
        system_prompt=default_agent.SYSTEM_PROMPT,
        tools=[default_agent.clock, default_agent.calculator, default_agent.stop],
        callback_handler=None,
        conversation_manager=NullConversationManager(),
        **more,
    )


async def _long(directory: Path, messages: int, quick: bool) -> list[Figure]:
    first = await LongChat.of(messages)
    if quick:
        return await _in_files(directory, first, rounds=8)
    with _moto_apart() as environment:
        figures = await _in_files(directory, first, rounds=40)
        os.environ.update(environment())
        return [*figures, *await _in_s3(first, rounds=20, theirs=2)]


async def _in_files(directory: Path, first: LongChat, rounds: int) -> list[Figure]:
    ours, theirs = directory / "ours", directory / "theirs"
    theirs.mkdir()
    chat = await first.kept_in(FileChatStore(ours))
    managed = Managed(chat, lambda: FileSessionManager(CHAT, storage_dir=str(theirs)))
    bare: Times = defaultdict(list)
    body, fresh = to_json(first.document), directory / "bare.tmp"
    for _ in range(rounds):
        await chat.turn()
        await managed.turn()
        with _timed(bare["save"]), fresh.open("wb") as out:
            out.write(body)
            out.flush()
            os.fsync(out.fileno())
            fresh.replace(directory / "bare")
        with _timed(bare["restore"]):
            (directory / "bare").read_bytes()
    return _kept("files", chat, managed.times, "Strands' FileSessionManager", bare, ("a bare read", "write and fsync"))


async def _in_s3(first: LongChat, rounds: int, theirs: int) -> list[Figure]:
    session = boto3.Session(region_name=REGION)  # one for all, which spares it half of what a manager takes
    s3 = session.client("s3")
    s3.create_bucket(Bucket=BUCKET, CreateBucketConfiguration={"LocationConstraint": REGION})
    chat = await first.kept_in(S3ChatStore(BUCKET, REGION))
    managed = Managed(chat, lambda: S3SessionManager(CHAT, BUCKET, boto_session=session))
    bare: Times = defaultdict(list)
    body = to_json(first.document)
    for n in range(rounds):
        await chat.turn()
        if n % (rounds // theirs) == 0:
            await managed.turn()
        with _timed(bare["save"]):
            s3.put_object(Bucket=BUCKET, Key="bare", Body=body)
        with _timed(bare["restore"]):
            s3.get_object(Bucket=BUCKET, Key="bare")["Body"].read()
    return _kept("S3", chat, managed.times, "Strands' S3SessionManager", bare, ("a bare GET", "a bare PUT"))


def _kept(
    where: str, chat: LongChat, theirs: Times, name: str, bare: Times, bare_names: tuple[str, str]
) -> list[Figure]:
    figures = []
    for verb, bare_name in zip(("restore", "save"), bare_names, strict=True):
        times = chat.times[verb]
        ours, least = percentile(times, 0.5), percentile(bare[verb], 0.5)
        beside = {name: percentile(theirs[verb], 0.5), bare_name: least}
        more: dict[str, Any] = {"p99": percentile(times, 0.99), "times": len(times)}
        if verb == "save":
            more |= {f"{part}_p50": percentile(chat.times[part], 0.5) for part in ("snapshot", "open")}
        why = f"{bare_name} of as many bytes took {least:.1f} ms of it" if ours > BAR else ""
        if why and verb == "save":
            why += f", the snapshot {more['snapshot_p50']:.1f} ms; the rest is JSON"
        what = f"{verb} a chat of {len(chat.document.messages)} messages, {where}"
        figures.append(Figure(what, "ms", ours, beside, bar=f"<= {BAR} ms", met=ours <= BAR, why=why, more=more))
    return figures


@dataclass
class LongChat:
    """A chat as Haltline keeps it. Each turn adds two messages to it."""

    document: ChatDocument
    agents: AgentSource
    store: ChatStore
    times: Times = field(default_factory=lambda: defaultdict(list))

    @classmethod
    async def of(cls, messages: int) -> LongChat:
        """Made by real turns of one agent; not yet kept anywhere."""
        agents = AgentSource(Settings(model_provider="scripted", agent=f"{__name__}:make_agent"))
        document, turn = ChatDocument(chat_id=CHAT), await agents.make()
        for n in range(messages // 2):
            open_turn(document, QUESTION, str(n))
            text = "".join([piece.text async for piece in turn.events(QUESTION, {})])
            close_turn(document, QUESTION, text, str(n), snapshot="", stopped=False)
        document.snapshot = turn.snapshot(QUESTION, complete=True)
        return cls(document, agents, FileChatStore(Path()))

    async def kept_in(self, store: ChatStore) -> LongChat:
        """The same chat in a store."""
        document = self.document.model_copy(deep=True)
        await store.save(document)
        return LongChat(document, self.agents, store)

    async def turn(self) -> None:
        """What a run does with the store."""
        with _timed(self.times["restore"]):
            document = await self.store.load(CHAT)
            turn = await self.agents.make()
            turn.restore(document.snapshot, document.unseen)
        with _timed(self.times["open"]):
            open_turn(document, QUESTION, "run")
            await self.store.save(document)
        text = "".join([piece.text async for piece in turn.events(QUESTION, {})])
        with _timed(self.times["save"]):
            with _timed(self.times["snapshot"]):
                snapshot = turn.snapshot(QUESTION, complete=True)
            close_turn(document, QUESTION, text, "run", snapshot=snapshot, stopped=False)
            await self.store.save(document)


class Managed:
    """The same with one of Strands' session managers, which writes in hooks of the agent."""

    def __init__(self, chat: LongChat, make: Callable[[], RepositorySessionManager]) -> None:
        self._make = make
        self.times: Times = defaultdict(list)
        remembered = json.loads(chat.document.snapshot or "")["data"]["messages"]
        self._model, self._count = make_model(Settings(model_provider="scripted")), len(remembered)
        make_agent(self._model, messages=remembered, agent_id="agent", session_manager=make())  # which writes them

    async def turn(self) -> None:
        with _timed(self.times["restore"]):
            manager = self._make()
            agent = make_agent(self._model, agent_id="agent", session_manager=manager)
        assert len(agent.messages) >= self._count
        spent: list[float] = []
        for name in ("append_message", "sync_agent"):
            setattr(manager, name, _timing(getattr(manager, name), spent))
        async for _ in agent.stream_async(QUESTION):
            pass
        self.times["save"].append(sum(spent))


def _timing(write: Callable[..., None], spent: list[float]) -> Callable[..., None]:
    def timed(*args: Any, **kwargs: Any) -> None:
        with _timed(spent):
            write(*args, **kwargs)

    return timed


@contextmanager
def _timed(into: list[float]) -> Iterator[None]:
    began = time.perf_counter()
    yield
    into.append((time.perf_counter() - began) * 1000)


@contextmanager
def _moto_apart() -> Iterator[Callable[[], dict[str, str]]]:
    """Moto in a process of its own, for a lock of its own on the interpreter: a call for what leads there."""
    command = [sys.executable, "-c", _MOTO]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin
        assert process.stdout
        lines = process.stdout
        try:
            yield lambda: json.loads(lines.readline())
        finally:
            process.stdin.close()


_MOTO = """
import json, sys
from tests.moto import running_aws
with running_aws() as aws:
    print(json.dumps(aws.environment), flush=True)
    sys.stdin.read()
"""


# ---- many chats
async def _list(directory: Path, sizes: tuple[int, ...], rounds: int, scans: int) -> list[Figure]:
    """Each size has a directory and a database of one Valkey; the largest is what the replica serves."""
    pages: dict[int, list[float]] = defaultdict(list)
    scanned: dict[int, list[float]] = defaultdict(list)
    http_times: Times = defaultdict(list)
    most = sizes[-1]
    with running_stack(directory, replicas=1) as stack:
        async with AsyncExitStack() as entered:
            indexes, places, rebuilt = {}, {}, 0.0
            for n, size in enumerate(reversed(sizes)):
                places[size] = stack.session_dir if n == 0 else directory / f"{size}-chats"
                _write_chats(places[size], size)
                url = stack.redis_url.removesuffix("/0") + f"/{n}"
                bus = RedisBus(url, f"list{n}", stop_ttl=60, poll_interval=30, run_timeout=60)
                await entered.enter_async_context(bus)
                indexes[size] = ChatIndex(bus.redis, bus, FileChatStore(places[size]))
                began = time.perf_counter()
                await indexes[size].rebuild("")
                rebuilt = rebuilt if n else time.perf_counter() - began
            replica = http.client.HTTPConnection("127.0.0.1", stack.replicas[0].port)
            for n in range(rounds):
                for size in (*sizes[n % len(sizes) :], *sizes[: n % len(sizes)]):  # nobody is always first
                    index = indexes[size]
                    with _timed(pages[size]):
                        page = await index.page("", PAGE, None, None)
                    assert page.count == size
                    assert len(page.chats) == min(PAGE, size)
                    if n < scans:
                        with _timed(scanned[size]):
                            _looked_at_each(places[size])
                for path in (f"/api/v1/chats?limit={PAGE}", "/live"):
                    with _timed(http_times[path]):
                        _get(replica, path)
            replica.close()
    middle = {size: percentile(times, 0.5) for size, times in pages.items()}
    listed, alive = (percentile(times, 0.5) for times in http_times.values())
    look = {size: percentile(times, 0.5) for size, times in scanned.items()}
    growth, their_growth = middle[most] / middle[sizes[0]], look[most] / look[sizes[0]]
    more = {"ms": middle, "p99": percentile(pages[most], 0.99), "directory_scan_ms": look, "made_again_s": rebuilt}
    return [
        Figure(
            f"first page of {most:,} chats",
            "ms",
            middle[most],
            {**{f"of {size:,}": middle[size] for size in sizes[:-1]}, "reading each file": look[most]},
            bar=f"<= {BAR} ms",
            met=middle[most] <= BAR,
            more=more,
        ),
        Figure(
            f"first page of {most:,} chats to that of {sizes[0]:,}",
            "times",
            growth,
            {"reading each file": their_growth},
            bar=f"flat: <= {FLAT}",
            met=growth <= FLAT,
        ),
        Figure(
            f"first page of {most:,} chats, over HTTP",
            "ms",
            listed,
            {"GET /live": alive},
            bar=f"<= {BAR} ms",
            met=listed <= BAR,
            more={"p99": percentile(next(iter(http_times.values())), 0.99)},
        ),
    ]


def _write_chats(directory: Path, count: int) -> None:
    """Of ten messages each, under names that nobody will ask for one by one."""
    directory.mkdir(exist_ok=True)
    for n in range(count):
        document = ChatDocument(chat_id=f"chat-{n}", version=1)
        for _ in range(5):
            document.append("user", "What is there to be said of this?", "run")
            document.append("assistant", ANSWER, "run")
        (directory / f"{n}.json").write_bytes(to_json(document))


def _looked_at_each(directory: Path) -> list[Any]:
    """The first page as a store without an index makes it."""
    with os.scandir(directory) as files:
        chats = [json.loads(Path(file).read_bytes()) for file in files if file.name.endswith(".json")]
    chats.sort(key=lambda chat: chat["messages"][-1]["at"], reverse=True)
    return [(chat["chat_id"], len(chat["messages"])) for chat in chats[:PAGE]]


def _get(connection: http.client.HTTPConnection, path: str) -> None:
    connection.request("GET", path)
    answer = connection.getresponse()
    assert answer.status == 200, answer.read()
    answer.read()
