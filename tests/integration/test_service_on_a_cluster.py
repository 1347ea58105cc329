"""Two replicas as processes on a cluster with TLS, told of it by their settings alone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import httpx2 as httpx
import pytest

from tests.integration.test_launcher import launched
from tests.redis_cluster import PASSWORD, USER, Cluster
from tests.stack import Replica, Stack

pytestmark = pytest.mark.cluster

SIGN_IN = {"REDIS_CLUSTER": "true", "REDIS_AUTH": "password", "REDIS_USERNAME": USER, "REDIS_PASSWORD": PASSWORD}


@pytest.fixture(scope="module")
def replicas(three_nodes: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Replica]]:
    directory = Path(tmp_path_factory.mktemp("replicas"))
    stack = Stack(three_nodes.url(), directory / "sessions", directory, valkey=cast("Any", None))
    try:
        for _ in range(2):
            stack.add_replica(REDIS_CLUSTER="true", REDIS_AUTH="password", REDIS_USERNAME=USER, REDIS_PASSWORD=PASSWORD)
        for replica in stack.replicas:
            replica.wait_until_live()
        yield stack.replicas
    finally:
        for replica in stack.replicas:
            replica.end()


def test_a_chat_is_stopped_through_another_replica(replicas: list[Replica]) -> None:
    runs, stops = replicas
    for replica in replicas:
        assert httpx.get(f"{replica.url}/health").json()["redis"] == "connected"
    message = {"message": '/script {"chunks": ["tick "], "repeat": 2000, "pace_ms": 20}'}
    with httpx.stream("POST", f"{runs.url}/api/v1/chat/on-a-cluster", json=message, timeout=20) as answer:
        assert answer.status_code == 200
        lines = answer.iter_lines()
        assert next(line for line in lines if line) == "data: tick "
        listed = httpx.get(f"{stops.url}/api/v1/chats?status=running").json()["chats"]
        assert [chat["chat_id"] for chat in listed] == ["on-a-cluster"]
        stopped = httpx.post(f"{stops.url}/api/v1/stop/on-a-cluster?wait=5", timeout=10).json()
        assert stopped["status"] == "stopped"
        assert stopped["run_id"] == answer.headers["X-Run-Id"]
        assert [line for line in lines if line][-2:] == ["event: stopped", "data: [STOPPED]"]
    messages = httpx.get(f"{stops.url}/api/v1/chat/on-a-cluster/messages").json()["messages"]
    assert [(m["role"], m.get("stopped", False)) for m in messages] == [("user", False), ("assistant", True)]
    assert httpx.delete(f"{stops.url}/api/v1/chat/on-a-cluster").json()["status"] == "deleted"


def test_many_chats_are_stopped_at_once(replicas: list[Replica]) -> None:
    """Their keys lie all over the cluster."""
    runs, stops = replicas
    names = [f"bulk-{n}" for n in range(12)]
    message = {"message": '/script {"chunks": ["tick "], "repeat": 2000, "pace_ms": 20}'}
    with httpx.Client(timeout=20) as client:
        streams = [client.stream("POST", f"{runs.url}/api/v1/chat/{name}", json=message) for name in names]
        answers = [stream.__enter__() for stream in streams]
        bulk = httpx.post(f"{stops.url}/api/v1/stop/bulk?wait=5", json={"chat_ids": [*names, "nobody"]}, timeout=10)
        assert [r["status"] for r in bulk.json()["results"]] == ["stopped"] * len(names) + ["idle"]
        for stream, answer in zip(streams, answers, strict=True):
            assert answer.read().decode().endswith("event: stopped\ndata: [STOPPED]\n\n")
            stream.__exit__(None, None, None)


def test_one_command_starts_replicas_beside_a_cluster(three_nodes: Cluster, tmp_path: Path) -> None:
    """`python -m local` asks that Redis first, as the replicas will."""
    with launched(
        tmp_path, "--model", "scripted", "--replicas", "1", REDIS_URL=three_nodes.url(), **SIGN_IN
    ) as launcher:
        launcher.expect(rf"redis at 127\.0\.0\.1:{three_nodes.nodes[0].port}")
        assert httpx.get(f"{launcher.url()}/health").json()["redis"] == "connected"
