"""A client that means harm. Whatever it sends: no failure, no hang, no echo, nothing written but chats.

Answers are a replica's own, without Nginx in front, which refuses much of this by itself.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import gzip
import json
import random
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import pytest

from haltline.inputs import MAX_BODY_BYTES
from tests.contract.client import DONE, LONG, STOPPED, http_client, live_run, new_chat, say, stop
from tests.faults.raw_http import CANARY, ask, ask_all, message, request
from tests.faults.watched import Watched, watched_replica
from tests.stack import Replica

MAX_MESSAGE_BYTES = 64 * 1024
Times = Callable[[int, int], int]
CHAT, STOP = b"/api/v1/chat/", b"/api/v1/stop/"
JSON = b"Content-Type: application/json"


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    with watched_replica(Path(tmp_path_factory.mktemp("hostile"))) as one:
        yield one


@pytest.fixture(autouse=True)
def unharmed(watched: Watched) -> Iterator[None]:
    """After each test the replica is what it was."""
    yield
    watched.check()


@pytest.fixture
def replica(watched: Watched) -> Replica:
    return watched.replica


@pytest.fixture
def port(replica: Replica) -> int:
    return replica.port


# ---- from the description
@pytest.mark.timeout(240)
@pytest.mark.filterwarnings("default")  # of the tools that make the requests
@pytest.mark.parametrize("mode", ["positive", "negative"])
def test_random_requests_get_what_the_description_says(
    replica: Replica, mode: str, times: Times, rnd: random.Random
) -> None:
    """Each as it was made, then with the query and with the body of the one before it."""
    from tests.faults.described import send_random  # takes a second to import, in every worker that collects

    count = times(3, 1700)
    seen = send_random(replica, mode, count, rnd.randrange(2**32))
    print(f"{mode}: {sum(seen.values())} requests, by status {dict(seen)}")
    assert sum(seen.values()) >= 3 * count


# ---- heads
ODD_LINES = [
    b"GET /live HTTP/1.0",
    b"GET /live",  # HTTP/0.9
    b"GET /live HTTP/9.9",
    b"GET /live HTTP/2.0",
    b"PRI * HTTP/2.0",
    b"BREW /live HTTP/1.1",
    b"get /live HTTP/1.1",
    b"TRACE /live HTTP/1.1",
    b"PROPFIND /api/v1/chats HTTP/1.1",
    b"CONNECT evil.example:443 HTTP/1.1",
    b"OPTIONS * HTTP/1.1",
    b"HEAD /api/v1/chats HTTP/1.1",
    b"GET http://evil.example/live HTTP/1.1",
    b"GET http://evil.example HTTP/1.1",
    b"GET //evil.example/%2e%2e HTTP/1.1",
    b"GET http://[::1 HTTP/1.1",
    b"GET ? HTTP/1.1",
    b"GET  HTTP/1.1",
    b"GET live HTTP/1.1",
    b"GET /" + CANARY.encode() * 5000 + b" HTTP/1.1",  # some 100 KB
    b"GET /api/v1/chats?cursor=" + CANARY.encode() * 3000 + b" HTTP/1.1",
    b"GET /api/v1/chats?" + b"&".join(b"status=idle" for _ in range(5000)) + b" HTTP/1.1",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # TLS
    b"SSH-2.0-" + CANARY.encode(),
    b"\0" * 100,
    b"\xff" * 100,
]
ODD_HEADERS = [
    [b"Content-Length: 5", b"Content-Length: 6"],
    [b"Content-Length: 5", b"Content-Length: 5"],
    [b"Content-Length: 5, 5"],
    [b"Content-Length: -1"],
    [b"Content-Length: +5"],
    [b"Content-Length: 0x5"],
    [b"Content-Length: 99999999999999999999999"],
    [b"Content-Length: " + CANARY.encode()],
    [b"Content-Length : 5"],
    [b"Transfer-Encoding: chunked", b"Content-Length: 5"],
    [b"Transfer-Encoding: chunked", b"Transfer-Encoding: identity"],
    [b"Transfer-Encoding: chunked, identity"],
    [b"Transfer-Encoding: xchunked"],
    [b"Transfer-Encoding: \x0bchunked"],
    [b"Transfer-Encoding: gzip"],
    [b"Transfer-Encoding : chunked"],
    [b"X-A: a", b" folded: " + CANARY.encode()],
    [b" X-A: begins with a space"],
    [b"X-A: a\rX-B: b"],
    [b"X-A: a\nX-B: b"],
    [b"X-A: \0"],
    [b"X-A: \x80\xff"],
    [b"X-\xff: a"],
    [b"X-A\0: a"],
    [b": nameless"],
    [b"no colon"],
    [b"X-A: " + CANARY.encode() * 3000],
    [b"X-%d: a" % n for n in range(5000)],
    [b"Cookie: " + b"; ".join(b"%d=a" % n for n in range(3000))],
    [b"Host: y", b"Host: \xff"],
    [b"Host: " + b"x" * 10_000],
    [b"Range: bytes=" + b",".join(b"%d-" % n for n in range(2000))],
    [b"If-None-Match: " + b'"a",' * 5000],
    [b"If-Modified-Since: " + CANARY.encode()],
    [b"Expect: 100-continue"],
    [b"Expect: " + CANARY.encode()],
    [b"Origin: http://evil.example", b"Access-Control-Request-Method: DELETE"],
    [b"Authorization: Bearer \xff\xfe"],
    [b"X-Forwarded-For: " + b"1.2.3.4, " * 2000],
    [b"x-amzn-request-context: {", b"x-amzn-lambda-context: " + CANARY.encode()],
    [b"Upgrade: websocket", b"Sec-WebSocket-Key: x", b"Sec-WebSocket-Version: 13"],
    [b"Upgrade: h2c", b"HTTP2-Settings: AAA"],
]
SMUGGLED = b"0\r\n\r\nGET /live HTTP/1.1\r\nHost: x\r\n\r\n"


async def test_heads_that_no_client_sends(port: int) -> None:
    targets = (b"GET /static/app.js HTTP/1.1", b"POST " + STOP + b"heads HTTP/1.1", b"POST " + CHAT + b"heads HTTP/1.1")
    every = [request(line) for line in ODD_LINES]
    every += [request(line, *odd, body=SMUGGLED) for line in targets for odd in ODD_HEADERS]
    for answer in await ask_all(port, every):
        # Each asks for one thing and then for the end: a second answer would be one to what was smuggled in.
        assert answer.count <= 1, answer.raw


async def test_an_upgrade_is_answered_without_one(port: int) -> None:
    for wanted in (b"websocket", b"h2c", CANARY.encode()):
        asked = request(b"GET /live HTTP/1.1", b"Connection: Upgrade", b"Upgrade: " + wanted, keep=True)
        answer = await ask(port, asked + b"\x81\x85" + b"\xff" * 100)
        answer.check()
        assert answer.status in (200, 400), answer.raw


async def test_a_head_that_does_not_end_is_cut_off(port: int, watched: Watched) -> None:
    """20 MB each, and the memory of the replica is looked at after it."""
    begun = b"GET /live HTTP/1.1\r\nHost: x\r\n"
    for bomb in (b"GET /" + b"a" * 20_000_000, begun + b"X-A: " + b"a" * 20_000_000, begun + b"X-A: a\r\n" * 2_500_000):
        answer = await ask(port, bomb)
        answer.check()
        assert answer.status in (0, 431)
    watched.check()


async def test_requests_sent_all_at_once_are_answered_one_by_one(port: int, times: Times) -> None:
    count = times(30, 1000)
    odd = [b"GET /live HTTP/1.1", b"GET /api/v1/chat/a%00 HTTP/1.1", b"PUT /live HTTP/1.1"]
    data = b"".join(request(odd[n % 3], keep=True) for n in range(count))
    answer = await ask(port, data + request(b"GET /none HTTP/1.1"), expect=count + 1)
    assert answer.count == count + 1
    statuses = [int(part[:3]) for part in answer.raw.split(b"HTTP/1.1 ")[1:]]
    assert statuses == [(200, 422, 405)[n % 3] for n in range(count)] + [404]


# ---- bodies
def _bodies() -> Iterator[bytes]:
    canary = CANARY.encode()
    deep = 100_000
    for opened, closed in ((b"[", b"]"), (b'{"a":', b"}")):
        yield opened * deep
        yield opened * deep + b"1" + closed * deep
    for number in (b"9" * 100_000, b"1e999", b"-1e999", b"NaN", b"-Infinity", b"1" + b"0" * 400, b"0." + b"1" * 50_000):
        yield b'{"message": %b}' % number
        yield b'{"message": "a", "more": %b}' % number
        yield b'{"message": "a", "run_id": %b}' % number
    for text in (
        b"",
        b" \\n\\t",
        b"\\ud800",
        b"\\udc00\\ud800",
        b"\xff",
        b"\xc0\xaf",
        b"\xed\xa0\x80",
        b"\x00",
        b"\\x",
    ):
        yield b'{"message": "%b"}' % text
        yield b'{"message": "%b", "run_id": "%b"}' % (canary, text)
    for run_id in (canary, b"..", b"8" * 26, b"O" * 26, b"0" * 25, b"0" * 100_000, b"\\u0000" * 26):
        yield b'{"message": "a", "run_id": "%b"}' % run_id
    for value in (b"null", b"[]", b"{}", b"true", b'["%b"]' % canary, b'{"%b": 1}' % canary):
        yield value
        yield b'{"message": %b}' % value
    yield b'{"message": "%b"}' % (b"a" * (MAX_MESSAGE_BYTES + 1))
    yield b'{"message": "%b"}' % ("é".encode() * (MAX_MESSAGE_BYTES // 2) + b"a")
    yield b'{"message": "%b"}' % (b"\\u00e9" * (MAX_MESSAGE_BYTES // 2 + 1))
    yield b'{"message": "a"}' + b" " * MAX_BODY_BYTES
    yield b'{%b, "message": ""}' % b",".join(b'"%d": 0' % n for n in range(20_000))
    yield b'{"message": "%b' % canary
    yield b"\xef\xbb\xbf" + b'{"message": "a"}'
    yield '{"message": "a"}'.encode("utf-16")
    yield gzip.compress(b'{"message": "a"}')
    yield gzip.compress(b"0" * 50_000_000)  # a bomb, if anybody unpacks it
    yield b"--x\r\nContent-Disposition: form-data; name=message\r\n\r\na\r\n--x--"


async def test_bodies_that_cannot_be_read_are_refused(port: int, rnd: random.Random, times: Times) -> None:
    every = list(_bodies())
    every = rnd.sample(every, times(30, len(every)))
    answers = await ask_all(port, [message(body, chat=b"body-%d" % n) for n, body in enumerate(every)])
    for body, answer in zip(every, answers, strict=True):  # a number that nobody asked for may be any that is finite
        refused = {413, 422} if b'"more": 0.1' not in body and b'"more": 10' not in body else {200}
        assert answer.status in refused, (body[:100], answer.raw)
    kinds = (b"text/plain", b"multipart/form-data; boundary=x", b"application/json\xff", b"", b"application/jsonp")
    for kind in kinds:
        line = b"POST " + CHAT + b"bodies HTTP/1.1"
        about = (b"Content-Type: " + kind, b"Content-Length: 16")
        answer = await ask(port, request(line, *about, body=b'{"message": "a"}'))
        answer.check()
        assert answer.status == 422, answer.raw


async def test_bulk_stops_that_cannot_be_read_are_refused(port: int) -> None:
    ids: list[Any] = [
        [],
        ["a"] * 1001,
        [CANARY + "/"],
        [".."],
        ["a\0"],
        ["a\n"],
        [{}],
        [["a"]],
        {"a": "a"},
        None,
        "a" * 128,
    ]
    bodies = [json.dumps({"chat_ids": wrong}).encode() for wrong in ids]
    line = b"POST " + STOP + b"bulk HTTP/1.1"
    every = [request(line, JSON, b"Content-Length: %d" % len(body), body=body) for body in bodies]
    assert {answer.status for answer in await ask_all(port, every)} == {422}


async def test_a_body_that_is_not_as_long_as_it_says(port: int) -> None:
    answer = await ask(port, message(b'{"message": "a"}', length=500), end=True)
    answer.check()
    assert answer.status in (0, 400)
    answer = await ask(port, message(b'{"message": "a"} and more', length=16))
    answer.check()
    assert answer.status == 200
    assert answer.count == 1


async def test_a_body_without_an_end_is_refused(port: int) -> None:
    chunk = b"10000\r\n" + b"a" * 0x10000 + b"\r\n"
    line = b"POST " + CHAT + b"endless HTTP/1.1"
    for body in (chunk * 100, b"1;" + b"a" * 5_000_000, b"1\r\n[\r\n" * 20_000, b"fffffffffffffffff\r\n", b"-1\r\na"):
        answer = await ask(port, request(line, JSON, b"Transfer-Encoding: chunked", body=body, keep=True), end=True)
        answer.check()
        assert answer.status in (0, 400, 413, 431), answer.raw  # 0: the reset was faster than the answer


# ---- ids
def _ids() -> Iterator[bytes]:
    for byte in range(256):
        yield b"a%b" % bytes([byte])
        yield b"a%%%02x" % byte
        yield b"%%%02Xa" % byte
    yield from (
        b"..",
        b".",
        b"%2e%2e",
        b"a/..",
        b"a%2f..%2f..%2fetc%2fpasswd",
        b"..%5c..",
        b"%2f",
        b"a%2fb",
        b"a%252fb",
    )
    yield from (
        b"%c0%af",
        b"%c0%ae%c0%ae",
        b"%e0%80%af",
        b"%f0%80%80%af",
        b"%ed%a0%80",
        b"%ff%fe",
        b"%u002e",
        b"%",
        b"%0",
    )
    yield from (
        b"a%00",
        b"%00",
        b"a%0aSet-Cookie:%20a",
        b"a%0d%0aX-A:%20a",
        b"bulk",
        b"all",
        b"BULK",
        b"-a",
        b"_a",
        b"",
    )
    yield from (b"a" * 128, b"a" * 129, b"a" * 50_000, b"%61" * 128, b"%61" * 129, b"a.json", b".locks", b"a;b", b"a?b")
    yield from (
        "ä".encode(),
        b"%E2%80%AE",
        b"con",
        b"nul",
        b"*",
        b"a%20",
        b"%20a",
        b"a+b",
        b"a,b",
        b"{a}",
        b"~",
    )


async def test_ids_with_every_byte_name_a_chat_or_nothing(port: int, rnd: random.Random, times: Times) -> None:
    routes = [
        (b"GET", CHAT, b""),
        (b"GET", CHAT, b"/messages"),
        (b"DELETE", CHAT, b""),
        (b"POST", STOP, b""),
        (b"POST", STOP, b"?run_id=" + b"0" * 26),
        (b"GET", b"/static/", b""),
        (b"POST", CHAT, b""),
    ]
    every = [(route, chat_id) for route in routes for chat_id in _ids()]
    every = rnd.sample(every, times(100, len(every)))
    body = b'{"message": "a"}'
    sent = []
    for (method, prefix, suffix), chat_id in every:
        line = method + b" " + prefix + chat_id + suffix + b" HTTP/1.1"
        about = (JSON, b"Content-Length: %d" % len(body)) if (method, prefix) == (b"POST", CHAT) else ()
        sent.append(request(line, *about, body=body if about else b""))
    answers = await ask_all(port, sent)
    for data, answer in zip(sent, answers, strict=True):
        assert answer.status in (200, 400, 404, 405, 409, 422), (data[:200], answer.raw)
        assert b"root:" not in answer.raw


# ---- what a query and a stamp may say
async def test_queries_full_of_garbage_are_refused(port: int) -> None:
    garbage = (
        CANARY.encode(),
        b"%00",
        b"%ff",
        b"-1",
        b"0",
        b"1e999",
        b"nan",
        b"inf",
        b"9" * 5000,
        b"1_0",
        b"%0a1",
        b"0x1",
    )
    asked = [b"GET /api/v1/chats?limit=" + g for g in (*garbage, b"201")]
    asked += [b"POST " + STOP + b"queries?wait=" + g for g in (*garbage, b"10.000001", b"-0", b"[]")]
    asked += [b"POST " + STOP + b"queries?run_id=" + g for g in (*garbage, b"8" * 26, b"0" * 27)]
    asked += [b"GET /api/v1/chats?status=" + g for g in garbage]
    asked += [b"GET /api/v1/chats?cursor=" + g for g in (*garbage, b"A" * 513, b"=" * 500)]
    for line, answer in zip(asked, await ask_all(port, [request(a + b" HTTP/1.1") for a in asked]), strict=True):
        assert answer.status == 422 or line.endswith((b"limit=1_0", b"wait=1_0", b"limit=%0a1", b"wait=%0a1")), (
            line,
            answer.raw,
        )


async def test_a_cursor_that_somebody_made_up_shows_a_page_or_is_refused(port: int) -> None:
    made_up = [b"1e308 a", b"-1 a", b"0 ", b"nan a", b"inf a", b"1 a b", b" ", b"1 \0", b"1 " + b"a" * 300, b"1_0 a"]
    asked = [
        b"GET /api/v1/chats?cursor=" + base64.urlsafe_b64encode(cursor).rstrip(b"=") + more + b" HTTP/1.1"
        for cursor in made_up
        for more in (b"", b"&status=running", b"&status=idle")
    ]
    assert {a.status for a in await ask_all(port, [request(line) for line in asked])} <= {200, 422}


STAMPS = [
    "t=-1",
    "t=NaN",
    "t=1e400",
    "t=99999999999.999999",
    "t=inf",
    "t=0",
    "t=00000000000",
    "t= 1",
    "",
    "t=²",
    "x" * 9999,
]


async def test_no_stamp_makes_a_run_that_cannot_be_stopped_or_a_stop_that_lasts(replica: Replica) -> None:
    async with http_client() as http:
        for stamp in (s.encode("latin-1") for s in STAMPS):
            chat, headers = new_chat("stamps"), {"X-Request-Start": stamp}
            async with live_run(http, replica, chat, LONG, headers=headers) as turn:
                assert (await stop(http, replica, chat, wait="5"))["status"] == "stopped", stamp
                assert (await turn.finish()).closing == [STOPPED]
            await stop(http, replica, chat, headers=headers)
            assert (await say(http, replica, chat, "and now?")).closing == [DONE], stamp


# ---- at random
async def test_requests_with_random_bytes_in_them(port: int, rnd: random.Random, times: Times) -> None:
    good = [
        message(b'{"message": "hello", "run_id": "01JD8X5W3ZJ7V5Q9T4N2M6K8R0"}'),
        request(b"POST " + STOP + b"random?wait=0.1 HTTP/1.1", b"X-Request-Start: t=1700000000.123"),
        request(b"GET /api/v1/chats?limit=5&status=idle&cursor=MSBh HTTP/1.1"),
        request(b"DELETE " + CHAT + b"random HTTP/1.1"),
        request(b"GET /static/app.js HTTP/1.1", b"Accept-Encoding: gzip", b"Range: bytes=0-10"),
        request(
            b"POST " + CHAT + b"random HTTP/1.1",
            JSON,
            b"Transfer-Encoding: chunked",
            body=b'10\r\n{"message": "a"}\r\n0\r\n\r\n',
        ),
    ]

    def spoilt() -> bytes:
        data = bytearray(rnd.choice(good))
        for _ in range(rnd.choice((1, 1, 2, 5, 20))):
            at = rnd.randrange(len(data))
            match rnd.randrange(4):
                case 0:
                    data[at] = rnd.randrange(256)
                case 1:
                    del data[at : at + rnd.randrange(1, 9)]
                case 2:
                    data[at:at] = rnd.randbytes(rnd.randrange(1, 9))
                case 3:
                    data[at:at] = data[rnd.randrange(len(data)) :][:20]
        return bytes(data)

    async def one() -> None:
        data = spoilt()
        try:
            # It may promise more than there is, so the end is said; a wait of up to 10 s is one that was asked for.
            (await ask(port, data, end=True)).check()
        except (AssertionError, TimeoutError) as error:
            error.add_note(f"the request was {data!r}")
            raise

    for _ in range(times(5, 250)):
        await asyncio.gather(*(one() for _ in range(16)))


# ---- slowly
@contextlib.asynccontextmanager
async def _slow(port: int, count: int, pause: float) -> AsyncIterator[list[asyncio.Task[bool]]]:
    """Half of them send a head, half a body, a byte each `pause` seconds. A task tells whether the server closed."""
    head = b"GET /live HTTP/1.1\r\nHost: x\r\nX-A: " + b"a" * 1000
    begun = message(b"", chat=b"slow", length=1000)

    connected = asyncio.Semaphore(0)

    async def one(n: int) -> bool:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        connected.release()
        if n % 2:
            writer.write(begun)
        ended = asyncio.create_task(reader.read(1))
        try:
            for byte in head:
                if writer.is_closing():
                    break
                writer.write(bytes([byte]))
                await asyncio.wait({ended}, timeout=pause)
                if ended.done():
                    break
            with contextlib.suppress(ConnectionError):
                return await ended == b""
            return True
        finally:
            ended.cancel()
            writer.close()

    tasks = [asyncio.create_task(one(n)) for n in range(count)]
    try:
        for _ in range(count):
            await connected.acquire()
        yield tasks
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _latency(replica: Replica, seconds: float) -> list[float]:
    """Seconds that an ordinary user's requests take."""
    found = []
    until = time.monotonic() + seconds
    async with http_client() as http:
        while time.monotonic() < until:
            begun = time.monotonic()
            assert (await http.get(f"{replica.url}/api/v1/chats")).status_code == 200
            found.append(time.monotonic() - begun)
        assert (await say(http, replica, new_chat("ordinary"), "hello")).closing == [DONE]
    return found


@pytest.mark.timeout(120)
async def test_slow_clients_keep_nobody_waiting(replica: Replica, port: int, times: Times) -> None:
    seconds, pause = (0.7, 0.4) if times(1, 0) else (20, 1.0)
    alone = await _latency(replica, min(seconds, 3))
    async with _slow(port, 200, pause) as slow:
        beside = await _latency(replica, seconds)
        ended = [task for task in slow if task.done()]
        if seconds > 15:  # as long as a head may take
            assert len(ended) >= 100
    print(f"median {median(alone) * 1000:.1f} ms alone, {median(beside) * 1000:.1f} ms beside 200 slow clients")
    assert median(beside) <= 5 * median(alone) + 0.1
    assert max(beside) < 5, "an ordinary request waited"
