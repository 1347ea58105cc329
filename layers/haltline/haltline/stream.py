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
        self._reader: asyncio.Future[None] | None = None  # what it waits for
        self._writer: asyncio.Future[None] | None = None
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
            _wake(self._reader)
        return True

    @property
    def full(self) -> bool:
        """Whether the writer is to wait for `room`."""
        return self._waiting > ROOM

    async def room(self) -> None:
        """Wait until the client has taken enough of what was put."""
        while self.full:
            self._writer = asyncio.get_running_loop().create_future()
            await self._writer

    async def take(self, seconds: float) -> list[Event]:
        """All that was put since the last call; [] after `seconds` of silence or when the client left."""
        if not self._events and not self.left:
            loop = asyncio.get_running_loop()
            self._reader = loop.create_future()
            timer = loop.call_later(seconds, _wake, self._reader)
            try:
                await self._reader
            finally:
                timer.cancel()
        events, self._events, self._waiting = self._events, [], 0
        _wake(self._writer)
        return events

    def leave(self) -> None:
        """The client has gone: drop what waits, wake both sides."""
        self.left = True
        self._events.clear()
        self._waiting = 0
        _wake(self._reader)
        _wake(self._writer)


def _wake(waiting: asyncio.Future[None] | None) -> None:
    if waiting is not None and not waiting.done():
        waiting.set_result(None)
