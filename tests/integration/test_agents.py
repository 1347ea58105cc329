"""Real Strands agents under the runner: what they may do, and what is left of their history when they are halted."""

from __future__ import annotations

import asyncio
import json
import logging
import sys
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import pytest
from strands import Agent, ToolContext, tool
from strands.hooks import BeforeModelCallEvent, BeforeToolCallEvent
from strands.vended_tools import stop

from haltline.agent import AgentSource
from haltline.chat_index import ChatIndex
from haltline.events import Done, Event, Failed, Stopped, Text
from haltline.execution import Execution
from haltline.limits import Limits
from haltline.metrics import Metrics
from haltline.runner import Deps, Runner
from haltline.runs import Arrival, Outcome, StopReason, live_token
from haltline.scripted import ScriptedModel
from haltline.settings import Settings
from local.fake_bedrock.history import invalid_history
from tests.integration.steps import StepStore

SOON = 10.0  # seconds: a deadline for what must happen, never a measure
WORDS = '/script {"text": "a b c"}'
LONG = '/script {"text": "a b c d", "repeat": 500, "pace_ms": 5}'


@tool
def slow(seconds: float) -> str:
    """Wait in a thread, as a tool that computes does."""
    time.sleep(seconds)
    return "waited"


@tool(context=True)
def where(tool_context: ToolContext) -> str:
    """Tell which chat this is."""
    return str(tool_context.invocation_state["chat_id"])


def plain(model: Any) -> Agent:
    return Agent(model=model, tools=[slow, where], callback_handler=None)


def stops_itself(model: Any) -> Agent:
    return Agent(model=model, tools=[stop, stop_of_old], callback_handler=None)


@tool(context=True)
def stop_of_old(tool_context: ToolContext) -> str:
    """End the run, as strands_tools.stop does it."""
    tool_context.invocation_state["request_state"]["stop_event_loop"] = True
    return "stopping"


def own_model(model: Any) -> Agent:
    return Agent(model=ScriptedModel(5), callback_handler=None)


def with_examples(model: Any) -> Agent:
    examples: Any = [{"role": r, "content": [{"text": t}]} for r, t in (("user", "2+2?"), ("assistant", "4"))]
    return Agent(model=model, messages=examples, callback_handler=None)


_ONE: list[Agent] = []


def the_same(model: Any) -> Agent:
    if not _ONE:
        _ONE.append(Agent(model=model, callback_handler=None))
    return _ONE[0]


def leaves(model: Any) -> Agent:
    agent = Agent(model=model, callback_handler=None)
    agent.add_hook(lambda event: sys.exit("enough"), BeforeModelCallEvent)
    return agent


def asks_a_person(model: Any) -> Agent:
    agent = plain(model)

    def ask(event: BeforeToolCallEvent) -> None:
        event.interrupt("approval", reason="may it?")

    agent.add_hook(ask, BeforeToolCallEvent)
    return agent


HERE: ContextVar[str] = ContextVar("here")
UNWOUND: list[str] = []


@tool
async def counts() -> AsyncGenerator[str, None]:
    """Tell how far it is, through a generator of its own."""
    begun_in, here = asyncio.current_task(), HERE.set("counts")

    async def steps() -> AsyncGenerator[str, None]:
        try:
            for step in range(3):
                yield f"step {step}"
        finally:
            await asyncio.sleep(0)
            UNWOUND.append("steps")

    try:
        async for step in steps():
            yield step
    finally:
        UNWOUND.append("counts" if asyncio.current_task() is begun_in else "counts, elsewhere")
        HERE.reset(here)  # in any other context an error


def stopped_between_two_events_of_its_tool(model: Any) -> Agent:
    def tell(**told: Any) -> None:
        token = live_token.get()
        if "tool_stream_event" in told and token is not None:
            token.stop(StopReason.USER)

    return Agent(model=model, tools=[counts], callback_handler=tell)


def stopped_between_two_events_of_an_inner_agents_tool(model: Any) -> Agent:
    inner = Agent(name="inner", model=model, tools=[counts], callback_handler=None)

    def tell(**told: Any) -> None:
        token, event = live_token.get(), told.get("tool_stream_event")
        if event and "tool_stream_event" in event["data"] and token is not None:
            token.stop(StopReason.USER)

    return Agent(model=model, tools=[inner.as_tool()], callback_handler=tell)


def no_agent(model: Any) -> Any:
    return {"not": "an agent"}


