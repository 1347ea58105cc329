"""A cluster whose slots move and whose nodes die, and what the product's user may do on it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis
from redis.crc import key_slot
from redis.exceptions import AuthenticationError, ClusterDownError, NoPermissionError, RedisError

from haltline import redis_scripts as scripts
from haltline.cache_auth import CacheCredentials
from haltline.chat_index import ChatIndex, forget
from haltline.limits import Limits
from haltline.principals import LimitReached, scoped
from haltline.redis_bus import RedisBus
from haltline.redis_connection import connect
from haltline.runs import Arrival, Run, StopReason, new_run_id
from haltline.signals import BusUnavailable
from tests.integration.access_string import ACCESS_STRING, COMMANDS
from tests.integration.conftest import Way
from tests.integration.test_signal_bus import SOON, begun, done, fired, new_run, now_ms
from tests.redis_cluster import SLOTS, USER, Cluster, Node, running_cluster

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with running_cluster(tmp_path_factory.mktemp("cluster")) as running:
        yield running


@pytest.fixture
def way(cluster: Cluster) -> Way:
    return cluster.way


@pytest.fixture
async def client(cluster: Cluster) -> AsyncIterator[Redis]:
    made = connect(**cluster.way)
    yield made
    await made.aclose()


def chat_of(node: int, prefix: str = "moves") -> str:
    """A chat whose slot the node holds while nothing has moved."""
    return next(chat for n in range(1000) if node_of(scripts.mailbox_key(chat := f"{prefix}-{n}")) == node)


def node_of(key: str) -> int:
    return key_slot(key.encode()) * 3 // SLOTS


# ---- slots that move


async def test_a_chat_goes_on_while_its_slot_moves_to_another_node(make_bus: Any, cluster: Cluster) -> None:
    source, target = cluster.nodes[1], cluster.nodes[2]
    chat = chat_of(1)
    slot = key_slot(scripts.mailbox_key(chat).encode())
    cluster.grant(f"{ACCESS_STRING} +asking")
    bus, other = await make_bus("a"), await make_bus("b")
    await other.ping()
    ids = [node.admin.execute_command("CLUSTER", "MYID") for node in cluster.nodes]

    # While it moves, a reading is sent on to where its key will be; a script has keys on neither side, and waits.
    target.admin.execute_command("CLUSTER", "SETSLOT", slot, "IMPORTING", ids[1])
    source.admin.execute_command("CLUSTER", "SETSLOT", slot, "MIGRATING", ids[2])
    assert await bus.live_among([chat, chat_of(0)]) == {}
    assert not await bus.holds(new_run(chat))
    refused = source.errors("TRYAGAIN") + target.errors("TRYAGAIN")
    beginning = asyncio.create_task(begun(bus, chat))
    async with asyncio.timeout(SOON):
        while source.errors("TRYAGAIN") + target.errors("TRYAGAIN") == refused:
            await asyncio.sleep(0.01)

    # The slot is the other's now: whoever asks the old one is told.
    for node in (target, source, cluster.nodes[0]):
        node.admin.execute_command("CLUSTER", "SETSLOT", slot, "NODE", ids[2])
    run = await beginning
    assert target.admin.execute_command("CLUSTER", "COUNTKEYSINSLOT", slot) == 1
    assert await other.live_among([chat, chat_of(0)]) == {chat: run.run_id}
    assert (await other.stop(chat, Arrival(), wait=True)).run_id == run.run_id
    assert await fired(run) is StopReason.USER
    await bus.watch.look()
    assert await bus.end(run, done(run))
    assert await other.wait_end(chat, run.run_id, SOON) == done(run)
    told = source.errors("MOVED")
    again = await begun(bus, chat)
    assert await bus.end(again, done(again))
    assert source.errors("MOVED") == told > 0  # it was learnt
    cluster.grant()


async def test_a_node_without_the_scripts_is_given_them(make_bus: Any, cluster: Cluster) -> None:
    bus = await make_bus()
    for n, node in enumerate(cluster.nodes):
        node.admin.script_flush()
        run = await begun(bus, chat_of(n, "scripts"))
        assert await bus.end(run, done(run))


# ---- a node that dies


async def test_the_other_nodes_are_used_when_one_dies(make_bus: Any, tmp_path: Path) -> None:
    """Also when it is the one whose address was given, for commands and for the subscription."""
    with running_cluster(tmp_path) as cluster:
        bus, other = await bus_of(1, make_bus, cluster), await bus_of(2, make_bus, cluster)
        for lost in (bus, other):
            await lost.watch.subscribed()
        run = await begun(bus, chat_of(1))
        cluster.nodes[0].end()
        with pytest.raises(BusUnavailable):
            await bus.begin(new_run(chat_of(0)))
        assert (await other.stop(run.chat_id, Arrival())).run_id == run.run_id
        assert await fired(run) is StopReason.USER  # pushed, as soon as the subscription stands on another node
        assert await bus.end(run, done(run))
        again = await begun(bus, chat_of(2))
        assert await other.live_among([again.chat_id, run.chat_id]) == {again.chat_id: again.run_id}
        assert await bus.end(again, done(again))
        cluster.nodes.pop(0)


async def test_a_look_that_cannot_reach_all_does_not_end_the_subscription(make_bus: Any, tmp_path: Path) -> None:
    with running_cluster(tmp_path) as cluster:
        bus, other = await bus_of(1, make_bus, cluster), await bus_of(1, make_bus, cluster)
        for each in (bus, other):
            await each.watch.subscribed()
        await begun(bus, chat_of(2))
        cluster.nodes.pop(2).end()
        before = cluster.calls()["subscribe"]
        bus.renew()
        await bus.watch.subscribed()
        with pytest.raises((RedisError, OSError)):
            await bus.watch.look()
        for n in range(20):
            run = await begun(bus, chat_of(1, f"push-{n}"))
            assert (await other.stop(run.chat_id, Arrival())).run_id == run.run_id
            assert await fired(run) is StopReason.USER
            assert await bus.end(run, done(run))
        assert cluster.calls()["subscribe"] == before + 1


@pytest.mark.parametrize("told", [True, False], ids=["it had sent on", "it had not been asked"])
async def test_a_node_that_has_left_is_not_believed(told: bool, make_bus: Any, tmp_path: Path) -> None:
    """It is up and answers that nobody holds anything; it is the one whose address was given."""
    with running_cluster(tmp_path) as cluster:
        left, *rest = cluster.nodes
        bus, key = await make_bus(way=cluster.way), scripts.mailbox_key(chat_of(0))
        await bus.ping()
        was, heir = (node.admin.execute_command("CLUSTER", "MYID") for node in cluster.nodes[:2])
        for node in (rest[0], rest[1], left):
            node.admin.execute_command("CLUSTER", "SETSLOT", key_slot(key.encode()), "NODE", heir)
        if told:
            assert await bus.redis.set(key, "1")  # by the one that is about to leave: who holds what is asked next
        left.admin.execute_command("CLUSTER", "RESET", "HARD")
        for node in rest:
            node.admin.execute_command("CLUSTER", "FORGET", was)

        if not told:
            with pytest.raises(ClusterDownError):  # from here on it is known
                await bus.redis.get(key)
        assert await bus.redis.set(key, "2")
        assert await bus.redis.get(key) == "2"
        await bus.ping()
        late = await make_bus(way=cluster.way)  # it knows no other node
        with pytest.raises(BusUnavailable):
            await late.ping()


async def bus_of(node: int, make_bus: Any, cluster: Cluster) -> RedisBus:
    """The bus of a replica whose pulse the node holds."""
    while True:
        bus: RedisBus = await make_bus(way=cluster.way)
        if node_of(scripts.pulse_key(bus.replica_id)) == node:
            return bus


# ---- what the product may do


FORBIDDEN: list[tuple[Any, ...]] = [
    ("SELECT", 0),
    ("PSUBSCRIBE", "replica:*"),
    ("SSUBSCRIBE", "replica:a"),
    ("CONFIG", "SET", "notify-keyspace-events", "KEA"),
    ("CONFIG", "GET", "*"),
    ("FUNCTION", "LIST"),
    ("KEYS", "stop:*"),
    ("SCAN", 0),
    ("EVAL", "return 1", 0),
    ("FLUSHALL",),
    ("SCRIPT", "FLUSH"),
    ("DBSIZE",),
    ("COMMAND",),
    ("CLIENT", "LIST"),
    ("CLUSTER", "MYID"),
    ("ACL", "WHOAMI"),
    ("MONITOR",),
    ("WATCH", "stop:a"),
    ("SETEX", "stop:a", 1, "1"),
    ("PEXPIREAT", "stop:a", 1),
    ("HVALS", "live:{chats}"),
    # commands that are used, of what is not ours
    ("GET", "other"),
    ("GET", "stop"),
    ("GET", "run:x"),
    ("SET", "session:stop:x", "1"),
    ("DEL", "index:{other}"),
    ("HKEYS", "live:{chat}x"),
    ("GET", "requestsx"),
    ("PUBLISH", "other", "x"),
    ("SUBSCRIBE", "other"),
]


@pytest.mark.parametrize("command", FORBIDDEN, ids=lambda words: " ".join(map(str, words)))
async def test_what_is_not_used_is_forbidden(cluster: Cluster, command: tuple[Any, ...]) -> None:
    node = cluster.nodes[0]
    client = connect(node_url(cluster, node), credentials=cluster.credentials)
    try:
        with pytest.raises(NoPermissionError):
            await client.execute_command(*command)
    finally:
        await client.aclose()


async def test_a_script_reaches_no_other_key(client: Redis) -> None:
    script = client.register_script("return redis.call('GET', KEYS[1])")
    assert await script(keys=["stop:x"]) is None
    with pytest.raises(NoPermissionError):
        await script(keys=["other"])
    sly = client.register_script("return redis.call('SET', KEYS[1], redis.call('RANDOMKEY'))")
    with pytest.raises(RedisError, match="can't run this command"):
        await sly(keys=["stop:x"])


def node_url(cluster: Cluster, node: Node) -> str:
    return cluster.url(node.port)


async def test_the_access_string_names_what_is_used_and_no_more(way: Way, cluster: Cluster) -> None:
    chat = chat_of(1, "all")
    before = cluster.calls()
    async with (
        RedisBus(replica="a", stop_ttl=60, poll_interval=30, run_timeout=60, **way) as bus,
        RedisBus(replica="b", stop_ttl=60, poll_interval=30, run_timeout=60, **way) as other,
    ):
        store = Store()
        index = ChatIndex(bus.redis, bus, store)  # type: ignore[arg-type]
        await other.watch.subscribed()
        await bus.check()
        await index.remove(chat)  # while the list is not whole
        run = await begun(bus, chat, now_ms())
        await other.stop(chat, Arrival(now_ms() - 30_000))
        await other.stop(chat, Arrival(), run_id=new_run_id())
        await other.stop(chat, Arrival(), wait=True)
        await bus.watch.look()
        await bus.closing(run)
        await bus.holds(run)
        await bus.end(run, done(run))
        live = await begun(bus, f"{chat}-live")
        store.chats = [(chat, 1, 1.0), (live.chat_id, 1, 2.0)]
        await index.page("", 10, None, None)
        await index.put(live.chat_id, 2, live=True)
        await index.page("", 10, None, "running")
        await index.remove(chat)
        await index.admit(scoped("ann", "new"), 1)
        await forget(bus.redis)
        limits = Limits(bus.redis, bus, requests_per_minute=1, live_runs=1, run_timeout=60)
        await limits.count_request("ann")
        await limits.count_stops("ann", 1000)
        with pytest.raises(LimitReached):
            await limits.count_stops("ann", 1)
        await limits.count_run(live)
        with pytest.raises(LimitReached):
            await limits.count_run(Run(live.chat_id, new_run_id(), Arrival()))
        await bus.end(live, done(live))
        await limits.count_run(Run(live.chat_id, new_run_id(), Arrival()))  # in the place of the one that has ended
    ours = {name for name, count in cluster.calls().items() if count > before.get(name, 0)}
    ours -= {"hello"}  # free to all
    assert ours == set(COMMANDS)


class Store:
    def __init__(self) -> None:
        self.chats: list[tuple[str, int, float]] = []

    async def scan(self, namespace: str | None) -> list[tuple[str, int, float]]:
        return self.chats


# ---- signing in


async def test_another_password_is_asked_for_when_a_connection_is_opened(make_bus: Any, cluster: Cluster) -> None:
    """As with IAM's tokens: what is open stays open, what is opened uses the new one."""
    provider = Changing(cluster.credentials.get_credentials())
    bus = await make_bus(way=cluster.way | {"credentials": provider})
    run = await begun(bus, chat_of(2, "password"))
    cluster.grant(password="the next one")
    try:
        await bus.ping()
        bus.renew()
        with pytest.raises(BusUnavailable, match=AuthenticationError.__name__):
            await bus.ping()
        provider.told = (provider.told[0], "the next one")
        await bus.ping()
        await bus.stop(run.chat_id, Arrival())
        assert await fired(run) is StopReason.USER
        await bus.end(run, done(run))
    finally:
        cluster.grant()


async def test_a_token_of_iam_is_a_password(make_bus: Any, cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        monkeypatch.setenv(name, "for/a+test=")
    provider = CacheCredentials(USER, "a-cache", "eu-central-1")
    cluster.grant(password=provider.get_credentials()[1])
    try:
        bus, other = [await make_bus(name, way=cluster.way | {"credentials": provider}) for name in "ab"]
        run = await begun(bus, chat_of(0, "token"))
        await other.stop(run.chat_id, Arrival())
        assert await fired(run) is StopReason.USER
        await bus.end(run, done(run))
    finally:
        cluster.grant()


class Changing:
    def __init__(self, told: Any) -> None:
        self.told = told

    def get_credentials(self) -> Any:
        return self.told

    async def get_credentials_async(self) -> Any:
        return self.told
