"""A run's Strands agent: built, restored, pumped, and put back at rest. The runner sees no Strands type."""

from __future__ import annotations

import asyncio
import functools
import inspect
import json
import math
import warnings
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any, cast
from weakref import WeakKeyDictionary, WeakSet

from anyio import to_thread
from loguru import logger
from strands import Agent
from strands.handlers import PrintingCallbackHandler, null_callback_handler
from strands.hooks import AfterModelCallEvent, BeforeModelCallEvent, BeforeToolCallEvent
from strands.models import BedrockModel
from strands.tools.executors import ConcurrentToolExecutor
from strands.types._snapshot import Snapshot
from strands.types.session import decode_bytes_values, encode_bytes_values

from haltline import default_agent
from haltline.bedrock import StoppableBedrockModel
from haltline.events import Text, TextJoiner, valid_text
from haltline.history import repaired
from haltline.models import load_object, make_model
from haltline.runs import Usage
from haltline.scripted import ScriptedModel
from haltline.settings import Settings
from haltline.tasks import this_task
from haltline.unwinding import unwound

# What a call of these providers holds open is closed when its task is cancelled; shown by tests.
_CLOSES_WHEN_CANCELLED = ("local", "scripted")
CHARACTERS_A_TOKEN = 4  # as Strands estimates, too
# Until a call tells what it has used, no honest one is to be taken for one that ignores its limit: prose has some 4 to
# 5 characters a token, and code, whose spaces are tokens by the dozen, stays below this over a whole answer.
MOST_CHARACTERS_A_TOKEN = 2 * CHARACTERS_A_TOKEN
ONE_TOKEN = 64  # characters; a single one may have many, where the limit is a few


class AgentError(Exception):
    """The agent cannot run. The text is for a person and names the setting to change."""


_LIMIT_REACHED = "The answer reached MAX_OUTPUT_TOKENS. Send another message to go on."