class Chat:
    """One chat with one kind of agent."""

    def __init__(self, runner: Runner, store: StepStore, bus: Any, chat_id: str) -> None:
        self.runner, self.store, self.bus, self.chat_id = runner, store, bus, chat_id

    async def start(self, message: str) -> Execution:
        return await self.runner.start(self.chat_id, message, Arrival())

    async def say(self, message: str) -> list[Event]:
        return await rest(await self.start(message))

    async def stop_in_mid_text(self, message: str = LONG) -> Execution:
        execution = await self.start(message)
        assert await execution.stream.take(SOON)
        await self.bus.stop(self.chat_id, Arrival())
        assert (await rest(execution))[-1] == Stopped()
        assert await execution.ended(SOON)
        return execution

    async def transcript(self) -> list[tuple[str, str]]:
        return [(m["role"], m["text"]) for m in (await self.store.load(self.chat_id)).messages]


async def rest(execution: Execution) -> list[Event]:
    found: list[Event] = []
    while not (found and not isinstance(found[-1], Text)):
        events = await execution.stream.take(SOON)
        assert events, "no closing event"
        found += events
    return found


@pytest.fixture
async def chat_with(
    make_bus: Any, tmp_path: Path, request: pytest.FixtureRequest
) -> AsyncIterator[Callable[[Any], Any]]:
    runners: list[Runner] = []
    bus = await make_bus()

    def make(agent: Callable[..., Any]) -> Chat:
        settings = Settings(model_provider="scripted", agent=f"{__name__}:{agent.__name__}", session_dir=tmp_path)
        store = StepStore(tmp_path)
        index = ChatIndex(bus.redis, bus, store)
        runners.append(Runner(Deps(bus, store, index, AgentSource(settings), Metrics(), Limits(bus.redis, bus), 600)))
        return Chat(runners[-1], store, bus, f"agents-{abs(hash(request.node.name))}")

    yield make
    for runner in runners:
        await runner.drain(0)


def said(events: list[Event]) -> str:
    return "".join(e.text for e in events if isinstance(e, Text))


async def test_a_tool_knows_its_chat(chat_with: Any) -> None:
    chat = chat_with(plain)
    assert (await chat.say('/script {"tool": {"name": "where", "input": {}}, "text": "there"}'))[-1] == Done()
    assert chat.chat_id in ((await chat.store.load(chat.chat_id)).snapshot or "")


async def test_examples_of_the_agents_own_stay_in_front(chat_with: Any) -> None:
    chat = chat_with(with_examples)
    for _ in range(2):
        await chat.say(WORDS)
    snapshot = (await chat.store.load(chat.chat_id)).snapshot
    assert snapshot is not None
    assert snapshot.count("2+2?") == 1


async def test_what_is_no_agent_is_refused(chat_with: Any) -> None:
    closing = (await chat_with(no_agent).say(WORDS))[-1]
    assert closing == Failed(f"AGENT={__name__}:no_agent returned dict; it must return a strands.Agent.")


async def test_an_agent_that_is_handed_out_twice_carries_nothing_over(chat_with: Any) -> None:
    chat = chat_with(the_same)
    assert (await chat.say(WORDS))[-1] == Done()
    closing = (await chat.say(WORDS))[-1]
    assert closing == Failed(
        f"AGENT={__name__}:the_same returned the same agent twice; it must make a new one for each run."
    )


async def test_an_agent_that_ends_the_process_ends_only_its_run(chat_with: Any) -> None:
    closing = (await chat_with(leaves).say(WORDS))[-1]
    assert closing == Failed("The run failed (SystemExit). The log of this replica has the details.")


async def test_an_interrupt_does_not_break_the_chat(chat_with: Any) -> None:
    chat = chat_with(asks_a_person)
    asked = '/script {"tool": {"name": "where", "input": {}}, "text": "there"}'
    for _ in range(2):
        assert (await chat.say(asked))[-1] == Failed(
            "The agent asked for a person's decision (an interrupt), which this chat cannot give."
        )
    assert (await chat.say(WORDS))[-1] == Done()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the older stop tool
@pytest.mark.parametrize(
    ("use", "text"),
    [({"name": "stop", "input": {"message": "That is all."}}, "That is all."), ({"name": "stop_of_old"}, "")],
)
async def test_a_stop_by_the_models_own_tool(chat_with: Any, use: dict[str, Any], text: str) -> None:
    chat = chat_with(stops_itself)
    execution = await chat.start(f"/script {json.dumps({'tool': use, 'text': 'never said'})}")
    events = await rest(execution)
    assert events[-1] == Stopped()
    assert said(events) == text
    receipt = await execution.ended(SOON)
    assert receipt is not None
    assert (receipt.outcome, receipt.reason) == (Outcome.STOPPED, StopReason.AGENT)
    assert (await chat.transcript())[-1] == ("assistant", text)
    assert (await chat.say(WORDS))[-1] == Done()  # and the model was shown a history that Bedrock accepts
    history = json.loads((await chat.store.load(chat.chat_id)).snapshot or "")["data"]["messages"]
    again = {"role": "user", "content": [{"text": "again"}]}
    assert invalid_history({"messages": [*history, again], "toolConfig": {"tools": [{}]}}) is None


