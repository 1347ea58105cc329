"""What the door makes of what Lambda tells: the stamp, the caller, the deadline; and of what others say."""

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

from haltline.chat_routes import invoked
from haltline.inputs import InvokedChat, arrival, caller, mark_principal
from haltline.lambda_door import END_BEFORE, TOLD, LambdaDoor
from haltline.principals import ANYONE, MAX_NAME_BYTES, LimitReached, Principal
from haltline.runs import Arrival, Caller

AT = 1795711882061
REST = {"requestId": "r", "requestTimeEpoch": AT, "authorizer": {"claims": {"sub": "ann"}}}
URL = {"requestId": "r", "timeEpoch": AT, "authorizer": {"iam": {"userArn": "arn:aws:iam::1:role/ops"}}}


class Bus:
    def __init__(self) -> None:
        self.renewed = 0

    def renew(self) -> None:
        self.renewed += 1


class Pass:
    """One request through the door. `seen` is what is seen behind it, `told` who is said to have sent it."""

    def __init__(self) -> None:
        self.bus, self.flushed = Bus(), 0
        resources: Any = SimpleNamespace(
            at_rest_since=time.time(),
            settings=SimpleNamespace(replica_name="one"),
            bus=self.bus,
            metrics=SimpleNamespace(flush=self._f),
        )
        self.door = LambdaDoor(self._routes, resources)
        self.seen: Any = None
        self.told: Principal | None = None
        self.status, self.headers = 0, {}
        self.with_the_last_word: Callable[[], None] = lambda: None

    def _f(self) -> None:
        self.flushed += 1

    async def _routes(self, scope: Scope, receive: Receive, send: Send) -> None:
        from fastapi import Request

        request = Request(scope)
        self.told = scope.get(TOLD)
        mark_principal(scope, ANYONE)  # what is told is not believed here
        self.seen = (await arrival(request), await caller(request))
        await Response("seen")(scope, receive, send)

    def __call__(
        self, told: Any = None, about: Any = None, event: Any = None, path: str = "/api/v1/chats", **headers: str
    ) -> Pass:
        raw = [(k.replace("_", "-").encode(), v.encode()) for k, v in headers.items()]
        for name, value in (("x-amzn-request-context", told), ("x-amzn-lambda-context", about)):
            if value is not None:
                said = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
                raw.append((name.encode(), said.encode()))
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

        self.seen = self.told = None
        asyncio.run(self.door(scope, receive, send))
        return self


def who(claims: Any) -> Principal | None:
    """Whom these claims of a REST API name."""
    return Pass()({"authorizer": {"claims": claims}}).told


@pytest.mark.parametrize(("told", "name"), [(REST, "ann"), (URL, "arn:aws:iam::1:role/ops")], ids=["rest", "url"])
def test_time_and_caller_are_the_front_doors(told: Any, name: str) -> None:
    passed = Pass()(told)
    at, by = passed.seen
    assert (at.stamp, passed.told, by.deadline) == (AT, Principal(name), math.inf)


def test_mangum_tells_the_same_in_the_event() -> None:
    passed = Pass()(event={"requestContext": REST})
    assert (passed.seen[0].stamp, passed.told) == (AT, Principal("ann"))


@pytest.mark.parametrize(
    "groups",
    ["admin", "users,admin", "users, admin", "[admin]", "[users admin]", "[users, admin]", " [admin] ", ["x", "admin"]],
)
def test_who_is_in_the_group_is_an_admin_however_it_is_written(groups: Any) -> None:
    assert who({"sub": "ann", "cognito:groups": groups}) == Principal("ann", admin=True)


@pytest.mark.parametrize(
    "groups",
    [
        *("", "[]", "admins", "not-admin", "admin-not", "Admin", "sub:admin", "users,admins", "[not-admin admins]"),
        *(None, True, 1, ["admins"], [["admin"]], {"admin": True}),
    ],
)
def test_nobody_else_is(groups: Any) -> None:
    assert who({"sub": "ann", "cognito:groups": groups}) == Principal("ann", admin=False)
    told = {**URL, "authorizer": {"iam": {"userArn": "arn", "cognito:groups": "admin"}, "cognito:groups": "admin"}}
    assert Pass()(told).told == Principal("arn", admin=False)


def test_a_name_may_be_in_any_script() -> None:
    assert who({"sub": "Zoë"}) == Principal("Zoë"), "the adapter writes UTF-8"


@pytest.mark.parametrize("sub", ["", None, 7, ["ann"], "x" * (MAX_NAME_BYTES + 1)], ids=repr)
def test_what_cannot_be_a_name_is_none(sub: Any) -> None:
    assert who({"sub": sub}) is None
    assert Pass()({"authorizer": {"iam": {"userArn": sub}}}).told is None


