"""What an agent knows, put to rest and given back."""

from __future__ import annotations

import json
from typing import Any

import pytest
from strands import Agent
from strands.agent.conversation_manager import SlidingWindowConversationManager
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


class Counting(SlidingWindowConversationManager):
    """One that looks at its agent's history as it is restored, which Strands restores first."""

    agent: Agent
    found = 0

    def restore_from_session(self, state: dict[str, Any]) -> Any:
        self.found = len(self.agent.messages)
        return super().restore_from_session(state)


def test_a_conversation_manager_is_restored_after_the_messages() -> None:
    before = Agent(model=ScriptedModel(), messages=HISTORY, conversation_manager=Counting())
    manager = Counting()
    manager.agent = Agent(model=ScriptedModel(), conversation_manager=manager)
    turn_of(manager.agent).restore(turn_of(before).snapshot("", complete=True), [])
    assert manager.found == len(HISTORY)
