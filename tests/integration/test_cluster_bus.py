"""The suite of the bus once more, on clusters, as a user who may do only what the access string says."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from redis.crc import key_slot

from haltline import redis_scripts as scripts
from tests.integration.conftest import Lone, Way
from tests.integration.test_signal_bus import *  # noqa: F403
from tests.integration.test_signal_bus import commands, done, new_run, spent
from tests.redis_cluster import Cluster, Operator, running_cluster

KINDS = {"three nodes of Redis, TLS": (3, "redis"), "one node of Redis, TLS": (1, "redis"), "Valkey": (1, "valkey")}


@pytest.fixture(scope="module", params=KINDS.values(), ids=KINDS)
def cluster(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    count, engine = request.param
    with running_cluster(tmp_path_factory.mktemp("cluster"), count, engine=engine) as running:
        yield running


@pytest.fixture
def way(cluster: Cluster) -> Way:
    return cluster.way


@pytest.fixture
async def redis(cluster: Cluster) -> AsyncIterator[Operator]:
    operator = Operator(cluster)
    yield operator
    await operator.aclose()


@pytest.fixture
def lone(tmp_path: Any) -> Iterator[Lone]:
    with running_cluster(tmp_path, 1) as running:
        yield Lone(running.way, running.end)


async def test_many_runs_share_pulses_and_looks(make_bus: Any, redis: Operator, chat: str) -> None:
    """A look is one command for the runs of a slot."""
    bus = await make_bus()
    runs = [new_run(f"{chat}-{n}") for n in range(200)]
    await asyncio.gather(*map(bus.begin, runs))
    before = await commands(redis)
    await bus.watch.look()
    slots = {key_slot(scripts.mailbox_key(run.chat_id).encode()) for run in runs}
    assert await spent(redis, before) == {"mget": len(slots)}
    await asyncio.gather(*(bus.end(r, done(r)) for r in runs))
