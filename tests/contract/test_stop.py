"""A stop through any replica: what it answers, what it does to the run, what it leaves behind."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import httpx2 as httpx
import pytest
import redis.asyncio as redis

from tests.contract.client import (
    DONE,
    LONG,
    STOPPED,
    Turn,
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
    stop_url,
    until,
)
from tests.contract.conftest import NothingChanges
from tests.stack import Replica

HI = script(chunks=["Hello"])
THROUGH = pytest.mark.parametrize("through", ["the owner", "the other replica"])


def accepted(chat: str) -> dict[str, str]:
    return {
        "chat_id": chat,
        "status": "accepted",
        "message": f"Stop signal sent for chat {chat}. Agent will halt shortly.",
    }


def assert_stopped(answer: dict[str, Any], turn: Turn, chat: str) -> None:
    """What `?wait` says of a run that its owner halted."""
    assert answer.items() >= {"chat_id": chat, "status": "stopped", "run_id": turn.run_id}.items()
    times = {name: answer[name] for name in ("halted_ms", "upstream_closed_ms")}
    if not turn.text and times["upstream_closed_ms"] is None:
        del times["upstream_closed_ms"]  # the model had not been called yet: there was nothing to close
    assert {name: 0 <= ms < 5000 for name, ms in times.items()} == dict.fromkeys(times, True)


async def now_ms(bus: redis.Redis) -> int:
    seconds, micros = await bus.time()
    return seconds * 1000 + micros // 1000


# ---- what it answers and does


@THROUGH
async def test_a_stop_is_accepted_and_halts_the_run(
    http: httpx.AsyncClient, one: Replica, other: Replica, through: str
) -> None:
    chat = new_chat()
    async with live_run(http, one, chat) as turn:
        answer = await http.post(stop_url(one if through == "the owner" else other, chat))
        assert (answer.status_code, answer.json()) == (200, accepted(chat))
        assert (await turn.finish(5)).closing == [STOPPED]
    assert turn.text == "tick " * (len(turn.text) // 5)
    assert await messages_of(http, other, chat) == said(LONG, turn.text, stopped=True)
    assert (await status_of(http, one, chat)).items() >= {"status": "idle", "message_count": 2}.items()


@THROUGH
async def test_a_stop_that_waits_tells_what_happened(
    http: httpx.AsyncClient, one: Replica, other: Replica, through: str
) -> None:
    chat = new_chat()
    async with live_run(http, one, chat) as turn:
        answer = await stop(http, one if through == "the owner" else other, chat, wait="5")
        assert_stopped(answer, turn, chat)
        assert (await turn.finish(5)).closing == [STOPPED]
    assert (await status_of(http, other, chat))["status"] == "idle"


PHASES = {
    "before the first token": {"chunks": ["never"], "delay_ms": 30_000},
    "between tokens": {"chunks": ["a ", "b "], "repeat": 1000, "pace_ms": 30},
    "while tokens rush": {"chunks": ["x"], "repeat": 200_000, "pace_ms": 0},
    "while the model is silent": {"chunks": ["one", "never"], "pace_ms": 30_000},
    "after a tool call": {
        "tool": {"name": "calculator", "input": {"expression": "2+2"}},
        "chunks": ["four "],
        "repeat": 1000,
    },
}


@THROUGH
@pytest.mark.parametrize("phase", PHASES)
async def test_a_stop_works_in_every_phase(
    http: httpx.AsyncClient, one: Replica, other: Replica, phase: str, through: str
) -> None:
    chat, message = new_chat(), script(**PHASES[phase])
    async with sending(http, one, chat, message) as turn:
        assert turn.status == 200
        if phase != "before the first token":
            await turn.first_text()
        answer = await stop(http, one if through == "the owner" else other, chat, wait="5")
        assert_stopped(answer, turn, chat)
        assert (await turn.finish(5)).closing == [STOPPED]
    assert "never" not in turn.text
    kept = await messages_of(http, one, chat)
    assert [kept[0], kept[-1]] == said(message, turn.text, stopped=True)


async def test_a_run_stopped_before_any_text_leaves_an_empty_answer(http: httpx.AsyncClient, one: Replica) -> None:
    chat, message = new_chat(), script(chunks=["never"], delay_ms=30_000)
    async with sending(http, one, chat, message) as turn:
        await stop(http, one, chat)
        await turn.finish(5)
    assert (turn.text, turn.closing) == ("", [STOPPED])
    assert await messages_of(http, one, chat) == said(message, "", stopped=True)


async def test_a_stopped_chat_goes_on(http: httpx.AsyncClient, one: Replica, other: Replica) -> None:
    chat = new_chat()
    silent = script(chunks=["never"], delay_ms=30_000)
    expected = []
    for message in (LONG, silent, LONG):
        async with sending(http, one, chat, message) as turn:
            if message == LONG:
                await turn.first_text()
            await stop(http, other, chat, wait="5")
            await turn.finish(5)
        expected += said(message, turn.text, stopped=True)
    turn = await say(http, other, chat, HI)
    assert (turn.text, turn.closing) == ("Hello", [DONE])
    assert await messages_of(http, one, chat) == [*expected, *said(HI, "Hello")]


@pytest.mark.parametrize("end", ["done", "stopped", "error"])
async def test_the_next_message_may_follow_the_closing_frame_at_once(
    http: httpx.AsyncClient, one: Replica, other: Replica, end: str
) -> None:
    message = {"done": HI, "stopped": LONG, "error": script(chunks=["some"], fail="broken")}[end]
    for _ in range(5):
        chat = new_chat()
        async with sending(http, one, chat, message) as turn:
            await turn.first_text()
            if end == "stopped":
                await stop(http, other, chat)
            await turn.until(lambda t: bool(t.closing))
            following = await say(http, other, chat, HI)
        assert [event for event, _ in turn.closing] == [end]
        assert (following.status, following.text, following.closing) == (200, "Hello", [DONE])
        assert (await messages_of(http, one, chat))[-2:] == said(HI, "Hello")


async def test_text_of_any_kind_the_user_saw_stays(http: httpx.AsyncClient, one: Replica, other: Replica) -> None:
    chat = new_chat()
    message = script(chunks=["  e", "\u0301 🛑\n", "\n[DONE]\t"], repeat=500, pace_ms=10)
    async with sending(http, one, chat, message) as turn:
        await turn.until(lambda t: len(t.text) > 50)
        await stop(http, other, chat)
        await turn.finish(5)
    assert await messages_of(http, other, chat) == said(message, turn.text, stopped=True)


async def test_a_stop_with_nothing_to_stop_says_idle(http: httpx.AsyncClient, one: Replica) -> None:
    chat = new_chat()
    assert (await stop(http, one, chat, wait="1")).items() >= {"chat_id": chat, "status": "idle"}.items()
    assert (await stop(http, one, chat)) == accepted(chat)
    await say(http, one, chat, HI)
    assert (await stop(http, one, chat, wait="1")).items() >= {"chat_id": chat, "status": "idle"}.items()
    assert await messages_of(http, one, chat) == said(HI, "Hello")


async def test_idle_is_known_at_once(http: httpx.AsyncClient, one: Replica) -> None:
    begun = time.monotonic()
    assert (await stop(http, one, new_chat(), wait="10"))["status"] == "idle"
    assert time.monotonic() - begun < 2


@pytest.mark.parametrize("wait", ["0.001", "0.5", "10"])
async def test_wait_takes_seconds_up_to_ten(http: httpx.AsyncClient, one: Replica, wait: str) -> None:
    answer = await http.post(stop_url(one, new_chat()), params={"wait": wait})
    assert answer.status_code == 200
    assert answer.json()["status"] in ("idle", "unconfirmed")


@pytest.mark.parametrize("wait", ["0", "-1", "-0.0", "10.001", "11", "nan", "inf", "-inf", "1e999", "x", "", "1;2"])
async def test_a_wait_out_of_bounds_is_refused(
    http: httpx.AsyncClient, one: Replica, nothing_changes: NothingChanges, wait: str
) -> None:
    async with nothing_changes():
        answer = await http.post(stop_url(one, new_chat()), params={"wait": wait})
        assert (answer.status_code, answer.json().keys()) == (422, {"detail"})


async def test_a_stop_is_idempotent(http: httpx.AsyncClient, one: Replica, other: Replica) -> None:
    chat = new_chat()
    async with live_run(http, one, chat) as turn:
        answers = [await stop(http, replica, chat) for replica in (one, other, one, other)]
        await turn.finish(5)
    assert answers == [accepted(chat)] * 4
    assert turn.closing == [STOPPED]
    assert (await stop(http, other, chat, wait="1"))["status"] == "idle"
    assert await messages_of(http, one, chat) == said(LONG, turn.text, stopped=True)
    assert (await say(http, one, chat, HI)).closing == [DONE]


async def test_two_stops_at_once_are_both_told_the_truth(http: httpx.AsyncClient, one: Replica, other: Replica) -> None:
    for _ in range(3):
        chat = new_chat()
        async with live_run(http, one, chat) as turn:
            answers = await asyncio.gather(*(stop(http, replica, chat, wait="5") for replica in (one, other)))
            await turn.finish(5)
        told = [answer for answer in answers if answer["status"] == "stopped"]
        assert told, answers
        for answer in told:
            assert_stopped(answer, turn, chat)
        # One that came when the run had halted already finds nothing to stop.
        assert {answer["status"] for answer in answers} <= {"stopped", "idle"}


async def test_a_verdict_agrees_with_the_stream_when_stop_and_end_race(
    http: httpx.AsyncClient, one: Replica, other: Replica
) -> None:
    async def race(n: int) -> tuple[str, str, list[tuple[str, str]], list[bool]]:
        chat, message = new_chat("race"), script(chunks=["a", "b", "c"], pace_ms=40)
        async with sending(http, one, chat, message) as turn:
            await turn.until(lambda t: len(t.text) >= 1 + n % 3)
            await asyncio.sleep(n / 600)  # spreads the stops over the end of the runs
            verdict = (await stop(http, (one, other)[n % 2], chat, wait="5"))["status"]
            await turn.finish(5)
        kept = await messages_of(http, other, chat)
        assert kept[-1]["text"] == turn.text
        return verdict, turn.text, turn.closing, [m.get("stopped", False) for m in kept]

    for verdict, text, closing, marks in await asyncio.gather(*(race(n) for n in range(30))):
        if verdict == "stopped":
            assert (closing, marks) == ([STOPPED], [False, True])
        else:
            assert verdict in ("finished", "idle")
            assert (text, closing, marks) == ("abc", [DONE], [False, False])


# ---- naming a run


@THROUGH
async def test_a_stop_may_name_the_live_run(
    http: httpx.AsyncClient, one: Replica, other: Replica, through: str
) -> None:
    chat, run_id = new_chat(), new_run()
    async with live_run(http, one, chat, run_id=run_id) as turn:
        replica = one if through == "the owner" else other
        assert_stopped(await stop(http, replica, chat, run_id=run_id, wait="5"), turn, chat)
        assert (await turn.finish(5)).closing == [STOPPED]


async def test_a_stop_naming_a_live_run_is_accepted_like_any(http: httpx.AsyncClient, one: Replica) -> None:
    chat = new_chat()
    async with live_run(http, one, chat) as turn:
        assert await stop(http, one, chat, run_id=turn.run_id) == accepted(chat)
        assert (await turn.finish(5)).closing == [STOPPED]


@pytest.mark.parametrize("wait", [{}, {"wait": "0.5"}], ids=["no wait", "wait"])
async def test_a_stop_naming_another_run_leaves_the_live_one_alone(
    http: httpx.AsyncClient, one: Replica, other: Replica, wait: dict[str, str]
) -> None:
    chat, message = new_chat(), script(chunks=["tick "], repeat=40)
    async with sending(http, one, chat, message) as turn:
        await turn.first_text()
        answers = [await stop(http, replica, chat, run_id=new_run(), **wait) for replica in (one, other)]
        await turn.finish()
    assert (turn.text, turn.closing) == ("tick " * 40, [DONE])
    assert [a for a in answers if a["status"] == "stopped"] == []


async def test_a_stop_naming_a_run_halts_it_when_it_registers_later(
    http: httpx.AsyncClient, one: Replica, other: Replica
) -> None:
    chat, run_id = new_chat(), new_run()
    assert await stop(http, other, chat, run_id=run_id) == accepted(chat)
    unrelated = await say(http, one, chat, HI)
    halted = await say(http, one, chat, HI, run_id=run_id)
    assert (unrelated.text, unrelated.closing) == ("Hello", [DONE])
    assert (halted.text, halted.closing) == ("", [STOPPED])
    assert await messages_of(http, one, chat) == said(HI, "Hello") + said(HI, "", stopped=True)


async def test_a_stop_naming_a_later_run_is_kept_while_another_runs(
    http: httpx.AsyncClient, one: Replica, other: Replica
) -> None:
    chat, later = new_chat(), new_run()
    async with live_run(http, one, chat) as turn:
        await stop(http, other, chat, run_id=later)
        await stop(http, other, chat, run_id=turn.run_id, wait="5")
        assert (await turn.finish(5)).closing == [STOPPED]
    halted = await say(http, other, chat, HI, run_id=later)
    assert (halted.text, halted.closing) == ("", [STOPPED])


async def test_a_stop_naming_a_run_that_has_ended_changes_nothing(http: httpx.AsyncClient, one: Replica) -> None:
    chat = new_chat()
    turn = await say(http, one, chat, HI)
    assert (await stop(http, one, chat, run_id=turn.run_id, wait="1"))["status"] in ("finished", "idle")
    assert (await say(http, one, chat, HI)).closing == [DONE]
    assert await messages_of(http, one, chat) == said(HI, "Hello") * 2


@pytest.mark.parametrize("run_id", ["run", "", "0", "8ZZZZZZZZZZZZZZZZZZZZZZZZZ", "01K9QY4C8V7T6S5R4Q3P2N1M0Z\n"])
async def test_a_stop_naming_what_is_no_ulid_is_refused(
    http: httpx.AsyncClient, one: Replica, nothing_changes: NothingChanges, run_id: str
) -> None:
    async with nothing_changes():
        answer = await http.post(stop_url(one, new_chat()), params={"run_id": run_id})
        assert (answer.status_code, answer.json().keys()) == (422, {"detail"})


# ---- the stored signal


async def test_a_stop_is_stored_with_its_time_and_a_time_to_live(
    http: httpx.AsyncClient, one: Replica, bus: redis.Redis
) -> None:
    chat = new_chat()
    before = await now_ms(bus)
    await stop(http, one, chat)
    assert before <= int(await bus.get(f"stop:{chat}")) <= await now_ms(bus)
    assert 3500 < await bus.ttl(f"stop:{chat}") <= 3600


async def test_the_run_that_halts_consumes_the_stop(
    http: httpx.AsyncClient, one: Replica, other: Replica, bus: redis.Redis
) -> None:
    chat = new_chat()
    async with live_run(http, one, chat) as turn:
        await stop(http, other, chat, wait="5")
        await turn.finish(5)

    async def consumed() -> bool:
        return await bus.exists(f"stop:{chat}") == 0

    await until(consumed)


async def test_a_key_set_by_hand_stops_the_run(http: httpx.AsyncClient, one: Replica, bus: redis.Redis) -> None:
    chat = new_chat()
    async with live_run(http, one, chat) as turn:
        begun = time.monotonic()
        await bus.set(f"stop:{chat}", await now_ms(bus))
        await turn.finish(5)
    assert turn.closing == [STOPPED]
    assert turn.events[-1].at - begun < 0.1 + 1.4  # STOP_POLL_INTERVAL, and slack for a busy machine
    assert await messages_of(http, one, chat) == said(LONG, turn.text, stopped=True)
