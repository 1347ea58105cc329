"""A chat has at most one live run: 409, `?if_running=stop`, run ids, many at once."""

from __future__ import annotations

import asyncio

import httpx2 as httpx
import pytest

from tests.contract.client import (
    DONE,
    LONG,
    STOPPED,
    chat_url,
    live_run,
    messages_of,
    new_chat,
    new_run,
    said,
    say,
    script,
    sending,
    status_of,
    stop,
)
from tests.contract.conftest import NothingChanges
from tests.stack import Replica

HI = script(chunks=["Hello"])


@pytest.mark.parametrize("through", ["the same replica", "the other replica"])
async def test_a_second_message_to_a_live_chat_is_refused_and_harms_nothing(
    http: httpx.AsyncClient, one: Replica, other: Replica, through: str
) -> None:
    chat = new_chat()
    replica = one if through == "the same replica" else other
    async with live_run(http, one, chat) as turn:
        answer = await http.post(chat_url(replica, chat), json={"message": HI})
        assert (answer.status_code, answer.json().keys()) == (409, {"detail"})
        assert answer.headers["x-replica"] == replica.name
        seen = turn.text
        await turn.until(lambda t: len(t.text) > len(seen))
        await stop(http, one, chat)
        await turn.finish()
    assert turn.closing == [STOPPED]
    assert await messages_of(http, one, chat) == said(LONG, turn.text, stopped=True)


@pytest.mark.parametrize("through", ["the same replica", "the other replica"])
async def test_if_running_stop_stops_the_live_run_and_starts(
    http: httpx.AsyncClient, one: Replica, other: Replica, through: str
) -> None:
    chat = new_chat()
    replica = one if through == "the same replica" else other
    async with live_run(http, one, chat) as first:
        second = await say(http, replica, chat, HI, params={"if_running": "stop"})
        await first.finish()
    assert (first.closing, second.status, second.text, second.closing) == ([STOPPED], 200, "Hello", [DONE])
    assert await messages_of(http, one, chat) == said(LONG, first.text, stopped=True) + said(HI, "Hello")


async def test_if_running_stop_on_a_quiet_chat_just_starts(http: httpx.AsyncClient, one: Replica) -> None:
    chat = new_chat()
    for _ in range(2):
        turn = await say(http, one, chat, HI, params={"if_running": "stop"})
        assert (turn.status, turn.text, turn.closing) == (200, "Hello", [DONE])


@pytest.mark.parametrize("value", ["wait", "STOP", "", "1"])
async def test_if_running_knows_no_other_word(
    http: httpx.AsyncClient, one: Replica, nothing_changes: NothingChanges, value: str
) -> None:
    chat = new_chat()
    async with nothing_changes():
        answer = await http.post(chat_url(one, chat), json={"message": HI}, params={"if_running": value})
        assert (answer.status_code, answer.json().keys()) == (422, {"detail"})


BAD_RUN_IDS = {
    "word": "run",
    "empty": "",
    "25 characters": "01K9QY4C8V7T6S5R4Q3P2N1M0",
    "27 characters": "01K9QY4C8V7T6S5R4Q3P2N1M0ZZ",
    "no letter U": "01K9QY4C8V7T6S5R4Q3P2N1M0U",
    "too great": "8ZZZZZZZZZZZZZZZZZZZZZZZZZ",
    "UUID": "0198f3a2-5b1c-7d3e-8f4a-5b6c7d8e9f0a",
    "line break last": "01K9QY4C8V7T6S5R4Q3P2N1M0Z\n",
    "space first": " 01K9QY4C8V7T6S5R4Q3P2N1M0Z",
    "fullwidth": "０１K9QY4C8V7T6S5R4Q3P2N1M0Z",
    "number": 5,
    "float": 1.5,
    "true": True,
    "list": ["01K9QY4C8V7T6S5R4Q3P2N1M0Z"],
    "object": {},
}


@pytest.mark.parametrize("run_id", BAD_RUN_IDS.values(), ids=BAD_RUN_IDS.keys())
async def test_a_run_id_that_is_no_ulid_is_refused(
    http: httpx.AsyncClient, one: Replica, nothing_changes: NothingChanges, run_id: object
) -> None:
    async with nothing_changes():
        answer = await http.post(chat_url(one, new_chat()), json={"message": HI, "run_id": run_id})
        assert (answer.status_code, answer.json().keys()) == (422, {"detail"})


