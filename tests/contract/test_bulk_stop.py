"""Many chats stopped by one request."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx2 as httpx
import pytest
import redis.asyncio as redis

from tests.contract.client import DONE, LONG, STOPPED, live_run, messages_of, new_chat, said, say, script, sending
from tests.contract.conftest import NothingChanges
from tests.stack import Replica

HI = script(chunks=["Hello"])


def bulk_url(replica: Replica) -> str:
    return f"{replica.url}/api/v1/stop/bulk"


def verdicts(ids: list[str], status: str) -> list[dict[str, str]]:
    return [{"chat_id": chat, "status": status} for chat in ids]


async def bulk_stop(http: httpx.AsyncClient, replica: Replica, ids: list[str], **params: str) -> dict[str, Any]:
    answer = await http.post(bulk_url(replica), json={"chat_ids": ids}, params=params)
    assert answer.status_code == 200, answer.text
    assert answer.json().keys() == {"results", "total", "successful", "failed"}
    return answer.json()


@pytest.mark.parametrize("wait", [{}, {"wait": "5"}], ids=["no wait", "wait"])
async def test_fifty_live_chats_of_both_replicas_stop_at_once(
    http: httpx.AsyncClient, one: Replica, other: Replica, wait: dict[str, str]
) -> None:
    chats = [new_chat(f"bulk{n}") for n in range(50)]
    live, answered = asyncio.Barrier(51), asyncio.Event()
    message = script(chunks=["tick "], repeat=1000, pace_ms=60)

    async def run(n: int) -> tuple[str, list[tuple[str, str]]]:
        async with live_run(http, (one, other)[n % 2], chats[n], message) as turn:
            await live.wait()
            await answered.wait()
            await turn.finish(10)
            return turn.text, turn.closing

    async def stop_all() -> dict[str, Any]:
        await live.wait()
        try:
            return await bulk_stop(http, one, chats, **wait)
        finally:
            answered.set()

    answer, *turns = await asyncio.gather(stop_all(), *(run(n) for n in range(50)))
    status = "stopped" if wait else "accepted"
    assert [{k: r[k] for k in ("chat_id", "status")} for r in answer["results"]] == verdicts(chats, status)
    assert (answer["total"], answer["successful"], answer["failed"]) == (50, 50, 0)
    assert [closing for _, closing in turns] == [[STOPPED]] * 50
    kept = await asyncio.gather(*(messages_of(http, other, chat) for chat in chats))
    assert kept == [said(message, text, stopped=True) for text, _ in turns]


async def test_every_chat_gets_a_verdict_of_its_own_in_the_order_asked(
    http: httpx.AsyncClient, one: Replica, other: Replica
) -> None:
    live, used, unknown = new_chat("b"), new_chat("a"), new_chat("c")
    await say(http, one, used, HI)
    async with live_run(http, one, live) as turn:
        answer = await bulk_stop(http, other, [unknown, live, used], wait="5")
        assert (await turn.finish(5)).closing == [STOPPED]
    assert [(r["chat_id"], r["status"]) for r in answer["results"]] == [
        (unknown, "idle"),
        (live, "stopped"),
        (used, "idle"),
    ]
    assert answer["total"] == 3


async def test_a_bulk_stop_leaves_other_chats_alone(http: httpx.AsyncClient, one: Replica, other: Replica) -> None:
    named, unnamed = new_chat(), new_chat()
    async with (
        live_run(http, one, named) as turn,
        sending(http, other, unnamed, script(chunks=["tick "], repeat=50)) as bystander,
    ):
        await bystander.first_text()
        await bulk_stop(http, other, [named], wait="5")
        assert (await turn.finish(5)).closing == [STOPPED]
        await bystander.finish()
    assert (bystander.text, bystander.closing) == ("tick " * 50, [DONE])


async def test_a_bulk_stop_of_quiet_chats_is_stored(http: httpx.AsyncClient, one: Replica, bus: redis.Redis) -> None:
    ids = [new_chat() for _ in range(3)]
    assert await bulk_stop(http, one, ids) == {
        "results": verdicts(ids, "accepted"),
        "total": 3,
        "successful": 3,
        "failed": 0,
    }
    assert await bus.exists(*(f"stop:{chat}" for chat in ids)) == 3
    assert min([await bus.ttl(f"stop:{chat}") for chat in ids]) > 3500


async def test_a_chat_named_twice_is_stopped_like_any(http: httpx.AsyncClient, one: Replica) -> None:
    chat, quiet = new_chat(), new_chat()
    async with live_run(http, one, chat) as turn:
        answer = await bulk_stop(http, one, [chat, quiet, chat])
        assert (await turn.finish(5)).closing == [STOPPED]
    once = verdicts([chat, quiet], "accepted")
    assert answer["results"] in (once, [*once, once[0]])
    assert (answer["total"], answer["successful"], answer["failed"]) == (len(answer["results"]),) * 2 + (0,)
    assert await messages_of(http, one, chat) == said(LONG, turn.text, stopped=True)


@pytest.mark.parametrize("count", [1, 1000])
async def test_one_to_a_thousand_chats_may_be_named(http: httpx.AsyncClient, one: Replica, count: int) -> None:
    ids = [new_chat() for _ in range(count)]
    answer = await bulk_stop(http, one, ids)
    assert answer == {"results": verdicts(ids, "accepted"), "total": count, "successful": count, "failed": 0}


BAD_BODIES: dict[str, Any] = {
    "no ids": {"chat_ids": []},
    "1001 ids": {"chat_ids": [f"many{n}" for n in range(1001)]},
    "1001 times one id": {"chat_ids": ["same"] * 1001},
    "no field": {},
    "null": {"chat_ids": None},
    "word": {"chat_ids": "abc"},
    "object": {"chat_ids": {"a": "b"}},
    "numbers": {"chat_ids": ["good", 5]},
    "lists": {"chat_ids": [["good"]]},
    "null inside": {"chat_ids": ["good", None]},
    "a list for a body": ["good"],
    "empty id": {"chat_ids": ["good", ""]},
    "path": {"chat_ids": ["good", "../x"]},
    "slash": {"chat_ids": ["good", "a/b"]},
    "space": {"chat_ids": ["good", "a b"]},
    "line break last": {"chat_ids": ["good", "a\n"]},
    "NUL": {"chat_ids": ["good", "a\x00"]},
    "unicode": {"chat_ids": ["good", "é"]},
    "fullwidth digit": {"chat_ids": ["good", "a１"]},
    "129 characters": {"chat_ids": ["good", "a" * 129]},
    "dot first": {"chat_ids": ["good", ".x"]},
    "dash first": {"chat_ids": ["good", "-x"]},
    "glob": {"chat_ids": ["*"]},
    "bulk": {"chat_ids": ["good", "bulk"]},
    "all": {"chat_ids": ["good", "all"]},
}


@pytest.mark.parametrize("body", BAD_BODIES.values(), ids=BAD_BODIES.keys())
async def test_a_bulk_stop_that_is_wrong_in_part_does_nothing(
    http: httpx.AsyncClient, one: Replica, nothing_changes: NothingChanges, body: Any
) -> None:
    async with nothing_changes():
        answer = await http.post(bulk_url(one), json=body)
        assert (answer.status_code, answer.json().keys()) == (422, {"detail"})
        assert answer.headers["x-replica"] == one.name


UNREADABLE = {
    "empty": b"",
    "not JSON": b"chat_ids=a",
    "bad UTF-8": b'{"chat_ids": ["\xff"]}',
    "lone surrogate": b'{"chat_ids": ["\\ud800"]}',
    "NaN": b'{"chat_ids": [NaN]}',
    "NaN aside": b'{"chat_ids": ["good"], "x": NaN}',
    "1e999": b'{"chat_ids": [1e999]}',
    "nested 100,000 deep": b'{"chat_ids": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "5,000 digits": b'{"chat_ids": [' + b"9" * 5000 + b"]}",
}


@pytest.mark.parametrize("data", UNREADABLE.values(), ids=UNREADABLE.keys())
async def test_a_bulk_stop_nobody_can_read_is_refused(
    http: httpx.AsyncClient, one: Replica, nothing_changes: NothingChanges, data: bytes
) -> None:
    async with nothing_changes():
        answer = await http.post(bulk_url(one), content=data, headers={"Content-Type": "application/json"})
        assert (answer.status_code, answer.json().keys()) == (422, {"detail"})


@pytest.mark.parametrize("wait", ["0", "11", "-1", "nan", "x", ""])
async def test_a_wait_out_of_bounds_is_refused(
    http: httpx.AsyncClient, one: Replica, nothing_changes: NothingChanges, wait: str
) -> None:
    async with nothing_changes():
        answer = await http.post(bulk_url(one), json={"chat_ids": [new_chat()]}, params={"wait": wait})
        assert (answer.status_code, answer.json().keys()) == (422, {"detail"})


async def test_bulk_and_all_are_never_taken_for_chats(
    http: httpx.AsyncClient, one: Replica, bus: redis.Redis, nothing_changes: NothingChanges
) -> None:
    async with nothing_changes():
        answer = await http.post(bulk_url(one))
        assert (answer.status_code, answer.json().keys()) == (422, {"detail"})
        everything = await http.post(f"{one.url}/api/v1/stop/all")
        assert "Stop signal sent for chat all" not in everything.text
        assert everything.json().get("chat_id") is None
        assert everything.status_code < 500
    assert await bus.exists("stop:bulk", "stop:all") == 0
