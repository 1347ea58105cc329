"""Many chats at once, each read by a task of its own."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx2 as httpx

from tests.contract.client import Turn, new_run, script, sending
from tests.e2e.stack import Door

LONG: dict[str, Any] = {"text": "on and on ", "repeat": 1000, "pace_ms": 50}  # 150 s at 20 tokens a second


@dataclass
class Live:
    """A chat with a run, and the task that reads its stream. `name` stands in the fake Bedrock's log."""

    chat_id: str
    run_id: str
    message: str
    turn: Turn = field(init=False)
    begun: asyncio.Future[None] = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    reading: asyncio.Task[None] = field(init=False)

    @property
    def name(self) -> str:
        return script_name(self.chat_id)

    @property
    def replica(self) -> str:
        return str(self.turn.headers["x-replica"])

    @property
    def closing(self) -> list[tuple[str, str]]:
        return self.turn.closing

    async def ended(self, seconds: float = 20) -> Live:
        """Wait for the end of the stream, however it ends."""
        await asyncio.wait_for(asyncio.shield(self.reading), seconds)
        return self

    async def _read(self, http: httpx.AsyncClient, door: Door) -> None:
        try:
            async with sending(http, door, self.chat_id, self.message, run_id=self.run_id) as self.turn:
                assert self.turn.status == 200, await self.turn.response.aread()
                await self.turn.first_text()
                self.begun.set_result(None)
                await self.turn.finish(600)
        except httpx.TransportError:
            if not self.begun.done():
                raise  # else the replica died: `closing` is empty then
        except BaseException as error:
            if not self.begun.done():
                self.begun.set_exception(error)
            raise


def script_name(chat_id: str) -> str:
    return f"{chat_id}-script"


async def start(http: httpx.AsyncClient, door: Door, chat_id: str, **what: Any) -> Live:
    """Begin a run; returns when its first text is here."""
    live = Live(chat_id, new_run(), script(**(LONG | what), name=script_name(chat_id)))
    live.reading = asyncio.create_task(live._read(http, door))
    await asyncio.wait_for(asyncio.shield(live.begun), 30)
    return live


@asynccontextmanager
async def many(
    http: httpx.AsyncClient, door: Door, new_chat: Callable[[str], str], about: str, count: int, **what: Any
) -> AsyncIterator[list[Live]]:
    """`count` live runs; whatever is left of them at the end is hung up."""
    lives = list(await asyncio.gather(*(start(http, door, new_chat(about), **what) for _ in range(count))))
    try:
        yield lives
    finally:
        for live in lives:
            live.reading.cancel()
        await asyncio.gather(*(live.reading for live in lives), return_exceptions=True)


def spread_over(lives: Sequence[Live]) -> Counter[str]:
    """How many runs each replica has."""
    return Counter(live.replica for live in lives)
