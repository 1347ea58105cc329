"""Connections that know when their client left, and the server that opens them."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from typing import IO, Any, ClassVar

import uvicorn
from uvicorn.protocols.http.auto import AutoHTTPProtocol
from uvicorn.protocols.http.flow_control import FlowControl


class Log:
    """One JSON object a line, flushed at once. Without a file it goes nowhere."""

    def __init__(self, file: IO[str] | None) -> None:
        self._file = file

    def write(self, event: str, at: float | None = None, **fields: Any) -> None:
        """`at`: seconds of `time.monotonic()`, now where it is not given. Fields that are None are left out."""
        if self._file:
            line = {"event": event, "at": time.monotonic() if at is None else at, **fields}
            self._file.write(json.dumps({k: v for k, v in line.items() if v is not None}) + "\n")
            self._file.flush()


class Left(Exception):
    """The connection is over: its client left, or this process was told to end."""


class Connection(asyncio.Protocol):
    """What `serving` mixes into uvicorn's protocol."""

    # uvicorn's
    transport: asyncio.Transport
    flow: FlowControl
    client: tuple[str, int]
    # of the server
    log: ClassVar[Log]
    open: ClassVar[dict[tuple[str, int], Connection]]

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client has come."""
        super().connection_made(transport)
        self.left_at: float | None = None
        self.cut = False
        loop = asyncio.get_running_loop()
        self._over, self._lost = loop.create_future(), loop.create_future()
        self.open[self.client] = self

    def eof_received(self) -> bool | None:
        """The client will send no more: it has left. What was written and not yet sent would delay connection_lost."""
        self._leave()
        return super().eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        """There is no connection any more. A reset comes here alone, and so does TLS without a closing alert."""
        if not self.cut:
            self._leave()
        super().connection_lost(exc)
        self.open.pop(self.client, None)
        self._end(self._over)
        self._end(self._lost)
        by = "server" if self.left_at is None else "client"
        self.log.write("connection_closed", self.left_at, connection=self.client[1], by=by)

    def timeout_keep_alive_handler(self) -> None:
        """Idle for too long."""
        self.cut = True
        super().timeout_keep_alive_handler()  # type: ignore[misc]  # uvicorn's protocol has it

    async def quiet(self, ms: float) -> None:
        """Wait until the client takes more, then `ms` milliseconds. Raises: Left, at once."""
        self.flow.resume_reading()  # a large request pauses it, and then the end of the stream would not be seen
        if self.flow.write_paused:
            await self.flow.drain()
        if not self._over.done():
            await (asyncio.wait([self._over], timeout=ms / 1000) if ms > 0 else asyncio.sleep(0))
        if self._over.done():
            raise Left

    async def close(self) -> None:
        """Send what is written and cut the connection."""
        self.cut = True
        self.transport.close()
        await self._lost

    async def abort(self) -> None:
        """Forget what is written; return when uvicorn knows that the connection is lost, and expects no more of it."""
        self.transport.abort()
        await self._lost

    def end(self) -> None:
        """End what goes on here: this process was told to."""
        self.cut = True
        self._end(self._over)
        self.transport.abort()

    def _leave(self) -> None:
        if self.left_at is None and not self.cut:
            self.left_at = time.monotonic()
        self._end(self._over)

    @staticmethod
    def _end(future: asyncio.Future[None]) -> None:
        if not future.done():
            future.set_result(None)


class Server(uvicorn.Server):
    """uvicorn that tells its address, and ends at once and with status 0."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, and say where."""
        await super().startup(sockets)
        host, port = self.servers[0].sockets[0].getsockname()[:2]
        scheme = "https" if self.config.ssl else "http"
        print(f"fake Bedrock on {scheme}://{f'[{host}]' if ':' in host else host}:{port}", flush=True)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Let no stream go on. Unlike uvicorn's, wait for no connection: that can take seconds with TLS."""
        for server in self.servers:
            server.close()
        for connection in list(self.server_state.connections):
            if isinstance(connection, Connection):
                connection.end()
        await asyncio.sleep(0)  # the idle ones are lost now
        if tasks := self.server_state.tasks:
            await asyncio.wait(tasks, timeout=1)

    def handle_exit(self, sig: int, frame: Any) -> None:
        """Unlike uvicorn's, do not raise the signal again at the end."""
        self.should_exit = True


def serving(log: Log) -> type[Connection]:
    """A class of connections that write to `log`; `open` holds those that are, by the client's address."""
    return type("FakeBedrockConnection", (Connection, AutoHTTPProtocol), {"log": log, "open": {}})