class AgentTurn:
    """One run's agent. `stopped_itself` is set when the model ended the run with the stop tool."""

    def __init__(self, agent: Agent, max_output_tokens: int, *, closes_upstream: bool) -> None:
        self._agent = agent
        self._limits: Any = {"output_tokens": max_output_tokens}
        # Tokens that the calls before have left of the limit. A chunk of the scripted model, of any length, is one.
        self._left = math.inf if isinstance(agent.model, ScriptedModel) else float(max_output_tokens)
        self._made = 0  # characters that the call that is open has made: text, thoughts, what tools are called with
        self._partial: list[str] = []
        self._restored: list[Any] = []
        self._cut_at: int | None = None  # how many messages the run leaves where it met its limit within one
        self._closes_upstream, self._calling = closes_upstream, False
        self._asked = 0  # tokens that the call that is open has read, as Strands estimates them
        self._told = 0  # output tokens that the provider has told of
        self._untold = 0  # characters of text since then
        self.stopped_itself = False
        self.before_each_step: Callable[[], Awaitable[None]] | None = (
            None  # a call of the model or of a tool waits for it
        )
        agent.add_hook(self._may_go_on, BeforeToolCallEvent)
        agent.add_hook(self._call_begins, BeforeModelCallEvent)
        agent.add_hook(self._call_ended, AfterModelCallEvent)

    async def _may_go_on(self, event: BeforeToolCallEvent) -> None:
        if self.before_each_step is not None:
            await self.before_each_step()

    async def _call_begins(self, event: BeforeModelCallEvent) -> None:
        if self.before_each_step is not None:
            await self.before_each_step()
        self._calling, self._asked = True, event.projected_input_tokens or 0

    def _call_ended(self, event: AfterModelCallEvent) -> None:
        self._calling = False

    @property
    def closes_upstream(self) -> bool:
        """Whether a model call is open now that will be closed when the agent's task is cancelled."""
        return self._closes_upstream and self._calling

    @property
    def usage(self) -> Usage:
        """What the run has used so far. A provider tells at the end of a call; until then it is estimated."""
        told: Any = self._agent.event_loop_metrics.accumulated_usage
        return Usage(
            told["inputTokens"] + (self._asked if self._calling else 0),
            told["outputTokens"] + math.ceil(self._untold / CHARACTERS_A_TOKEN),
            estimated=self._calling or self._untold > 0,
        )

    def restore(self, snapshot: str | None, unseen: list[dict[str, Any]]) -> None:
        """Give the agent what it knew at the end of its last turn, and the messages since then."""
        if snapshot is not None:
            kept = Snapshot.from_dict(_from_json(snapshot))
            # Nobody else's, so without Strands' copy, which takes longest of all; first, as a manager may look at them.
            self._agent.messages = kept.data.pop("messages", self._agent.messages)
            try:
                self._agent.load_snapshot(kept)
            except ValueError as error:  # the agent's conversation manager is another class than the one that was saved
                logger.warning("error=<{}> | the conversation manager's state was dropped", error)
                kept.data.pop("conversation_manager_state", None)
                self._agent.load_snapshot(kept)
        self._agent.messages.extend(unseen)  # type: ignore[arg-type]

    async def events(self, message: str, invocation_state: dict[str, Any]) -> AsyncGenerator[Text, None]:
        """Run the agent on the user's message. Ends when the agent does; raises what the agent raises.

        Raises: AgentError too, once the run has made more than it may: Strands looks only between two calls.
        """
        joiner, last, over = TextJoiner(), None, 0
        self._restored = list(self._agent.messages)
        try:
            async for event in self._agent.stream_async(
                message, invocation_state=invocation_state, limits=self._limits
            ):
                if over:
                    continue  # what the agent says on its way out
                if "event" in event:
                    text, made = _made_by(event["event"])
                    self._made += made
                    if (over := self._over()) > 0:
                        # Before Strands tells it as "data". From here on all unwinds as where a run is halted, and
                        # whatever is still put into the history nobody has seen.
                        self._cut_at = len(self._agent.messages)
                        if rest := joiner.add(text[:-over]):
                            yield Text(rest)
                        this_task().cancel()
                elif "data" in event:
                    if text := joiner.add(event["data"]):
                        yield Text(text)
                elif "message" in event:
                    if rest := joiner.flush():
                        yield Text(rest)
                    self._partial.clear()
                    self._note_usage()
                    last = event["message"]
                elif "result" in event:
                    self._conclude(event["result"])
                    if self.stopped_itself and (words := self._last_words(last)):
                        yield Text(words)
        except asyncio.CancelledError as cut:
            cut.with_traceback(None)  # its frames hold generators, which are to be closed while this is a cancellation
            if not over or this_task().uncancel():  # the run was halted, too
                raise
            raise AgentError(_LIMIT_REACHED) from None
        if over:
            this_task().uncancel()
            raise AgentError(_LIMIT_REACHED)

    def _over(self) -> int:
        """Characters beyond those that the call that is open may make."""
        return int(max(0, self._made - self._left * MOST_CHARACTERS_A_TOKEN - ONE_TOKEN))

    def seen(self, text: str) -> None:
        """Note that the user has this piece of the message under way: a halted run's history keeps just that."""
        self._partial.append(text)
        self._untold += len(text)

    def _note_usage(self) -> None:
        told = self._agent.event_loop_metrics.accumulated_usage["outputTokens"]
        self._left -= max(told - self._told, self._made / MOST_CHARACTERS_A_TOKEN)  # some tell nothing, or too little
        self._made = 0
        if told > self._told:
            self._told, self._untold = told, 0

    def tell_threads(self) -> None:
        """Set the cancel signal that tools in threads look at.

        Said when the run halts, and again when the agent has unwound: Strands clears the signal then, before a thread
        may have seen it. The agent is of this run alone, so that it stays set.
        """
        self._agent.cancel()

    def _conclude(self, result: Any) -> None:
        reason = str(result.stop_reason)
        # `strands_tools.stop`, the older of the stop tools, leaves only this mark.
        self.stopped_itself = reason == "cancelled" or bool((result.state or {}).get("stop_event_loop"))
        if reason.startswith("limit_"):
            raise AgentError(_LIMIT_REACHED)
        if reason == "interrupt":
            raise AgentError("The agent asked for a person's decision (an interrupt), which this chat cannot give.")

    def _last_words(self, last: Any) -> str:
        """What an agent that stopped itself says at the end: Strands puts it into the history and streams it not."""
        final: Any = self._agent.messages[-1] if self._agent.messages else {}
        if final == last or final.get("role") != "assistant":
            return ""
        return valid_text("".join(block["text"] for block in final["content"] if "text" in block))

    def snapshot(self, message: str, *, complete: bool) -> str:
        """The agent's state; where the run on `message` was cut off, with a history that the next call accepts."""
        if not complete or self.stopped_itself:  # a stop tool leaves the user's turn last
            self._repair(message)
        # Without an interrupt: its tool has an error result by now, and nobody could answer it.
        taken = self._agent.take_snapshot(preset="session", exclude=["interrupt_state", "messages"])
        taken.data["messages"] = self._agent.messages  # as they are: Strands would copy them
        return valid_text(json.dumps(taken.to_dict(), ensure_ascii=False, default=_as_json))

    def _repair(self, message: str) -> None:
        history: Any = self._agent.messages[: self._cut_at]
        if len(history) == len(self._restored) and all(a is b for a, b in zip(history, self._restored, strict=True)):
            history.append({"role": "user", "content": [{"text": message}]})  # halted before the agent took it in
        self._agent.messages = repaired(history, "".join(self._partial))  # type: ignore[assignment]


