"""Starts runs, knows those that live in this process, and ends them when the process must."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from loguru import logger

from haltline.execution import Execution
from haltline.principals import LimitReached
from haltline.runs import Arrival, Caller, Outcome, Receipt, Run, StopReason, new_run_id
from haltline.signals import BusUnavailable
from haltline.taking import take_chat

if TYPE_CHECKING:
    from haltline.agent import AgentSource
    from haltline.announcements import Announcements
    from haltline.chat_index import ChatIndex
    from haltline.chats import ChatDocument, ChatStore
    from haltline.limits import Limits
    from haltline.metrics import Metrics
    from haltline.signals import SignalBus


UNWIND = 5  # seconds beyond SHUTDOWN_GRACE for the last closing frames and writes


class Draining(Exception):
    """The replica has ended its runs and starts nothing new."""


@dataclass(frozen=True, slots=True)
class Deps:
    """What every run needs. `run_timeout` in seconds; `max_chats` of one principal, 0 for no limit."""

    bus: SignalBus
    store: ChatStore
    index: ChatIndex
    agents: AgentSource
    metrics: Metrics
    limits: Limits
    run_timeout: float
    max_chats: int = 0
    announcements: Announcements | None = None


class Runner:
    """One a process."""

    def __init__(self, deps: Deps) -> None:
        self._deps = deps
        self._live: dict[str, Execution] = {}  # by nonce
        self._tasks: set[asyncio.Task[None]] = set()  # of these, and of those over that are being announced
        self._beginning = 0
        self._quiet = asyncio.Event()
        self._quiet.set()
        self.on_ended: Callable[[], None] | None = None  # called when all that a run had to do is done
        self._ends_at: float | None = None  # by the loop's clock, once the replica drains
        self._grace_over = False

    @property
    def live_count(self) -> int:
        """Runs that have not ended."""
        return len(self._live)

    async def start(
        self,
        chat_id: str,
        message: str,
        arrival: Arrival,
        *,
        run_id: str | None = None,
        stop_first: bool = False,
        caller: Caller = Caller(),  # noqa: B008 - frozen
    ) -> Execution:
        """Take the chat and start a run.

        Raises: ChatBusy, RunIdUsed, LimitReached, BusUnavailable, ChatStoreError, Draining.
        """
        if self._grace_over:
            raise Draining
        run = Run(chat_id, run_id or new_run_id(), arrival, caller)
        reason = StopReason.SUPERSEDED if stop_first else None
        # Shielded: a client that leaves now must not leave a chat behind that nobody ends.
        beginning = asyncio.create_task(self._begin(run, message, reason))
        self._beginning += 1
        self._quiet.clear()
        beginning.add_done_callback(self._begun)
        try:
            return await asyncio.shield(beginning)
        except asyncio.CancelledError:
            beginning.add_done_callback(_nobody_reads)
            raise

    async def _begin(self, run: Run, message: str, stop_first: StopReason | None) -> Execution:
        document = await self._deps.store.load(run.chat_id)
        begun = await take_chat(self._deps.bus, run, stop_first=stop_first)
        if begun.stopped:
            run.begun_deleted = begun.stopped is StopReason.DELETED
            run.token.stop(begun.stopped)
        await self._admit(run, document, begun.stopped)
        execution = Execution(run, message, document, self._deps)
        if self._grace_over:
            run.token.stop(StopReason.SHUTDOWN)
        self._live[run.nonce] = execution
        self._deps.metrics.run_began()
        self._tasks.add(execution.task)
        execution.over.add_done_callback(lambda _: self._over(execution))
        execution.task.add_done_callback(self._gone)
        logger.info("chat_id=<{}> run_id=<{}> | run begun", run.chat_id, run.run_id)
        return execution

    async def _admit(self, run: Run, document: ChatDocument, stopped: StopReason | None) -> None:
        """Count a run that holds its chat, and the chat where it is new. Gives the chat back where it raises.

        One that was stopped before it began calls no model, so it takes no run's place; it may write a chat all the
        same.
        """
        deps = self._deps
        try:
            if not stopped:
                await deps.limits.count_run(run)
            if deps.max_chats and not run.begun_deleted:
                await self._admit_chat(run.chat_id, document)
        except BaseException:
            with suppress(BusUnavailable):
                await deps.bus.end(run, Receipt(run.run_id, Outcome.REFUSED))
            raise

    async def _admit_chat(self, chat_id: str, document: ChatDocument) -> None:
        try:
            await self._deps.index.admit(chat_id, self._deps.max_chats)
        except LimitReached:
            # It may be one whose listing failed; or one that was deleted since it was read, and would be a new one.
            if not document.version or not (await self._deps.store.load(chat_id)).version:
                raise

    def _begun(self, _: asyncio.Task[Execution]) -> None:
        self._beginning -= 1
        self._note_quiet()

    def _over(self, execution: Execution) -> None:
        del self._live[execution.run.nonce]
        self._deps.metrics.run_left()

    def _gone(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._note_quiet()
        if self.on_ended is not None:
            self.on_ended()

    def _note_quiet(self) -> None:
        if not self._tasks and not self._beginning:
            self._quiet.set()

    def stop_here(self, chat_id: str, run_id: str | None, arrival: Arrival) -> Execution | None:
        """Halt a run of this process without the bus: for when it is gone."""
        for execution in self._live.values():
            run = execution.run
            meant = run.run_id == run_id if run_id else arrival.covers(run.arrival)
            if run.chat_id == chat_id and meant:
                execution.run.token.stop(StopReason.USER)
                return execution
        return None

    async def drain(self, grace: float) -> None:
        """Give runs `grace` seconds from the first call on, then halt them, each with its closing frame.

        Until then those begin as ever that were let in before. Returns when none is left, or UNWIND after the grace: a
        run that is stuck, as in a store that hangs, must not hold the process.
        """
        loop = asyncio.get_running_loop()
        if self._ends_at is None:
            self._ends_at = loop.time() + grace
            loop.call_at(self._ends_at, self._halt)
        with suppress(TimeoutError):
            async with asyncio.timeout_at(self._ends_at + UNWIND):
                await self._quiet.wait()

    def end_grace(self) -> None:
        """Halt the runs now, whatever time `drain` gives or gave them."""
        self._ends_at = asyncio.get_running_loop().time()
        self._halt()

    def _halt(self) -> None:
        self._grace_over = True
        for execution in list(self._live.values()):
            execution.run.token.stop(StopReason.SHUTDOWN)


def _nobody_reads(beginning: asyncio.Task[Execution]) -> None:
    if not beginning.cancelled() and not beginning.exception():
        execution = beginning.result()
        execution.stream.leave()
        execution.run.token.stop(StopReason.DISCONNECT)
