"""A client of the HTTP API as anyone could write it: httpx, and Server-Sent Events read by the SSE rules alone."""

from __future__ import annotations

import asyncio
import codecs
import json
import re
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx2 as httpx
from ulid import ULID

from tests.stack import Replica

ULID_PATTERN = re.compile(r"[0-7][0-9A-HJKMNP-TV-Z]{25}")
DONE = ("done", "[DONE]")
STOPPED = ("stopped", "[STOPPED]")

_TLS = ssl.create_default_context()  # never used on 127.0.0.1, and slow to build once a client


def http_client(keepalive: int = 20) -> httpx.AsyncClient:
    """A client without limits of its own, deaf to any proxy of the machine. It keeps so many idle connections."""
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=keepalive)
    return httpx.AsyncClient(timeout=20, limits=limits, trust_env=False, verify=_TLS)


def new_chat(about: str = "chat") -> str:
    """A chat id nobody has used."""
    return f"{about}-{ULID()}".lower()


def new_run() -> str:
    return str(ULID())


def script(**directive: Any) -> str:
    """A message that tells the scripted model what to say; `ensure_ascii` keeps every character of it visible."""
    return "/script " + json.dumps(directive)


# A run of a minute: what a test stops.
LONG = script(chunks=["tick "], repeat=3000, pace_ms=20)


def lf(text: str) -> str:
    """The text as SSE can carry it: every line break is a LF."""
    return text.replace("\r\n", "\n").replace("\r", "\n")


def stamp(seconds_ago: float) -> dict[str, str]:
    """The header by which a front door says when it got a request."""
    return {"X-Request-Start": f"t={time.time() - seconds_ago:.3f}"}


@dataclass(frozen=True)
class Event:
    """One dispatched event. `event` is None where the frame had no `event:` line."""

    event: str | None
    data: str
    at: float


class EventStream:
    """Bytes in, events out: https://html.spec.whatwg.org/multipage/server-sent-events.html#event-stream-interpretation."""

    # A CR at the end of what arrived may be the first half of a CRLF: it waits for the next byte.
    _line_end = re.compile(r"\r\n|\n|\r(?!\Z)")

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("strict")
        self._pending = ""
        self._started = False
        self._event: str | None = None
        self._data: list[str] = []
        self.comments: list[str] = []

    def feed(self, data: bytes) -> list[Event]:
        text = self._decoder.decode(data)
        if text and not self._started:
            self._started = True
            text = text.removeprefix("\ufeff")
        *lines, self._pending = self._line_end.split(self._pending + text)
        return [event for line in lines if (event := self._line(line))]

    @property
    def unfinished(self) -> bool:
        """Whether a frame has begun that no blank line has ended."""
        return bool(self._pending or self._data or self._event)

    def _line(self, line: str) -> Event | None:
        if not line:
            return self._dispatch()
        name, colon, value = line.partition(":")
        value = value.removeprefix(" ")
        if not name and colon:
            self.comments.append(value)
        elif name == "data":
            self._data.append(value)
        elif name == "event":
            self._event = value
        return None

    def _dispatch(self) -> Event | None:
        event, data = self._event, self._data
        self._event, self._data = None, []
        return Event(event, "\n".join(data), time.monotonic()) if data else None


class Turn:
    """One answer to `POST /api/v1/chat/{chat_id}`, read as far as the test wants."""

    def __init__(self, response: httpx.Response, body: AsyncIterator[bytes]) -> None:
        self.response = response
        self.status = response.status_code
        self.headers = response.headers
        self.events: list[Event] = []
        self.raw = bytearray()
        self.ended = False
        self._stream = EventStream()
        self._body = body

    @property
    def run_id(self) -> str:
        return self.headers["x-run-id"]

    @property
    def text(self) -> str:
        """The model's text so far."""
        return "".join(e.data for e in self.events if e.event is None)

    @property
    def closing(self) -> list[tuple[str, str]]:
        """Every frame with an `event:` line: the contract allows one."""
        return [(e.event, e.data) for e in self.events if e.event is not None]

    @property
    def comments(self) -> list[str]:
        return self._stream.comments

    async def until(self, enough: Callable[[Turn], bool], seconds: float = 20) -> Turn:
        """Read on until `enough`, or the end."""
        async with asyncio.timeout(seconds):
            while not self.ended and not enough(self):
                try:
                    data = await anext(self._body)
                except StopAsyncIteration:
                    self.ended = True
                    assert not self._stream.unfinished, bytes(self.raw[-200:])
                    break
                self.raw += data
                if self.status == 200:
                    self.events += self._stream.feed(data)
        return self

    async def first_text(self) -> Turn:
        await self.until(lambda turn: bool(turn.text))
        assert self.text, bytes(self.raw)
        return self

    async def finish(self, seconds: float = 20) -> Turn:
        """Read to the end of the response: the server closes it."""
        await self.until(lambda _: False, seconds)
        assert self.ended
        return self


