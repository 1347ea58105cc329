"""The life of a run, its races driven step by step: a real bus, real files, an agent that waits for the test."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from haltline import redis_scripts as scripts
from haltline import runner
from haltline.authentication import NoAuthentication
from haltline.chat_index import WHOLE, ChatIndex
from haltline.events import Done, Event, Failed, Stopped, Text
from haltline.execution import Execution
from haltline.limits import Limits
from haltline.metrics import Metrics
from haltline.redis_bus import RedisBus
from haltline.resources import Resources
from haltline.runner import Deps, Draining, Runner
from haltline.runs import Arrival, Outcome, StopReason, new_run_id
from haltline.settings import Settings
from haltline.signals import StopState
from haltline.stopping import stop_all
from haltline.taking import ChatBusy, RunIdUsed
from tests.integration.steps import StepAgents, StepStore

SOON = 5.0  # seconds: a deadline for what must happen, never a measure


@dataclass
class Bench:
    """Two replicas: `runner` runs the chats, `other` is where stops land."""

    runner: Runner
    agents: StepAgents
    store: StepStore
    bus: RedisBus
    other: RedisBus
    chat: str

    async def start(self, message: str = "hello", **how: Any) -> Execution:
        async with asyncio.timeout(SOON):
            return await self.runner.start(self.chat, message, how.pop("arrival", Arrival()), **how)

    async def running(self, *chunks: str) -> Execution:
        """A run that has said `chunks`."""
        execution = await self.start()
        self.agents.say(*chunks)
        said = await texts(execution, len(chunks))
        assert said == list(chunks)
        await soon(self.agents.started)
        return execution

    async def transcript(self) -> list[tuple[Any, ...]]:
        document = await self.store.load(self.chat)
        return [(m["role"], m["text"], m.get("stopped", False), m.get("reason", "")) for m in document.messages]

    async def history(self) -> list[tuple[str, str]]:
        snapshot = (await self.store.load(self.chat)).snapshot
        assert snapshot is not None
        return [(m["role"], m["content"][0]["text"]) for m in json.loads(snapshot)]


async def soon(event: asyncio.Event) -> None:
    async with asyncio.timeout(SOON):
        await event.wait()


async def texts(execution: Execution, count: int) -> list[str]:
    found: list[str] = []
    while len(found) < count:
        events = await execution.stream.take(SOON)
        assert events, "nothing was said"
        found += [e.text for e in events if isinstance(e, Text)]
    return found


async def rest(execution: Execution) -> list[Event]:
    """What is said from here to the closing event, which must be the last."""
    found: list[Event] = []
    while not (found and not isinstance(found[-1], Text)):
        events = await execution.stream.take(SOON)
        assert events, "no closing event"
        found += events
    return found


async def ended(execution: Execution) -> tuple[Outcome, StopReason | None]:
    receipt = await execution.ended(SOON)
    assert receipt is not None
    return receipt.outcome, receipt.reason


@pytest.fixture
async def bench(make_bus: Any, tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[Bench]:
    bus, other = await make_bus("runs"), await make_bus("stops")
    agents, store = StepAgents(), StepStore(tmp_path)
    runner = Runner(Deps(bus, store, ChatIndex(bus.redis, bus, store), agents, Metrics(), Limits(bus.redis, bus), 600))  # type: ignore[arg-type]
    yield Bench(runner, agents, store, bus, other, f"runs-{abs(hash(request.node.name))}")
    store.free.set()
    agents.may_make.set()
    agents.let_go.set()
    await runner.drain(0)


# ---- a stop that means all


def resources_of(bench: Bench) -> Resources:
    """What a replica holds that runs no chat: where the stop arrives."""
    index = ChatIndex(bench.other.redis, bench.other, bench.store)
    settings, limits = Settings(model_provider="scripted"), Limits(bench.other.redis, bench.other)
    return Resources(settings, bench.other, bench.store, index, Metrics(), NoAuthentication(), limits)


async def test_a_stop_of_all_halts_a_run_that_is_not_yet_listed(bench: Bench) -> None:
    """Its chat is taken, and its first write is held up: the list of live runs does not name it."""
    bench.store.free.clear()
    execution = await bench.start()
    await soon(bench.store.saving)
    verdicts = await stop_all(resources_of(bench), Arrival())
    assert bench.chat not in [v.chat_id for v in verdicts]
    bench.store.free.set()
    assert await rest(execution) == [Stopped()]
    assert await ended(execution) == (Outcome.STOPPED, StopReason.USER)


async def test_a_stop_of_all_spares_a_run_that_came_after_it(bench: Bench) -> None:
    await stop_all(resources_of(bench), Arrival())
    execution = await bench.running("on")
    bench.agents.end()
    assert await rest(execution) == [Done()]


async def test_a_stop_of_all_waits_for_no_store(bench: Bench) -> None:
    """The list of chats was never made, and the store does not answer: what is known to be live is stopped first."""
    execution = await bench.running("on")
    resources = resources_of(bench)
    await resources.bus.redis.delete(WHOLE)  # type: ignore[attr-defined]
    scanning, may_scan = asyncio.Event(), asyncio.Event()

    async def scan(namespace: str | None) -> list[Any]:
        scanning.set()
        await may_scan.wait()
        return []

    bench.store.scan = scan  # type: ignore[method-assign]
    stopping = asyncio.create_task(stop_all(resources, Arrival()))
    assert await rest(execution) == [Stopped()]
    await soon(scanning)
    may_scan.set()
    assert bench.chat in [v.chat_id for v in await stopping]  # others may have left theirs in the list


# ---- by itself


async def test_a_run_that_ends_by_itself(bench: Bench) -> None:
    execution = await bench.running("Hel", "lo")
    assert await bench.transcript() == [("user", "hello", False, "")]  # before the answer is there
    bench.agents.end()
    assert await rest(execution) == [Done()]
    assert await ended(execution) == (Outcome.DONE, None)
    assert await bench.transcript() == [("user", "hello", False, ""), ("assistant", "Hello", False, "")]
    assert bench.agents.states == [{"chat_id": bench.chat, "run_id": execution.run_id, "principal": None}]


async def test_the_done_frame_comes_after_the_chat_is_free(bench: Bench) -> None:
    for n in range(20):
        execution = await bench.start(str(n))
        bench.agents.end()
        assert await rest(execution) == [Done()]  # so the next message is never refused


async def test_an_agent_that_fails(bench: Bench) -> None:
    execution = await bench.running("Hel")
    bench.agents.fail(RuntimeError("secret detail"))
    assert await rest(execution) == [Failed("The run failed (RuntimeError). The log of this replica has the details.")]
    assert (await bench.transcript())[-1] == ("assistant", "Hel", False, "")
    assert await bench.history() == [("user", "hello"), ("assistant", "Hel")]


async def test_an_agent_that_stops_itself(bench: Bench) -> None:
    bench.agents.stops_itself = True
    execution = await bench.running("Hel")
    bench.agents.end()
    assert await rest(execution) == [Stopped()]
    assert await ended(execution) == (Outcome.STOPPED, StopReason.AGENT)


async def test_the_next_turn_knows_the_last(bench: Bench) -> None:
    first = await bench.running("one")
    bench.agents.end()
    await rest(first)
    second = await bench.start("again")
    bench.agents.say("two")
    bench.agents.end()
    await rest(second)
    assert await bench.history() == [("user", "hello"), ("assistant", "one"), ("user", "again"), ("assistant", "two")]


# ---- stopped


async def test_a_stop_between_two_tokens(bench: Bench) -> None:
    execution = await bench.running("Hel", "lo ")
    told = asyncio.Event()
    execution.run.token.on_stop(told.set)
    verdict = await bench.other.stop(bench.chat, Arrival(), wait=True)
    await soon(told)  # the push may come after the reply
    bench.agents.say("never seen")
    assert await rest(execution) == [Stopped()]
    await soon(bench.agents.cancelled)
    receipt = await bench.other.wait_end(bench.chat, verdict.run_id, SOON)
    await ended(execution)  # the receipt may come before the reply of the END that sent it
    assert receipt == execution.receipt
    assert receipt is not None
    assert receipt.reason is StopReason.USER
    assert receipt.halted_ms is not None
    assert receipt.upstream_closed_ms is not None
    assert await bench.transcript() == [("user", "hello", False, ""), ("assistant", "Hello ", True, "user")]
    assert await bench.history() == [("user", "hello"), ("assistant", "Hello ")]
    assert not execution.stream.put(Text("late"))


async def test_a_stop_before_the_first_token(bench: Bench) -> None:
    execution = await bench.start()
    await soon(bench.agents.started)
    await bench.other.stop(bench.chat, Arrival())
    assert await rest(execution) == [Stopped()]
    await ended(execution)
    assert await bench.transcript() == [("user", "hello", False, ""), ("assistant", "", True, "user")]
    assert await bench.history() == [("user", "hello"), ("assistant", "[stopped before any text]")]


async def test_a_stop_while_the_agent_is_being_made(bench: Bench) -> None:
    bench.agents.may_make.clear()
    execution = await bench.start()
    await soon(bench.agents.making)
    await bench.other.stop(bench.chat, Arrival())
    assert await rest(execution) == [Stopped()]
    assert await ended(execution) == (Outcome.STOPPED, StopReason.USER)
    assert not bench.agents.started.is_set()


async def test_a_stop_that_came_before_the_run_registers(bench: Bench) -> None:
    run_id = new_run_id()
    assert (await bench.other.stop(bench.chat, Arrival(), run_id=run_id)).state is StopState.IDLE
    execution = await bench.start(run_id=run_id)
    assert await rest(execution) == [Stopped()]
    await ended(execution)
    assert not bench.agents.started.is_set()
    assert await bench.transcript() == [("user", "hello", False, ""), ("assistant", "", True, "user")]


async def test_a_stop_while_the_message_is_being_saved(bench: Bench) -> None:
    bench.store.free.clear()
    execution = await bench.start()
    await soon(bench.store.saving)
    await bench.other.stop(bench.chat, Arrival())
    assert await rest(execution) == [Stopped()]  # the store does not hold up the frame
    bench.store.free.set()
    assert await ended(execution) == (Outcome.STOPPED, StopReason.USER)
    assert await bench.transcript() == [("user", "hello", False, ""), ("assistant", "", True, "user")]


async def test_the_next_message_waits_for_the_end_of_a_stopped_run(bench: Bench) -> None:
    execution = await bench.running("Hel")
    bench.store.free.clear()
    bench.store.saving.clear()
    await bench.other.stop(bench.chat, Arrival())
    assert await rest(execution) == [Stopped()]
    await soon(bench.store.saving)
    following = asyncio.create_task(bench.start("again"))
    record = scripts.record_key(bench.chat)
    async with asyncio.timeout(SOON):
        while '"waiters"' not in (await bench.bus.redis.get(record) or ""):
            await asyncio.sleep(0)
    assert not following.done()
    bench.store.free.set()
    second = await following
    bench.agents.say("yes")
    bench.agents.end()
    assert await rest(second) == [Text("yes"), Done()]


async def test_a_stop_by_hand_marks_the_chat_before_the_frame(bench: Bench, make_bus: Any) -> None:
    execution = await bench.running("Hel")
    await bench.bus.redis.set(scripts.mailbox_key(bench.chat), "1")
    bench.store.free.clear()
    await bench.bus.watch.look()
    assert await rest(execution) == [Stopped()]
    assert '"closing":true' in await bench.bus.redis.get(scripts.record_key(bench.chat))


async def test_an_agent_that_does_not_let_go_holds_nobody_up(bench: Bench) -> None:
    bench.agents.stubborn = True
    execution = await bench.running("Hel")
    await bench.other.stop(bench.chat, Arrival())
    assert await rest(execution) == [Stopped()]
    assert await ended(execution) == (Outcome.STOPPED, StopReason.USER)
    assert execution.receipt is not None
    assert execution.receipt.upstream_closed_ms is None  # not claimed
    following = await bench.start("again")
    bench.agents.end()
    assert await rest(following) == [Done()]


# ---- who comes first


async def test_a_stop_that_finds_the_answer_complete_says_finished(bench: Bench) -> None:
    execution = await bench.running("all of it")
    bench.store.free.clear()
    bench.store.saving.clear()
    bench.agents.end()
    await soon(bench.store.saving)  # the closing write is under way
    verdict = await bench.other.stop(bench.chat, Arrival(), wait=True)
    assert verdict.state is StopState.LIVE
    bench.store.free.set()
    assert await rest(execution) == [Done()]
    receipt = await bench.other.wait_end(bench.chat, verdict.run_id, SOON)
    assert receipt is not None
    assert receipt.outcome is Outcome.DONE
    following = await bench.start("again")  # and the stop was consumed with the run it came too late for
    bench.agents.end()
    assert await rest(following) == [Done()]


async def test_two_stops_of_one_run_are_told_the_same(bench: Bench) -> None:
    execution = await bench.running("Hel")
    verdicts = await asyncio.gather(
        *(bus.stop(bench.chat, Arrival(), wait=True) for bus in (bench.bus, bench.other, bench.other))
    )
    covered = [v for v in verdicts if v.state is not StopState.IDLE]
    receipts = [await bench.other.wait_end(bench.chat, v.run_id, SOON) for v in covered]
    await ended(execution)
    assert receipts == [execution.receipt] * len(covered)
    assert covered


async def test_a_message_for_a_busy_chat_is_refused_and_changes_nothing(bench: Bench) -> None:
    execution = await bench.running("Hel")
    with pytest.raises(ChatBusy):
        await bench.start("again")
    assert await bench.transcript() == [("user", "hello", False, "")]
    bench.agents.end()
    assert await rest(execution) == [Done()]


async def test_a_message_that_stops_the_live_run_first(bench: Bench) -> None:
    execution = await bench.running("Hel")
    following = asyncio.create_task(bench.start("again", stop_first=True))
    assert await rest(execution) == [Stopped()]
    assert await ended(execution) == (Outcome.STOPPED, StopReason.SUPERSEDED)
    second = await following
    bench.agents.end()
    assert await rest(second) == [Done()]
    assert [m[:2] for m in await bench.transcript()] == [
        ("user", "hello"),
        ("assistant", "Hel"),
        ("user", "again"),
        ("assistant", ""),
    ]


async def test_a_run_id_sent_again_after_its_end_starts_nothing(bench: Bench) -> None:
    run_id = new_run_id()
    execution = await bench.start(run_id=run_id)
    bench.agents.end()
    await rest(execution)
    with pytest.raises(RunIdUsed):
        await bench.start(run_id=run_id)


async def test_a_hundred_messages_at_once_for_one_chat(bench: Bench) -> None:
    results = await asyncio.gather(*(bench.start(str(n)) for n in range(100)), return_exceptions=True)
    taken = [r for r in results if isinstance(r, Execution)]
    assert len(taken) == 1
    assert sum(isinstance(r, ChatBusy) for r in results) == 99
    bench.agents.end()
    assert await rest(taken[0]) == [Done()]


# ---- other ends


async def test_a_lost_chat_is_not_written(bench: Bench, make_bus: Any) -> None:
    execution = await bench.running("Hel")
    await bench.bus.redis.delete(scripts.pulse_key(bench.bus.replica_id))
    thief_agents, thief_bus = StepAgents(), await make_bus("thief")
    index = ChatIndex(thief_bus.redis, thief_bus, bench.store)
    limits = Limits(thief_bus.redis, thief_bus)
    thief = Runner(Deps(thief_bus, bench.store, index, thief_agents, Metrics(), limits, 600))  # type: ignore[arg-type]
    second = await thief.start(bench.chat, "mine", Arrival())
    thief_agents.say("x")
    await texts(second, 1)
    await bench.bus.watch.look()
    closing = await rest(execution)
    assert isinstance(closing[-1], Failed)
    assert (await ended(execution))[0] is Outcome.LOST
    thief_agents.end()
    assert await rest(second) == [Done()]
    # The message of the run that was lost is there, closed as stopped; its answer is not.
    assert [m[:3] for m in await bench.transcript()] == [
        ("user", "hello", False),
        ("assistant", "", True),
        ("user", "mine", False),
        ("assistant", "x", False),
    ]


async def test_a_store_that_fails_at_the_opening(bench: Bench) -> None:
    bench.store.broken = True
    execution = await bench.start()
    closing = await rest(execution)
    assert closing == [
        Failed("The answer could not be saved: the session store cannot be written: No space left on device.")
    ]
    assert not bench.agents.started.is_set()
    bench.store.broken = False
    assert await bench.transcript() == []
    following = await bench.start("again")
    bench.agents.end()
    assert await rest(following) == [Done()]


async def test_a_store_that_fails_at_the_opening_is_told_though_the_agent_is_still_being_made(bench: Bench) -> None:
    bench.agents.may_make.clear()
    bench.store.free.clear()
    bench.store.broken = True
    execution = await bench.start()
    await soon(bench.agents.making)
    bench.store.free.set()
    assert isinstance((await rest(execution))[-1], Failed)
    assert not bench.agents.made


@pytest.mark.parametrize("error", [RuntimeError, SystemExit, asyncio.CancelledError])
async def test_an_agent_that_cannot_be_made_is_told_after_the_message_was_saved(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    async def make() -> Any:
        raise error

    monkeypatch.setattr(bench.agents, "make", make)
    bench.store.free.clear()
    execution = await bench.start()
    await soon(bench.store.saving)
    bench.store.saving.clear()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.1):
            await bench.store.saving.wait()  # the closing write's
    bench.store.free.set()
    assert isinstance((await rest(execution))[-1], Failed)
    assert [role for role, *_ in await bench.transcript()] == ["user", "assistant"]


async def test_a_store_that_fails_at_the_end(bench: Bench) -> None:
    execution = await bench.running("Hello")
    bench.store.broken = True
    bench.agents.end()
    assert isinstance((await rest(execution))[-1], Failed)
    receipt = await execution.ended(SOON)
    assert receipt is not None
    assert not receipt.saved
    bench.store.broken = False
    assert await bench.transcript() == [("user", "hello", False, "")]


async def test_a_run_that_could_not_be_saved_ends_after_it_was_listed(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or it would come back into the list when its chat is deleted right after."""
    listed, put = asyncio.Event(), ChatIndex.put

    async def late(*args: Any, **how: Any) -> float:
        await listed.wait()
        return await put(*args, **how)

    monkeypatch.setattr(ChatIndex, "put", late)
    execution = await bench.running("Hello")
    bench.store.broken = True
    bench.agents.end()
    assert await execution.ended(0.2) is None
    listed.set()
    assert isinstance((await rest(execution))[-1], Failed)


