"""The stream between a run and its client: nothing after the closing event, nothing kept for a client that left."""

from __future__ import annotations

import asyncio

import pytest

from haltline.events import Closing, Done, Event, Failed, Stopped, Text
from haltline.stream import ROOM, EventStream

SOON = 5.0  # seconds: a deadline, not a wait


async def held_up(stream: EventStream) -> bool:
    """Whether the writer would have to wait now. The loop goes round once before it is asked."""
    writer = asyncio.create_task(stream.room())
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    waiting = not writer.done()
    writer.cancel()
    return waiting


async def test_events_come_in_order_and_once() -> None:
    stream = EventStream()
    assert [stream.put(Text("a")), stream.put(Text("b"))] == [True, True]
    assert await stream.take(SOON) == [Text("a"), Text("b")]
    assert stream.put(Done()) is True
    assert await stream.take(SOON) == [Done()]
    assert await stream.take(0) == []


async def test_a_reader_that_waits_is_woken() -> None:
    stream = EventStream()
    reading = asyncio.create_task(stream.take(SOON))
    await asyncio.sleep(0)
    stream.put(Text("a"))
    assert await asyncio.wait_for(reading, SOON) == [Text("a")]


async def test_silence_is_an_empty_answer() -> None:
    assert await EventStream().take(0) == []


@pytest.mark.parametrize("closing", [Done(), Stopped(), Failed("why")], ids=["done", "stopped", "failed"])
@pytest.mark.parametrize("late", [Text("late"), Done(), Stopped(), Failed("late")], ids=repr)
async def test_nothing_follows_the_closing_event(closing: Closing, late: Event) -> None:
    stream = EventStream()
    assert stream.closed is False
    assert [stream.put(Text("a")), stream.put(closing), stream.put(late)] == [True, True, False]
    assert stream.closed is True
    assert await stream.take(SOON) == [Text("a"), closing]
    assert await stream.take(0) == []


# ---- a slow client


@pytest.mark.parametrize(
    ("lengths", "waits"),
    [
        pytest.param([], False, id="nothing waits"),
        pytest.param([ROOM], False, id="just full"),
        pytest.param([ROOM, 1], True, id="one too many"),
        pytest.param([ROOM // 2, ROOM // 2, 1], True, id="many small ones"),
        pytest.param([ROOM * 2], True, id="one large one"),
    ],
)
async def test_a_slow_client_holds_the_run_up(lengths: list[int], waits: bool) -> None:
    stream = EventStream()
    for length in lengths:
        stream.put(Text("x" * length))
    assert await held_up(stream) is waits


async def test_what_the_client_takes_makes_room() -> None:
    stream = EventStream()
    stream.put(Text("x" * (ROOM + 1)))
    writer = asyncio.create_task(stream.room())
    await asyncio.sleep(0)
    assert not writer.done()
    await stream.take(SOON)
    await asyncio.wait_for(writer, SOON)
    stream.put(Text("x" * ROOM))
    assert await held_up(stream) is False  # what was taken counts no more


async def test_a_full_stream_still_takes_the_closing_event() -> None:
    stream = EventStream()
    stream.put(Text("x" * (ROOM + 1)))
    assert stream.put(Stopped()) is True
    assert (await stream.take(SOON))[-1] == Stopped()


# ---- a client that left


async def test_a_client_that_leaves_wakes_both_sides() -> None:
    stream = EventStream()
    stream.put(Text("x" * (ROOM + 1)))
    writer = asyncio.create_task(stream.room())
    await asyncio.sleep(0)
    stream.leave()
    await asyncio.wait_for(writer, SOON)
    assert await asyncio.wait_for(stream.take(SOON), SOON) == []
    assert stream.left is True

    stream = EventStream()
    reading = asyncio.create_task(stream.take(SOON * 10))
    await asyncio.sleep(0)
    stream.leave()
    assert await asyncio.wait_for(reading, SOON) == []


async def test_nothing_is_kept_for_a_client_that_left() -> None:
    stream = EventStream()
    stream.leave()
    await stream.take(0)
    for _ in range(3):
        assert stream.put(Text("x" * ROOM)) is True  # the run goes on, with ON_DISCONNECT=continue
    assert await held_up(stream) is False
    assert stream.put(Done()) is True
    assert stream.put(Text("late")) is False
    assert (stream.closed, await stream.take(0)) == (True, [])
