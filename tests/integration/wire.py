"""What may lie between the product and Redis: a proxy that passes on, or keeps to itself, what either says."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from types import TracebackType


class Proxy:
    """On 127.0.0.1, in the test's own loop. It never closes by itself what a side leaves open."""

    def __init__(self, port: int, target: int) -> None:
        """It listens at `port`; Redis is at `target`."""
        self._port, self._target = port, target
        self.taken = 0  # connections, in all
        self._mute: set[object] = set()  # connections of which nothing is delivered
        self._deaf: set[object] = set()  # connections whose client is told nothing
        self._open: dict[object, list[asyncio.StreamWriter]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def hold(self) -> None:
        """Nothing goes through any more on the connections that are open now, and nobody is told: as after a freeze."""
        self._mute |= set(self._open)

    def swallow(self) -> None:
        """The server's replies on the connections that are open now do not arrive."""
        self._deaf |= set(self._open)

    async def __aenter__(self) -> Proxy:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self._port)
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for writer in [w for pair in self._open.values() for w in pair]:
            writer.transport.abort()
        await asyncio.sleep(0)  # until the transports have heard of it

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.taken += 1
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._target)
        which = object()
        self._open[which] = [writer, far_writer]
        for source, sink, kept in (
            (reader, far_writer, (self._mute,)),
            (far_reader, writer, (self._mute, self._deaf)),
        ):
            task = asyncio.create_task(self._pass_on(which, source, sink, kept))
            self._tasks.add(task)

    async def _pass_on(
        self,
        which: object,
        source: asyncio.StreamReader,
        sink: asyncio.StreamWriter,
        kept: tuple[set[object], ...],
    ) -> None:
        with suppress(OSError):
            while data := await source.read(65536):
                if not any(which in ones for ones in kept):
                    sink.write(data)
                    await sink.drain()
        if not any(which in ones for ones in kept):
            sink.close()