async def test_a_run_that_a_deletion_stopped_is_written_all_the_same(bench: Bench) -> None:
    """The deletion may fail yet; it deletes the chat after the run's end."""
    execution = await bench.running("Hel")
    await bench.other.stop(bench.chat, Arrival(), run_id=execution.run_id, reason=StopReason.DELETED)
    assert await rest(execution) == [Stopped()]
    assert await ended(execution) == (Outcome.STOPPED, StopReason.DELETED)
    assert (await bench.transcript())[-1] == ("assistant", "Hel", True, "deleted")


@pytest.mark.parametrize(("first", "meant"), [("message", True), ("stop", False)])
@pytest.mark.parametrize("door", [True, False])
async def test_a_stop_without_the_bus_means_runs_that_came_before_it(
    bench: Bench, first: str, meant: bool, door: bool
) -> None:
    earlier, later = (Arrival(1_000), Arrival(2_000)) if door else (Arrival(), Arrival())
    message, stop = (earlier, later) if first == "message" else (later, earlier)
    execution = await bench.start(arrival=message)
    found = bench.runner.stop_here(bench.chat, None, stop)
    assert (found is execution) is meant
    assert bench.runner.stop_here(bench.chat, execution.run_id, stop) is execution  # named, it is meant anyway


async def test_a_replica_that_ends_gives_its_runs_time_then_halts_them(bench: Bench) -> None:
    execution = await bench.running("Hel")
    draining = asyncio.create_task(bench.runner.drain(0.05))
    closing = await rest(execution)
    assert closing == [Failed("The server is shutting down, so the run was stopped. Send the message again.")]
    await draining
    assert await bench.transcript() == [("user", "hello", False, ""), ("assistant", "Hel", True, "shutdown")]
    with pytest.raises(Draining):
        await bench.start("again")


