"""What a request says: ids, bodies, times of arrival, as FastAPI hands them to the routes of a tiny app."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Annotated, Any

import httpx2 as httpx
import pytest
from fastapi import Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse

from haltline import inputs
from haltline.inputs import (
    MAX_BODY_BYTES,
    ArrivalOf,
    BulkStopRequest,
    ChatPath,
    ChatRequest,
    IfRunning,
    RunQuery,
    Wait,
    arrival,
    body_docs,
    mark_read,
    read_bulk_stop_request,
    read_chat_request,
)
from haltline.settings import Settings

RUN = "01JD8X5W3ZJ7V5Q9T4N2M6K8R0"

app = FastAPI()
app.state.resources = SimpleNamespace(settings=Settings())
MAX_MESSAGE_BYTES = 64 * 1024  # as the settings have it by default


@app.exception_handler(RequestValidationError)
async def say_where(_: Request, error: RequestValidationError) -> JSONResponse:
    return JSONResponse([[e["type"], *e["loc"]] for e in error.errors()], 422)


@app.post("/chat")
async def chat(body: Annotated[ChatRequest, Depends(read_chat_request)]) -> dict[str, Any]:
    return body.model_dump()


@app.post("/bulk")
async def bulk(body: Annotated[BulkStopRequest, Depends(read_bulk_stop_request)]) -> list[str]:
    return body.chat_ids


@app.get("/id/{chat_id}")
async def named(
    chat_id: ChatPath, run_id: RunQuery = None, wait: Wait = None, if_running: IfRunning = None
) -> list[Any]:
    return [chat_id, run_id, wait, if_running]


@app.get("/arrival")
async def stamp(at: ArrivalOf) -> int:
    return at.stamp


@pytest.fixture
async def http() -> AsyncIterator[httpx.AsyncClient]:
    headers = {"Content-Type": "application/json"}
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://haltline", headers=headers) as client:
        yield client


Answer = tuple[int, Any]


async def posted(http: httpx.AsyncClient, path: str, body: bytes) -> Answer:
    answer = await http.post(path, content=body)
    return answer.status_code, answer.json()


def message(text: str, **more: Any) -> bytes:
    return json.dumps({"message": text, **more}).encode()


# ---- one user message


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        pytest.param(message("Hello"), {"message": "Hello", "run_id": None}, id="text"),
        pytest.param(message(" a\r\nb "), {"message": " a\r\nb ", "run_id": None}, id="spaces and line ends stay"),
        pytest.param(b'{"message":"\\ud83d\\ude00"}', {"message": "\U0001f600", "run_id": None}, id="an escaped pair"),
        pytest.param('{"message":"é"}'.encode(), {"message": "é", "run_id": None}, id="UTF-8"),
        pytest.param(message("a\0b"), {"message": "a\0b", "run_id": None}, id="NUL"),
        pytest.param(message("[DONE]"), {"message": "[DONE]", "run_id": None}, id="a marker"),
        pytest.param(message("a", run_id=RUN), {"message": "a", "run_id": RUN}, id="run id"),
        pytest.param(message("a", run_id=RUN.lower()), {"message": "a", "run_id": RUN}, id="run id in small letters"),
        pytest.param(message("a", run_id=None), {"message": "a", "run_id": None}, id="run id null"),
        pytest.param(message("a", other=[1, {}]), {"message": "a", "run_id": None}, id="a field nobody knows"),
        pytest.param(b' \n{"message":"a"}\n', {"message": "a", "run_id": None}, id="space around the object"),
    ],
)
async def test_a_message(body: bytes, expected: dict[str, Any], http: httpx.AsyncClient) -> None:
    assert await posted(http, "/chat", body) == (200, expected)


UNREADABLE = ["json_invalid", "body"]


@pytest.mark.parametrize(
    ("body", "wrong"),
    [
        pytest.param(b"", [UNREADABLE], id="no body"),
        pytest.param(b"message=Hello", [UNREADABLE], id="a form"),
        pytest.param(b'{"message":"a"', [UNREADABLE], id="half an object"),
        pytest.param(b'{"message":"a"} {}', [UNREADABLE], id="two objects"),
        pytest.param(b"{'message':'a'}", [UNREADABLE], id="single quotes"),
        pytest.param(b'{"message":"a",}', [UNREADABLE], id="a comma too many"),
        pytest.param(b'\xef\xbb\xbf{"message":"a"}', [UNREADABLE], id="a byte order mark"),
        pytest.param('{"message":"a"}'.encode("utf-16"), [UNREADABLE], id="UTF-16"),
        pytest.param(b'{"message":"\xff"}', [UNREADABLE], id="bad UTF-8"),
        pytest.param(b'{"message":"\xed\xa0\xbd"}', [UNREADABLE], id="a surrogate in UTF-8"),
        pytest.param(b'{"message":"\\ud83d"}', [UNREADABLE], id="half a pair"),
        pytest.param(b'{"message":"\\ude00\\ud83d"}', [UNREADABLE], id="a pair the wrong way round"),
        pytest.param(b'{"message":"a","x":"\\ud83d"}', [UNREADABLE], id="half a pair where nobody looks"),
        pytest.param(b'{"message":"a\nb"}', [UNREADABLE], id="a raw line end"),
        pytest.param(b'{"message":"a","x":' + b"[" * 100_000, [UNREADABLE], id="nesting without end"),
        pytest.param(b'{"message":"a","x":' + b"9" * 100_000 + b"}", [UNREADABLE], id="a number without end"),
        pytest.param(b'{"message":NaN}', [UNREADABLE], id="NaN"),
        pytest.param(b"[]", [["model_type", "body"]], id="a list"),
        pytest.param(b"null", [["model_type", "body"]], id="null"),
        pytest.param(b"{}", [["missing", "body", "message"]], id="no message"),
        pytest.param(message(""), [["value_error", "body", "message"]], id="empty"),
        pytest.param(message(" \t\r\n\u2028\u3000"), [["value_error", "body", "message"]], id="blank"),
        pytest.param(b'{"message":1}', [["string_type", "body", "message"]], id="a number"),
        pytest.param(b'{"message":null}', [["string_type", "body", "message"]], id="message null"),
        pytest.param(b'{"message":["a"]}', [["string_type", "body", "message"]], id="a list of messages"),
        pytest.param(message("a", run_id=""), [["string_pattern_mismatch", "body", "run_id"]], id="run id empty"),
        pytest.param(message("a", run_id=RUN + "0"), [["string_pattern_mismatch", "body", "run_id"]], id="too long"),
        pytest.param(message("a", run_id=RUN + "\n"), [["string_pattern_mismatch", "body", "run_id"]], id="line end"),
        pytest.param(
            message("a", run_id="8" + RUN[1:]), [["string_pattern_mismatch", "body", "run_id"]], id="too late"
        ),
        pytest.param(message("a", run_id="I" + RUN[1:]), [["string_pattern_mismatch", "body", "run_id"]], id="an I"),
        pytest.param(message("a", run_id=1), [["string_type", "body", "run_id"]], id="run id a number"),
        pytest.param(
            message("", run_id="x"),
            [["value_error", "body", "message"], ["string_pattern_mismatch", "body", "run_id"]],
            id="all that is wrong at once",
        ),
    ],
)
async def test_a_body_that_cannot_be_used(body: bytes, wrong: list[Any], http: httpx.AsyncClient) -> None:
    assert await posted(http, "/chat", body) == (422, wrong)


@pytest.mark.parametrize("number", [b"NaN", b"Infinity", b"-Infinity", b"1e999", b'[{"y":[-1e999]}]'])
async def test_a_number_that_json_does_not_have_is_refused_anywhere(number: bytes, http: httpx.AsyncClient) -> None:
    body = b'{"message":"a","x":' + number + b"}"
    assert await posted(http, "/chat", body) == (422, [UNREADABLE])


@pytest.mark.parametrize(
    ("kind", "status"),
    [
        ("application/json", 200),
        ("application/json; charset=utf-8", 200),
        ("Application/JSON ;x=y", 200),
        ("", 422),
        ("text/plain", 422),
        ("application/x-www-form-urlencoded", 422),
        ("multipart/form-data; boundary=application/json", 422),
        ("text/plain; application/json", 422),
        ("application/jsonp", 422),
        ("application/json, text/plain", 422),
    ],
)
async def test_the_type_of_a_body(kind: str, status: int, http: httpx.AsyncClient) -> None:
    """What a form of a foreign page can send is not read as a message."""
    answer = await http.post("/chat", content=message("a"), headers={"Content-Type": kind})
    assert answer.status_code == status
    if status == 422:
        assert answer.json() == [["content_type", "header", "content-type"]]


async def test_a_body_without_a_type(http: httpx.AsyncClient) -> None:
    del http.headers["content-type"]
    assert await posted(http, "/chat", message("a")) == (422, [["content_type", "header", "content-type"]])


async def test_an_unreadable_body_is_not_repeated() -> None:
    """Seen in the error itself, before any handler leaves something out."""

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b'{"message":"Ech0" Ech0}', "more_body": False}

    request = Request({"type": "http", "headers": [(b"content-type", b"application/json")]}, receive)
    with pytest.raises(RequestValidationError) as error:
        await read_bulk_stop_request(request)
    assert "Ech0" not in repr(error.value.errors())


# ---- sizes


@pytest.mark.parametrize(
    ("text", "status"),
    [
        pytest.param("x" * MAX_MESSAGE_BYTES, 200, id="64 KiB"),
        pytest.param("x" * (MAX_MESSAGE_BYTES + 1), 413, id="one byte more"),
        pytest.param("é" * (MAX_MESSAGE_BYTES // 2), 200, id="64 KiB in characters of two bytes"),
        pytest.param("é" * (MAX_MESSAGE_BYTES // 2) + "x", 413, id="one byte more of those"),
        pytest.param("\U0001f600" * (MAX_MESSAGE_BYTES // 4), 200, id="64 KiB in characters of four bytes"),
        pytest.param("\x01" * MAX_MESSAGE_BYTES, 200, id="64 KiB in escapes of six bytes"),
    ],
)
async def test_the_size_of_a_message_is_counted_in_utf8(text: str, status: int, http: httpx.AsyncClient) -> None:
    answer = await http.post("/chat", content=message(text))
    assert answer.status_code == status
    if status == 413:
        assert answer.json() == {"detail": "The message is larger than 64 KiB of UTF-8."}


async def test_a_body_without_end_is_not_read_to_its_end(http: httpx.AsyncClient) -> None:
    read = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal read
        while True:
            read += 65_536
            yield b" " * 65_536

    body = endless()

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": await anext(body), "more_body": True}

    sent: list[Any] = []

    async def send(event: Any) -> None:
        sent.append(event)

    scope = {
        "type": "http",
        "method": "POST",
        "path": "/chat",
        "raw_path": b"/chat",
        "root_path": "",
        "query_string": b"",
        "headers": [(b"content-type", b"application/json")],
        "scheme": "http",
        "http_version": "1.1",
    }
    await app(scope, receive, send)
    assert sent[0]["status"] == 413
    assert json.loads(sent[1]["body"]) == {"detail": "The body is larger than 1024 KiB."}
    assert read <= MAX_BODY_BYTES + 65_536


# ---- a bulk stop


@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        pytest.param(["a"], (200, ["a"]), id="one"),
        pytest.param(["b", "a", "b"], (200, ["b", "a", "b"]), id="order and repeats stay"),
        pytest.param([str(n) for n in range(1000)], (200, [str(n) for n in range(1000)]), id="1,000"),
        pytest.param([], (422, [["too_short", "body", "chat_ids"]]), id="none"),
        pytest.param(["a"] * 1001, (422, [["too_long", "body", "chat_ids"]]), id="1,001"),
        pytest.param(
            ["a", "-"], (422, [["string_pattern_mismatch", "body", "chat_ids", 1]]), id="a bad one among them"
        ),
        pytest.param(["a", "bulk"], (422, [["value_error", "body", "chat_ids", 1]]), id="a reserved one among them"),
        pytest.param(["a", 1], (422, [["string_type", "body", "chat_ids", 1]]), id="a number"),
        pytest.param("abc", (422, [["list_type", "body", "chat_ids"]]), id="a text"),
        pytest.param(None, (422, [["list_type", "body", "chat_ids"]]), id="null"),
    ],
)
async def test_a_bulk_stop(ids: Any, expected: Answer, http: httpx.AsyncClient) -> None:
    assert await posted(http, "/bulk", json.dumps({"chat_ids": ids}).encode()) == expected


# ---- chat ids


@pytest.mark.parametrize(
    "chat_id", ["a", "Z", "7", "trip-to-rome", "a.b_c-D", "a..", "x" * 128, "bulk1", "ALL", "Bulk"]
)
async def test_a_chat_id(chat_id: str, http: httpx.AsyncClient) -> None:
    assert (await http.get(f"/id/{chat_id}")).json() == [chat_id, None, None, None]


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        pytest.param(".a", "string_pattern_mismatch", id="dot first"),
        pytest.param("-a", "string_pattern_mismatch", id="dash first"),
        pytest.param("_a", "string_pattern_mismatch", id="underscore first"),
        pytest.param("x" * 129, "string_too_long", id="129 characters"),
        pytest.param("a%20b", "string_pattern_mismatch", id="space"),
        pytest.param("a%0A", "string_pattern_mismatch", id="line end last"),
        pytest.param("a%00", "string_pattern_mismatch", id="NUL"),
        pytest.param("%C3%A9", "string_pattern_mismatch", id="accent"),
        pytest.param("a%EF%BC%91", "string_pattern_mismatch", id="a digit of another script"),
        pytest.param("a%7Bb%7D", "string_pattern_mismatch", id="braces"),
        pytest.param("a%5Cb", "string_pattern_mismatch", id="backslash"),
        pytest.param("bulk", "value_error", id="reserved: bulk"),
        pytest.param("all", "value_error", id="reserved: all"),
    ],
)
async def test_what_is_no_chat_id(path: str, kind: str, http: httpx.AsyncClient) -> None:
    answer = await http.get(f"/id/{path}")
    assert (answer.status_code, answer.json()[0]) == (422, [kind, "path", "chat_id"])


# ---- queries


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        pytest.param({"run_id": RUN}, [RUN, None, None], id="run id"),
        pytest.param({"run_id": RUN.lower()}, [RUN, None, None], id="run id in small letters"),
        pytest.param({"wait": "0.001"}, [None, 0.001, None], id="a short wait"),
        pytest.param({"wait": "10"}, [None, 10.0, None], id="the longest wait"),
        pytest.param({"if_running": "stop"}, [None, None, "stop"], id="if running"),
    ],
)
async def test_a_query(query: dict[str, str], expected: list[Any], http: httpx.AsyncClient) -> None:
    assert (await http.get("/id/a", params=query)).json() == ["a", *expected]


@pytest.mark.parametrize(
    ("query", "kind"),
    [
        ({"run_id": "x"}, "string_pattern_mismatch"),
        ({"run_id": ""}, "string_pattern_mismatch"),
        ({"wait": "0"}, "greater_than"),
        ({"wait": "-1"}, "greater_than"),
        ({"wait": "10.001"}, "less_than_equal"),
        ({"wait": "nan"}, "finite_number"),
        ({"wait": "inf"}, "finite_number"),
        ({"wait": "soon"}, "float_parsing"),
        ({"if_running": "cancel"}, "literal_error"),
    ],
    ids=lambda v: "&".join(f"{k}={x}" for k, x in v.items()) if isinstance(v, dict) else "",
)
async def test_a_wrong_query(query: dict[str, str], kind: str, http: httpx.AsyncClient) -> None:
    answer = await http.get("/id/a", params=query)
    assert (answer.status_code, answer.json()) == (422, [[kind, "query", *query]])


# ---- times of arrival


@pytest.mark.parametrize(
    ("header", "stamp_ms"),
    [
        pytest.param("t=1732300000.123", 1_732_300_000_123, id="as Nginx sets it"),
        pytest.param("t=1732300000", 1_732_300_000_000, id="whole seconds"),
        pytest.param("t=1732300000.5", 1_732_300_000_500, id="tenths"),
        pytest.param("t=1732300000.999999", 1_732_300_001_000, id="microseconds are rounded"),
        pytest.param("", 0, id="empty"),
        pytest.param("1732300000.123", 0, id="without t"),
        pytest.param("t=1732300000123", 0, id="milliseconds"),
        pytest.param("t=-1732300000.123", 0, id="before the epoch"),
        pytest.param("t=1.7e9", 0, id="an exponent"),
        pytest.param("t=nan", 0, id="nan"),
        pytest.param("t=1732300000.", 0, id="a dot last"),
        pytest.param("t=1732300000.123, t=1", 0, id="two"),
        pytest.param("t=17323000\xb2\xb3.0", 0, id="digits that are none"),
    ],
)
async def test_the_stamp_of_the_front_door(header: str, stamp_ms: int, http: httpx.AsyncClient) -> None:
    answer = await http.get("/arrival", headers={"X-Request-Start": header.encode("latin-1")})
    assert answer.json() == stamp_ms


async def test_a_request_without_a_stamp(http: httpx.AsyncClient) -> None:
    assert (await http.get("/arrival")).json() == 0


async def test_a_request_counts_from_when_it_was_first_read(monkeypatch: pytest.MonkeyPatch) -> None:
    scope: dict[str, Any] = {"type": "http", "headers": []}
    monkeypatch.setattr(time, "monotonic", lambda: 100.0)
    mark_read(scope)
    monkeypatch.setattr(time, "monotonic", lambda: 100.25)
    found = await arrival(Request(scope))
    assert (found.stamp, found.read_at, found.age_ms) == (0, 100.0, 250)


# ---- the documents


def test_bodies_stand_in_the_openapi_document() -> None:
    docs = body_docs(ChatRequest)["requestBody"]
    schema = docs["content"]["application/json"]["schema"]
    assert docs["required"] is True
    assert (sorted(schema["properties"]), schema["required"]) == (["message", "run_id"], ["message"])


async def sent(app: Any, *messages: dict[str, Any] | None) -> list[dict[str, Any]]:
    """What the app answers to a message whose body comes in these ASGI messages; None is one that never comes."""
    waiting, answered = iter(messages), []

    async def receive() -> dict[str, Any]:
        message = next(waiting)
        if message is None:
            await asyncio.Event().wait()
        return message or {}

    async def send(message: dict[str, Any]) -> None:
        answered.append(message)

    headers = [(b"content-type", b"application/json")]
    scope = {"type": "http", "method": "POST", "path": "/chat", "query_string": b"", "headers": headers}
    async with asyncio.timeout(5):
        await app(scope, receive, send)
    return answered


async def test_a_body_that_its_client_cuts_off_is_no_failure() -> None:
    start, _ = await sent(app, {"type": "http.request", "body": b"{", "more_body": True}, {"type": "http.disconnect"})
    assert start["status"] == 400


async def test_a_body_that_does_not_come_is_not_waited_for_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inputs, "BODY_SECONDS", 0.05)
    start, _ = await sent(app, {"type": "http.request", "body": b"{", "more_body": True}, None)
    assert start["status"] == 408
    assert (b"connection", b"close") in start["headers"]
