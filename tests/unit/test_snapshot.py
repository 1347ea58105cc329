"""What an agent knows, put to rest and given back."""

from __future__ import annotations

import json

import pytest
from strands import Agent
from strands.types.session import encode_bytes_values

from haltline.agent import AgentTurn
from haltline.scripted import ScriptedModel

HISTORY = [
    {
        "role": "user",
        "content": [
            {"text": 'What is this? And what does "__bytes_encoded__" mean?'},
            {"image": {"format": "png", "source": {"bytes": b"\x89PNG\x00\xff"}}},
        ],
    },
    {"role": "assistant", "content": [{"text": "Ein Bild: \N{GRINNING FACE}"}]},
]


def turn_of(agent: Agent) -> AgentTurn:
    return AgentTurn(agent, 100, closes_upstream=True)


@pytest.mark.parametrize("history", [HISTORY, HISTORY[1:]], ids=["bytes", "no bytes"])
def test_a_history_comes_back_as_it_was(history: list[dict[str, object]]) -> None:
    before, after = Agent(model=ScriptedModel(), messages=history), Agent(model=ScriptedModel())
    turn_of(after).restore(turn_of(before).snapshot("", complete=True), [])
    assert after.messages == before.messages


def test_a_snapshot_is_what_strands_would_write() -> None:
    agent = Agent(model=ScriptedModel(), messages=HISTORY, state={"n": 1})
    theirs = encode_bytes_values(agent.take_snapshot(preset="session", exclude=["interrupt_state"]).data)
    assert json.loads(turn_of(agent).snapshot("", complete=True))["data"] == theirs
