"""Limits over a real Valkey: who counts, who does not, and races of those who would be one too many."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from haltline import limits as limits_module
from haltline import redis_scripts as scripts
from haltline.chat_index import ChatIndex
from haltline.chats import ChatDocument, FileChatStore
from haltline.limits import Limits
from haltline.metrics import Metrics
from haltline.principals import LimitReached, scoped
from haltline.redis_bus import RedisBus
from haltline.runner import Deps, Runner
from haltline.runs import Arrival, Outcome, Receipt, Run, StopReason, new_run_id
from haltline.signals import Begun, StopState
from haltline.taking import RunIdUsed
from tests.integration.steps import StepAgents, StepStore

MOST = 3


@dataclass
class Side:
    """One replica, as far as it counts runs."""

    bus: RedisBus
    limits: Limits

    async def begin(self, chat: str) -> Run:
        """A run that holds its chat and was counted. Raises: LimitReached."""
        run = Run(chat, new_run_id(), Arrival())
        assert await self.bus.begin(run) == Begun()
        await self.limits.count_run(run)
        return run


@pytest.fixture
async def sides(make_bus: Any) -> tuple[Side, Side]:
    made = []
    for name in ("one", "other"):
        bus = await make_bus(name)
        made.append(Side(bus, Limits(bus.redis, bus, live_runs=MOST, run_timeout=60)))
    return made[0], made[1]


@pytest.fixture
def chat_of() -> Callable[[int], str]:
    owner = f"ada-{new_run_id()}"
    return lambda n: scoped(owner, f"chat-{n}")


async def test_as_many_runs_as_may_whoever_asks(sides: tuple[Side, Side], chat_of: Callable[[int], str]) -> None:
    for n in range(MOST):
        await sides[n % 2].begin(chat_of(n))
    for n in (MOST, MOST + 1):
        with pytest.raises(LimitReached, match="3 runs are live"):
            await sides[n % 2].begin(chat_of(n))
    await sides[0].begin(scoped(f"bob-{new_run_id()}", "chat-0"))


@pytest.mark.parametrize("over", ["ended", "stopped", "about to end by itself", "its replica is dead"])
async def test_a_run_that_is_over_takes_no_place(
    over: str, sides: tuple[Side, Side], chat_of: Callable[[int], str], redis: Redis
) -> None:
    one, other = sides
    run = await one.begin(chat_of(0))
    for n in range(1, MOST):
        await other.begin(chat_of(n))
    if over == "ended":
        await one.bus.end(run, Receipt(run.run_id, Outcome.DONE))
    elif over == "stopped":
        assert (await other.bus.stop(run.chat_id, Arrival())).state is StopState.LIVE
    elif over == "about to end by itself":
        await one.bus.closing(run)
    else:
        one.bus.pulse.remove(run)
        await redis.delete(scripts.pulse_key(one.bus.replica_id))
    await other.begin(chat_of(MOST))
    with pytest.raises(LimitReached):
        await one.begin(chat_of(MOST + 1))


async def test_of_many_at_once_just_as_many_as_may(sides: tuple[Side, Side], chat_of: Callable[[int], str]) -> None:
    """Some places are free, some were taken by runs that have ended: all find that out together."""
    for _ in range(20):
        runs = [await sides[n % 2].begin(chat_of(n)) for n in range(MOST)]
        for n, run in enumerate(runs):
            await sides[n % 2].bus.end(run, Receipt(run.run_id, Outcome.DONE))
        begun = await asyncio.gather(*(sides[n % 2].begin(chat_of(10 + n)) for n in range(40)), return_exceptions=True)
        assert Counter(type(b).__name__ for b in begun) == {"Run": MOST, "LimitReached": 40 - MOST}
        for n, run in enumerate(begun):
            if isinstance(run, Run):
                await sides[n % 2].bus.end(run, Receipt(run.run_id, Outcome.DONE))
        await asyncio.gather(
            *(  # the refused ones hold their chats still
                side.bus.end(run, Receipt(run.run_id, Outcome.REFUSED))
                for side in sides
                for run in list(side.bus.pulse.runs.values())
            )
        )


async def test_one_who_drops_what_had_ended_never_drops_who_came_since(
    sides: tuple[Side, Side], chat_of: Callable[[int], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the look at who still lives and the dropping of the others, their chats are taken anew."""
    one, other = sides
    runs = [await one.begin(chat_of(n)) for n in range(MOST)]
    for run in runs:
        await one.bus.end(run, Receipt(run.run_id, Outcome.DONE))
    looked, go_on, real = asyncio.Event(), asyncio.Event(), one.bus.going_on

    async def slowly(known: Any) -> set[str]:
        found = await real(known)
        looked.set()
        await go_on.wait()
        return found

    monkeypatch.setattr(one.bus, "going_on", slowly)
    late = asyncio.create_task(one.begin(chat_of(MOST)))
    await looked.wait()
    for n in range(MOST):  # the same chats
        await other.begin(chat_of(n))
    go_on.set()
    with pytest.raises(LimitReached):
        await late


