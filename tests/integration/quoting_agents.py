"""An agent of which everything that fails quotes what the user wrote, as third parties' code may."""

from __future__ import annotations

import asyncio
import logging
import threading
from typing import Any

from strands import Agent, tool
from strands.hooks import BeforeModelCallEvent
from strands.models import Model


@tool
def shout(text: str) -> str:
    """Answers the text in capitals; fails where it begins with "fail"."""
    if text.startswith("fail"):
        raise ValueError(f"cannot shout {text!r}")
    return text.upper()


def _fail_in_a_thread(message: str) -> None:
    raise ValueError(f"a thread cannot do {message}")


async def _fail_in_a_task(message: str) -> None:
    raise ValueError(f"a task cannot do {message}")


class _Dropped:
    def __init__(self, message: str) -> None:
        self._message = message

    def __del__(self) -> None:
        raise ValueError(f"cannot drop {self._message}")


async def _as_asked(event: BeforeModelCallEvent) -> None:
    content: Any = event.agent.messages[-1]["content"][0]
    message = content.get("text", "")
    match message.partition(" ")[0]:
        case "raise":
            try:
                int(message)
            except ValueError as error:
                raise ExceptionGroup(f"cannot do {message}", [error, KeyError(message)]) from error
        case "thread":
            thread = threading.Thread(target=_fail_in_a_thread, args=(message,))
            thread.start()
            thread.join()
        case "task":
            task = asyncio.ensure_future(_fail_in_a_task(message))
            await asyncio.wait({task})
        case "drop":
            _Dropped(message)
        case "library":
            for name in ("strands.event_loop.streaming", "openai._base_client", "httpx"):
                logging.getLogger(name).warning("raw_input=<%s> | failed to parse tool input json", message)
                logging.getLogger(name).debug("raw_input=<%s> | request", message)


def make(model: Model) -> Agent:
    """AGENT. It names no callback handler, so Strands would print answers and tools' input on stdout."""
    agent = Agent(model=model, tools=[shout])
    agent.add_hook(_as_asked, BeforeModelCallEvent)
    return agent
