"""What Lambda tells of a request beside it: when it reached the front door, who sent it, when the function must end.

The Web Adapter says it in the headers `x-amzn-request-context` and `x-amzn-lambda-context`. Clients can send headers
of these names too. What is relied on: the adapter writes its own by `HeaderMap::insert`, which removes every value of
that name, in any case, and it does so on each request. tests/aws/test_forged.py shows it with the real one. Mangum says
it in the ASGI scope, where no header gets to.
"""

from __future__ import annotations

import json
import math
import os
import re
import time
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlencode

from loguru import logger
from starlette.responses import RedirectResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from haltline.authentication import TOLD
from haltline.edge import Edge
from haltline.inputs import mark_deadline
from haltline.principals import Principal, is_name
from haltline.resources import Resources

END_BEFORE = 10.0  # seconds before the function's deadline that a run ends: it still has to be written
MAY_HAVE_FROZEN = 1.0  # seconds without a request after which connections may have died unseen
OPEN = ("/live",)  # what the adapter asks before any request has come
INVOKED = "/events"  # where the adapter posts an event that is no request of a door
ADMINS = "admin"  # the group of the user pool


class LambdaDoor:
    """The outermost layer on Lambda, and nowhere else: there a client could send these headers itself."""

    def __init__(self, app: ASGIApp, resources: Resources) -> None:
        self._app, self._resources = app, resources

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on with what Lambda says of it. Whether that is enough is for others to say."""
        if scope["type"] != "http" or scope["path"] in OPEN:
            await self._app(scope, receive, send)
            return
        about: Mapping[str, Any]
        if "aws.event" in scope:  # nobody else sets the headers then but the client
            context, about = scope["aws.event"].get("requestContext"), {}
            if (slash := _slash_after(scope["aws.event"])) is not None:
                await Edge(RedirectResponse(slash, 307), self._resources.settings.replica_name)(scope, receive, send)
                return
        else:
            context = _json_header(scope, b"x-amzn-request-context")
            about = _object(_json_header(scope, b"x-amzn-lambda-context"))
        told = _object(context)
        principal = principal_in(told)
        if context is None and about and scope["path"] == INVOKED:
            # One who invokes the function itself comes through no door, and IAM has let them.
            principal = Principal()
        if principal is not None:
            scope[TOLD] = principal
        ends = about.get("deadline")
        left = float(ends) / 1000 - time.time() - END_BEFORE if ends else math.inf
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


def principal_in(told: Mapping[str, Any]) -> Principal | None:
    """Who calls, by a request context of API Gateway (Cognito's `sub`) or of a Function URL (the caller's ARN)."""
    authorizer = _object(told.get("authorizer"))
    if claims := _object(authorizer.get("claims")):
        name, admin = claims.get("sub"), ADMINS in groups_in(claims.get("cognito:groups"))
    else:
        name, admin = _object(authorizer.get("iam")).get("userArn"), False
    return Principal(name, admin) if isinstance(name, str) and is_name(name) else None


def groups_in(claim: Any) -> set[str]:
    """The groups of a user. API Gateway has made one string of the list: `a,b`, `a, b`, `[a b]` and the like."""
    if isinstance(claim, str):
        claim = re.split(r"[,\s]+", claim.strip().removeprefix("[").removesuffix("]"))
    return {name for name in claim if isinstance(name, str)} if isinstance(claim, list) else set()


def _slash_after(event: Mapping[str, Any]) -> str | None:
    """Where to find the page for who asks for `/dev`: what is relative in it would be looked for beside the stage."""
    asked = str(_object(event.get("requestContext")).get("path") or "/")
    if event.get("resource") != "/" or asked.endswith("/"):
        return None
    query = urlencode(event.get("multiValueQueryStringParameters") or {}, doseq=True)
    return f"./{asked.rpartition('/')[2]}/{'?' if query else ''}{query}"  # relative, so that it leads to no other host


def _object(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _json_header(scope: Scope, name: bytes) -> Any:
    """What a header says; False where it is not there exactly once, and then somebody else has written it as well."""
    values = [value for key, value in scope["headers"] if key == name]
    try:
        return json.loads(values[0]) if len(values) == 1 else False
    except ValueError:
        return False