async def test_a_run_that_begins_while_its_replica_ends_has_the_same_time(bench: Bench) -> None:
    bench.store.may_load.clear()
    starting = asyncio.create_task(bench.start())
    await asyncio.sleep(0)  # it was let in
    draining = asyncio.create_task(bench.runner.drain(SOON))
    await asyncio.sleep(0)
    assert not draining.done()
    bench.store.may_load.set()
    execution = await starting
    bench.agents.say("Hello")
    bench.agents.end()
    assert await rest(execution) == [Text("Hello"), Done()]
    await draining


async def test_a_run_that_begins_after_that_time_is_halted(bench: Bench) -> None:
    bench.store.may_load.clear()
    starting = asyncio.create_task(bench.start())
    await asyncio.sleep(0)
    draining = asyncio.create_task(bench.runner.drain(0))
    for _ in range(20):
        await asyncio.sleep(0)  # a time of 0 is over within a few turns of the loop
    assert not draining.done()
    bench.store.may_load.set()
    execution = await starting
    assert isinstance((await rest(execution))[-1], Failed)
    await draining


async def test_a_run_that_is_stuck_does_not_hold_a_replica_that_ends(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "UNWIND", 0.01)
    bench.store.may_load.clear()
    starting = asyncio.create_task(bench.start())
    await asyncio.sleep(0)
    async with asyncio.timeout(SOON):
        await bench.runner.drain(0)
    assert not starting.done()
    bench.store.may_load.set()
    await starting


