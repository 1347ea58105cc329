"""The transcript: what a turn writes at its opening and at its end, and what of it the model is told."""

from __future__ import annotations

import re
from typing import Any

import pytest

from haltline.chats import ChatDocument
from haltline.history import STOPPED_NOTE
from haltline.transcript import close_turn, open_turn

R1, R2, R3 = "01JD8X5W3ZJ7V5Q9T4N2M6K8R1", "01JD8X5W3ZJ7V5Q9T4N2M6K8R2", "01JD8X5W3ZJ7V5Q9T4N2M6K8R3"


def lines(document: ChatDocument) -> list[dict[str, Any]]:
    """The transcript without its times."""
    return [{k: v for k, v in entry.items() if k != "at"} for entry in document.messages]


def asked(text: str, run_id: str) -> dict[str, Any]:
    return {"role": "user", "text": text, "run_id": run_id}


def answer(text: str, run_id: str, **marks: Any) -> dict[str, Any]:
    return {"role": "assistant", "text": text, "run_id": run_id, **marks}


def messages(*said: tuple[str, str]) -> list[dict[str, Any]]:
    return [{"role": role, "content": [{"text": text}]} for role, text in said]


def close(document: ChatDocument, message: str, text: str, run_id: str, **how: Any) -> None:
    close_turn(document, message, text, run_id, **{"snapshot": None, "stopped": False, **how})


def test_a_turn_is_two_lines() -> None:
    document = ChatDocument(chat_id="trip")
    open_turn(document, "Hello", R1)
    assert lines(document) == [asked("Hello", R1)]
    close(document, "Hello", "Hi!", R1, snapshot="the agent's")
    assert lines(document) == [asked("Hello", R1), answer("Hi!", R1)]
    assert (document.snapshot, document.unseen) == ("the agent's", [])


def test_a_line_tells_when_it_was_written() -> None:
    document = ChatDocument(chat_id="trip")
    open_turn(document, "Hello", R1)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", document.messages[0]["at"])


@pytest.mark.parametrize(
    ("text", "how", "marks"),
    [
        pytest.param("Hi", {"stopped": True, "reason": "user"}, {"stopped": True, "reason": "user"}, id="stopped"),
        pytest.param(
            "", {"stopped": True, "reason": "user"}, {"stopped": True, "reason": "user"}, id="before any text"
        ),
        pytest.param("Hi", {"error": "No bus."}, {"error": "No bus."}, id="failed"),
        pytest.param(
            "Hi", {"stopped": False, "reason": "", "error": ""}, {}, id="no mark where nothing is to be marked"
        ),
    ],
)
def test_how_a_turn_ended_is_marked(text: str, how: dict[str, Any], marks: dict[str, Any]) -> None:
    document = ChatDocument(chat_id="trip")
    open_turn(document, "Hello", R1)
    close(document, "Hello", text, R1, **how)
    assert lines(document) == [asked("Hello", R1), answer(text, R1, **marks)]


def test_an_opening_that_was_never_written_is_written_at_the_end() -> None:
    document = ChatDocument(chat_id="trip")
    close(document, "Hello", "Hi", R1)
    close(document, "More", "Yes", R2)
    assert lines(document) == [asked("Hello", R1), answer("Hi", R1), asked("More", R2), answer("Yes", R2)]


def test_the_same_words_twice_are_two_turns() -> None:
    document = ChatDocument(chat_id="trip")
    for run_id in (R1, R2):
        open_turn(document, "Hello", run_id)
        close(document, "Hello", "Hi", run_id)
    assert lines(document) == [asked("Hello", R1), answer("Hi", R1), asked("Hello", R2), answer("Hi", R2)]


LOST = {"stopped": True, "reason": "lost"}


def test_a_turn_whose_replica_died_is_closed_by_the_next() -> None:
    document = ChatDocument(chat_id="trip")
    open_turn(document, "Hello", R1)
    open_turn(document, "Anyone?", R2)
    assert lines(document) == [asked("Hello", R1), answer("", R1, **LOST), asked("Anyone?", R2)]


def test_two_replicas_died_in_a_row() -> None:
    document = ChatDocument(chat_id="trip")
    for message, run_id in (("a", R1), ("b", R2), ("c", R3)):
        open_turn(document, message, run_id)
    close(document, "c", "d", R3)
    assert lines(document) == [
        asked("a", R1),
        answer("", R1, **LOST),
        asked("b", R2),
        answer("", R2, **LOST),
        asked("c", R3),
        answer("d", R3),
    ]


# ---- what the model is told where its agent could not say


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        pytest.param("", STOPPED_NOTE, id="stopped before any text"),
        pytest.param("Well", "Well", id="stopped in the text"),
    ],
)
@pytest.mark.parametrize("before", [None, "the agent's"], ids=["first turn", "later turn"])
def test_a_turn_whose_agent_never_ran_is_told_to_the_next(before: str | None, text: str, answer: str) -> None:
    document = ChatDocument(chat_id="trip", snapshot=before)
    open_turn(document, "More", R1)
    close(document, "More", text, R1, stopped=True, reason="user")
    assert document.snapshot == before
    assert document.unseen == messages(("user", "More"), ("assistant", answer))


def test_several_turns_whose_agent_never_ran() -> None:
    document = ChatDocument(chat_id="trip")
    open_turn(document, "Lost", R1)
    open_turn(document, "Next", R2)
    close(document, "Next", "", R2, stopped=True)
    note = ("assistant", STOPPED_NOTE)
    assert document.unseen == messages(("user", "Lost"), note, ("user", "Next"), note)


def test_a_new_snapshot_replaces_the_old_one_and_what_it_had_not_seen() -> None:
    document = ChatDocument(chat_id="trip", snapshot="old", unseen=messages(("user", "a"), ("assistant", "b")))
    open_turn(document, "More", R1)
    close(document, "More", "Well.", R1, snapshot="new")
    assert (document.snapshot, document.unseen) == ("new", [])
