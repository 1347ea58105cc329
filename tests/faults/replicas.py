"""Replicas that may be lost: each test asks for two, and those that are gone are replaced."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import redis

from tests.contract.client import chat_url
from tests.stack import Replica, Stack

PULSE_TTL = 6.0  # seconds after which a replica that says nothing is taken for dead


@dataclass
class Fleet:
    """A stack whose replicas come and go. `GRACE`: seconds that its replicas give live runs."""

    stack: Stack
    GRACE = 1.5
    _env: dict[str, str] = field(default_factory=lambda: {"AGENT": "tests.faults.replica_agents:make"})

    def replicas(self, count: int) -> list[Replica]:
        """So many that serve, those that have served longest first."""
        alive = [replica for replica in self.stack.replicas if replica.process.poll() is None]
        new = [self.start() for _ in range(count - len(alive))]
        for replica in new:
            replica.wait_until_live()
        return [*alive, *new][:count]

    def start(self) -> Replica:
        """One more, which need not serve yet."""
        return self.stack.add_replica(SHUTDOWN_GRACE=str(self.GRACE), **self._env)

    def expire_pulse(self, replica: Replica) -> None:
        """What 6 s without a pulse do, or a jump of the clock of Redis."""
        with redis.from_url(self.stack.redis_url) as bus:
            gone = list(bus.scan_iter(f"replica:{replica.name}-*", count=1000))
            if gone:
                bus.delete(*gone)


@contextlib.contextmanager
def frozen(replica: Replica) -> Iterator[None]:
    """A replica that gets no CPU in the block. What it had said before is in its clients' sockets by then."""
    pid = replica.process.pid
    os.kill(pid, signal.SIGSTOP)
    try:
        deadline = time.monotonic() + 5
        while any(state != "T" for state in _states(pid)):  # each thread stops where it next looks
            assert time.monotonic() < deadline
            time.sleep(0.001)  # polled: the kernel tells the parent alone, and that is subprocess' business
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def _states(pid: int) -> list[str]:
    return [(task / "stat").read_text().rpartition(")")[2].split()[0] for task in Path(f"/proc/{pid}/task").iterdir()]


def connect(replica: Replica, *, receive_buffer: int = 0) -> socket.socket:
    """A socket to it. `receive_buffer`: bytes that the kernel holds for whoever does not read, 0 as ever."""
    client = socket.socket()
    if receive_buffer:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    client.connect(("127.0.0.1", replica.port))
    client.setblocking(False)
    return client


def request(replica: Replica, chat_id: str, body: bytes, *, length: int | None = None) -> bytes:
    """The message call as bytes. `length`: of a body of which `body` is but the beginning."""
    head = (
        f"POST {urlsplit(chat_url(replica, chat_id)).path} HTTP/1.1\r\nHost: x\r\n"
        f"Content-Type: application/json\r\nContent-Length: {length or len(body)}\r\n\r\n"
    )
    return head.encode() + body