async def test_what_is_counted_goes_with_its_last_run(
    sides: tuple[Side, Side], chat_of: Callable[[int], str], redis: Redis
) -> None:
    await sides[0].begin(chat_of(0))
    assert 60 < await redis.ttl(f"live_runs:{chat_of(0).partition('/')[0]}") <= 120


# ---- a run that is refused


@pytest.fixture
async def runner(make_bus: Any, tmp_path: Path) -> AsyncIterator[Runner]:
    bus, store, agents = await make_bus("runs"), FileChatStore(tmp_path), StepAgents()
    index, limits = ChatIndex(bus.redis, bus, store), Limits(bus.redis, bus, live_runs=1, run_timeout=60)
    made = Runner(Deps(bus, store, index, agents, Metrics(), limits, 600))  # type: ignore[arg-type]
    yield made
    agents.let_go.set()
    await made.drain(0)


async def test_a_refused_run_leaves_no_trace(runner: Runner, chat_of: Callable[[int], str], redis: Redis) -> None:
    await runner.start(chat_of(0), "hello", Arrival())
    run_id = new_run_id()
    for _ in range(3):  # its id may be sent again
        with pytest.raises(LimitReached):
            await runner.start(chat_of(1), "hello", Arrival(), run_id=run_id)
    assert await redis.keys(f"*{chat_of(1)}*") == [scripts.record_key(chat_of(1))]
    assert runner.live_count == 1
    bus = runner._deps.bus
    assert await bus.live_among([chat_of(1)]) == {}
    stopped = await bus.stop(chat_of(1), Arrival(), run_id=run_id)
    assert stopped.state is StopState.IDLE  # no run of this id has ended
    await bus.stop(chat_of(0), Arrival())
    execution = await runner.start(chat_of(1), "hello", Arrival(), run_id=run_id)
    assert (await execution.ended(5)).reason is StopReason.USER  # type: ignore[union-attr]
    with pytest.raises(RunIdUsed):
        await runner.start(chat_of(1), "hello", Arrival(), run_id=run_id)


async def test_what_was_told_of_a_refused_run_is_not_told_of_the_run_that_its_id_names_then(
    sides: tuple[Side, Side], chat_of: Callable[[int], str]
) -> None:
    """A stop came while the first was being refused; the next one finds the second, which is live."""
    one, other = sides
    run = Run(chat_of(0), new_run_id(), Arrival())
    assert await one.bus.begin(run) == Begun()
    assert (await other.bus.stop(run.chat_id, Arrival(), wait=True)).state is StopState.LIVE
    waiting = asyncio.create_task(other.bus.wait_end(run.chat_id, run.run_id, 5))
    await asyncio.sleep(0)
    await one.bus.end(run, Receipt(run.run_id, Outcome.REFUSED))
    refused = await waiting
    assert refused is None or refused.outcome is Outcome.REFUSED
    again = Run(run.chat_id, run.run_id, Arrival())
    assert await one.bus.begin(again) == Begun()
    assert (await other.bus.stop(run.chat_id, Arrival(), wait=True)).run_id == run.run_id
    waiting = asyncio.create_task(other.bus.wait_end(run.chat_id, run.run_id, 5))
    await asyncio.wait({waiting}, timeout=0.05)
    assert not waiting.done()
    await one.bus.end(again, Receipt(run.run_id, Outcome.STOPPED))
    assert (await waiting).outcome is Outcome.STOPPED  # type: ignore[union-attr]


# ---- chats


