"""The suite of the list of chats once more on a cluster with TLS, as a user with the access string."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from redis.asyncio import Redis

from haltline.redis_connection import connect
from tests.integration.test_bus_on_three_nodes import cluster
from tests.integration.test_chat_index import *  # noqa: F403
from tests.redis_cluster import Cluster, Operator

pytestmark = pytest.mark.cluster

__all__ = ["cluster"]

del test_pages_under_a_server_with_a_locale  # noqa: F821  # it starts a server of its own


@pytest.fixture
async def redis(cluster: Cluster) -> Operator:
    operator = Operator(cluster)
    await operator.flushall()
    return operator


@pytest.fixture
async def client(cluster: Cluster, redis: Operator) -> AsyncIterator[Redis]:
    client = connect(**cluster.way)
    yield client
    await client.aclose()
