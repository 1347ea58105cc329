"""Clients that leave in every way there is, on hosts that vanish; and an agent with tools for them."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import resource
import shutil
import socket
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from strands import Agent
from strands.models import Model

from tests.contract.agents import work_async, work_in_a_thread
from tests.fake_bedrock import settings_for
from tests.stack import Replica

CLONE_NEWNET = 0x40000000


def make(model: Model) -> Agent:
    """AGENT: tools that tell by a file that they were entered."""
    return Agent(model=model, tools=[work_async, work_in_a_thread], callback_handler=None)


def over_bedrock(url: str, directory: Path) -> dict[str, str]:
    """Settings of a replica whose model is Bedrock at this address, and whose agent is the one above."""
    return settings_for(url, directory) | {
        "AGENT": "tests.faults.leaving:make",
        "MAX_OUTPUT_TOKENS": "1000000",  # what has no end is what is wanted here
    }


# ---- how a client goes
def close(sock: socket.socket) -> None:
    """A FIN, and a RST to whatever comes after it."""
    sock.close()


def reset(sock: socket.socket) -> None:
    """A RST: what a client does that crashes with SO_LINGER at 0, or a firewall in its name."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def half_close(sock: socket.socket) -> None:
    """A FIN from who still listens: it will say no more."""
    sock.shutdown(socket.SHUT_WR)


WAYS: dict[str, Callable[[socket.socket], None]] = {"closed": close, "reset": reset, "half-closed": half_close}


# ---- a client by hand
def chat_request(chat_id: str, message: str, **query: str) -> bytes:
    """`POST /api/v1/chat/{chat_id}` as it stands on the wire."""
    body = json.dumps({"message": message}).encode()
    asked = "?" + "&".join(f"{k}={v}" for k, v in query.items()) if query else ""
    head = f"POST /api/v1/chat/{chat_id}{asked} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


def connect(port: int, *, receive_buffer: int | None = None) -> socket.socket:
    """A client's socket. `receive_buffer`: bytes that its kernel takes in before it says stop."""
    sock = socket.socket()
    if receive_buffer is not None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    sock.settimeout(20)
    sock.connect(("127.0.0.1", port))
    return sock


def read_until(sock: socket.socket, wanted: bytes, seconds: float = 20) -> bytes:
    """What was received up to and behind `wanted`. Raises: AssertionError where the server closes first."""
    deadline, got = time.monotonic() + seconds, b""
    while wanted not in got:
        sock.settimeout(max(deadline - time.monotonic(), 0.01))
        data = sock.recv(65536)
        assert data, f"closed before {wanted!r}: {got!r}"
        got += data
    return got


def unsent(client: socket.socket, server: Host | None = None) -> int:
    """Bytes that the kernel of the server, this one's by default, has for this client and has no word of."""

    def there() -> int:
        own, port = client.getsockname()[1], client.getpeername()[1]
        for line in Path("/proc/thread-self/net/tcp").read_text().splitlines()[1:]:
            _, local, remote, _, queues, *_ = line.split()
            if int(local[-4:], 16) == port and int(remote[-4:], 16) == own:
                return int(queues.partition(":")[0], 16)
        return 0

    return int(server.do(there)) if server else there()


def resident(replica: Replica) -> int:
    """Bytes of the replica's memory that are in use."""
    pages = int(Path(f"/proc/{replica.process.pid}/statm").read_text().split()[1])
    return pages * resource.getpagesize()


# ---- hosts of our own
@dataclass
class Host:
    """A network namespace. What is made in it stays of it."""

    name: str

    def run(self, *words: str) -> None:
        """Run a command there."""
        _ip("netns", "exec", self.name, *words)

    def do(self, what: Callable[[], Any]) -> Any:
        """Call `what` in a thread that is on this host."""

        def there() -> Any:
            libc = ctypes.CDLL(None, use_errno=True)
            with open(f"/var/run/netns/{self.name}") as namespace:
                if libc.setns(namespace.fileno(), CLONE_NEWNET):
                    raise OSError(ctypes.get_errno(), "setns")
            return what()

        with ThreadPoolExecutor(1) as thread:  # one of its own, which ends
            return thread.submit(there).result()


@dataclass
class Link:
    """Two hosts and the wire between them."""

    server: Host
    client: Host
    address: str  # of the server

    def cut(self) -> None:
        """The client's host vanishes: no packet of it arrives any more, and it says nothing of its going."""
        _ip("-n", self.client.name, "link", "set", "wire", "down")

    def listen(self) -> socket.socket:
        """A listening socket of the server's host, on a port of its choice."""
        return self.server.do(lambda: socket.create_server((self.address, 0), backlog=128))

    def connect(self, port: int, *, receive_buffer: int | None = None) -> socket.socket:
        """A connection from the client's host."""

        def there() -> socket.socket:
            sock = socket.socket()
            if receive_buffer is not None:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
            sock.settimeout(20)
            try:
                sock.connect((self.address, port))
            except OSError:
                sock.close()
                raise
            return sock

        return self.client.do(there)


def why_no_hosts() -> str:
    """Why network namespaces cannot be had here; empty where they can."""
    if os.geteuid() != 0 or not shutil.which("ip"):
        return "network namespaces need root and iproute2"
    name = f"haltline-try-{os.getpid()}"
    tried = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True)
    subprocess.run(["ip", "netns", "del", name], capture_output=True)
    return tried.stderr.strip()


@contextlib.contextmanager
def two_hosts() -> Iterator[Link]:
    """Two network namespaces with a wire between them, gone again on the way out."""
    own = f"{os.getpid()}-{time.monotonic_ns() % 10**6}"
    server, client = Host(f"haltline-s-{own}"), Host(f"haltline-c-{own}")
    try:
        for host in (server, client):
            _ip("netns", "add", host.name)
        _ip("-n", server.name, "link", "add", "wire", "type", "veth", "peer", "name", "wire", "netns", client.name)
        _ip("-n", server.name, "link", "set", "lo", "up")  # for what the server says to itself
        for host, address in ((server, "192.0.2.1/24"), (client, "192.0.2.2/24")):
            _ip("-n", host.name, "address", "add", address, "dev", "wire")
            _ip("-n", host.name, "link", "set", "wire", "up")
        yield Link(server, client, "192.0.2.1")
    finally:
        for host in (server, client):
            subprocess.run(["ip", "netns", "del", host.name], capture_output=True)


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)