def _made_by(chunk: Any) -> tuple[str, int]:
    """The text in a model's event, and how many characters of any kind in it the model has made."""
    if "contentBlockDelta" in chunk:
        said = chunk["contentBlockDelta"]["delta"]
        text = str(said.get("text") or "")
        other = said.get("toolUse", {}).get("input") or said.get("reasoningContent", {}).get("text") or ""
        return text, len(text) + len(other)
    if "contentBlockStart" in chunk:
        return "", len(chunk["contentBlockStart"].get("start", {}).get("toolUse", {}).get("name") or "")
    return "", 0


def _as_json(value: Any) -> Any:
    """Bytes, the only thing in a history that JSON lacks, as Strands writes them."""
    if isinstance(value, bytes):
        return encode_bytes_values(value)
    raise TypeError(f"{type(value).__name__} in the agent's state is not JSON")


def _from_json(snapshot: str) -> dict[str, Any]:
    kept: dict[str, Any] = json.loads(snapshot)
    # Bytes are rare, and looking for them in a long history takes longer than reading it.
    return decode_bytes_values(kept) if '"__bytes_encoded__"' in snapshot else kept


def _can_be_stoppable(model: Any) -> bool:
    """Whether it is the agent's own, as Strands ships it. The limiter of the adaptive mode would sleep on the loop."""
    return type(model) is BedrockModel and (model.client.meta.config.retries or {}).get("mode") != "adaptive"


class AgentSource:
    """Makes one agent a run, over one model a process."""

    def __init__(self, settings: Settings) -> None:
        """Raises: SettingsError naming MODEL_PROVIDER or AGENT."""
        self._name = settings.agent or ""
        self._make = load_object(settings.agent, "AGENT") if settings.agent else default_agent.make_agent
        self._model = make_model(settings)
        self._max_output_tokens = settings.max_output_tokens
        self._closes_upstream = settings.model_provider in _CLOSES_WHEN_CANCELLED
        self._handed_out: WeakSet[Agent] = WeakSet()
        self._made_stoppable: WeakKeyDictionary[BedrockModel, StoppableBedrockModel] = WeakKeyDictionary()
        _unwind_tools_where_they_ran()

    async def make(self) -> AgentTurn:
        """Build the agent of a run. A plain function is called in a thread: it may take its time.

        Raises: AgentError when it is not a strands.Agent; whatever the callable raises.
        """
        if inspect.iscoroutinefunction(self._make):
            agent = await self._make(model=self._model)
        else:
            agent = await to_thread.run_sync(lambda: self._make(model=self._model))
            if inspect.isawaitable(agent):
                agent = await agent
        if not isinstance(agent, Agent):
            raise AgentError(f"AGENT={self._name} returned {type(agent).__name__}; it must return a strands.Agent.")
        if agent in self._handed_out:  # it would carry one chat's messages into another
            raise AgentError(f"AGENT={self._name} returned the same agent twice; it must make a new one for each run.")
        self._handed_out.add(agent)
        # Strands' own where an agent names none; it would print answers and tools' input on the server's stdout.
        if type(agent.callback_handler) is PrintingCallbackHandler:
            agent.callback_handler = null_callback_handler
        if _can_be_stoppable(agent.model):
            agent.model = self._stoppable(cast("BedrockModel", agent.model))
        closes = isinstance(agent.model, StoppableBedrockModel) or (
            self._closes_upstream and agent.model is self._model  # nothing is known of another model that it brings
        )
        return AgentTurn(agent, self._max_output_tokens, closes_upstream=closes)

    def _stoppable(self, model: BedrockModel) -> StoppableBedrockModel:
        if model not in self._made_stoppable:  # kept: agents of many runs may share one model, and its connections
            self._made_stoppable[model] = StoppableBedrockModel.like(model)
        return self._made_stoppable[model]


def _unwind_tools_where_they_ran() -> None:
    """Change Strands' executor once a process, so that agents inside of tools have it too.

    It runs each tool in a task of its own and drops the tool's generators where that task is cancelled.
    """
    stock = ConcurrentToolExecutor._task
    if hasattr(stock, "__wrapped__"):
        return

    @functools.wraps(stock)
    async def task(*args: Any, **kwargs: Any) -> None:
        await unwound(stock(*args, **kwargs))

    ConcurrentToolExecutor._task = task  # type: ignore[method-assign]


# Strands warns of its own deprecated paths on each turn of agents that use them; said once is enough.
warnings.filterwarnings("once", module=r"strands\..*")
