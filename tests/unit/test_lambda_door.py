"""What the door makes of what Lambda tells: the stamp, the caller, the deadline; and whom it refuses."""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from haltline.inputs import arrival, caller
from haltline.lambda_door import END_BEFORE, LambdaDoor

REST = {"requestId": "r", "requestTimeEpoch": 1795711882061, "authorizer": {"claims": {"sub": "ann"}}}
URL = {"requestId": "r", "timeEpoch": 1795711882061, "authorizer": {"iam": {"userArn": "arn:aws:iam::1:role/ops"}}}


class Bus:
    def __init__(self) -> None:
        self.renewed = 0

    def renew(self) -> None:
        self.renewed += 1


class Pass:
    """One request through the door. `seen` is what the routes would see of it, `status` what was answered."""

    def __init__(self, auth: str = "apigateway") -> None:
        self.bus, self.flushed = Bus(), 0
        resources: Any = SimpleNamespace(
            at_rest_since=time.time(),
            settings=SimpleNamespace(auth=auth, replica_name="one"),
            bus=self.bus,
            metrics=SimpleNamespace(flush=self._f),
        )
        self.door = LambdaDoor(self._routes, resources)
        self.seen: Any = None
        self.status, self.headers = 0, {}
        self.with_the_last_word: Callable[[], None] = lambda: None

    def _f(self) -> None:
        self.flushed += 1

    async def _routes(self, scope: Scope, receive: Receive, send: Send) -> None:
        from fastapi import Request

        request = Request(scope)
        self.seen = (await arrival(request), await caller(request))
        await Response("seen")(scope, receive, send)

    def __call__(
        self, told: Any = None, about: Any = None, event: Any = None, path: str = "/api/v1/chats", **headers: str
    ) -> Pass:
        raw = [(k.replace("_", "-").encode(), v.encode()) for k, v in headers.items()]
        for name, value in (("x-amzn-request-context", told), ("x-amzn-lambda-context", about)):
            if value is not None:
                raw.append((name.encode(), (value if isinstance(value, str) else json.dumps(value)).encode()))
        scope: Scope = {"type": "http", "method": "GET", "path": path, "headers": raw, "query_string": b""}
        if event is not None:
            scope["aws.event"] = event

        async def send(message: Any) -> None:
            if message["type"] == "http.response.start":
                self.status, self.headers = message["status"], dict(message["headers"])
            else:
                self.with_the_last_word()

        async def receive() -> Any:
            return {"type": "http.request", "body": b"", "more_body": False}

        self.seen = None
        asyncio.run(self.door(scope, receive, send))
        return self


@pytest.mark.parametrize(("told", "who"), [(REST, "ann"), (URL, "arn:aws:iam::1:role/ops")], ids=["rest", "url"])
def test_time_and_caller_are_the_front_doors(told: Any, who: str) -> None:
    at, by = Pass()(told).seen
    assert (at.stamp, by.principal, by.deadline) == (1795711882061, who, math.inf)


def test_mangum_tells_the_same_in_the_event() -> None:
    at, by = Pass()(event={"requestContext": REST}).seen
    assert (at.stamp, by.principal) == (1795711882061, "ann")


def test_a_clients_own_stamp_and_context_count_for_nothing() -> None:
    at, by = Pass()(event={"requestContext": REST}, told=URL, x_request_start="t=1000000000.000").seen
    assert (at.stamp, by.principal) == (1795711882061, "ann")
    at, _ = Pass("none")(told={}, x_request_start="t=1000000000.000").seen
    assert at.stamp == 0, "no front door has told"


def test_a_run_ends_before_the_function_does() -> None:
    _, by = Pass()(REST, {"deadline": int((time.time() + 100) * 1000)}).seen
    assert by.deadline - time.monotonic() == pytest.approx(100 - END_BEFORE, abs=1)


@pytest.mark.parametrize(
    "told",
    [{}, {"requestId": "r"}, "no json", "null", "[]", {"authorizer": None}, {"authorizer": {"claims": {}}}],
    ids=["empty", "no authorizer", "no json", "null", "a list", "none", "no claims"],
)
def test_a_request_without_a_caller_is_refused(told: Any) -> None:
    passed = Pass()(told)
    assert (passed.seen, passed.status, passed.headers[b"x-replica"]) == (None, 401, b"one")
    assert Pass("none")(told).seen is not None, "where AUTH asks for none"


def test_a_direct_invocation_comes_through_no_door() -> None:
    assert Pass()(told="null", about={"deadline": 1}).seen is not None
    assert Pass()(told={"requestId": "r"}, about={"deadline": 1}).seen is None
    assert Pass()(event={"httpMethod": "GET"}, about={"deadline": 1}).seen is None, "a client's header"


def test_the_adapter_may_ask_whether_the_process_lives() -> None:
    assert Pass()(path="/live").seen is not None


def test_connections_are_made_anew_after_a_rest_and_only_then(monkeypatch: pytest.MonkeyPatch) -> None:
    passed = Pass()
    passed(REST)
    assert passed.bus.renewed == 0
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 30)
    passed(REST)
    passed(REST)
    assert passed.bus.renewed == 1
    assert passed.flushed == 3


def test_a_freeze_with_the_last_byte_is_a_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    """The response has left, and the process stands still before it has gone on."""
    passed, now = Pass(), time.time()

    def freeze() -> None:
        assert passed.flushed == 1, "what was counted is written by then"
        monkeypatch.setattr(time, "time", lambda: now + 30)

    passed.with_the_last_word = freeze
    passed(REST)
    passed.with_the_last_word = lambda: None
    passed(REST)
    assert passed.bus.renewed == 1
