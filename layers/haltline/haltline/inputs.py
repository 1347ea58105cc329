"""What a request says, checked: chat ids, bodies, times of arrival. Shared by all routes."""

from __future__ import annotations

import asyncio
import math
import re
import time
from typing import Annotated, Any, Literal

from fastapi import Depends, HTTPException, Path, Query, Request
from fastapi.exceptions import RequestValidationError
from pydantic import AfterValidator, BaseModel, Field, TypeAdapter, ValidationError
from pydantic_core import from_json
from starlette.requests import ClientDisconnect
from starlette.types import Scope
from ulid import ULID

from haltline.principals import Principal, is_name
from haltline.resources import Resources
from haltline.runs import Arrival, Caller
from haltline.turns import client_of

MAX_BODY_BYTES = 1024 * 1024  # the largest message that can be allowed may stand in JSON escapes, six bytes for one
BODY_SECONDS = 60  # for all of a body: who sends a byte a second holds no request open for a day

_CHAT_ID = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$"
_RESERVED = {"bulk", "all"}
_STAMP = re.compile(r"t=(\d{9,11}(?:\.\d{1,6})?)")
_READ_AT, _PRINCIPAL, _DEADLINE = "haltline.read_at", "haltline.principal", "haltline.deadline"


def _not_reserved(chat_id: str) -> str:
    if chat_id in _RESERVED:
        raise ValueError("this id is reserved; choose another")
    return chat_id


def _ulid(value: str) -> str:
    try:
        return str(ULID.from_str(value))
    except ValueError:
        raise ValueError("not a ULID: 26 characters of Crockford's base 32") from None


def _blank(message: str) -> str:
    if not message.strip():
        raise ValueError("the message is empty; write something")
    return message


def _principal_name(name: str) -> str:
    if not is_name(name):
        raise ValueError("no principal can be called so: 1 to 256 bytes of UTF-8")
    return name


ChatId = Annotated[
    str, Field(pattern=_CHAT_ID, min_length=1, max_length=128, examples=["trip-to-rome"]), AfterValidator(_not_reserved)
]
RunId = Annotated[
    str,
    Field(pattern=r"^[0-7][0-9A-HJKMNP-TV-Za-hjkmnp-tv-z]{25}$", examples=["01JD8X5W3ZJ7V5Q9T4N2M6K8R0"]),
    AfterValidator(_ulid),
]
PrincipalName = Annotated[str, AfterValidator(_principal_name)]
ChatPath = Annotated[ChatId, Path(description="The chat, named by its client.")]
RunQuery = Annotated[RunId | None, Query(alias="run_id", description="Name one run, registered already or not.")]
Wait = Annotated[
    float | None,
    Query(gt=0, le=10, allow_inf_nan=False, description="Seconds to wait for what really happens, at most 10."),
]
IfRunning = Annotated[
    Literal["stop"] | None, Query(description="`stop` stops a live run first, waiting up to 5 s for its end.")
]


class ChatRequest(BaseModel):
    """One user message."""

    message: Annotated[str, AfterValidator(_blank)] = Field(
        description="At most 64 KiB of UTF-8, where MAX_MESSAGE_BYTES says no other.",
        examples=["Tell me a story."],
        json_schema_extra={"minLength": 1, "pattern": r"\S"},  # what `_blank` asks for, said to those who read the docs
    )
    run_id: RunId | None = Field(None, description="A ULID made by the client, so that it can stop the run at once.")


class InvokedChat(ChatRequest):
    """A user message as the event of a Lambda function. `principal`: for whom whoever invokes it speaks."""

    chat_id: ChatId
    principal: PrincipalName | None = None
    if_running: Literal["stop"] | None = None


class BulkStopRequest(BaseModel):
    """The chats to stop."""

    chat_ids: list[ChatId] = Field(min_length=1, max_length=1000, examples=[["trip-to-rome", "shopping"]])


def _body(adapter: TypeAdapter[Any]) -> Any:
    async def read(request: Request) -> Any:
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":
            # Also what keeps a foreign page's form from sending messages: this type it cannot send unasked.
            wrong = {"loc": ("header", "content-type"), "msg": "send application/json", "type": "content_type"}
            raise RequestValidationError([wrong])
        raw = await _read(request)
        try:
            return adapter.validate_python(_parsed(raw))
        except ValidationError as error:
            raise RequestValidationError([{**e, "loc": ("body", *e["loc"])} for e in error.errors()]) from None
        except ValueError as error:
            wrong = {"loc": ("body",), "msg": f"the body cannot be read: {error}", "type": "json_invalid"}
            raise RequestValidationError([wrong]) from None

    return read


async def _read(request: Request) -> bytes:
    raw = bytearray()
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for chunk in request.stream():
                raw += chunk
                if len(raw) > MAX_BODY_BYTES:
                    raise HTTPException(413, f"The body is larger than {MAX_BODY_BYTES // 1024} KiB.")
    except TimeoutError:
        detail = f"The body did not come within {BODY_SECONDS} s."
        raise HTTPException(408, detail, {"Connection": "close"}) from None
    except ClientDisconnect:  # nobody is left to read this; the log shall not take it for a failure of ours
        raise HTTPException(400, "The body ended too early.") from None
    return bytes(raw)


