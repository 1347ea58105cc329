"""The signal bus over Redis or Valkey (redis-py, asyncio)."""

from __future__ import annotations

import asyncio
import json
import math
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from loguru import logger
from redis.credentials import CredentialProvider
from redis.exceptions import RedisError, ResponseError

from haltline import redis_scripts as scripts
from haltline.metrics import Metrics
from haltline.redis_connection import MAX_AGE, Freshness, connect
from haltline.redis_pulse import LIFE, PULSE_AGAIN, Pulse, now
from haltline.redis_watch import CLOSE_TIMEOUT, Watch
from haltline.runs import Arrival, Outcome, Receipt, Run, StopReason, new_run_id
from haltline.signals import WAIT_FOR_END, Begun, BusUnavailable, Busy, StopState, StopVerdict, Used
from haltline.tasks import cancelled

RECEIPTS_KEPT = 1024
STOPS_KEPT, STOPS_KEPT_FOR = 10_000, 60.0  # stops, seconds: what is set again where the bus has forgotten it
PUT_BACK_AT_ONCE = 32  # of them under way together
LOOK_AGAIN = (0.01, 0.25)  # seconds, first and longest, between looks at a run that is waited for, if no push comes
LOOKS = 400  # of these a second, at most: where many wait at once, each looks more seldom
_LOST = (RedisError, OSError, TimeoutError)


@asynccontextmanager
async def reachable() -> AsyncIterator[None]:
    """Turn what the client raises into BusUnavailable."""
    try:
        yield
    except _LOST as error:
        raise BusUnavailable(f"{type(error).__name__}: {error}") from error


