"""The suite of the bus once more on a cluster of one node, as ElastiCache Serverless looks, with the same user."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.conftest import Lone
from tests.integration.test_bus_on_three_nodes import *  # noqa: F403
from tests.integration.test_signal_bus import (
    test_a_receipt_is_pushed_to_whoever_asked_for_it,
    test_every_verb_says_that_the_bus_is_gone,
)
from tests.redis_cluster import Cluster, running_cluster

pytestmark = pytest.mark.cluster

__all__ = ["test_a_receipt_is_pushed_to_whoever_asked_for_it", "test_every_verb_says_that_the_bus_is_gone"]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with running_cluster(tmp_path_factory.mktemp("cluster"), 1, engine="valkey") as running:
        yield running


@pytest.fixture
def lone(tmp_path: Path) -> Iterator[Lone]:
    with running_cluster(tmp_path, 1, engine="valkey") as running:
        yield Lone(running.way, running.end)
