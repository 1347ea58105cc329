"""A model that says what it is told to: deterministic text at a settable pace, for tests, benchmarks and first looks.

A message may hold a script, `/script ` and a JSON object up to its end:

- `chunks`: list of str, sent as they are, one model chunk each; or `text`: str, split into words
- `repeat`: how often (1)
- `pace_ms`: between two chunks (SCRIPTED_PACE_MS)
- `delay_ms`: silence before the first token (0)
- `tool`: {"name", "input"}, called first
- `fail`: str, raised as an error after the chunks
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterable
from typing import Any, TypeVar

from pydantic import BaseModel
from strands.models import Model
from strands.types.content import Messages, SystemContentBlock
from strands.types.streaming import StreamEvent
from strands.types.tools import ToolChoice, ToolSpec

T = TypeVar("T", bound=BaseModel)

MARK = "/script "


class ScriptedFailure(Exception):
    """The failure that a script asked for."""


class ScriptedModel(Model):
    """See the module. `pace_ms`: milliseconds between two chunks where a script does not say."""

    def __init__(self, pace_ms: float = 20) -> None:
        self._config: dict[str, Any] = {"model_id": "scripted", "pace_ms": pace_ms}

    def update_config(self, **model_config: Any) -> None:
        """Change `pace_ms`."""
        self._config.update(model_config)

    def get_config(self) -> Any:
        """The configuration."""
        return self._config

    def structured_output(
        self, output_model: type[T], prompt: Messages, system_prompt: str | None = None, **kwargs: Any
    ) -> AsyncGenerator[dict[str, Any], None]:
        """Not something a script can do. Raises: NotImplementedError."""
        raise NotImplementedError("the scripted model has no structured output")

    async def stream(
        self,
        messages: Messages,
        tool_specs: list[ToolSpec] | None = None,
        system_prompt: str | None = None,
        *,
        tool_choice: ToolChoice | None = None,
        system_prompt_content: list[SystemContentBlock] | None = None,
        invocation_state: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> AsyncIterable[StreamEvent]:
        """Say the script of the last message."""
        script = script_of(_last_text(messages))
        pace = float(script.get("pace_ms", self._config["pace_ms"])) / 1000
        yield {"messageStart": {"role": "assistant"}}
        if (tool := script.get("tool")) and not _has_tool_result(messages[-1]):
            use = {"toolUseId": f"scripted-{len(messages)}", "name": tool["name"]}
            yield {"contentBlockStart": {"start": {"toolUse": use}}}  # type: ignore[typeddict-item]
            yield {"contentBlockDelta": {"delta": {"toolUse": {"input": json.dumps(tool.get("input", {}))}}}}
            yield {"contentBlockStop": {}}
            yield {"messageStop": {"stopReason": "tool_use"}}
            return
        await asyncio.sleep(float(script.get("delay_ms", 0)) / 1000)
        yield {"contentBlockStart": {"start": {}}}
        said = 0
        for _ in range(int(script.get("repeat", 1))):
            for chunk in script["chunks"]:
                if said:
                    await asyncio.sleep(pace)
                yield {"contentBlockDelta": {"delta": {"text": chunk}}}
                said += 1
        if fail := script.get("fail"):
            raise ScriptedFailure(str(fail))
        yield {"contentBlockStop": {}}
        yield {"messageStop": {"stopReason": "end_turn"}}
        usage: Any = {"inputTokens": 0, "outputTokens": said, "totalTokens": said}
        yield {"metadata": {"usage": usage, "metrics": {"latencyMs": 0}}}


def script_of(message: str) -> dict[str, Any]:
    """The script in a message, with its `chunks`; a message without one is answered by a fixed text about it.

    Raises: ScriptedFailure when the script is not a JSON object.
    """
    _, mark, rest = message.partition(MARK)
    script: dict[str, Any] = {"text": _answer(message)}
    if mark:
        try:
            script = json.loads(rest)
        except (ValueError, RecursionError) as error:
            raise ScriptedFailure(f"the script after {MARK.strip()} is not a JSON object: {error}") from None
        if not isinstance(script, dict):
            raise ScriptedFailure(f"the script after {MARK.strip()} is not a JSON object")
    if "chunks" not in script:
        script["chunks"] = _words(str(script.get("text", "")))
    return script


def _words(text: str) -> list[str]:
    """Words with the space behind them, so that they join to `text`."""
    parts = text.split(" ")
    return [p for p in (*(f"{w} " for w in parts[:-1]), parts[-1]) if p]


def _answer(message: str) -> str:
    quoted = " ".join(message.split())[:80]
    return (
        f"You said: {quoted}\n\nThis is the scripted model. It has nothing to say of its own, and says so at an even "
        "pace, so that there is time to stop it:\n\n"
        + "\n".join(f"{n}. sheep number {n} jumps over the fence" for n in range(1, 8))
    )


def _last_text(messages: Messages) -> str:
    for message in reversed(messages):
        texts = [block["text"] for block in message["content"] if "text" in block]
        if message["role"] == "user" and texts:
            return str(texts[-1])
    return ""


def _has_tool_result(message: Any) -> bool:
    return any("toolResult" in block for block in message["content"])
