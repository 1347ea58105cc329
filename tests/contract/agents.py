"""Agents and a model of a user's own, which replicas are told of as `AGENT` and `MODEL_PROVIDER`."""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from collections.abc import AsyncGenerator, AsyncIterator
from pathlib import Path
from typing import Any

from strands import Agent, ToolContext, tool
from strands.hooks import BeforeModelCallEvent
from strands.models import Model
from strands.types.exceptions import ModelThrottledException

_models = itertools.count(1)
_agents = itertools.count(1)


class Parrot(Model):
    """Says as JSON what it was given. `/call TOOL {JSON}` calls the tool and repeats its result."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.hooked = 0

    def update_config(self, **model_config: Any) -> None: ...

    def get_config(self) -> dict[str, Any]:
        return {"model_id": self.name}

    async def structured_output(self, *args: Any, **kwargs: Any) -> AsyncGenerator[dict[str, Any], None]:
        raise NotImplementedError
        yield {}

    async def stream(
        self, messages: Any, tool_specs: Any = None, system_prompt: str | None = None, **kwargs: Any
    ) -> AsyncIterator[Any]:
        last = messages[-1]["content"]
        said = "".join(block.get("text", "") for block in last)
        if said == "/throttle":
            raise ModelThrottledException("slow down")
        yield {"messageStart": {"role": "assistant"}}
        if said.startswith("/call "):
            name, data = said.removeprefix("/call ").split(" ", 1)
            use = {"name": name, "toolUseId": f"use-{len(messages)}"}
            yield {"contentBlockStart": {"start": {"toolUse": use}}}
            yield {"contentBlockDelta": {"delta": {"toolUse": {"input": data}}}}
            yield {"contentBlockStop": {}}
            yield {"messageStop": {"stopReason": "tool_use"}}
            return
        yield {"contentBlockStart": {"start": {}}}
        yield {"contentBlockDelta": {"delta": {"text": self._answer(messages, said, system_prompt)}}}
        yield {"contentBlockStop": {}}
        yield {"messageStop": {"stopReason": "end_turn"}}

    def _answer(self, messages: Any, said: str, system_prompt: str | None) -> str:
        for block in messages[-1]["content"]:
            if "toolResult" in block:
                return "".join(part.get("text", "") for part in block["toolResult"]["content"])
        return json.dumps(
            {
                "model": self.name,
                "agent": system_prompt,
                "hooked": self.hooked,
                "said": said,
                "messages": len(messages),
                "valid": is_valid(messages),
            }
        )


def is_valid(messages: Any) -> bool:
    """Whether Bedrock would take it: roles alternate, every toolUse has its toolResult, nothing is empty."""
    roles = [m["role"] for m in messages]
    if roles != [("user", "assistant")[i % 2] for i in range(len(roles))]:
        return False
    uses: set[str] = set()
    for message in messages:
        results = {b["toolResult"]["toolUseId"] for b in message["content"] if "toolResult" in b}
        if results != uses or not message["content"]:
            return False
        if any("text" in block and not block["text"].strip() for block in message["content"]):
            return False
        uses = {b["toolUse"]["toolUseId"] for b in message["content"] if "toolUse" in b}
    return not uses


@tool(context=True)
def whereabouts(tool_context: ToolContext) -> str:
    """Tell which chat this is."""
    state = tool_context.invocation_state
    return json.dumps({"chat_id": state["chat_id"], "knows_principal": "principal" in state})


@tool
def work_in_a_thread(mark: str) -> str:
    """Block a thread for some seconds; `mark` is a file made when it begins."""
    Path(mark).touch()
    for _ in range(80):
        time.sleep(0.05)  # what a tool that computes does to its thread
    return "worked"


@tool
async def work_async(mark: str) -> str:
    """Wait for a long time; `mark` is a file made when it begins."""
    Path(mark).touch()
    await asyncio.sleep(60)
    return "worked"


def make(model: Model) -> Agent:
    """An agent with a model, tools and a hook of its own."""
    own = Parrot("my own")
    agent = Agent(model=own, tools=[whereabouts, work_in_a_thread, work_async], system_prompt="mine")

    def count(event: BeforeModelCallEvent) -> None:
        own.hooked += 1

    agent.hooks.add_callback(BeforeModelCallEvent, count)
    return agent


async def make_later(*, model: Model) -> Agent:
    """An agent made by a coroutine, over the model it was given; its prompt counts the calls."""
    await asyncio.sleep(0)
    return Agent(model=model, system_prompt=f"agent {next(_agents)}")


def make_something_else(model: Model) -> object:
    return ["not an agent"]


def make_model() -> Model:
    """A model whose name counts the calls."""
    return Parrot(f"model {next(_models)}")