async def test_a_run_at_its_time_limit(make_bus: Any, tmp_path: Path) -> None:
    bus, agents, store = await make_bus(), StepAgents(), StepStore(tmp_path)
    deps = Deps(bus, store, ChatIndex(bus.redis, bus, store), agents, Metrics(), Limits(bus.redis, bus), 0.05)  # type: ignore[arg-type]
    execution = await Runner(deps).start(f"limit-{tmp_path.name}", "hello", Arrival())
    assert await rest(execution) == [
        Failed("The run reached its time limit (RUN_TIMEOUT, or the Lambda function's) and was stopped.")
    ]
    assert await ended(execution) == (Outcome.STOPPED, StopReason.DEADLINE)


async def test_a_request_given_up_while_the_run_begins_leaves_no_live_run(bench: Bench) -> None:
    for turns in range(1, 40):
        chat = f"{bench.chat}-{turns}"
        starting = asyncio.create_task(bench.runner.start(chat, "hello", Arrival()))
        for _ in range(turns):
            await asyncio.sleep(0)
        starting.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            (await starting).run.token.stop(StopReason.DISCONNECT)  # it had begun before it was given up
        following = None
        async with asyncio.timeout(SOON):
            while following is None:  # refused while the other one begins and is halted, but not for long
                with contextlib.suppress(ChatBusy):
                    following = await bench.runner.start(chat, "again", Arrival())
        following.run.token.stop(StopReason.USER)
        assert await ended(following) == (Outcome.STOPPED, StopReason.USER)
    async with asyncio.timeout(SOON):  # the last one given up may come to its turn only after the one that followed
        await bench.runner._quiet.wait()
    assert bench.runner.live_count == 0


