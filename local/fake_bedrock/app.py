"""The ASGI application: requests in, frames out, every end of a request logged."""

from __future__ import annotations

import itertools
import json
import re
import time
import uuid
from collections import Counter
from typing import TYPE_CHECKING, Any

from local.fake_bedrock import frames
from local.fake_bedrock.connections import Connection, Left
from local.fake_bedrock.history import invalid_history
from local.fake_bedrock.script import BadScript, Drop, Event, Fail, Pause, answer_of, last_text, script_of, steps_of

if TYPE_CHECKING:
    from uvicorn._types import ASGIReceiveCallable, ASGISendCallable, HTTPScope

PATH = re.compile(r"/model/(.+)/(converse|converse-stream)")
ATTEMPT = re.compile(r"attempt=(\d+)")
THROTTLED = "Too many requests, please wait before trying again."
STATUS = {
    "throttlingException": 429,
    "modelStreamErrorException": 424,
    "validationException": 400,
    "serviceUnavailableException": 503,
}


class Refusal(Exception):
    """An HTTP error. Its text is Bedrock's message."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status, self.code = status, code


class FakeBedrock:
    """`connections`: a class that `serving` made."""

    def __init__(self, connections: type[Connection]) -> None:
        self._connections = connections
        self._ids = itertools.count(1)
        self._throttled: Counter[tuple[str, str]] = Counter()

    async def __call__(self, scope: HTTPScope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        """Answer one request."""
        assert scope["client"]  # noqa: S101 - TCP always has one
        connection = self._connections.open[scope["client"]]
        exchange = Exchange(connection, send, next(self._ids))
        try:
            if (body := await _body_of(receive)) is not None:
                await self._answer(exchange, scope, body)
        except Refusal as refusal:
            exchange.log("refused", code=refusal.code)
            await exchange.refuse(refusal)
        except Left:
            exchange.left()
            await connection.abort()

    async def _answer(self, exchange: Exchange, scope: HTTPScope, data: bytes) -> None:
        """Raises: Refusal, Left."""
        headers = {name.decode(): value.decode("latin-1") for name, value in scope["headers"]}
        path = PATH.fullmatch(scope["path"])
        if not path or scope["method"] != "POST":
            raise Refusal(404, "UnknownOperationException", "")
        if "authorization" not in headers:
            raise Refusal(403, "MissingAuthenticationTokenException", "Missing Authentication Token")
        model, operation = path.groups()
        try:
            body = json.loads(data)
        except ValueError:
            body = None
        if not isinstance(body, dict):
            raise Refusal(400, "SerializationException", "The body is not a JSON object.")
        invalid = invalid_history(body)
        text = "" if invalid else last_text(body["messages"])
        try:
            script = script_of(model, text)
        except BadScript as bad:
            script, invalid = {}, str(bad)
        exchange.name = script.get("name")
        attempt = ATTEMPT.search(headers.get("amz-sdk-request", ""))
        exchange.log(
            "request",
            model=model,
            operation=operation,
            text=text[:80],
            attempt=int(attempt[1]) if attempt else None,
            messages=len(body.get("messages", ())),
        )
        if invalid:
            exchange.log("invalid", why=invalid)
            raise Refusal(400, "ValidationException", invalid)
        self._refuse_what_is_to_be_refused(model, text, script)
        await exchange.connection.quiet(float(script.get("headers_ms", 0)))
        if operation == "converse":
            await exchange.say_at_once(script, body["messages"])
        else:
            await exchange.stream(script, body["messages"])

    def _refuse_what_is_to_be_refused(self, model: str, text: str, script: dict[str, Any]) -> None:
        throttle, key = int(script.get("throttle", 0)), (model, str(script.get("name", text)))
        if throttle < 0 or self._throttled[key] < throttle:
            self._throttled[key] += 1
            raise Refusal(429, "ThrottlingException", THROTTLED)
        if refuse := script.get("refuse"):
            code = str(refuse.get("code", "ValidationException"))
            raise Refusal(
                int(refuse.get("status", 400)), code, str(refuse.get("message", "Refused as the script says."))
            )


class Exchange:
    """One request and its response."""

    def __init__(self, connection: Connection, send: ASGISendCallable, id_: int) -> None:
        self.connection = connection
        self.name: str | None = None
        self._send, self._id, self._began = send, id_, time.monotonic()
        self._phase = "before_headers"
        self._sent = self._sent_after_close = 0
        self._first_at: float | None = None
        self._last_at: float | None = None

    def log(self, event: str, at: float | None = None, **fields: Any) -> None:
        """One line about this request."""
        port = self.connection.client[1]
        self.connection.log.write(event, at, id=self._id, name=self.name, connection=port, **fields)

    async def stream(self, script: dict[str, Any], messages: list[Any]) -> None:
        """ConverseStream. Raises: Left."""
        await self._start(200, frames.CONTENT_TYPE)
        self._phase = "before_first"
        await self.connection.quiet(float(script.get("delay_ms", 0)))
        for step in steps_of(script, messages):
            match step:
                case Pause():
                    await self.connection.quiet(step.ms)
                case Event():
                    await self._say(step)
                case Fail():
                    await self._end(frames.exception(step.code, step.message), "failed", code=step.code)
                    return
                case Drop():
                    self._finish("dropped")
                    await self.connection.close()
                    return
        await self._end(b"", "completed")

    async def say_at_once(self, script: dict[str, Any], messages: list[Any]) -> None:
        """Converse: the same, after all its silence. Raises: Left, Refusal where a stream would fail."""
        await self.connection.quiet(float(script.get("delay_ms", 0)))
        events = []
        for step in steps_of(script, messages):
            match step:
                case Pause():
                    await self.connection.quiet(step.ms)
                case Event():
                    events.append(self._timed(step))
                case Fail():
                    code = step.code[:1].upper() + step.code[1:]
                    raise Refusal(STATUS.get(step.code, 500), code, step.message)
                case Drop():
                    self._finish("dropped")
                    await self.connection.close()
                    return
        self._sent = sum(event.is_text for event in events)
        self._finish("completed")
        await self._whole(200, answer_of(events))

    async def refuse(self, refusal: Refusal) -> None:
        """An HTTP error, as Bedrock sends it."""
        body: dict[str, Any] = {"message": str(refusal)}
        if refusal.status == 404:
            body = {"Output": {"__type": f"com.amazon.coral.service#{refusal.code}"}, "Version": "1.0"}
        await self._whole(refusal.status, body, (b"x-amzn-errortype", refusal.code.encode()))

    def left(self) -> None:
        """Log that the client left, or else that this process ends."""
        if self.connection.left_at is None:
            self._finish("ended")
            return
        after = self._sent_after_close
        self._finish("closed", self.connection.left_at, phase=self._phase, sent_after_close=after)

    def _finish(self, event: str, at: float | None = None, **fields: Any) -> None:
        self.log(event, at, sent=self._sent, first_at=self._first_at, last_at=self._last_at, **fields)

    def _timed(self, event: Event) -> Event:
        if event.kind != "metadata":
            return event
        latency = {"latencyMs": round((time.monotonic() - self._began) * 1000)}
        return Event(event.kind, {**event.payload, "metrics": latency})

    async def _say(self, event: Event) -> None:
        await self._write(frames.event(event.kind, self._timed(event).payload))
        self._phase = "streaming"
        if event.is_text:
            self._sent += 1
            self._last_at = time.monotonic()
            self._first_at = self._first_at or self._last_at
            self._sent_after_close += self.connection.left_at is not None

    async def _write(self, data: bytes) -> None:
        """Raises: Left."""
        await self.connection.quiet(0)  # so that uvicorn need not wait, and nothing is written when the client has left
        await self._send({"type": "http.response.body", "body": data, "more_body": True})

    async def _end(self, data: bytes, event: str, **fields: Any) -> None:
        """Log the end before the client can see it: who has read an answer to its end finds the line. Raises: Left."""
        await self.connection.quiet(0)
        self._finish(event, **fields)
        await self._send({"type": "http.response.body", "body": data, "more_body": False})

    async def _start(self, status: int, content_type: str, *headers: tuple[bytes, bytes]) -> None:
        common = [(b"content-type", content_type.encode()), (b"x-amzn-requestid", str(uuid.uuid4()).encode())]
        await self._send({"type": "http.response.start", "status": status, "headers": [*common, *headers]})

    async def _whole(self, status: int, body: dict[str, Any], *headers: tuple[bytes, bytes]) -> None:
        data = json.dumps(body).encode()
        await self._start(status, "application/json", (b"content-length", str(len(data)).encode()), *headers)
        await self._send({"type": "http.response.body", "body": data, "more_body": False})


async def _body_of(receive: ASGIReceiveCallable) -> bytes | None:
    """None where the client left before it had sent everything."""
    data = b""
    while True:
        message = await receive()
        if message["type"] != "http.request":
            return None
        data += message["body"]
        if not message["more_body"]:
            return data
