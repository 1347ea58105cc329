"""A replica that was not heard, and a bus that came back: over a real Valkey, each step driven by the test.

How long a pulse lives is cut short for the replica that stalls; the others' stays what it is.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest
from redis.asyncio import Redis

from haltline import redis_pulse, redis_scripts, redis_watch
from haltline.authentication import NoAuthentication
from haltline.events import Failed
from haltline.limits import Limits
from haltline.metrics import Metrics
from haltline.prometheus import PrometheusMetrics
from haltline.redis_bus import RedisBus
from haltline.redis_connection import connect
from haltline.resources import Resources
from haltline.runs import Arrival, Outcome, Run, StopReason
from haltline.settings import Settings
from haltline.signals import Begun, Busy, StopState
from haltline.stopping import stop_chat
from tests.integration.conftest import Lone, Way
from tests.integration.test_runs import Bench, bench, ended, rest, texts
from tests.integration.test_signal_bus import SOON, begun, chat, done, fired, new_run

__all__ = ["bench", "chat"]


async def unheard(bus: RedisBus, run: Run | None = None) -> None:
    """No pulse of it is confirmed for longer than one lives: by its own clock, and by Redis'."""
    bus.pulse._vouched_at -= redis_pulse.LIFE + 0.1
    await bus.redis.delete(redis_scripts.pulse_key(bus.replica_id))
    assert run is None or not bus.certain(run)


async def soon(condition: Any) -> None:
    async with asyncio.timeout(SOON):
        while not condition():
            await asyncio.sleep(0.005)


# ---- a replica that was not heard


async def test_a_run_is_held_still_until_its_claim_was_raised(make_bus: Any, chat: str) -> None:
    bus = await make_bus("a")
    run = await begun(bus, chat)
    claim = run.claim
    await unheard(bus, run)
    held = asyncio.create_task(bus.until_certain(run))
    await asyncio.sleep(0)
    assert not held.done()
    await bus.pulse.beat()
    async with asyncio.timeout(SOON):
        await held
    assert bus.certain(run)
    assert int(run.claim) > int(claim)
    assert await bus.holds(run)
    assert await bus.end(run, done(run))


async def test_a_takeover_that_read_the_old_claim_is_refused(make_bus: Any, chat: str) -> None:
    bus, other = await make_bus("a"), await make_bus("b")
    run, second = await begun(bus, chat), new_run(chat)
    busy = await other.begin(second)
    assert isinstance(busy, Busy)
    await unheard(bus)
    assert not await other.is_live(busy)
    await bus.pulse.beat()
    await bus.until_certain(run)
    again = await other.begin(second, takeover=busy.claim)
    assert isinstance(again, Busy)
    assert await other.is_live(again)
    assert await bus.holds(run)


async def test_a_run_whose_chat_was_taken_while_it_stood_still_says_and_writes_nothing_more(
    bench: Bench, make_bus: Any
) -> None:
    execution = await bench.running("Hel")
    await unheard(bench.bus)
    bench.agents.say("lo, which must not go out")
    second = new_run(bench.chat)
    busy = await bench.other.begin(second)
    assert isinstance(busy, Busy)
    assert await bench.other.begin(second, takeover=busy.claim) == Begun()
    before = await bench.transcript()
    await bench.bus.pulse.beat()
    [closing] = await rest(execution)
    assert isinstance(closing, Failed)
    assert "taken by another run" in closing.reason
    assert await ended(execution) == (Outcome.LOST, StopReason.TAKEN)
    assert await bench.transcript() == before
    assert await bench.other.end(second, done(second))


async def test_a_run_that_is_held_still_can_be_stopped(bench: Bench) -> None:
    execution = await bench.running("Hel")
    await unheard(bench.bus)
    bench.agents.say("lo")
    assert (await bench.other.stop(bench.chat, Arrival(), wait=True)).state is StopState.LIVE
    await rest(execution)
    assert await ended(execution) == (Outcome.STOPPED, StopReason.USER)
    assert [m[:3] for m in await bench.transcript()] == [("user", "hello", False), ("assistant", "Hel", True)]


