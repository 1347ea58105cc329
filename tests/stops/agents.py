"""The agent that is stopped: a tool of every kind, each telling the test when it is entered and what it sees."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator
from typing import Any

from botocore.config import Config
from strands import Agent, ToolContext, tool
from strands.hooks import BeforeModelCallEvent
from strands.models import BedrockModel, Model


class Probe:
    """What happens in the run of one chat. Tools of any thread write it."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.entered: asyncio.Queue[str] = asyncio.Queue()
        self.left: list[str] = []  # tools that came to their own end, or went on after they were told to stop
        self.told = threading.Event()  # a thread has seen the cancel signal
        self.hold_second_call = False
        self.calls = 0

    def enter(self, name: str) -> None:
        self.loop.call_soon_threadsafe(self.entered.put_nowait, name)


PROBES: dict[str, Probe] = {}
COLD: dict[str, asyncio.Event] = {}  # "gate": an agent is made when it is set


def probe_of(context: ToolContext) -> Probe:
    return PROBES[str(context.invocation_state["chat_id"])]


@tool(context=True)
async def waits(seconds: float, tool_context: ToolContext) -> str:
    """Wait on the event loop."""
    probe = probe_of(tool_context)
    probe.enter("waits")
    await asyncio.sleep(seconds)
    probe.left.append("waits")
    return "waited"


@tool(context=True)
def blocks(seconds: float, tool_context: ToolContext) -> str:
    """Work in a thread until told to stop."""
    probe = probe_of(tool_context)
    probe.enter("blocks")
    if tool_context.cancel_signal.wait(seconds):
        probe.told.set()
    probe.left.append("blocks")
    return "blocked"


@tool(context=True)
async def counts(seconds: float, tool_context: ToolContext) -> AsyncGenerator[Any, None]:
    """Tell how far it is, again and again."""
    probe = probe_of(tool_context)
    probe.enter("counts")
    for step in range(100):
        yield f"step {step}"
        await asyncio.sleep(seconds / 100)
    probe.left.append("counts")
    yield "counted"


@tool(context=True)
def asks(question: str, tool_context: ToolContext) -> str:
    """Ask an agent of its own, in a thread and an event loop of its own."""
    probe = probe_of(tool_context)
    probe.enter("asks")
    try:
        return str(Agent(model=tool_context.agent.model, callback_handler=None)(question))
    finally:
        probe.left.append("asks")


async def _second_call_waits(event: BeforeModelCallEvent) -> None:
    probe = PROBES[str(event.invocation_state["chat_id"])]
    probe.calls += 1
    if probe.hold_second_call and probe.calls == 2:
        probe.enter("second call")
        await asyncio.Event().wait()


def make(model: Model) -> Agent:
    """AGENT: every kind of tool."""
    agent = Agent(model=model, tools=[waits, blocks, counts, asks], callback_handler=None)
    agent.add_hook(_second_call_waits, BeforeModelCallEvent)
    return agent


async def make_cold(model: Model) -> Agent:
    """AGENT: takes its time to be made."""
    await COLD["gate"].wait()
    return make(model)


class Stock(BedrockModel):
    """Strands' own model, under another name so that it is left as it is."""


def stock() -> Model:
    """MODEL_PROVIDER: what one gets from Strands."""
    return Stock(region_name="us-west-2", model_id="fake.stock", boto_client_config=Config(max_pool_connections=100))
