"""One replica as a process: uvicorn that lets live runs end before it does."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import socket
import sys
from collections.abc import Callable
from contextlib import suppress
from types import FrameType

import uvicorn
from loguru import logger
from uvicorn.config import STARTUP_FAILURE

from haltline.app import create_app
from haltline.connections import set_patience
from haltline.observability import log_what_nobody_caught
from haltline.protocol import protocol_of
from haltline.resources import Resources
from haltline.runner import UNWIND
from haltline.settings import Settings, exit_with

BACKLOG = 2048  # connections that wait to be taken
LAST_REQUESTS = 0.25  # seconds for the requests of those who were let in before the order to end
LAST_BODIES = 1.0  # seconds more for the rest of a request that has come in part


def serve(fd: int | None, ready_fd: int | None) -> None:
    """Serve until SIGTERM or SIGINT; never returns. Exit status 0 then, 2 where a setting is wrong.

    Args:
        fd: an inherited listening socket; None binds HOST and PORT.
        ready_fd: an inherited pipe that gets a line once this replica serves.
    """
    app = create_app()
    log_what_nobody_caught()
    resources: Resources = app.state.resources
    settings = resources.settings
    if (runs := resources.runs) is not None:
        runs.on_ended = Collector(lambda: runs.live_count).run_ended
    listener = socket.socket(fileno=fd) if fd is not None else listen(settings)
    set_patience(listener)
    config = uvicorn.Config(
        app,
        http=protocol_of(settings.replica_name),
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=int(settings.shutdown_grace) + UNWIND,
    )
    server = Server(config, resources, ready_fd)
    # Uvicorn takes the signals a moment later, and raises them again after the end. An ordered end is no failure.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, server.handle_exit)
    with asyncio.Runner(loop_factory=config.get_loop_factory()) as runner:  # uvloop, where there is one
        runner.run(server.serve([listener]))


class Collector:
    """When the garbage collector runs: hardly ever by itself, since whoever waits for a stop would wait for it.

    A run leaves some 100 objects in cycles, Strands' agent. A full collection looks at all that lives: with 250 live
    chats that takes 40 to 90 ms, and Python's own rule makes one every few seconds, since what is under way counts as
    new. So one comes when no run is live, or when more runs have ended than live, which bounds what waits for it.
    """

    FEW = 10  # ended runs that are not worth a collection
    MANY = 100  # that are, however few are live

    def __init__(self, live_runs: Callable[[], int]) -> None:
        """What was imported until now stays, and is never looked at again."""
        self._live_runs, self._ended = live_runs, 0
        gc.freeze()
        gc.set_threshold(10_000, 10, 1_000)
        gc.enable()

    def run_ended(self) -> None:
        """Collect, if it is time."""
        self._ended += 1
        live = self._live_runs()
        if self._ended >= (max(self.MANY, live) if live else self.FEW):
            self._ended = 0
            gc.collect()


class Server(uvicorn.Server):
    """Uvicorn that lets live runs end before it does."""

    def __init__(self, config: uvicorn.Config, resources: Resources, ready_fd: int | None) -> None:
        super().__init__(config)
        self._resources, self._ready_fd = resources, ready_fd
        self._loop: asyncio.AbstractEventLoop | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start serving, then tell whoever started this process."""
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)
        if self.started and self._ready_fd is not None:
            os.write(self._ready_fd, b"1\n")
            os.close(self._ready_fd)

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        """Serve until told to end, then end, whatever threads of stopped tools and model calls are still busy."""
        await super().serve(sockets)
        logger.complete()
        sys.stderr.flush()
        os._exit(0 if self.started else STARTUP_FAILURE)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Take no new connection, give live runs SHUTDOWN_GRACE, halt the rest, each with its closing frame.

        Whoever is connected by then is served as ever for a moment: a front door cannot tell whether a request that it
        had sent was read, and may send a message no second time.
        """
        await self._let_in_the_last(sockets or [])
        # Who keeps a connection is told not to send another request on it.
        self.server_state.default_headers = [*self.server_state.default_headers, (b"connection", b"close")]
        await asyncio.sleep(LAST_REQUESTS)
        asyncio.get_running_loop().call_later(LAST_BODIES, self._leave_those_who_only_began)
        if self._resources.runs is not None:
            self._draining = asyncio.create_task(self._resources.runs.drain(self._resources.settings.shutdown_grace))
        await super().shutdown(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to end. A second Ctrl-C ends the grace: each stream has its last frame, where uvicorn would cut it."""
        again, self.should_exit = self.should_exit, True
        if again and sig == signal.SIGINT and self._loop is not None and self._resources.runs is not None:
            self._loop.call_soon_threadsafe(self._resources.runs.end_grace)

    def _leave_those_who_only_began(self) -> None:
        """Close on requests whose body has not come whole: they were not taken, and would hold the end to the last."""
        for connection in list(self.server_state.connections):
            cycle, before = getattr(connection, "cycle", None), getattr(connection, "pipeline", None)
            if cycle is not None and cycle.more_body and not cycle.response_started and not before:
                connection.transport.close()

    async def _let_in_the_last(self, sockets: list[socket.socket]) -> None:
        """Close the door behind those whom the kernel has let in already: by itself a close would cut them off."""
        clients: list[socket.socket] = []
        for sock in sockets:
            with suppress(OSError):  # nobody is left, or no descriptor for more
                for _ in range(BACKLOG):
                    clients.append(sock.accept()[0])
        for server in self.servers:
            server.close()
        for client in clients:
            with suppress(OSError):  # it has left
                await asyncio.get_running_loop().connect_accepted_socket(self._protocol, client)

    def _protocol(self) -> asyncio.Protocol:
        # As uvicorn's own server makes them.
        make: Callable[..., asyncio.Protocol] = self.config.http_protocol_class
        return make(config=self.config, server_state=self.server_state, app_state=self.lifespan.state)


def listen(settings: Settings) -> socket.socket:
    """The replica's own listening socket, on HOST and PORT. Ends the process where it cannot be had."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    try:
        listener = socket.create_server((settings.host, settings.port), family=family, backlog=BACKLOG)
    except OSError as error:
        exit_with(f"PORT={settings.port} on HOST={settings.host} cannot be served: {error.strerror or error}")
    # Made again, so that it knows itself to be TCP, as one that is inherited does: else asyncio leaves Nagle's
    # algorithm on, and a frame waits up to 40 ms for the acknowledgement of the one before.
    return socket.socket(fileno=listener.detach())
