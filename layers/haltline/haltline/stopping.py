"""What a stop call does and what it may say of it. It never claims what it does not know.

Chats come in by their scoped ids, and go out by the ids that their clients know.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable
from contextlib import AbstractAsyncContextManager, nullcontext
from typing import Any

from haltline.openapi import PrincipalsVerdict, StopAnswer, Verdict
from haltline.principals import chat_id_of, split
from haltline.resources import Resources
from haltline.runs import Arrival, Outcome, Receipt
from haltline.signals import BusUnavailable, StopState

AT_ONCE = 32  # stops of one call that are under way together
A_FEW = 8  # that are begun together, where a call must not hold up what else goes on

_SAY = {
    "accepted": "Stop signal sent for chat {}. Agent will halt shortly.",
    "stopped": "Chat {} has stopped.",
    "finished": "The run of chat {} ended by itself first.",
    "idle": "Chat {} has no live run. The stop is kept for requests sent before it.",
    "unconfirmed": "The stop of chat {} is stored, but no replica has confirmed it.",
}


async def stop_chat(
    resources: Resources,
    chat_id: str,
    arrival: Arrival,
    *,
    run_id: str | None = None,
    wait: float | None = None,
    place: AbstractAsyncContextManager[Any] | None = None,
) -> StopAnswer:
    """Store and push a stop; with `wait` (seconds) tell what became of the run it covers.

    `place`: held while the bus is asked, and not while the run's end is waited for.

    Raises: BusUnavailable where it could not be stored and the run is not of this process.
    """
    until, settled = time.monotonic() + (wait or 0), resources.bus.settled
    try:
        async with place or nullcontext():
            verdict = await resources.bus.stop(chat_id, arrival, run_id=run_id or "", wait=wait is not None)
    except BusUnavailable:
        # A stop through the replica that owns the run works without the bus.
        here = resources.runs.stop_here(chat_id, run_id, arrival) if resources.runs else None
        if here is None:
            resources.metrics.stop_answered("failed")
            raise
        if wait is None:
            return _answer(resources, chat_id, "accepted")
        return _told(resources, chat_id, await here.ended(until - time.monotonic()))
    if wait is None:
        return _answer(resources, chat_id, "accepted")
    if verdict.state is StopState.IDLE and not (settled and resources.bus.settled):
        try:
            async with asyncio.timeout(max(until - time.monotonic(), 0)):
                await resources.bus.until_settled()
                verdict = await resources.bus.stop(
                    chat_id, arrival, run_id=run_id or "", wait=True, stamp=verdict.stamp
                )
        except (BusUnavailable, TimeoutError):
            return _answer(resources, chat_id, "unconfirmed")
        if verdict.state is StopState.IDLE and not verdict.lay_there:  # a run may have read it, and ended
            return _answer(resources, chat_id, "unconfirmed")
    if verdict.state is StopState.IDLE:
        return _answer(resources, chat_id, "idle")
    receipt = verdict.receipt
    if receipt is None:
        try:
            receipt = await resources.bus.wait_end(chat_id, verdict.run_id, until - time.monotonic())
        except BusUnavailable:
            receipt = None  # it was stored; more is not known
    return _told(resources, chat_id, receipt)


async def stop_many(
    resources: Resources,
    chat_ids: Iterable[str],
    arrival: Arrival,
    *,
    wait: float | None = None,
    turn: Callable[[], Awaitable[object]] | None = None,
) -> list[Verdict]:
    """Stop each of these chats. One verdict a chat, in order; `failed` where a stop could not be stored.

    `turn`: awaited before each few; `wait` begins behind it.
    """
    places = asyncio.Semaphore(AT_ONCE)

    async def one(chat_id: str) -> Verdict:
        try:
            answer = await stop_chat(resources, chat_id, arrival, wait=wait, place=places)
        except BusUnavailable:
            return Verdict(chat_id=chat_id_of(chat_id), status="failed")
        return Verdict(chat_id=answer.chat_id, status=answer.status)

    ids, under_way = list(chat_ids), []
    for n in range(0, len(ids), A_FEW):
        if turn is not None:
            await turn()
        under_way += [asyncio.create_task(one(chat_id)) for chat_id in ids[n : n + A_FEW]]
    return await asyncio.gather(*under_way)


async def stop_all(
    resources: Resources,
    arrival: Arrival,
    *,
    wait: float | None = None,
    turn: Callable[[], Awaitable[object]] | None = None,
) -> list[PrincipalsVerdict]:
    """Stop every chat with a run that arrived before this did, listed already or not. One verdict a listed chat.

    Of every principal. `wait` and `turn` as in `stop_many`. Raises: BusUnavailable, ChatStoreError where the lists of
    chats were lost and cannot be made again.
    """
    ttl = resources.settings.stop_signal_ttl
    whole, live = await resources.index.stop_all(arrival, ttl)
    verdicts = await stop_many(resources, live, arrival, wait=wait, turn=turn)
    if not whole:  # with the lists Redis may have lost who has a run
        await resources.index.rebuild(None)
        _, found = await resources.index.stop_all(arrival, ttl)
        more = sorted(set(found) - set(live))
        verdicts += await stop_many(resources, more, arrival, wait=wait, turn=turn)
        live += more
    return [
        PrincipalsVerdict(principal=split(scoped_id)[0] or None, chat_id=verdict.chat_id, status=verdict.status)
        for scoped_id, verdict in zip(live, verdicts, strict=True)
    ]


def _told(resources: Resources, chat_id: str, receipt: Receipt | None) -> StopAnswer:
    if receipt is None or receipt.outcome is Outcome.LOST:
        return _answer(resources, chat_id, "unconfirmed")
    return _answer(resources, chat_id, "stopped" if receipt.outcome is Outcome.STOPPED else "finished", receipt)


def _answer(resources: Resources, scoped_id: str, status: str, receipt: Receipt | None = None) -> StopAnswer:
    resources.metrics.stop_answered(status)
    told: dict[str, Any] = {}
    if receipt is not None:
        told["run_id"] = receipt.run_id
        if not receipt.saved and status != "unconfirmed":
            told["saved"] = False
        if status == "stopped":
            told |= {"halted_ms": receipt.halted_ms, "upstream_closed_ms": receipt.upstream_closed_ms}
    chat_id = chat_id_of(scoped_id)
    return StopAnswer(chat_id=chat_id, status=status, message=_SAY[status].format(chat_id), **told)