def _parsed(raw: bytes) -> Any:
    """JSON by the letter: Python's own parser lets NaN, lone surrogates, deep nesting and endless numbers pass.

    Raises: ValueError, which never repeats the input.
    """
    value = from_json(raw, allow_inf_nan=False, cache_strings="keys")
    if not _finite(value):
        raise ValueError("a number is too large")
    return value


def _finite(value: Any) -> bool:
    match value:
        case float():
            return math.isfinite(value)
        case list():
            return all(map(_finite, value))
        case dict():
            return all(map(_finite, value.values()))
        case _:
            return True


read_bulk_stop_request = _body(TypeAdapter(BulkStopRequest))


def body_docs(model: type[BaseModel]) -> dict[str, Any]:
    """The OpenAPI of a body that is read by `_body`."""
    schema = model.model_json_schema()
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def mark_read(scope: Scope) -> None:
    """Note when a request was first read, before anything waits."""
    scope[_READ_AT] = time.monotonic()


def mark_deadline(scope: Scope, deadline: float) -> None:
    """Note when the process that serves a request must end, in seconds of `time.monotonic`."""
    scope[_DEADLINE] = deadline


def mark_principal(scope: Scope, principal: Principal) -> None:
    """Note who sends a request, once that is certain."""
    scope[_PRINCIPAL] = principal


# Coroutines, though nothing waits in them: FastAPI would call a plain function in a thread, which takes longer than
# what it does, and where all threads are busy a stop would wait for one.
async def resources_of(request: Request) -> Resources:
    """What the app holds."""
    found: Resources = request.app.state.resources
    return found


ResourcesOf = Annotated[Resources, Depends(resources_of)]


async def caller(request: Request) -> Caller:
    """Who sends the request and how long it may take."""
    # Without a default: a request that came around the gate must not pass for anybody's.
    return Caller(request.scope[_PRINCIPAL], request.scope.get(_DEADLINE, math.inf))


CallerOf = Annotated[Caller, Depends(caller)]


def line_of(scope: Scope) -> str:
    """Whose turns a request takes: its principal's, or its client's where nobody is asked who they are."""
    principal: Principal = scope[_PRINCIPAL]
    return f"={principal.name}" if principal.name else client_of(scope)


async def own_chat(chat_id: ChatPath, caller: CallerOf) -> str:
    """The scoped id of the caller's chat."""
    return caller.principal.scoped(chat_id)


OwnChat = Annotated[str, Depends(own_chat)]
OfPrincipal = Annotated[
    PrincipalName | None,
    Query(alias="principal", description="Whose chat is meant, where it is not the caller's. For an admin."),
]


def require_admin(caller: Caller) -> None:
    """Answers 403 where the caller is none."""
    if not caller.principal.admin:
        raise HTTPException(403, "Only an admin may stop what is another's.")


async def whose_chats(caller: CallerOf, resources: ResourcesOf, principal: OfPrincipal = None) -> Principal:
    """Whose chats a stop means. Answers 403 and 422."""
    if principal is None:
        return caller.principal
    require_admin(caller)
    if resources.settings.auth == "none":
        wrong = {"loc": ("query", "principal"), "msg": "there is no such principal", "type": "value_error"}
        raise RequestValidationError([wrong])
    return Principal(principal)


Whose = Annotated[Principal, Depends(whose_chats)]


async def arrival(request: Request) -> Arrival:
    """When the request reached the front door, `X-Request-Start: t=<seconds.mmm>`, or this process."""
    read_at = request.scope.get(_READ_AT, time.monotonic())
    stamp = _STAMP.fullmatch(request.headers.get("x-request-start", ""))
    return Arrival(round(float(stamp[1]) * 1000) if stamp else 0, read_at)


ArrivalOf = Annotated[Arrival, Depends(arrival)]


async def read_chat_request(
    body: Annotated[ChatRequest, Depends(_body(TypeAdapter(ChatRequest)))], resources: ResourcesOf
) -> ChatRequest:
    """The message of a chat call. Answers 413 and 422."""
    _check_size(body, resources)
    return body


async def read_invoked_chat(
    body: Annotated[InvokedChat, Depends(_body(TypeAdapter(InvokedChat)))], resources: ResourcesOf
) -> InvokedChat:
    """The same of a direct invocation."""
    _check_size(body, resources)
    return body


def _check_size(body: ChatRequest, resources: Resources) -> None:
    most = resources.settings.max_message_bytes
    if len(body.message.encode()) > most:
        said = f"{most} bytes" if most % 1024 else f"{most // 1024} KiB"
        raise HTTPException(413, f"The message is larger than {said} of UTF-8.")


async def verify_redis(resources: ResourcesOf) -> None:
    """Answers 503 where the bus does not: a run that could not be stopped is not started."""
    await resources.bus.ping()
