"""Replicas with settings of their own: agent, model, Bedrock that refuses, what a leaving client or replica does."""

from __future__ import annotations

import asyncio
import json
import signal
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest

from tests.contract.client import (
    DONE,
    LONG,
    STOPPED,
    EventStream,
    is_idle,
    live_run,
    messages_of,
    new_chat,
    said,
    say,
    script,
    sending,
    status_of,
    stop,
    until,
)
from tests.contract.conftest import QuietRun, Variants
from tests.stack import Replica

# The first test begins the long silence that the last ones wait for.
pytestmark = pytest.mark.usefixtures("quiet_run")


async def heard(http: httpx.AsyncClient, replica: Replica, chat: str, message: str) -> dict[str, Any]:
    """What the agent's model was given, as it tells itself."""
    turn = await say(http, replica, chat, message)
    assert turn.closing == [DONE]
    return json.loads(turn.text)


async def test_an_agent_of_ones_own_keeps_its_model_and_its_hooks(http: httpx.AsyncClient, variants: Variants) -> None:
    assert await heard(http, variants.own_agent, new_chat(), "hello") == {
        "model": "my own",
        "agent": "mine",
        "hooked": 1,
        "said": "hello",
        "messages": 1,
        "valid": True,
    }


async def test_an_agent_of_ones_own_remembers_the_chat(http: httpx.AsyncClient, variants: Variants) -> None:
    chat = new_chat()
    given = [await heard(http, variants.own_agent, chat, f"message {n}") for n in range(3)]
    assert [(g["said"], g["messages"], g["valid"]) for g in given] == [
        ("message 0", 1, True),
        ("message 1", 3, True),
        ("message 2", 5, True),
    ]
    assert (await status_of(http, variants.own_model, chat))["message_count"] == 6


async def test_a_tool_learns_the_chat_and_the_principal(http: httpx.AsyncClient, variants: Variants) -> None:
    chat = new_chat()
    assert await heard(http, variants.own_agent, chat, "/call whereabouts {}") == {
        "chat_id": chat,
        "knows_principal": True,
    }


async def test_a_model_is_made_once_a_process_and_an_agent_once_a_run(
    http: httpx.AsyncClient, variants: Variants
) -> None:
    chats = [new_chat(), new_chat()]
    given = [await heard(http, variants.own_model, chats[n % 2], "hello") for n in range(4)]
    assert {g["model"] for g in given} == {"model 1"}
    first = int(given[0]["agent"].removeprefix("agent "))
    assert [g["agent"] for g in given] == [f"agent {first + n}" for n in range(4)]


async def test_what_is_no_agent_is_refused_by_name(http: httpx.AsyncClient, variants: Variants) -> None:
    chat = new_chat()
    turn = await say(http, variants.no_agent, chat, "hello")
    [(event, data)] = turn.closing
    assert (turn.status, turn.text, event) == (200, "", "error")
    assert data.startswith("[ERROR] ")
    assert "AGENT" in data
    assert (await status_of(http, variants.no_agent, chat))["status"] == "idle"


@pytest.mark.parametrize("tool", ["work_async", "work_in_a_thread"])
async def test_a_stop_reaches_into_a_tool_and_leaves_a_valid_history(
    http: httpx.AsyncClient, variants: Variants, tmp_path: Path, tool: str
) -> None:
    chat, mark = new_chat(), tmp_path / "begun"
    message = f"/call {tool} {json.dumps({'mark': str(mark)})}"

    async def begun() -> bool:
        return mark.exists()

    async with sending(http, variants.own_agent, chat, message) as turn:
        await until(begun)
        answer = await stop(http, variants.own_model, chat, wait="2")
        assert (answer["status"], answer["run_id"]) == ("stopped", turn.run_id)
        assert (await turn.finish(2)).closing == [STOPPED]
    kept = await messages_of(http, variants.own_agent, chat)
    assert [kept[0], kept[-1]] == said(message, turn.text, stopped=True)
    given = await heard(http, variants.own_agent, chat, "and now?")
    assert (given["said"], given["valid"]) == ("and now?", True)


