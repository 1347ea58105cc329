"""One run from the taken chat to the freed one: the race of the agent against the stop token.

Who comes first is decided once, in `_live`:
- the agent ended: the closing write, END, then the `done` or `error` frame, so that the next message is taken.
- a stop the user waits for: the frame at once, then the closing write and END. The chat is marked closing before
  the frame, so that the next message waits for END instead of being refused.
- a stop for another reason (deadline, shutdown, a lost bus): as at an end, with an `error` frame that says why.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from loguru import logger

from haltline.chats import ChatDocument, ChatStoreError, VersionConflict
from haltline.events import Closing, Done, Failed, Stopped
from haltline.failures import explain
from haltline.principals import chat_id_of
from haltline.runs import Outcome, Receipt, Run, StopReason, Usage, live_token
from haltline.signals import BusUnavailable
from haltline.stream import EventStream
from haltline.tasks import cancelled, this_task
from haltline.transcript import close_turn, open_turn
from haltline.unwinding import unwound

if TYPE_CHECKING:
    from haltline.agent import AgentTurn
    from haltline.runner import Deps

UNWIND = 0.25  # seconds a cancelled agent may take before the run goes on without it
MARK = 0.1  # seconds that marking a chat as closing may hold up the closing frame
SAVE_TRIES = 3

_SAID_AT_ONCE = (StopReason.USER, StopReason.SUPERSEDED, StopReason.DELETED, StopReason.DISCONNECT)
_WHY = {
    StopReason.DEADLINE: "The run reached its time limit (RUN_TIMEOUT, or the Lambda function's) and was stopped.",
    StopReason.SHUTDOWN: "The server is shutting down, so the run was stopped. Send the message again.",
    StopReason.SIGNAL_LOST: "The connection to Redis was lost, so that nobody else could stop the run: it was ended.",
    StopReason.TAKEN: "The chat was taken by another run while this server was not heard; this one was ended.",
}


class Execution:
    """A run under way. `stream` is what its client reads.

    `over` is set once the chat is free and the closing frame is out; `task` ends when that was announced, too.
    """

    def __init__(self, run: Run, message: str, document: ChatDocument, deps: Deps) -> None:
        self.run, self.stream = run, EventStream()
        self.receipt: Receipt | None = None
        self._message, self._document, self._deps = message, document, deps
        self._turn: AgentTurn | None = None
        self._said: list[str] = []
        self._decided = False  # whether the agent or the stop came first
        self._halted_ms: float | None = None  # from the stop to its frame
        self._closes_upstream = False  # a model call was open when the stop came, and ends with the agent's task
        self._listing: asyncio.Task[None] | None = None  # the chat as a live one, which the model need not wait for
        self._complete = False  # the agent came to its own end, and all of its text went out
        self._began = time.monotonic()
        self.over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.task = asyncio.create_task(self._live(), name=f"run {run.run_id}")

    @property
    def run_id(self) -> str:
        """The run's ULID."""
        return self.run.run_id

    async def ended(self, seconds: float) -> Receipt | None:
        """The receipt, None where the run has not ended in time."""
        await asyncio.wait({self.over}, timeout=seconds)
        return self.receipt if self.over.done() else None

    # ---- the race
    async def _live(self) -> None:
        run, loop = self.run, asyncio.get_running_loop()
        until = min(loop.time() + self._deps.run_timeout, run.caller.deadline)
        deadline = loop.call_at(until, run.token.stop, StopReason.DEADLINE)
        opening = asyncio.create_task(self._open())
        answer = asyncio.create_task(self._answer(opening))
        opening.add_done_callback(lambda _: answer.cancel() if _error_of(opening) else None)  # whatever it waits for
        gate = loop.create_future()

        def halt() -> None:
            # Inside the token's own call, before anything else may run: the frame, where nothing needs to be marked for
            # it, and the cancelling of whatever the agent waits for.
            if not self._decided and not self._complete and run.closing_marked:
                self._say_stopped()
            self._closes_upstream = self._turn is not None and self._turn.closes_upstream
            answer.cancel()
            if not gate.done():
                gate.set_result(None)
            if self._turn is not None:
                self._turn.tell_threads()

        run.token.on_stop(halt)
        try:
            await asyncio.wait({answer, gate}, return_when=asyncio.FIRST_COMPLETED)
            if not gate.done() and not self._deps.bus.certain(run):  # else it might write a chat that was taken
                certain = asyncio.create_task(self._deps.bus.until_certain(run))
                await asyncio.wait({certain, gate}, return_when=asyncio.FIRST_COMPLETED)
                certain.cancel()
            self._decided = True
            if run.token.stopped and (not self._complete or run.token.reason is StopReason.TAKEN):
                self.receipt = await self._halted(answer, opening)
            else:
                self.receipt = await self._ended(_error_of(opening) or _error_of(answer))
        except Exception as error:
            logger.exception("chat_id=<{}> run_id=<{}> | the end of the run failed", run.chat_id, run.run_id)
            self.receipt = Receipt(run.run_id, Outcome.LOST, saved=False)
            with contextlib.suppress(BusUnavailable):
                await self._deps.bus.end(run, self.receipt)  # or the chat would stay busy
            self.stream.put(Failed(explain(error)))
        finally:
            deadline.cancel()
            answer.cancel()
            self.over.set_result(None)
            usage = self._turn.usage if self._turn is not None else Usage()
            self._deps.metrics.ended(self.receipt, usage)
        if self._deps.announcements is not None:
            duration_ms = round((time.monotonic() - self._began) * 1000)
            await self._deps.announcements.run_ended(run.chat_id, self.receipt, usage, duration_ms)

    async def _answer(self, opening: asyncio.Task[None]) -> None:
        """Pump the agent into the stream. One task, so that context variables of the agent stay in one context."""
        live_token.set(self.run.token)
        try:
            await unwound(self._pump(opening))
        except (SystemExit, KeyboardInterrupt) as error:  # asyncio would end the replica with it
            raise RuntimeError("the agent tried to end the process") from error

    async def _pump(self, opening: asyncio.Task[None]) -> None:
        run = self.run
        try:
            turn = await self._deps.agents.make()  # while the message is being saved
        except BaseException:  # or the closing write would not wait for the opening one
            if not run.token.stopped:
                await asyncio.shield(opening)
            raise
        await asyncio.shield(opening)
        turn.restore(self._document.snapshot, self._document.unseen)
        turn.before_each_step = functools.partial(self._deps.bus.until_certain, run)
        self._turn = turn
        state = {
            "chat_id": chat_id_of(run.chat_id),
            "run_id": run.run_id,
            "principal": run.caller.principal.name or None,
        }
        cut = False
        async for text in turn.events(self._message, state):
            if not self._deps.bus.certain(run):
                await self._held_still()
            cut = run.token.stopped or not self.stream.put(text)
            if not cut:
                self._said.append(text.text)
                turn.seen(text.text)
                cut = self.stream.full and not await self._room()
            if cut:
                # Ended from within: the next wait inside the agent is cancelled, so that all of its generators unwind
                # in this task, one after the other. Left alone here, the garbage collector would end them in another.
                this_task().cancel()
        self._complete = not cut and not run.token.stopped  # an agent may swallow the cancellation

    async def _held_still(self) -> None:
        """Wait until nobody else can have the chat, or until the run was halted."""
        with contextlib.suppress(asyncio.CancelledError):
            await self._deps.bus.until_certain(self.run)

    async def _room(self) -> bool:
        """Wait until a slow client has caught up. False where the run was halted meanwhile."""
        try:
            await self.stream.room()
        except asyncio.CancelledError:
            return False
        return True

    async def _ended(self, error: BaseException | None) -> Receipt:
        """The agent came first."""
        run = self.run
        if isinstance(error, VersionConflict):
            return await self._finish(Outcome.LOST, StopReason.TAKEN, Failed(_WHY[StopReason.TAKEN]))
        if error is not None:
            logger.opt(exception=error).warning("chat_id=<{}> run_id=<{}> | the run failed", run.chat_id, run.run_id)
            why = explain(error)
            return await self._finish(Outcome.ERROR, None, Failed(why), error=why)
        if self._turn is not None and self._turn.stopped_itself:
            return await self._finish(Outcome.STOPPED, StopReason.AGENT, Stopped())
        return await self._finish(Outcome.DONE, None, Done())

    async def _halted(self, answer: asyncio.Task[None], opening: asyncio.Task[None]) -> Receipt:
        """The stop came first."""
        run, reason = self.run, self.run.token.reason
        assert reason is not None  # noqa: S101 - the gate opens for nothing else
        if self._halted_ms is None and reason in _SAID_AT_ONCE:
            if not run.closing_marked:
                await self._mark_closing()
            self._say_stopped()
        await cancelled(answer, within=UNWIND)
        if self._turn is not None:
            self._turn.tell_threads()
        closed_ms = self._since_stop() if answer.done() and self._closes_upstream else None
        if not answer.done():
            logger.warning("chat_id=<{}> run_id=<{}> | the agent does not let go", run.chat_id, run.run_id)
        await asyncio.wait({opening})
        if failure := _error_of(opening):  # the closing write tries again, and says so where it fails too
            logger.warning("chat_id=<{}> run_id=<{}> error=<{}> | no opening write", run.chat_id, run.run_id, failure)
        frame = Stopped() if reason in _SAID_AT_ONCE else Failed(_WHY[reason])
        outcome = Outcome.LOST if reason is StopReason.TAKEN else Outcome.STOPPED
        return await self._finish(outcome, reason, frame, halted_ms=self._halted_ms, closed_ms=closed_ms)

    def _say_stopped(self) -> None:
        if self.run.token.reason in _SAID_AT_ONCE:
            self.stream.put(Stopped())
            self._halted_ms = self._since_stop()

    async def _mark_closing(self) -> None:
        # The bus may be gone, and the user waits: a mark that cannot be set costs the next message a refusal.
        with contextlib.suppress(BusUnavailable, TimeoutError):
            async with asyncio.timeout(MARK):
                await self._deps.bus.closing(self.run)

    def _since_stop(self) -> float:
        return round((time.monotonic() - self.run.token.fired_at) * 1000, 3)

    # ---- the end
    async def _finish(
        self,
        outcome: Outcome,
        reason: StopReason | None,
        frame: Closing,
        *,
        error: str = "",
        halted_ms: float | None = None,
        closed_ms: float | None = None,
    ) -> Receipt:
        """The closing write, END with the receipt, then the frame where it has not gone out yet."""
        run, saved = self.run, True
        try:
            if outcome is Outcome.LOST:
                saved = False  # the chat is another's
            elif not run.begun_deleted:
                await self._close(outcome, reason, error)
        except BusUnavailable as failure:
            logger.error(
                "chat_id=<{}> run_id=<{}> error=<{}> | whose the chat is cannot be told",
                run.chat_id,
                run.run_id,
                failure,
            )
            saved, frame = False, Failed("The answer could not be saved: Redis cannot be reached.")
        except VersionConflict:
            outcome, saved, frame = Outcome.LOST, False, Failed(_WHY[StopReason.TAKEN])
        except ChatStoreError as failure:
            logger.error(
                "chat_id=<{}> run_id=<{}> error=<{}> | the answer was not saved", run.chat_id, run.run_id, failure
            )
            saved, frame = False, Failed(f"The answer could not be saved: {failure}.")
        if self._listing is not None:  # also where nothing was saved: after END the chat may be deleted
            await asyncio.wait({self._listing})
        receipt = Receipt(run.run_id, outcome, reason, halted_ms, closed_ms, saved)
        try:
            if not await self._deps.bus.end(run, receipt):
                logger.warning(
                    "chat_id=<{}> run_id=<{}> | the chat was another run's at the end", run.chat_id, run.run_id
                )
        except BusUnavailable as failure:
            # No pulse names the run from here on, so the next message takes the chat over.
            logger.warning("chat_id=<{}> run_id=<{}> error=<{}> | END not said", run.chat_id, run.run_id, failure)
        self.stream.put(frame)
        return receipt

    # ---- the chat document
    async def _open(self) -> None:
        """Save the user's message before the first model call. Raises: ChatStoreError, VersionConflict."""
        if self.run.begun_deleted:
            return  # the chat was deleted after this request left its client: it must not come back
        await self._save(lambda: open_turn(self._document, self._message, self.run.run_id), live=True)

    async def _close(self, outcome: Outcome, reason: StopReason | None, error: str) -> None:
        snapshot = None
        if self._turn is not None:
            try:
                snapshot = self._turn.snapshot(self._message, complete=self._complete)
            except Exception:  # an agent's own state may be anything; the transcript must not be lost with it
                logger.exception("chat_id=<{}> run_id=<{}> | no snapshot", self.run.chat_id, self.run.run_id)
        text = "".join(self._said)

        def change() -> None:
            close_turn(
                self._document,
                self._message,
                text,
                self.run.run_id,
                snapshot=snapshot,
                stopped=outcome is Outcome.STOPPED,
                reason=reason.value if reason else "",
                error=error,
            )

        await self._save(change, live=False)

    async def _save(self, change: Callable[[], None], *, live: bool) -> None:
        """Apply `change` to the document and save it; on a conflict, to the newest one while the chat is ours."""
        for _ in range(SAVE_TRIES):
            if self._document.version == 0:  # a chat deleted meanwhile looks the same: no version tells them apart
                await self._confirm()
            change()
            try:
                await self._deps.store.save(self._document)
                break
            except VersionConflict:
                newest = await self._deps.store.load(self.run.chat_id)  # first: what is asked next must hold for it
                if not await self._deps.bus.holds(self.run):
                    raise
                self._document = newest
        else:
            raise VersionConflict(self.run.chat_id)
        if live:
            self._listing = asyncio.create_task(self._list(live=True))
        else:
            if self._listing is not None:  # or it might be told last that the chat is live
                await asyncio.wait({self._listing})
            await self._list(live=False)

    async def _confirm(self) -> None:
        """Raises: VersionConflict where another run has the chat."""
        try:
            if not await self._deps.bus.holds(self.run):
                raise VersionConflict(self.run.chat_id)
        except BusUnavailable as failure:  # nobody else could take it either
            logger.warning("chat_id=<{}> error=<{}> | the holder is not known", self.run.chat_id, failure)

    async def _list(self, *, live: bool) -> None:
        try:
            stopped = await self._deps.index.put(self.run.chat_id, len(self._document.messages), live=live)
            # A stop that means all, from before the run was listed.
            if live and stopped and stopped >= float(self.run.arrived_ms):
                self.run.token.stop(StopReason.USER)
        except BusUnavailable as failure:
            logger.warning("chat_id=<{}> error=<{}> | the list of chats was not told", self.run.chat_id, failure)


def _error_of(task: asyncio.Task[None]) -> BaseException | None:
    return asyncio.CancelledError() if task.cancelled() else task.exception()
