"""Every phase that a run can be in when the stop comes: what to say to get there, and how to know that it is there."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from tests.stops.bench import Bench, Talk, script

MINUTE = 60_000


@dataclass(frozen=True)
class Phase:
    """`upstream`: a model call is open then, and the fake Bedrock says of it that its client left in this phase."""

    name: str
    script: dict[str, Any]
    reached: Callable[[Bench, Talk, str], Awaitable[Any]]
    upstream: str = ""
    agent: str = "make"
    attempts: int = 5  # AWS_MAX_ATTEMPTS
    hold_second_call: bool = False
    nested: bool = False  # the open call is that of an agent inside of a tool


def _logged(*events: str) -> Callable[[Bench, Talk, str], Awaitable[Any]]:
    return lambda bench, talk, name: bench.logged(name, *events)


def _heard(words: int) -> Callable[[Bench, Talk, str], Awaitable[Any]]:
    return lambda bench, talk, name: talk.heard(words)


def _entered(*tools: str) -> Callable[[Bench, Talk, str], Awaitable[Any]]:
    return lambda bench, talk, name: talk.entered(*tools)


async def _at_once(bench: Bench, talk: Talk, name: str) -> None:
    pass


async def _thinking(bench: Bench, talk: Talk, name: str) -> None:
    await bench.logged(name, "request")
    await asyncio.sleep(0.03)  # nothing tells of it: reasoning is not shown to the user


async def _nested(bench: Bench, talk: Talk, name: str) -> None:
    await talk.entered("asks")
    await bench.logged(f"{name}-nested", "request")


def _tool(*names: str, seconds: float = 60) -> dict[str, Any]:
    return {"tools": [{"name": name, "input": {"seconds": seconds}} for name in names], "tool_text": "Let me see. "}


PHASES = [
    Phase("cold start", {}, _at_once, agent="make_cold"),
    Phase("before headers", {"headers_ms": MINUTE}, _logged("request"), "before_headers"),
    Phase("before the first token", {"delay_ms": MINUTE}, _logged("request"), "before_first"),
    Phase("between tokens", {"text": "on and on ", "repeat": 9999, "pace_ms": 3}, _heard(5), "streaming"),
    Phase(
        "a model stalled for a minute",
        {"text": "one two three", "repeat": 9, "pace_ms": 1, "stall_after": 3},
        _heard(3),
        "streaming",
    ),
    Phase("reasoning", {"reasoning": ["hm "] * 9999, "pace_ms": 3}, _thinking, "streaming"),
    Phase("an async tool", _tool("waits"), _entered("waits")),
    Phase("a tool in a thread", _tool("blocks"), _entered("blocks")),
    Phase("an async-generator tool", _tool("counts"), _entered("counts")),
    Phase("several tools at once", _tool("waits", "blocks", "counts"), _entered("waits", "blocks", "counts")),
    Phase("an agent inside of a tool", {}, _nested, "streaming", nested=True),
    Phase("the provider's back-off", {"throttle": -1}, _logged("refused")),
    Phase("the agent's back-off", {"throttle": -1}, _logged("refused"), attempts=1),
    Phase(
        "between two model calls", _tool("waits", seconds=0), _entered("waits", "second call"), hold_second_call=True
    ),
    Phase("finishing", {"text": "a b c", "pace_ms": 0}, _heard(3)),
]


def script_of(phase: Phase, name: str) -> dict[str, Any]:
    """What to tell the fake Bedrock, under this name."""
    if phase.nested:
        question = script(name=open_call(phase, name), text="on and on ", repeat=9999, pace_ms=3)
        return {"name": name, "tools": [{"name": "asks", "input": {"question": question}}]}
    return {"name": name, **phase.script}


def open_call(phase: Phase, name: str) -> str:
    """The name of the request that is open in this phase."""
    return f"{name}-nested" if phase.nested else name
