"""The whole stack ends and comes back."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx2 as httpx

from tests.contract.client import http_client, messages_of, said, say, script
from tests.e2e.live import start
from tests.e2e.stack import Door, make


async def test_chats_survive_a_restart_and_live_streams_end_with_a_closing_frame(
    door: Door, http: httpx.AsyncClient, chats: Any
) -> None:
    chat_id = chats("restart")
    first = script(text="the first answer", pace_ms=1)
    assert (await say(http, door, chat_id, first)).closing == [("done", "[DONE]")]
    live = await start(http, door, chats("restart"))
    await asyncio.to_thread(make, "restart")
    await live.ended()
    assert [event for event, _ in live.closing] == ["error"]
    async with http_client() as fresh:
        assert await messages_of(fresh, door, chat_id) == said(first, "the first answer")
        assert (await messages_of(fresh, door, live.chat_id))[-1]["text"] == live.turn.text
        listed = (await fresh.get(f"{door.url}/api/v1/chats", params={"limit": 200})).json()["chats"]
        assert {chat_id, live.chat_id} <= {chat["chat_id"] for chat in listed}
        second = script(text="the second", pace_ms=1)
        assert (await say(fresh, door, chat_id, second)).closing == [("done", "[DONE]")]
        assert await messages_of(fresh, door, chat_id) == said(first, "the first answer") + said(second, "the second")
