"""A run's stream on its way to the client: in the run's own step where the connection takes it, in order always."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from haltline import chat_routes
from haltline.chat_routes import EventStreamResponse
from haltline.events import Done, Event, Stopped, Text
from haltline.runs import StopToken
from haltline.stream import EventStream

SOON = 5.0  # seconds: a deadline, not a wait


class Connection:
    """ASGI's other side. It takes nothing while `slow`; `fail` is raised by the next send."""

    def __init__(self) -> None:
        self.sent: list[bytes] = []
        self.over = False
        self.takes = asyncio.Event()
        self.takes.set()
        self.gone = asyncio.Event()
        self.fail: Exception | None = None
        self.sending = 0

    async def send(self, message: dict[str, Any]) -> None:
        if self.fail:
            raise self.fail
        if message["type"] == "http.response.start":
            return
        assert not self.sending, "two parts are on their way at once"
        self.sending += 1
        try:
            while not self.takes.is_set():
                await self.takes.wait()
        finally:
            self.sending -= 1
        if message["body"]:
            self.sent.append(message["body"])
        self.over = not message["more_body"]

    async def receive(self) -> dict[str, Any]:
        await self.gone.wait()
        return {"type": "http.disconnect"}


class Streaming:
    """A response under way."""

    def __init__(self) -> None:
        self.stream, self.token, self.connection = EventStream(), StopToken(), Connection()
        ended = asyncio.get_running_loop().create_future()
        ended.set_result(None)
        run = SimpleNamespace(run_id="r", token=self.token)
        execution: Any = SimpleNamespace(stream=self.stream, run=run, task=ended)
        response = EventStreamResponse(execution, stop_on_disconnect=True)
        self.task = asyncio.create_task(response({}, self.connection.receive, self.connection.send))

    async def settled(self) -> None:
        for _ in range(5):
            await asyncio.sleep(0)

    def put(self, *events: Event) -> None:
        for event in events:
            self.stream.put(event)

    async def ended(self) -> str:
        await asyncio.wait_for(self.task, SOON)
        assert self.connection.over
        return b"".join(self.connection.sent).decode()


@pytest.fixture
async def streaming() -> Streaming:
    started = Streaming()
    await started.settled()
    return started


END = "event: done\ndata: [DONE]\n\n"


async def test_an_event_is_sent_in_the_step_in_which_it_is_said(streaming: Streaming) -> None:
    streaming.put(Text("a"))
    assert streaming.connection.sent == [b"data: a\n\n"]
    streaming.put(Text("b"), Stopped())
    assert streaming.connection.sent[1:] == [b"data: b\n\n", b"event: stopped\ndata: [STOPPED]\n\n"]
    await streaming.ended()


async def test_what_is_said_before_the_client_is_told_the_headers_comes_first() -> None:
    streaming = Streaming()
    streaming.put(Text("a"))
    assert streaming.connection.sent == []
    await streaming.settled()
    streaming.put(Text("b"), Done())
    assert await streaming.ended() == "data: a\n\ndata: b\n\n" + END


async def test_a_slow_client_gets_all_in_order(streaming: Streaming) -> None:
    for n in range(30):
        if n % 4 == 1:
            streaming.connection.takes.clear()
        streaming.put(Text(str(n)))
        if n % 3 == 0:
            await streaming.settled()
        if n % 4 == 3:
            streaming.connection.takes.set()
    streaming.put(Done())
    streaming.connection.takes.set()
    assert await streaming.ended() == "".join(f"data: {n}\n\n" for n in range(30)) + END


async def test_a_closing_event_waits_for_a_slow_client(streaming: Streaming) -> None:
    streaming.connection.takes.clear()
    streaming.put(Done())
    await streaming.settled()
    assert streaming.connection.sent == []
    streaming.connection.takes.set()
    assert await streaming.ended() == END


async def test_a_slow_client_that_leaves(streaming: Streaming) -> None:
    streaming.connection.takes.clear()
    streaming.put(Text("a"), Text("b"))
    await streaming.settled()
    streaming.connection.gone.set()
    await streaming.settled()
    assert streaming.token.stopped
    streaming.connection.takes.set()  # as uvicorn does
    await asyncio.wait_for(streaming.task, SOON)


async def test_a_response_that_is_cancelled_while_a_frame_waits(streaming: Streaming) -> None:
    streaming.connection.takes.clear()
    streaming.put(Text("a"))
    await streaming.settled()
    streaming.task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await streaming.task
    assert streaming.connection.sending == 0  # unwound
    assert streaming.token.stopped
    streaming.put(Text("b"))


async def test_an_error_of_the_connection_is_the_responses_and_not_the_runs(streaming: Streaming) -> None:
    streaming.connection.fail = OSError("broken")
    streaming.put(Text("a"))
    with pytest.raises(OSError, match="broken"):
        await asyncio.wait_for(streaming.task, SOON)
    assert streaming.token.stopped


async def test_silence_is_counted_from_the_last_event(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_routes, "PING_AFTER", 0.3)
    streaming = Streaming()
    for n in range(20):
        await asyncio.sleep(0.02)
        streaming.put(Text(str(n)))
    assert b": ping\n\n" not in streaming.connection.sent
    async with asyncio.timeout(SOON):
        while streaming.connection.sent.count(b": ping\n\n") < 2:
            await asyncio.sleep(0.01)
    streaming.put(Done())
    assert (await streaming.ended()).endswith(END)
