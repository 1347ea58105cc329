"""What a serving process holds. Made by `bootstrap`; a test makes its own with fakes inside."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

from haltline.authentication import Authenticator
from haltline.chat_index import ChatIndex
from haltline.chats import ChatStore
from haltline.limits import Limits
from haltline.metrics import Metrics
from haltline.runs import Arrival, Receipt
from haltline.settings import Settings
from haltline.signals import SignalBus
from haltline.turns import Turns


class LiveRun(Protocol):
    """A run of this process."""

    @property
    def run_id(self) -> str:
        """Its ULID."""

    async def ended(self, seconds: float) -> Receipt | None:
        """Its receipt, None where it has not ended in time."""


class LocalRuns(Protocol):
    """The runs of this process, as the control routes see them: they never import the run engine."""

    on_ended: Callable[[], None] | None  # called when all that a run had to do is done

    @property
    def live_count(self) -> int:
        """Runs that have not ended."""

    def stop_here(self, chat_id: str, run_id: str | None, arrival: Arrival) -> LiveRun | None:
        """Halt a live run of this process without the bus: the named one, or one that arrived before the stop did.

        Returns it, None where there is none.
        """

    async def drain(self, grace: float) -> None:
        """Start nothing new, give live runs `grace` seconds, halt the rest, return when all have ended."""

    def end_grace(self) -> None:
        """Halt the runs now, whatever time `drain` gives or gave them. Call it in their event loop."""


@dataclass(slots=True)
class Resources:
    """Everything live. `runs` is None where the process serves no chats (the control function)."""

    settings: Settings
    bus: SignalBus
    store: ChatStore
    index: ChatIndex
    metrics: Metrics
    authenticator: Authenticator
    limits: Limits
    runs: LocalRuns | None = None
    at_rest_since: float = field(default_factory=time.time)  # when it was last asked; of the wall, which never freezes
    # Of the next few chats of a call that stops many.
    bulk_turns: Turns = field(default_factory=partial(Turns, 0.008, at_once=1, waiting=1000))
