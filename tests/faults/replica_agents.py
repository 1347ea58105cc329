"""The agent of replicas that are killed, frozen and ended: slow tools, and a history as strict as Bedrock's."""

from __future__ import annotations

import asyncio
from pathlib import Path

from strands import Agent, tool
from strands.hooks import BeforeModelCallEvent
from strands.models import Model

from local.fake_bedrock.history import invalid_history
from tests.contract.agents import work_async, work_in_a_thread


def _refuse(event: BeforeModelCallEvent) -> None:
    if wrong := invalid_history({"messages": event.agent.messages, "toolConfig": {"tools": []}}):
        raise ValueError(f"Bedrock would refuse this history: {wrong}")


@tool
async def work_for_a_moment(mark: str) -> str:
    """Wait a little; `mark` is a file made when it begins."""
    Path(mark).touch()
    await asyncio.sleep(0.3)
    return "worked"


def make(model: Model) -> Agent:
    """AGENT: a run whose history Bedrock would not take ends with an error."""
    agent = Agent(model=model, tools=[work_async, work_in_a_thread, work_for_a_moment], callback_handler=None)
    agent.add_hook(_refuse, BeforeModelCallEvent)
    return agent
