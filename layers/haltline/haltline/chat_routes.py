"""The one call that streams: a message in, the answer out as Server-Sent Events."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Generator
from dataclasses import replace
from typing import Annotated, Any, cast

from fastapi import APIRouter, Depends, Response
from fastapi.exceptions import RequestValidationError

from haltline import sse
from haltline.events import Event
from haltline.execution import Execution
from haltline.inputs import (
    ArrivalOf,
    CallerOf,
    ChatRequest,
    IfRunning,
    InvokedChat,
    OwnChat,
    ResourcesOf,
    body_docs,
    read_chat_request,
    read_invoked_chat,
    verify_redis,
)
from haltline.openapi import errors, event_stream
from haltline.principals import Principal
from haltline.runner import Runner
from haltline.runs import StopReason

router = APIRouter(prefix="/api/v1", tags=["chat"])
invoked_router = APIRouter(include_in_schema=False)

PING_AFTER = 15.0  # seconds of silence


async def runner_of(resources: ResourcesOf) -> Runner:
    """The app's runner."""
    return cast("Runner", resources.runs)


@router.post(
    "/chat/{chat_id}",
    summary="Send a message, read the answer as a stream",
    response_class=Response,
    responses={200: event_stream(), **errors(401, 408, 409, 413, 422, 429, 503)},
    openapi_extra=body_docs(ChatRequest),
    dependencies=[Depends(verify_redis)],
)
async def send(
    chat: OwnChat,
    body: Annotated[ChatRequest, Depends(read_chat_request)],
    arrival: ArrivalOf,
    caller: CallerOf,
    runner: Annotated[Runner, Depends(runner_of)],
    resources: ResourcesOf,
    if_running: IfRunning = None,
) -> Response:
    """Start a run and stream it.

    Text comes in frames without an `event:` line. Exactly one closing frame ends the stream: `done`, `stopped` or
    `error`. 409 when the chat has a live run; `?if_running=stop` stops that one first.
    """
    execution = await runner.start(
        chat, body.message, arrival, run_id=body.run_id, stop_first=if_running == "stop", caller=caller
    )
    return EventStreamResponse(execution, stop_on_disconnect=resources.settings.on_disconnect == "stop")


@invoked_router.post("/events", response_class=Response, dependencies=[Depends(verify_redis)])
async def invoked(
    body: Annotated[InvokedChat, Depends(read_invoked_chat)],
    arrival: ArrivalOf,
    caller: CallerOf,
    runner: Annotated[Runner, Depends(runner_of)],
    resources: ResourcesOf,
) -> Response:
    """The same for whoever invokes the Lambda function directly: the adapter posts that event here.

    They may speak for anybody, since IAM has let them. A Function URL leads here as well; who comes by it has a name.
    """
    if body.principal is not None:
        if resources.settings.auth != "apigateway" or caller.principal.name:
            wrong = {"loc": ("body", "principal"), "msg": "you speak for yourself here", "type": "principal"}
            raise RequestValidationError([wrong])
        caller = replace(caller, principal=Principal(body.principal))
    await resources.limits.count_request(caller.principal.namespace)  # the gate cannot tell yet for whom this is
    chat = caller.principal.scoped(body.chat_id)
    return await send(chat, body, arrival, caller, runner, resources, body.if_running)


class EventStreamResponse(Response):
    """The stream of one run. A client that leaves is noticed at once, also while the run says nothing."""

    def __init__(self, execution: Execution, *, stop_on_disconnect: bool) -> None:
        self.status_code = 200
        self.background = None
        self.body = b""
        self._execution, self._stop_on_disconnect = execution, stop_on_disconnect
        self._begun: _Begun | None = None  # the sending of a frame that waits for a slow client
        # `connection: close`: nothing follows the closing frame, and the server says so on the wire.
        self.init_headers({**sse.HEADERS, "x-run-id": execution.run.run_id, "connection": "close"})
        del self.headers["content-length"]

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Send frames as they come until the closing one; end when the run has.

        What is left to do after a closing frame needs a process that runs: on Lambda it is frozen with the response.
        """
        stream, self._send, self._encoder = self._execution.stream, send, sse.Encoder()
        leaving = asyncio.create_task(self._notice_leaving(receive))
        try:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            stream.pass_on = self._pass_on
            over = False
            while not over and not stream.left:
                events = await stream.take(PING_AFTER)
                over = stream.closed
                frames = b"".join(map(self._encoder.encode, events))
                if (begun := self._begun) is not None:
                    self._begun = None
                    await begun
                elif not events and not over:
                    frames = sse.PING
                if frames and not stream.left:
                    await send(_part(frames))
            if over:
                await asyncio.wait({self._execution.task})
                await send(_part(b"", more=False))
        finally:
            stream.pass_on = None
            leaving.cancel()
            if self._begun is not None:
                self._begun.close()
            if not stream.closed:
                self._left()

    def _pass_on(self, event: Event) -> None:
        """Send an event in the step in which it is said. Where the client is slow, `__call__` goes on with it."""
        if not (frames := self._encoder.encode(event)):
            return
        sending = self._send(_part(frames))
        try:
            waits_for = sending.send(None)
        except StopIteration:
            return
        except Exception as error:
            self._begun = _Begun(_failed(error), None)
        else:
            self._begun = _Begun(sending, waits_for)
        self._execution.stream.wake()

    async def _notice_leaving(self, receive: Any) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self._left()

    def _left(self) -> None:
        self._execution.stream.leave()
        if self._stop_on_disconnect:
            self._execution.run.token.stop(StopReason.DISCONNECT)


class _Begun:
    """A coroutine that has run until it had to wait. Awaited, it goes on from there."""

    def __init__(self, coroutine: Coroutine[Any, Any, None], waits_for: Any) -> None:
        self._coroutine, self._waits_for = coroutine, waits_for

    def __await__(self) -> Generator[Any, Any, None]:
        try:
            yield self._waits_for
        except BaseException:
            self.close()
            raise
        yield from self._coroutine.__await__()

    def close(self) -> None:
        """Let it unwind where it waits."""
        self._coroutine.close()


async def _failed(error: Exception) -> None:
    raise error


def _part(body: bytes, *, more: bool = True) -> dict[str, Any]:
    return {"type": "http.response.body", "body": body, "more_body": more}
