"""Runs over a real Valkey and the real Bedrock client, stopped through another replica's bus, and what was seen."""

from __future__ import annotations

import asyncio
import gc
import itertools
import json
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from haltline.agent import AgentSource
from haltline.bedrock import close_connections
from haltline.chat_index import ChatIndex
from haltline.chats import ChatStore, FileChatStore
from haltline.events import Done, Event, Text
from haltline.execution import Execution
from haltline.history import STOPPED_NOTE
from haltline.limits import Limits
from haltline.metrics import Metrics
from haltline.redis_bus import RedisBus
from haltline.runner import Deps, Runner
from haltline.runs import Arrival, Receipt
from haltline.serve import Collector
from haltline.settings import Settings
from tests.fake_bedrock import RunningFakeBedrock
from tests.stops.agents import PROBES, Probe

SOON = 10.0  # seconds: a deadline for what must happen, never a measure

_names = itertools.count()


def script(**what: Any) -> str:
    """A message that tells the fake Bedrock what to do."""
    return "/script " + json.dumps(what)


def new_name(what: str) -> str:
    """A name that no other chat or script of this process has."""
    return f"{what}-{next(_names)}-{time.monotonic_ns()}"


@dataclass
class Halted:
    """A stopped run. Times in ms from the moment the stop was given to the stopper's bus."""

    events: list[Event]
    receipt: Receipt
    stopped_at: float  # time.monotonic()
    frame_ms: float

    @property
    def frame_at(self) -> float:
        return self.stopped_at + self.frame_ms / 1000

    @property
    def text(self) -> str:
        return "".join(e.text for e in self.events if isinstance(e, Text))


@dataclass
class Bench:
    """`runner` runs the chats over `owner`; stops are given to `stopper`."""

    runner: Runner
    store: ChatStore
    owner: RedisBus
    stopper: RedisBus
    fake: RunningFakeBedrock | None

    async def close_idle(self) -> None:
        """Close every connection that is only kept for the next use."""
        close_connections()
        for bus in (self.owner, self.stopper):
            await bus.redis.connection_pool.disconnect(inuse_connections=False)

    async def start(self, chat: str, message: str) -> Talk:
        PROBES[chat] = Probe()
        return Talk(self, chat, await self.runner.start(chat, message, Arrival()), PROBES[chat])

    async def next_turn(self, chat: str) -> str:
        """One more turn, which must end by itself. Returns its text."""
        talk = await self.start(chat, script(text="fine again", pace_ms=0))
        await talk.rest()
        assert talk.events[-1] == Done(), talk.events[-1]
        return talk.text

    async def logged(self, name: str, *events: str) -> dict[str, Any]:
        """The first line of the fake Bedrock's log about the request `name`."""
        assert self.fake
        return await asyncio.to_thread(
            self.fake.wait_for, lambda line: line.get("name") == name and line["event"] in events, SOON
        )


@dataclass
class Talk:
    """One run and what its client has seen of it."""

    bench: Bench
    chat: str
    execution: Execution
    probe: Probe
    events: list[Event] = field(default_factory=list)

    @property
    def text(self) -> str:
        return "".join(e.text for e in self.events if isinstance(e, Text))

    @property
    def over(self) -> bool:
        return bool(self.events) and not isinstance(self.events[-1], Text)

    async def heard(self, words: int) -> None:
        """Wait for so many words."""
        while len(self.text.split()) < words:
            events = await self.execution.stream.take(SOON)
            assert events, "nothing was said"
            self.events += events

    async def entered(self, *tools: str) -> None:
        """Wait until these tools, and these only, are entered."""
        async with asyncio.timeout(SOON):
            assert {await self.probe.entered.get() for _ in tools} == set(tools)

    async def rest(self) -> None:
        while not self.over:
            events = await self.execution.stream.take(SOON)
            assert events, "no closing event"
            self.events += events

    async def halt(self) -> Halted:
        """Stop it through the other replica; returns when the run has ended."""
        closing = asyncio.create_task(self._closing())
        await asyncio.sleep(0)  # it listens
        at = time.monotonic()
        await self.bench.stopper.stop(self.chat, Arrival())
        frame_at = await closing
        receipt = await self.execution.ended(SOON)
        assert receipt is not None, "hung"
        return Halted(self.events, receipt, at, (frame_at - at) * 1000)

    async def _closing(self) -> float:
        await self.rest()
        return time.monotonic()

    async def kept(self) -> tuple[str, str]:
        """The answer's text in the transcript, and in what the model is told of the turn."""
        document = await self.bench.store.load(self.chat)
        mine = [m for m in document.messages if m["run_id"] == self.execution.run_id]
        assert [m["role"] for m in mine] == ["user", "assistant"], mine
        history = (json.loads(document.snapshot)["data"]["messages"] if document.snapshot else []) + document.unseen
        asked = max(i for i, m in enumerate(history) if m["role"] == "user" and any("text" in b for b in m["content"]))
        told = [
            block["text"]
            for m in history[asked:]
            if m["role"] == "assistant"
            for block in m["content"]
            if "text" in block
        ]
        return str(mine[1]["text"]), "".join(t for t in told if t != STOPPED_NOTE)


@contextmanager
def collected_as_in_a_replica(runner: Runner | None = None) -> Iterator[None]:
    """The garbage collector's pauses are part of what is measured, so they are those of a replica."""
    before = gc.get_threshold()
    gc.collect()
    collector = Collector(lambda: runner.live_count if runner else 0)
    if runner:
        runner.on_ended = collector.run_ended
    try:
        yield
    finally:
        gc.unfreeze()
        gc.set_threshold(*before)


@asynccontextmanager
async def benched(
    fake: RunningFakeBedrock, valkey_url: str, directory: Path, *, agent: str = "make", provider: str = "bedrock"
) -> AsyncIterator[Bench]:
    """`agent` is a name of tests.stops.agents. The environment must lead the Bedrock client to `fake`."""
    settings = Settings(
        model_provider=provider,
        agent=f"tests.stops.agents:{agent}",
        session_dir=directory,
        bedrock_model_id="fake.model",
    )
    async with benched_with(settings, valkey_url, fake) as bench:
        yield bench


@asynccontextmanager
async def benched_with(
    settings: Settings, valkey_url: str, fake: RunningFakeBedrock | None = None, store: ChatStore | None = None
) -> AsyncIterator[Bench]:
    """The same with other settings; without a fake where no Bedrock is called."""
    agents, store = AgentSource(settings), store or FileChatStore(settings.session_dir)
    async with (
        RedisBus(valkey_url, "owner", stop_ttl=3600, poll_interval=30, run_timeout=600) as owner,
        RedisBus(valkey_url, "stopper", stop_ttl=3600, poll_interval=30, run_timeout=600) as stopper,
    ):
        index = ChatIndex(owner.redis, owner, store)
        runner = Runner(Deps(owner, store, index, agents, Metrics(), Limits(owner.redis, owner), settings.run_timeout))
        try:
            with collected_as_in_a_replica(runner):
                yield Bench(runner, store, owner, stopper, fake)
        finally:
            await runner.drain(0)
            close_connections()
