"""What one principal may have: exact, over all replicas, whatever comes at once."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest

from tests.contract.client import (
    DONE,
    LONG,
    STOPPED,
    live_run,
    new_chat,
    new_run,
    say,
    script,
    sending,
    stop,
)
from tests.contract.guarded import FULL, MOST_CHATS, MOST_REQUESTS, MOST_RUNS, Limited, at, running_limited

HI = script(chunks=["Hello"])
AT_ONCE, MORE_AT_ONCE = 200, 300


@pytest.fixture(scope="module")
def limited(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Limited]:
    with running_limited(Path(tmp_path_factory.mktemp("limited"))) as running:
        yield running


def refused(answer: Any) -> bool:
    """Whether it is a 429 that says when to come again."""
    status = getattr(answer, "status_code", None) or answer.status
    return status == 429 and 1 <= int(answer.headers["retry-after"]) <= 60


# ---- live runs


async def test_of_200_at_once_as_many_runs_begin_as_may(limited: Limited, http: httpx.AsyncClient) -> None:
    """Through both replicas; and again once they have ended, with as many places as before."""
    one, other = limited.replicas
    for _ in range(20 if FULL else 2):
        headers = limited.guest()
        answers = await asyncio.gather(*(_begun(http, (one, other)[n % 2], headers) for n in range(AT_ONCE)))
        streams = [turn for turn, _ in answers if turn.status == 200]
        try:
            assert Counter(turn.status for turn, _ in answers) == {200: MOST_RUNS, 429: len(answers) - MOST_RUNS}
            assert all(refused(turn) for turn, _ in answers if turn.status == 429)
        finally:
            for _, open_ in answers:
                await open_.aclose()
        assert len(streams) == MOST_RUNS


async def _begun(http: httpx.AsyncClient, replica: Any, headers: dict[str, str]) -> tuple[Any, AsyncExitStack]:
    """A message whose stream stays open."""
    open_ = AsyncExitStack()
    return await open_.enter_async_context(sending(http, replica, new_chat(), LONG, headers=headers)), open_


async def test_a_place_is_free_when_a_run_is_told_to_halt_or_has_ended(
    limited: Limited, http: httpx.AsyncClient
) -> None:
    """Whoever has seen the closing frame finds it free, through the other replica too."""
    one, other = limited.replicas
    headers = limited.guest()
    async with AsyncExitStack() as open_:
        chats = [new_chat() for _ in range(MOST_RUNS)]
        turns = [await open_.enter_async_context(live_run(http, one, chat, headers=headers)) for chat in chats]
        for _ in range(5):
            refusal = await say(http, other, new_chat(), HI, headers=headers)
            assert refused(refusal)
            await stop(http, other, chats[0], headers=headers)
            assert (await turns[0].finish()).closing == [STOPPED]
            assert (await say(http, other, new_chat(), HI, headers=headers)).closing == [DONE]  # ends by itself
            turns[0] = await open_.enter_async_context(live_run(http, other, chats[0], headers=headers))


async def test_a_message_that_was_refused_leaves_nothing_and_may_be_sent_again(
    limited: Limited, http: httpx.AsyncClient
) -> None:
    one, other = limited.replicas
    headers = limited.guest()
    chat, run = new_chat(), new_run()
    async with AsyncExitStack() as open_:
        chats = [new_chat() for _ in range(MOST_RUNS)]
        turns = [await open_.enter_async_context(live_run(http, one, c, headers=headers)) for c in chats]
        for _ in range(3):
            assert refused(await say(http, one, chat, HI, run_id=run, headers=headers))
        found = await http.get(at(other, f"chat/{chat}"), headers=headers)
        assert found.json() == {"chat_id": chat, "status": "new", "message_count": 0}
        # The chat that has a run is busy, and may be given another in its place.
        assert (await say(http, other, chats[0], HI, headers=headers)).status == 409
        replaced = await say(http, other, chats[0], HI, headers=headers, params={"if_running": "stop"})
        assert replaced.closing == [DONE]
        assert (await turns[0].finish()).closing == [STOPPED]
        assert (await say(http, other, chat, HI, run_id=run, headers=headers)).closing == [DONE]


async def test_another_principals_runs_take_no_place(limited: Limited, http: httpx.AsyncClient) -> None:
    one, _ = limited.replicas
    mine, other = limited.guest(), limited.guest()
    async with AsyncExitStack() as open_:
        for _ in range(MOST_RUNS):
            await open_.enter_async_context(live_run(http, one, new_chat(), headers=mine))
        assert refused(await say(http, one, new_chat(), HI, headers=mine))
        assert (await say(http, one, new_chat(), HI, headers=other)).closing == [DONE]


# ---- requests


async def test_of_300_at_once_as_many_requests_are_answered_as_may(limited: Limited, http: httpx.AsyncClient) -> None:
    """Of one principal through both replicas; another's are not counted with them, and stops are not counted."""
    one, other = limited.replicas
    headers, beside = limited.guest(), limited.guest()
    answers = await asyncio.gather(
        *(http.get(at((one, other)[n % 2], f"chat/{new_chat()}"), headers=headers) for n in range(MORE_AT_ONCE))
    )
    assert Counter(a.status_code for a in answers) == {200: MOST_REQUESTS, 429: MORE_AT_ONCE - MOST_REQUESTS}
    assert all(refused(a) for a in answers if a.status_code == 429)
    for replica in (one, other):
        assert refused(await http.get(at(replica, "chats"), headers=headers))
        assert refused(await say(http, replica, new_chat(), HI, headers=headers))
        assert (await http.get(at(replica, "chats"), headers=beside)).status_code == 200
        assert (await http.post(at(replica, f"stop/{new_chat()}"), headers=headers)).status_code == 200
        assert (await http.get(f"{replica.url}/health", headers=headers)).status_code == 200


