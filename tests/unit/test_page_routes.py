"""What one signs in with, what browsers are told of every answer, and how the API describes its credential."""

from __future__ import annotations

from typing import Any

import httpx2 as httpx
import pytest
from fastapi import FastAPI
from starlette.responses import Response

from haltline import sse
from haltline.edge import Edge
from haltline.openapi import describe_sign_in
from haltline.page_routes import asked

COGNITO = {"SignInDomain": "https://chat.auth.eu-west-1.amazoncognito.com", "SignInClient": "abc"}


@pytest.mark.parametrize(("auth", "kind"), [("none", "nothing"), ("api-keys", "key"), ("jwt", "token")])
def test_the_page_is_told_what_to_ask_for(auth: str, kind: str) -> None:
    assert asked({"aws.event": {"stageVariables": COGNITO}}, auth) == {"with": kind}


def test_on_aws_the_stage_names_the_hosted_page() -> None:
    told = asked({"aws.event": {"stageVariables": COGNITO}}, "apigateway")
    assert told == {"with": "cognito", "domain": COGNITO["SignInDomain"], "client_id": "abc"}


@pytest.mark.parametrize(
    "scope",
    [
        {},
        {"aws.event": {}},
        {"aws.event": {"stageVariables": None}},
        {"aws.event": {"stageVariables": {"SignInDomain": COGNITO["SignInDomain"]}}},
        {"aws.event": {"stageVariables": {"SignInClient": "abc"}}},
        *({"aws.event": {"stageVariables": COGNITO | {"SignInDomain": d}}} for d in ("x.example", "https://x; *", "*")),
    ],
)
def test_a_stage_that_names_none_has_none(scope: Any) -> None:
    assert asked(scope, "apigateway") == {"with": "nothing"}, "and nothing else gets into the page's policy"


EVERY = {
    "x-replica": "one",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "x-frame-options": "DENY",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}
NEITHER = {"cache-control": "no-store", "content-security-policy": "default-src 'none'; frame-ancestors 'none'"}


@pytest.mark.parametrize(
    "own",
    [{}, sse.HEADERS, {"Content-Security-Policy": "default-src 'self'"}, {"Cache-Control": "no-cache"} | NEITHER],
    ids=["none", "stream", "policy", "both"],
)
async def test_every_answer_has_each_header_once_and_its_own_first(own: dict[str, str]) -> None:
    own = {name.lower(): value for name, value in own.items()}
    async with httpx.AsyncClient(transport=httpx.ASGITransport(Edge(Response(headers=own), "one"))) as http:
        answer = await http.get("http://x/")
    found = [(name, value) for name, value in answer.headers.multi_items() if name != "content-length"]
    assert sorted(found) == sorted((NEITHER | EVERY | own).items())


async def nothing() -> dict[str, str]:
    return {}


def described(auth: str) -> dict[str, Any]:
    app = FastAPI()
    for path in ("/live", "/api/v1/chats"):
        app.add_api_route(path, nothing)
    describe_sign_in(app, auth)
    assert app.openapi() is app.openapi()
    return app.openapi()


@pytest.mark.parametrize(
    ("auth", "scheme"),
    [
        ("api-keys", {"type": "http", "scheme": "bearer"}),
        ("jwt", {"type": "http", "scheme": "bearer"}),
        ("apigateway", {"type": "apiKey", "in": "header", "name": "Authorization"}),
    ],
)
def test_the_description_says_what_a_call_carries(auth: str, scheme: dict[str, str]) -> None:
    schema = described(auth)
    assert schema["components"]["securitySchemes"] == {"bearer": scheme}
    assert schema["security"] == [{"bearer": []}]
    live, chats = (schema["paths"][path]["get"] for path in ("/live", "/api/v1/chats"))
    assert (live["security"], "401" in live["responses"]) == ([], False)
    assert ("security" in chats, "401" in chats["responses"]) == (False, True)


def test_without_auth_it_says_nothing_of_it() -> None:
    assert "security" not in described("none")
