"""The agent that Haltline ships. Edit this file first: the prompt and the tools are all there is to it.

To keep yours elsewhere, write a function like `make_agent` and set AGENT=your_module:your_function.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable
from datetime import datetime
from typing import Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from strands import Agent, ToolContext, tool
from strands.models import Model

SYSTEM_PROMPT = "You are a helpful assistant. Answer clearly and to the point. Use Markdown where it helps."


@tool
def clock(timezone: str = "UTC") -> str:
    """Tell the current date and time.

    Args:
        timezone: An IANA name such as Europe/Zurich.
    """
    try:
        return datetime.now(ZoneInfo(timezone)).strftime("%A, %d %B %Y, %H:%M:%S %Z")
    except (ZoneInfoNotFoundError, ValueError, OSError):
        return f"Unknown time zone {timezone!r}; use an IANA name such as Europe/Zurich."


@tool
def calculator(expression: str) -> str:
    """Work out an arithmetic expression exactly as Python would.

    Args:
        expression: Numbers with + - * / // % ** and parentheses, for example (3 + 4) * 2.
    """
    try:
        return str(_value(ast.parse(expression, mode="eval").body))
    except (SyntaxError, ValueError, ArithmeticError, RecursionError, MemoryError):
        return "That is not an arithmetic expression that can be worked out."


@tool(context=True)
def stop(tool_context: ToolContext, message: str = "Done.") -> str:
    """Finish here: nothing more is to be done or said after the last words given.

    Args:
        tool_context: Given by Strands; the model does not see it.
        message: The last words to the user.
    """
    # Strands has such a tool too, in a package that takes longer to import than all of Haltline.
    tool_context.agent.cancel(message=message, after_current_tools=True)
    return message


def make_agent(model: Model) -> Agent:
    """Called once a run."""
    return Agent(model=model, system_prompt=SYSTEM_PROMPT, tools=[clock, calculator, stop], callback_handler=None)


_OPERATORS: dict[type[ast.AST], Callable[..., Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
    ast.USub: operator.neg,
    ast.UAdd: operator.pos,
}


def _value(node: ast.AST) -> int | float:
    match node:
        case ast.Constant(value=int() | float() as value):
            return value
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS:
            a, b = _value(left), _value(right)
            if isinstance(op, ast.Pow) and (abs(a) > 10**6 or abs(b) > 256):
                raise ValueError("too large")  # 9**9**9 would never end
            return _number(_OPERATORS[type(op)](a, b))
        case ast.UnaryOp(op=op, operand=operand) if type(op) in _OPERATORS:
            return _number(_OPERATORS[type(op)](_value(operand)))
        case _:
            raise ValueError("not arithmetic")


def _number(value: Any) -> int | float:
    if not isinstance(value, int | float) or (isinstance(value, int) and value.bit_length() > 10_000):
        raise ValueError("not a number of a usable size")
    return value