async def test_a_stop_reaches_into_the_back_off_of_a_throttled_model(
    http: httpx.AsyncClient, variants: Variants
) -> None:
    chat = new_chat()
    async with sending(http, variants.own_agent, chat, "/throttle") as turn:
        answer = await stop(http, variants.own_model, chat, wait="2")
        assert (answer["status"], answer["run_id"]) == ("stopped", turn.run_id)
        assert (await turn.finish(2)).closing == [STOPPED]
    assert await messages_of(http, variants.own_agent, chat) == said("/throttle", "", stopped=True)
    given = await heard(http, variants.own_agent, chat, "and now?")
    assert (given["said"], given["valid"]) == ("and now?", True)


async def test_a_model_that_wants_an_inference_profile_is_named(http: httpx.AsyncClient, variants: Variants) -> None:
    turn = await say(http, variants.bedrock, new_chat(), "on-demand, please")
    [(event, data)] = turn.closing
    assert (turn.text, event, data[:8]) == ("", "error", "[ERROR] ")
    assert "BEDROCK_MODEL_ID" in data
    assert "Traceback" not in data


async def test_a_stop_reaches_into_the_back_off_of_bedrock(http: httpx.AsyncClient, variants: Variants) -> None:
    chat = new_chat()
    async with sending(http, variants.bedrock, chat, "throttle me") as turn:
        await asyncio.to_thread(variants.fake_bedrock.wait_for, lambda line: line.get("text") == "throttle me", 10)
        assert (await stop(http, variants.own_agent, chat, wait="3"))["status"] == "stopped"
        assert (await turn.finish(3)).closing == [STOPPED]
    assert await messages_of(http, variants.own_agent, chat) == said("throttle me", "", stopped=True)


# ---- a client that leaves, a replica that leaves, a model that is silent


async def test_a_run_may_go_on_without_its_client(http: httpx.AsyncClient, variants: Variants) -> None:
    chat, message = new_chat(), script(chunks=["tick "], repeat=40)
    async with sending(http, variants.patient, chat, message) as turn:
        await turn.first_text()
    assert (await status_of(http, variants.own_agent, chat))["status"] == "running"
    await until(lambda: is_idle(http, variants.own_agent, chat))
    assert await messages_of(http, variants.own_agent, chat) == said(message, "tick " * 40)


@pytest.mark.slow
def test_silence_is_filled_with_a_ping_every_15_seconds(quiet_run: QuietRun) -> None:
    lines = quiet_run.result()
    pings = [at for at, line in lines if line == ": ping"]
    assert len(pings) == 1
    assert 14 < pings[0] < 16.5
    stream = EventStream()
    events = stream.feed("".join(f"{line}\n" for _, line in lines).encode())
    assert [(e.event, e.data) for e in events] == [(None, "at last"), DONE]
    assert stream.comments == ["ping"]


@pytest.mark.slow
async def test_a_replica_that_is_ended_lets_runs_end_within_the_grace(
    http: httpx.AsyncClient, variants: Variants, quiet_run: QuietRun
) -> None:
    await asyncio.to_thread(quiet_run.result)  # the same replica speaks there
    short, long = new_chat(), new_chat()
    leaving, staying = variants.patient, variants.own_agent
    a_little = script(chunks=["tick "], repeat=15)
    async with (
        live_run(http, leaving, long) as long_turn,
        sending(http, leaving, short, a_little) as short_turn,
    ):
        await short_turn.first_text()
        leaving.process.send_signal(signal.SIGTERM)
        await asyncio.gather(short_turn.finish(5), long_turn.finish(5))
        assert await asyncio.to_thread(leaving.process.wait, 10) == 0
    assert (short_turn.text, short_turn.closing) == ("tick " * 15, [DONE])
    assert await messages_of(http, staying, short) == said(a_little, "tick " * 15)
    [(event, _)] = long_turn.closing
    assert event in ("stopped", "error")
    [question, answer] = await messages_of(http, staying, long)
    assert (question["text"], answer["role"], answer["text"]) == (LONG, "assistant", long_turn.text)
    assert (await status_of(http, staying, long))["status"] == "idle"
