"""What one call does: the script in a request, and the steps of a turn that follow from it. No I/O, no clock."""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

MARK = "/script "
ANSWER = "This is the fake Bedrock. It has nothing to say of its own, and says so at an even pace."
SIGNATURE = "ZmFrZSBzaWduYXR1cmU="

BEHAVIOURS: dict[str, dict[str, Any]] = {
    "throttle": {"throttle": -1},
    "on-demand": {
        "refuse": {
            "message": "Invocation of model ID amazon.nova-lite-v1:0 with on-demand throughput isn’t supported. Retry "
            "your request with the ID or ARN of an inference profile that contains this model."
        }
    },
    "overflow": {"refuse": {"message": "Input is too long for requested model."}},
    "denied": {
        "refuse": {
            "status": 403,
            "code": "AccessDeniedException",
            "message": "You don't have access to the model with the specified model ID.",
        }
    },
    "stall": {"stall_after": 3},
    "drop": {"drop": True},
    "fail": {"fail": {"code": "modelStreamErrorException"}},
    "guardrail": {"guardrail": True},
}


class BadScript(ValueError):
    """The text after the mark is not a JSON object."""


@dataclass(frozen=True)
class Pause:
    """Say nothing."""

    ms: float


@dataclass(frozen=True)
class Event:
    """One event of ConverseStream."""

    kind: str
    payload: dict[str, Any]

    @property
    def is_text(self) -> bool:
        """Whether it is one of the text deltas that the log counts."""
        return "text" in self.payload.get("delta", {})


@dataclass(frozen=True)
class Fail:
    """End the stream by an exception."""

    code: str
    message: str


@dataclass(frozen=True)
class Drop:
    """Cut the connection."""


Step = Pause | Event | Fail | Drop


def script_of(model: str, text: str) -> dict[str, Any]:
    """The script of a request: that of the user's last `text`, overruled by the behaviour that `model` names.

    Raises: BadScript.
    """
    named = BEHAVIOURS.get(model.removeprefix("fake."), {}) if model.startswith("fake.") else {}
    _, mark, rest = text.partition(MARK)
    if not mark:
        first = re.match(r"[a-z-]+", text)
        return (BEHAVIOURS.get(first[0], {}) if first else {}) | named
    try:
        script = json.loads(rest)
    except (ValueError, RecursionError) as error:
        raise BadScript(f"the script after {MARK.strip()} is not a JSON object: {error}") from None
    if not isinstance(script, dict):
        raise BadScript(f"the script after {MARK.strip()} is not a JSON object")
    return script | named


def last_text(messages: list[Any]) -> str:
    """The last text of the user; empty where there is none."""
    return _last_user_text(messages)[1]


def steps_of(script: dict[str, Any], messages: list[Any]) -> Iterator[Step]:
    """The answer to `messages`, from messageStart on. Its metadata comes last, with a latency of 0."""
    pace, said, block = Pause(float(script.get("pace_ms", 20))), 0, 0
    chunks, stop_reason = _chunks(script), str(script.get("stop_reason", "end_turn"))
    tools = script.get("tools") if _rounds_done(messages) < int(script.get("rounds", 1)) else None
    if tools:
        chunks, stop_reason = _words(str(script.get("tool_text", ""))), "tool_use"
    yield Event("messageStart", {"role": "assistant"})
    if thoughts := script.get("reasoning"):
        for thought in thoughts:
            yield _delta(block, {"reasoningContent": {"text": thought}})
            yield pace
        yield _delta(block, {"reasoningContent": {"signature": SIGNATURE}})
        yield _stop(block)
        block += 1
    stall = _stall(script)
    yield from stall.get(0, ())
    for chunk in chunks:
        if said:
            yield pace
        yield _delta(block, {"text": chunk})
        said += 1
        yield from stall.get(said, ())
    if not tools and (fail := script.get("fail")):
        yield Fail(str(fail["code"]), str(fail.get("message", "The model failed while it was answering.")))
        return
    if not tools and script.get("drop"):
        yield Drop()
        return
    if said:
        yield _stop(block)
        block += 1
    for n, tool in enumerate(tools or (), block):
        yield pace
        yield from _tool_use(n, tool, pace)
    metadata: dict[str, Any] = {"usage": _usage(messages, said), "metrics": {"latencyMs": 0}}
    if script.get("guardrail"):
        stop_reason = "guardrail_intervened"
        metadata["trace"] = {"guardrail": _BLOCKED}
    yield Event("messageStop", {"stopReason": stop_reason})
    yield Event("metadata", metadata)


