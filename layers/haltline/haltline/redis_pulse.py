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
        self._vouched_at = 0.0  # time.monotonic() when the last pulse that was confirmed was sent
        self._unanswered_at = float("-inf")  # the same clock, when the last one failed
        self._lock = asyncio.Lock()
        self._asked, self._pulsed = 0, 0
        self.lapses = 0  # times that no pulse was confirmed for as long as one lives
        self._lapsed = asyncio.Event()  # set while runs have to be claimed again
        self._open = asyncio.Event()  # set while runs may go on
        self._open.set()

    def start(self, replica_id: str) -> tuple[asyncio.Task[None], ...]:
        """Start beating for a replica of this id. Returns what the caller has to cancel."""
        self._replica_id = replica_id
        return asyncio.create_task(self._keep_beating()), asyncio.create_task(self._keep_claiming())

    async def add(self, run: Run) -> None:
        """Vouch for a run before it takes its chat; on return the pulse names it. Raises: TimeoutError, RedisError."""
        self.runs[run.nonce] = run
        self.busy.set()
        await self.beat()
        while time.monotonic() - self._vouched_at > LIFE:  # this process stood still before it had the reply
            await self.beat()

    def remove(self, run: Run) -> None:
        """Vouch for it no longer."""
        self.runs.pop(run.nonce, None)
        if not self.runs:
            self.busy.clear()

    async def beat(self) -> None:
        """One SET that names every run known when it is sent; calls that wait for the same SET share it."""
        self._asked += 1
        ticket = self._asked
        async with self._lock:  # two SETs under way at once could land in the wrong order
            if self._pulsed >= ticket:
                return
            covered, sent = self._asked, time.monotonic()
            names = json.dumps(list(self.runs))
            await self._redis.set(scripts.pulse_key(self._replica_id), names, px=PULSE_TTL_MS)
            lapsed = time.monotonic() - self._vouched_at > LIFE
            self.lapses += lapsed
            self._pulsed, self._vouched_at = covered, sent
        self._metrics.bus_up(True)
        if lapsed and any(run.claim for run in self.runs.values()):
            self._hold()
            self._lapsed.set()

    @property
    def certain(self) -> bool:
        """Whether no other replica can have taken a chat of ours."""
        if not self._open.is_set():
            return False
        now = time.monotonic()
        if now - self._vouched_at <= LIFE or (self._loss_grace is None and now - self._unanswered_at < GO_ON):
            return True
        self._hold()
        return False

    async def until_certain(self) -> None:
        """Hold a run still until it is certain that its chat is its own. One whose chat is not, is halted meanwhile."""
        while not self.certain:
            await self._open.wait()

    def _hold(self) -> None:
        if self._open.is_set():
            logger.warning("runs=<{}> | held still: no pulse was confirmed for as long as one lives", len(self.runs))
            self._open.clear()
        self._metrics.runs_held(len(self.runs))

    def _let_go(self) -> None:
        self._open.set()
        self._metrics.runs_held(0)

    async def _keep_beating(self) -> None:
        pause = PULSE_EVERY
        while True:
            await self.busy.wait()
            await asyncio.sleep(pause)  # first: whoever added a run has pulsed for it
            if not self.runs:
                continue
            if not await tried("pulse", self.beat()):
                self._unanswered_at = time.monotonic()
                self._metrics.bus_up(False)
                if self._loss_grace is None:
                    self._let_go()
            unheard = time.monotonic() - self._vouched_at
            pause = PULSE_AGAIN if unheard > PULSE_AGAIN else PULSE_EVERY
            if self._loss_grace is not None and unheard > max(self._loss_grace, PULSE_AGAIN):
                for run in list(self.runs.values()):
                    run.token.stop(StopReason.SIGNAL_LOST)

    async def _keep_claiming(self) -> None:
        while True:
            await self._lapsed.wait()
            self._lapsed.clear()
            if not await tried("claim", self._claim_all()):
                self._lapsed.set()
                await asyncio.sleep(PULSE_AGAIN)
            elif not self._lapsed.is_set():
                self._let_go()

    async def _claim_all(self) -> None:
        for run in [run for run in self.runs.values() if run.claim]:
            if run.nonce in self.runs and not await self._claim(run):
                run.token.stop(StopReason.TAKEN)


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
