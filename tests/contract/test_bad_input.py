"""Bad input gets a clear 4xx, changes nothing and is not echoed."""

from __future__ import annotations

import json
from typing import Any

import httpx2 as httpx
import pytest

from tests.contract.client import DONE, chat_url, messages_of, new_chat, new_run, said, say, script, stop_url
from tests.contract.conftest import NothingChanges
from tests.stack import Replica

MARK = "Ech0M4rk"
JSON_BODY = {"Content-Type": "application/json"}
KIB_64 = 64 * 1024


def is_error(answer: httpx.Response, replica: Replica) -> bool:
    """An error as the contract has them all: a detail, the replica's name, no echo."""
    assert answer.headers["content-type"].split(";")[0] == "application/json"
    assert answer.json().keys() == {"detail"}
    assert answer.json()["detail"]
    assert answer.headers["x-replica"] == replica.name
    assert MARK not in answer.text
    assert MARK not in str(answer.headers)
    return True


# ---- chat ids

CALLS = {
    "send": ("POST", "/api/v1/chat/{}"),
    "status": ("GET", "/api/v1/chat/{}"),
    "messages": ("GET", "/api/v1/chat/{}/messages"),
    "delete": ("DELETE", "/api/v1/chat/{}"),
    "stop": ("POST", "/api/v1/stop/{}"),
}

BAD_IDS = {
    "..": "%2e%2e",
    "dot first": ".x",
    "dash first": "-x",
    "underscore first": "_x",
    "129 characters": "a" * 129,
    "5,000 characters": "a" * 5000,
    "space": "%20",
    "space inside": f"{MARK}%20b",
    "space last": "a%20",
    "NUL": "%00",
    "NUL last": "a%00",
    "line break last": "a%0a",
    "CR LF inside": f"{MARK}%0d%0aSet-Cookie:%20x",
    "letter with an accent": "%C3%A9",
    "fullwidth digit": "a%EF%BC%91",
    "combining mark": "e%CC%81",
    "emoji": "%F0%9F%9B%91",
    "bad UTF-8": "a%FF",
    "percent": "a%25b",
    "backslash": "..%5Cx",
    "colon": "stop:x",
    "star": "*",
    "plus": "a+b",
    "semicolon": "a;b",
    "braces": "%7Bchat_id%7D",
    "markup": "%3Cscript%3E",
}


async def request(http: httpx.AsyncClient, replica: Replica, call: str, segment: str) -> httpx.Response:
    """Make a call with the id exactly as written: no client may tidy the path up."""
    method, path = CALLS[call]
    target = path.format(segment).encode()
    body = {"json": {"message": "hi"}} if call == "send" else {}
    return await http.request(method, replica.url, extensions={"target": target}, **body)


@pytest.mark.parametrize("segment", BAD_IDS.values(), ids=BAD_IDS.keys())
async def test_a_bad_chat_id_is_refused_by_every_call(
    http: httpx.AsyncClient, one: Replica, nothing_changes: NothingChanges, segment: str
) -> None:
    async with nothing_changes():
        answers = {call: await request(http, one, call, segment) for call in CALLS}
        assert {call: a.status_code for call, a in answers.items()} == dict.fromkeys(CALLS, 422)
        assert all(is_error(answer, one) for answer in answers.values())


@pytest.mark.parametrize("word", ["bulk", "all"])
async def test_a_reserved_word_is_no_chat_id(
    http: httpx.AsyncClient, one: Replica, nothing_changes: NothingChanges, word: str
) -> None:
    calls = [call for call in CALLS if call != "stop"]  # these paths of `stop` are calls of their own
    async with nothing_changes():
        answers = {call: await request(http, one, call, word) for call in calls}
        assert {call: a.status_code for call, a in answers.items()} == dict.fromkeys(calls, 422)
        assert all(is_error(answer, one) for answer in answers.values())


NO_ROUTES = {
    "empty": "",
    "two segments": "a/b",
    "up": "../x",
    "up, slash encoded": "..%2Fx",
    "up, all encoded": "%2e%2e%2fx",
    "up, encoded twice below": "a%2F..%2F..%2Fetc%2Fpasswd",
    "slash encoded": f"{MARK}%2Fb",
    "slash alone": "%2F",
    "slash last": "a/",
}


