"""Which messages Bedrock refuses, and what it says."""

from __future__ import annotations

import re
from collections import Counter
from itertools import pairwise
from typing import Any

START = "A conversation must start with a user message. Try again with a conversation that starts with a user message."
ALTERNATE = (
    "A conversation must alternate between user and assistant roles. Make sure the conversation alternates between "
    "user and assistant roles and try again."
)
# Not so for all models: older Claude models go on with what an assistant message at the end says.
END = (
    "The model returned the following errors: This model does not support assistant message prefill. The conversation "
    "must end with a user message."
)
NO_TOOLS = "The toolConfig field must be defined when using toolUse and toolResult content blocks."

ID = re.compile(r"[a-zA-Z0-9_.:-]+")
NAME = re.compile(r"[a-zA-Z0-9_-]+")


class _Invalid(Exception):
    """What Bedrock says."""


def invalid_history(body: dict[str, Any]) -> str | None:
    """Why Bedrock refuses the body of a Converse request; None where its messages are in order.

    It looks at roles, content, text and tools, which depend on what was said before, not at images or documents.
    """
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        return START
    try:
        for n, message in enumerate(messages):
            _check_message(n, message)
        _check_roles([message["role"] for message in messages])
        for n, message in enumerate(messages):
            _check_answers(n, messages[n - 1] if n else None, message)
    except _Invalid as invalid:
        return str(invalid)
    if not body.get("toolConfig") and any(_blocks(m, "toolUse") or _blocks(m, "toolResult") for m in messages):
        return NO_TOOLS
    return None


def _check_roles(roles: list[str]) -> None:
    if roles[0] != "user":
        raise _Invalid(START)
    if any(role == before for before, role in pairwise(roles)):
        raise _Invalid(ALTERNATE)
    if roles[-1] != "user":
        raise _Invalid(END)


def _check_message(n: int, message: dict[str, Any]) -> None:
    place = f"messages.{n + 1}.member"  # Bedrock counts from 1 in this kind of complaint and from 0 in the others
    if message.get("role") not in ("user", "assistant"):
        raise _constraint(message.get("role"), f"{place}.role", "Member must satisfy enum value set: [user, assistant]")
    content = message.get("content")
    if not isinstance(content, list):
        raise _constraint(content, f"{place}.content", "Member must not be null")
    if not content:
        raise _Invalid(
            f"The content field in the Message object at messages.{n} is empty. Add a ContentBlock object to the "
            "content field and try again."
        )
    for m, block in enumerate(content):
        _check_block(f"messages.{n}.content.{m}", f"{place}.content.{m + 1}.member", message["role"], block)


def _check_block(where: str, place: str, role: str, block: dict[str, Any]) -> None:
    if "text" in block and not str(block["text"] or "").strip():
        raise _Invalid(
            f"The text field in the ContentBlock object at {where} is blank. Add text to the text field, and try again."
        )
    if use := block.get("toolUse"):
        if role != "assistant":
            raise _Invalid(_wrong_role(where, "tool_use", "assistant"))
        _check_string(use.get("toolUseId"), f"{place}.toolUse.toolUseId", ID)
        _check_string(use.get("name"), f"{place}.toolUse.name", NAME)
        if not isinstance(use.get("input"), dict):
            raise _Invalid(_not_an_object(f"{where}.toolUse.input"))
    if result := block.get("toolResult"):
        if role != "user":
            raise _Invalid(_wrong_role(where, "tool_result", "user"))
        _check_string(result.get("toolUseId"), f"{place}.toolResult.toolUseId", ID)
        _check_result(where, place, result)


def _check_result(where: str, place: str, result: dict[str, Any]) -> None:
    content = result.get("content")
    if not isinstance(content, list):
        raise _constraint(content, f"{place}.toolResult.content", "Member must not be null")
    if not content and result.get("status") == "error":
        raise _Invalid(f"The content field at {where}.toolResult cannot be empty when status value is error.")
    for k, block in enumerate(content):
        if "json" in block and not isinstance(block["json"], dict):
            raise _Invalid(_not_an_object(f"{where}.toolResult.content.{k}.json"))


def _check_string(value: Any, place: str, pattern: re.Pattern[str]) -> None:
    if not isinstance(value, str):
        raise _constraint(value, place, "Member must not be null")
    if not value:
        raise _constraint(value, place, "Member must have length greater than or equal to 1")
    if len(value) > 64:
        raise _constraint(value, place, "Member must have length less than or equal to 64")
    if not pattern.fullmatch(value):
        raise _constraint(value, place, f"Member must satisfy regular expression pattern: {pattern.pattern}")


def _check_answers(n: int, before: dict[str, Any] | None, message: dict[str, Any]) -> None:
    """Every use of a tool is answered in the very next message, and nothing else is."""
    asked = _blocks(before, "toolUse") if before else []
    uses, answers = _blocks(message, "toolUse"), _blocks(message, "toolResult")
    for kind, ids in (("toolUse", uses), ("toolResult", answers)):
        if twice := [id_ for id_, count in Counter(ids).items() if count > 1]:
            raise _Invalid(f"The {kind} blocks at messages.{n}.content contain duplicate Ids: {', '.join(twice)}")
    if len(answers) > len(asked):
        raise _Invalid(
            f"The number of toolResult blocks at messages.{n}.content exceeds the number of toolUse blocks of previous "
            "turn."
        )
    if missing := [id_ for id_ in asked if id_ not in answers]:
        raise _Invalid(
            f"Expected toolResult blocks at messages.{n}.content for the following Ids: {', '.join(missing)}"
        )


def _blocks(message: dict[str, Any], kind: str) -> list[str]:
    """The ids of the blocks of a kind, in their order."""
    return [block[kind]["toolUseId"] for block in message["content"] if kind in block]


def _constraint(value: Any, place: str, rule: str) -> _Invalid:
    shown = "null" if value is None else f"'{value}'"
    return _Invalid(f"1 validation error detected: Value {shown} at '{place}' failed to satisfy constraint: {rule}")


def _not_an_object(where: str) -> str:
    return f"The format of the value at {where} is invalid. Provide a json object for the field and try again."


def _wrong_role(where: str, kind: str, role: str) -> str:
    message = where.partition(".content")[0]
    return f"The model returned the following errors: {message}: `{kind}` blocks can only be in `{role}` messages"
