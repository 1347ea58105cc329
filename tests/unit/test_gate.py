"""What the gate lets through, and what it marks: host names, origins, credentials, the order of its questions."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import httpx2 as httpx
import pytest
from starlette.responses import JSONResponse
from starlette.types import Receive, Scope, Send

from haltline.authentication import AuthenticationUnavailable, Unauthorized
from haltline.gate import OPEN, Gate
from haltline.principals import ANYONE, LimitReached, Principal
from haltline.settings import Settings
from haltline.signals import BusUnavailable


class Door:
    """A gate over an app that says who came through. What it is asked stands in `asked`."""

    def __init__(self, **settings: Any) -> None:
        self.asked: list[str] = []
        self.principal: Principal | Exception = ANYONE
        self.limit: Exception | None = None
        resources: Any = SimpleNamespace(settings=Settings(**settings), authenticator=self, limits=self)
        self.gate = Gate(self._app, resources)

    async def principal_of(self, scope: Scope) -> Principal:
        self.asked.append("who")
        if isinstance(self.principal, Exception):
            raise self.principal
        return self.principal

    async def count_request(self, owner: str) -> None:
        self.asked.append(f"limit of {owner!r}")
        if self.limit:
            raise self.limit

    async def _app(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.asked.append("app")
        principal = scope.get("haltline.principal")
        await JSONResponse({"principal": principal.name if principal else None})(scope, receive, send)

    async def __call__(self, path: str = "/api/v1/chats", method: str = "GET", **headers: str) -> httpx.Response:
        self.asked.clear()
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        async with httpx.AsyncClient(transport=httpx.ASGITransport(self.gate), base_url="http://localhost") as http:
            return await http.request(method, path, headers=named)


KEYS = {"auth": "api-keys", "api_keys": f"ada={'0' * 64}"}


# ---- host names


@pytest.mark.parametrize(
    "host",
    [
        *("localhost", "localhost:8000", "LOCALHOST", "localhost.", "127.0.0.1", "127.0.0.1:80", "[::1]", "[::1]:8000"),
        *(
            "192.168.1.7",
            "10.0.0.1:8000",
            "[fe80::1]",
            "backend1",
            "backend1:8000",
            "nginx",
            "app.localhost",
            "haltline",
        ),
        *("chat.example.com", "CHAT.example.com:443", "chat.example.com."),
    ],
)
async def test_names_that_no_stranger_can_have_made(host: str) -> None:
    assert (await Door(allowed_hosts="chat.example.com, other.example")(host=host)).status_code == 200


@pytest.mark.parametrize(
    "host",
    [
        *("evil.example", "evil.example:8000", "evil.example.", "127.0.0.1.evil.example", "localhost.evil.example"),
        *("chat.example.com.evil.example", "xchat.example.com", "127.0.0.1.nip.io:8000", "1.2.3", "evil.local"),
    ],
)
async def test_a_name_that_a_stranger_can_have_made_is_refused(host: str) -> None:
    door = Door(allowed_hosts="chat.example.com")
    for path in ("/api/v1/chats", "/", "/live"):
        answer = await door(path, host=host)
        assert answer.status_code == 421
        assert "ALLOWED_HOSTS" in answer.json()["detail"]
        assert door.asked == []


async def test_any_name_will_do_where_that_is_said_or_a_credential_is_asked_for() -> None:
    assert (await Door(allowed_hosts="*")(host="evil.example")).status_code == 200
    assert (await Door(**KEYS)(host="evil.example")).status_code == 200


# ---- pages of other sites


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
@pytest.mark.parametrize("method", ["POST", "DELETE", "PUT"])
async def test_a_page_of_another_origin_may_do_nothing(site: str, method: str) -> None:
    for settings in ({}, KEYS, {"cors_origins": "https://good.example"}):
        door = Door(**settings)
        answer = await door("/api/v1/stop/x", method, sec_fetch_site=site, origin="https://evil.example")
        assert (answer.status_code, door.asked) == (403, [])
        assert "CORS_ORIGINS" in answer.json()["detail"]
        assert (await door("/api/v1/stop/x", method, sec_fetch_site=site)).status_code == 403
        assert (await door("/api/v1/stop/x", method, sec_fetch_site=site, origin="null")).status_code == 403


@pytest.mark.parametrize(
    "origin",
    ["http://evil.example", "null", "http://10.0.0.7:81", "http://10.0.0.7", "http://x@10.0.0.7:80", "http://[", ""],
)
async def test_where_a_browser_tells_no_site_its_origin_does(origin: str) -> None:
    """As to an address of the network by http, which browsers do not trust: they send no Sec-Fetch-Site there."""
    door = Door()
    answer = await door("/api/v1/stop/all", "POST", host="10.0.0.7:80", origin=origin)
    assert (answer.status_code, door.asked) == (403, [])


async def test_the_page_itself_may_also_where_a_browser_tells_no_site() -> None:
    for host, origin in (
        ("10.0.0.7:80", "http://10.0.0.7:80"),
        ("HAL:8000", "http://hal:8000"),
        ("[::1]", "http://[::1]"),
    ):
        assert (await Door()("/api/v1/stop/x", "POST", host=host, origin=origin)).status_code == 200
    behind_a_proxy = Door(allowed_hosts="chat.example.com")
    for origin in ("https://chat.example.com", "https://chat.example.com:8443"):
        assert (await behind_a_proxy("/api/v1/stop/x", "POST", host="backend1", origin=origin)).status_code == 200
    assert (
        await Door(cors_origins="http://a.example")("/api/v1/stop/x", "POST", origin="http://a.example")
    ).status_code == 200
    # A credential is nothing that a browser sends by itself.
    assert (await Door(**KEYS)("/api/v1/stop/x", "POST", origin="https://other.example")).status_code == 200


@pytest.mark.parametrize("said", [{}, {"sec_fetch_site": "same-origin"}, {"sec_fetch_site": "none"}])
async def test_programs_and_the_page_itself_may(said: dict[str, str]) -> None:
    assert (await Door()("/api/v1/stop/x", "POST", **said)).status_code == 200


async def test_a_page_that_may_call_is_let_through_and_so_are_questions() -> None:
    named = {"sec_fetch_site": "cross-site", "origin": "https://good.example"}
    assert (await Door(cors_origins="https://good.example")("/api/v1/stop/x", "POST", **named)).status_code == 200
    assert (await Door(cors_origins="*")("/api/v1/stop/x", "POST", **named)).status_code == 200
    # Reading without CORS shows a page nothing.
    assert (await Door()("/api/v1/chats", sec_fetch_site="cross-site")).status_code == 200


# ---- who it is


@pytest.mark.parametrize("path", [*sorted(OPEN), "/static/app.js"])
async def test_what_is_open_asks_nobody(path: str) -> None:
    door = Door(**KEYS)
    assert (await door(path)).json() == {"principal": None}
    assert door.asked == ["app"]


@pytest.mark.parametrize(
    "path",
    [
        *("/api/v1/chats", "/api/v1/stop/x", "/metrics", "/nothing", "/static", "/live/", "/LIVE", "/docs/x"),
        *("/api/v1/health/", "/events", "/openapi.json/", "/x/static/app.js", "/redoc"),
    ],
)
async def test_everything_else_asks_and_is_refused(path: str) -> None:
    door = Door(**KEYS)
    door.principal = Unauthorized("No valid credential.")
    answer = await door(path, "POST")
    assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")
    assert (answer.json(), door.asked) == ({"detail": "No valid credential."}, ["who"])


async def test_where_it_cannot_be_told_who_it_is_nothing_is_let_through() -> None:
    door = Door(**KEYS)
    door.principal = AuthenticationUnavailable("Try again.")
    answer = await door()
    assert (answer.status_code, answer.headers["retry-after"], door.asked) == (503, "5", ["who"])


async def test_metrics_are_for_an_admin() -> None:
    door = Door(**KEYS)
    door.principal = Principal("ada")
    assert ((await door("/metrics")).status_code, door.asked) == (403, ["who"])
    door.principal = Principal("ops", admin=True)
    assert (await door("/metrics")).json() == {"principal": "ops"}
    assert (await Door()("/metrics")).status_code == 200


# ---- how much


async def test_calls_of_the_api_are_counted_and_stops_are_not() -> None:
    door = Door(**KEYS)
    door.principal = Principal("ada@example.com/x")
    assert (await door("/api/v1/chats")).status_code == 200
    assert door.asked == ["who", "limit of 'ada@example.com%2Fx'", "app"]
    door.limit = LimitReached("Too many.", 12.3)
    answer = await door("/api/v1/chat/x", "POST")
    assert (answer.status_code, answer.headers["retry-after"]) == (429, "13")
    assert (answer.json(), door.asked[-1]) == ({"detail": "Too many."}, "limit of 'ada@example.com%2Fx'")
    for path in ("/api/v1/stop/x", "/api/v1/stop/bulk", "/api/v1/stop/all"):
        assert (await door(path, "POST")).status_code == 200
        assert door.asked == ["who", "app"]


async def test_a_call_that_cannot_be_counted_goes_on() -> None:
    """What needs the bus says so itself, and a transcript can be read without it."""
    door = Door(**KEYS)
    door.principal, door.limit = Principal("ada"), BusUnavailable("gone")
    assert (await door("/api/v1/chats")).status_code == 200
