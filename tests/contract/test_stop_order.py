"""A stop hits the run it was meant for: order by the front door's stamp, or by the bus's clock."""

from __future__ import annotations

import httpx2 as httpx
import pytest
import redis.asyncio as redis

from tests.contract.client import (
    DONE,
    STOPPED,
    live_run,
    messages_of,
    new_chat,
    said,
    say,
    script,
    sending,
    stamp,
    stop,
    until,
)
from tests.stack import Replica

HI = script(chunks=["Hello"])
SHORT = script(chunks=["tick "], repeat=20)
REPLICAS = pytest.mark.parametrize("same", [True, False], ids=["one replica", "two replicas"])


async def clock_moves_on(bus: redis.Redis, chat: str) -> None:
    """Wait until the bus's clock is past the stored stop: nothing then happens in the same millisecond."""
    stored = int(await bus.get(f"stop:{chat}"))

    async def past() -> bool:
        seconds, micros = await bus.time()
        return seconds * 1000 + micros // 1000 > stored

    await until(past)


@REPLICAS
async def test_a_stale_stop_does_not_touch_the_next_run(
    http: httpx.AsyncClient, one: Replica, other: Replica, bus: redis.Redis, same: bool
) -> None:
    chat = new_chat()
    await stop(http, one if same else other, chat)
    await clock_moves_on(bus, chat)
    for _ in range(2):
        turn = await say(http, one, chat, SHORT)
        assert (turn.text, turn.closing) == ("tick " * 20, [DONE])


async def test_a_stop_sent_after_a_run_ended_does_not_touch_the_next(
    http: httpx.AsyncClient, one: Replica, other: Replica, bus: redis.Redis
) -> None:
    chat = new_chat()
    async with live_run(http, one, chat) as turn:
        await stop(http, other, chat, wait="5")
        await turn.finish()
    await stop(http, other, chat)
    await clock_moves_on(bus, chat)
    assert (await say(http, one, chat, HI)).closing == [DONE]


@REPLICAS
async def test_a_stop_that_overtakes_its_message_halts_the_run(
    http: httpx.AsyncClient, one: Replica, other: Replica, same: bool
) -> None:
    chat = new_chat()
    message_left, stop_left = stamp(3), stamp(2)
    await stop(http, one if same else other, chat, headers=stop_left)
    turn = await say(http, one, chat, SHORT, headers=message_left)
    assert (turn.status, turn.text, turn.closing) == (200, "", [STOPPED])
    assert await messages_of(http, other, chat) == said(SHORT, "", stopped=True)


async def test_a_stop_that_waited_and_found_nothing_still_halts_an_earlier_message(
    http: httpx.AsyncClient, one: Replica, other: Replica
) -> None:
    chat = new_chat()
    message_left, stop_left = stamp(3), stamp(2)
    assert (await stop(http, other, chat, headers=stop_left, wait="0.5"))["status"] == "idle"
    turn = await say(http, one, chat, SHORT, headers=message_left)
    assert (turn.text, turn.closing) == ("", [STOPPED])


async def test_a_stop_that_overtook_its_message_is_used_up_by_it(
    http: httpx.AsyncClient, one: Replica, other: Replica, bus: redis.Redis
) -> None:
    chat = new_chat()
    message_left, stop_left = stamp(3), stamp(2)
    await stop(http, other, chat, headers=stop_left)
    assert (await say(http, one, chat, HI, headers=message_left)).closing == [STOPPED]
    assert await bus.exists(f"stop:{chat}") == 0
    turn = await say(http, one, chat, HI, headers=stamp(1))
    assert (turn.text, turn.closing) == ("Hello", [DONE])


@REPLICAS
async def test_a_stop_stamped_before_the_message_never_touches_it(
    http: httpx.AsyncClient, one: Replica, other: Replica, same: bool
) -> None:
    chat = new_chat()
    stop_left, message_left = stamp(3), stamp(2)
    await stop(http, one if same else other, chat, headers=stop_left)
    turn = await say(http, one, chat, SHORT, headers=message_left)
    assert (turn.text, turn.closing) == ("tick " * 20, [DONE])


@pytest.mark.parametrize("wait", [{}, {"wait": "0.5"}], ids=["no wait", "wait"])
@REPLICAS
async def test_a_late_stop_stamped_before_the_message_never_touches_the_live_run(
    http: httpx.AsyncClient, one: Replica, other: Replica, same: bool, wait: dict[str, str]
) -> None:
    chat = new_chat()
    stop_left, message_left = stamp(3), stamp(2)
    async with sending(http, one, chat, SHORT, headers=message_left) as turn:
        await turn.first_text()
        answer = await stop(http, one if same else other, chat, headers=stop_left, **wait)
        await turn.finish()
    assert (turn.text, turn.closing) == ("tick " * 20, [DONE])
    assert answer["status"] != "stopped"


async def test_a_late_old_stop_does_not_weaken_a_newer_one(
    http: httpx.AsyncClient, one: Replica, other: Replica
) -> None:
    chat = new_chat()
    old_stop, message_left, new_stop = stamp(4), stamp(3), stamp(2)
    await stop(http, one, chat, headers=new_stop)
    await stop(http, other, chat, headers=old_stop)
    turn = await say(http, one, chat, HI, headers=message_left)
    assert (turn.text, turn.closing) == ("", [STOPPED])


@REPLICAS
async def test_a_stamped_stop_halts_a_stamped_live_run(
    http: httpx.AsyncClient, one: Replica, other: Replica, same: bool
) -> None:
    chat = new_chat()
    async with live_run(http, one, chat, headers=stamp(2)) as turn:
        answer = await stop(http, one if same else other, chat, headers=stamp(1), wait="5")
        assert (answer["status"], answer["run_id"]) == ("stopped", turn.run_id)
        assert (await turn.finish()).closing == [STOPPED]


async def test_a_run_named_needs_no_clock(http: httpx.AsyncClient, one: Replica, other: Replica) -> None:
    chat = new_chat()
    async with live_run(http, one, chat, headers=stamp(2)) as turn:
        answer = await stop(http, other, chat, headers=stamp(3), run_id=turn.run_id, wait="5")
        assert (answer["status"], answer["run_id"]) == ("stopped", turn.run_id)
        assert (await turn.finish()).closing == [STOPPED]


@pytest.mark.parametrize(
    "value", ["", "now", "t=", "t=soon", "t=nan", "t=inf", "t=-1", "t=1e999", "1700000000.000x", "t=" + "9" * 400]
)
async def test_a_stamp_nobody_can_read_is_as_good_as_none(
    http: httpx.AsyncClient, one: Replica, other: Replica, value: str
) -> None:
    headers = {"X-Request-Start": value}
    chat = new_chat()
    async with live_run(http, one, chat, headers=headers) as turn:
        assert (await stop(http, other, chat, headers=headers, wait="5"))["status"] == "stopped"
        assert (await turn.finish()).closing == [STOPPED]