async def test_a_request_sent_twice_runs_once(http: httpx.AsyncClient, one: Replica, other: Replica) -> None:
    chat, run_id = new_chat(), new_run()
    async with live_run(http, one, chat, run_id=run_id) as turn:
        again = await http.post(chat_url(other, chat), json={"message": LONG, "run_id": run_id})
        assert again.status_code == 409
        await stop(http, one, chat)
        await turn.finish()
    assert await messages_of(http, one, chat) == said(LONG, turn.text, stopped=True)


async def test_a_request_sent_again_after_its_run_ended_does_not_run_again(
    http: httpx.AsyncClient, one: Replica, other: Replica
) -> None:
    chat, run_id = new_chat(), new_run()
    await say(http, one, chat, HI, run_id=run_id)
    for replica in (one, other):
        again = await http.post(chat_url(replica, chat), json={"message": HI, "run_id": run_id})
        assert again.status_code in (409, 422)
        assert again.json().keys() == {"detail"}
    assert await messages_of(http, one, chat) == said(HI, "Hello")
    assert (await say(http, one, chat, HI)).closing == [DONE]


async def test_a_run_id_used_in_two_chats_does_not_mix_them_up(
    http: httpx.AsyncClient, one: Replica, other: Replica
) -> None:
    first, second, run_id = new_chat(), new_chat(), new_run()
    async with live_run(http, one, first, run_id=run_id) as turn, live_run(http, other, second, run_id=run_id) as twin:
        assert (await stop(http, other, first, run_id=run_id, wait="5"))["status"] == "stopped"
        assert (await turn.finish()).closing == [STOPPED]
        seen = twin.text
        await twin.until(lambda t: len(t.text) > len(seen) + 20)
        assert twin.closing == []
        assert (await status_of(http, one, second))["status"] == "running"
        await stop(http, one, second, run_id=run_id)
        assert (await twin.finish()).closing == [STOPPED]


async def test_of_a_hundred_messages_at_once_one_runs(http: httpx.AsyncClient, one: Replica, other: Replica) -> None:
    chat = new_chat()
    answered: list[int] = []
    all_answered = asyncio.Event()

    async def send(n: int) -> list[tuple[str, str]]:
        async with sending(http, (one, other)[n % 2], chat, LONG) as turn:
            answered.append(turn.status)
            if len(answered) == 100:
                all_answered.set()
            if turn.status != 200:
                return []
            await turn.first_text()
            await all_answered.wait()
            await stop(http, one, chat)
            return (await turn.finish()).closing

    closings = await asyncio.gather(*(send(n) for n in range(100)))
    assert sorted(answered) == [200] + [409] * 99
    assert [c for c in closings if c] == [[STOPPED]]
    [question, answer] = await messages_of(http, one, chat)
    assert (question["role"], question["text"], answer["role"], answer["stopped"]) == ("user", LONG, "assistant", True)


async def test_twenty_chats_stream_side_by_side(http: httpx.AsyncClient, one: Replica, other: Replica) -> None:
    chats = [new_chat() for _ in range(20)]
    all_speak = asyncio.Barrier(21)

    async def send(n: int) -> tuple[str, str, list[tuple[str, str]]]:
        async with sending(http, (one, other)[n % 2], chats[n], script(chunks=[f"{n}, "], repeat=100)) as turn:
            await turn.first_text()
            await all_speak.wait()
            await turn.finish()
            return turn.run_id, turn.text, turn.closing

    async def look() -> set[str]:
        await all_speak.wait()
        running = await http.get(f"{one.url}/api/v1/chats", params={"status": "running"})
        return {c["chat_id"] for c in running.json()["chats"]}

    running, *answers = await asyncio.gather(look(), *(send(n) for n in range(20)))
    assert running == set(chats)
    assert [answer[1:] for answer in answers] == [(f"{n}, " * 100, [DONE]) for n in range(20)]
    assert len({run_id for run_id, _, _ in answers}) == 20
