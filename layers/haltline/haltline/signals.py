"""The signal bus as the rest of the product sees it: a protocol, its answers, its errors. No I/O.

`redis_bus` implements it over Redis or Valkey. What it keeps: at most one live run a chat, every stop
delivered to the run it was meant for, every end told to whoever waits.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from haltline.runs import Arrival, Receipt, Run, StopReason

WAIT_FOR_END = 5.0  # seconds that whoever needs the chat waits for the end of a run that was told to halt


class BusUnavailable(Exception):
    """The signal bus did not answer: nothing was begun, stored or confirmed."""


@dataclass(frozen=True, slots=True)
class Begun:
    """The run holds its chat. `stopped` is the reason where a stop had covered it already."""

    stopped: StopReason | None = None


@dataclass(frozen=True, slots=True)
class Busy:
    """Another run holds the chat. `later`: it arrived after the refused one. `closing`: it was told to halt."""

    run_id: str
    owner: str
    nonce: str
    claim: str
    later: bool
    closing: bool


@dataclass(frozen=True, slots=True)
class Used:
    """The run id has ended already; it names one execution only."""


class StopState(StrEnum):
    """What a stop found."""

    LIVE = "live"  # a live run that it covers
    IDLE = "idle"  # none; the stop is stored
    ENDED = "ended"  # the run it names has ended


@dataclass(frozen=True, slots=True)
class StopVerdict:
    """The bus' answer to a stop. `run_id` is the run it covers, `receipt` how the named run had ended.

    `stamp`: its time in ms, by the bus. `lay_there`: it had been stored before, and no run has read it since.
    """

    state: StopState
    run_id: str = ""
    owner: str = ""
    receipt: Receipt | None = None
    stamp: str = ""
    lay_there: bool = False


class SignalBus(Protocol):
    """What the product asks of the bus, between entering and leaving it. Every verb may raise BusUnavailable."""

    async def __aenter__(self) -> SignalBus:
        """Start listening."""

    async def __aexit__(self, *_: object) -> None:
        """End it."""

    def renew(self) -> None:
        """Trust no connection that is open: for a process that was frozen, whose peers may have left meanwhile.

        Nothing is waited for here; the next verb that needs a connection opens it. Call it in the bus' event loop.
        """

    async def begin(self, run: Run, *, takeover: str = "", delete: bool = False) -> Begun | Busy | Used:
        """Take the chat for `run`, setting its claim. `takeover`: the claim of a dead holder to take it from."""

    async def closing(self, run: Run) -> None:
        """Mark that the run is about to end, so that the next request for its chat waits for it."""

    async def end(self, run: Run, receipt: Receipt) -> bool:
        """Free the chat, consume its stop, leave the receipt. False where the chat was not the run's any more."""

    async def holds(self, run: Run) -> bool:
        """Whether the chat is still this run's."""

    def certain(self, run: Run) -> bool:
        """Whether no other replica can have taken the chat of this run, which may not go on where one can."""

    async def until_certain(self, run: Run) -> None:
        """Wait until that is so. A run whose chat was taken is halted meanwhile. Raises nothing."""

    async def stop(
        self,
        chat_id: str,
        arrival: Arrival,
        *,
        run_id: str = "",
        reason: StopReason = StopReason.USER,
        wait: bool = False,
        stamp: str = "",
    ) -> StopVerdict:
        """Store a stop and push it to the run it covers.

        `wait`: this replica wants the receipt. `stamp`: the time that the same stop got when it was stored before.
        """

    async def wait_end(self, chat_id: str, run_id: str, seconds: float) -> Receipt | None:
        """The receipt of a run, or None when it did not come in time or its replica died."""

    @property
    def settled(self) -> bool:
        """Whether the bus is believed when it says that nobody has a chat.

        It is not while it is away, nor just after it came back, when not every replica has put back what it knows.
        """

    async def until_settled(self) -> None:
        """Wait for it, some seconds at the most."""

    async def is_live(self, busy: Busy) -> bool:
        """Whether the holder's replica still vouches for it."""

    async def live_among(self, chat_ids: Iterable[str]) -> dict[str, str]:
        """Of these chats, those with a live run, and its run id.

        A run that was told to halt is waited for, so that whoever has seen its closing frame finds its chat at rest.
        """

    async def going_on(self, runs: Mapping[str, str]) -> set[str]:
        """Of these runs, chat by nonce, those that hold their chats and were not told to halt. Two commands."""

    async def ping(self) -> None:
        """One round trip."""

    async def check(self) -> None:
        """Whether a stop could be stored: the bus answers and takes a write, which a full one or a copy does not."""
