"""A client that goes away in mid-stream."""

from __future__ import annotations

import httpx2 as httpx

from tests.contract.client import (
    DONE,
    LONG,
    is_idle,
    live_run,
    messages_of,
    new_chat,
    said,
    say,
    script,
    sending,
    until,
)
from tests.stack import Replica

HI = script(chunks=["Hello"])


async def test_a_client_that_leaves_stops_its_run(http: httpx.AsyncClient, one: Replica, other: Replica) -> None:
    chat = new_chat()
    async with live_run(http, one, chat) as turn:
        await turn.until(lambda t: len(t.text) > 20)
    await until(lambda: is_idle(http, other, chat), seconds=4)
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
    await until(lambda: is_idle(http, other, chat), seconds=4)
    assert await messages_of(http, other, chat) == said(message, "", stopped=True)