async def test_a_held_run_goes_on_where_its_chat_is_still_its_own(bench: Bench) -> None:
    execution = await bench.running("Hel")
    await unheard(bench.bus)
    bench.agents.say("lo")
    assert await execution.stream.take(0.05) == []
    await bench.bus.pulse.beat()
    assert await texts(execution, 1) == ["lo"]
    bench.agents.end()
    await rest(execution)
    assert await ended(execution) == (Outcome.DONE, None)


async def test_who_is_held_is_told_to_whoever_measures(make_bus: Any, way: Way, chat: str) -> None:
    metrics = PrometheusMetrics()
    bus = await make_bus(way=way | {"metrics": metrics})
    ends, goes_on = await begun(bus, f"{chat}-ends"), await begun(bus, chat)

    def held() -> float | None:
        return metrics.registry.get_sample_value("haltline_runs_held")

    await unheard(bus, ends)
    assert held() == 2
    await bus.end(ends, done(ends))
    assert held() == 1
    await bus.pulse.beat()
    await bus.until_certain(goes_on)
    await soon(lambda: held() == 0)


async def test_without_a_bus_a_run_that_may_go_on_is_not_held(make_bus: Any, chat: str, lone: Lone) -> None:
    bus = await make_bus(way=lone.way)  # SIGNAL_LOSS_POLICY=continue
    run = await begun(bus, chat)
    lone.stop()
    assert not await redis_pulse.tried("pulse", bus.pulse.beat())
    bus.pulse._vouched_at -= redis_pulse.LIFE
    held = asyncio.create_task(bus.until_certain(run))
    async with asyncio.timeout(redis_pulse.PULSE_EVERY + SOON):
        await held  # the next beat finds no bus
    assert bus.certain(run)


