"""What a replica tells of itself: health, metrics, the page, the documentation, headers."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from typing import Any
from urllib.parse import urljoin, urlsplit

import httpx2 as httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.contract.client import chat_url, new_chat, say, script, stop_url
from tests.stack import Replica

HEALTH = ["/health", "/api/v1/health"]


@pytest.mark.parametrize("path", HEALTH)
async def test_health_is_told_at_both_paths(http: httpx.AsyncClient, one: Replica, other: Replica, path: str) -> None:
    for replica in (one, other):
        answer = await http.get(replica.url + path)
        assert answer.status_code == 200
        assert answer.json().items() >= {"status": "healthy", "redis": "connected"}.items()
        assert answer.headers["x-replica"] == replica.name


async def test_a_serving_process_is_live(http: httpx.AsyncClient, one: Replica) -> None:
    assert (await http.get(f"{one.url}/live")).status_code == 200


async def samples(http: httpx.AsyncClient, replica: Replica) -> dict[str, float]:
    """Every sample of the product's own metrics."""
    answer = await http.get(f"{replica.url}/metrics")
    assert answer.status_code == 200
    assert answer.headers["content-type"].split(";")[0] == "text/plain"
    families = list(text_string_to_metric_families(answer.text))
    assert [f.name for f in families if not f.documentation] == []
    own = [f for f in families if not f.name.startswith(("python_", "process_"))]
    return {f"{s.name}{sorted(s.labels.items())}": s.value for f in own for s in f.samples}


async def test_metrics_are_prometheus_text_and_count_runs(http: httpx.AsyncClient, one: Replica) -> None:
    before = await samples(http, one)
    chat = new_chat()
    await say(http, one, chat, script(chunks=["Hello"]))
    after = await samples(http, one)
    assert {name for name, value in after.items() if value == before.get(name, 0) + 1} != set()
    assert [name for name in after if chat in name] == [], "a metric per chat grows without end"


# ---- the page


class Links(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, str, str]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = ("href", "src", "action", "formaction", "poster", "data", "srcset", "manifest")
        self.found += [(tag, name, value) for name, value in attrs if name in names and value]


async def test_the_page_names_relative_addresses_only(http: httpx.AsyncClient, one: Replica) -> None:
    page = await http.get(f"{one.url}/")
    assert page.status_code == 200
    assert page.headers["content-type"].split(";")[0] == "text/html"
    links = Links()
    links.feed(page.text)
    addresses = [value for _, _, value in links.found if not value.startswith("data:")]
    absolute = [a for a in addresses if a.startswith("/") or urlsplit(a).scheme or urlsplit(a).netloc]
    assert absolute == []
    scripts = [page.text]
    for address in addresses:
        if address.startswith("#"):
            continue
        asset = await http.get(urljoin(f"{one.url}/", address))
        assert (address, asset.status_code) == (address, 200)
        if urlsplit(address).path.endswith((".js", ".mjs", ".css")):
            scripts.append(asset.text)
    for text in scripts:
        assert re.findall(r"""["'`(]/(?:api|static|health|live|docs|assets)\b""", text) == []


async def test_the_documentation_is_served(http: httpx.AsyncClient, one: Replica) -> None:
    docs = await http.get(f"{one.url}/docs")
    assert (docs.status_code, docs.headers["content-type"].split(";")[0]) == (200, "text/html")
    assert "openapi.json" in docs.text


# ---- OpenAPI

DOCUMENTED = {
    ("post", "/api/v1/chat/{chat_id}"): {"200", "409", "413", "422", "503"},
    ("get", "/api/v1/chat/{chat_id}"): {"200", "422"},
    ("delete", "/api/v1/chat/{chat_id}"): {"200", "404", "409", "422"},
    ("get", "/api/v1/chat/{chat_id}/messages"): {"200", "422"},
    ("get", "/api/v1/chats"): {"200", "422"},
    ("post", "/api/v1/stop/{chat_id}"): {"200", "422", "503"},
    ("post", "/api/v1/stop/bulk"): {"200", "422", "503"},
    ("get", "/api/v1/health"): {"200", "503"},
    ("get", "/health"): {"200", "503"},
    ("get", "/live"): {"200"},
    ("get", "/metrics"): {"200"},
}


async def openapi(http: httpx.AsyncClient, replica: Replica) -> dict[str, Any]:
    answer = await http.get(f"{replica.url}/openapi.json")
    assert answer.status_code == 200
    return answer.json()


