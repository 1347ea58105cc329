"""The end of each run as EventBridge hears it, and an EventBridge that nobody may have to wait for."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest
from anyio import to_thread

from haltline.agent import AgentSource
from haltline.announcements import AT_ONCE, Announcements
from haltline.chat_index import ChatIndex
from haltline.events import Done, Failed, Stopped
from haltline.limits import Limits
from haltline.principals import scoped
from haltline.prometheus import PrometheusMetrics
from haltline.runner import Deps, Runner
from haltline.runs import Arrival, Outcome, Receipt, StopReason, Usage
from haltline.settings import Settings
from tests.integration.steps import StepAgents, StepStore
from tests.integration.test_runs import SOON, Bench, ended, rest
from tests.moto import REGION, Aws, Canned
from tests.stack import Replica, running_stack

SECRET = "green-giraffe"  # what users and models say
_numbers = itertools.count()


@dataclass
class EventBus:
    """A bus of moto's EventBridge, with a rule that copies all of it into a log."""

    aws: Aws
    name: str

    def heard(self) -> list[dict[str, Any]]:
        """Every event, as a rule's target gets it."""
        found = self.aws.client("logs").filter_log_events(logGroupName=f"/{self.name}")["events"]
        return [json.loads(event["message"]) for event in found]


@pytest.fixture
def event_bus(aws: Aws) -> EventBus:
    name = f"bus-{next(_numbers)}"
    aws.client("logs").create_log_group(logGroupName=f"/{name}")
    events = aws.client("events")
    events.create_event_bus(Name=name)
    events.put_rule(Name="all", EventBusName=name, EventPattern='{"source": ["haltline"]}')
    target = {"Id": "log", "Arn": f"arn:aws:logs:{REGION}:123456789012:log-group:/{name}"}
    assert not events.put_targets(Rule="all", EventBusName=name, Targets=[target])["FailedEntryCount"]
    return EventBus(aws, name)


# ---- what is told


async def test_an_event_has_the_clients_id_of_the_chat_and_whose_it_is(aws: Aws, event_bus: EventBus) -> None:
    told = Announcements(event_bus.name, REGION, "one", PrometheusMetrics())
    for chat_id in (scoped("Zoë/ops:1", "rome"), "oslo"):
        await told.run_ended(chat_id, Receipt("r", Outcome.DONE), Usage(), 1)
    details = [event["detail"] for event in event_bus.heard()]
    assert [(d["principal"], d["chat_id"]) for d in details] == [("Zoë/ops:1", "rome"), (None, "oslo")]


@pytest.mark.parametrize(
    ("receipt", "detail_type"),
    [
        (Receipt("r", Outcome.DONE), "RunFinished"),
        (Receipt("r", Outcome.STOPPED, StopReason.USER, 1.5, 2.5), "RunStopped"),
        (Receipt("r", Outcome.ERROR, saved=False), "RunFailed"),
        (Receipt("r", Outcome.LOST, saved=False), "RunFailed"),
    ],
)
async def test_an_event_tells_the_receipt(receipt: Receipt, detail_type: str, event_bus: EventBus) -> None:
    metrics = PrometheusMetrics()
    announcements = Announcements(event_bus.name, REGION, "replica1", metrics)
    await announcements.run_ended("trip", receipt, Usage(12, 34, estimated=True), 5678)
    [event] = event_bus.heard()
    assert (event["source"], event["detail-type"]) == ("haltline", detail_type)
    assert event["detail"] == {
        "chat_id": "trip",
        "principal": None,
        "run_id": "r",
        "outcome": receipt.outcome,
        "reason": receipt.reason,
        "halted_ms": receipt.halted_ms,
        "upstream_closed_ms": receipt.upstream_closed_ms,
        "saved": receipt.saved,
        "replica": "replica1",
        "duration_ms": 5678,
        "tokens": {"input": 12, "output": 34, "estimated": True},
    }
    assert lost(metrics) == 0


def lost(metrics: PrometheusMetrics) -> float | None:
    return metrics.registry.get_sample_value("haltline_events_lost_total")


async def test_an_event_whose_answer_was_lost_is_sent_again(event_bus: EventBus) -> None:
    def lose(environ: dict[str, Any]) -> bool:
        event_bus.aws.lose_reply = None
        return True

    metrics = PrometheusMetrics()
    event_bus.aws.lose_reply = lose
    await Announcements(event_bus.name, REGION, "replica1", metrics).run_ended(
        "trip", Receipt("r", Outcome.DONE), Usage(), 1
    )
    assert [event["detail"]["run_id"] for event in event_bus.heard()] == ["r", "r"]
    assert lost(metrics) == 0


def http(body: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%b" % (len(body), body)


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(http(b'{"FailedEntryCount":1,"Entries":[{"ErrorCode":"InternalFailure"}]}'), id="not taken"),
        pytest.param(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n", id="refused"),
        pytest.param(None, id="no answer"),
    ],
)
async def test_an_event_that_is_lost_is_counted_and_no_more(
    answer: bytes | None, canned: Callable[[bytes | None], Canned]
) -> None:
    canned(answer)
    metrics = PrometheusMetrics()
    announcements = Announcements("default", REGION, "replica1", metrics)
    async with asyncio.timeout(SOON):
        await announcements.run_ended("trip", Receipt("r", Outcome.DONE), Usage(), 1)
    assert lost(metrics) == 1


