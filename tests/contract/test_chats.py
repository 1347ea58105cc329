"""Chats as resources: status, transcript, the list, deletion."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import datetime
from typing import Any

import httpx2 as httpx
import pytest

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
    status_of,
    stop,
)
from tests.stack import Replica, Stack

HI = script(chunks=["Hello", " there"], pace_ms=0)


async def list_chats(http: httpx.AsyncClient, replica: Replica, **params: Any) -> dict[str, Any]:
    answer = await http.get(f"{replica.url}/api/v1/chats", params=params)
    assert answer.status_code == 200, answer.text
    body = answer.json()
    assert body.keys() == {"chats", "count", "next_cursor"}
    assert {frozenset(c) for c in body["chats"]} <= {frozenset({"chat_id", "status", "message_count", "updated_at"})}
    return body


async def pages(http: httpx.AsyncClient, replica: Replica, **params: Any) -> AsyncIterator[list[dict[str, Any]]]:
    """Every page, by the cursor."""
    cursor: dict[str, Any] = {}
    while True:
        body = await list_chats(http, replica, **params, **cursor)
        yield body["chats"]
        if body["next_cursor"] is None:
            return
        cursor = {"cursor": body["next_cursor"]}


async def all_chats(http: httpx.AsyncClient, replica: Replica, **params: Any) -> list[dict[str, Any]]:
    return [chat async for page in pages(http, replica, **params) for chat in page]


def moment(value: str | float) -> float:
    """`updated_at` as a number, be it written as one or as ISO 8601."""
    return datetime.fromisoformat(value).timestamp() if isinstance(value, str) else value


# ---- one chat


async def test_a_chat_nobody_used_is_new(http: httpx.AsyncClient, one: Replica) -> None:
    chat = new_chat()
    body = await status_of(http, one, chat)
    assert body.items() >= {"chat_id": chat, "status": "new", "message_count": 0}.items()
    assert await messages_of(http, one, chat) == []


async def test_to_look_at_a_chat_does_not_make_it(http: httpx.AsyncClient, one: Replica) -> None:
    chat = new_chat()
    await status_of(http, one, chat)
    await messages_of(http, one, chat)
    assert chat not in {c["chat_id"] for c in await all_chats(http, one, limit=200)}


async def test_every_replica_shows_the_same_of_a_chat(http: httpx.AsyncClient, one: Replica, other: Replica) -> None:
    chat = new_chat()
    async with live_run(http, one, chat) as turn:
        for replica in (one, other):
            body = await status_of(http, replica, chat)
            assert body.items() >= {"chat_id": chat, "status": "running"}.items()
        await stop(http, one, chat)
        await turn.finish()
    await say(http, other, chat, HI)
    for replica in (one, other):
        body = await status_of(http, replica, chat)
        assert body.items() >= {"chat_id": chat, "status": "idle", "message_count": 4}.items()


async def test_the_transcript_tells_who_said_what(http: httpx.AsyncClient, one: Replica, other: Replica) -> None:
    chat = new_chat()
    second = "  What now?\n\nTwo\r\nlines, ünïcode 🛑 e\u0301\t\n" + script(chunks=["a\nb"])
    for replica, message in ((one, HI), (other, second)):
        assert (await say(http, replica, chat, message)).closing == [DONE]
    expected = said(HI, "Hello there") + said(second, "a\nb")
    assert await messages_of(http, one, chat) == expected
    assert await messages_of(http, other, chat) == expected


async def test_the_transcript_is_whole_however_long(http: httpx.AsyncClient, one: Replica) -> None:
    chat = new_chat()
    turns = [(script(chunks=[f"answer {n}"], pace_ms=0), f"answer {n}") for n in range(45)]
    for message, _ in turns:
        await say(http, one, chat, message)
    assert await messages_of(http, one, chat) == [entry for turn in turns for entry in said(*turn)]
    assert (await status_of(http, one, chat))["message_count"] == 90


@pytest.mark.parametrize("length", [1, 128])
async def test_ids_may_use_all_that_is_allowed(http: httpx.AsyncClient, one: Replica, length: int) -> None:
    unique = new_chat().removeprefix("chat-")
    chat = {1: "Z", 128: f"0aZ._-{unique}".ljust(128, "9")}[length]
    turn = await say(http, one, chat, HI)
    assert (turn.status, turn.closing) == (200, [DONE])
    assert (await messages_of(http, one, chat))[-2:] == said(HI, "Hello there")


async def test_ids_that_differ_a_little_are_chats_apart(http: httpx.AsyncClient, one: Replica) -> None:
    base = new_chat("apart")
    ids = [base, base.upper(), f"{base}.", f"{base}..", f"{base}.json", f"{base}-1", f"{base}_1"]
    for chat in ids:
        await say(http, one, chat, script(chunks=[chat], pace_ms=0))
    texts = {chat: [m["text"] for m in await messages_of(http, one, chat) if m["role"] == "assistant"] for chat in ids}
    assert texts == {chat: [chat] for chat in ids}


# ---- the list


async def test_the_list_begins_with_the_newest(http: httpx.AsyncClient, one: Replica, other: Replica) -> None:
    chats = [new_chat(f"list{n}") for n in range(3)]
    for chat in chats:
        await say(http, one, chat, HI)
    await say(http, other, chats[0], HI)
    body = await list_chats(http, other, limit=3)
    assert [{k: c[k] for k in ("chat_id", "status", "message_count")} for c in body["chats"]] == [
        {"chat_id": chats[0], "status": "idle", "message_count": 4},
        {"chat_id": chats[2], "status": "idle", "message_count": 2},
        {"chat_id": chats[1], "status": "idle", "message_count": 2},
    ]
    moments = [moment(c["updated_at"]) for c in await all_chats(http, one, limit=200)]
    assert moments == sorted(moments, reverse=True)


async def test_count_is_the_total_whatever_the_page(http: httpx.AsyncClient, one: Replica) -> None:
    before = (await list_chats(http, one))["count"]
    for _ in range(2):
        await say(http, one, new_chat(), HI)
    assert [(await list_chats(http, one, limit=limit))["count"] for limit in (1, 200)] == [before + 2] * 2
    assert len(await all_chats(http, one, limit=200)) == before + 2


@pytest.mark.parametrize("limit", [3, 7, 200, None], ids=str)
async def test_paging_shows_every_chat_once(http: httpx.AsyncClient, one: Replica, limit: int | None) -> None:
    fresh = [new_chat() for _ in range(8)]
    await asyncio.gather(*(say(http, one, chat, HI) for chat in fresh))
    sizes, seen = [], []
    async for page in pages(http, one, **({} if limit is None else {"limit": limit})):
        sizes.append(len(page))
        seen += [c["chat_id"] for c in page]
    count = (await list_chats(http, one))["count"]
    assert len(seen) == len(set(seen)) == count
    assert set(fresh) <= set(seen)
    assert [size for size in sizes[:-1] if size != (limit or 50)] == []
    assert 1 <= sizes[-1] <= (limit or 50)


async def test_paging_shows_nothing_twice_while_chats_are_added(http: httpx.AsyncClient, one: Replica) -> None:
    old = [new_chat() for _ in range(6)]
    for chat in old:
        await say(http, one, chat, HI)
    seen = []
    async for page in pages(http, one, limit=2):
        seen += [c["chat_id"] for c in page]
        if len(seen) <= 6:
            await say(http, one, new_chat(), HI)
    assert len(seen) == len(set(seen))
    assert [chat for chat in seen if chat in old] == old[::-1]


async def test_the_list_filters_by_status(http: httpx.AsyncClient, one: Replica, other: Replica) -> None:
    quiet, live = new_chat(), new_chat()
    await say(http, one, quiet, HI)
    async with live_run(http, one, live) as turn:
        running = await list_chats(http, other, status="running")
        assert [(c["chat_id"], c["status"]) for c in running["chats"]] == [(live, "running")]
        idle = await all_chats(http, other, status="idle", limit=200)
        assert {c["status"] for c in idle} == {"idle"}
        assert quiet in {c["chat_id"] for c in idle}
        assert live not in {c["chat_id"] for c in idle}
        everything = {c["chat_id"]: c["status"] for c in await all_chats(http, other, limit=200)}
        assert (everything[quiet], everything[live]) == ("idle", "running")
        await stop(http, one, live)
        await turn.finish()
    assert (await list_chats(http, other, status="running"))["chats"] == []


async def test_a_filtered_list_pages_too(http: httpx.AsyncClient, one: Replica) -> None:
    for _ in range(3):
        await say(http, one, new_chat(), HI)
    idle = [c["chat_id"] for c in await all_chats(http, one, status="idle", limit=2)]
    assert len(idle) == len(set(idle))
    assert set(idle) == {c["chat_id"] for c in await all_chats(http, one, status="idle", limit=200)}


BAD_QUERIES = {
    "limit 0": "limit=0",
    "limit 201": "limit=201",
    "limit -1": "limit=-1",
    "limit word": "limit=many",
    "limit fraction": "limit=1.5",
    "limit huge": "limit=" + "9" * 5000,
    "cursor word": "cursor=nonsense",
    "cursor NUL": "cursor=%00",
    "cursor bad UTF-8": "cursor=%FF%FE",
    "cursor path": "cursor=..%2F..%2Fetc%2Fpasswd",
    "cursor base64 of nothing known": "cursor=eyJhIjoxfQ==",
    "cursor long": "cursor=" + "x" * 5000,
    "status word": "status=sleeping",
    "status shouted": "status=RUNNING",
}


@pytest.mark.parametrize("query", BAD_QUERIES.values(), ids=BAD_QUERIES.keys())
async def test_a_list_asked_for_wrongly_is_refused(http: httpx.AsyncClient, one: Replica, query: str) -> None:
    answer = await http.get(f"{one.url}/api/v1/chats?{query}")
    assert (answer.status_code, answer.json().keys()) == (422, {"detail"})


# ---- deletion


async def test_a_deleted_chat_is_as_if_it_had_never_been(
    http: httpx.AsyncClient, one: Replica, other: Replica, stack: Stack
) -> None:
    chat, secret = new_chat(), new_chat("secret")
    await say(http, one, chat, script(chunks=[secret]))
    answer = await http.delete(chat_url(other, chat))
    assert (answer.status_code, answer.json()) == (200, {"status": "deleted", "chat_id": chat})
    for replica in (one, other):
        body = await status_of(http, replica, chat)
        assert body.items() >= {"chat_id": chat, "status": "new", "message_count": 0}.items()
        assert await messages_of(http, replica, chat) == []
        assert chat not in {c["chat_id"] for c in await all_chats(http, replica, limit=200)}
    assert [p for p in stack.session_dir.rglob("*") if p.is_file() and secret.encode() in p.read_bytes()] == []


async def test_a_deleted_chat_can_begin_anew(http: httpx.AsyncClient, one: Replica, other: Replica) -> None:
    chat = new_chat()
    await say(http, one, chat, script(chunks=["before"]))
    await http.delete(chat_url(one, chat))
    assert (await say(http, other, chat, HI)).closing == [DONE]
    assert await messages_of(http, one, chat) == said(HI, "Hello there")


async def test_there_is_nothing_to_delete_twice(http: httpx.AsyncClient, one: Replica) -> None:
    chat = new_chat()
    answer = await http.delete(chat_url(one, chat))
    assert (answer.status_code, answer.json().keys()) == (404, {"detail"})
    await say(http, one, chat, HI)
    assert [(await http.delete(chat_url(one, chat))).status_code for _ in range(2)] == [200, 404]


async def test_a_live_run_is_stopped_before_its_chat_is_deleted(
    http: httpx.AsyncClient, one: Replica, other: Replica
) -> None:
    chat = new_chat()
    async with live_run(http, one, chat) as turn:
        answer = await http.delete(chat_url(other, chat))
        assert (answer.status_code, answer.json()) == (200, {"status": "deleted", "chat_id": chat})
        body = await status_of(http, other, chat)
        assert body.items() >= {"chat_id": chat, "status": "new", "message_count": 0}.items()
        assert (await turn.finish()).closing == [STOPPED]
    for replica in (one, other):
        assert (await status_of(http, replica, chat))["status"] == "new"
        assert await messages_of(http, replica, chat) == []


async def test_a_deletion_touches_no_other_chat(http: httpx.AsyncClient, one: Replica) -> None:
    chat = new_chat()
    neighbour = f"{chat}.x"
    for each in (chat, neighbour):
        await say(http, one, each, HI)
    await http.delete(chat_url(one, chat))
    assert await messages_of(http, one, neighbour) == said(HI, "Hello there")