async def test_a_begin_that_was_answered_after_its_replica_stood_still_asks_again(
    make_bus: Any, chat: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    bus, other = await make_bus("a"), await make_bus("b")
    run, second, ask = new_run(chat), new_run(chat), bus._ask_begin
    asked = 0

    async def slowly(*what: Any) -> Any:
        nonlocal asked
        asked += 1
        answer = await ask(*what)
        if asked == 1:  # it stands still before it reads the reply; another takes the chat
            await unheard(bus)
            busy = await other.begin(second)
            assert isinstance(busy, Busy)
            assert await other.begin(second, takeover=busy.claim) == Begun()
            await bus.pulse.beat()
        return answer

    monkeypatch.setattr(bus, "_ask_begin", slowly)
    assert isinstance(await bus.begin(run), Busy)
    assert await other.holds(second)


# ---- a bus that came back


async def another_server(lone: Lone) -> None:
    """It was a copy for a moment, and leads again: what a fail-over looks like to those who stay connected."""
    admin = Redis.from_url(lone.way["url"])
    await admin.execute_command("REPLICAOF", "127.0.0.1", "1")
    await admin.execute_command("REPLICAOF", "NO", "ONE")
    await admin.aclose()


async def drop_subscriptions(lone: Lone) -> None:
    admin = Redis.from_url(lone.way["url"])
    await admin.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
    await admin.aclose()


@pytest.fixture
def settles_soon(monkeypatch: pytest.MonkeyPatch) -> float:
    monkeypatch.setattr(redis_watch, "SETTLE", 0.3)
    return 0.3


async def test_a_subscription_that_breaks_makes_no_bus_young(make_bus: Any, lone: Lone, chat: str) -> None:
    bus = await make_bus(way=lone.way)
    await bus.watch.subscribed()
    await drop_subscriptions(lone)
    await soon(lambda: not bus.watch._standing.is_set())
    await soon(lambda: bus.settled)
    since = time.monotonic()
    await begun(bus, chat)
    assert time.monotonic() - since < redis_watch.SETTLE


async def test_nothing_begins_and_nobody_is_idle_while_a_bus_settles(
    make_bus: Any, lone: Lone, chat: str, settles_soon: float
) -> None:
    owner, other = await make_bus("a", way=lone.way), await make_bus("b", way=lone.way)
    run = await begun(owner, chat)
    await other.watch.subscribed()
    forgetful = connect(**lone.way)
    await another_server(lone)
    await forgetful.flushdb()
    await other.watch.recognise()
    assert not other.settled
    nothing: Any = None
    settings, limits = Settings(model_provider="scripted"), Limits(other.redis, other)
    resources = Resources(settings, other, nothing, nothing, Metrics(), NoAuthentication(), limits)
    beginning = asyncio.create_task(other.begin(new_run(chat)))
    listing = asyncio.create_task(other.live_among([chat]))
    stopping = asyncio.create_task(stop_chat(resources, chat, Arrival(), wait=SOON))
    await owner.watch.look()  # it puts its record back
    busy = await beginning
    assert isinstance(busy, Busy)
    assert busy.run_id == run.run_id
    assert await fired(run) is StopReason.USER
    await owner.end(run, done(run, Outcome.STOPPED))
    assert (await stopping).status == "stopped"
    await listing
    await forgetful.aclose()


async def test_stops_that_a_bus_forgot_are_set_again(make_bus: Any, lone: Lone, chat: str) -> None:
    metrics = PrometheusMetrics()
    bus, owner = await make_bus("a", way=lone.way | {"metrics": metrics}), await make_bus("b", way=lone.way)
    late, named = new_run(chat, int(time.time() * 1000) - 2000), new_run(f"{chat}-named")
    await bus.stop(chat, Arrival(int(time.time() * 1000) - 1000))
    await bus.stop(f"{chat}-named", Arrival(), run_id=named.run_id)
    forgetful = connect(**lone.way)
    await forgetful.flushdb()
    await another_server(lone)
    await bus.watch.recognise()
    await soon(lambda: 'forgot_total{what="stop"} 2.0' in metrics.text().decode())
    assert await owner.begin(late) == Begun(StopReason.USER)
    assert await owner.begin(named) == Begun(StopReason.USER)
    await forgetful.aclose()


async def test_a_stop_that_is_known_is_not_set_again(make_bus: Any, lone: Lone, chat: str) -> None:
    bus = await make_bus("a", way=lone.way)
    stamp = int(time.time() * 1000)
    await bus.stop(chat, Arrival(stamp))
    first = new_run(chat, stamp - 10)
    assert await bus.begin(first) == Begun(StopReason.USER)
    assert await bus.end(first, done(first))
    second = new_run(chat, stamp + 10)  # within the slack of two clocks, and not meant
    assert await bus.begin(second) == Begun()
    await bus._put_back_stops()
    await bus.watch.look()
    assert second.token.reason is None


async def test_a_deletion_that_a_bus_forgot_still_covers_what_was_sent_before_it(
    make_bus: Any, lone: Lone, chat: str
) -> None:
    bus = await make_bus("a", way=lone.way)
    earlier, deletion = new_run(chat, int(time.time() * 1000) - 50), new_run(chat)
    assert await bus.begin(deletion, delete=True) == Begun()
    assert await bus.end(deletion, done(deletion))
    forgetful = connect(**lone.way)
    await forgetful.flushdb()
    await bus._put_back_stops()
    assert await bus.begin(earlier) == Begun(StopReason.DELETED)
    await forgetful.aclose()


async def test_a_run_that_ended_in_the_lost_world_is_not_put_back(make_bus: Any, lone: Lone, chat: str) -> None:
    bus, other = await make_bus("a", way=lone.way), await make_bus("b", way=lone.way)
    run = await begun(bus, chat)
    forgetful = connect(**lone.way)
    await forgetful.flushdb()
    assert await bus.end(run, done(run))  # nobody else could have ended it
    assert not await bus._put_back(run)
    assert await other.begin(new_run(chat)) == Begun()
    await forgetful.aclose()