@pytest.mark.parametrize("segment", NO_ROUTES.values(), ids=NO_ROUTES.keys())
async def test_an_id_that_does_not_route_is_not_found(
    http: httpx.AsyncClient, one: Replica, nothing_changes: NothingChanges, segment: str
) -> None:
    async with nothing_changes():
        for call in CALLS:
            answer = await request(http, one, call, segment)
            if segment == "a/" and answer.status_code == 307:
                continue  # FastAPI leads a slash too many back to the path without it
            assert (call, answer.status_code) == (call, 404)
            assert is_error(answer, one)


# ---- messages

WRONG_BODIES: dict[str, Any] = {
    "no message": {},
    "other field": {"text": MARK},
    "null": {"message": None},
    "number": {"message": 5},
    "float": {"message": 1.5},
    "true": {"message": True},
    "list": {"message": [MARK]},
    "object": {"message": {MARK: MARK}},
    "empty": {"message": ""},
    "space": {"message": " "},
    "blanks": {"message": " \t\r\n\n  "},
    "blanks of Unicode": {"message": "\u3000\u2003\u00a0\u2028"},
    "a list of it": [{"message": MARK}],
    "a string": MARK,
    "a number": 5,
    "null for a body": None,
    "a bad run id beside": {"message": "hi", "run_id": MARK},
}

