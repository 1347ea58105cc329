"""What a replica does for all its runs together: one subscription, one pulse, one look every poll interval.

- The subscription (`replica:<id>`) brings pushes: a stop for one of our runs, a receipt we asked for. A push
  that is missed loses nothing: what it says also lies in the keys.
- The pulse (`replica:<id>`) names our unfinished runs and expires: a record whose owner's pulse does not name
  it is dead and may be taken over.
- The look reads the keys of all live runs in one command and finds what no push told: a stop stored while the
  subscription was down, a stop that a person SET by hand, a record the bus forgot, a chat that was taken.

All three are still while there is no run.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from typing import Any

from loguru import logger
from redis.asyncio import Redis
from redis.exceptions import RedisError

from haltline import redis_scripts as scripts
from haltline.runs import Run, StopReason
from haltline.tasks import cancelled

PULSE_TTL_MS = 6000
PULSE_EVERY = 2.0  # seconds
PULSE_AGAIN = 0.5  # seconds until the next try while the bus does not answer
RECONNECT_AFTER = (0.05, 0.1, 0.2, 0.5, 1.0)  # seconds before the next try; the last one repeats
CLOSE_TIMEOUT = 5.0  # seconds
SUBSCRIBE_TIMEOUT = 2.0  # seconds a request waits for the subscription to stand


class Watch:
    """Vouches for this replica's unfinished runs and halts those that a stop names."""

    def __init__(
        self,
        redis: Redis,
        listener: Redis,
        poll_interval: float,
        loss_grace: float | None,
        max_age: float,
        *,
        on_receipt: Callable[[dict[str, Any]], None],
        put_back: Callable[[Run], Awaitable[bool]],
    ) -> None:
        """`redis` for commands, `listener` for the subscription alone; `poll_interval` in seconds.

        `loss_grace`: seconds without a pulse after which runs that nobody could stop are halted; None never.
        `max_age`: seconds that a subscription stands before it is made anew.
        """
        self._redis, self._listener, self._replica_id = redis, listener, ""
        self._poll_interval, self._loss_grace, self._max_age = poll_interval, loss_grace, max_age
        self._vouched_at = 0.0  # time.monotonic() of the last pulse
        self._on_receipt, self._put_back = on_receipt, put_back
        self._runs: dict[str, Run] = {}  # by nonce
        self._busy = asyncio.Event()  # set while there is a run
        self._standing = asyncio.Event()  # set while the subscription stands
        self._pulse_lock = asyncio.Lock()
        self._asked, self._pulsed = 0, 0
        self._failures = 0  # of the subscription, in a row
        self._tasks: set[asyncio.Task[None]] = set()
        self._listening: asyncio.Task[None] | None = None

    def start(self, replica_id: str) -> None:
        """Start listening, pulsing and looking, for a replica of this id."""
        self._replica_id = replica_id
        self._start_listening()
        self._keep(asyncio.create_task(self._beat()))
        self._keep(asyncio.create_task(self._poll()))

    def renew(self) -> None:
        """Subscribe anew. Until that stands, whoever needs to be heard waits for it."""
        if old := self._listening:
            self._start_listening()
            self._keep(asyncio.create_task(_end(old)))

    def _start_listening(self) -> None:
        self._standing.clear()
        self._listening = self._keep(asyncio.create_task(self._listen()))

    def _keep(self, task: asyncio.Task[None]) -> asyncio.Task[None]:
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def close(self) -> None:
        """End the three tasks and the connections of the subscription."""
        self._listening = None
        await cancelled(*self._tasks, within=CLOSE_TIMEOUT)
        await self._listener.aclose()

    # ---- runs
    async def add(self, run: Run) -> None:
        """Vouch for a run before it takes its chat. On return a stop for it is heard and the pulse names it.

        Raises: TimeoutError, RedisError where the bus cannot be reached.
        """
        await self.subscribed()
        self._runs[run.nonce] = run
        self._busy.set()
        await self.pulse()

    def remove(self, run: Run) -> None:
        """Vouch for it no longer."""
        self._runs.pop(run.nonce, None)
        if not self._runs:
            self._busy.clear()

    async def subscribed(self) -> None:
        """Wait until pushes reach us. Raises: TimeoutError."""
        if not self._standing.is_set():
            async with asyncio.timeout(SUBSCRIBE_TIMEOUT):
                await self._standing.wait()

    # ---- the pulse
    async def pulse(self) -> None:
        """One SET that names every run known when it is sent; calls that wait for the same SET share it."""
        self._asked += 1
        ticket = self._asked
        async with self._pulse_lock:  # two SETs under way at once could land in the wrong order
            if self._pulsed >= ticket:
                return
            covered = self._asked
            names = json.dumps(list(self._runs))
            await self._redis.set(scripts.pulse_key(self._replica_id), names, px=PULSE_TTL_MS)
            self._pulsed, self._vouched_at = covered, time.monotonic()

    async def _beat(self) -> None:
        pause = PULSE_EVERY
        while True:
            await self._busy.wait()
            await asyncio.sleep(pause)  # first: whoever added a run has pulsed for it
            if not self._runs:
                continue
            await self._try("pulse", self.pulse())
            unheard = time.monotonic() - self._vouched_at
            pause = PULSE_AGAIN if unheard > PULSE_AGAIN else PULSE_EVERY
            if self._loss_grace is not None and unheard > max(self._loss_grace, PULSE_AGAIN):
                for run in list(self._runs.values()):
                    run.token.stop(StopReason.SIGNAL_LOST)

    # ---- the look
    async def _poll(self) -> None:
        while True:
            await self._busy.wait()
            await asyncio.sleep(self._poll_interval)
            await self._try("look", self.look())

    async def look(self) -> None:
        """Read mailbox, record and named stop of every run that holds its chat, in one command."""
        # Only runs that held their chat before the command is sent: BEGIN has consumed older stops of theirs.
        runs = [run for run in self._runs.values() if run.claim]
        if not runs:
            return
        values = await self._redis.mget([key for run in runs for key in scripts.keys(run.chat_id, run.run_id)])
        for i, run in enumerate(runs):
            if run.nonce in self._runs:
                await self._try("look at one run", self._decide(run, *(as_text(v) for v in values[3 * i : 3 * i + 3])))

    async def _decide(self, run: Run, mailbox: str | None, raw: str | None, named: str | None) -> None:
        record = json.loads(raw) if raw else {}
        if int(record.get("claim", 0)) < int(run.claim):
            logger.warning(
                "chat_id=<{}> run_id=<{}> | the bus forgot the record, putting it back", run.chat_id, run.run_id
            )
            if not await self._put_back(run):
                run.token.stop(StopReason.SIGNAL_LOST)
        elif record.get("nonce") != run.nonce:
            logger.warning("chat_id=<{}> run_id=<{}> | the chat is another run's now", run.chat_id, run.run_id)
            run.token.stop(StopReason.SIGNAL_LOST)
        elif named is not None:
            run.closing_marked = bool(record.get("closing"))
            run.token.stop(StopReason.of(named.partition(":")[2]))
        elif mailbox is not None:
            run.closing_marked = bool(record.get("closing"))
            run.token.stop(StopReason.USER)

    # ---- the subscription
    async def _listen(self) -> None:
        while True:
            await self._try("subscription", self._hear())
            if asyncio.current_task() is self._listening:  # else another one may stand by now
                self._standing.clear()
            await asyncio.sleep(RECONNECT_AFTER[min(self._failures, len(RECONNECT_AFTER) - 1)])
            self._failures += 1

    async def _hear(self) -> None:
        """Subscribe and hear until the connection breaks or is too old."""
        try:
            async with self._listener.pubsub() as pubsub, asyncio.timeout(self._max_age) as age:
                await pubsub.subscribe(scripts.pulse_key(self._replica_id))
                while True:
                    message = await pubsub.get_message(timeout=None)
                    if message is not None and message["type"] == "subscribe":
                        self._failures = 0
                        if asyncio.current_task() is self._listening:
                            self._standing.set()
                        await self._try("look", self.look())  # what was stored while nobody listened
                    elif message is not None and message["type"] == "message":
                        self._heard(json.loads(message["data"]))
        except TimeoutError:
            if not age.expired():
                raise

    def _heard(self, told: dict[str, Any]) -> None:
        if run := self._runs.get(told.get("stop", "")):
            run.closing_marked = True  # STOP has done that
            run.token.stop(StopReason.of(told.get("reason", "")))
        if ended := told.get("ended"):
            self._on_receipt(ended)

    async def _try(self, what: str, work: Awaitable[None]) -> None:
        """The bus may be gone for a while, or hold what no script of ours wrote; what was to be done is done again."""
        try:
            await work
        except (RedisError, OSError, TimeoutError) as error:
            logger.warning("error=<{}> | the signal bus does not answer: {}", error, what)
        except Exception:
            logger.exception("doing=<{}> | the signal bus said what cannot be read", what)


async def _end(task: asyncio.Task[None]) -> None:
    await cancelled(task, within=CLOSE_TIMEOUT)


def as_text(value: Any) -> str | None:
    """What a client that decodes gives back, said to the type checker."""
    return None if value is None else str(value)