async def test_an_eventbridge_that_answers_in_drops_is_left_alone(aws: Aws, monkeypatch: pytest.MonkeyPatch) -> None:
    over = threading.Event()

    def drip() -> None:
        client, _ = server.accept()
        with client, contextlib.suppress(OSError):
            client.sendall(b"HTTP/1.1 200 OK\r\n")
            while not over.wait(0.2):
                client.sendall(b"X-More: to come\r\n")

    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL_EVENTBRIDGE", f"http://127.0.0.1:{server.getsockname()[1]}")
        threading.Thread(target=drip, daemon=True).start()
        metrics = PrometheusMetrics()
        try:
            async with asyncio.timeout(SOON):
                await Announcements("default", REGION, "r", metrics).run_ended(
                    "trip", Receipt("r", Outcome.DONE), Usage(), 1
                )
        finally:
            over.set()
    assert lost(metrics) == 1


async def test_a_dead_eventbridge_holds_up_neither_many_nor_the_threads_of_others(
    canned: Callable[[None], Canned],
) -> None:
    canned(None)
    metrics = PrometheusMetrics()
    announcements = Announcements("default", REGION, "replica1", metrics)
    async with asyncio.timeout(SOON):
        ends = [announcements.run_ended("trip", Receipt("r", Outcome.DONE), Usage(), 1) for _ in range(4 * AT_ONCE)]
        told = asyncio.gather(*ends)
        await asyncio.sleep(0)  # they begin in their turn, before this goes on
        await to_thread.run_sync(int)
        assert not told.done()
        await told
    assert lost(metrics) == 4 * AT_ONCE


# ---- when it is told


class HeldUp(Announcements):
    """It goes on when the test lets it."""

    def __init__(self) -> None:
        super().__init__("default", REGION, "replica1", PrometheusMetrics())
        self.free, self.told = asyncio.Event(), asyncio.Event()
        self.receipts: list[Receipt] = []

    async def run_ended(self, chat_id: str, receipt: Receipt, usage: Usage, duration_ms: int) -> None:
        self.receipts.append(receipt)
        self.told.set()
        await self.free.wait()