def resolved(schema: dict[str, Any], document: dict[str, Any]) -> dict[str, Any]:
    while "$ref" in schema:
        node: Any = document
        for part in schema["$ref"].removeprefix("#/").split("/"):
            node = node[part]
        schema = node
    return schema


def examples_in(media: dict[str, Any], document: dict[str, Any]) -> list[Any]:
    """Examples of a media type, wherever OpenAPI lets one put them."""
    schema = resolved(media.get("schema", {}), document)
    fields = [resolved(field, document) for field in schema.get("properties", {}).values()]
    found = [place[key] for place in (media, schema, *fields) for key in ("example", "examples") if key in place]
    return [example for example in found if example]


@pytest.mark.parametrize(("call", "statuses"), DOCUMENTED.items(), ids=[f"{m} {p}" for m, p in DOCUMENTED])
async def test_every_call_is_described_with_its_errors(
    http: httpx.AsyncClient, one: Replica, call: tuple[str, str], statuses: set[str]
) -> None:
    method, path = call
    document = await openapi(http, one)
    described = document["paths"][path][method]
    assert statuses - described["responses"].keys() == set()
    assert described.get("summary") or described.get("description")
    assert [s for s, r in described["responses"].items() if not r.get("description")] == []


async def test_bodies_are_described_with_examples(http: httpx.AsyncClient, one: Replica) -> None:
    document = await openapi(http, one)
    for path in ("/api/v1/chat/{chat_id}", "/api/v1/stop/bulk"):
        media = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]
        assert (path, bool(examples_in(media, document))) == (path, True)


async def test_answers_are_described_with_examples(http: httpx.AsyncClient, one: Replica) -> None:
    document = await openapi(http, one)
    missing = []
    for (method, path), statuses in DOCUMENTED.items():
        if path in ("/live", "/metrics"):
            continue
        responses = document["paths"].get(path, {}).get(method, {}).get("responses", {})
        for status in statuses:
            media = resolved(responses.get(status, {}), document).get("content", {}).values()
            if not any(examples_in(m, document) for m in media):
                missing.append(f"{method} {path} {status}")
    assert sorted(missing) == []


async def test_a_chat_is_described_as_an_event_stream(http: httpx.AsyncClient, one: Replica) -> None:
    responses = (await openapi(http, one))["paths"]["/api/v1/chat/{chat_id}"]["post"]["responses"]
    assert "text/event-stream" in responses["200"]["content"]


# ---- headers

ANSWERS = [
    ("GET", "/", 200),
    ("GET", "/live", 200),
    ("GET", "/health", 200),
    ("GET", "/api/v1/health", 200),
    ("GET", "/metrics", 200),
    ("GET", "/docs", 200),
    ("GET", "/openapi.json", 200),
    ("GET", "/api/v1/chats", 200),
    ("GET", "/api/v1/chat/x", 200),
    ("GET", "/api/v1/chat/x/messages", 200),
    ("POST", "/api/v1/stop/headers", 200),
    ("DELETE", "/api/v1/chat/never-used", 404),
    ("POST", "/api/v1/chat/x", 422),
    ("POST", "/api/v1/stop/bulk", 422),
    ("GET", "/api/v1/chats?limit=0", 422),
    ("GET", "/nowhere", 404),
    ("PUT", "/api/v1/chat/x", 405),
]


@pytest.mark.parametrize(("method", "path", "status"), ANSWERS, ids=[f"{m} {p}" for m, p, _ in ANSWERS])
async def test_every_answer_names_its_replica(
    http: httpx.AsyncClient, one: Replica, other: Replica, method: str, path: str, status: int
) -> None:
    answers = [await http.request(method, replica.url + path) for replica in (one, other)]
    assert [(a.status_code, a.headers.get_list("x-replica")) for a in answers] == [
        (status, [one.name]),
        (status, [other.name]),
    ]


async def test_other_origins_are_shut_out(http: httpx.AsyncClient, one: Replica) -> None:
    origin = {"Origin": "http://evil.example"}
    asked = {**origin, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "content-type"}
    answers = [
        await http.get(f"{one.url}/api/v1/chats", headers=origin),
        await http.post(stop_url(one, new_chat()), headers=origin),
        await http.options(chat_url(one, new_chat()), headers=asked),
    ]
    assert [[h for h in a.headers if h.startswith("access-control-allow")] for a in answers] == [[], [], []]
    assert [a.headers["x-replica"] for a in answers] == [one.name] * 3
