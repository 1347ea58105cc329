"""Between a run and its client: a queue of events that outlives neither the closing event nor the client."""

from __future__ import annotations

import asyncio

from haltline.events import Closing, Event, Text

ROOM = 256 * 1024  # characters that may wait for a slow client before the run is held up


class EventStream:
    """One writer, one reader, one event loop. After a closing event nothing more is taken."""

    def __init__(self) -> None:
        self._events: list[Event] = []
        self._waiting = 0  # characters
        self._ready = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()
        self.closed = False  # the closing event was put
        self.left = False  # the client has gone

    def put(self, event: Event) -> bool:
        """Pass an event on. Returns False, and does nothing, after the closing one."""
        if self.closed:
            return False
        self.closed = isinstance(event, Closing)
        if not self.left:
            self._events.append(event)
            if isinstance(event, Text):
                self._waiting += len(event.text)
                if self._waiting > ROOM:
                    self._room.clear()
            self._ready.set()
        return True

    async def room(self) -> None:
        """Wait until the client has taken enough of what was put."""
        await self._room.wait()

    async def take(self, seconds: float) -> list[Event]:
        """All that was put since the last call; [] after `seconds` of silence or when the client left."""
        if not self._ready.is_set():
            try:
                async with asyncio.timeout(seconds):
                    await self._ready.wait()
            except TimeoutError:
                return []
        self._ready.clear()
        events, self._events, self._waiting = self._events, [], 0
        self._room.set()
        return events

    def leave(self) -> None:
        """The client has gone: drop what waits, wake both sides."""
        self.left = True
        self._events.clear()
        self._room.set()
        self._ready.set()
