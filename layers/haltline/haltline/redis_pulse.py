"""How a replica vouches for its runs, and what it does with them where it could not.

The pulse (`replica:<id>`) names our unfinished runs and expires: a record whose owner's pulse does not name it is dead
and may be taken over. So a replica that was not heard for as long as a pulse lives, because it stood still or was cut
off, may have lost any of its chats. Its runs are held still until a pulse was confirmed again and each of them has
raised its claim; one whose chat was taken meanwhile ends and writes nothing.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable

from loguru import logger
from redis.asyncio import Redis
from redis.exceptions import RedisError

from haltline import redis_scripts as scripts
from haltline.metrics import Metrics
from haltline.runs import Run, StopReason

PULSE_TTL_MS = 6000
PULSE_EVERY = 2.0  # seconds
PULSE_AGAIN = 0.5  # seconds until the next try while the bus does not answer
LIFE = PULSE_TTL_MS / 1000
GO_ON = 4.0  # seconds after an unanswered pulse in which runs that may go on without a bus do; more than until the next
AT_ONCE = 32  # runs that are claimed together


def now() -> float:
    """Seconds of a clock that goes on while a machine is suspended: the others' do, and so does the life of a pulse."""
    boot_time = getattr(time, "CLOCK_BOOTTIME", None)  # Linux
    return time.monotonic() if boot_time is None else time.clock_gettime(boot_time)


