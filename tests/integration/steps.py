"""Stand-ins whose every step a test takes by hand: an agent, and a store that can be held up or fail."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator
from typing import Any

from haltline.chats import ChatDocument, ChatStoreError, FileChatStore
from haltline.events import Text
from haltline.history import repaired
from haltline.runs import Usage


class StepTurn:
    """An agent's turn that says what the test says, when it says it."""

    closes_upstream = True
    usage = Usage(7, 3)

    def __init__(self, agents: StepAgents) -> None:
        self._agents = agents
        self.stopped_itself = False
        self.history: list[dict[str, Any]] = []
        self.partial = ""

    def restore(self, snapshot: str | None, unseen: list[dict[str, Any]]) -> None:
        self.history = [*(json.loads(snapshot) if snapshot else []), *unseen]

    async def events(self, message: str, invocation_state: dict[str, Any]) -> AsyncGenerator[Text, None]:
        self.history.append({"role": "user", "content": [{"text": message}]})
        self._agents.states.append(invocation_state)
        self._agents.started.set()
        try:
            while True:
                step = await self._agents.steps.get()
                if step is None:
                    break
                if isinstance(step, Exception):
                    raise step
                yield Text(step)
        except (asyncio.CancelledError, GeneratorExit):
            self._agents.cancelled.set()
            while self._agents.stubborn and not self._agents.let_go.is_set():
                with contextlib.suppress(asyncio.CancelledError):
                    await self._agents.let_go.wait()
            raise
        self.history.append({"role": "assistant", "content": [{"text": self.partial}]})
        self.stopped_itself = self._agents.stops_itself

    def seen(self, text: str) -> None:
        self.partial += text

    def tell_threads(self) -> None:
        self._agents.told += 1

    def snapshot(self, message: str, *, complete: bool) -> str:
        return json.dumps(repaired(self.history, self.partial))


class StepAgents:
    """Where runs get their agent. `say`, `end` and `fail` drive it; the events tell how far it is."""

    def __init__(self) -> None:
        self.steps: asyncio.Queue[str | Exception | None] = asyncio.Queue()
        self.started, self.cancelled, self.let_go = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self.may_make, self.making = asyncio.Event(), asyncio.Event()
        self.may_make.set()
        self.stubborn = self.stops_itself = False
        self.made = self.told = 0
        self.states: list[dict[str, Any]] = []

    async def make(self) -> StepTurn:
        self.making.set()
        await self.may_make.wait()
        self.made += 1
        return StepTurn(self)

    def say(self, *chunks: str) -> None:
        for chunk in chunks:
            self.steps.put_nowait(chunk)

    def end(self) -> None:
        self.steps.put_nowait(None)

    def fail(self, error: Exception) -> None:
        self.steps.put_nowait(error)


class StepStore(FileChatStore):
    """Files, but a load waits while `may_load` is clear, a save while `free` is, and fails while `broken`."""

    def __init__(self, directory: Any) -> None:
        super().__init__(directory)
        self.free, self.saving = asyncio.Event(), asyncio.Event()
        self.free.set()
        self.may_load = asyncio.Event()
        self.may_load.set()
        self.broken = False

    async def load(self, chat_id: str) -> ChatDocument:
        await self.may_load.wait()
        return await super().load(chat_id)

    async def save(self, document: ChatDocument) -> None:
        self.saving.set()
        await self.free.wait()
        if self.broken:
            raise ChatStoreError("the session store cannot be written: No space left on device")
        await super().save(document)