# ---- at random


@pytest.mark.parametrize("seed", range(100))
async def test_a_stop_at_a_random_step(bench: Bench, seed: int) -> None:
    """Whatever the step, the frame, the receipt, the transcript and the next turn agree."""
    rnd = random.Random(seed)
    execution = await bench.start()
    bench.agents.say(*"abc")
    if rnd.random() < 0.7:
        bench.agents.end()
    for _ in range(rnd.randrange(60)):
        await asyncio.sleep(0)
    verdict = await bench.other.stop(bench.chat, Arrival(), wait=True)
    events = await rest(execution)
    outcome, _ = await ended(execution)
    said = "".join(e.text for e in events if isinstance(e, Text))
    assert events[-1] == (Stopped() if outcome is Outcome.STOPPED else Done())
    if verdict.state is StopState.LIVE:
        receipt = await bench.other.wait_end(bench.chat, verdict.run_id, SOON)
        assert receipt is not None
        assert receipt.outcome is outcome
    else:
        assert outcome is Outcome.DONE
    assert (await bench.transcript())[-1][:3] == ("assistant", said, outcome is Outcome.STOPPED)
    while not bench.agents.steps.empty():
        bench.agents.steps.get_nowait()
    following = await bench.start("again")  # no stop is left over for it
    bench.agents.say("z")
    bench.agents.end()
    assert await rest(following) == [Text("z"), Done()]
    roles = [role for role, _ in await bench.history()]
    assert roles == ["user", "assistant"] * (len(roles) // 2)
