"""Invocations of the chat function through each of its doors, made of the event files that people use."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

from tests.stack import ROOT

Event = dict[str, Any]
Door = Callable[..., bytes]


def _read(name: str) -> Event:
    found: Event = json.loads((ROOT / "local" / "events" / f"{name}.json").read_text())
    return found


SUB: str = _read("chat_rest")["requestContext"]["authorizer"]["claims"]["sub"]  # by API Gateway


def rest(chat_id: str, body: Any, *, method: str = "POST", path: str = "", age: float = 0) -> bytes:
    """API Gateway's REST API, whose stage is no part of `path`. `age`: seconds since the gateway got the request."""
    event = _read("chat_rest")
    path = path or f"/api/v1/chat/{chat_id}"
    event |= {"path": path, "httpMethod": method, "body": _body(body), "pathParameters": {"chat_id": chat_id}}
    event["requestContext"] |= {
        "path": f"/v1{path}",
        "httpMethod": method,
        "requestTimeEpoch": round((time.time() - age) * 1000),
    }
    return json.dumps(event).encode()


def function_url(chat_id: str, body: Any) -> bytes:
    """A function URL with IAM."""
    event = _read("chat_function_url")
    path = f"/api/v1/chat/{chat_id}"
    event |= {"rawPath": path, "body": _body(body)}
    event["headers"]["content-length"] = str(len(event["body"].encode()))
    event["requestContext"]["timeEpoch"] = round(time.time() * 1000)
    event["requestContext"]["http"]["path"] = path
    return json.dumps(event).encode()


def direct(chat_id: str, body: Any) -> bytes:
    """An invocation of the function itself, as by the SDK."""
    return json.dumps(_read("chat_direct") | {"chat_id": chat_id} | body).encode()


DOORS: dict[str, Door] = {"rest": rest, "function-url": function_url, "direct": direct}


def _body(body: Any) -> str:
    return body if isinstance(body, str) else json.dumps(body)