@pytest.fixture
async def room_for_one(make_bus: Any, tmp_path: Path) -> AsyncIterator[Runner]:
    """Every principal may have one chat, and as many runs as it likes."""
    bus, agents = await make_bus("chats"), StepAgents()
    store = StepStore(tmp_path)
    deps = Deps(bus, store, ChatIndex(bus.redis, bus, store), agents, Metrics(), Limits(bus.redis, bus), 600, 1)  # type: ignore[arg-type]
    made = Runner(deps)
    yield made
    agents.let_go.set()
    await made.drain(0)


async def written(runner: Runner, chat: str) -> None:
    """A chat that is there, without a run."""
    document = ChatDocument(chat_id=chat)
    document.append("user", "hello", new_run_id())
    await runner._deps.store.save(document)
    await runner._deps.index.put(chat, 1, live=False)


@pytest.mark.parametrize("named", [True, False])
async def test_a_message_that_is_stopped_before_it_begins_makes_no_chat_beyond_those_that_may_be(
    named: bool, room_for_one: Runner, chat_of: Callable[[int], str]
) -> None:
    await written(room_for_one, chat_of(0))
    bus, arrival, run_id = room_for_one._deps.bus, Arrival(), new_run_id()
    await bus.stop(chat_of(1), Arrival(), run_id=run_id if named else "")
    with pytest.raises(LimitReached, match="1 chats"):
        await room_for_one.start(chat_of(1), "hello", arrival, run_id=run_id)
    assert (await room_for_one._deps.store.load(chat_of(1))).version == 0
    await bus.stop(chat_of(0), Arrival(), run_id=run_id if named else "")
    execution = await room_for_one.start(chat_of(0), "hello", arrival, run_id=run_id)
    assert (await execution.ended(5)).reason is StopReason.USER  # type: ignore[union-attr]


async def test_a_chat_that_is_deleted_while_its_next_message_is_read_is_a_new_one(
    room_for_one: Runner, chat_of: Callable[[int], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its place may have gone to another chat by then."""
    await written(room_for_one, chat_of(0))
    deps, read = room_for_one._deps, FileChatStore.load

    async def deleted_since(store: FileChatStore, chat: str) -> ChatDocument:
        document = await read(store, chat)
        monkeypatch.setattr(StepStore, "load", read)
        await deps.store.delete(await read(store, chat))
        await deps.index.remove(chat)
        await written(room_for_one, chat_of(1))
        return document

    monkeypatch.setattr(StepStore, "load", deleted_since)
    with pytest.raises(LimitReached):
        await room_for_one.start(chat_of(0), "hello", Arrival())


async def test_a_chat_that_is_there_and_not_listed_goes_on(room_for_one: Runner, chat_of: Callable[[int], str]) -> None:
    """As where Redis was gone when it was written."""
    await written(room_for_one, chat_of(0))
    with pytest.raises(LimitReached):
        await room_for_one.start(chat_of(1), "hello", Arrival())
    await room_for_one._deps.store.save(ChatDocument(chat_id=chat_of(1)))
    await room_for_one.start(chat_of(1), "hello", Arrival())


# ---- requests


async def test_no_window_has_more_requests_than_may(
    make_bus: Any, monkeypatch: pytest.MonkeyPatch, redis: Redis
) -> None:
    """However they come: by the times that Redis itself has noted."""
    rnd = random.Random(7)
    monkeypatch.setattr(limits_module, "WINDOW_MS", 200)
    bus = await make_bus("one")
    limits, owner = Limits(bus.redis, bus, requests_per_minute=10), f"ada-{new_run_id()}"
    let_in: list[int] = []
    while len(let_in) < 35:
        try:
            await limits.count_request(owner)
        except LimitReached:
            await asyncio.sleep(rnd.random() * 0.1)
        else:
            let_in.append(int((await redis.lrange(f"requests:{owner}", 0, 0))[0]))
            if rnd.random() < 0.3:
                await asyncio.sleep(rnd.random() * 0.05)
    assert all(later - earlier >= 200 for earlier, later in zip(let_in, let_in[10:], strict=False))


async def test_what_is_not_limited_costs_nothing(make_bus: Any) -> None:
    bus = await make_bus("one")
    limits, run = Limits(bus.redis, bus), Run("chat", new_run_id(), Arrival())
    await bus.redis.aclose()
    await limits.count_request("ada")
    await limits.count_run(run)
