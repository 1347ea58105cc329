"""What the calls answer, as OpenAPI tells it: shapes, examples, errors."""

from __future__ import annotations

from typing import Any, Literal

from fastapi import FastAPI
from pydantic import BaseModel, Field

from haltline.chats import Entry

RUN = "01JD8X5W3ZJ7V5Q9T4N2M6K8R0"


class StopAnswer(BaseModel):
    """What came of a stop. Without `wait` always `accepted`: stored and sent."""

    chat_id: str = Field(examples=["trip-to-rome"])
    status: Literal["accepted", "stopped", "finished", "idle", "unconfirmed"] = Field(examples=["accepted"])
    message: str = Field(examples=["Stop signal sent for chat trip-to-rome. Agent will halt shortly."])
    run_id: str | None = Field(None, description="The run that ended.", examples=[RUN])
    halted_ms: float | None = Field(
        None, description="From the stop signal's reaching the run to its closing frame.", examples=[1.4]
    )
    upstream_closed_ms: float | None = Field(
        None, description="From the same moment to the end of the model call; null where none was open.", examples=[1.9]
    )
    saved: bool | None = Field(None, description="false where the text that was kept could not be saved.")


class Verdict(BaseModel):
    """One chat of a bulk stop."""

    chat_id: str = Field(examples=["trip-to-rome"])
    status: Literal["accepted", "stopped", "finished", "idle", "unconfirmed", "failed"] = Field(examples=["stopped"])


class PrincipalsVerdict(Verdict):
    """One chat of a stop that means all. `principal`: whose it is, where there are principals."""

    principal: str | None = Field(None, examples=["ada"])


class StopAllAnswer(BaseModel):
    """One verdict for each live run that was found. `confirmed` counts those that are certainly over."""

    total: int = Field(examples=[1])
    confirmed: int = Field(examples=[1])
    failed: int = Field(examples=[0], description="What could not be stored or confirmed.")
    results: list[PrincipalsVerdict]


class BulkStopAnswer(BaseModel):
    """One verdict a chat, in the order asked. `failed` counts what could not be stored or confirmed."""

    results: list[Verdict]
    total: int = Field(examples=[1])
    successful: int = Field(examples=[1])
    failed: int = Field(examples=[0])


class ChatStatus(BaseModel):
    """`new`: nobody has used this chat."""

    chat_id: str = Field(examples=["trip-to-rome"])
    status: Literal["new", "idle", "running"] = Field(examples=["idle"])
    message_count: int = Field(examples=[4])
    run_id: str | None = Field(None, description="The live run.", examples=[RUN])


class Messages(BaseModel):
    """The whole transcript, oldest first."""

    chat_id: str = Field(examples=["trip-to-rome"])
    messages: list[Entry] = Field(
        examples=[
            [
                {"role": "user", "text": "Tell me a story.", "at": "2026-11-22T19:08:36.123Z", "run_id": RUN},
                {
                    "role": "assistant",
                    "text": "Once upon a time",
                    "at": "2026-11-22T19:08:37.456Z",
                    "run_id": RUN,
                    "stopped": True,
                    "reason": "user",
                },
            ]
        ]
    )


class ListedChat(BaseModel):
    """One chat of the list."""

    chat_id: str = Field(examples=["trip-to-rome"])
    status: Literal["idle", "running"] = Field(examples=["idle"])
    message_count: int = Field(examples=[4])
    updated_at: str = Field(description="ISO 8601, UTC.", examples=["2026-11-22T19:08:36.123Z"])


class ChatList(BaseModel):
    """A page, newest first. `count` is the number of all your chats; `next_cursor` is null on the last page."""

    chats: list[ListedChat]
    count: int = Field(examples=[1])
    next_cursor: str | None = Field(examples=[None])


class Deleted(BaseModel):
    """The chat is gone."""

    status: Literal["deleted"] = Field(examples=["deleted"])
    chat_id: str = Field(examples=["trip-to-rome"])


class Health(BaseModel):
    """`degraded`, with status 503, while the signal bus cannot be reached."""

    status: Literal["healthy", "degraded"] = Field(examples=["healthy"])
    redis: Literal["connected", "disconnected"] = Field(examples=["connected"])
    replica: str = Field(examples=["replica1"])
    version: str = Field(examples=["0.1.0"])
    model: str = Field(examples=["amazon.nova-lite-v1:0"])
    live_runs: int | None = Field(None, description="Told where AUTH=none.", examples=[3])


class Detail(BaseModel):
    """An error. It never repeats what was sent."""

    detail: str | list[dict[str, Any]]


_ERRORS = {
    401: ("No valid credential.", "No valid credential. Send Authorization: Bearer KEY."),
    403: ("For an admin.", "Only an admin may stop what is another's."),
    404: ("There is no such chat.", "There is no such chat."),
    408: ("The body took too long.", "The body did not come within 60 s."),
    409: ("The chat has a live run.", "The chat has a live run. Stop it first, or send with ?if_running=stop."),
    413: ("The message is too large.", "The message is larger than 64 KiB of UTF-8."),
    422: (
        "Something in the request is wrong; `loc` says where.",
        [{"loc": ["body", "message"], "msg": "the message is empty; write something", "type": "value_error"}],
    ),
    429: ("A limit is reached; `Retry-After` says when to try again.", "More than 60 requests in a minute."),
    503: (
        "The signal bus (Redis) cannot be reached, or the session store failed.",
        "The signal bus (Redis) cannot be reached. Nothing was done; try again.",
    ),
}

_STREAM = """data: Once upon

data:  a time

: ping

event: stopped
data: [STOPPED]

"""


def errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The error answers of a call, for `responses=`."""
    return {
        status: {
            "model": Detail,
            "description": _ERRORS[status][0],
            "content": {"application/json": {"example": {"detail": _ERRORS[status][1]}}},
        }
        for status in statuses
    }


def event_stream() -> dict[str, Any]:
    """The 200 of the streaming call."""
    return {
        "description": "The answer as it comes. `X-Run-Id` names the run, `X-Replica` who runs it.",
        "content": {"text/event-stream": {"schema": {"type": "string"}, "example": _STREAM}},
        "headers": {
            "X-Run-Id": {"schema": {"type": "string"}, "description": "ULID of the run."},
            "X-Replica": {"schema": {"type": "string"}, "description": "The replica that runs it."},
        },
    }


OPEN_CALLS = ("/live", "/health", "/api/v1/health")  # for everybody, whatever AUTH says


def describe_sign_in(app: FastAPI, auth: str) -> None:
    """Let the description of the API say what a call must carry, and that without it the answer is 401."""
    if auth == "none":
        return
    bearer = {"type": "http", "scheme": "bearer"}
    # API Gateway's authorizer takes the token as it is.
    scheme = bearer if auth != "apigateway" else {"type": "apiKey", "in": "header", "name": "Authorization"}
    plain = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is not None:
            return app.openapi_schema
        schema = plain()
        schema.setdefault("components", {})["securitySchemes"] = {"bearer": scheme}
        schema["security"] = [{"bearer": []}]
        told = errors(401)[401]
        media = {
            "application/json": {
                "schema": {"$ref": "#/components/schemas/Detail"},
                **told["content"]["application/json"],
            }
        }
        refusal = {"description": told["description"], "content": media}
        for path, calls in schema["paths"].items():
            for call in calls.values():
                if path in OPEN_CALLS:
                    call["security"] = []
                else:
                    call["responses"].setdefault("401", refusal)
        return schema

    app.openapi = openapi  # type: ignore[method-assign]
