"""Stops through Nginx: the request lands where round robin takes it, the run lives elsewhere, and halts."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Sequence
from typing import Any

import httpx2 as httpx

from tests.contract.client import STOPPED, messages_of, said, say, script, stop_url
from tests.e2e.live import Live, many, spread_over, start
from tests.e2e.stack import REPLICAS, Door
from tests.fake_bedrock import RunningFakeBedrock
from tests.stops.figures import figure, spread

ELSEWHERE = 60  # stops that another backend than the run's must have taken
STOPS_AT_ONCE = 15


async def assert_halted(
    lives: Sequence[Live], http: httpx.AsyncClient, door: Door, bedrock: RunningFakeBedrock
) -> None:
    """Clients saw one closing frame, Bedrock the end of each connection, and the transcript has what was seen."""
    for live in lives:
        await live.ended()
        assert live.closing == [STOPPED]
        closed = await end_of_call(bedrock, live.name)
        assert (closed["event"], closed["sent_after_close"]) == ("closed", 0), closed
        assert await messages_of(http, door, live.chat_id) == said(live.message, live.turn.text, stopped=True)


async def end_of_call(bedrock: RunningFakeBedrock, name: str) -> dict[str, Any]:
    """The line about the end of the model's call; it may come some time after the end."""

    def is_it(line: dict[str, Any]) -> bool:
        return line.get("name") == name and line["event"] in ("closed", "completed", "failed", "dropped", "refused")

    return await asyncio.to_thread(bedrock.wait_for, is_it, 10)


async def test_stops_that_land_on_another_backend_halt_the_run(
    door: Door, http: httpx.AsyncClient, bedrock: RunningFakeBedrock, chats: Any
) -> None:
    elsewhere, halted, ran_on = 0, 0, set()
    for waits in itertools.cycle([False, True]):
        async with many(http, door, chats, "stop", STOPS_AT_ONCE) as lives:
            ran_on |= set(spread_over(lives))
            params = {"wait": "5"} if waits else {}
            answers = await asyncio.gather(*(http.post(stop_url(door, live.chat_id), params=params) for live in lives))
            for live, answer in zip(lives, answers, strict=True):
                body = answer.json()
                assert (answer.status_code, body["chat_id"]) == (200, live.chat_id)
                assert body["status"] == ("stopped" if waits else "accepted"), body
                assert not waits or body["run_id"] == live.run_id
                elsewhere += answer.headers["x-replica"] != live.replica
            await assert_halted(lives, http, door, bedrock)
            halted += len(lives)
        if elsewhere >= ELSEWHERE:
            break
    assert ran_on == set(REPLICAS)
    figure(
        "stops through Nginx", f"{halted} sent, {elsewhere} landed on another backend than the run's, {halted} halted"
    )


async def test_a_bulk_stop_halts_sixty_chats_on_three_backends(
    door: Door, http: httpx.AsyncClient, bedrock: RunningFakeBedrock, chats: Any
) -> None:
    async with many(http, door, chats, "bulk", 60) as lives:
        by_replica = spread_over(lives)
        assert set(by_replica) == set(REPLICAS)
        ids = [live.chat_id for live in lives]
        answer = await http.post(f"{door.url}/api/v1/stop/bulk", params={"wait": "10"}, json={"chat_ids": ids})
        assert answer.status_code == 200, answer.text
        body = answer.json()
        assert [result["chat_id"] for result in body["results"]] == ids
        assert {result["status"] for result in body["results"]} == {"stopped"}
        assert (body["total"], body["successful"], body["failed"]) == (60, 60, 0)
        await assert_halted(lives, http, door, bedrock)
    figure("bulk stop of 60 chats", ", ".join(f"{name} {count}" for name, count in sorted(by_replica.items())))


async def test_the_chat_goes_on_after_a_stop(
    door: Door, http: httpx.AsyncClient, bedrock: RunningFakeBedrock, chats: Any
) -> None:
    live = await start(http, door, chats("next"))
    await http.post(stop_url(door, live.chat_id))
    await live.ended()
    turn = await say(http, door, live.chat_id, script(text="and so on", pace_ms=1, name="next"))
    assert (turn.status, turn.text, turn.closing) == (200, "and so on", [("done", "[DONE]")])
    assert (await end_of_call(bedrock, "next"))["event"] == "completed"  # and not refused for its history


async def test_stop_latency_through_nginx(door: Door, http: httpx.AsyncClient, chats: Any) -> None:
    """100 stops, one at a time, beside 60 live chats: from the POST to the closing frame at the client."""
    stop_ms, bare_ms = [], []
    async with many(http, door, chats, "busy", 60), httpx.AsyncClient(trust_env=False, timeout=20) as plain:
        for _ in range(100):
            live = await start(http, door, chats("latency"))
            bare_at = time.monotonic()
            await plain.get(f"{door.url}/live")
            bare_ms.append((time.monotonic() - bare_at) * 1000)
            at = time.monotonic()
            answer = await plain.post(stop_url(door, live.chat_id))
            assert answer.status_code == 200
            await live.ended()
            stop_ms.append((live.turn.events[-1].at - at) * 1000)
            assert live.closing == [STOPPED]
    figure("stop through Nginx, POST to closing frame, 60 live chats", spread(stop_ms))
    figure("beside it: GET /live through Nginx", spread(bare_ms))