class Pulse:
    """Knows this replica's unfinished runs. `runs` by nonce; `busy` is set while there is one."""

    def __init__(
        self, redis: Redis, loss_grace: float | None, metrics: Metrics, claim: Callable[[Run], Awaitable[bool]]
    ) -> None:
        """`redis` for commands.

        `loss_grace`: seconds without a pulse after which runs that nobody could stop are halted; None never, nor are
        they held still while the bus does not answer. `claim` raises a run's claim; False where another has its chat.
        """
        self._redis, self._loss_grace, self._metrics, self._claim = redis, loss_grace, metrics, claim
        self._replica_id = ""
        self.runs: dict[str, Run] = {}
        self.busy = asyncio.Event()
        self._vouched_at = float("-inf")  # `now` when the last pulse that was confirmed was sent
        self._unanswered_at = float("-inf")  # when the last one failed
        self._lost_at = float("inf")  # when the first of those was sent that have failed since
        self._lock = asyncio.Lock()
        self._asked, self._pulsed, self._failed = 0, 0, 0
        self._failure: Exception | None = None
        self.lapses = 0  # times that no pulse was confirmed for as long as one lives
        self._unclaimed: set[str] = set()  # nonces of runs that may have lost their chats
        self._heard_again = asyncio.Event()  # set where these can be claimed
        self._held: dict[str, asyncio.Event] = {}  # by nonce: what a run waits for that is held still

    def start(self, replica_id: str) -> tuple[asyncio.Task[None], ...]:
        """Start beating for a replica of this id. Returns what the caller has to cancel."""
        self._replica_id = replica_id
        return asyncio.create_task(self._keep_beating()), asyncio.create_task(self._keep_claiming())

    async def add(self, run: Run) -> None:
        """Vouch for a run before it takes its chat; on return the pulse names it. Raises: TimeoutError, RedisError."""
        self.runs[run.nonce] = run
        self.busy.set()
        await self.beat()
        while now() - self._vouched_at > LIFE:  # this process stood still before it had the reply
            await self.beat()

    def remove(self, run: Run) -> None:
        """Vouch for it no longer."""
        self.runs.pop(run.nonce, None)
        if run.nonce in self._unclaimed:
            self._unclaimed.discard(run.nonce)
            self._metrics.runs_held(len(self._unclaimed))
        self._wake(run.nonce)
        if not self.runs:
            self.busy.clear()

    async def beat(self) -> None:
        """One SET that names every run known when it is sent; calls that wait for the same SET share it."""
        self._asked += 1
        ticket = self._asked
        async with self._lock:  # two SETs under way at once could land in the wrong order
            if self._pulsed >= ticket:
                return
            if self._failure is not None and self._failed >= ticket:
                raise self._failure  # or those who waited would each wait for a bus that is silent
            covered, sent = self._asked, now()
            names = json.dumps(list(self.runs))
            try:
                await self._redis.set(scripts.pulse_key(self._replica_id), names, px=PULSE_TTL_MS)
            except Exception as error:
                self._failed, self._failure = covered, error
                raise
            lapsed = now() - self._vouched_at > LIFE
            self.lapses += lapsed
            self._pulsed, self._vouched_at, self._lost_at = covered, sent, float("inf")
        self._metrics.bus_up(True)
        if lapsed:
            self._doubt_all()
        if self._unclaimed:
            self._heard_again.set()

    def certain(self, run: Run) -> bool:
        """Whether no other replica can have taken the chat of this run, which holds it."""
        at = now()
        if self._loss_grace is None and at - self._unanswered_at < GO_ON:
            return True
        if at - self._vouched_at > LIFE:
            self._doubt_all()
        return run.nonce not in self._unclaimed

    async def until_certain(self, run: Run) -> None:
        """Hold a run still until it is certain that its chat is its own. One whose chat is not, is halted meanwhile."""
        while not self.certain(run) and run.nonce in self.runs:
            await self._held.setdefault(run.nonce, asyncio.Event()).wait()

    def _doubt_all(self) -> None:
        doubted = {run.nonce for run in self.runs.values() if run.claim}
        if doubted - self._unclaimed:
            logger.warning("runs=<{}> | held still: no pulse was confirmed for as long as one lives", len(doubted))
            self._unclaimed |= doubted
            self._metrics.runs_held(len(self._unclaimed))

    def _wake(self, nonce: str) -> None:
        if held := self._held.pop(nonce, None):
            held.set()

    async def _keep_beating(self) -> None:
        pause = PULSE_EVERY
        while True:
            await self.busy.wait()
            await asyncio.sleep(pause)  # first: whoever added a run has pulsed for it
            if not self.runs:
                continue
            sent = now()
            if not await tried("pulse", self.beat()):
                self._lost_at, self._unanswered_at = min(self._lost_at, sent), now()
                self._metrics.bus_up(False)
                for nonce in list(self._held) if self._loss_grace is None else ():
                    self._wake(nonce)
            unheard = now() - self._vouched_at
            pause = PULSE_AGAIN if unheard > PULSE_AGAIN else PULSE_EVERY
            # Not since the last pulse: the bus may have been there until just before this one.
            if self._loss_grace is not None and now() - self._lost_at > self._loss_grace:
                for run in list(self.runs.values()):
                    run.token.stop(StopReason.SIGNAL_LOST)

    async def _keep_claiming(self) -> None:
        while True:
            await self._heard_again.wait()
            self._heard_again.clear()
            runs = [run for run in self.runs.values() if run.nonce in self._unclaimed]
            for i in range(0, len(runs), AT_ONCE):
                await asyncio.gather(*(tried("claim", self._claim_again(run)) for run in runs[i : i + AT_ONCE]))
            self._metrics.runs_held(len(self._unclaimed))
            if self._unclaimed:
                await asyncio.sleep(PULSE_AGAIN)
                self._heard_again.set()

    async def _claim_again(self, run: Run) -> None:
        if run.nonce in self.runs and not run.ending and not await self._claim(run):
            run.token.stop(StopReason.TAKEN)
        self._unclaimed.discard(run.nonce)
        self._wake(run.nonce)


async def tried(what: str, work: Awaitable[None]) -> bool:
    """Whether it was done. The bus may be gone for a while, or hold what no script of ours wrote: do it again later."""
    try:
        await work
    except (RedisError, OSError, TimeoutError) as error:
        logger.warning("error=<{}> | the signal bus does not answer: {}", error, what)
        return False
    except Exception:
        logger.exception("doing=<{}> | the signal bus said what cannot be read", what)
        return False
    return True
