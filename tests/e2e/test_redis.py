"""Why Redis evicts nothing: a stop that is stored must still be there when its run comes."""

from __future__ import annotations

import time

import pytest
import redis

from tests.e2e.stack import docker
from tests.stops.figures import figure

STOPS, MEMORY = 500, 32_000_000


def filled(client: redis.Redis) -> None:
    """Write twice what Redis may hold; stops are the oldest keys then."""
    for n in range(2 * MEMORY // 100_000):
        try:
            client.set(f"other:{n}", b"x" * 100_000, ex=3600)
        except redis.ResponseError:
            return


@pytest.mark.parametrize(("policy", "kept"), [("noeviction", True), ("allkeys-lru", False), ("volatile-ttl", False)])
def test_only_a_redis_that_evicts_nothing_keeps_every_stop(policy: str, kept: bool) -> None:
    command = ["redis:7-alpine", "redis-server", "--maxmemory", str(MEMORY), "--maxmemory-policy", policy]
    name = docker("run", "--detach", "--rm", *command).strip()
    try:
        client = redis.Redis(docker("inspect", "-f", "{{.NetworkSettings.IPAddress}}", name).strip())
        while True:
            try:
                client.ping()
                break
            except redis.ConnectionError:
                time.sleep(0.05)  # polled: it tells by answering only
        for n in range(STOPS):
            client.set(f"stop:chat-{n}", n, ex=1800)
        filled(client)
        left = sum(client.exists(f"stop:chat-{n}") for n in range(STOPS))
        client.close()
    finally:
        docker("kill", name)
    figure(f"stops left in a full Redis with {policy}", f"{left} of {STOPS}")
    assert (left == STOPS) is kept


def test_the_redis_of_the_stack_keeps_what_it_acknowledged() -> None:
    with redis.Redis() as client:
        settings = client.config_get("*")
    told = {name: settings[name] for name in ("appendonly", "maxmemory", "maxmemory-policy", "save")}
    assert told == {
        "appendonly": "yes",
        "maxmemory": str(256 * 1024**2),
        "maxmemory-policy": "noeviction",
        "save": "",
    }