async def test_text_that_cannot_be_written_costs_nobody_the_answer(chat_with: Any) -> None:
    chat = chat_with(plain)
    half = '/script {"tool": {"name": "where", "input": {"x": "\\ud83d"}}, "chunks": ["a", "\\ud83d", "b"]}'
    assert said(await chat.say(half)) == "a\ufffdb"
    assert (await chat.say(WORDS))[-1] == Done()
    assert [text for role, text in await chat.transcript() if role == "assistant"] == ["a\ufffdb", "a b c"]


async def test_upstream_is_claimed_closed_only_where_that_is_known(chat_with: Any) -> None:
    for agent, known in ((plain, True), (own_model, False)):
        execution = await chat_with(agent).stop_in_mid_text()
        assert execution.receipt is not None
        assert (execution.receipt.upstream_closed_ms is not None) is known


async def test_stops_leave_no_trace_in_the_log(chat_with: Any, caplog: pytest.LogCaptureFixture) -> None:
    """Generators that unwind in another task than theirs would say so: "Failed to detach context"."""
    chat = chat_with(plain)
    caplog.set_level(logging.WARNING)
    for _ in range(40):
        await chat.stop_in_mid_text('/script {"text": "a b c d", "repeat": 5000, "pace_ms": 0}')
    assert [r.getMessage() for r in caplog.records] == []


COUNTS = {"tool": {"name": "counts", "input": {}}, "text": "never said"}
INNER_COUNTS = {"tool": {"name": "inner", "input": {"input": f"/script {json.dumps(COUNTS)}"}}, "text": "never said"}


@pytest.mark.parametrize(
    ("agent", "script"),
    [
        (stopped_between_two_events_of_its_tool, COUNTS),
        (stopped_between_two_events_of_an_inner_agents_tool, INNER_COUNTS),
    ],
    ids=["its tool", "an inner agent's tool"],
)
async def test_a_tool_halted_between_two_events_unwinds_in_its_own_task_before_the_run_ends(
    chat_with: Any, caplog: pytest.LogCaptureFixture, agent: Any, script: dict[str, Any]
) -> None:
    """With Strands' own executor nothing has unwound by then, and what does later is in a foreign task."""
    UNWOUND.clear()
    caplog.set_level(logging.WARNING)
    chat = chat_with(agent)
    execution = await chat.start(f"/script {json.dumps(script)}")
    assert (await rest(execution))[-1] == Stopped()
    assert await execution.ended(SOON)
    assert UNWOUND == ["counts", "steps"]
    assert [r.getMessage() for r in caplog.records] == []
    assert (await chat.say(WORDS))[-1] == Done()


async def test_a_stop_in_a_tool_that_runs_in_a_thread(chat_with: Any) -> None:
    chat = chat_with(plain)
    execution = await chat.start('/script {"tool": {"name": "slow", "input": {"seconds": 1}}, "text": "late"}')
    await asyncio.sleep(0.2)  # into the tool, or anywhere before it: the outcome is the same
    began = time.monotonic()
    await chat.bus.stop(chat.chat_id, Arrival())
    assert await rest(execution) == [Stopped()]
    assert time.monotonic() - began < 0.5
    receipt = await execution.ended(SOON)
    assert receipt is not None
    assert (receipt.outcome, receipt.reason) == (Outcome.STOPPED, StopReason.USER)
    assert (await chat.say(WORDS))[-1] == Done()


async def test_a_slow_client_of_a_halted_run(chat_with: Any) -> None:
    """The run waits for the client to catch up when the stop comes."""
    chat = chat_with(plain)
    execution = await chat.start('/script {"chunks": ["' + "x" * 1000 + '"], "repeat": 2000, "pace_ms": 0}')
    async with asyncio.timeout(SOON):
        while not execution.stream.full:
            await asyncio.sleep(0)
    await chat.bus.stop(chat.chat_id, Arrival())
    events = await rest(execution)
    assert events[-1] == Stopped()
    assert (await execution.ended(SOON)) is not None
    assert (await chat.transcript())[-1] == ("assistant", said(events))
