"""The outermost layer of the app: marks when a request was read, names the replica in every answer, logs it."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

from loguru import logger
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from haltline.inputs import mark_read

# Of every answer, as it may be opened in a browser of whoever is signed in on the page.
_ALWAYS = [
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-frame-options", b"DENY"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),  # asks nothing of calls that CORS lets in
]
# Where an answer does not say otherwise.
_CACHE = (b"cache-control", b"no-store")
_POLICY = (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'")
_QUIET = ("/live", "/health", "/api/v1/health", "/metrics")


class Edge:
    """Pure ASGI, so that a stream passes without a copy."""

    def __init__(self, app: ASGIApp, replica: str) -> None:
        self._app = app
        self._always = [(b"x-replica", replica.encode()), *_ALWAYS]
        self._all = [*self._always, _CACHE, _POLICY]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request through."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        mark_read(scope)
        started, status = time.perf_counter(), 0

        async def named(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message = {**message, "headers": self._headers(message.get("headers", ()))}
            await send(message)

        try:
            await self._app(scope, receive, named)
        except Exception:
            # Caught here and not by Starlette's outermost layer, whose answer would not name the replica.
            logger.exception("method=<{}> path=<{}> | request failed", *_what(scope))
            if not status:
                await _internal_error(scope, receive, named)
        finally:
            level = "DEBUG" if scope["path"] in _QUIET else "INFO"
            ms = (time.perf_counter() - started) * 1000
            logger.log(level, "method=<{}> path=<{}> status=<{}> ms=<{:.1f}> | request", *_what(scope), status, ms)

    def _headers(self, own: Iterable[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
        names = {name for name, _ in own}  # in lower case, as ASGI has them
        if _CACHE[0] in names or _POLICY[0] in names:
            return [*own, *self._always, *(header for header in (_CACHE, _POLICY) if header[0] not in names)]
        return [*own, *self._all]


def _what(scope: Scope) -> tuple[Any, str]:
    # Escaped: a path may hold line ends, and a log line must stay one line.
    return scope["method"], scope["path"].encode("unicode_escape").decode()[:200]


async def _internal_error(scope: Scope, receive: Receive, send: Send) -> None:
    await JSONResponse({"detail": "Internal server error. The log of this replica has the details."}, 500)(
        scope, receive, send
    )
