"""HTTP as uvicorn speaks it, with the limits that uvicorn leaves to a front door: of a head's size and of its time.

Without them one client could hold a replica's memory, and its event loop: what has come of a header is copied with each
piece that follows, so 60 MB of it take five seconds in which no stop is heard.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any

from loguru import logger
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

MAX_HEAD_BYTES = 128 * 1024  # of a head, of what trails a body, of what stands between two pieces of it
HEAD_SECONDS = 15.0  # for a head; for the rest of a body whose request is answered already


class Surplus(Exception):
    """A client asked for more behind what is to be answered last."""


class Protocol(HttpToolsProtocol):
    """One connection. `replica` is named in what is answered here, as in every answer."""

    replica = ""
    _unused = 0  # bytes since the last that told something
    _told = False
    _in_head = False
    _surplus = False  # something came behind what is answered last: nothing is read any more
    _answered: RequestResponseCycle | None = None  # the one at the moment; uvicorn's `cycle` is the latest that came
    _patience: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client is there; it has as long as for a head."""
        super().connection_made(transport)
        self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        """It has left."""
        self._waited()
        super().connection_lost(exc)
        if cycle := self._answering:
            cycle.disconnected = True
            cycle.message_event.set()

    def eof_received(self) -> None:
        """The client says no more: it has left. What it does not read would put that off for as long as it is there."""
        if self._answering:
            self.transport.abort()

    def data_received(self, data: bytes) -> None:
        """Read on, if all that came is of some use."""
        if self._surplus:
            return
        self._told = False
        super().data_received(data)
        self._unused = 0 if self._told else self._unused + len(data)
        if self._unused > MAX_HEAD_BYTES and not self.transport.is_closing():
            logger.info("bytes=<{}> | a head without an end was refused", self._unused)
            self._refuse(431, f"The head of the request is larger than {MAX_HEAD_BYTES // 1024} KiB.")
        elif self._patience is None and not self._answering:
            self._wait()  # empty lines between two requests: uvicorn's own patience begins anew with each

    def on_message_begin(self) -> None:
        """The first byte of a head.

        Raises: Surplus, which ends the reading, where the answer under way is the connection's last. Uvicorn would keep
        what comes for later and read no more until then, and so not see its client leave.
        """
        if (cycle := self._answering) and not cycle.keep_alive:
            self._surplus = True
            raise Surplus
        self._in_head = True
        super().on_message_begin()
        self._wait()

    def on_headers_complete(self) -> None:
        """The last one."""
        self._told = True
        self._waited()
        super().on_headers_complete()
        self._in_head = False  # after that: it raises where the URL cannot be read, which is a fault of the head

    def on_body(self, body: bytes) -> None:
        """A piece of a body. Where the answer is given it is dropped: a client hears it only when all was sent."""
        self._told = True
        super().on_body(body)

    def on_message_complete(self) -> None:
        """The request has been read."""
        self._told = True
        self._waited()
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """It is answered, perhaps before all of its body was there."""
        super().on_response_complete()
        if self.cycle.response_complete and self.cycle.more_body:
            self._wait()

    def send_400_response(self, msg: str) -> None:
        """As the API answers."""
        if not self._surplus:
            self._refuse(400, "The request cannot be read.")

    @property
    def _answering(self) -> RequestResponseCycle | None:
        cycle = self._answered
        return cycle if cycle is not None and not cycle.response_complete else None

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._answered = cycle
        super()._start_asgi_task(cycle, app)

    def _refuse(self, status: int, detail: str) -> None:
        if not self._answers_another():
            body = json.dumps({"detail": detail}, separators=(",", ":")).encode()
            headers = [
                *self.server_state.default_headers,
                (b"content-type", b"application/json"),
                (b"content-length", b"%d" % len(body)),
                (b"x-replica", self.replica.encode()),
                (b"x-content-type-options", b"nosniff"),
                (b"connection", b"close"),
            ]
            head = b"".join(b"%b: %b\r\n" % header for header in headers)
            self.transport.write(STATUS_LINE[status] + head + b"\r\n" + body)
        self.transport.close()

    def _answers_another(self) -> bool:
        """Whether what is written now would stand in another answer, or be taken for the one to an earlier request."""
        if self.cycle is None or self.cycle.response_complete:
            return False
        return self._in_head or self.cycle.response_started or bool(self.pipeline)

    # ---- patience
    def _wait(self) -> None:
        self._waited()
        self._patience = self.loop.call_later(HEAD_SECONDS, self._too_slow)

    def _waited(self) -> None:
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None

    def _too_slow(self) -> None:
        if (
            self.cycle is not None and not self.cycle.response_complete
        ):  # an earlier request of a client that sends several at once
            self._wait()
        else:
            self.transport.close()


def protocol_of(replica: str) -> type[Protocol]:
    """The protocol of a replica by its name."""
    return type("Protocol", (Protocol,), {"replica": replica})
