"""One event and what a function answers to it."""

from __future__ import annotations

import json
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

HTTP_INTEGRATION = "application/vnd.awslambda.http-integration-response"
_DELIMITER = b"\0" * 8  # between the prelude and the body


class Ending(StrEnum):
    """How an invocation ended."""

    ANSWERED = "answered"
    FAILED = "failed"  # the function said so, or its answer was cut off
    TIMED_OUT = "timed out"
    EXITED = "exited"  # a process of the function ended


@dataclass(frozen=True, slots=True)
class Chunk:
    """Bytes of the body as they came in one piece. `at`: seconds of `time.monotonic()`."""

    data: bytes
    at: float


@dataclass(frozen=True, slots=True)
class Prelude:
    """Status and headers of an HTTP answer. Names of headers are in lower case, values of one name joined by commas."""

    status: int
    headers: dict[str, str]
    cookies: list[str]


class Invocation:
    """Written by the Runtime API in its threads, read by whoever invoked the function.

    `timeout`: seconds from the moment the function is handed the event.
    """

    def __init__(self, event: bytes, timeout: float) -> None:
        self.event, self.timeout = event, timeout
        self.request_id = str(uuid.uuid4())
        self.prelude: Prelude | None = None
        self.chunks: list[Chunk] = []
        self.trailers: dict[str, str] = {}
        self.error: dict[str, Any] = {}  # errorType and errorMessage of one that did not end well
        self.ending: Ending | None = None
        self.begun_at: float | None = None  # seconds of time.monotonic()
        self.ended_at: float | None = None
        self._head: bytes | None = None  # of a prelude that is not complete
        self._left = False
        self._changed = threading.Condition()

    @property
    def body(self) -> bytes:
        """All that was said so far, without the prelude."""
        return b"".join(chunk.data for chunk in self.chunks)

    # ---- whoever invoked it
    def until(self, enough: Callable[[Invocation], bool], seconds: float = 20) -> Invocation:
        """Wait until `enough` or the end. Raises: TimeoutError after `seconds`."""
        with self._changed:
            if not self._changed.wait_for(lambda: self.ending or enough(self), seconds):
                raise TimeoutError(f"{self.request_id} has said {self.prelude} {self.body!r} and nothing more")
        return self

    def finish(self, seconds: float = 20) -> Invocation:
        """Wait for the end. Raises: TimeoutError after `seconds`."""
        return self.until(lambda _: False, seconds)

    def read(self) -> Iterator[Chunk]:
        """The body's chunks as they come, to the end."""
        seen = 0
        while self.ending is None or seen < len(self.chunks):
            self.until(lambda it, seen=seen: len(it.chunks) > seen, self.timeout + 60)  # type: ignore[misc]
            yield from self.chunks[seen : (seen := len(self.chunks))]

    def leave(self) -> None:
        """The client goes. The function is not told, and what it still says is dropped."""
        self._left = True

    # ---- the Runtime API
    def begin(self) -> int:
        """The function has it now. Returns the deadline in milliseconds of Unix time."""
        self.begun_at = time.monotonic()
        return round((time.time() + self.timeout) * 1000)

    def expect_prelude(self) -> None:
        """The response will begin with one."""
        self._head = b""

    def put(self, data: bytes) -> None:
        """A piece of the response has come."""
        at = time.monotonic()
        with self._changed:
            if self._head is not None:
                head, delimiter, data = (self._head + data).partition(_DELIMITER)
                self._head = None if delimiter else head
                if delimiter:
                    self.prelude = _prelude(json.loads(head))
            if self._head is None and data and not self._left and not self.ending:
                self.chunks.append(Chunk(data, at))
            self._changed.notify_all()

    def end(self, ending: Ending, error: dict[str, Any] | None = None) -> bool:
        """It is over; the first word counts. Returns False where it was over before."""
        with self._changed:
            if self.ending:
                return False
            self.ending, self.error, self.ended_at = ending, error or {}, time.monotonic()
            self._changed.notify_all()
            return True


def _prelude(told: dict[str, Any]) -> Prelude:
    headers = {
        name.lower(): ", ".join(value) if isinstance(value, list) else str(value)
        for name, value in (told.get("headers") or {}).items()
    }
    return Prelude(int(told.get("statusCode", 200)), headers, list(told.get("cookies") or []))
