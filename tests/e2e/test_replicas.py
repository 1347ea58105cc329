"""A replica that ends, and one that dies, in the middle of streams."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx2 as httpx
import pytest

from tests.contract.client import STOPPED, http_client, messages_of, new_run, said, say, script, sending, stop, until
from tests.e2e.live import many
from tests.e2e.stack import REPLICAS, Door, docker, wait_until_healthy
from tests.e2e.test_stops import end_of_call
from tests.fake_bedrock import RunningFakeBedrock
from tests.stops.figures import figure

VICTIM = "backend2"
USABLE_AGAIN = 10.0  # seconds after a replica died


@pytest.fixture(autouse=True)
def whole_stack() -> Iterator[None]:
    yield
    docker("start", *REPLICAS)
    wait_until_healthy(*REPLICAS)


@dataclass
class Traffic:
    """What other users see meanwhile: messages, reads and stops of chats of their own, all through Nginx."""

    landed: list[tuple[float, str]] = field(default_factory=list)  # when a message was sent, who took it
    seconds: list[float] = field(default_factory=list)
    troubles: list[str] = field(default_factory=list)

    def since(self, at: float) -> Counter[str]:
        return Counter(replica for sent, replica in self.landed if sent >= at)

    async def one(self, http: httpx.AsyncClient, door: Door, chat_id: str) -> None:
        at = time.monotonic()
        try:
            async with sending(http, door, chat_id, script(text="hello there", pace_ms=5), run_id=new_run()) as turn:
                self.landed.append((at, turn.headers.get("x-replica", "")))
                await turn.finish()
                if (turn.status, turn.closing) != (200, [("done", "[DONE]")]):
                    self.troubles.append(f"{turn.status} {turn.closing} {bytes(turn.raw)!r} {turn.headers}")
            for answer in (
                await http.get(f"{door.url}/api/v1/chat/{chat_id}"),
                await http.post(f"{door.url}/api/v1/stop/{chat_id}"),
            ):
                if answer.status_code != 200:
                    self.troubles.append(f"{answer.request.method} {answer.status_code} {answer.text}")
        except (httpx.TransportError, TimeoutError) as error:
            self.troubles.append(f"after {time.monotonic() - at:.2f} s {error!r}")
        self.seconds.append(time.monotonic() - at)


@asynccontextmanager
async def traffic(door: Door, chats: Any, each_ms: float = 20) -> AsyncIterator[Traffic]:
    """A new chat every so often, until the block ends; returns when each has had its answer."""
    seen, over = Traffic(), asyncio.Event()

    async def flow() -> None:
        async with http_client() as http, asyncio.TaskGroup() as tasks:
            while not over.is_set():
                tasks.create_task(seen.one(http, door, chats("traffic")))
                await asyncio.sleep(each_ms / 1000)  # the pace of the load, nothing is waited for

    flowing = asyncio.create_task(flow())
    try:
        yield seen
    finally:
        over.set()
        await flowing


async def test_a_replica_that_is_stopped_ends_its_streams_and_disturbs_no_other(
    door: Door, http: httpx.AsyncClient, chats: Any
) -> None:
    async with many(http, door, chats, "stopped", 30) as lives:
        ending = [live for live in lives if live.replica == VICTIM]
        others = [live for live in lives if live.replica != VICTIM]
        assert ending
        assert others
        async with traffic(door, chats) as seen:
            await until(lambda: asyncio.sleep(0, VICTIM in seen.since(0)))
            at = time.monotonic()
            await asyncio.to_thread(docker, "stop", VICTIM)
            took = time.monotonic() - at
        for live in ending:
            await live.ended()
            assert [event for event, _ in live.closing] == ["error"]
            assert "shut" in live.closing[0][1]
            assert (await messages_of(http, door, live.chat_id))[-1]["text"] == live.turn.text  # nothing is lost
        assert not any(live.reading.done() for live in others)
        answers = await asyncio.gather(*(stop(http, door, live.chat_id, wait="5") for live in others))
        assert {answer["status"] for answer in answers} == {"stopped"}
    later = seen.since(at + 1)
    figure(
        "docker stop in mid-stream",
        f"{len(ending)} streams closed in {took:.1f} s, {len(others)} went on; {len(seen.landed)} new chats beside, "
        f"{len(seen.troubles)} errors; after its first second {dict(sorted(later.items()))}",
    )
    assert seen.troubles == []
    assert set(later) == set(REPLICAS) - {VICTIM}


async def test_replicas_that_end_under_traffic_disturb_nobody(door: Door, chats: Any) -> None:
    """Again and again, for what could go wrong lasts a millisecond: a connection that is let in as the door closes."""
    ends, landed = 5, 0
    for _ in range(ends):
        async with traffic(door, chats, each_ms=8) as seen:
            await until(lambda seen=seen: asyncio.sleep(0, VICTIM in seen.since(0)))
            await asyncio.to_thread(docker, "stop", VICTIM)
        assert seen.troubles == []
        landed += len(seen.landed)
        await asyncio.to_thread(docker, "start", VICTIM)
        await asyncio.to_thread(wait_until_healthy, VICTIM)
    figure("docker stop under traffic", f"{ends} times, {landed} new chats, each with a read and a stop: 0 errors")


async def test_a_replica_that_is_killed_loses_its_streams_and_nothing_else(
    door: Door, http: httpx.AsyncClient, bedrock: RunningFakeBedrock, chats: Any
) -> None:
    async with many(http, door, chats, "killed", 30) as lives:
        dead = [live for live in lives if live.replica == VICTIM]
        others = [live for live in lives if live.replica != VICTIM]
        assert dead
        assert others
        await asyncio.to_thread(docker, "kill", VICTIM)
        at = time.monotonic()
        async with traffic(door, chats) as seen:
            for live in dead:
                await live.ended()
                assert live.closing == []
            usable = []
            for live in dead:
                message = script(text="it goes on", pace_ms=1, name=f"{live.name}-again")

                async def again(chat_id: str = live.chat_id, message: str = message) -> Any:
                    turn = await say(http, door, chat_id, message)
                    assert turn.status in (200, 409), bytes(turn.raw)
                    return turn if turn.status == 200 else None

                turn = await until(again, USABLE_AGAIN + 10)
                usable.append(time.monotonic() - at)
                assert (turn.text, turn.closing) == ("it goes on", [("done", "[DONE]")])
                assert (await end_of_call(bedrock, f"{live.name}-again"))["event"] == "completed"
                transcript = await messages_of(http, door, live.chat_id)
                assert transcript[0]["text"] == live.message
                assert transcript[-2:] == said(message, "it goes on")
        assert not any(live.reading.done() for live in others)
        await asyncio.gather(*(stop(http, door, live.chat_id, wait="5") for live in others))
        for live in others:
            assert (await live.ended()).closing == [STOPPED]
    figure(
        "docker kill in mid-stream",
        f"{len(dead)} streams died, their chats usable again after {max(usable):.1f} s; {len(seen.landed)} new chats "
        f"beside them, {len(seen.troubles)} errors, slowest {max(seen.seconds):.2f} s",
    )
    assert seen.troubles == []
    assert max(usable) <= USABLE_AGAIN


async def test_a_replica_that_comes_back_is_given_new_chats(door: Door, http: httpx.AsyncClient, chats: Any) -> None:
    await asyncio.to_thread(docker, "kill", VICTIM)
    await asyncio.to_thread(docker, "start", VICTIM)
    at = time.monotonic()
    await asyncio.to_thread(wait_until_healthy, VICTIM)
    healthy = time.monotonic() - at

    async def is_given_one() -> bool:
        turn = await say(http, door, chats("back"), script(text="hi", pace_ms=1))
        assert turn.status == 200
        return turn.headers["x-replica"] == VICTIM

    await until(is_given_one, 15)
    figure(
        "a killed replica started again",
        f"healthy after {healthy:.1f} s, given a chat after {time.monotonic() - at:.1f} s",
    )
