"""The scripted model: it says what it is told to, chunk by chunk."""

from __future__ import annotations

import asyncio
import json
import random
from typing import Any

import pytest

from haltline.scripted import ScriptedFailure, ScriptedModel, script_of


def script(**fields: Any) -> str:
    return f"/script {json.dumps(fields)}"


def asked(text: str) -> list[Any]:
    return [{"role": "user", "content": [{"text": text}]}]


async def events_of(messages: list[Any], pace_ms: float = 0) -> list[Any]:
    return [event async for event in ScriptedModel(pace_ms).stream(messages)]


def chunks_of(events: list[Any]) -> list[str]:
    deltas = [e["contentBlockDelta"]["delta"] for e in events if "contentBlockDelta" in e]
    return [d["text"] for d in deltas if "text" in d]


# ---- the script in a message


@pytest.mark.parametrize(
    ("message", "chunks"),
    [
        pytest.param(script(chunks=["a", " b"]), ["a", " b"], id="chunks as they are"),
        pytest.param(script(text="one two  three"), ["one ", "two ", " ", "three"], id="text in words"),
        pytest.param(script(text=" a\nb "), [" ", "a\nb "], id="spaces stay"),
        pytest.param(script(text=""), [], id="no text"),
        pytest.param(script(), [], id="an empty script"),
        pytest.param(script(chunks=["a"], text="b c"), ["a"], id="chunks before text"),
        pytest.param(f"Please: {script(chunks=['a'])}", ["a"], id="words in front"),
    ],
)
def test_chunks(message: str, chunks: list[str]) -> None:
    assert script_of(message)["chunks"] == chunks


def test_words_join_to_the_text() -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    for _ in range(500):
        text = "".join(chance.choices(["a", "bc", " ", "\n", "é"], k=chance.randrange(30)))
        words = script_of(script(text=text))["chunks"]
        assert "".join(words) == text
        assert "" not in words


def test_a_message_without_a_script_is_answered_the_same_each_time() -> None:
    one, other = (script_of("Hello  there\nyou")["chunks"] for _ in range(2))
    assert one == other
    assert "".join(one).startswith("You said: Hello there you\n\n")


def test_a_long_message_is_quoted_in_part() -> None:
    assert "".join(script_of("x" * 65_536)["chunks"]).startswith(f"You said: {'x' * 80}\n\n")


@pytest.mark.parametrize("rest", ["", "{", "null", "7", '"text"', "[1]", "{} {}", "\ud83d"])
def test_a_script_that_is_no_object_is_said_to_be_none(rest: str) -> None:
    with pytest.raises(ScriptedFailure, match=r"^the script after /script is not a JSON object"):
        script_of(f"/script {rest}")


@pytest.mark.parametrize("rest", ["[]", '""', '[["text", "x"]]', "[" * 100_000], ids=["list", "text", "pairs", "depth"])
def test_what_can_be_made_a_dict_is_no_object_either(rest: str) -> None:
    with pytest.raises(ScriptedFailure):
        script_of(f"/script {rest}")


# ---- the stream


async def test_a_whole_answer() -> None:
    assert await events_of(asked(script(chunks=["a", "b"]))) == [
        {"messageStart": {"role": "assistant"}},
        {"contentBlockStart": {"start": {}}},
        {"contentBlockDelta": {"delta": {"text": "a"}}},
        {"contentBlockDelta": {"delta": {"text": "b"}}},
        {"contentBlockStop": {}},
        {"messageStop": {"stopReason": "end_turn"}},
        {
            "metadata": {
                "usage": {"inputTokens": 0, "outputTokens": 2, "totalTokens": 2},
                "metrics": {"latencyMs": 0},
            }
        },
    ]


async def test_repeat() -> None:
    assert chunks_of(await events_of(asked(script(chunks=["a", "b"], repeat=3)))) == ["a", "b"] * 3


async def test_only_the_last_message_of_the_user_is_the_script() -> None:
    earlier = asked(script(chunks=["earlier"]))
    answer = {"role": "assistant", "content": [{"text": script(chunks=["answer"])}]}
    assert chunks_of(await events_of([*earlier, answer, *asked(script(chunks=["last"]))])) == ["last"]


TOOL = script(tool={"name": "calculator", "input": {"expression": "1+1"}}, chunks=["two"])


async def test_a_tool_is_called_first() -> None:
    assert await events_of(asked(TOOL)) == [
        {"messageStart": {"role": "assistant"}},
        {"contentBlockStart": {"start": {"toolUse": {"toolUseId": "scripted-1", "name": "calculator"}}}},
        {"contentBlockDelta": {"delta": {"toolUse": {"input": '{"expression": "1+1"}'}}}},
        {"contentBlockStop": {}},
        {"messageStop": {"stopReason": "tool_use"}},
    ]


async def test_after_the_tool_comes_the_text() -> None:
    use = {"toolUseId": "scripted-1", "name": "calculator", "input": {"expression": "1+1"}}
    result = {"toolUseId": "scripted-1", "status": "success", "content": [{"text": "2"}]}
    messages = [
        *asked(TOOL),
        {"role": "assistant", "content": [{"toolUse": use}]},
        {"role": "user", "content": [{"toolResult": result}]},
    ]
    assert chunks_of(await events_of(messages)) == ["two"]


async def test_a_failure_comes_after_the_chunks() -> None:
    said: list[Any] = []

    async def listen() -> None:
        async for event in ScriptedModel(0).stream(asked(script(chunks=["a"], fail="out of words"))):
            said.append(event)

    with pytest.raises(ScriptedFailure, match=r"^out of words$"):
        await listen()
    assert chunks_of(said) == ["a"]


# ---- the pace, by a clock that does not run


@pytest.mark.parametrize(
    ("fields", "waits"),
    [
        pytest.param({"chunks": ["a", "b", "c"]}, [0, 0.02, 0.02], id="the model's pace, none before the first"),
        pytest.param({"chunks": ["a", "b"], "pace_ms": 5}, [0, 0.005], id="the script's pace"),
        pytest.param({"chunks": ["a"], "delay_ms": 1500}, [1.5], id="silence first"),
        pytest.param({"chunks": ["a"], "repeat": 2}, [0, 0.02], id="also between repeats"),
    ],
)
async def test_pace(fields: dict[str, Any], waits: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[float] = []

    async def note(seconds: float) -> None:
        waited.append(seconds)

    monkeypatch.setattr(asyncio, "sleep", note)
    await events_of(asked(script(**fields)), pace_ms=20)
    assert waited == waits


def test_its_configuration() -> None:
    model = ScriptedModel(7)
    model.update_config(pace_ms=9)
    assert model.get_config() == {"model_id": "scripted", "pace_ms": 9}


def test_it_has_no_structured_output() -> None:
    with pytest.raises(NotImplementedError):
        ScriptedModel().structured_output(dict, [])  # type: ignore[type-var]
