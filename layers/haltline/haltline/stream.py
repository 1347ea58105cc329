"""Between a run and its client: a queue of events that outlives neither the closing event nor the client."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from haltline.events import Closing, Event, Text

ROOM = 256 * 1024  # characters that may wait for a slow client before the run is held up


class EventStream:
    """One writer, one reader, one event loop. After a closing event nothing more is taken.

    `pass_on` of the reader takes an event at once, in the writer's own step, while the reader waits and nothing is
    queued. Without it each event would wait for the reader's turn, which in a busy event loop comes a round later.
    """

    def __init__(self) -> None:
        self.pass_on: Callable[[Event], None] | None = None
        self._events: list[Event] = []
        self._waiting = 0  # characters
        self._reader: asyncio.Future[None] | None = None  # what it waits for
        self._writer: asyncio.Future[None] | None = None
        self._heard_at = 0.0  # by the loop's clock: when the reader began to wait, or was last passed something
        self.closed = False  # the closing event was put
        self.left = False  # the client has gone

    def put(self, event: Event) -> bool:
        """Pass an event on. Returns False, and does nothing, after the closing one."""
        if self.closed:
            return False
        self.closed = isinstance(event, Closing)
        if self.left:
            return True
        if self.pass_on is not None and not self._events and self._reader is not None and not self._reader.done():
            self._heard_at = asyncio.get_running_loop().time()
            self.pass_on(event)
            if self.closed:
                self.wake()
            return True
        self._events.append(event)
        if isinstance(event, Text):
            self._waiting += len(event.text)
        self.wake()
        return True

    def wake(self) -> None:
        """Let the reader go on: from here on until it waits again, events are queued."""
        _wake(self._reader)

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
        """All that was put since the last call and not passed on.

        [] after `seconds` of silence, when the reader was woken, or when the client left.
        """
        if not self._events and not self.left:
            loop = asyncio.get_running_loop()
            self._reader, self._heard_at = loop.create_future(), loop.time()
            self._timer = loop.call_later(seconds, self._look_whether_silent, seconds)
            try:
                await self._reader
            finally:
                self._timer.cancel()
        events, self._events, self._waiting = self._events, [], 0
        _wake(self._writer)
        return events

    def _look_whether_silent(self, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        left = self._heard_at + seconds - loop.time()
        if left > 0:
            self._timer = loop.call_later(left, self._look_whether_silent, seconds)
        else:
            self.wake()

    def leave(self) -> None:
        """The client has gone: drop what waits, wake both sides."""
        self.left = True
        self._events.clear()
        self._waiting = 0
        self.wake()
        _wake(self._writer)


def _wake(waiting: asyncio.Future[None] | None) -> None:
    if waiting is not None and not waiting.done():
        waiting.set_result(None)