@pytest.fixture
async def bench_with(make_bus: Any, tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[Any]:
    benches: list[Bench] = []

    async def make(announcements: Announcements) -> Bench:
        bus, other = await make_bus("runs"), await make_bus("stops")
        agents, store = StepAgents(), StepStore(tmp_path)
        index, limits = ChatIndex(bus.redis, bus, store), Limits(bus.redis, bus)
        deps = Deps(bus, store, index, agents, PrometheusMetrics(), limits, 600, announcements=announcements)  # type: ignore[arg-type]
        chat = f"announced-{abs(hash(request.node.name))}"
        benches.append(Bench(Runner(deps), agents, store, bus, other, chat))
        return benches[-1]

    yield make
    for bench in benches:
        await bench.runner.drain(0)


async def test_a_dead_eventbridge_delays_no_frame_and_no_message(
    bench_with: Any, canned: Callable[[None], Canned]
) -> None:
    canned(None)
    bench = await bench_with(Announcements("default", REGION, "replica1", PrometheusMetrics()))
    executions = []
    for n in range(3):
        execution = await bench.running("Hel", "lo")  # not refused: the chat is free
        if n == 1:
            await bench.other.stop(bench.chat, Arrival())
            assert await rest(execution) == [Stopped()]
            await bench.agents.cancelled.wait()
        else:
            bench.agents.end() if n == 0 else bench.agents.fail(RuntimeError())
            assert isinstance((await rest(execution))[-1], Done if n == 0 else Failed)
        assert await ended(execution)
        assert not execution.task.done()  # it waits for an answer, and nobody waits for it
        executions.append(execution)
    assert bench.runner.live_count == 0
    await asyncio.wait_for(asyncio.gather(*(e.task for e in executions)), SOON)


async def test_a_stop_halts_the_live_run_and_not_one_that_is_being_announced(bench_with: Any) -> None:
    held_up = HeldUp()
    bench = await bench_with(held_up)
    over = await bench.running("Hel")
    bench.agents.end()
    assert await rest(over) == [Done()]
    await held_up.told.wait()
    live = await bench.running("lo")
    assert bench.runner.live_count == 1
    assert bench.runner.stop_here(bench.chat, None, Arrival()) is live
    assert await rest(live) == [Stopped()]
    assert (await ended(over), await ended(live)) == ((Outcome.DONE, None), (Outcome.STOPPED, StopReason.USER))
    held_up.free.set()
    await asyncio.gather(over.task, live.task)
    assert held_up.receipts == [over.receipt, live.receipt]


async def test_a_replica_that_ends_lets_events_out(bench_with: Any) -> None:
    held_up = HeldUp()
    bench = await bench_with(held_up)
    execution = await bench.running("Hel")
    draining = asyncio.create_task(bench.runner.drain(0))
    assert isinstance((await rest(execution))[-1], Failed)
    await held_up.told.wait()
    await ended(execution)
    assert not draining.done()
    held_up.free.set()
    await asyncio.wait_for(draining, SOON)
    assert execution.task.done()


async def test_a_run_that_could_not_be_saved_is_told_so(bench_with: Any, event_bus: EventBus) -> None:
    bench = await bench_with(Announcements(event_bus.name, REGION, "replica1", PrometheusMetrics()))
    execution = await bench.running("Hel")
    bench.store.broken = True
    bench.agents.end()
    await rest(execution)
    await execution.task
    [event] = event_bus.heard()
    assert event["detail"]["saved"] is False
    assert event["detail"]["tokens"] == {"input": 7, "output": 3, "estimated": False}
    assert event["detail"]["duration_ms"] > 0


# ---- tokens


@pytest.fixture
def agents(tmp_path: Path) -> AgentSource:
    return AgentSource(Settings(_env_file=None, model_provider="scripted", session_dir=tmp_path, scripted_pace_ms=1))


async def use(agents: AgentSource, message: str, halt_after: str = "") -> Usage:
    """The tokens of a turn, halted where the text so far ends so."""
    turn, said = await agents.make(), ""
    async for text in turn.events(message, {}):
        turn.seen(text.text)
        said += text.text
        if halt_after and said.endswith(halt_after):
            break
    usage: Usage = turn.usage
    return usage


async def test_tokens_are_those_that_the_provider_tells(agents: AgentSource) -> None:
    assert await use(agents, '/script {"chunks": ["a", "bcdefghijk"]}') == Usage(0, 2)


async def test_tokens_of_a_cut_call_are_estimated(agents: AgentSource) -> None:
    usage = await use(agents, '/script {"chunks": ["abc", "defgh", "i"]}', halt_after="gh")
    assert (usage.output_tokens, usage.estimated) == (2, True)
    assert usage.input_tokens > 10  # the prompt, as Strands estimates it


async def test_tokens_of_whole_calls_and_of_the_cut_one_are_added(agents: AgentSource) -> None:
    tool = {"name": "calculator", "input": {"expression": "1+1"}}
    whole = await use(agents, f"/script {json.dumps({'tool': tool, 'chunks': ['abc', 'def']})}")
    assert (whole.output_tokens, whole.estimated) == (2, False)
    cut = await use(agents, f"/script {json.dumps({'tool': tool, 'chunks': ['abcdefghi', 'x']})}", halt_after="hi")
    assert (cut.output_tokens, cut.estimated) == (3, True)


# ---- a replica


@pytest.fixture
def replica(aws: Aws, event_bus: EventBus, tmp_path: Path) -> Iterator[Replica]:
    with running_stack(tmp_path, replicas=1, EVENT_BUS=event_bus.name, **aws.environment) as stack:
        yield stack.replicas[0]


def test_a_replica_tells_of_its_runs_and_never_what_was_said(replica: Replica, event_bus: EventBus) -> None:
    api = f"{replica.url}/api/v1"
    script = {"chunks": [SECRET, " and more"]}
    httpx.post(f"{api}/chat/done", json={"message": f"{SECRET} /script {json.dumps(script)}"}, timeout=20)
    httpx.post(f"{api}/chat/failed", json={"message": f"/script {json.dumps(script | {'fail': 'no'})}"}, timeout=20)
    slow = f"/script {json.dumps(script | {'repeat': 1000})}"
    with httpx.stream("POST", f"{api}/chat/stopped", json={"message": slow}, timeout=20) as stream:
        frames = stream.iter_text()
        next(frames)
        receipt = httpx.post(f"{api}/stop/stopped?wait=10", timeout=20).json()
        assert receipt["status"] == "stopped"
        list(frames)
    metrics = httpx.get(f"{replica.url}/metrics").text
    replica.end()  # what is under way goes out before
    heard = event_bus.heard()
    by_chat = {event["detail"]["chat_id"]: event for event in heard}
    assert {chat: event["detail-type"] for chat, event in by_chat.items()} == {
        "done": "RunFinished",
        "failed": "RunFailed",
        "stopped": "RunStopped",
    }
    assert SECRET not in json.dumps(heard)
    assert SECRET not in replica.log.read_text()
    assert by_chat["done"]["detail"]["tokens"] == {"input": 0, "output": 2, "estimated": False}
    stopped = by_chat["stopped"]["detail"]
    told = {name: stopped[name] for name in ("run_id", "halted_ms", "upstream_closed_ms", "reason")}
    assert told == {name: receipt[name] for name in ("run_id", "halted_ms", "upstream_closed_ms")} | {"reason": "user"}
    assert stopped["tokens"]["estimated"]
    assert stopped["tokens"]["output"] > 0
    assert f"haltline_tokens_kept_total {float(stopped['tokens']['output'])}" in metrics
    assert "haltline_events_lost_total 0.0" in metrics
