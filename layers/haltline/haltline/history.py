"""What a halted or failed run leaves in the model's history: always something that the next call accepts.

Bedrock's models want roles that alternate, a result for every tool use, and no blank text. Pure.
"""

from __future__ import annotations

from typing import Any

Message = dict[str, Any]

STOPPED_NOTE = "[stopped before any text]"
TOOL_NOTE = "Stopped before it finished."


def repaired(messages: list[Message], partial: str) -> list[Message]:
    """`messages` made whole: unanswered tool uses get an error result, and an assistant's turn comes last.

    Args:
        messages: the agent's history when its run ended, in Bedrock's shape. Not changed.
        partial: the text streamed in the message that was under way; it becomes the assistant's turn.
    """
    if not messages:
        return []  # an agent that keeps none
    whole = list(messages)
    if whole and whole[-1]["role"] == "assistant":
        open_uses = [block["toolUse"]["toolUseId"] for block in whole[-1]["content"] if "toolUse" in block]
        if not open_uses:
            return whole  # the message was complete: what was streamed of it is in it
        whole.append({"role": "user", "content": [_unfinished(use) for use in open_uses]})
    whole.append({"role": "assistant", "content": [{"text": partial if partial.strip() else STOPPED_NOTE}]})
    return whole


def _unfinished(tool_use_id: str) -> dict[str, Any]:
    return {"toolResult": {"toolUseId": tool_use_id, "status": "error", "content": [{"text": TOOL_NOTE}]}}
