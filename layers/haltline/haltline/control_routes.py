"""Stop, look, list, delete: the calls that answer at once. Imports no Strands."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, HTTPException, Query, Request
from fastapi.exceptions import RequestValidationError
from loguru import logger

from haltline.chat_index import BadCursor
from haltline.chats import UNREADABLE, ChatDamaged, ChatDocument, VersionConflict
from haltline.inputs import (
    ArrivalOf,
    BulkStopRequest,
    CallerOf,
    ChatPath,
    OwnChat,
    ResourcesOf,
    RunQuery,
    Wait,
    Whose,
    body_docs,
    line_of,
    read_bulk_stop_request,
    require_admin,
)
from haltline.openapi import (
    BulkStopAnswer,
    ChatList,
    ChatStatus,
    Deleted,
    ListedChat,
    Messages,
    StopAllAnswer,
    StopAnswer,
    errors,
)
from haltline.principals import LimitReached, chat_id_of
from haltline.resources import Resources
from haltline.runs import Caller, Outcome, Receipt, Run, StopReason, new_run_id
from haltline.settings import on_lambda
from haltline.signals import BusUnavailable
from haltline.stopping import stop_all, stop_chat, stop_many
from haltline.taking import ChatBusy, take_chat

router = APIRouter(prefix="/api/v1")
_OVER = ("stopped", "finished")  # what is said of a run that has ended for certain


# Declared before the call that names a chat, or `bulk` and `all` would be taken for one.
@router.post(
    "/stop/bulk",
    tags=["stop"],
    summary="Stop many chats",
    response_model=BulkStopAnswer,
    responses=errors(401, 403, 408, 413, 422, 429, 503),
    openapi_extra=body_docs(BulkStopRequest),
)
async def stop_bulk(
    caller: CallerOf,
    whose: Whose,
    body: Annotated[BulkStopRequest, Depends(read_bulk_stop_request)],
    arrival: ArrivalOf,
    resources: ResourcesOf,
    request: Request,
    wait: Wait = None,
) -> BulkStopAnswer:
    """Stop 1 to 1,000 chats. One verdict a chat, in the order asked; 503 when none could be stored."""
    chats = [whose.scoped(chat_id) for chat_id in body.chat_ids]
    await _count(resources, caller, chats)
    results = await stop_many(resources, chats, arrival, wait=wait, turn=_turn(resources, request))
    if all(r.status == "failed" for r in results):
        raise BusUnavailable("no stop could be stored")
    failed = sum(r.status in ("failed", "unconfirmed") for r in results)
    return BulkStopAnswer(results=results, total=len(results), successful=len(results) - failed, failed=failed)


@router.post(
    "/stop/all",
    tags=["stop"],
    summary="Stop every live run",
    response_model=StopAllAnswer,
    response_model_exclude_none=True,
    responses=errors(401, 403, 422, 503),
)
async def stop_everything(
    caller: CallerOf,
    arrival: ArrivalOf,
    resources: ResourcesOf,
    request: Request,
    wait: Wait = 5.0,
    principal: Annotated[str | None, Query(include_in_schema=False)] = None,
) -> StopAllAnswer:
    """Halt every run of every principal that arrived before this, those that are just beginning too. For an admin."""
    require_admin(caller)
    if principal is not None:  # taken for all of one principal's it would stop everybody's
        wrong = {"loc": ("query", "principal"), "msg": "all means everybody's; name chats", "type": "value_error"}
        raise RequestValidationError([wrong])
    verdicts = await stop_all(resources, arrival, wait=wait, turn=_turn(resources, request))
    # The list also names chats whose replica died in mid-run, until they are used again.
    results = [verdict for verdict in verdicts if verdict.status != "idle"]
    confirmed = sum(verdict.status in _OVER for verdict in results)
    logger.warning("chats=<{}> confirmed=<{}> | all were stopped, as an admin asked", len(results), confirmed)
    return StopAllAnswer(total=len(results), confirmed=confirmed, failed=len(results) - confirmed, results=results)


def _turn(resources: Resources, request: Request) -> Any:
    # On Lambda there is one request at a time, and what would go on behind its answer is frozen.
    return None if on_lambda() else partial(resources.bulk_turns.wait, line_of(request.scope))


async def _count(resources: Resources, caller: Caller, chats: list[str]) -> None:
    """Raises: LimitReached, but for a chat that has a live run: a stop of what runs always gets through."""
    if caller.principal.admin:
        return
    try:
        await resources.limits.count_stops(caller.principal.namespace, len(chats))
    except LimitReached:
        if len(chats) > 1 or not await resources.bus.live_among(chats):
            raise
    except BusUnavailable as error:  # the replica that has the run needs no bus to stop it
        logger.warning("error=<{}> | a stop was not counted", error)


@router.post(
    "/stop/{chat_id}",
    tags=["stop"],
    summary="Stop a chat",
    response_model=StopAnswer,
    response_model_exclude_unset=True,
    responses=errors(401, 403, 422, 429, 503),
)
async def stop(
    caller: CallerOf,
    whose: Whose,
    chat_id: ChatPath,
    arrival: ArrivalOf,
    resources: ResourcesOf,
    run_id: RunQuery = None,
    wait: Wait = None,
) -> StopAnswer:
    """Halt the chat's live run, through any replica, and requests for it that left their client before this one.

    With `?wait=SECONDS` the answer says what really happened. With `?run_id=` only that run is meant.
    """
    chat = whose.scoped(chat_id)
    await _count(resources, caller, [chat])
    return await stop_chat(resources, chat, arrival, run_id=run_id, wait=wait)


@router.get(
    "/chat/{chat_id}",
    tags=["chats"],
    summary="A chat's status",
    response_model=ChatStatus,
    response_model_exclude_none=True,
    responses=errors(401, 422, 429, 503),
)
async def status(chat: OwnChat, resources: ResourcesOf) -> ChatStatus:
    """`new`, `idle` or `running`. A chat nobody used is `new`, not 404."""
    run_id = (await resources.bus.live_among([chat])).get(chat)
    document = await resources.store.load(chat)
    return ChatStatus(
        chat_id=chat_id_of(chat),
        status="running" if run_id else "idle" if document.version else "new",
        message_count=len(document.messages),
        run_id=run_id,
    )


@router.get(
    "/chat/{chat_id}/messages",
    tags=["chats"],
    summary="A chat's transcript",
    response_model=Messages,
    response_model_exclude_unset=True,
    responses=errors(401, 422, 429, 503),
)
async def messages(chat: OwnChat, resources: ResourcesOf) -> Messages:
    """The whole transcript, however much of it the model still sees. Stopped answers are marked."""
    with _logged(chat, "the transcript may lack the end of a run"):  # what is at rest can be read without the bus
        await resources.bus.live_among([chat])  # waits for a run that was told to halt
    document = await resources.store.load(chat)
    return Messages(chat_id=chat_id_of(chat), messages=document.messages)


@router.get(
    "/chats", tags=["chats"], summary="List chats", response_model=ChatList, responses=errors(401, 422, 429, 503)
)
async def chats(
    caller: CallerOf,
    resources: ResourcesOf,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
    cursor: Annotated[str | None, Query(max_length=512, description="`next_cursor` of the page before.")] = None,
    status: Literal["idle", "running"] | None = None,
) -> ChatList:
    """Newest first. `count` is the number of all your chats, whatever the filter."""
    try:
        page = await resources.index.page(caller.principal.namespace, limit, cursor, status)
    except BadCursor as error:
        raise RequestValidationError([{"loc": ("query", "cursor"), "msg": str(error), "type": "value_error"}]) from None
    listed = [
        ListedChat(
            chat_id=chat_id_of(c.chat_id),
            status="running" if c.run_id else "idle",
            message_count=c.message_count,
            updated_at=c.updated_at,
        )
        for c in page.chats
    ]
    return ChatList(chats=listed, count=page.count, next_cursor=page.next_cursor)


@router.delete(
    "/chat/{chat_id}",
    tags=["chats"],
    summary="Delete a chat",
    response_model=Deleted,
    responses=errors(401, 404, 409, 422, 429, 503),
)
async def delete(chat: OwnChat, arrival: ArrivalOf, resources: ResourcesOf) -> Any:
    """Delete the transcript. A live run is stopped first, for up to 5 s; 409 when it does not end."""
    # Whoever deletes holds the chat as a run does, so that nothing writes it meanwhile.
    run = Run(chat, new_run_id(), arrival)
    await take_chat(resources.bus, run, stop_first=StopReason.DELETED, delete=True)
    existed = await asyncio.shield(asyncio.create_task(_delete(resources, run)))
    if not existed:
        raise HTTPException(404, "There is no such chat.")
    return Deleted(status="deleted", chat_id=chat_id_of(chat))


async def _delete(resources: Resources, run: Run) -> bool:
    try:
        try:
            document = await resources.store.load(run.chat_id)
        except ChatDamaged:
            document = ChatDocument(chat_id=run.chat_id, version=UNREADABLE)
        # It may have stood still for so long that another run took the chat. What that one wrote is not meant.
        if not await resources.bus.holds(run):
            raise ChatBusy
        await resources.store.delete(document)
        with _logged(run.chat_id, "the list of chats was not told of the deletion"):
            await resources.index.remove(run.chat_id)
    except VersionConflict:
        raise ChatBusy from None
    finally:
        with _logged(run.chat_id, "END of a deletion not said"):  # no pulse names it from here on
            await resources.bus.end(run, Receipt(run.run_id, Outcome.DONE))
    return document.version != 0


@contextmanager
def _logged(chat_id: str, what: str) -> Iterator[None]:
    """For what can do without the bus."""
    try:
        yield
    except BusUnavailable as error:
        logger.warning("chat_id=<{}> error=<{}> | {}", chat_id, error, what)
