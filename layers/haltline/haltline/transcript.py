"""What a turn writes into a chat document, at its opening and at its end. Pure."""

from __future__ import annotations

from haltline.chats import ChatDocument
from haltline.history import repaired


def open_turn(document: ChatDocument, message: str, run_id: str) -> None:
    """Add the user's message. A turn before it that never closed (its replica died) is closed first, as stopped."""
    if document.messages and document.messages[-1]["role"] == "user":
        last = document.messages[-1]
        _close(document, last["text"], "", last["run_id"], snapshot=None, stopped=True, reason="lost", error="")
    document.append("user", message, run_id)


def close_turn(
    document: ChatDocument,
    message: str,
    text: str,
    run_id: str,
    *,
    snapshot: str | None,
    stopped: bool,
    reason: str = "",
    error: str = "",
) -> None:
    """Add the answer as the user saw it. `snapshot` is the agent's, None where the agent never ran.

    Opens the turn as well where its opening was never written.
    """
    if not document.messages or document.messages[-1]["run_id"] != run_id:
        open_turn(document, message, run_id)
    _close(document, message, text, run_id, snapshot=snapshot, stopped=stopped, reason=reason, error=error)


def _close(
    document: ChatDocument,
    message: str,
    text: str,
    run_id: str,
    *,
    snapshot: str | None,
    stopped: bool,
    reason: str,
    error: str,
) -> None:
    document.append("assistant", text, run_id, stopped=stopped, reason=reason, error=error)
    if snapshot is not None:
        document.snapshot, document.unseen = snapshot, []
    else:
        # The model must know of the turn too, or it would wonder at the next one.
        asked = {"role": "user", "content": [{"text": message}]}
        document.unseen = repaired([*document.unseen, asked], text)
