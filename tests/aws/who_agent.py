"""An agent that says for whom it works, which a function is told of as `AGENT`."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from strands import Agent

from haltline.scripted import ScriptedModel


class Teller(ScriptedModel):
    """Says the principal that it finds in the invocation state, and nothing else."""

    async def stream(self, *args: Any, **kwargs: Any) -> AsyncIterator[Any]:  # type: ignore[override]
        yield {"messageStart": {"role": "assistant"}}
        yield {"contentBlockStart": {"start": {}}}
        yield {"contentBlockDelta": {"delta": {"text": f"for <{kwargs['invocation_state']['principal']}>"}}}
        yield {"contentBlockStop": {}}
        yield {"messageStop": {"stopReason": "end_turn"}}


def make(model: Any) -> Agent:
    """One a run."""
    return Agent(model=Teller(), callback_handler=None)
