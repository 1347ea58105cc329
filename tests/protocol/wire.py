"""The way to Valkey, one command at a time: real sockets, the client's own parser, and a hand between the two."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, cast

import hiredis
from redis.asyncio import Connection

if TYPE_CHECKING:
    from tests.protocol.parts import Replica
    from tests.protocol.stepper import Stepper

_MORE = object()


class Wire:
    """One connection to Valkey. Blocks: an answer is there when a call returns."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=10)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._reader = hiredis.Reader(notEnoughData=_MORE)

    def ask(self, command: bytes) -> tuple[bytes, Any]:
        """Send one command. Its answer, as it came and as it reads."""
        self._socket.sendall(command)
        raw = b""
        while (answer := self._reader.gets()) is _MORE:
            raw += self._receive()
        return raw, answer

    def call(self, *words: object) -> Any:
        """The answer of one command."""
        answer = self.ask(packed(words))[1]
        if isinstance(answer, Exception):
            raise answer
        return answer

    def subscribe(self, command: bytes) -> None:
        """Send what is answered by pushes only."""
        self._socket.sendall(command)

    def pushed(self) -> list[list[Any]]:
        """All that was pushed by now: what was published before this is read before the answer of a PING."""
        self._socket.sendall(b"*1\r\n$4\r\nPING\r\n")
        found: list[list[Any]] = []
        while True:
            while (message := self._reader.gets()) is _MORE:
                self._receive()
            if message == b"PONG":
                return found
            found.append(message)

    def close(self) -> None:
        self._socket.close()

    def _receive(self) -> bytes:
        data = self._socket.recv(65536)
        if not data:
            raise ConnectionError("Valkey has closed the connection")
        self._reader.feed(data)
        return data


def packed(words: Iterable[object]) -> bytes:
    """A command as it goes over the wire."""
    texts = [w if isinstance(w, bytes) else str(w).encode() for w in words]
    return b"*%d\r\n" % len(texts) + b"".join(b"$%d\r\n%s\r\n" % (len(t), t) for t in texts)


def push_bytes(message: list[Any]) -> bytes:
    """A push as the server writes it."""
    parts = [b":%d\r\n" % p if isinstance(p, int) else b"$%d\r\n%s\r\n" % (len(p), p) for p in message]
    return b">%d\r\n" % len(parts) + b"".join(parts)


def words_of(command: bytes) -> list[str]:
    """What a packed command says."""
    reader = hiredis.Reader()
    reader.feed(command)
    return [w.decode() for w in reader.gets()]


class Link:
    """One connection of a replica: it writes to the stepper, who sends on, and reads what the stepper hands in."""

    def __init__(self, stepper: Stepper, replica: Replica) -> None:
        self._stepper, self.replica = stepper, replica
        self.wire = Wire(stepper.port)
        self.reader = asyncio.StreamReader()
        self.alive = True  # the server's end is open
        self.closed = False  # the client's end is closed
        self.listens = False

    def write(self, data: bytes) -> None:
        if self.alive:  # else it goes nowhere: the next read finds the end
            self._stepper.written(self, data)

    def hand_in(self, data: bytes) -> None:
        """Let the client read `data`."""
        if self.alive and not self.closed:
            self.reader.feed_data(data)

    def cut(self, *, told: bool = True) -> None:
        """The connection breaks; the client's next read says so where it is `told`."""
        if self.alive:
            self.alive = False
            self.wire.close()
            if told:
                self.reader.feed_eof()

    def close(self) -> None:
        self.closed = True


class _Writer:
    """What redis-py writes to."""

    def __init__(self, link: Link) -> None:
        self._link = link

    def writelines(self, chunks: Iterable[bytes]) -> None:
        self._link.write(b"".join(chunks))

    async def drain(self) -> None:
        pass

    def close(self) -> None:
        self._link.close()

    async def wait_closed(self) -> None:
        pass

    def get_extra_info(self, name: str) -> None:
        return None


def connection_class(replica: Replica, usual: type[Connection]) -> type[Connection]:
    """The product's connection, its socket replaced by a link of `replica`."""

    class Gated(usual):  # type: ignore[valid-type,misc]
        async def _connect(self) -> None:
            link = await replica.dial()
            self._reader, self._writer = link.reader, cast("asyncio.StreamWriter", _Writer(link))
            replica.connections.append(self)

    return Gated