def chat_url(replica: Replica, chat_id: str) -> str:
    return f"{replica.url}/api/v1/chat/{chat_id}"


def stop_url(replica: Replica, chat_id: str) -> str:
    return f"{replica.url}/api/v1/stop/{chat_id}"


@asynccontextmanager
async def sending(
    http: httpx.AsyncClient,
    replica: Replica,
    chat_id: str,
    message: str,
    *,
    run_id: str | None = None,
    headers: dict[str, str] | None = None,
    params: dict[str, str] | None = None,
) -> AsyncIterator[Turn]:
    """Send a message; leaving the block closes the connection, whatever was read."""
    body = {"message": message} | ({"run_id": run_id} if run_id is not None else {})
    url = chat_url(replica, chat_id)
    async with (
        http.stream("POST", url, json=body, headers=headers, params=params) as response,
        aclosing(response.aiter_bytes()) as data,
    ):
        yield Turn(response, data)


async def say(http: httpx.AsyncClient, replica: Replica, chat_id: str, message: str, **more: Any) -> Turn:
    """Send a message and read the whole answer."""
    async with sending(http, replica, chat_id, message, **more) as turn:
        return await turn.finish()


@asynccontextmanager
async def live_run(
    http: httpx.AsyncClient, replica: Replica, chat_id: str, message: str = LONG, **more: Any
) -> AsyncIterator[Turn]:
    """A run that has said something and has much left to say."""
    async with sending(http, replica, chat_id, message, **more) as turn:
        assert turn.status == 200
        yield await turn.first_text()


async def stop(
    http: httpx.AsyncClient,
    replica: Replica,
    chat_id: str,
    *,
    headers: dict[str, str] | None = None,
    **params: str,
) -> dict[str, Any]:
    """Send a stop that must be answered with 200. Returns the answer."""
    answer = await http.post(stop_url(replica, chat_id), params=params, headers=headers)
    assert answer.status_code == 200, answer.text
    return answer.json()


async def status_of(http: httpx.AsyncClient, replica: Replica, chat_id: str) -> dict[str, Any]:
    answer = await http.get(chat_url(replica, chat_id))
    assert answer.status_code == 200, answer.text
    return answer.json()


async def is_idle(http: httpx.AsyncClient, replica: Replica, chat_id: str) -> bool:
    return (await status_of(http, replica, chat_id))["status"] == "idle"


async def messages_of(http: httpx.AsyncClient, replica: Replica, chat_id: str) -> list[dict[str, Any]]:
    """The transcript, each entry cut down to what the contract names."""
    answer = await http.get(f"{chat_url(replica, chat_id)}/messages")
    assert answer.status_code == 200, answer.text
    body = answer.json()
    assert body["chat_id"] == chat_id
    for entry in body["messages"]:
        assert entry.get("stopped", True) is True, "`stopped` is there and true, or not there"
    return [{k: entry[k] for k in ("role", "text", "stopped") if k in entry} for entry in body["messages"]]


async def until(probe: Callable[[], Awaitable[Any]], seconds: float = 5) -> Any:
    """Ask `probe` until it answers something true. Raises: TimeoutError after `seconds`."""
    async with asyncio.timeout(seconds):
        while not (found := await probe()):
            await asyncio.sleep(0.02)  # a foreign process gives no event to wait for
        return found


def said(message: str, text: str, *, stopped: bool = False) -> list[dict[str, Any]]:
    """One turn as the transcript shows it."""
    answer: dict[str, Any] = {"role": "assistant", "text": text}
    return [{"role": "user", "text": message}, answer | ({"stopped": True} if stopped else {})]
