"""What the front door does to a request and to a stream."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import httpx2 as httpx
import pytest

from haltline.inputs import MAX_BODY_BYTES
from tests.contract.client import STOPPED, messages_of, say, script, sending, stop_url, until
from tests.e2e.live import LONG, start
from tests.e2e.stack import REPLICAS, Door, access_log, docker, log_of, now, wait_until_healthy
from tests.fake_bedrock import RunningFakeBedrock

VICTIM = "backend2"
# Freezes the replica, not the init above it: connections are let in and nothing is read.
FREEZE = (
    "import os, pathlib, signal\n"
    "found = [p.parent.name for p in pathlib.Path('/proc').glob('[0-9]*/cmdline')"
    " if p.read_bytes().split(b'\\0')[:3] == [b'python', b'-m', b'haltline']]\n"
    "os.kill(int(found[0]), signal.SIGSTOP)"
)


@pytest.fixture
def frozen() -> Iterator[str]:
    docker("exec", VICTIM, "python", "-c", FREEZE)
    yield VICTIM
    docker("restart", "--time", "0", VICTIM)
    wait_until_healthy(*REPLICAS)


async def test_a_stream_is_passed_on_as_it_comes(door: Door, http: httpx.AsyncClient, chats: Any) -> None:
    chunks = [f"w{n} " for n in range(10)]
    turn = await say(http, door, chats("pace"), script(chunks=chunks, pace_ms=100))
    at = [event.at for event in turn.events]
    assert turn.text == "".join(chunks)
    assert at[len(chunks) - 1] - at[0] > 0.6  # nine pauses of 100 ms; held back it would come at once
    assert "content-length" not in turn.headers
    assert turn.headers["cache-control"] == "no-cache, no-transform"


async def test_a_silent_stream_is_kept_open_by_pings(door: Door, http: httpx.AsyncClient, chats: Any) -> None:
    message = script(text="at last", delay_ms=17_000, pace_ms=1)
    async with sending(http, door, chats("silent"), message) as turn:
        await turn.finish(40)
    assert (turn.text, turn.closing, turn.comments) == ("at last", [("done", "[DONE]")], ["ping"])


async def test_a_client_that_leaves_ends_its_run(
    door: Door, http: httpx.AsyncClient, bedrock: RunningFakeBedrock, chats: Any
) -> None:
    live = await start(http, door, chats("leaves"))
    live.reading.cancel()
    line = await asyncio.to_thread(bedrock.wait_for, lambda line: line.get("name") == live.name and "phase" in line)
    assert line["event"] == "closed"

    async def kept() -> bool:
        return (await messages_of(http, door, live.chat_id))[-1].get("stopped", False)

    await until(kept)


async def test_the_time_of_arrival_is_nginx_own(door: Door, http: httpx.AsyncClient, chats: Any) -> None:
    """A stop that said it was sent an hour ago would spare the run."""
    live = await start(http, door, chats("stamp"))
    stale = {"X-Request-Start": f"t={time.time() - 3600:.3f}"}
    assert (await http.post(stop_url(door, live.chat_id), headers=stale)).status_code == 200
    assert (await live.ended()).closing == [STOPPED]


async def test_a_message_arrives_when_its_head_does(door: Door, http: httpx.AsyncClient, chats: Any) -> None:
    """A stop that comes while the body is still on its way is meant for this message."""
    chat_id, body = chats("slow-body"), json.dumps({"message": script(**LONG)}).encode()
    url = urlsplit(door.url)
    reader, writer = await asyncio.open_connection(url.hostname, url.port)
    head = f"POST /api/v1/chat/{chat_id} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nConnection: close\r\n"
    writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body[:10])
    await writer.drain()
    await asyncio.sleep(0.2)  # the two come over connections of their own: nothing else tells that Nginx has read it
    assert (await http.post(stop_url(door, chat_id))).json()["status"] == "accepted"
    writer.write(body[10:])
    answer = await asyncio.wait_for(reader.read(), 20)
    writer.close()
    assert b"data: [STOPPED]" in answer
    assert b"on and on" not in answer


@pytest.mark.parametrize(
    ("size", "by"), [(MAX_BODY_BYTES, "backend"), (MAX_BODY_BYTES + 1, "nginx"), (3 * MAX_BODY_BYTES, "nginx")]
)
async def test_bodies_that_are_too_large_are_answered_as_by_the_api(
    door: Door, http: httpx.AsyncClient, chats: Any, size: int, by: str
) -> None:
    body = b'{"message": "' + b"a" * (size - 15) + b'"}'
    headers = {"Content-Type": "application/json"}
    answer = await http.post(f"{door.url}/api/v1/chat/{chats('large')}", content=body, headers=headers)
    assert answer.status_code == 413
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-replica"].startswith(by)
    assert set(answer.json()) == {"detail"}


@pytest.mark.parametrize(
    ("raw", "status"),
    [
        ("GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n", 400),
        ("GET /api/v1/chat/50% HTTP/1.1\r\nHost: x\r\n", 400),
        ("GET /api/v1/chat/a%00b HTTP/1.1\r\nHost: x\r\n", 400),
        ("GET /../../etc/passwd HTTP/1.1\r\nHost: x\r\n", 400),
        (f"GET /{'a' * 40_000} HTTP/1.1\r\nHost: x\r\n", 414),
        (f"GET / HTTP/1.1\r\nHost: x\r\nX-Large: {'a' * 40_000}\r\n", 400),
        ("TRACE / HTTP/1.1\r\nHost: x\r\n", 405),
        ("POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip, chunked\r\n", 501),
        ("GET / HTTP/2.0\r\nHost: x\r\n", 505),
        ("GET /.nginx/refused HTTP/1.1\r\nHost: x\r\n", 404),
        ("POST /api/v1/stop HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n", 404),
    ],
)
async def test_every_error_is_told_as_the_api_does(door: Door, raw: str, status: int) -> None:
    url = urlsplit(door.url)
    reader, writer = await asyncio.open_connection(url.hostname, url.port)
    writer.write(f"{raw}Connection: close\r\n\r\n".encode())
    head, _, body = (await asyncio.wait_for(reader.read(), 20)).decode().partition("\r\n\r\n")
    writer.close()
    headers = dict(line.lower().split(": ", 1) for line in head.splitlines()[1:])
    assert head.split()[1] == str(status), head
    assert headers["content-type"] == "application/json"
    assert headers["x-replica"]
    assert set(json.loads(body)) == {"detail"}


async def test_an_answer_names_one_replica(door: Door, http: httpx.AsyncClient) -> None:
    answer = await http.get(f"{door.url}/live")
    assert answer.headers.get_list("x-replica") in ([name] for name in REPLICAS)


async def test_a_message_that_reached_a_replica_goes_to_no_other_and_a_stop_does(
    door: Door, http: httpx.AsyncClient, chats: Any, frozen: str
) -> None:
    since = now()
    lost = chats("once")
    held: list[asyncio.Task[httpx.Response]] = []
    # By turns one of three requests goes to the frozen replica, and is held there.
    for _ in range(3):
        message = {"message": script(text="hello", pace_ms=1)}
        held.append(asyncio.create_task(http.post(f"{door.url}/api/v1/chat/{lost}", json=message)))
        await asyncio.wait(held, timeout=1)
    stops = [asyncio.create_task(http.post(stop_url(door, lost))) for _ in range(6)]
    done, waiting = await asyncio.wait(stops, timeout=1)
    assert done
    assert waiting
    await asyncio.to_thread(docker, "kill", frozen)
    statuses = sorted([answer.status_code for answer in await asyncio.wait_for(asyncio.gather(*held), 20)])
    assert statuses == [200, 200, 502]
    assert [answer.status_code for answer in await asyncio.wait_for(asyncio.gather(*stops), 20)] == [200] * 6
    asked = [message["text"] for message in await messages_of(http, door, lost) if message["role"] == "user"]
    assert len(asked) == 2
    lines = [line for line in access_log(since) if lost in line["uri"] and line["method"] == "POST"]
    tried = [line for line in lines if line["uri"].startswith("/api/v1/chat/") and line["status"] == 502]
    assert len(tried) == 1
    assert "," not in tried[0]["upstream"]
    assert any("," in line["upstream"] for line in lines if line["uri"].startswith("/api/v1/stop/"))


async def test_the_access_log_tells_replica_run_and_times(door: Door, http: httpx.AsyncClient, chats: Any) -> None:
    since, chat_id = now(), chats("log")
    turn = await say(http, door, chat_id, script(text="hello", pace_ms=1))

    async def logged() -> Any:
        return [line for line in await asyncio.to_thread(access_log, since) if chat_id in line["uri"]]

    (line,) = await until(logged, 10)
    assert (line["status"], line["replica"], line["run_id"]) == (200, turn.headers["x-replica"], turn.run_id)
    assert 0 <= float(line["upstream_header_seconds"]) <= float(line["upstream_seconds"]) < 20
    replica_log = "\n".join(await asyncio.to_thread(log_of, line["replica"], "--since", since))
    assert chat_id in replica_log
    assert "hello" not in replica_log
