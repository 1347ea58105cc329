"""The same product with another signal bus: a stop is a key, and every run asks for its own each 100 ms.

Routes, runs, agent, store and the list of chats are the product's; only what begins, ends and stops a run differs.
"""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from redis.asyncio import Redis

from haltline.agent import AgentSource
from haltline.app import make_app
from haltline.authentication import NoAuthentication
from haltline.bootstrap import start_logging
from haltline.chat_index import ChatIndex
from haltline.chats import FileChatStore
from haltline.limits import Limits
from haltline.prometheus import PrometheusMetrics
from haltline.redis_bus import RedisBus
from haltline.redis_scripts import mailbox_key
from haltline.resources import Resources
from haltline.runner import Deps, Runner
from haltline.runs import Arrival, Receipt, Run, StopReason
from haltline.settings import Settings
from haltline.signals import Begun, StopState, StopVerdict

EVERY = 0.1  # seconds


async def poll(redis: Redis, run: Run) -> None:
    """Ask for the run's stop until there is one, then halt it."""
    while not (run.token.stopped or await redis.getdel(mailbox_key(run.chat_id))):
        await asyncio.sleep(EVERY)
    run.token.stop(StopReason.USER)


async def set_stop(redis: Redis, chat_id: str) -> None:
    """Stop a chat."""
    await redis.set(mailbox_key(chat_id), int(time.time() * 1000), ex=3600)


class PollingBus(RedisBus):
    """Nobody vouches for a run, and nobody else can hold its chat: with chats of one client that is no difference."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._polls: dict[str, asyncio.Task[None]] = {}

    async def begin(self, run: Run, **_: Any) -> Begun:
        """Take the chat."""
        run.claim, run.arrived_ms, run.closing_marked = "1", str(time.time() * 1000), True
        self._polls[run.nonce] = asyncio.create_task(poll(self.redis, run))
        return Begun()

    async def end(self, run: Run, _: Receipt) -> bool:
        """Ask no longer."""
        self._polls.pop(run.nonce).cancel()
        return True

    async def holds(self, _: Run) -> bool:
        """Always."""
        return True

    async def stop(self, chat_id: str, _: Arrival, **__: Any) -> StopVerdict:
        """Leave the key for the run."""
        await set_stop(self.redis, chat_id)
        return StopVerdict(StopState.LIVE)


def make(name: str, redis_url: str, directory: Path) -> FastAPI:
    """One replica."""
    settings = Settings(replica_name=name, model_provider="scripted", session_dir=directory / "sessions")
    start_logging(settings)
    bus = PollingBus(redis_url, name, stop_ttl=settings.stop_signal_ttl, poll_interval=EVERY, run_timeout=600)
    store = FileChatStore(settings.session_dir)
    store.prepare()
    index, metrics = ChatIndex(bus.redis, bus, store), PrometheusMetrics()
    limits = Limits(bus.redis, bus)
    runs = Runner(Deps(bus, store, index, AgentSource(settings), metrics, limits, settings.run_timeout))
    return make_app(Resources(settings, bus, store, index, metrics, NoAuthentication(), limits, runs))
