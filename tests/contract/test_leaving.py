"""The client goes away, or the replica does."""

from __future__ import annotations

import asyncio
import signal

import httpx2 as httpx
import pytest

from tests.contract.client import (
    DONE,
    LONG,
    live_run,
    messages_of,
    new_chat,
    said,
    say,
    script,
    sending,
    status_of,
    until,
)
from tests.contract.conftest import QuietRun, Variants
from tests.stack import Replica

HI = script(chunks=["Hello"])


async def idle(http: httpx.AsyncClient, replica: Replica, chat: str) -> bool:
    return (await status_of(http, replica, chat))["status"] == "idle"


async def test_a_client_that_leaves_stops_its_run(http: httpx.AsyncClient, one: Replica, other: Replica) -> None:
    chat = new_chat()
    async with live_run(http, one, chat) as turn:
        await turn.until(lambda t: len(t.text) > 20)
    await until(lambda: idle(http, other, chat), seconds=4)
    [question, answer] = await messages_of(http, other, chat)
    assert (question, answer["role"], answer["stopped"]) == (said(LONG, "")[0], "assistant", True)
    assert answer["text"].startswith(turn.text)
    assert (await say(http, other, chat, HI)).closing == [DONE]


async def test_a_client_that_leaves_before_the_first_token_stops_its_run(
    http: httpx.AsyncClient, one: Replica, other: Replica
) -> None:
    chat, message = new_chat(), script(chunks=["never"], delay_ms=30_000)
    async with sending(http, one, chat, message) as turn:
        assert turn.status == 200
    await until(lambda: idle(http, other, chat), seconds=4)
    assert await messages_of(http, other, chat) == said(message, "", stopped=True)


@pytest.mark.usefixtures("quiet_run")  # the first test with these replicas begins what the slow ones wait for
async def test_a_run_may_go_on_without_its_client(http: httpx.AsyncClient, variants: Variants) -> None:
    chat, message = new_chat(), script(chunks=["tick "], repeat=40)
    async with sending(http, variants.patient, chat, message) as turn:
        await turn.first_text()
    assert (await status_of(http, variants.own_agent, chat))["status"] == "running"
    await until(lambda: idle(http, variants.own_agent, chat))
    assert await messages_of(http, variants.own_agent, chat) == said(message, "tick " * 40)


@pytest.mark.slow
async def test_a_replica_that_is_ended_lets_runs_end_within_the_grace(
    http: httpx.AsyncClient, variants: Variants, quiet_run: QuietRun
) -> None:
    await asyncio.to_thread(quiet_run.result)  # the same replica speaks there
    short, long = new_chat(), new_chat()
    leaving, staying = variants.patient, variants.own_agent
    a_little = script(chunks=["tick "], repeat=15)
    async with (
        live_run(http, leaving, long) as long_turn,
        sending(http, leaving, short, a_little) as short_turn,
    ):
        await short_turn.first_text()
        leaving.process.send_signal(signal.SIGTERM)
        await asyncio.gather(short_turn.finish(5), long_turn.finish(5))
        assert await asyncio.to_thread(leaving.process.wait, 10) == 0
    assert (short_turn.text, short_turn.closing) == ("tick " * 15, [DONE])
    assert await messages_of(http, staying, short) == said(a_little, "tick " * 15)
    [(event, _)] = long_turn.closing
    assert event in ("stopped", "error")
    [question, answer] = await messages_of(http, staying, long)
    assert (question["text"], answer["role"], answer["text"]) == (LONG, "assistant", long_turn.text)
    assert (await status_of(http, staying, long))["status"] == "idle"
    assert "Traceback" not in leaving.log.read_text()
