"""What a run is: its names, its reasons to stop, its stop token. No I/O, no event loop."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass, field
from enum import StrEnum

from ulid import ULID

from haltline.principals import ANYONE, Principal


class StopReason(StrEnum):
    """Why a run was halted."""

    USER = "user"  # a stop signal
    SUPERSEDED = "superseded"  # ?if_running=stop of the next message
    DELETED = "deleted"  # its chat was deleted
    DISCONNECT = "disconnect"  # its client left
    DEADLINE = "deadline"  # RUN_TIMEOUT
    SHUTDOWN = "shutdown"  # its replica is ending
    SIGNAL_LOST = "signal_lost"  # the bus was gone for too long
    TAKEN = "taken"  # its chat was taken by another run while its replica was not heard
    AGENT = "agent"  # the model used the stop tool

    @classmethod
    def of(cls, text: str) -> StopReason:
        """The reason that a stop carries; one that is not known, or that a person SET by hand, is a user's."""
        try:
            return cls(text)
        except ValueError:
            return cls.USER


class Outcome(StrEnum):
    """How a run ended."""

    DONE = "done"
    STOPPED = "stopped"
    ERROR = "error"
    LOST = "lost"  # the chat was taken by another run: nothing was written
    REFUSED = "refused"  # its principal has as much as it may: nothing was begun


def new_run_id() -> str:
    """A fresh ULID, 26 characters."""
    return str(ULID())


@dataclass(frozen=True, slots=True)
class Arrival:
    """When a request reached the product.

    `stamp`: ms since the epoch by the front door's clock, 0 where there is none. `read_at`: this process'
    monotonic clock in seconds when the request was first read; what the bus' clock is reckoned back from.
    """

    stamp: int = 0
    read_at: float = field(default_factory=time.monotonic)

    def covers(self, other: Arrival) -> bool:
        """Whether a stop that arrived then means a message that arrived at `other`; both were read by this process."""
        if self.stamp and other.stamp:
            return self.stamp >= other.stamp
        return self.read_at >= other.read_at

    @property
    def age_ms(self) -> float:
        """Milliseconds since the request was read, to the microsecond."""
        return round((time.monotonic() - self.read_at) * 1000, 3)


@dataclass(frozen=True, slots=True)
class Caller:
    """Who sent a request; and when its run must have ended, in `time.monotonic` seconds."""

    principal: Principal = ANYONE
    deadline: float = math.inf


class StopToken:
    """One per run. Fires once; the first reason stays.

    Callbacks run inside `stop`, in its thread, the latest first: what was opened last, a model's call, is shut first.
    `on_stop` and `off_stop` may be called from any thread; a callback that comes as the token fires is called too.
    """

    __slots__ = ("_callbacks", "_lock", "fired_at", "reason")

    def __init__(self) -> None:
        self.reason: StopReason | None = None
        self.fired_at = 0.0  # time.monotonic() seconds
        self._callbacks: list[Callable[[], None]] = []
        self._lock = threading.Lock()

    @property
    def stopped(self) -> bool:
        """Whether it has fired."""
        return self.reason is not None

    def stop(self, reason: StopReason) -> bool:
        """Fire. Returns whether this call was the one that did."""
        with self._lock:
            if self.reason is not None:
                return False
            self.reason, self.fired_at = reason, time.monotonic()
            callbacks, self._callbacks = self._callbacks, []
        failed: Exception | None = None
        for callback in reversed(callbacks):
            try:
                callback()
            except Exception as error:  # the others are called all the same
                failed = failed or error
        if failed:
            raise failed
        return True

    def on_stop(self, callback: Callable[[], None]) -> None:
        """Call `callback` when the token fires; at once where it has."""
        with self._lock:
            if self.reason is None:
                self._callbacks.append(callback)
                return
        callback()

    def off_stop(self, callback: Callable[[], None]) -> None:
        """Call it no longer."""
        with self._lock:
            if callback in self._callbacks:
                self._callbacks.remove(callback)


# The token of the run that the code runs for. Tools' threads inherit it, and so do agents inside of tools.
live_token: ContextVar[StopToken | None] = ContextVar("live_token", default=None)


@dataclass(slots=True)
class Run:
    """One execution of a turn by this replica.

    `claim` is what the bus gave when the chat was taken; it grows, so an older holder is told from a newer.
    `nonce` tells this attempt from another request that names the same run id.
    """

    chat_id: str
    run_id: str
    arrival: Arrival
    caller: Caller = Caller()
    token: StopToken = field(default_factory=StopToken)
    nonce: str = field(default_factory=new_run_id)
    claim: str = ""
    arrived_ms: str = ""  # the arrival as the bus reckoned it, to the microsecond
    deletes: bool = False  # it holds the chat to delete it
    begun_deleted: bool = False  # its chat was deleted after this request had left its client: it writes nothing
    ending: bool = False  # END is being said: what a look reads of it from here on may be of the next run
    closing_marked: bool = False  # the bus knows that the run is about to end


@dataclass(frozen=True, slots=True)
class Receipt:
    """What is told of a run at its end, to whoever waits for it.

    `halted_ms`: from the stop signal's reaching the owner to the closing frame handed to the stream.
    `upstream_closed_ms`: from the same moment to the end of the model call, None where none was open.
    """

    run_id: str
    outcome: Outcome
    reason: StopReason | None = None
    halted_ms: float | None = None
    upstream_closed_ms: float | None = None
    saved: bool = True

    @property
    def failed(self) -> bool:
        """Whether the user was told of an error, or should have been."""
        ended = self.outcome in (Outcome.ERROR, Outcome.LOST) or not self.saved
        return ended or self.reason in (
            StopReason.DEADLINE,
            StopReason.SHUTDOWN,
            StopReason.SIGNAL_LOST,
            StopReason.TAKEN,
        )


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of a run, as its model's provider counts them. `estimated` where a call was cut off before it told."""

    input_tokens: int = 0
    output_tokens: int = 0
    estimated: bool = False
