"""What a replica does for all its runs together: one subscription, one look every poll interval, one pulse.

- The subscription (`replica:<id>`) brings pushes: a stop for one of our runs, a receipt we asked for. A push
  that is missed loses nothing: what it says also lies in the keys.
- The look reads the keys of all live runs in one command and finds what no push told: a stop stored while the
  subscription was down, a stop that a person SET by hand, a record the bus forgot, a chat that was taken.
- The pulse vouches for them (`redis_pulse`).

Looks and pulses are still while there is no run.

The subscription also tells when the bus was away. Where it comes back as another server than before, or as one that has
forgotten a record, it may lack what the others have not put back yet: until it has settled, it is not believed when it
says that nobody has a chat.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

from loguru import logger
from redis.asyncio import Redis
from redis.exceptions import ResponseError

from haltline import redis_scripts as scripts
from haltline.metrics import Metrics
from haltline.redis_cluster import ClusterRedis
from haltline.redis_pulse import PULSE_AGAIN, PULSE_EVERY, Pulse, tried
from haltline.runs import Run, StopReason
from haltline.tasks import cancelled

RECONNECT_AFTER = (0.05, 0.1, 0.2, 0.5)  # seconds before the next try; the last one repeats
CLOSE_TIMEOUT = 5.0  # seconds
SUBSCRIBE_TIMEOUT = 2.0  # seconds a request waits for the subscription to stand
SETTLE = PULSE_EVERY + RECONNECT_AFTER[-1]  # seconds in which every replica is back and has put back what it knows


class Watch:
    """Hears and looks for this replica's unfinished runs, and halts those that a stop names."""

    def __init__(
        self,
        redis: Redis,
        listener: Redis,
        poll_interval: float,
        max_age: float,
        pulse: Pulse,
        metrics: Metrics,
        *,
        on_receipt: Callable[[dict[str, Any]], None],
        put_back: Callable[[Run], Awaitable[bool]],
        put_back_stops: Callable[[], Awaitable[None]],
    ) -> None:
        """`redis` for commands, `listener` for the subscription alone; `poll_interval` in seconds.

        `max_age`: seconds that a subscription stands before it is made anew. `put_back` writes the record of a run
        again that the bus forgot, `put_back_stops` the stops of the last minute.
        """
        self._redis, self._listener, self._replica_id = redis, listener, ""
        self._poll_interval, self._max_age, self._pulse, self._metrics = poll_interval, max_age, pulse, metrics
        self._on_receipt, self._put_back, self._put_back_stops = on_receipt, put_back, put_back_stops
        self._standing = asyncio.Event()  # set while the subscription stands
        self._settled = asyncio.Event()  # cleared while a bus that came back may lack what others know
        self._settled.set()
        self._settling: asyncio.Task[None] | None = None
        self._servers: dict[str, str] = {}  # who answered last, by node
        self._doubtful = False  # a command has failed since: another may answer the next one
        self._has_put_back = False
        self._failures = 0  # of the subscription, in a row
        self._tasks: set[asyncio.Task[Any]] = set()
        self._listening: asyncio.Task[None] | None = None

    def start(self, replica_id: str) -> None:
        """Start listening, pulsing and looking, for a replica of this id."""
        self._replica_id = replica_id
        self._start_listening()
        for task in self._pulse.start(replica_id):
            self._keep(task)
        self._keep(asyncio.create_task(self._poll()))

    def renew(self) -> None:
        """Subscribe anew. Until that stands, whoever needs to be heard waits for it."""
        if old := self._listening:
            self._start_listening()
            self._keep(asyncio.create_task(_end(old)))

    def _start_listening(self) -> None:
        self._standing.clear()
        self._listening = self._keep(asyncio.create_task(self._listen()))

    def _keep(self, task: asyncio.Task[Any]) -> asyncio.Task[Any]:
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def close(self) -> None:
        """End its tasks and the connections of the subscription."""
        self._listening = None
        await cancelled(*self._tasks, within=CLOSE_TIMEOUT)
        await self._listener.aclose()

    async def subscribed(self) -> None:
        """Wait until pushes reach us. Raises: TimeoutError."""
        if not self._standing.is_set():
            async with asyncio.timeout(SUBSCRIBE_TIMEOUT):
                await self._standing.wait()

    @property
    def standing(self) -> bool:
        """Whether pushes reach us."""
        return self._standing.is_set()

    # ---- a bus that came back
    @property
    def settled(self) -> bool:
        """Whether the bus is believed when it says that nobody has a chat."""
        return self._standing.is_set() and self._settled.is_set() and not self._doubtful

    def doubt(self) -> None:
        """A command has failed. Before the bus is believed again it is asked who answers."""
        self._doubtful = True

    async def until_settled(self) -> None:
        """Wait until it is. Raises: TimeoutError, RedisError, OSError."""
        await self.subscribed()
        if self._doubtful and await self.recognise():
            self.renew()  # the subscription may be with the one that was there before
            await self.subscribed()
        if not self._settled.is_set():
            async with asyncio.timeout(2 * SETTLE):
                await self._settled.wait()

    async def recognise(self) -> bool:
        """Ask who answers. Whether it is another server than the last time, which has to settle then.

        Raises: RedisError, OSError.
        """
        try:
            if isinstance(self._redis, ClusterRedis):
                told = await self._redis.info_of_each("replication")
            else:
                told = {"": await self._redis.info("replication")}
        except ResponseError:  # there are services that never tell
            told = {}
        self._doubtful = False
        known, now = self._servers, {node: str(of.get("master_replid", "")) for node, of in told.items()}
        self._servers = known | now
        if came_back := bool(known) and any(known.get(node) != server for node, server in now.items()):
            self._came_back()
        return came_back

    def _came_back(self) -> None:
        logger.warning("seconds=<{}> | another signal bus than before answers, nothing begins while it settles", SETTLE)
        self._settled.clear()
        if self._settling is not None:
            self._settling.cancel()
        self._settling = self._keep(asyncio.create_task(self._settle()))

    async def _settle(self) -> None:
        """Tell it what we know, then give the others time to do the same."""
        what_we_know = [
            ("pulse", self._pulse.beat),  # also of no run: an older one may name those that have ended
            ("look", self.look),
            ("stops of the last minute", self._put_back_stops),
        ]
        while what_we_know:
            what, tell = what_we_know[0]
            if await tried(what, tell()):
                del what_we_know[0]
            else:
                await asyncio.sleep(PULSE_AGAIN)
        await asyncio.sleep(SETTLE)
        self._settled.set()

    # ---- the look
    async def _poll(self) -> None:
        while True:
            await self._pulse.busy.wait()
            await asyncio.sleep(self._poll_interval)
            if not await tried("look", self.look()):
                self.doubt()

    async def look(self) -> None:
        """Read mailbox, record and named stop of every run that holds its chat, in one command.

        Where records had to be put back it looks once more: a stop that was stored before found nobody to push it to.
        """
        # Only runs that held their chat before the command is sent: BEGIN has consumed older stops of theirs.
        runs = [(run, run.claim) for run in self._pulse.runs.values() if run.claim and not run.ending]
        if not runs:
            return
        values = await self._redis.mget([key for run, _ in runs for key in scripts.keys(run.chat_id, run.run_id)])
        for i, (run, claim) in enumerate(runs):
            if run.nonce in self._pulse.runs and run.claim == claim and not run.ending:
                said = (as_text(value) for value in values[3 * i : 3 * i + 3])
                await tried("look at one run", self._decide(run, *said))
        if self._has_put_back:
            self._has_put_back = False
            await self.look()

    async def _decide(self, run: Run, mailbox: str | None, raw: str | None, named: str | None) -> None:
        record = json.loads(raw) if raw else {}
        if int(record.get("claim", 0)) < int(run.claim):
            logger.warning(
                "chat_id=<{}> run_id=<{}> | the bus forgot the record, putting it back", run.chat_id, run.run_id
            )
            self._metrics.bus_forgot("record")
            if self._settled.is_set():  # a fail-over that no connection has seen
                self._came_back()
            if await self._put_back(run):
                self._has_put_back = True
            else:
                run.token.stop(StopReason.TAKEN)
        elif record.get("nonce") != run.nonce:
            logger.warning("chat_id=<{}> run_id=<{}> | the chat is another run's now", run.chat_id, run.run_id)
            run.token.stop(StopReason.TAKEN)
        elif named is not None:
            self._stopped_late(run, record, StopReason.of(named.partition(":")[2]))
        elif mailbox is not None:
            self._stopped_late(run, record, StopReason.USER)

    def _stopped_late(self, run: Run, record: dict[str, Any], reason: StopReason) -> None:
        run.closing_marked = bool(record.get("closing"))
        if run.token.stop(reason) and run.closing_marked:  # else a person has SET the key
            self._metrics.stop_late()

    # ---- the subscription
    async def _listen(self) -> None:
        while True:
            await tried("subscription", self._hear())
            if asyncio.current_task() is self._listening:  # else another one may stand by now
                self._standing.clear()
                self._metrics.bus_up(False)
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
                        await self._subscription_stands()
                    elif message is not None and message["type"] == "message":
                        self._heard(json.loads(message["data"]))
        except TimeoutError:
            if not age.expired():
                raise

    async def _subscription_stands(self) -> None:
        await self.recognise()
        self._failures = 0
        if asyncio.current_task() is self._listening:
            self._standing.set()
            self._metrics.bus_up(True)
        await tried("look", self.look())  # what was stored while nobody listened

    def _heard(self, told: dict[str, Any]) -> None:
        if run := self._pulse.runs.get(told.get("stop", "")):
            run.closing_marked = True  # STOP has done that
            run.token.stop(StopReason.of(told.get("reason", "")))
        if ended := told.get("ended"):
            self._on_receipt(ended)


async def _end(task: asyncio.Task[None]) -> None:
    await cancelled(task, within=CLOSE_TIMEOUT)


def as_text(value: Any) -> str | None:
    """What a client that decodes gives back, said to the type checker."""
    return None if value is None else str(value)