def answer_of(events: Iterable[Event]) -> dict[str, Any]:
    """The body of a Converse response that says what the events say."""
    blocks: dict[int, dict[str, Any]] = {}
    answer: dict[str, Any] = {}
    for event in events:
        payload = event.payload
        if event.kind in ("messageStop", "metadata"):
            answer |= payload
        elif event.kind == "contentBlockStart":
            blocks[payload["contentBlockIndex"]] = {"toolUse": {**payload["start"]["toolUse"], "input": ""}}
        elif event.kind == "contentBlockDelta":
            _add(blocks.setdefault(payload["contentBlockIndex"], {}), payload["delta"])
    for block in blocks.values():
        if use := block.get("toolUse"):
            use["input"] = json.loads(use["input"])
    return {"output": {"message": {"role": "assistant", "content": list(blocks.values())}}, **answer}


def _add(block: dict[str, Any], delta: dict[str, Any]) -> None:
    if "text" in delta:
        block["text"] = block.get("text", "") + delta["text"]
    elif "toolUse" in delta:
        block["toolUse"]["input"] += delta["toolUse"]["input"]
    else:
        thought = block.setdefault("reasoningContent", {}).setdefault("reasoningText", {})
        for key, value in delta["reasoningContent"].items():
            thought[key] = thought.get(key, "") + value


def _last_user_text(messages: list[Any]) -> tuple[int, str]:
    """Where it is, and the text; -1 and an empty one where there is none."""
    for n in range(len(messages) - 1, -1, -1):
        texts = [block["text"] for block in messages[n]["content"] if "text" in block]
        if messages[n]["role"] == "user" and texts:
            return n, str(texts[-1])
    return -1, ""


def _rounds_done(messages: list[Any]) -> int:
    """How many messages with results have come since the user's last text."""
    since = messages[_last_user_text(messages)[0] + 1 :]
    return sum(any("toolResult" in block for block in message["content"]) for message in since)


def _stall(script: dict[str, Any]) -> dict[int, list[Pause]]:
    """The silence, by the number of text deltas before it."""
    if "stall_after" not in script:
        return {}
    return {int(script["stall_after"]): [Pause(float(script.get("stall_ms", 60_000)))]}


def _chunks(script: dict[str, Any]) -> list[str]:
    chunks = script["chunks"] if "chunks" in script else _words(str(script.get("text", ANSWER)))
    return [str(chunk) for chunk in chunks] * int(script.get("repeat", 1))


def _words(text: str) -> list[str]:
    """Words with the space behind them, so that they join to `text`."""
    parts = text.split(" ")
    return [part for part in (*(f"{word} " for word in parts[:-1]), parts[-1]) if part]


def _tool_use(block: int, tool: dict[str, Any], pace: Pause) -> Iterator[Step]:
    use = {"toolUseId": f"tooluse_{secrets.token_urlsafe(16)}", "name": tool["name"]}
    yield Event("contentBlockStart", {"contentBlockIndex": block, "start": {"toolUse": use}})
    text = json.dumps(tool.get("input", {}))
    yield _delta(block, {"toolUse": {"input": text[: len(text) // 2]}})
    yield pace
    yield _delta(block, {"toolUse": {"input": text[len(text) // 2 :]}})
    yield _stop(block)


def _delta(block: int, delta: dict[str, Any]) -> Event:
    return Event("contentBlockDelta", {"contentBlockIndex": block, "delta": delta})


def _stop(block: int) -> Event:
    return Event("contentBlockStop", {"contentBlockIndex": block})


def _usage(messages: list[Any], said: int) -> dict[str, int]:
    """Tokens: a word each in, a text delta each out."""
    words = sum(len(block.get("text", "").split()) for message in messages for block in message["content"])
    return {"inputTokens": words, "outputTokens": said, "totalTokens": words + said}


_BLOCKED = {
    "inputAssessment": {
        "fakeguardrail": {
            "topicPolicy": {"topics": [{"name": "Forbidden", "type": "DENY", "action": "BLOCKED", "detected": True}]}
        }
    }
}