def test_a_clients_own_stamp_and_context_count_for_nothing() -> None:
    passed = Pass()(event={"requestContext": REST}, told=URL, x_request_start="t=1000000000.000")
    assert (passed.seen[0].stamp, passed.told) == (AT, Principal("ann"))
    passed = Pass()(event={"requestContext": {"authorizer": None}}, told=REST)
    assert (passed.seen[0].stamp, passed.told) == (0, None)
    assert Pass()(told={}, x_request_start="t=1000000000.000").seen[0].stamp == 0, "no front door has told"


def test_a_context_that_is_there_twice_was_not_written_by_the_adapter_alone() -> None:
    passed = Pass()
    passed(told=REST, **{"x-amzn-request-context": json.dumps(URL)})
    assert passed.told is None
    passed("null", {"deadline": 1}, path="/events", **{"x-amzn-request-context": "null"})
    assert passed.told is None


def test_a_run_ends_before_the_function_does() -> None:
    _, by = Pass()(REST, {"deadline": int((time.time() + 100) * 1000)}).seen
    assert by.deadline - time.monotonic() == pytest.approx(100 - END_BEFORE, abs=1)


@pytest.mark.parametrize(
    "told",
    [
        *({}, {"requestId": "r"}, "no json", "null", "[]", {"authorizer": None}, {"authorizer": "ann"}),
        *({"authorizer": {"claims": {}}}, {"authorizer": {"claims": "ann"}}, {"authorizer": {"iam": None}}),
        {"elb": {"targetGroupArn": "arn"}},
        {"authorizer": {"jwt": {"claims": {"sub": "ann"}, "scopes": []}}},
        {"authorizer": {"principalId": "ann", "sub": "ann"}},
        {"identity": {"userArn": "arn", "caller": "ann"}, "sub": "ann", "claims": {"sub": "ann"}},
    ],
    ids=json.dumps,
)
def test_a_request_that_nobody_vouches_for_is_nobodys(told: Any) -> None:
    """None of these is Cognito's authorizer of a REST API, or the caller of a Function URL."""
    for passed in (Pass()(told), Pass()(told, {"deadline": 1})):
        assert (passed.told, passed.status) == (None, 200), "others refuse it"
    if isinstance(told, dict):
        assert Pass()(event={"requestContext": told}).told is None


def test_a_direct_invocation_comes_through_no_door() -> None:
    direct = {"told": "null", "about": {"deadline": 1}, "path": "/events"}
    assert Pass()(**direct).told == Principal("", admin=False)
    for other in (
        {"path": "/api/v1/chat/a"},
        {"told": {"requestId": "r"}},
        {"told": None},
        {"told": "{"},
        {"about": None},
        {"about": "null"},
        {"event": {"httpMethod": "POST", "requestContext": None}},
    ):
        assert Pass()(**direct | other).told is None, other


def test_the_page_is_asked_for_with_a_slash() -> None:
    """Or what is relative in it would be looked for beside the stage."""

    def asked(path: str, resource: str = "/", **more: Any) -> tuple[int, bytes | None]:
        event = {"resource": resource, "requestContext": {"path": path}, **more}
        passed = Pass()(event=event, path="/")
        return passed.status, passed.headers.get(b"location")

    assert asked("/dev") == (307, b"./dev/")
    assert asked("/dev", multiValueQueryStringParameters={"code": ["a&b"]}) == (307, b"./dev/?code=a%26b")
    assert asked("/a:b") == (307, b"./a:b/"), "no scheme"
    for path, resource in (("/dev/", "/"), ("/", "/"), ("", "/"), ("/dev/health", "/health")):
        assert asked(path, resource) == (200, None)
    assert Pass()(event={"resource": "/", "requestContext": {"path": "/dev"}}).headers[b"x-replica"] == b"one"


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


# ---- how much


@pytest.mark.parametrize(
    ("door", "named", "counted"),
    [("ada/x", None, "ada%2Fx"), ("", "bob", "bob"), ("", None, "")],
    ids=["a Function URL", "an invocation for somebody", "an invocation"],
)
async def test_what_comes_as_an_event_is_counted_for_whom_it_is(door: str, named: str | None, counted: str) -> None:
    """Its path lies outside of the API, where the gate counts."""
    asked: list[str] = []

    async def count_request(owner: str) -> None:
        asked.append(owner)
        raise LimitReached("Too many.", 1)

    resources: Any = SimpleNamespace(
        settings=SimpleNamespace(auth="apigateway"), limits=SimpleNamespace(count_request=count_request)
    )
    runner: Any = None  # nothing is begun
    body = InvokedChat(chat_id="x", message="hello", principal=named)
    with pytest.raises(LimitReached):
        await invoked(body, Arrival(), Caller(Principal(door)), runner, resources)
    assert asked == [counted]