async def test_many_stops_of_one_principal_are_refused_but_never_of_a_live_run(
    limited: Limited, http: httpx.AsyncClient
) -> None:
    """Each is kept for an hour: without a bound one principal could fill Redis for all."""
    one, other = limited.replicas
    headers, beside = limited.guest(), limited.guest()
    bulk = {"chat_ids": [new_chat() for _ in range(1000)]}
    most = 10 * MOST_REQUESTS
    for n in range(most // 1000):
        answer = await http.post(at((one, other)[n % 2], "stop/bulk"), json=bulk, headers=headers)
        assert answer.json()["successful"] == 1000
    assert refused(await http.post(at(one, "stop/bulk"), json=bulk, headers=headers))
    answers = await asyncio.gather(
        *(http.post(at(one, f"stop/{new_chat()}"), headers=headers) for _ in range(most % 1000 + 5))
    )
    assert Counter(a.status_code for a in answers) == {200: most % 1000, 429: 5}
    assert (await http.post(at(one, f"stop/{new_chat()}"), headers=beside)).status_code == 200
    chat = new_chat()
    async with live_run(http, one, chat, headers=headers) as turn:
        await stop(http, other, chat, headers=headers)
        assert (await turn.finish()).closing == [STOPPED]


# ---- chats, and how long a message may be


async def test_of_60_at_once_as_many_chats_begin_as_may(limited: Limited, http: httpx.AsyncClient) -> None:
    """Told apart from the limit of live runs by what the answer says; whoever deletes one has room for another."""
    one, other = limited.replicas
    headers = limited.guest()
    begun: list[str] = []
    gate = asyncio.Semaphore(MOST_RUNS)  # fewer than may run

    async def begin(n: int) -> int:
        async with gate:
            chat = new_chat()
            turn = await say(http, (one, other)[n % 2], chat, HI, headers=headers)
            if turn.status == 200:
                begun.append(chat)
            else:
                assert refused(turn)
                assert b"chats" in turn.raw
            return turn.status

    statuses = Counter(await asyncio.gather(*(begin(n) for n in range(60))))
    assert statuses == {200: MOST_CHATS, 429: 60 - MOST_CHATS}
    listed = (await http.get(at(one, "chats?limit=200"), headers=headers)).json()
    assert (listed["count"], sorted(c["chat_id"] for c in listed["chats"])) == (MOST_CHATS, sorted(begun))
    assert (await say(http, other, begun[0], HI, headers=headers)).closing == [DONE]  # an old one may go on
    assert (await http.delete(at(one, f"chat/{begun[0]}"), headers=headers)).status_code == 200
    assert (await say(http, one, new_chat(), HI, headers=headers)).closing == [DONE]
    assert refused(await say(http, one, new_chat(), HI, headers=headers))


async def test_a_message_may_be_as_long_as_is_set(limited: Limited, http: httpx.AsyncClient) -> None:
    one, _ = limited.replicas
    headers = limited.guest()
    chat = new_chat()
    assert (await say(http, one, chat, "é" * 1000, headers=headers)).closing == [DONE]
    turn = await say(http, one, chat, "é" * 1000 + "x", headers=headers)
    assert (turn.status, bytes(turn.raw)) == (413, b'{"detail":"The message is larger than 2000 bytes of UTF-8."}')
    assert await is_idle_as(http, one, chat, headers)


async def is_idle_as(http: httpx.AsyncClient, replica: Any, chat: str, headers: dict[str, str]) -> bool:
    return bool((await http.get(at(replica, f"chat/{chat}"), headers=headers)).json()["status"] == "idle")
