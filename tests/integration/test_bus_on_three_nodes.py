"""The suite of the bus once more on a cluster of three nodes with TLS, as a user with the access string."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from redis.crc import key_slot

from haltline import redis_scripts as scripts
from tests.integration.conftest import Way
from tests.integration.test_signal_bus import *  # noqa: F403
from tests.integration.test_signal_bus import commands, done, new_run, spent
from tests.redis_cluster import Cluster, Operator

pytestmark = pytest.mark.cluster

# They stop a Redis of their own, which takes seconds: one of them is enough, in test_bus_on_one_node.py.
del test_every_verb_says_that_the_bus_is_gone, test_a_run_that_nobody_could_stop_any_more  # noqa: F821
# Between nodes a push takes up to 40 ms now and then, and the first look at the record comes before it.
del test_a_receipt_is_pushed_to_whoever_asked_for_it  # noqa: F821


@pytest.fixture
def cluster(three_nodes: Cluster) -> Cluster:
    return three_nodes


@pytest.fixture
def way(cluster: Cluster) -> Way:
    return cluster.way


@pytest.fixture
def redis(cluster: Cluster) -> Operator:
    return Operator(cluster)


async def test_many_runs_share_pulses_and_looks(make_bus: Any, redis: Operator, chat: str) -> None:
    """A look is one command for the runs of a slot."""
    bus = await make_bus()
    runs = [new_run(f"{chat}-{n}") for n in range(200)]
    await asyncio.gather(*map(bus.begin, runs))
    before = await commands(redis)
    await bus.watch.look()
    slots = {key_slot(scripts.mailbox_key(run.chat_id).encode()) for run in runs}
    assert await spent(redis, before) == {"mget": len(slots)}
    assert len(await bus.live_among(run.chat_id for run in runs)) == len(runs)
    await asyncio.gather(*(bus.end(r, done(r)) for r in runs))
