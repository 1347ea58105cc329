"""What a request passes before the routes see it: whom it came through, who sends it, how much that one has sent.

Pure ASGI, inside of CORS, so that a page that may call can read what it is refused with.
"""

from __future__ import annotations

from ipaddress import ip_address

from loguru import logger
from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from haltline.authentication import AuthenticationUnavailable, Unauthorized
from haltline.inputs import line_of, mark_principal
from haltline.openapi import OPEN_CALLS
from haltline.principals import LimitReached
from haltline.resources import Resources
from haltline.settings import on_lambda
from haltline.signals import BusUnavailable
from haltline.turns import Turns

OPEN = frozenset((*OPEN_CALLS, "/", "/sign-in", "/docs", "/openapi.json"))
_STATIC, _API, _STOP, _METRICS = "/static/", "/api/v1/", "/api/v1/stop/", "/metrics"
_SAFE = ("GET", "HEAD", "OPTIONS")
_ELSEWHERE = ("cross-site", "same-site")  # what a browser says of a page of another origin
# Each takes a millisecond and more of one core: a client that does nothing but stop has an eighth of a replica.
STOP_EVERY, STOPS_AT_ONCE, STOPS_WAITING = 0.01, 10, 200


class Gate:
    """Lets a request through, its principal marked in the scope, or answers it.

    - A page of another site may send without asking what needs no credential (AUTH=none), and a name that leads to this
      machine (DNS rebinding) makes it a page of this one: both are told by what browsers say, and refused.
    - A stop is not counted among the requests of a minute, so that who has used them up can still stop; it has turns.
    """

    def __init__(self, app: ASGIApp, resources: Resources) -> None:
        self._app, self._resources = app, resources
        settings = resources.settings
        self._names = None if settings.auth != "none" or on_lambda() else frozenset(settings.host_names)
        self._origins = frozenset(settings.allowed_origins)
        # On Lambda there is one request at a time, and what would go on behind its answer is frozen.
        self._turns = None if on_lambda() else Turns(STOP_EVERY, STOPS_AT_ONCE, STOPS_WAITING)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer it with what is wrong."""
        if scope["type"] == "http" and (refusal := await self._refusal(scope)):
            await refusal(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    async def _refusal(self, scope: Scope) -> JSONResponse | None:
        headers, path = Headers(scope=scope), str(scope["path"])
        if self._names is not None and not _is_ours(headers.get("host", ""), self._names):
            return _answer(421, "AUTH=none answers to no such host name. Name it in ALLOWED_HOSTS if it is yours.")
        if scope["method"] not in _SAFE and self._is_from_elsewhere(headers):
            return _answer(403, "A page of another origin may not do this. CORS_ORIGINS names those that may.")
        if path in OPEN or path.startswith(_STATIC):
            return None
        try:
            principal = await self._resources.authenticator.principal_of(scope)
        except Unauthorized as error:
            return _answer(401, str(error), {"WWW-Authenticate": "Bearer"})
        except AuthenticationUnavailable as error:
            return _answer(503, str(error), {"Retry-After": "5"})
        mark_principal(scope, principal)
        if path == _METRICS and not principal.admin:
            return _answer(403, "Metrics are for an admin.")
        if path.startswith(_STOP) and scope["method"] == "POST":
            if self._turns is not None and not await self._turns.wait(line_of(scope)):
                detail = "Too many stops of one client wait here. This one was not stored; try again."
                return _answer(503, detail, {"Retry-After": "1"})
        elif path.startswith(_API):
            try:
                await self._resources.limits.count_request(principal.namespace)
            except LimitReached as error:
                return _answer(429, str(error), {"Retry-After": str(error.retry_after)})
            except BusUnavailable as error:  # what needs the bus says so itself, and a transcript needs it not
                logger.warning("error=<{}> | a request was not counted", error)
        return None

    def _is_from_elsewhere(self, headers: Headers) -> bool:
        """Whether a browser says that a page sends this which may not."""
        origin, site = headers.get("origin"), headers.get("sec-fetch-site")
        if self._origins & {origin, "*"}:
            return False
        if site is not None or origin is None or self._names is None:
            return site in _ELSEWHERE
        # Browsers tell the site only where they trust the address: by http that is this machine's alone.
        host = origin.lower().partition("://")[2]
        return host != headers.get("host", "").lower() and _name_of(host) not in self._names


def _answer(status: int, detail: str, headers: dict[str, str] | None = None) -> JSONResponse:
    return JSONResponse({"detail": detail}, status, headers)


def _is_ours(host: str, names: frozenset[str]) -> bool:
    """Whether no stranger can have made this name: an address, a single word, below localhost, or one of `names`."""
    name = _name_of(host.lower())
    if "." not in name or name.endswith(".localhost") or name in names or "*" in names:
        return True
    try:
        ip_address(name.strip("[]"))
    except ValueError:
        return False
    return True


def _name_of(host: str) -> str:
    """Of a host in lower case the name, without its port and the dot at its end."""
    name = host.rpartition(":")[0] if not host.endswith("]") and ":" in host else host
    return name.rstrip(".")
