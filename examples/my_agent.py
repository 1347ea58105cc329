"""An agent of your own: a prompt, a model and tools. Start it with AGENT=examples.my_agent:make_agent.

`make_agent` is called once a run, so the agent it returns belongs to one chat and one answer. What must outlast the
run goes into `agent.state`: it is saved with the chat and is there again at the next message, on whichever replica.
"""

from __future__ import annotations

import asyncio

from strands import Agent, ToolContext, tool
from strands.models import Model

SYSTEM_PROMPT = "You keep the notes of this chat. Use the tools to write a note down and to read the notes back."


@tool(context=True)
def write_note(text: str, tool_context: ToolContext) -> str:
    """Write one note down.

    Args:
        text: The note.
        tool_context: Given by Strands; the model does not see it.
    """
    # What a run is about reaches every tool: chat_id, run_id and principal (None while AUTH is none).
    chat_id = tool_context.invocation_state["chat_id"]
    notes = [*(tool_context.agent.state.get("notes") or []), text]
    tool_context.agent.state.set("notes", notes)
    return f"Note {len(notes)} of chat {chat_id} is written down."


@tool(context=True)
def read_notes(tool_context: ToolContext) -> str:
    """Read all notes of this chat."""
    return "\n".join(tool_context.agent.state.get("notes") or ["There are no notes yet."])


@tool
async def wait(seconds: float) -> str:
    """Wait for a while.

    Args:
        seconds: How long, at most 60.
    """
    # An async tool that awaits is stopped where it waits. A plain function runs in a thread, which nothing can end:
    # the run is over at once all the same, and what the function returns later is dropped.
    await asyncio.sleep(min(seconds, 60))
    return "The time is up."


def make_agent(model: Model) -> Agent:
    """Called once a run. `model` is the one that MODEL_PROVIDER names; a model of your own may be used instead."""
    return Agent(
        model=model,
        system_prompt=SYSTEM_PROMPT,
        tools=[write_note, read_notes, wait],
        callback_handler=None,  # or Strands prints every token on the server's terminal
    )
