"""What Lambda tells of a request beside it: when it reached the front door, who sent it, when the function must end.

The Web Adapter says it in two headers, which it sets over any that a client has sent; Mangum in the ASGI scope.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Mapping
from typing import Any

from loguru import logger
from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from haltline.edge import Edge
from haltline.inputs import mark_deadline
from haltline.resources import Resources

END_BEFORE = 10.0  # seconds before the function's deadline that a run ends: it still has to be written
MAY_HAVE_FROZEN = 1.0  # seconds without a request after which connections may have died unseen
OPEN = ("/live",)  # what the adapter asks before any request has come


class LambdaDoor:
    """The outermost layer on Lambda, and nowhere else: there a client could send these headers itself."""

    def __init__(self, app: ASGIApp, resources: Resources) -> None:
        self._app, self._resources = app, resources
        answer = JSONResponse({"detail": "The front door has named no caller. Sign in."}, 401)
        self._refusal = Edge(answer, resources.settings.replica_name)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on with what Lambda says of it; 401 where it has no principal and AUTH wants one."""
        if scope["type"] != "http" or scope["path"] in OPEN:
            await self._app(scope, receive, send)
            return
        told: Mapping[str, Any]
        about: Mapping[str, Any]
        if "aws.event" in scope:  # nobody else sets the headers then but the client
            told, about = scope["aws.event"].get("requestContext") or {}, {}
        else:
            told, about = (_json_header(scope, f"x-amzn-{name}-context") for name in ("request", "lambda"))
        principal = principal_in(told)
        # One who invokes the function itself comes through no door, and IAM has let them.
        if principal is None and self._resources.settings.auth == "apigateway" and not (about and not told):
            await self._refusal(scope, receive, send)
            return
        ends = about.get("deadline")
        left = float(ends) / 1000 - time.time() - END_BEFORE if ends else math.inf
        scope["haltline.told_principal"] = principal
        mark_deadline(scope, time.monotonic() + left)
        # A client's own stamp is not the front door's.
        scope["headers"] = [h for h in scope["headers"] if h[0] != b"x-request-start"]
        if at := told.get("requestTimeEpoch") or told.get("timeEpoch"):
            scope["headers"].append((b"x-request-start", f"t={int(at) / 1000:.3f}".encode()))
        if trace := about.get("xray_trace_id"):
            os.environ["_X_AMZN_TRACE_ID"] = trace  # where Powertools' logger looks; one request at a time is served
        thaw(self._resources)

        async def last_word(message: Message) -> None:
            # Before it is said: the process may be frozen with it, and go on from here when it is thawed.
            if message["type"] == "http.response.body" and not message.get("more_body", False):
                rest(self._resources)
            await send(message)

        with logger.contextualize(correlation_id=told.get("requestId")):
            await self._app(scope, receive, last_word)


def thaw(resources: Resources) -> None:
    """Trust no open connection where the process may have stood still since it was last asked. For the bus' loop."""
    if time.time() - resources.at_rest_since > MAY_HAVE_FROZEN:
        resources.bus.renew()


def rest(resources: Resources) -> None:
    """Be ready for a freeze: note when it may have begun, and hand on what was counted."""
    resources.at_rest_since = time.time()
    resources.metrics.flush()


def principal_in(told: Mapping[str, Any]) -> str | None:
    """Who calls, by a request context of API Gateway (Cognito's `sub`) or of a Function URL (the caller's ARN)."""
    authorizer = told.get("authorizer") or {}
    claims, caller = authorizer.get("claims") or {}, authorizer.get("iam") or {}
    return claims.get("sub") or caller.get("userArn") or None


def _json_header(scope: Scope, name: str) -> Mapping[str, Any]:
    try:
        value = json.loads(Headers(scope=scope).get(name, "null"))
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}
