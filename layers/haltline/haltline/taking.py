"""Taking a chat for a run: wait for one that is ending, replace one that died, stop one first where asked to."""

from __future__ import annotations

import asyncio

from haltline.runs import Run, StopReason
from haltline.signals import WAIT_FOR_END, Begun, Busy, SignalBus, Used


class ChatBusy(Exception):
    """The chat has a live run that is not about to end."""


class RunIdUsed(Exception):
    """The run id names a run that has ended."""


async def take_chat(bus: SignalBus, run: Run, *, stop_first: StopReason | None = None, delete: bool = False) -> Begun:
    """Make `run` the holder of its chat. The caller must end it.

    Args:
        bus: the signal bus.
        run: the run that wants the chat.
        stop_first: the reason given to a live run that is stopped to make room; None leaves it alone.
        delete: the run will only delete the chat.

    Raises: ChatBusy, RunIdUsed, BusUnavailable.
    """
    deadline = asyncio.get_running_loop().time() + WAIT_FOR_END
    takeover = ""
    while True:
        answer = await bus.begin(run, takeover=takeover, delete=delete)
        if isinstance(answer, Begun):
            return answer
        if isinstance(answer, Used):
            raise RunIdUsed(run.run_id)
        if not await bus.is_live(answer):
            takeover = answer.claim
            continue
        await _make_room(bus, run, answer, stop_first, deadline)


async def _make_room(bus: SignalBus, run: Run, holder: Busy, stop_first: StopReason | None, deadline: float) -> None:
    if holder.run_id == run.run_id:
        raise ChatBusy  # the same request, sent twice
    if stop_first is StopReason.SUPERSEDED and holder.later:
        raise ChatBusy  # the newer message stays
    if stop_first:
        # By its id, never by time: whoever takes the chat after it is not meant.
        await bus.stop(run.chat_id, run.arrival, run_id=holder.run_id, reason=stop_first, wait=True)
    elif not holder.closing:
        raise ChatBusy
    left = deadline - asyncio.get_running_loop().time()
    if left <= 0:
        raise ChatBusy
    await bus.wait_end(run.chat_id, holder.run_id, left)
    if asyncio.get_running_loop().time() >= deadline:
        raise ChatBusy
