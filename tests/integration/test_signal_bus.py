"""The signal bus over a real Valkey: who holds a chat, whom a stop hits, who is told of the end.

Push is tested with the look 30 s away; the look is tested with what no push ever tells: keys SET by hand.
"""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

import pytest
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisConnectionError

from haltline import redis_scripts as scripts
from haltline.redis_bus import RedisBus
from haltline.runs import Arrival, Outcome, Receipt, Run, StopReason, new_run_id
from haltline.signals import Begun, BusUnavailable, Busy, StopState, StopVerdict, Used

SOON = 5.0  # seconds: a deadline for what must happen, never a measure


def now_ms() -> int:
    return int(time.time() * 1000)


def new_run(chat_id: str, stamp: int = 0, run_id: str | None = None) -> Run:
    return Run(chat_id, run_id or new_run_id(), Arrival(stamp))


def done(run: Run, outcome: Outcome = Outcome.DONE) -> Receipt:
    return Receipt(run.run_id, outcome)


async def fired(run: Run) -> StopReason | None:
    event = asyncio.Event()
    run.token.on_stop(event.set)
    async with asyncio.timeout(SOON):
        await event.wait()
    return run.token.reason


async def begun(bus: RedisBus, chat_id: str, stamp: int = 0) -> Run:
    run = new_run(chat_id, stamp)
    assert await bus.begin(run) == Begun()
    return run


async def commands(redis: Redis) -> dict[str, int]:
    stats = await redis.info("commandstats")
    return {name.removeprefix("cmdstat_"): value["calls"] for name, value in stats.items()}


async def spent(redis: Redis, before: dict[str, int]) -> dict[str, int]:
    """Commands since `before`, but for the one that asked for it and what a new connection says: no cost of chats."""
    after = await commands(redis)
    found = {name: calls - before.get(name, 0) for name, calls in after.items() if calls != before.get(name, 0)}
    return {name: calls for name, calls in found.items() if name not in ("info", "hello")}


@pytest.fixture
def chat(request: pytest.FixtureRequest) -> str:
    return f"bus-{abs(hash(request.node.name))}"


# ---- who holds a chat


async def test_a_chat_has_one_holder_until_its_end(make_bus: Any, chat: str) -> None:
    a, b = await make_bus("a"), await make_bus("b")
    first, second = new_run(chat, now_ms() - 1000), new_run(chat)
    assert await a.begin(first) == Begun()
    busy = await b.begin(second)
    assert busy == Busy(first.run_id, a.replica_id, first.nonce, first.claim, later=False, closing=False)
    assert await a.holds(first)
    assert await b.live_among([chat, "nobody"]) == {chat: first.run_id}
    assert await a.end(first, done(first))
    assert not await a.holds(first)
    assert await b.live_among([chat]) == {}
    assert await b.begin(second) == Begun()
    assert int(second.claim) > int(first.claim)


async def test_a_begin_whose_reply_was_lost_is_sent_again(make_bus: Any, chat: str) -> None:
    bus = await make_bus()
    run = await begun(bus, chat)
    claim = run.claim
    assert await bus.begin(run) == Begun()
    assert int(run.claim) > int(claim)
    assert await bus.end(run, done(run))


