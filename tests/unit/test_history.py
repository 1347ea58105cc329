"""History: whatever a halted run leaves is made into something that every Bedrock model accepts next time."""

from __future__ import annotations

import copy
import random
from typing import Any

import pytest

from haltline.history import STOPPED_NOTE, TOOL_NOTE, Message, repaired


def user(text: str) -> Message:
    return {"role": "user", "content": [{"text": text}]}


def assistant(*blocks: str | dict[str, Any]) -> Message:
    return {"role": "assistant", "content": [{"text": b} if isinstance(b, str) else b for b in blocks]}


def tool_use(use_id: str) -> dict[str, Any]:
    return {"toolUse": {"toolUseId": use_id, "name": "clock", "input": {}}}


def answered(*use_ids: str) -> Message:
    return {
        "role": "user",
        "content": [
            {"toolResult": {"toolUseId": i, "status": "success", "content": [{"text": "12:00"}]}} for i in use_ids
        ],
    }


def unfinished(*use_ids: str) -> Message:
    return {
        "role": "user",
        "content": [
            {"toolResult": {"toolUseId": i, "status": "error", "content": [{"text": TOOL_NOTE}]}} for i in use_ids
        ],
    }


def faults(history: list[Message]) -> list[str]:
    """What Bedrock's models would refuse in a history that the next user message is appended to."""
    found = []
    for place, message in enumerate(history):
        if message["role"] != ("assistant" if place % 2 else "user"):
            found.append(f"{place}: {message['role']} out of turn")
        if not message["content"]:
            found.append(f"{place}: no content")
        found += [f"{place}: blank text" for b in message["content"] if "text" in b and not b["text"].strip()]
        uses = [b["toolUse"]["toolUseId"] for b in message["content"] if "toolUse" in b]
        after = history[place + 1]["content"] if place + 1 < len(history) else []
        results = [b["toolResult"]["toolUseId"] for b in after if "toolResult" in b]
        if sorted(uses) != sorted(results):
            found.append(f"{place}: uses {uses}, results {results}")
    if history and history[-1]["role"] != "assistant":
        found.append("the next user message would follow a user message")
    return found


@pytest.mark.parametrize(
    ("history", "found"),
    [
        pytest.param([user("a"), assistant("b")], [], id="whole"),
        pytest.param([assistant("b")], ["0: assistant out of turn"], id="assistant first"),
        pytest.param([user("a")], ["the next user message would follow a user message"], id="user last"),
        pytest.param([user("a"), assistant(" ")], ["1: blank text"], id="blank"),
        pytest.param([user("a"), assistant()], ["1: no content"], id="empty"),
        pytest.param([user("a"), assistant(tool_use("1"))], ["1: uses ['1'], results []"], id="open tool use"),
    ],
)
def test_the_validator_itself(history: list[Message], found: list[str]) -> None:
    assert faults(history) == found


@pytest.mark.parametrize(
    ("history", "partial", "expected"),
    [
        pytest.param([user("a")], "", [user("a"), assistant(STOPPED_NOTE)], id="before the first token"),
        pytest.param([user("a")], " \n", [user("a"), assistant(STOPPED_NOTE)], id="only blank text so far"),
        pytest.param([user("a")], "Once", [user("a"), assistant("Once")], id="between tokens"),
        pytest.param([user("a")], " Once\n", [user("a"), assistant(" Once\n")], id="the text stays as it was seen"),
        pytest.param([user("a"), assistant("b")], "", [user("a"), assistant("b")], id="after the answer"),
        pytest.param([user("a"), assistant("b")], "b", [user("a"), assistant("b")], id="the answer is not said twice"),
        pytest.param(
            [user("a"), assistant(tool_use("1"))],
            "",
            [user("a"), assistant(tool_use("1")), unfinished("1"), assistant(STOPPED_NOTE)],
            id="inside a tool",
        ),
        pytest.param(
            [user("a"), assistant("Let me see.", tool_use("1"), tool_use("2"))],
            "",
            [
                user("a"),
                assistant("Let me see.", tool_use("1"), tool_use("2")),
                unfinished("1", "2"),
                assistant(STOPPED_NOTE),
            ],
            id="inside two tools",
        ),
        pytest.param(
            [user("a"), assistant(tool_use("1")), answered("1")],
            "It is",
            [user("a"), assistant(tool_use("1")), answered("1"), assistant("It is")],
            id="after a tool",
        ),
        pytest.param(
            [user("a"), assistant("b"), user("c")],
            "",
            [user("a"), assistant("b"), user("c"), assistant(STOPPED_NOTE)],
            id="in a later turn",
        ),
    ],
)
def test_repaired(history: list[Message], partial: str, expected: list[Message]) -> None:
    before = copy.deepcopy(history)
    assert repaired(history, partial) == expected
    assert history == before
    assert faults(expected) == []


def test_a_repaired_history_needs_no_further_repair() -> None:
    once = repaired([user("a"), assistant(tool_use("1"))], "")
    assert repaired(once, "") == once


class Conversation:
    """Makes histories as an agent leaves them: whole turns, then one that is cut anywhere."""

    def __init__(self, chance: random.Random) -> None:
        self._chance = chance
        self._uses = 0

    def history(self) -> list[Message]:
        whole = [m for _ in range(self._chance.randrange(3)) for m in self._turn()]
        last = self._turn()
        return whole + last[: self._chance.randint(1, len(last))]

    def _turn(self) -> list[Message]:
        turn = [user("question")]
        for _ in range(self._chance.randrange(4)):
            ids = [self._use_id() for _ in range(self._chance.randint(1, 3))]
            said = ["Let me see."] if self._chance.random() < 0.5 else []
            turn += [assistant(*said, *map(tool_use, ids)), answered(*ids)]
        return [*turn, assistant("answer")]

    def _use_id(self) -> str:
        self._uses += 1
        return f"use-{self._uses}"


def test_random_histories_are_accepted_afterwards() -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    for _ in range(2000):
        history = Conversation(chance).history()
        partial = chance.choice(["", " ", "\n\t", "Once", "Once upon\n"])
        before = copy.deepcopy(history)
        whole = repaired(history, partial)
        assert faults(whole) == [], history
        assert whole[: len(history)] == before  # nothing that was said is lost
        assert history == before
        assert faults([*whole, user("next"), assistant("answer")]) == []
