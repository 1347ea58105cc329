"""A bus that is silent, that comes back, that is another: buses of this process over a real Valkey.

What is slow is in the long round.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from haltline import redis_scripts, redis_watch
from haltline.authentication import NoAuthentication
from haltline.events import Done
from haltline.limits import Limits
from haltline.metrics import Metrics
from haltline.redis_bus import RedisBus
from haltline.redis_connection import connect
from haltline.resources import Resources
from haltline.runs import Arrival, StopReason
from haltline.settings import Settings
from haltline.signals import Begun, BusUnavailable, Busy
from haltline.stopping import stop_chat
from tests.faults.bus_faults import Server
from tests.faults.conftest import FULL
from tests.integration.conftest import Lone, lone, make_bus, redis, valkey_url, way
from tests.integration.test_lost_and_found import soon, unheard
from tests.integration.test_runs import Bench, bench, ended, rest
from tests.integration.test_signal_bus import SOON, begun, chat, new_run
from tests.redis_cluster import running_cluster

__all__ = ["bench", "chat", "lone", "make_bus", "redis", "valkey_url", "way"]

LONG = pytest.mark.skipif(not FULL, reason="in the long round")


def stops_through(bus: RedisBus) -> Resources:
    nothing: Any = None
    limits = Limits(bus.redis, bus)
    return Resources(Settings(model_provider="scripted"), bus, nothing, nothing, Metrics(), NoAuthentication(), limits)


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Server]:
    made = Server(tmp_path / "server")
    made.start()
    await made.answers()
    yield made
    made.end(signal.SIGKILL)


@LONG
async def test_a_bus_that_was_asked_while_it_was_gone_is_still_seen_to_come_back(
    make_bus: Any, server: Server, chat: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A BEGIN in flight finds the bus gone; the bus comes back empty later than the settle time."""
    monkeypatch.setattr(redis_watch, "SETTLE", 0.3)
    bus = await make_bus("a", way={"url": f"redis://127.0.0.1:{server.port}/0"})
    await bus.watch.subscribed()
    late = new_run(chat, int(time.time() * 1000) - 2000)
    await bus.stop(chat, Arrival(int(time.time() * 1000) - 1000))
    ask = bus._ask_begin

    async def gone(*what: Any) -> Any:
        server.end(signal.SIGKILL)
        return await ask(*what)

    monkeypatch.setattr(bus, "_ask_begin", gone)
    with contextlib.suppress(BusUnavailable):
        await bus.begin(new_run(f"{chat}-other"))
    monkeypatch.undo()
    monkeypatch.setattr(redis_watch, "SETTLE", 0.3)
    await asyncio.sleep(1)
    server.wipe()
    server.start()
    await server.answers()
    await bus.watch.subscribed()
    await asyncio.sleep(1)
    assert await bus.begin(late) == Begun(StopReason.USER), "the stop was not set again"