async def test_a_begin_whose_reply_was_lost_is_asked_again(
    make_bus: Any, chat: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    bus = await make_bus()
    monkeypatch.setattr(bus, "_begin", losing_replies(bus._begin, 1))
    run = await begun(bus, chat)
    assert await bus.holds(run)


async def test_a_chat_that_a_lost_begin_holds_is_free_for_others(
    make_bus: Any, chat: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    bus, other = await make_bus("a"), await make_bus("b")
    monkeypatch.setattr(bus, "_begin", losing_replies(bus._begin, 2))
    with pytest.raises(BusUnavailable):
        await bus.begin(new_run(chat))
    run = new_run(chat)
    async with asyncio.timeout(SOON):
        while isinstance(busy := await other.begin(run), Busy):
            if not await other.is_live(busy):  # the pulse says at once that nobody vouches for it
                assert await other.begin(run, takeover=busy.claim) == Begun()
                break
            await asyncio.sleep(0.01)


async def test_an_end_that_was_not_said_is_said_as_soon_as_the_bus_answers(
    make_bus: Any, chat: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    bus, other = await make_bus("a"), await make_bus("b")
    run = await begun(bus, chat)
    monkeypatch.setattr(bus, "_end", losing_requests(bus._end, 2))
    with pytest.raises(BusUnavailable):
        await bus.end(run, done(run))
    receipt = await other.wait_end(chat, run.run_id, SOON)
    assert receipt == done(run)
    assert await other.begin(new_run(chat)) == Begun()


def losing_replies(script: Any, count: int) -> Any:
    """A script that is run, but whose first replies do not arrive."""
    left = [count]

    async def run(**what: Any) -> Any:
        answer = await script(**what)
        left[0] -= 1
        if left[0] >= 0:
            raise RedisConnectionError("the connection was lost")
        return answer

    run.script = script.script  # type: ignore[attr-defined]
    return run


def losing_requests(script: Any, count: int) -> Any:
    """A script whose first calls do not reach the server."""
    left = [count]

    async def run(**what: Any) -> Any:
        left[0] -= 1
        if left[0] >= 0:
            raise RedisConnectionError("the connection was lost")
        return await script(**what)

    return run


async def test_a_run_id_names_one_execution(make_bus: Any, chat: str) -> None:
    bus = await make_bus()
    run = await begun(bus, chat)
    twin = new_run(chat, run_id=run.run_id)
    assert isinstance(await bus.begin(twin), Busy)
    await bus.end(run, done(run))
    assert await bus.begin(twin) == Used()


async def test_the_run_of_a_dead_replica_is_taken_over(make_bus: Any, redis: Redis, chat: str) -> None:
    a, b = await make_bus("a"), await make_bus("b")
    old, new = await begun(a, chat), new_run(chat)
    busy = await b.begin(new)
    assert isinstance(busy, Busy)
    assert await b.is_live(busy)
    await redis.delete(scripts.pulse_key(a.replica_id))  # as it expires when nobody beats
    assert not await b.is_live(busy)
    assert await b.live_among([chat]) == {}
    assert await b.begin(new, takeover=busy.claim) == Begun()
    assert not await a.holds(old)
    assert not await a.end(old, done(old))
    assert await b.holds(new)
    await a.watch.look()  # the stalled replica wakes
    assert old.token.reason is None  # its run had ended; nothing to halt


async def test_a_run_whose_chat_was_taken_is_ended_by_the_look(make_bus: Any, redis: Redis, chat: str) -> None:
    a, b = await make_bus("a"), await make_bus("b")
    old, new = await begun(a, chat), new_run(chat)
    await redis.delete(scripts.pulse_key(a.replica_id))
    busy = await b.begin(new)
    assert isinstance(busy, Busy)
    await b.begin(new, takeover=busy.claim)
    await a.watch.look()
    assert old.token.reason is StopReason.TAKEN


async def test_a_forgotten_record_is_put_back_and_can_be_stopped(make_bus: Any, redis: Redis, chat: str) -> None:
    a, b = await make_bus("a"), await make_bus("b")
    run = await begun(a, chat)
    await redis.delete(scripts.record_key(chat))
    await a.watch.look()
    assert run.token.reason is None
    assert await a.holds(run)
    assert (await b.stop(chat, Arrival())).run_id == run.run_id
    assert await fired(run) is StopReason.USER


# ---- whom a stop hits: the push


@pytest.mark.parametrize("reason", [StopReason.USER, StopReason.SUPERSEDED, StopReason.DELETED])
@pytest.mark.parametrize("named", [False, True], ids=["by time", "by name"])
async def test_a_stop_through_another_replica_is_pushed(
    make_bus: Any, chat: str, reason: StopReason, named: bool
) -> None:
    a, b = await make_bus("a"), await make_bus("b")
    run = await begun(a, chat)
    verdict = await b.stop(chat, Arrival(), run_id=run.run_id if named else "", reason=reason)
    assert verdict == StopVerdict(StopState.LIVE, run.run_id, a.replica_id)
    assert await fired(run) is reason
    assert run.closing_marked
    busy = await b.begin(new_run(chat))
    assert isinstance(busy, Busy)
    assert busy.closing


async def test_a_stop_that_names_another_run_leaves_this_one_alone(make_bus: Any, chat: str) -> None:
    bus = await make_bus()
    run = await begun(bus, chat)
    assert (await bus.stop(chat, Arrival(), run_id=new_run_id())).state is StopState.IDLE
    await bus.watch.look()
    assert run.token.reason is None


async def test_a_stop_of_an_ended_run_tells_how_it_ended(make_bus: Any, chat: str) -> None:
    bus = await make_bus()
    run = await begun(bus, chat)
    receipt = Receipt(run.run_id, Outcome.STOPPED, StopReason.USER, 1.5, 2.25)
    await bus.end(run, receipt)
    verdict = await bus.stop(chat, Arrival(), run_id=run.run_id)
    assert verdict == StopVerdict(StopState.ENDED, run.run_id, receipt=receipt)
    follower = await begun(bus, chat)
    await bus.watch.look()
    assert follower.token.reason is None


# ---- whom a stop hits: the look


@pytest.mark.parametrize(
    "value", ["1", "tomorrow", "9999999999999", ""], ids=["old", "not a number", "future", "empty"]
)
async def test_a_stop_set_by_hand_halts_a_live_run_whatever_it_says(
    make_bus: Any, redis: Redis, chat: str, value: str
) -> None:
    bus = await make_bus(poll_interval=0.02)
    run = await begun(bus, chat)
    await redis.set(scripts.mailbox_key(chat), value)
    assert await fired(run) is StopReason.USER
    assert not run.closing_marked
    waiting = new_run(chat)
    assert await bus.end(run, done(run, Outcome.STOPPED))
    assert await redis.get(scripts.mailbox_key(chat)) is None
    assert await bus.begin(waiting) == Begun()  # sent while the other one was ending


@pytest.mark.parametrize(("value", "reason"), [("1:superseded", "superseded"), ("x", "user"), ("1:nonsense", "user")])
async def test_a_named_stop_set_by_hand_halts_its_run(
    make_bus: Any, redis: Redis, chat: str, value: str, reason: str
) -> None:
    bus = await make_bus(poll_interval=0.02)
    run = await begun(bus, chat)
    await redis.set(scripts.named_key(chat, run.run_id), value)
    assert await fired(run) == reason


async def test_a_stop_while_the_subscription_was_down_is_found(make_bus: Any, redis: Redis, chat: str) -> None:
    a, b = await make_bus("a"), await make_bus("b")
    for _ in range(20):
        run = await begun(a, chat)
        await redis.client_kill_filter(_type="pubsub")
        await b.stop(chat, Arrival())
        assert await fired(run) is StopReason.USER
        await a.end(run, done(run, Outcome.STOPPED))


async def test_garbage_on_the_bus_ends_nothing(make_bus: Any, redis: Redis, chat: str) -> None:
    bus = await make_bus(poll_interval=0.02)
    run = await begun(bus, chat)
    await redis.publish(scripts.pulse_key(bus.replica_id), "not json")
    await redis.publish(scripts.pulse_key(bus.replica_id), '{"stop": "nobody", "ended": null}')
    await redis.set(scripts.mailbox_key(chat), "1")
    assert await fired(run) is StopReason.USER


# ---- order


async def test_a_stop_sent_after_the_request_halts_it_before_it_starts(make_bus: Any, redis: Redis, chat: str) -> None:
    bus = await make_bus()
    sent = now_ms() - 1000
    assert (await bus.stop(chat, Arrival(sent + 10))).state is StopState.IDLE
    run = new_run(chat, sent)
    assert await bus.begin(run) == Begun(stopped=StopReason.USER)
    assert run.closing_marked
    assert await redis.get(scripts.mailbox_key(chat)) is None


async def test_a_stop_sent_before_the_request_never_touches_it(make_bus: Any, chat: str) -> None:
    bus = await make_bus()
    sent = now_ms() - 1000
    await bus.stop(chat, Arrival(sent - 1))
    run = await begun(bus, chat, sent)
    await bus.watch.look()
    assert run.token.reason is None


async def test_a_message_sent_when_the_stop_was_answered_is_not_touched(make_bus: Any, chat: str) -> None:
    a, b = await make_bus("a"), await make_bus("b")
    for n in range(300):  # many of them within the millisecond of the stop
        await b.stop(f"{chat}-{n}", Arrival())
        run = await begun(a, f"{chat}-{n}")
        await a.end(run, done(run))


async def test_a_stop_sent_right_behind_its_message_halts_it(make_bus: Any, chat: str) -> None:
    a, b = await make_bus("a"), await make_bus("b")
    for n in range(300):
        run = Run(f"{chat}-{n}", new_run_id(), Arrival(0, time.monotonic() - 0.05))  # read 50 ms ago
        await b.stop(run.chat_id, Arrival())
        assert await a.begin(run) == Begun(stopped=StopReason.USER)
        await a.end(run, done(run))


async def test_a_late_stop_does_not_shorten_the_record(make_bus: Any, redis: Redis, chat: str) -> None:
    bus = await make_bus()
    sent = now_ms() - 1000
    await begun(bus, chat, sent)
    await bus.stop(chat, Arrival(sent - 100))
    assert await redis.ttl(scripts.record_key(chat)) > 3600


@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "x"])
async def test_an_odd_mailbox_hides_no_stop(make_bus: Any, redis: Redis, chat: str, value: str) -> None:
    bus = await make_bus()
    await redis.set(scripts.mailbox_key(chat), value)
    run = Run(chat, new_run_id(), Arrival(0, time.monotonic() - 0.05))  # read 50 ms ago
    await bus.stop(chat, Arrival())
    assert await bus.begin(run) == Begun(stopped=StopReason.USER)


async def test_an_unknown_reason_is_a_users(make_bus: Any, redis: Redis, chat: str) -> None:
    bus = await make_bus()
    run = new_run(chat)
    await redis.set(scripts.named_key(chat, run.run_id), "1:solarflare")
    assert await bus.begin(run) == Begun(stopped=StopReason.USER)


async def test_an_unreadable_record_blinds_no_other_run(make_bus: Any, redis: Redis, chat: str) -> None:
    bus = await make_bus(poll_interval=0.02)
    broken, other = await begun(bus, f"{chat}-broken"), await begun(bus, f"{chat}-other")
    await redis.set(scripts.record_key(broken.chat_id), "{")
    await redis.set(scripts.mailbox_key(other.chat_id), "1")
    assert await fired(other) is StopReason.USER


async def test_a_consumed_stop_still_covers_requests_that_came_before_it(make_bus: Any, chat: str) -> None:
    bus = await make_bus()
    sent = now_ms() - 1000
    await bus.stop(chat, Arrival(sent + 10))
    later = await begun(bus, chat, sent + 20)  # drains the mailbox
    await bus.end(later, done(later))
    assert await bus.begin(new_run(chat, sent)) == Begun(stopped=StopReason.USER)


async def test_a_late_stop_spares_the_live_run_and_covers_those_before_it(make_bus: Any, chat: str) -> None:
    bus = await make_bus()
    sent = now_ms() - 1000
    live = await begun(bus, chat, sent)
    assert (await bus.stop(chat, Arrival(sent - 10))).state is StopState.IDLE
    await bus.watch.look()
    assert live.token.reason is None
    await bus.end(live, done(live))
    assert await bus.begin(new_run(chat, sent - 20)) == Begun(stopped=StopReason.USER)
    assert isinstance(await bus.begin(new_run(chat, sent - 20)), Busy)


@pytest.mark.parametrize(
    ("door", "earlier_ms", "hits"),
    [(True, 1, False), (True, 0, True), (False, 40, True), (False, 80, False)],
    ids=["one clock, 1 ms before", "one clock, same ms", "two clocks, within the slack", "two clocks, beyond it"],
)
async def test_the_slack_between_two_clocks(
    make_bus: Any, redis: Redis, chat: str, door: bool, earlier_ms: int, hits: bool
) -> None:
    bus = await make_bus()
    sent = now_ms() - 1000
    run = new_run(chat, sent) if door else Run(chat, new_run_id(), Arrival(0, time.monotonic() - 1))
    assert await bus.begin(run) == Begun()
    await bus.stop(chat, Arrival(int(float(run.arrived_ms)) - earlier_ms))
    assert (json.loads(await redis.get(scripts.record_key(chat))).get("closing") is True) is hits


async def test_a_stamp_from_the_future_counts_as_now(make_bus: Any, chat: str) -> None:
    bus = await make_bus()
    await bus.stop(chat, Arrival(now_ms() + 3_600_000))
    async with asyncio.timeout(SOON):
        while (await bus.redis.time())[0] * 1000 < now_ms() - 2000:
            pass
    assert await bus.begin(new_run(chat, now_ms() + 900)) == Begun()


async def test_a_request_without_a_front_door_is_as_old_as_its_reading(make_bus: Any, chat: str) -> None:
    bus = await make_bus()
    read_at = time.monotonic() - 0.5
    await bus.stop(chat, Arrival())
    assert await bus.begin(Run(chat, new_run_id(), Arrival(0, read_at))) == Begun(stopped=StopReason.USER)


async def test_a_deletion_covers_requests_sent_before_it(make_bus: Any, chat: str) -> None:
    bus = await make_bus()
    sent = now_ms() - 1000
    deletion = new_run(chat, sent + 10)
    assert await bus.begin(deletion, delete=True) == Begun()
    waiting = await bus.begin(new_run(chat))
    assert isinstance(waiting, Busy)
    assert waiting.closing
    assert (await bus.stop(chat, Arrival())).state is StopState.IDLE
    await bus.end(deletion, done(deletion))
    assert await bus.begin(new_run(chat, sent)) == Begun(stopped=StopReason.DELETED)


# ---- receipts


async def test_a_deletion_comes_before_a_stop_that_names_the_run(make_bus: Any, chat: str) -> None:
    """Begun as stopped, the run would write the deleted chat again."""
    bus = await make_bus()
    message = new_run(chat, now_ms() - 20)
    await bus.stop(chat, Arrival(now_ms() - 10), run_id=message.run_id)
    deletion = new_run(chat, now_ms())
    assert await bus.begin(deletion, delete=True) == Begun()
    await bus.end(deletion, done(deletion))
    assert await bus.begin(message) == Begun(StopReason.DELETED)


async def test_what_an_older_world_says_is_not_said_of_a_record_that_is_put_back(
    make_bus: Any, redis: Redis, chat: str
) -> None:
    """A failover brings back a record that was about to end, and a stop that its run had consumed."""
    bus = await make_bus()
    before = await begun(bus, chat, now_ms() - 2000)
    await bus.stop(chat, Arrival(now_ms() - 1000))
    older = {key: await redis.get(key) for key in scripts.keys(chat, "")[:2]}
    assert json.loads(older[scripts.record_key(chat)] or "")["closing"]
    await bus.end(before, done(before))
    run = await begun(bus, chat, now_ms())
    for key, value in older.items():
        await redis.set(key, value or "")
    await bus.watch.look()  # it finds the older record
    await bus.watch.look()  # and what the mailbox holds now
    assert await bus.holds(run)
    assert not run.token.stopped
    assert not json.loads(await redis.get(scripts.record_key(chat)) or "").get("closing")


async def test_a_forgotten_record_of_a_halted_run_is_put_back_as_closing(
    make_bus: Any, redis: Redis, chat: str
) -> None:
    bus, other = await make_bus("a"), await make_bus("b")
    run = await begun(bus, chat)
    await other.stop(chat, Arrival())
    assert await fired(run) is StopReason.USER
    await redis.delete(*scripts.keys(chat, run.run_id))
    await bus.watch.look()
    busy = await other.begin(new_run(chat))
    assert isinstance(busy, Busy)
    assert busy.closing


async def test_a_receipt_is_pushed_to_whoever_asked_for_it(make_bus: Any, redis: Redis, chat: str) -> None:
    a, b = await make_bus("a"), await make_bus("b")
    run = await begun(a, chat)
    verdict = await b.stop(chat, Arrival(), wait=True)
    before = await commands(redis)
    waiting = asyncio.create_task(b.wait_end(chat, verdict.run_id, SOON))
    receipt = Receipt(run.run_id, Outcome.STOPPED, StopReason.USER, 0.5, None)
    await a.end(run, receipt)
    assert await waiting == receipt
    assert "get" not in {k for k, v in (await spent(redis, before)).items() if v > 1}  # END's own; nobody looked


async def test_a_missed_receipt_is_found_in_the_record(make_bus: Any, chat: str) -> None:
    a, b = await make_bus("a"), await make_bus("b")
    run = await begun(a, chat)
    await a.end(run, done(run))  # nobody had asked
    assert await b.wait_end(chat, run.run_id, SOON) == done(run)


async def test_the_end_of_the_next_run_hides_no_receipt(make_bus: Any, chat: str) -> None:
    a, b = await make_bus("a"), await make_bus("b")
    first = await begun(a, chat)
    await a.end(first, done(first))
    second = await begun(a, chat)
    await a.end(second, done(second))
    assert await b.wait_end(chat, first.run_id, SOON) == done(first)


async def test_connections_that_died_in_the_pool_cost_no_request(make_bus: Any, redis: Redis, chat: str) -> None:
    """As after a restart of Redis, or where something in between closes idle connections."""
    bus = await make_bus()
    await bus.ping()
    await redis.client_kill_filter(_type="normal", skipme=True)
    await asyncio.sleep(0.2)  # until that has arrived: nothing tells a connection that nobody reads
    assert (await bus.stop(chat, Arrival())).state is StopState.IDLE


async def test_nothing_is_claimed_of_a_run_whose_replica_died(make_bus: Any, redis: Redis, chat: str) -> None:
    a, b = await make_bus("a"), await make_bus("b")
    run = await begun(a, chat)
    verdict = await b.stop(chat, Arrival(), wait=True)
    await redis.delete(scripts.pulse_key(a.replica_id))
    assert await b.wait_end(chat, verdict.run_id, 60) is None
    assert run.run_id == verdict.run_id


async def test_a_wait_ends_in_time(make_bus: Any, chat: str) -> None:
    bus = await make_bus()
    run = await begun(bus, chat)
    assert await bus.wait_end(chat, run.run_id, 0.01) is None
    assert bus._waiting == {}


async def test_the_end_wakes_a_request_that_found_the_chat_closing(make_bus: Any, redis: Redis, chat: str) -> None:
    a, b = await make_bus("a"), await make_bus("b")
    run = await begun(a, chat)
    await a.closing(run)
    busy = await b.begin(new_run(chat))
    assert isinstance(busy, Busy)
    assert busy.closing
    assert json.loads(await redis.get(scripts.record_key(chat)))["waiters"] == [b.replica_id]


# ---- cost


async def test_a_quiet_replica_and_quiet_chats_cost_nothing(make_bus: Any, redis: Redis, chat: str) -> None:
    bus = await make_bus(poll_interval=0.01)
    run = await begun(bus, chat)
    await bus.end(run, done(run))
    before = await commands(redis)
    await asyncio.sleep(0.2)  # twenty poll intervals in which nothing may be sent
    assert await spent(redis, before) == {}


async def test_what_a_run_costs(make_bus: Any, redis: Redis, chat: str) -> None:
    bus = await make_bus()
    warm = await begun(bus, f"{chat}-warm")
    await bus.end(warm, done(warm))
    before = await commands(redis)
    run = await begun(bus, chat)
    await bus.end(run, done(run))
    sent = await spent(redis, before)
    inside = ("time", "get", "getdel", "del", "set")  # of the scripts; the pulse is a SET from outside
    assert sent.pop("evalsha") == 2
    assert set(sent) <= set(inside)
    assert sent["set"] == 3  # the pulse, and the record twice


async def test_many_runs_share_pulses_and_looks(make_bus: Any, redis: Redis, chat: str) -> None:
    bus = await make_bus()
    runs = [new_run(f"{chat}-{n}") for n in range(200)]
    await asyncio.gather(*map(bus.begin, runs))
    assert set(json.loads(await redis.get(scripts.pulse_key(bus.replica_id)))) == {r.nonce for r in runs}
    before = await commands(redis)
    await bus.watch.look()
    assert await spent(redis, before) == {"mget": 1}
    await asyncio.gather(*(bus.end(r, done(r)) for r in runs))


async def test_every_key_expires(make_bus: Any, redis: Redis, chat: str) -> None:
    bus = await make_bus()
    run = await begun(bus, chat)
    await bus.stop(chat, Arrival(), wait=True)
    await bus.stop(chat, Arrival(), run_id=new_run_id())
    await bus.stop(f"{chat}-idle", Arrival())
    keys = [k async for k in redis.scan_iter(f"*{chat}*")] + [scripts.pulse_key(bus.replica_id)]
    assert len(keys) == 6
    assert all([0 < await redis.ttl(key) <= 3600 + 600 + 60 for key in keys])
    await bus.end(run, done(run))
    assert 0 < await redis.ttl(scripts.record_key(chat)) <= 3600


# ---- a bus that is gone


async def test_every_verb_says_that_the_bus_is_gone(make_bus: Any, chat: str, lone: Any) -> None:
    bus = await make_bus(way=lone.way)
    run = await begun(bus, chat)
    lone.stop()
    for verb in (
        bus.begin(new_run(chat)),
        bus.closing(run),
        bus.holds(run),
        bus.stop(chat, Arrival()),
        bus.wait_end(chat, run.run_id, SOON),
        bus.live_among([chat]),
        bus.ping(),
        bus.end(run, done(run)),
    ):
        with pytest.raises(BusUnavailable):
            await verb
    assert run.token.reason is None  # a bus that is gone stops nothing by itself


@pytest.mark.parametrize(("grace", "reason"), [(0.0, StopReason.SIGNAL_LOST), (None, None)], ids=["stop", "continue"])
async def test_a_run_that_nobody_could_stop_any_more(
    make_bus: Any, chat: str, lone: Any, grace: float | None, reason: StopReason | None
) -> None:
    bus = await make_bus(way=lone.way, loss_grace=grace)
    run = await begun(bus, chat)
    lone.stop()
    if reason:
        assert await fired(run) is reason
    else:
        await asyncio.sleep(3)  # longer than the beat, in which nothing may happen
        assert run.token.reason is None
