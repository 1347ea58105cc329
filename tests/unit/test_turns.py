"""Turns of many clients: each waits for its own alone, and nothing is kept of those that are through."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import httpx2 as httpx
import pytest
from starlette.responses import JSONResponse
from starlette.types import Receive, Scope, Send

from haltline import gate
from haltline.authentication import NoAuthentication
from haltline.edge import Edge
from haltline.gate import Gate
from haltline.settings import Settings
from haltline.turns import Turns, client_of

SOON = 5.0  # seconds: a deadline, not a wait


async def settled() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_a_few_of_a_client_need_not_wait() -> None:
    turns = Turns(60, at_once=3, waiting=10)
    assert await asyncio.wait_for(asyncio.gather(*(turns.wait("a") for _ in range(3))), SOON) == [True] * 3


async def test_many_of_one_client_wait_in_order_and_hold_up_nobody_else() -> None:
    turns, began = Turns(0.01, at_once=1, waiting=100), list[int]()

    async def one(n: int) -> None:
        assert await turns.wait("many")
        began.append(n)

    many = asyncio.gather(*map(one, range(20)))
    await settled()
    assert began == [0]
    assert await turns.wait("other")
    assert began == [0]
    await asyncio.wait_for(many, SOON)
    assert began == list(range(20))


async def test_too_many_that_wait_are_refused_at_once() -> None:
    turns = Turns(60, at_once=1, waiting=2)
    waiting = [asyncio.create_task(turns.wait("a")) for _ in range(3)]
    await settled()
    assert not await turns.wait("a")
    for task in waiting:
        task.cancel()


async def test_who_no_longer_waits_takes_no_turn() -> None:
    turns = Turns(0.05, at_once=1, waiting=10)
    assert await turns.wait("a")
    gone, there = (asyncio.create_task(turns.wait("a")) for _ in range(2))
    await settled()
    gone.cancel()
    began = asyncio.get_running_loop().time()
    assert await asyncio.wait_for(there, SOON)
    assert asyncio.get_running_loop().time() - began < 0.5


async def test_nothing_is_kept_of_clients_that_are_through() -> None:
    turns = Turns(0.001, at_once=10, waiting=10)
    for n in range(1000):
        assert await turns.wait(f"client {n}")
    async with asyncio.timeout(SOON):
        while len(turns):
            await asyncio.sleep(0.01)


@pytest.mark.parametrize(
    ("more", "told"), [([], "192.0.2.7 "), ([(b"x-forwarded-for", b"10.0.0.1")], "192.0.2.7 10.0.0.1")]
)
def test_a_client_is_an_address_and_whom_a_proxy_speaks_for(more: list[tuple[bytes, bytes]], told: str) -> None:
    assert client_of({"client": ("192.0.2.7", 4711), "headers": [(b"host", b"x"), *more]}) == told


async def stops_answered(count: int) -> list[httpx.Response]:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await JSONResponse({})(scope, receive, send)

    resources: Any = SimpleNamespace(settings=Settings(), authenticator=NoAuthentication())
    transport = httpx.ASGITransport(Edge(Gate(app, resources), "one"))
    async with httpx.AsyncClient(transport=transport, base_url="http://x") as http:
        return await asyncio.gather(*(http.post("/api/v1/stop/chat") for _ in range(count)))


async def test_a_stop_that_would_wait_behind_too_many_is_refused_and_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate, "STOPS_WAITING", 5)
    answers = await stops_answered(gate.STOPS_AT_ONCE + 5 + 1)
    [refused] = [a for a in answers if a.status_code != 200]
    assert (refused.status_code, refused.headers["retry-after"], refused.headers["x-replica"]) == (503, "1", "one")
    assert refused.json() == {"detail": "Too many stops of one client wait here. This one was not stored; try again."}


async def test_where_there_is_one_request_at_a_time_no_stop_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """On Lambda."""
    monkeypatch.setattr(gate, "STOPS_WAITING", 0)
    monkeypatch.setenv("AWS_LAMBDA_FUNCTION_NAME", "haltline")
    assert {a.status_code for a in await stops_answered(50)} == {200}
