"""The connection of a model's call: HTTP/1.1 over asyncio, closed at any moment in one step.

It carries what botocore has signed, and fails as botocore would. A client library was used before: what it does between
two reads cost more than all the rest of a token, and closing its connections took several steps, each of which could be
cut short. Here a read is one call of a parser in C, and `abort` is all there is to the end.
"""

from __future__ import annotations

import asyncio
import base64
import os
import select
import socket
import ssl
import threading
import time
from contextlib import suppress
from typing import cast
from urllib.parse import SplitResult, unquote, urlsplit

from botocore.awsrequest import AWSPreparedRequest
from botocore.exceptions import (
    BotoCoreError,
    ConnectionClosedError,
    ConnectTimeoutError,
    EndpointConnectionError,
    ProxyConnectionError,
    ReadTimeoutError,
    SSLError,
)
from botocore.httpsession import get_cert_path
from httptools import HttpParserError, HttpParserUpgrade, HttpResponseParser

IDLE_CONNECTIONS = 100
IDLE_SECONDS = 60.0  # a connection that was idle for longer is not used again
LONGEST_HEAD = 256 * 1024  # bytes, about: what comes before a body is not kept for ever
UNREAD = 64 * 1024  # bytes of a response that may wait for a slow reader before the connection is read no further


class Connection(asyncio.Protocol):
    """One connection to one place, for one request at a time. Of one event loop."""

    def __init__(self, url: str) -> None:
        self.place = place_of(url)
        self._url = url
        self._loop = asyncio.get_running_loop()
        self._socket: asyncio.Transport | None = None  # what TLS lies upon
        self._transport: asyncio.Transport | None = None
        self._parser: HttpResponseParser | None = None
        self._waiting: asyncio.Future[None] | None = None
        self._failure: Exception | None = None
        self.connected = self._closed = False
        self._shut = False  # from elsewhere: this loop will hear of it, until then no other call is to have it
        self.idle_since = 0.0  # time.monotonic()
        self._reset()

    def _reset(self) -> None:
        self.status = 0
        self.headers: dict[str, str] = {}
        self._has_head = self._complete = self._reusable = False
        self._before_body = 0  # bytes
        self._unread: list[bytes] = []
        self._size = 0  # of these

    # ---- opening
    async def connect(self, tls: ssl.SSLContext, proxy: SplitResult | None, seconds: float | None) -> None:
        """Connect within `seconds`, through `proxy` where there is one.

        Raises: EndpointConnectionError, ConnectTimeoutError, ProxyConnectionError, SSLError.
        """
        scheme, host, port = self.place
        try:
            async with asyncio.timeout(seconds):
                first = self.place if proxy is None else place_of(proxy.geturl())
                await self._loop.create_connection(lambda: self, first[1], first[2])
                if proxy is not None and first[0] == "https":
                    await self._secure(tls, first[1])
                if proxy is not None and scheme == "https":
                    await self._through(proxy, f"{_bracketed(host)}:{port}")
                if scheme == "https":
                    await self._secure(tls, host)
            if self._failure is not None:  # it was closed meanwhile
                raise self._failure
            self.connected = True
        except BotoCoreError:  # some of them are an OSError too
            raise
        except TimeoutError as error:
            raise ConnectTimeoutError(endpoint_url=self._url, error=error) from error
        except ssl.SSLError as error:
            raise SSLError(endpoint_url=self._url, error=error) from error
        except OSError as error:
            raise EndpointConnectionError(endpoint_url=self._url, error=error) from error
        finally:
            if not self.connected:
                self.abort()

    async def _secure(self, tls: ssl.SSLContext, host: str) -> None:
        assert self._transport is not None  # noqa: S101 - connected
        if self._failure is not None:  # nobody would tell the end of a handshake
            raise self._failure
        secured = await self._loop.start_tls(self._transport, self, tls, server_hostname=host)
        self._transport = cast("asyncio.Transport", secured)

    async def _through(self, proxy: SplitResult, target: str) -> None:
        self._write(f"CONNECT {target} HTTP/1.1", {"Host": target, **proxy_authorization(proxy)}, b"")
        await self.head(None)
        if self.status != 200:
            refused = f"the proxy answered {self.status}"
            raise ProxyConnectionError(proxy_url=f"{proxy.scheme}://{proxy.hostname}", error=refused)
        self._parser = None
        self._reset()

    # ---- a request and its response
    def send(self, request: AWSPreparedRequest, proxy: SplitResult | None) -> None:
        """Send a request that botocore has prepared."""
        self._reset()
        url = urlsplit(request.url)
        target = url._replace(scheme="", netloc="", fragment="").geturl() or "/"
        headers = {k: v.decode() if isinstance(v, bytes) else str(v) for k, v in request.headers.items()}
        names = {name.lower() for name in headers}
        if "host" not in names:
            # As it was signed: in lower case, and no port that goes without saying.
            scheme, host, port = place_of(request.url)
            headers["Host"] = _bracketed(host) + ("" if port == _PORTS[scheme] else f":{port}")
        if "accept-encoding" not in names:
            headers["Accept-Encoding"] = "identity"
        if proxy is not None and url.scheme == "http":
            target = url._replace(fragment="").geturl()
            headers |= proxy_authorization(proxy)
        body = request.body or b""
        self._write(f"{request.method} {target} HTTP/1.1", headers, body.encode() if isinstance(body, str) else body)

    def _write(self, line: str, headers: dict[str, str], body: bytes) -> None:
        assert self._transport is not None  # noqa: S101 - connected
        self._parser = HttpResponseParser(self)
        head = "\r\n".join([line, *(f"{name}: {value}" for name, value in headers.items()), "", ""])
        if not self._closed:  # otherwise whoever waits for the answer is told
            self._transport.write(head.encode("latin-1") + body)

    async def head(self, seconds: float | None) -> None:
        """Wait for `status` and `headers`; `seconds` is how long the other side may say nothing.

        Raises: ReadTimeoutError, ConnectionClosedError, or what `abort` was given.
        """
        while not self._has_head:
            await self._more(seconds)

    def take(self) -> bytes:
        """The part of the body that has arrived and was not taken yet."""
        if not self._unread:
            return b""
        data, self._unread = b"".join(self._unread), []
        if self._size > UNREAD and self._transport is not None and not self._closed:
            self._transport.resume_reading()
        self._size = 0
        return data

    async def read(self, seconds: float | None) -> bytes:
        """Wait for a part of the body; b"" at its end. Raises: as `head`."""
        while not self._unread and not self._complete:
            await self._more(seconds)
        return self.take()

    @property
    def reusable(self) -> bool:
        """Whether the response was read to its end, and another request may follow on this connection."""
        return (
            self._complete
            and not self._unread
            and self._reusable
            and not (self._closed or self._shut)
            and not any(t and t.get_write_buffer_size() for t in (self._transport, self._socket))  # answered too early
        )

    @property
    def quiet(self) -> bool:
        """Whether the other side has said nothing that the loop has yet to read, its end neither."""
        poll = select.poll()
        try:
            poll.register(cast("asyncio.Transport", self._socket).get_extra_info("socket"), select.POLLIN)
        except (TypeError, ValueError):  # it has no descriptor any more, which is told in the loop's next turn
            return False
        return not poll.poll(0)

    async def _more(self, seconds: float | None) -> None:
        if self._failure is not None:
            raise self._failure
        self._waiting = self._loop.create_future()
        timer = self._loop.call_later(seconds, self._time_out) if seconds is not None else None
        try:
            await self._waiting
        finally:
            self._waiting = None
            if timer is not None:
                timer.cancel()

    def _time_out(self) -> None:
        if self._waiting is not None and not self._waiting.done():  # it may have been said in this turn of the loop
            self.abort(ReadTimeoutError(endpoint_url=self._url, error="nothing was said for too long"))

    def _wake(self) -> None:
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)

    # ---- the end
    def abort(self, failure: Exception | None = None) -> None:
        """Close it now, whatever is under way; whoever waits for the response gets `failure`."""
        if self._failure is None:
            self._failure = failure or self._closed_error("it was closed here")
        self._closed = True
        if self._socket is not None:
            self._socket.abort()
        self._wake()

    def shut_from_elsewhere(self) -> None:
        """Close it from another thread, whose loop may get its turn only some ms later."""
        self._shut = True
        # Where the loop's own thread was faster it is closed by now, and under uvloop there is no socket any more. The
        # number of its descriptor may be another connection's already, which goes by another name.
        with (
            suppress(OSError, AttributeError),
            socket.socket(fileno=os.dup(self._socket.get_extra_info("socket").fileno())) as own,  # type: ignore[union-attr]
        ):
            if own.getsockname() == self._name:
                own.shutdown(socket.SHUT_RDWR)

    def _closed_error(self, why: object) -> ConnectionClosedError:
        return ConnectionClosedError(endpoint_url=self._url, error=why)

    # ---- asyncio.Protocol
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """TCP stands."""
        self._socket = self._transport = cast("asyncio.Transport", transport)
        self._name = transport.get_extra_info("sockname")
        if self._closed or self._shut:  # in the meantime
            self.abort()

    def data_received(self, data: bytes) -> None:
        """Parse what has arrived, and wake who waits for it."""
        if self._parser is None or self._complete:
            self.abort()  # nobody has asked anything
            return
        try:
            self._parser.feed_data(data)
        except (HttpParserError, HttpParserUpgrade) as error:
            self.abort(self._closed_error(error))
        if not self._has_head:
            self._before_body += len(data)
            if self._before_body > LONGEST_HEAD:
                self.abort(self._closed_error("its headers have no end"))
        if self._size > UNREAD and self._transport is not None and not self._closed:
            self._transport.pause_reading()
        self._wake()

    def eof_received(self) -> None:
        """The other side has said all. What it has not read of the request it need not."""
        self.connection_lost(None)
        self.abort()

    def connection_lost(self, error: Exception | None) -> None:
        """It is closed, by either side."""
        self._closed = True
        endless = self._has_head and not {"content-length", "transfer-encoding"} & self.headers.keys()
        if endless and error is None and self._failure is None:
            self._complete = True  # such a body ends with its connection
        if self._failure is None and not self._complete:
            self._failure = self._closed_error(error or "the other side closed it")
        self._wake()

    # ---- HttpResponseParser
    def on_message_begin(self) -> None:
        """A response begins. Raises: where it is not the one that was asked for."""
        if self._complete:
            raise self._closed_error("it said more than it was asked")

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header; one that is said again is joined to the first."""
        key, text = name.decode("latin-1").lower(), value.decode("latin-1")
        self.headers[key] = f"{self.headers[key]}, {text}" if key in self.headers else text

    def on_headers_complete(self) -> None:
        """All headers are there. Of an informational answer there are more to come."""
        self.status = cast("HttpResponseParser", self._parser).get_status_code()
        if self.status < 200:
            self.headers = {}
        else:
            self._has_head = True

    def on_body(self, data: bytes) -> None:
        """A part of the body."""
        self._unread.append(data)
        self._size += len(data)

    def on_message_complete(self) -> None:
        """The response is over."""
        if self._has_head:
            self._complete = True
            self._reusable = bool(cast("HttpResponseParser", self._parser).should_keep_alive())


class Connections:
    """What all models share that trust the same certificates and go through the same proxy.

    Connections are kept for the next call in the event loop of the main thread. Any other loop may be gone after a
    call, and has connections for one call each.
    """

    def __init__(self, bundle: str | None, proxy: str | None) -> None:
        """`bundle`: a PEM file of the certificates to trust, None for those that botocore trusts."""
        self.tls = ssl.create_default_context(cafile=get_cert_path(bundle or True))
        self.proxy = urlsplit(proxy) if proxy else None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._idle: list[Connection] = []  # the longest idle first

    def take(self, url: str) -> Connection | None:
        """A connection to that place that is idle, None where there is none."""
        if not self._keeps():
            return None
        oldest = time.monotonic() - IDLE_SECONDS
        while self._idle and self._idle[0].idle_since < oldest:
            self._idle.pop(0).abort()
        place = place_of(url)
        for connection in reversed(self._idle):
            if connection.place == place:
                self._idle.remove(connection)
                if connection.reusable and connection.quiet:
                    return connection
                connection.abort()
        return None

    def give_back(self, connection: Connection) -> None:
        """Keep it for another call where it can be used again; close it where not."""
        if not connection.reusable or not self._keeps():
            connection.abort()
            return
        connection.idle_since = time.monotonic()
        self._idle.append(connection)
        if len(self._idle) > IDLE_CONNECTIONS:
            self._idle.pop(0).abort()

    def _keeps(self) -> bool:
        loop = asyncio.get_running_loop()
        if loop is not self._loop:
            if threading.current_thread() is not threading.main_thread():
                return False
            self._loop, self._idle = loop, []
        return True

    def close(self) -> None:
        """Close what is idle in this event loop."""
        if self._loop is asyncio.get_running_loop():
            for connection in self._idle:
                connection.abort()
            self._idle.clear()


Place = tuple[str, str, int]  # scheme, host, port
_PORTS = {"http": 80, "https": 443}


def place_of(url: str) -> Place:
    """Where a URL leads."""
    parts = urlsplit(url)
    return parts.scheme, parts.hostname or "", parts.port or _PORTS[parts.scheme]


def proxy_authorization(proxy: SplitResult) -> dict[str, str]:
    """The header that says who we are to a proxy, where its URL does."""
    if proxy.username is None:
        return {}
    secret = f"{unquote(proxy.username)}:{unquote(proxy.password or '')}"
    return {"Proxy-Authorization": f"Basic {base64.b64encode(secret.encode()).decode()}"}


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host