async def test_stops_are_set_again_though_the_first_try_failed(
    make_bus: Any, server: Server, chat: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where the server still loads its data when the subscription stands, or a reply is lost."""
    bus = await make_bus("a", way={"url": f"redis://127.0.0.1:{server.port}/0"})
    await bus.watch.subscribed()
    late = new_run(chat, int(time.time() * 1000) - 2000)
    await bus.stop(chat, Arrival(int(time.time() * 1000) - 1000))
    asks, ask = 0, bus._ask_stop

    async def once_lost(*a: Any, **k: Any) -> Any:
        nonlocal asks
        asks += 1
        if asks == 1:
            raise ConnectionError("lost")
        return await ask(*a, **k)

    monkeypatch.setattr(bus, "_ask_stop", once_lost)
    server.end(signal.SIGKILL)
    server.wipe()
    server.start()
    await server.answers()
    await soon(lambda: not bus.settled)
    await soon(lambda: bus.settled)
    await asyncio.sleep(1)
    assert await bus.begin(late) == Begun(StopReason.USER), "the stop was not set again"


@LONG
async def test_requests_to_a_silent_bus_do_not_wait_for_one_another(make_bus: Any, server: Server, chat: str) -> None:
    bus = await make_bus("a", way={"url": f"redis://127.0.0.1:{server.port}/0"}, loss_grace=3)
    run = await begun(bus, chat)
    server.freeze()
    since = time.monotonic()
    took: list[float] = []

    async def delete(n: int) -> None:
        with contextlib.suppress(BusUnavailable):
            await bus.begin(new_run(f"{chat}-{n}"), delete=True)
        took.append(time.monotonic() - since)

    deletions = [asyncio.create_task(delete(n)) for n in range(10)]
    halting = asyncio.Event()
    run.token.on_stop(halting.set)
    async with asyncio.timeout(3 * SOON):
        await halting.wait()
    halted = time.monotonic() - since
    await asyncio.gather(*deletions)
    server.thaw()
    print(f"slowest 503 after {max(took):.1f} s; the live run was halted after {halted:.1f} s (grace 3)")
    assert max(took) < 10
    assert halted < 10, "grace 3, and the pulse that failed first was sent up to 2 s after the freeze"


@LONG
async def test_a_run_that_may_go_on_is_not_held_while_requests_wait(make_bus: Any, server: Server, chat: str) -> None:
    """SIGNAL_LOSS_POLICY=continue."""
    bus = await make_bus("a", way={"url": f"redis://127.0.0.1:{server.port}/0"})
    run = await begun(bus, chat)
    server.freeze()
    since = time.monotonic()

    async def delete(n: int) -> None:
        with contextlib.suppress(BusUnavailable):
            await bus.begin(new_run(f"{chat}-{n}"), delete=True)

    deletions = [asyncio.create_task(delete(n)) for n in range(10)]
    held, last = 0.0, time.monotonic()
    while time.monotonic() - since < 22:
        await asyncio.sleep(0.05)
        now = time.monotonic()
        if not bus.certain(run):
            held += now - last
        last = now
    server.thaw()
    await asyncio.gather(*deletions)
    print(f"held for {held:.1f} s of 22")
    assert held < 4


async def test_one_record_that_cannot_be_read_holds_no_other_run(make_bus: Any, redis: Redis, chat: str) -> None:
    bus = await make_bus("a")
    await begun(bus, chat)
    other = await begun(bus, f"{chat}-other")
    await redis.set(redis_scripts.record_key(chat), "no JSON")
    await unheard(bus)
    await bus.pulse.beat()
    async with asyncio.timeout(SOON):
        await bus.until_certain(other)


async def test_an_idle_chat_is_said_to_be_idle_while_a_subscription_is_made_anew(make_bus: Any, chat: str) -> None:
    """As with each max_age, and after each thaw. No front door has given the stop a time."""
    bus = await make_bus("a")
    await bus.watch.subscribed()
    bus.renew()
    assert not bus.settled
    assert (await stop_chat(stops_through(bus), chat, Arrival(), wait=2)).status == "idle"


async def test_a_held_run_that_ends_does_not_say_done_of_a_chat_that_was_taken(bench: Bench) -> None:
    execution = await bench.running("Hel")
    await unheard(bench.bus)
    second = new_run(bench.chat)
    busy = await bench.other.begin(second)
    assert isinstance(busy, Busy)
    assert await bench.other.begin(second, takeover=busy.claim) == Begun()
    before = await bench.transcript()
    bench.agents.end()
    closing = await rest(execution)
    print(closing, await ended(execution), before, await bench.transcript())
    assert await bench.transcript() == before
    assert closing != [Done()]


async def test_a_stop_set_again_lives_no_longer_than_it_would_have(make_bus: Any, lone: Lone, chat: str) -> None:
    bus = await make_bus("a", way=lone.way)
    bus._stop_ttl = 10
    await bus.stop(chat, Arrival())
    which, stored = next(iter(bus._stored.items()))
    bus._stored[which] = type(stored)(stored.at - 50, str(float(stored.stamp) - 50_000))  # 40 s after it was over
    client = connect(**lone.way)
    await client.flushdb()
    await bus._put_back_stops()
    left = await client.pttl(redis_scripts.mailbox_key(chat))
    await client.aclose()
    assert left <= 0, f"it lives for {left} ms more"


@LONG
async def test_a_server_behind_a_silent_subscription_is_known_to_be_another(
    make_bus: Any, tmp_path: Path, chat: str
) -> None:
    """The old server is frozen with its connections; new ones reach another one, empty (a fail-over by address)."""
    old, new = Server(tmp_path / "old"), Server(tmp_path / "new")
    for s in (old, new):
        s.start()
        await s.answers()
    port = old.port

    async def pipe(r: asyncio.StreamReader, w: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await r.read(65536):
                w.write(data)
                await w.drain()
        w.close()

    async def serve(r: asyncio.StreamReader, w: asyncio.StreamWriter) -> None:
        r2, w2 = await asyncio.open_connection("127.0.0.1", port)
        await asyncio.gather(pipe(r, w2), pipe(r2, w))

    door = await asyncio.start_server(serve, "127.0.0.1", 0)
    way = {"url": f"redis://127.0.0.1:{door.sockets[0].getsockname()[1]}/0"}
    try:
        owner, other = await make_bus("a", poll_interval=1, way=way), await make_bus("b", poll_interval=1, way=way)
        run = await begun(owner, chat)
        await other.watch.subscribed()
        await asyncio.sleep(0.2)
        old.freeze()
        port = new.port
        since, said = time.monotonic(), ""
        while time.monotonic() - since < 5:
            with contextlib.suppress(BusUnavailable):
                said = (await stop_chat(stops_through(other), chat, Arrival(), wait=5)).status
                print(f"{said} after {time.monotonic() - since:.2f} s")
                break
        assert said != "idle"
        assert run.token.stopped
    finally:
        for s in (old, new):
            s.end(signal.SIGKILL)
        door.close()


@LONG
@pytest.mark.parametrize("turn", [0, 0.001, 0.005])
async def test_how_long_many_runs_are_held(make_bus: Any, chat: str, turn: float) -> None:
    bus = await make_bus("a")
    runs = await asyncio.gather(*(begun(bus, f"{chat}-{n}") for n in range(500)))
    await unheard(bus)
    busy = True

    async def spin() -> None:
        while busy:
            time.sleep(turn)
            await asyncio.sleep(0)

    spinning = asyncio.create_task(spin() if turn else asyncio.sleep(0))
    since = time.monotonic()
    await bus.pulse.beat()
    await asyncio.gather(*map(bus.until_certain, runs))
    took = time.monotonic() - since
    busy = False
    await spinning
    print(f"held {took:.2f} s, lapses {bus.pulse.lapses}")
    assert took < 2


@LONG
async def test_every_node_of_a_cluster_is_known_to_be_the_one_it_was(tmp_path: Path, make_bus: Any) -> None:
    with running_cluster(tmp_path) as cluster:
        bus = await make_bus("a", way=cluster.way)
        await bus.watch.subscribed()
        for node in cluster.nodes:
            node.admin.config_resetstat()
        for _ in range(6):
            bus.renew()
            await bus.watch.subscribed()
        asked = [node.admin.info("commandstats").get("cmdstat_info", {"calls": 0})["calls"] for node in cluster.nodes]
        print(asked)
        assert all(asked)