UNREADABLE: dict[str, bytes] = {
    "nothing": b"",
    "blank": b"  \n",
    "words": f"message={MARK}".encode(),
    "half a body": f'{{"message": "{MARK}'.encode(),
    "two bodies": f'{{"message": "{MARK}"}} {{"message": "hi"}}'.encode(),
    "comma last": f'{{"message": "{MARK}",}}'.encode(),
    "single quotes": f"{{'message': '{MARK}'}}".encode(),
    "raw line break in a string": f'{{"message": "{MARK}\n"}}'.encode(),
    "raw NUL": b'{"message": "hi"}\x00',
    "bad UTF-8": f'{{"message": "{MARK}'.encode() + b'\xff"}',
    "bad UTF-8 in a name": b'{"message": "hi", "\xc3(": 1}',
    "overlong UTF-8": b'{"message": "\xc0\xaf"}',
    "surrogate in UTF-8": b'{"message": "\xed\xa0\x80"}',
    "UTF-8 cut short": b'{"message": "hi \xf0\x9f\x9b',
    "latin-1": f'{{"message": "{MARK} caf\u00e9"}}'.encode("latin-1"),
    "lone surrogate": f'{{"message": "{MARK} \\ud83d"}}'.encode(),
    "lone low surrogate": b'{"message": "\\udc00 hi"}',
    "surrogates in wrong order": b'{"message": "\\ude00\\ud83d"}',
    "lone surrogate in run_id": b'{"message": "hi", "run_id": "\\ud800"}',
    "lone surrogate aside": b'{"message": "hi", "x": "\\ud800"}',
    "NaN": b'{"message": NaN}',
    "NaN aside": b'{"message": "hi", "x": NaN}',
    "Infinity aside": b'{"message": "hi", "x": -Infinity}',
    "1e999": b'{"message": 1e999}',
    "1e999 aside": b'{"message": "hi", "x": 1e999}',
    "5,000 digits": b'{"message": ' + b"9" * 5000 + b"}",
    "5,000 digits aside": b'{"message": "hi", "x": ' + b"9" * 5000 + b"}",
    "nested 100,000 deep": b'{"message": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "nested 100,000 deep aside": b'{"message": "hi", "x": ' + b'{"a":' * 100_000 + b"1" + b"}" * 100_001,
    "nested and never closed": b"[" * 100_000,
}


@pytest.mark.parametrize("body", WRONG_BODIES.values(), ids=WRONG_BODIES.keys())
async def test_a_body_of_wrong_types_is_refused(
    http: httpx.AsyncClient, one: Replica, nothing_changes: NothingChanges, body: Any
) -> None:
    chat = new_chat()
    async with nothing_changes():
        answer = await http.post(chat_url(one, chat), content=json.dumps(body), headers=JSON_BODY)
        assert answer.status_code == 422
        assert is_error(answer, one)
        assert await messages_of(http, one, chat) == []


@pytest.mark.parametrize("data", UNREADABLE.values(), ids=UNREADABLE.keys())
async def test_a_body_nobody_can_read_is_refused(
    http: httpx.AsyncClient, one: Replica, nothing_changes: NothingChanges, data: bytes
) -> None:
    chat = new_chat()
    async with nothing_changes():
        answer = await http.post(chat_url(one, chat), content=data, headers=JSON_BODY)
        assert answer.status_code == 422
        assert is_error(answer, one)
        assert await messages_of(http, one, chat) == []


@pytest.mark.parametrize(
    ("kind", "data"),
    [
        ("application/x-www-form-urlencoded", f"message={MARK}".encode()),
        ("text/plain", b'{"message": "hi"}'),
        (
            "multipart/form-data; boundary=x",
            b'--x\r\nContent-Disposition: form-data; name="message"\r\n\r\nhi\r\n--x--',
        ),
        ("application/json; charset=utf-16", json.dumps({"message": MARK}).encode("utf-16-be") + b"\x00"),
    ],
    ids=["form", "plain text", "multipart", "half of UTF-16"],
)
async def test_a_body_of_another_kind_is_refused(
    http: httpx.AsyncClient, one: Replica, nothing_changes: NothingChanges, kind: str, data: bytes
) -> None:
    async with nothing_changes():
        answer = await http.post(chat_url(one, new_chat()), content=data, headers={"Content-Type": kind})
        assert answer.status_code in (415, 422)
        assert is_error(answer, one)


async def test_a_body_without_a_kind_is_refused_or_read_never_a_server_error(
    http: httpx.AsyncClient, one: Replica
) -> None:
    answer = await http.post(chat_url(one, new_chat()), content=b'{"message": 5}', headers={"Content-Type": ""})
    assert answer.status_code in (415, 422)
    assert is_error(answer, one)


# ---- 64 KiB


def escaped(text: str) -> bytes:
    """A body in which every UTF-16 unit of the message is an escape of six bytes."""
    units = text.encode("utf-16-be").hex()
    return b'{"message": "' + "".join(f"\\u{units[i : i + 4]}" for i in range(0, len(units), 4)).encode() + b'"}'


def plain(text: str) -> bytes:
    return json.dumps({"message": text}, ensure_ascii=False).encode()


DIRECTIVE = "\n" + script(chunks=["ok"], pace_ms=0)


def padded(fill: str, size: int) -> str:
    """A message of exactly `size` bytes: `fill` over and over, then the directive."""
    room = size - len(DIRECTIVE)
    width = len(fill.encode())
    return fill * (room // width) + "x" * (room % width) + DIRECTIVE


FILLS = {"ascii": "a", "two bytes": "é", "three bytes": "日", "four bytes": "🛑", "quotes": '"', "line breaks": "a\n"}
WRITERS = pytest.mark.parametrize("write", [plain, escaped], ids=["as it is", "escaped"])


@WRITERS
@pytest.mark.parametrize("fill", FILLS.values(), ids=FILLS.keys())
async def test_a_message_of_64_kib_is_taken(http: httpx.AsyncClient, one: Replica, fill: str, write: Any) -> None:
    chat, message = new_chat(), padded(fill, KIB_64)
    assert len(message.encode()) == KIB_64
    answer = await http.post(chat_url(one, chat), content=write(message), headers=JSON_BODY)
    assert answer.status_code == 200
    assert await messages_of(http, one, chat) == said(message, "ok")


@WRITERS
@pytest.mark.parametrize("fill", FILLS.values(), ids=FILLS.keys())
async def test_a_byte_more_than_64_kib_is_too_much(
    http: httpx.AsyncClient, one: Replica, nothing_changes: NothingChanges, fill: str, write: Any
) -> None:
    message = padded(fill, KIB_64 + 1)
    assert len(message.encode()) == KIB_64 + 1
    async with nothing_changes():
        answer = await http.post(chat_url(one, new_chat()), content=write(message), headers=JSON_BODY)
        assert answer.status_code == 413
        assert is_error(answer, one)


@pytest.mark.parametrize("size", [65 * 1024, 1024 * 1024, 8 * 1024 * 1024], ids=["65 KiB", "1 MiB", "8 MiB"])
async def test_a_far_too_long_message_is_refused_and_the_server_lives(
    http: httpx.AsyncClient, one: Replica, nothing_changes: NothingChanges, size: int
) -> None:
    async with nothing_changes():
        answer = await http.post(chat_url(one, new_chat()), content=plain(MARK * (size // 8)), headers=JSON_BODY)
        assert answer.status_code == 413
        assert is_error(answer, one)
    assert (await say(http, one, new_chat(), script(chunks=["ok"]))).closing == [DONE]


# ---- everything else


async def test_what_a_bad_message_names_is_still_free(http: httpx.AsyncClient, one: Replica) -> None:
    chat, run_id = new_chat(), new_run()
    answer = await http.post(chat_url(one, chat), json={"message": " ", "run_id": run_id})
    assert answer.status_code == 422
    turn = await say(http, one, chat, script(chunks=["ok"]), run_id=run_id)
    assert (turn.status, turn.run_id, turn.text, turn.closing) == (200, run_id, "ok", [DONE])


UNKNOWN = [
    ("GET", f"/{MARK}"),
    ("GET", "/api"),
    ("GET", "/api/v1"),
    ("POST", f"/api/v1/{MARK}"),
    ("GET", f"/api/v1/chat/x/{MARK}"),
    ("GET", f"/api/v2/chat/{MARK}"),
    ("GET", "/%2e%2e/%2e%2e/etc/passwd"),
    ("GET", "/..%2f..%2fetc%2fpasswd"),
    ("GET", "/static/../../../../etc/passwd"),
]


@pytest.mark.parametrize(("method", "path"), UNKNOWN, ids=[f"{m} {p}" for m, p in UNKNOWN])
async def test_an_unknown_path_is_not_found(http: httpx.AsyncClient, one: Replica, method: str, path: str) -> None:
    answer = await http.request(method, one.url, extensions={"target": path.encode()})
    assert answer.status_code == 404
    assert is_error(answer, one)


WRONG_METHODS = [
    ("PUT", "/api/v1/chat/x"),
    ("PATCH", "/api/v1/chat/x"),
    ("POST", "/api/v1/chat/x/messages"),
    ("DELETE", "/api/v1/chat/x/messages"),
    ("POST", "/api/v1/chats"),
    ("DELETE", "/api/v1/chats"),
    ("GET", "/api/v1/stop/x"),
    ("DELETE", "/api/v1/stop/x"),
    ("GET", "/api/v1/stop/bulk"),
    ("POST", "/api/v1/health"),
    ("POST", "/health"),
    ("POST", "/live"),
    ("DELETE", "/metrics"),
    ("POST", "/"),
]


@pytest.mark.parametrize(("method", "path"), WRONG_METHODS, ids=[f"{m} {p}" for m, p in WRONG_METHODS])
async def test_a_wrong_method_is_not_allowed(
    http: httpx.AsyncClient, one: Replica, nothing_changes: NothingChanges, method: str, path: str
) -> None:
    async with nothing_changes():
        answer = await http.request(method, one.url + path)
        assert answer.status_code == 405
        assert is_error(answer, one)


async def test_a_query_is_not_echoed(http: httpx.AsyncClient, one: Replica) -> None:
    urls = [
        f"{one.url}/api/v1/chats?limit={MARK}",
        f"{one.url}/api/v1/chats?cursor={MARK}",
        f"{one.url}/api/v1/chats?status={MARK}",
    ]
    answers = [await http.get(url) for url in urls]
    answers += [await http.post(f"{stop_url(one, new_chat())}?{name}={MARK}") for name in ("wait", "run_id")]
    answers.append(await http.post(f"{chat_url(one, new_chat())}?if_running={MARK}", json={"message": "hi"}))
    answers.append(await http.post(f"{one.url}/api/v1/stop/bulk", json={"chat_ids": [f"{MARK}/"], MARK: MARK}))
    assert [answer.status_code for answer in answers] == [422] * 7
    assert all(is_error(answer, one) for answer in answers)
