"""The signal bus breaks: subscriptions, pauses, restarts with and without data, fail-overs to a copy that lags."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest

from tests.contract.client import (
    DONE,
    STOPPED,
    http_client,
    messages_of,
    new_chat,
    new_run,
    say,
    script,
    stamp,
    stop,
    stop_url,
    until,
)
from tests.faults.bus_faults import (
    Bus,
    Live,
    Sampled,
    counted,
    damaged,
    insisting_stop,
    knocking,
    load,
    running_bus,
    seeded,
)
from tests.faults.conftest import FULL
from tests.stack import Replica

HI = script(chunks=["Hello"])
RARELY = {"STOP_POLL_INTERVAL": "30"}  # so that the poll finds nothing that something else has to find
GRACE, LONG_GRACE = 2, 9  # seconds
LOSE = ({"SIGNAL_LOSS_GRACE": str(GRACE)}, {"SIGNAL_LOSS_POLICY": "continue", "SIGNAL_LOSS_GRACE": str(GRACE)})
SLACK = 3  # times what the slowest call took that needs no bus
SETTLE = 2.5  # seconds in which a bus that came back is believed nothing


@pytest.fixture
async def http() -> AsyncIterator[httpx.AsyncClient]:
    # On a busy machine an idle connection may be used again just as the server closes it.
    async with http_client(keepalive=0) as client:
        yield client


@pytest.fixture(scope="session")
def bus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bus]:
    """A replica that polls, and one that hardly ever does."""
    with running_bus(Path(tmp_path_factory.mktemp("bus")), {}, RARELY) as running:
        yield running


@pytest.fixture(scope="session")
def loose(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bus]:
    """Replicas by what they do without a bus: they end runs, or let them go on; the third ends them after a pulse.

    In the short round, where no loss lasts for so long, they are those of `bus`.
    """
    if not FULL:
        yield request.getfixturevalue("bus")
        return
    directory = Path(tmp_path_factory.mktemp("loose"))
    with running_bus(directory, LOSE[0], LOSE[1] | RARELY, {"SIGNAL_LOSS_GRACE": str(LONG_GRACE)}) as running:
        yield running


# ---- the subscription
async def test_no_stop_is_lost_to_a_killed_subscription(
    bus: Bus, http: httpx.AsyncClient, rnd: random.Random, times: Callable[[int, int], int]
) -> None:
    """Stops just before, at and after the moment: the push is lost, the look on reconnection finds what is stored."""
    rounds, lanes, at_once = times(3, 46), 2, times(5, 10)
    lost: list[str] = []
    took: list[float] = []

    async def stopped(admin: Any, live: Live, offset: float, how: str, killed: asyncio.Event) -> None:
        await killed.wait()
        await asyncio.sleep(offset)  # the moment is what this is about
        through = rnd.choice(bus.replicas)
        begun = time.monotonic()
        match how:
            case "chat":
                await stop(http, through, live.chat_id)
            case "run":
                await stop(http, through, live.chat_id, run_id=live.run_id)
            case "wait":
                answer = await stop(http, through, live.chat_id, wait="5")
                if answer["status"] != "stopped":
                    lost.append(f"{live} {offset:+}: {answer}")
            case "bulk":
                answer = await http.post(f"{through.url}/api/v1/stop/bulk", json={"chat_ids": [live.chat_id]})
                assert answer.status_code == 200
        if await live.ended(10) and live.closing == STOPPED:
            took.append(live.closed_at - begun)
        else:
            lost.append(f"{live} {offset:+} {how}")

    async def lane(admin: Any, chats: list[Live]) -> None:
        for _ in range(rounds):
            offset = rnd.choice((0.0, 0.02, 0.2))
            before = rnd.random() < 0.5  # the stop comes first
            at, killed = asyncio.Event(), asyncio.Event()
            batch = rnd.sample(chats, at_once)
            fresh = [Live(http, live.replica) for live in batch]  # one of them is stopped as it begins
            early = fresh.pop()
            hows = [rnd.choice(("chat", "run", "wait", "bulk")) for _ in batch] + ["run"]
            async with asyncio.TaskGroup() as group:
                for live, how in zip([*batch, early], hows, strict=True):
                    group.create_task(stopped(admin, live, 0.0 if before else offset, how, at))
                at.set()
                await asyncio.sleep(offset if before else 0)
                await admin.client_kill_filter(_type="pubsub")
                killed.set()
            for live in batch:
                chats.remove(live)
            fresh.append(Live(http, early.replica))
            await asyncio.gather(*(live.speaks() for live in fresh))
            chats += fresh

    count = times(16, 40)
    async with load(http, bus.replicas, count) as chats, bus.admin() as admin:
        mine = [chats[n::lanes] for n in range(lanes)]
        try:
            async with asyncio.TaskGroup() as group:
                for share in mine:
                    group.create_task(lane(admin, share))
        finally:
            chats += [live for share in mine for live in share if live not in chats]
    took.sort()
    print(f"{len(took)} halted, p50 {took[len(took) // 2]:.3f} s, the slowest {took[-5:]}")
    assert lost == []
    assert len(took) == rounds * lanes * (at_once + 1)
    assert damaged(bus.stack.session_dir) == []


async def test_a_stop_that_its_push_did_not_reach_is_counted_as_late(
    bus: Bus, http: httpx.AsyncClient, rnd: random.Random
) -> None:
    owner, other = bus.replicas[1], bus.replicas[0]
    before = await counted(http, [owner], "haltline_stops_late_total")
    async with load(http, [owner], 3) as chats, bus.admin() as admin:
        for live in chats:
            await admin.client_kill_filter(_type="pubsub")
            await stop(http, other, live.chat_id)
            assert await live.ended(5)
    assert await counted(http, [owner], "haltline_stops_late_total") > max(before, 0)
    assert await counted(http, [owner], "haltline_bus_returns_total") > 0


# ---- pauses
PAUSES = [("paused", s) for s in (0.1, 1.0, 2.5, 6.5)] + [("frozen", s) for s in (0.3, 1.5, 3.0, 10.0)]


@pytest.mark.parametrize(("kind", "seconds"), PAUSES if FULL else [("frozen", 0.3)])
async def test_stops_sent_while_the_bus_pauses_are_never_said_to_be_what_they_are_not(
    bus: Bus, http: httpx.AsyncClient, rnd: random.Random, kind: str, seconds: float
) -> None:
    wrong: list[str] = []
    answers: dict[str, int] = {}

    async def stopped(live: Live, after: float, wait: float | None) -> None:
        await asyncio.sleep(after)
        params = {} if wait is None else {"wait": str(wait)}
        answer = await http.post(stop_url(rnd.choice(bus.replicas), live.chat_id), params=params)
        at = time.monotonic()
        status = answer.json().get("status") if answer.status_code == 200 else str(answer.status_code)
        answers[status] = answers.get(status, 0) + 1
        if status == "503":
            return  # it may halt all the same: the command may have reached the bus
        if status not in ("accepted", "stopped", "unconfirmed"):
            wrong.append(f"{live}: {status} was said of a live run")
        if status == "stopped" and not (await live.ended(1) and live.closing == STOPPED and live.closed_at < at + 2):
            wrong.append(f"{live}: stopped was said, which it was not")
        if not (await live.ended(max(back - time.monotonic(), 0) + 8) and live.closing == STOPPED):
            wrong.append(f"{live}: {status} was said, and it goes on")

    async with load(http, bus.replicas, 16 if FULL else 6) as chats, bus.admin() as admin:
        half = len(chats) // 2
        meant, others = chats[:half], chats[half:]
        back = time.monotonic() + seconds
        async with asyncio.TaskGroup() as group:
            for live in meant:
                wait = rnd.choice((None, 0.5, 2.0, 5.0))
                group.create_task(stopped(live, rnd.uniform(0, seconds * 0.9), wait))
            if kind == "paused":
                await admin.client_pause(int(seconds * 1000), all=True)
                await asyncio.sleep(seconds)
            else:
                bus.server.freeze()
                try:
                    await asyncio.sleep(min(seconds, 5))
                    grew = await asyncio.gather(*(live.grows(5, 1) for live in others))
                    assert all(grew), "streams go on while the bus is silent"
                    await asyncio.sleep(max(back - time.monotonic(), 0))
                finally:
                    bus.server.thaw()
        assert wrong == [], answers
        assert all(await asyncio.gather(*(live.grows(10) for live in others))), others
        assert [live for live in others if live.closing or not live.whole] == []
        for live in others:
            through = rnd.choice(bus.replicas)
            assert (await stop(http, through, live.chat_id, wait="5"))["status"] == "stopped"
            assert await live.ended(8)
            assert live.closing == STOPPED
    print(answers)
    assert damaged(bus.stack.session_dir) == []


# ---- the bus stays away
@dataclass
class Loss:
    """What happened while there was no bus, and what to make of it."""

    how: str
    seed: int
    slack: float = 0.0  # seconds that a busy machine may take beyond each bar, as measured meanwhile
    unhealthy_after: dict[str, float] = field(default_factory=dict)  # seconds, by replica
    healthy_after: dict[str, float] = field(default_factory=dict)
    slowest_health: float = 0.0
    new_chats: list[int] = field(default_factory=list)  # what they were answered
    stops_elsewhere: list[int] = field(default_factory=list)
    ended: list[tuple[float, float, tuple[str, str] | None]] = field(default_factory=list)  # grace, after s, and how
    kept_otherwise: list[str] = field(default_factory=list)
    next_turn: list[Any] = field(default_factory=list)
    begin_again: dict[str, Any] = field(default_factory=dict)  # what a new chat said, by replica
    went_on: list[bool] = field(default_factory=list)
    stopped_by_owner: list[Any] = field(default_factory=list)
    torn: list[str] = field(default_factory=list)
    held_still: list[bool] = field(default_factory=list)  # of the replica with a long grace
    held_metric: float = 0.0
    up: tuple[float, float] = (-1.0, -1.0)  # the metric, without the bus and with it again
    afterwards: list[str] = field(default_factory=list)  # wrong with those that went on
    damaged: list[str] = field(default_factory=list)


LOSSES = [("gone", 8.2), ("gone", 11.5), ("full", 8.2), ("a read-only copy", 8.2)]
needs_long = pytest.mark.skipif(not FULL, reason="takes longer: in the long round")


@pytest.fixture(scope="module", params=LOSSES if FULL else [("full", 0.3)], ids=str)
def loss(request: pytest.FixtureRequest, loose: Bus) -> Loss:
    seed, rnd = seeded()
    return asyncio.run(asyncio.wait_for(_loses(loose, *request.param, seed, rnd), 60))


@contextlib.asynccontextmanager
async def _lost(bus: Bus, how: str) -> AsyncIterator[Callable[[], Awaitable[float]]]:
    """Make the bus useless. Yields what makes it good again and tells when it was."""

    async def start() -> float:
        bus.server.start()
        return await bus.server.answers()

    async def mended(*command: Any) -> float:
        async with bus.admin() as admin:
            await admin.execute_command(*command)
        return time.monotonic()

    if how == "gone":
        bus.server.end(9)
        yield start
        return
    bad, good = {
        "full": (("CONFIG", "SET", "maxmemory", "1"), ("CONFIG", "SET", "maxmemory", "0")),
        # Of a server that is not there: it keeps its data and takes no writes.
        "a read-only copy": (("REPLICAOF", "127.0.0.1", "1"), ("REPLICAOF", "NO", "ONE")),
    }[how]
    await mended(*bad)
    yield lambda: mended(*good)


async def _loses(bus: Bus, how: str, seconds: float, seed: int, rnd: random.Random) -> Loss:
    found = Loss(how, seed)
    ending, going = bus.replicas[:2]
    async with contextlib.AsyncExitStack() as stack:
        http = await stack.enter_async_context(http_client(keepalive=0))
        chats = await stack.enter_async_context(load(http, bus.replicas, 4 * len(bus.replicas) if FULL else 6))
        alive = [await stack.enter_async_context(Sampled(http, replica, "/live")) for replica in bus.replicas]
        health = [await stack.enter_async_context(Sampled(http, replica)) for replica in bus.replicas]
        of = {replica.name: [live for live in chats if live.replica is replica] for replica in bus.replicas}
        await asyncio.sleep(rnd.uniform(0, 2 if FULL else 0.1))  # a moment between two pulses
        at = time.monotonic()
        back = await stack.enter_async_context(_lost(bus, how))
        try:
            if seconds > GRACE:
                await asyncio.gather(*(live.ended(at + GRACE + 3.5 - time.monotonic()) for live in of[ending.name]))
            for live in of[ending.name]:
                found.ended.append((GRACE, live.closed_at - at if live.closing else 1e9, live.closing))
            for replica in (ending, going):
                answer = await http.post(f"{replica.url}/api/v1/chat/{new_chat()}", json={"message": HI})
                found.new_chats.append(answer.status_code)
            found.went_on = await asyncio.gather(*(live.grows(1) for live in of[going.name]))
            stopped, *goes_on = of[going.name]
            found.stops_elsewhere.append((await http.post(stop_url(ending, stopped.chat_id))).status_code)
            answer = await http.post(stop_url(going, stopped.chat_id), params={"wait": "3"})
            await stopped.ended(2)
            found.stopped_by_owner = [answer.status_code, answer.json().get("status"), stopped.closing]
            up = await counted(http, [ending], "haltline_bus_up")
            held = [live for replica in bus.replicas[2:] for live in of[replica.name]]
            if held:
                await asyncio.sleep(max(at + 6.6 - time.monotonic(), 0))
                seen = [live.words for live in held]
                await asyncio.sleep(0.3)
                found.held_still = [live.words == words for live, words in zip(held, seen, strict=True)]
                found.held_metric = await counted(http, bus.replicas[2:], "haltline_runs_held")
            await asyncio.sleep(max(at + seconds - time.monotonic(), 0))
        finally:
            returned = await back()
        for live in of[ending.name] if seconds > GRACE else []:
            entries = await messages_of(http, ending, live.chat_id)
            assert live.turn is not None
            if [entry["text"] for entry in entries[1:]] != [live.turn.text]:
                found.kept_otherwise.append(f"{live}: {[entry['text'][-40:] for entry in entries[1:]]}")

        async def healthy() -> bool:
            return all(sampled.first(200, returned) < 1e9 for sampled in health)

        with contextlib.suppress(TimeoutError):
            await until(healthy, 5)

        async def up_again() -> bool:
            return await counted(http, [ending], "haltline_bus_up") == 1

        with contextlib.suppress(TimeoutError):  # /health is asked all the while, and there may be no run that pulses
            await until(up_again, 2)
        found.up = (up, await counted(http, [ending], "haltline_bus_up"))
        for sampled, replica in zip(health, bus.replicas, strict=True):
            found.unhealthy_after[replica.name] = sampled.first(503, at)
            found.healthy_after[replica.name] = sampled.first(200, returned)
            found.slowest_health = max(found.slowest_health, sampled.slowest)
        found.slack = SLACK * max(sampled.slowest for sampled in alive)
        if seconds > 9:  # longer than any grace
            for live in held:
                found.ended.append((LONG_GRACE, live.closed_at - at if live.closing else 1e9, live.closing))
        else:
            goes_on += held
        if seconds < GRACE:
            goes_on += of[ending.name]
        for live in goes_on:
            if not await live.grows(10) or live.closing or not live.whole:
                found.afterwards.append(f"{live} did not go on")
            elif (await insisting_stop(http, ending, live.chat_id, wait="5"))["status"] != "stopped":
                found.afterwards.append(f"{live} could not be stopped")
        for replica in bus.replicas:
            with contextlib.suppress(TimeoutError):
                turn = await say(http, replica, new_chat(), HI)
                found.begin_again[replica.name] = turn.text
        if seconds > GRACE:
            turn = await say(http, going, of[ending.name][0].chat_id, HI)
            found.next_turn = [turn.text, turn.closing]
        found.torn = [str(live) for live in chats if not live.whole]
        found.damaged = damaged(bus.stack.session_dir)
    print(found)
    return found


@needs_long
def test_runs_that_nobody_could_stop_end_with_a_reason_after_the_grace(loss: Loss) -> None:
    assert loss.ended
    for grace, after, closing in loss.ended:
        assert closing is not None, loss
        event, text = closing
        assert (event, text[:8]) == ("error", "[ERROR] "), loss
        assert "Redis was lost" in text, loss
        assert "could stop the run" in text, loss
        assert after < grace + 3.5 + loss.slack, loss


@needs_long
def test_what_a_user_saw_of_such_a_run_is_kept_and_the_chat_goes_on(loss: Loss) -> None:
    assert loss.kept_otherwise == [], loss
    assert loss.next_turn == ["Hello", [DONE]], loss


def test_runs_that_may_go_on_do_and_their_owner_can_stop_them(loss: Loss) -> None:
    assert all(loss.went_on), loss
    assert loss.stopped_by_owner == [200, "stopped", STOPPED], loss
    assert loss.stops_elsewhere == [503], loss
    assert loss.afterwards == [], loss
    assert (loss.torn, loss.damaged) == ([], []), loss


def test_without_a_bus_no_chat_begins(loss: Loss) -> None:
    assert loss.new_chats == [503, 503], loss


def test_chats_begin_again_through_every_replica(loss: Loss, loose: Bus) -> None:
    """Also through one whose runs were held still and have all ended."""
    assert loss.begin_again == {replica.name: "Hello" for replica in loose.replicas}, loss


def test_health_tells_of_the_loss_and_of_the_return_within_a_second(loss: Loss) -> None:
    assert max(loss.unhealthy_after.values()) < 1 + loss.slack, loss
    assert max(loss.healthy_after.values()) < 1 + loss.slack, loss
    assert loss.slowest_health < 1 + loss.slack, loss


def test_the_metric_tells_whether_the_bus_is_there(loss: Loss) -> None:
    assert loss.up[1] == 1, loss
    if FULL:  # a pulse tells, the latest after two seconds
        assert loss.up[0] == 0, loss


@needs_long
def test_a_run_holds_still_once_its_chat_may_be_taken(loss: Loss) -> None:
    assert loss.held_still, loss
    assert all(loss.held_still), loss
    assert loss.held_metric == len(loss.held_still), loss


@needs_long
async def test_a_bus_that_is_gone_for_less_than_the_grace_ends_no_run(
    loose: Bus, http: httpx.AsyncClient, rnd: random.Random
) -> None:
    """However the loss lies between two pulses: the grace is that of the loss."""
    async with load(http, loose.replicas[:1], 4) as chats:
        for _ in range(4):
            await asyncio.sleep(rnd.uniform(0, 2))
            loose.server.end(9)
            await asyncio.sleep(rnd.uniform(0.8, 1.2))
            loose.server.start()
            await loose.server.answers()
            assert all(await asyncio.gather(*(live.grows(10) for live in chats))), chats
        assert [live for live in chats if live.closing or not live.whole] == []


# ---- the bus comes back
@dataclass
class Aftermath:
    """What was found after the bus had come back, each list of what is wrong."""

    seed: int
    slack: float = 0.0  # seconds that a busy machine may take beyond each bar, as measured meanwhile
    phases: list[float] = field(default_factory=list)  # seconds that each part of the scenario took
    halted_after: dict[str, float] = field(default_factory=dict)  # seconds from its first PONG to the closing frame
    records_after: float = 0.0
    wrong_verdicts: list[str] = field(default_factory=list)
    second_runs: list[str] = field(default_factory=list)
    not_put_back: list[str] = field(default_factory=list)
    lost_stops: list[str] = field(default_factory=list)
    ended_or_torn: list[str] = field(default_factory=list)
    damaged: list[str] = field(default_factory=list)
    forgot_records: float = 0.0
    forgot_stops: float = 0.0
    returns: float = 0.0


# how it goes; whether what the bus knew is gone
RETURNS = [
    ("killed", False),
    ("killed", True),
    ("ordered", False),
    ("ordered", True),
    ("a copy that was cut off", True),
    ("a copy that lags", True),
]


@pytest.fixture(
    scope="module", params=[(*r, n) for r in RETURNS for n in range(1 + r[1])] if FULL else [(*RETURNS[1], 0)], ids=str
)
def aftermath(request: pytest.FixtureRequest, bus: Bus) -> Aftermath:
    seed, rnd = seeded()
    return asyncio.run(asyncio.wait_for(_returns(bus, *request.param[:2], seed, rnd), 60))


async def _returns(bus: Bus, how: str, emptied: bool, seed: int, rnd: random.Random) -> Aftermath:
    found = Aftermath(seed)
    began = time.monotonic()

    def passed() -> None:
        found.phases.append(round(time.monotonic() - began - sum(found.phases), 2))

    async with contextlib.AsyncExitStack() as stack:
        http = await stack.enter_async_context(http_client(keepalive=0))
        alive = [await stack.enter_async_context(Sampled(http, replica, "/live")) for replica in bus.replicas]
        before = {
            what: max(await counted(http, bus.replicas, "haltline_bus_forgot_total", what=what), 0)
            for what in ("record", "stop")
        }
        chats = await stack.enter_async_context(load(http, bus.replicas, 12 if FULL else 8))
        copy = wire = None
        if "copy" in how:
            copy, wire = await stack.enter_async_context(bus.copy())
            if "cut" in how:
                async with bus.admin(copy) as admin:
                    await admin.execute_command("REPLICAOF", "NO", "ONE")
            else:
                wire.hold()
            # What the copy does not hear of: some records, and each of the stops below.
            later = [Live(http, replica) for replica in bus.replicas for _ in range(2)]
            chats += later
            await asyncio.gather(*(live.speaks() for live in later))
        mailed = [new_chat("mailed") for _ in range(4)]
        named = [(new_chat("named"), new_run()) for _ in range(4)]
        left = stamp(0.5)  # when the requests left that these stops mean
        for n, chat_id in enumerate(mailed):
            await stop(http, bus.replicas[n % 2], chat_id)
        for n, (chat_id, run_id) in enumerate(named):
            await stop(http, bus.replicas[n % 2], chat_id, run_id=run_id)
        passed()
        meant, others = chats[::2], chats[1::2]
        rnd.shuffle(meant)
        async with knocking(http, bus.replicas, others[:3]) as found.second_runs:
            if copy is not None:
                bus.server.end(9)
                await asyncio.sleep(rnd.uniform(0, 0.5))
                back = await bus.fail_over(copy)
            else:
                bus.server.end(9 if how == "killed" else 15)
                await asyncio.sleep(rnd.uniform(0.1, 1.5 if FULL else 0.2))
                if emptied:
                    bus.server.wipe()
                bus.server.start()
                back = await bus.server.answers()
            passed()
            await asyncio.gather(
                *(_stopped_again(http, bus, live, rnd, found, back) for live in meant),
                _records_again(bus, others, found, back),
            )
            await _stops_again(bus, mailed, named, found)
            if FULL:
                await asyncio.sleep(max(back + SETTLE + 1 - time.monotonic(), 0))
        passed()
        if FULL:  # such a request waits until the bus has settled
            for chat_id in mailed:
                await _must_be_halted(http, rnd.choice(bus.replicas), chat_id, new_run(), left, found)
            for chat_id, run_id in named:
                await _must_be_halted(http, rnd.choice(bus.replicas), chat_id, run_id, {}, found)
        passed()
        grew = await asyncio.gather(*(live.grows(10) for live in others))
        found.ended_or_torn = [
            str(live) for live, more in zip(others, grew, strict=True) if not more or live.closing or not live.whole
        ]
        for what, count in before.items():
            now = await counted(http, bus.replicas, "haltline_bus_forgot_total", what=what)
            setattr(found, f"forgot_{what}s", max(now, 0) - count)
        found.returns = await counted(http, bus.replicas, "haltline_bus_returns_total")
        for live in others:
            if not live.closing:
                await stop(http, rnd.choice(bus.replicas), live.chat_id, wait="5")
        found.damaged = damaged(bus.stack.session_dir)
        found.slack = SLACK * max(sampled.slowest for sampled in alive)
        passed()
    print(found)
    return found


async def _stopped_again(
    http: httpx.AsyncClient, bus: Bus, live: Live, rnd: random.Random, found: Aftermath, back: float
) -> None:
    through, wait = rnd.choice(bus.replicas), rnd.random() < 0.5
    answer = await insisting_stop(http, through, live.chat_id, **({"wait": "5"} if wait else {}))
    said = f"{live.chat_id} of {live.replica.name} through {through.name}, {answer['status']}"
    # Where the bus did not know the run yet, and it has ended before it did, more cannot be told than that.
    if wait and answer["status"] not in ("stopped", "unconfirmed"):
        found.wrong_verdicts.append(said)
    halted = await live.ended(6) and live.closing == STOPPED
    found.halted_after[said] = live.closed_at - back if halted else 1e9


async def _records_again(bus: Bus, chats: list[Live], found: Aftermath, back: float) -> None:
    missing = [live for live in chats if not live.closing]
    async with bus.admin() as admin:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(5):
                while missing:
                    await asyncio.sleep(0.01)
                    records = await admin.mget([f"run:{{stop:{live.chat_id}}}" for live in missing])
                    missing = [
                        live
                        for live, record in zip(missing, records, strict=True)
                        if f'"run":"{live.run_id}"' not in (record or "")
                    ]
    found.records_after = time.monotonic() - back
    found.not_put_back += [f"the record of {live}" for live in missing]


async def _stops_again(bus: Bus, mailed: list[str], named: list[tuple[str, str]], found: Aftermath) -> None:
    keys = [*(f"stop:{chat_id}" for chat_id in mailed), *(f"stop:{{stop:{c}}}:{r}" for c, r in named)]
    async with bus.admin() as admin:

        async def all_there() -> bool:
            return None not in await admin.mget(keys)

        with contextlib.suppress(TimeoutError):
            await until(all_there, 2)
        values = await admin.mget(keys)
        lives = await asyncio.gather(*map(admin.ttl, keys))
    found.not_put_back += [key for key, value in zip(keys, values, strict=True) if value is None]
    found.not_put_back += [f"{key}: TTL {ttl}" for key, ttl in zip(keys, lives, strict=True) if ttl == -1]


async def _must_be_halted(
    http: httpx.AsyncClient, replica: Replica, chat_id: str, run_id: str, headers: dict[str, str], found: Aftermath
) -> None:
    turn = await say(http, replica, chat_id, HI, run_id=run_id, headers=headers)
    if turn.status != 200 or turn.text or turn.closing != [STOPPED]:
        found.lost_stops.append(f"{chat_id}: {turn.status} {turn.text!r} {turn.closing}")


def test_runs_can_be_stopped_again_within_a_second_of_the_return(aftermath: Aftermath) -> None:
    assert {said: s for said, s in aftermath.halted_after.items() if s > 1 + aftermath.slack} == {}, aftermath


def test_no_live_run_is_said_to_be_idle_or_to_have_finished(aftermath: Aftermath) -> None:
    assert aftermath.wrong_verdicts == [], aftermath


def test_no_second_run_begins_while_the_bus_comes_back(aftermath: Aftermath) -> None:
    assert aftermath.second_runs == [], aftermath


def test_records_and_stops_of_the_last_minute_are_put_back(aftermath: Aftermath) -> None:
    assert aftermath.not_put_back == [], aftermath
    assert aftermath.records_after < 1 + aftermath.slack, aftermath


@needs_long
def test_a_stop_that_was_put_back_halts_the_request_that_it_meant(aftermath: Aftermath) -> None:
    assert aftermath.lost_stops == [], aftermath


def test_runs_that_nobody_stopped_go_on_and_lose_no_text(aftermath: Aftermath) -> None:
    assert aftermath.ended_or_torn == [], aftermath


def test_no_chat_at_rest_is_damaged(aftermath: Aftermath) -> None:
    assert aftermath.damaged == [], aftermath


def test_what_the_bus_forgot_is_counted(aftermath: Aftermath, request: pytest.FixtureRequest) -> None:
    how, emptied, _ = request.node.callspec.params["aftermath"]
    if emptied:
        assert aftermath.forgot_stops >= 8, aftermath
        # A copy that lags knows of those that began before.
        assert aftermath.forgot_records >= (1 if "copy" in how else 4), aftermath
    else:
        assert (aftermath.forgot_records, aftermath.forgot_stops) == (0, 0), aftermath
    assert aftermath.returns > 0, aftermath


@needs_long
async def test_only_a_stop_whose_taker_died_with_the_data_is_lost(
    bus: Bus, http: httpx.AsyncClient, rnd: random.Random
) -> None:
    """What protocol.md says cannot be promised, and nothing beyond it."""
    taker = bus.stack.add_replica()
    taker.wait_until_live()
    try:
        left = stamp(0.5)
        kept, gone = [new_chat("kept") for _ in range(10)], [new_chat("gone") for _ in range(10)]
        async with load(http, bus.replicas[:2], 6) as chats:
            for chat_id in gone:
                await stop(http, taker, chat_id)
            for chat_id in kept:
                await stop(http, rnd.choice(bus.replicas[:2]), chat_id)
            # Stops of live runs were pushed: whoever took them may die.
            for live in chats[:3]:
                await stop(http, taker, live.chat_id)
            bus.server.end(9)
            taker.end(9)
            bus.server.wipe()
            bus.server.start()
            await bus.server.answers()
            assert [live for live in chats[:3] if not await live.ended(8) or live.closing != STOPPED] == []
            answered = {}
            await asyncio.sleep(SETTLE)  # else a request would wait for as long
            for chat_id in [*kept, *gone]:
                answered[chat_id] = (await say(http, rnd.choice(bus.replicas[:2]), chat_id, HI, headers=left)).closing
            assert {c: frames for c, frames in answered.items() if c in kept and frames != [STOPPED]} == {}
            assert {c: frames for c, frames in answered.items() if c in gone and frames != [DONE]} == {}
            assert all(await asyncio.gather(*(live.grows(10) for live in chats[3:])))
    finally:
        taker.end(9)
        bus.replicas.remove(taker)