class RedisBus:
    """Implements `signals.SignalBus`. One a process; `async with` starts and ends its subscription and pulse."""

    def __init__(
        self,
        url: str,
        replica: str,
        *,
        stop_ttl: int,
        poll_interval: float,
        run_timeout: float,
        loss_grace: float | None = None,
        cluster: bool = False,
        credentials: CredentialProvider | None = None,
        max_age: float = MAX_AGE,
        metrics: Metrics | None = None,
    ) -> None:
        """Nothing connects here.

        Args:
            url: redis://, rediss:// or unix://; of a cluster, any of its nodes.
            replica: the replica's name; with each entering an id is made of it that is new.
            stop_ttl: seconds that a stop nobody consumes is kept.
            poll_interval: seconds between two looks at the live runs' keys.
            run_timeout: seconds that one run may take.
            loss_grace: seconds without a bus after which live runs are halted; None lets them go on.
            cluster: whether Redis runs in cluster mode.
            credentials: whom connections sign in as, where the URL does not say it.
            max_age: seconds after which a connection is replaced.
            metrics: what is told of the bus' state.

        Raises:
            ValueError: the URL cannot be used.
        """
        self._replica, self.replica_id = replica, ""
        self._freshness = Freshness(max_age)
        reach = partial(connect, url, cluster=cluster, credentials=credentials, freshness=self._freshness)
        self.redis = reach()
        self._stop_ttl = stop_ttl
        self._record_ttl = int(stop_ttl + run_timeout) + 60  # a record must outlive its run, a watermark its stop
        self._begin, self._stop, self._closing, self._end, self._claim = (
            self.redis.register_script(s)
            for s in (scripts.BEGIN, scripts.STOP, scripts.CLOSING, scripts.END, scripts.CLAIM)
        )
        self._asking: set[asyncio.Task[None]] = set()
        self._waiting: dict[tuple[str, str], list[asyncio.Future[Receipt]]] = {}
        self._told: OrderedDict[tuple[str, str], Receipt] = OrderedDict()
        self._stored: OrderedDict[tuple[str, str, StopReason], _Stored] = OrderedDict()  # of chat and run; oldest first
        self._metrics = metrics or Metrics()
        self.pulse = Pulse(self.redis, loss_grace, self._metrics, self._put_back)
        self.watch = Watch(
            self.redis,
            reach(timeout=None, connections=4, beside=self.redis),  # one, and those that are being closed
            poll_interval,
            max_age,
            self.pulse,
            self._metrics,
            on_receipt=self._received,
            put_back=self._put_back,
            put_back_stops=self._put_back_stops,
        )

    async def __aenter__(self) -> RedisBus:
        # Here, not where it is made: many processes may start from one snapshot of what was made.
        self.replica_id = f"{self._replica}-{new_run_id()}"
        self.watch.start(self.replica_id)
        try:  # or the first stop would pay for it
            async with self._asking_it():
                for script in (self._begin, self._stop, self._closing, self._end, self._claim):
                    await self.redis.script_load(script.script)
        except BusUnavailable as error:
            logger.warning("error=<{}> | the signal bus does not answer at the start", error)
        return self

    async def __aexit__(self, *_: object) -> None:
        await cancelled(*self._asking, within=CLOSE_TIMEOUT)
        with suppress(*_LOST):  # a peer that is gone does not take leave
            await self.watch.close()
        with suppress(*_LOST):
            await self.redis.aclose()

    @asynccontextmanager
    async def _asking_it(self) -> AsyncIterator[None]:
        """As `reachable`; what fails makes the bus doubtful."""
        try:
            async with reachable():
                yield
        except BusUnavailable:
            self.watch.doubt()
            raise

    def renew(self) -> None:
        """See `signals.SignalBus.renew`. What is under way goes on on the connection it has."""
        self._freshness.renew()
        self.watch.renew()

    # ---- the run's side
    async def begin(self, run: Run, *, takeover: str = "", delete: bool = False) -> Begun | Busy | Used:
        """See `signals.SignalBus.begin`. The caller must `end` what has begun."""
        run.deletes = delete
        ask = partial(self._ask_begin, run, takeover)
        try:
            async with self._asking_it():
                await self.watch.until_settled()
                await self.pulse.add(run)
                lapses = self.pulse.lapses
                try:
                    answer = await ask()
                except _LOST:
                    self.watch.doubt()
                    await self.watch.until_settled()
                    await self.pulse.add(run)
                    answer = await ask()  # it may hold the chat already: the script knows its nonce
                if self.pulse.lapses != lapses:  # it stood still meanwhile, and another may have taken the chat since
                    await self.pulse.add(run)
                    answer = await ask()
        except BaseException:
            self.pulse.remove(run)
            self._until_done(self.pulse.beat)  # or a chat it holds unknowingly would stay busy until the pulse ends
            raise
        match answer:
            case ["begun", claim, arrived, stopped]:
                run.claim, run.arrived_ms, run.closing_marked = claim, arrived, bool(stopped)
                if delete:
                    self._keep_stop(run.chat_id, "", arrived, StopReason.DELETED)
                return Begun(StopReason.of(stopped) if stopped else None)
            case ["busy", other, owner, nonce, claim, later, closing]:
                self.pulse.remove(run)
                return Busy(other, owner, nonce, claim, bool(later), bool(closing))
            case _:
                self.pulse.remove(run)
                return Used()

    async def _ask_begin(self, run: Run, takeover: str) -> Any:
        return await self._begin(
            keys=scripts.keys(run.chat_id, run.run_id),
            args=[
                *(run.run_id, self.replica_id, run.nonce, run.arrival.stamp, run.arrival.age_ms),
                *(self._record_ttl, takeover, _kind(run)),
            ],
        )

    async def closing(self, run: Run) -> None:
        """See `signals.SignalBus.closing`."""
        async with self._asking_it():
            await self._closing(keys=scripts.keys(run.chat_id, run.run_id), args=[run.nonce, self._record_ttl])

    async def end(self, run: Run, receipt: Receipt) -> bool:
        """See `signals.SignalBus.end`. The run is vouched for no longer, whether or not the bus could be told.

        Where it could not, it is told as soon as it answers, while the last pulse may still name the run.
        """
        run.ending = True
        told = json.dumps({"chat_id": run.chat_id, **asdict(receipt)})
        say = partial(
            self._end,
            keys=scripts.keys(run.chat_id, run.run_id),
            args=[run.run_id, run.nonce, run.claim, told, self._stop_ttl],
        )
        try:
            async with self._asking_it():
                answer = await say()
        except BusUnavailable:
            self._until_done(say)
            raise
        finally:
            self.pulse.remove(run)
        return bool(answer[0] != "lost")

    def _until_done(self, ask: Callable[[], Awaitable[Any]]) -> None:
        """Ask in the background until it is answered, for as long as a pulse lives."""

        async def asking() -> None:
            until = asyncio.get_running_loop().time() + LIFE
            while asyncio.get_running_loop().time() < until:
                with suppress(*_LOST):
                    await ask()
                    return
                await asyncio.sleep(PULSE_AGAIN)

        task = asyncio.create_task(asking())
        self._asking.add(task)
        task.add_done_callback(self._asking.discard)

    async def holds(self, run: Run) -> bool:
        """See `signals.SignalBus.holds`."""
        record = await self._record(run.chat_id)
        return bool(record.get("nonce") == run.nonce)

    def certain(self, run: Run) -> bool:
        """See `signals.SignalBus.certain`."""
        return self.pulse.certain(run)

    async def until_certain(self, run: Run) -> None:
        """See `signals.SignalBus.until_certain`."""
        await self.pulse.until_certain(run)

    async def _put_back(self, run: Run) -> bool:
        """Raise the claim of a live run, or write its record again that the bus forgot.

        False where another run has the chat.
        """
        args = [
            *(run.run_id, self.replica_id, run.nonce, run.arrived_ms, "1" if run.arrival.stamp else ""),
            *(run.claim, self._record_ttl, "1" if run.token.stopped else "", _kind(run)),
        ]
        answer = await self._claim(keys=scripts.keys(run.chat_id, run.run_id), args=args)
        if answer[0] == "held":
            run.claim = answer[1]
        return bool(answer[0] == "held")

    # ---- the stop's side
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
        """See `signals.SignalBus.stop`."""
        async with self._asking_it():
            if wait:
                await self.watch.subscribed()
            given = stamp or arrival.stamp
            answer = await self._ask_stop(chat_id, given, arrival.age_ms, run_id, reason, self._stop_ttl, wait=wait)
        match answer:
            case ["live", live, owner, stamp]:
                self._keep_stop(chat_id, run_id, stamp, reason)
                return StopVerdict(StopState.LIVE, live, owner)
            case ["ended", receipt]:
                return StopVerdict(StopState.ENDED, run_id, receipt=_receipt(json.loads(receipt)))
            case [_, stamp, lay_there]:
                self._keep_stop(chat_id, run_id, stamp, reason)
                return StopVerdict(StopState.IDLE, stamp=stamp, lay_there=bool(lay_there))
        return StopVerdict(StopState.IDLE)

    async def _ask_stop(
        self,
        chat_id: str,
        stamp: float | str,
        age_ms: float,
        run_id: str,
        reason: StopReason,
        ttl: int,
        *,
        wait: bool = False,
        again: bool = False,
    ) -> Any:
        return await self._stop(
            keys=scripts.keys(chat_id, run_id),
            args=[
                *(stamp, age_ms, ttl, run_id, reason.value, self.replica_id if wait else ""),
                *(self._record_ttl, "1" if again else ""),
            ],
        )

    def _keep_stop(self, chat_id: str, run_id: str, stamp: str, reason: StopReason) -> None:
        """Remember a stop that the bus has stored, for a minute."""
        which, at = (chat_id, run_id, reason), now()
        older = self._stored.pop(which, None)
        self._stored[which] = _Stored(at, max(stamp, older.stamp, key=float) if older else stamp)
        while len(self._stored) > STOPS_KEPT or at - next(iter(self._stored.values())).at > STOPS_KEPT_FOR:
            self._stored.popitem(last=False)

    async def _put_back_stops(self) -> None:
        """Set the stops of the last minute again that the bus does not know any more."""
        since = now() - STOPS_KEPT_FOR
        owed = [(*which, stored) for which, stored in self._stored.items() if stored.at > since]

        async def again(chat_id: str, run_id: str, reason: StopReason, stored: _Stored) -> None:
            ttl = self._stop_ttl - math.floor(now() - stored.at)
            if ttl <= 0:
                return
            try:
                answer = await self._ask_stop(chat_id, stored.stamp, 0, run_id, reason, ttl, again=True)
            except ResponseError as error:  # a record that a person wrote; the others must not wait for it
                logger.warning("chat_id=<{}> error=<{}> | a stop cannot be set again", chat_id, error)
                return
            if answer[0] not in ("known", "ended"):
                self._metrics.bus_forgot("stop")

        for i in range(0, len(owed), PUT_BACK_AT_ONCE):
            await asyncio.gather(*(again(*stop) for stop in owed[i : i + PUT_BACK_AT_ONCE]))

    @property
    def settled(self) -> bool:
        """See `signals.SignalBus.settled`."""
        return self.watch.settled

    async def until_settled(self) -> None:
        """See `signals.SignalBus.until_settled`."""
        async with self._asking_it():
            await self.watch.until_settled()

    async def wait_end(self, chat_id: str, run_id: str, seconds: float) -> Receipt | None:
        """See `signals.SignalBus.wait_end`. The receipt is pushed; the record is looked at in case it was missed."""
        deadline = asyncio.get_running_loop().time() + seconds
        told: asyncio.Future[Receipt] = asyncio.get_running_loop().create_future()
        waiting = self._waiting.setdefault((chat_id, run_id), [])
        waiting.append(told)
        pause, gone = LOOK_AGAIN[0], False
        if (chat_id, run_id) in self._told:
            told.set_result(self._told[chat_id, run_id])
        try:
            while (left := deadline - asyncio.get_running_loop().time()) > 0:
                await asyncio.wait({told}, timeout=min(left, pause))
                if told.done():
                    return told.result()
                pause = min(max(pause, LOOK_AGAIN[0]) * 2, max(LOOK_AGAIN[1], len(self._waiting) / LOOKS))
                record = await self._record(chat_id)
                for ended in (record.get("last"), record.get("before")):
                    if ended and ended["run_id"] == run_id:
                        return _receipt(ended)
                if record.get("run") != run_id or not await self._vouched(record["owner"], record["nonce"]):
                    if not self.watch.settled:
                        continue  # its replica may not have been back yet
                    if gone:
                        return None
                    gone, pause = True, 0  # it may have ended between the two readings: read once more
            return None
        finally:
            waiting.remove(told)
            if not waiting:
                self._waiting.pop((chat_id, run_id), None)

    def _received(self, told: dict[str, Any]) -> None:
        which, receipt = (told["chat_id"], told["run_id"]), _receipt(told)
        if receipt.outcome is not Outcome.REFUSED:  # what was refused may be sent again by its id, and then runs
            self._told[which] = receipt  # it may come before the reply of the STOP that asked for it
        if len(self._told) > RECEIPTS_KEPT:
            self._told.popitem(last=False)
        for future in self._waiting.get(which, ()):
            if not future.done():
                future.set_result(receipt)

    # ---- looking
    async def is_live(self, busy: Busy) -> bool:
        """See `signals.SignalBus.is_live`."""
        if await self._vouched(busy.owner, busy.nonce):
            return True
        if self.watch.settled:
            return False
        await self.until_settled()
        return await self._vouched(busy.owner, busy.nonce)

    async def live_among(self, chat_ids: Iterable[str]) -> dict[str, str]:
        """See `signals.SignalBus.live_among`. Two commands, however many chats, while none is about to end.

        (On a cluster two for each slot.)
        """
        ids = list(chat_ids)
        live = await self._held(ids)
        if ids and not self.watch.settled:
            await self.until_settled()
            live = await self._held(ids)
        ending = {i: r for i, r in live.items() if r.get("closing")}
        if ending:
            await asyncio.gather(*(self.wait_end(i, r["run"], WAIT_FOR_END) for i, r in ending.items()))
            live = {i: r for i, r in live.items() if i not in ending} | await self._held(list(ending))
        return {i: r["run"] for i, r in live.items() if not r.get("delete")}

    async def _held(self, chat_ids: list[str]) -> dict[str, dict[str, Any]]:
        """The records of these chats' holders that a replica vouches for."""
        if not chat_ids:
            return {}
        async with self._asking_it():
            raws = await self.redis.mget([scripts.record_key(i) for i in chat_ids])
            records = {i: json.loads(raw) for i, raw in zip(chat_ids, raws, strict=True) if raw}
            held = {i: r for i, r in records.items() if r.get("run")}
            if not held:
                return {}
            owners = sorted({r["owner"] for r in held.values()})
            pulses = await self.redis.mget([scripts.pulse_key(o) for o in owners])
        vouched = {o: set(json.loads(p)) if p else set() for o, p in zip(owners, pulses, strict=True)}
        return {i: r for i, r in held.items() if r["nonce"] in vouched[r["owner"]]}

    async def going_on(self, runs: Mapping[str, str]) -> set[str]:
        """See `signals.SignalBus.going_on`."""
        held = await self._held(list(set(runs.values())))
        of = {record["nonce"] for record in held.values() if not record.get("closing")}
        return of & set(runs)

    async def ping(self) -> None:
        """See `signals.SignalBus.ping`. On a cluster all nodes are asked."""
        async with self._asking_it():
            await self.redis.ping()

    async def check(self) -> None:
        """See `signals.SignalBus.check`."""
        answered = False
        try:
            await self.ping()
            async with self._asking_it():
                await self.redis.set(f"{scripts.pulse_key(self.replica_id)}:ping", "", px=1000)
            answered = True
        finally:  # while there is no run, no pulse tells
            self._metrics.bus_up(answered and self.watch.standing)

    async def _record(self, chat_id: str) -> dict[str, Any]:
        async with self._asking_it():
            raw = await self.redis.get(scripts.record_key(chat_id))
        return dict(json.loads(raw)) if raw else {}

    async def _vouched(self, owner: str, nonce: str) -> bool:
        async with self._asking_it():
            pulse = await self.redis.get(scripts.pulse_key(owner))
        return pulse is not None and nonce in json.loads(pulse)


@dataclass(frozen=True, slots=True)
class _Stored:
    """A stop as the bus has taken it. `at`: seconds by `redis_pulse.now`; `stamp`: ms by the bus' clock, as text."""

    at: float
    stamp: str


def _kind(run: Run) -> str:
    return "delete" if run.deletes else "run"


def _receipt(told: dict[str, Any]) -> Receipt:
    reason = told.get("reason")
    return Receipt(
        told["run_id"],
        Outcome(told["outcome"]),
        StopReason(reason) if reason else None,
        told.get("halted_ms"),
        told.get("upstream_closed_ms"),
        bool(told.get("saved", True)),
    )
