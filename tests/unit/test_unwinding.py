"""Async generators that a cancelled task drops: who closes them, where, and in which order."""

from __future__ import annotations

import asyncio
import gc
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from contextvars import ContextVar
from typing import Any

import pytest
from loguru import logger

from haltline.unwinding import unwound

HERE: ContextVar[str] = ContextVar("here")


class Told:
    """What was closed, and whether in the task that began it."""

    def __init__(self) -> None:
        self.closed: list[str] = []

    async def rows(self, name: str = "rows", failing: bool = False) -> AsyncGenerator[int, None]:
        begun_in, here = asyncio.current_task(), HERE.set(name)
        try:
            for number in range(10):
                yield number
        finally:
            await asyncio.sleep(0)
            self.closed.append(name if asyncio.current_task() is begun_in else f"{name}, elsewhere")
            HERE.reset(here)  # in any other context an error
            if failing:
                raise ValueError("could not give the lock back")


@pytest.fixture
def told() -> Told:
    return Told()


async def reading(make: Callable[[], AsyncGenerator[Any, None]]) -> None:
    """Stand still in the body of a loop over what `make` gives."""
    async for _ in make():
        await asyncio.sleep(60)


async def halted(work: Callable[[], Coroutine[Any, Any, Any]], again: bool = False) -> None:
    """Begin `work`, cancel it where it waits, and come back when its task has ended."""
    task = asyncio.create_task(unwound(work()))
    await asyncio.sleep(0.001)
    task.cancel()
    if again:
        await asyncio.sleep(0)
        task.cancel()
    await asyncio.wait({task})
    assert task.cancelled()


async def test_left_in_the_body_of_a_loop(told: Told) -> None:
    await halted(lambda: reading(told.rows))
    assert told.closed == ["rows"]


async def test_one_inside_of_another(told: Told) -> None:
    await halted(lambda: unwound(reading(told.rows)))
    assert told.closed == ["rows"]


async def test_asyncio_alone_closes_them_later_and_elsewhere(told: Told) -> None:
    """What all this is for."""
    complaints: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
    task = asyncio.create_task(reading(told.rows))
    await asyncio.sleep(0.001)
    task.cancel()
    await asyncio.wait({task})
    assert told.closed == []
    while not complaints:
        await asyncio.sleep(0)
    assert told.closed == ["rows, elsewhere"]


async def test_a_chain_from_the_outside_in(told: Told) -> None:
    async def outer() -> AsyncGenerator[int, None]:
        try:
            async for number in told.rows("inner"):
                yield number
        finally:
            told.closed.append("outer")

    await halted(lambda: reading(outer))
    assert told.closed == ["outer", "inner"]


async def test_what_a_generator_uses_is_open_while_it_cleans_up(told: Told) -> None:
    @asynccontextmanager
    async def connection() -> AsyncIterator[list[str]]:
        sent = ["open"]
        try:
            yield sent
        finally:
            sent.clear()
            told.closed.append("connection")

    async def query() -> AsyncGenerator[str, None]:
        async with connection() as sent:
            try:
                yield "row"
            except GeneratorExit:
                told.closed.append(f"query, connection {sent}")
                raise

    await halted(lambda: reading(query))
    assert told.closed == ["query, connection ['open']", "connection"]


async def test_what_someone_else_holds_stays_open(told: Told) -> None:
    feed = told.rows("feed")
    assert await anext(feed) == 0
    await halted(lambda: reading(lambda: feed))
    assert told.closed == []
    assert await anext(feed) == 2
    async for _ in feed:
        pass


async def test_of_another_task_stays_open(told: Told) -> None:
    async def other() -> list[int]:
        return [number async for number in slowly(told.rows("other's"))]

    async def slowly(rows: AsyncGenerator[int, None]) -> AsyncGenerator[int, None]:
        async for number in rows:
            await asyncio.sleep(0.001)
            yield number

    tasks: list[asyncio.Task[list[int]]] = []

    async def work() -> None:
        tasks.append(asyncio.create_task(other()))
        await asyncio.sleep(60)

    await halted(work)
    assert await tasks[0] == list(range(10))


async def test_a_failing_clean_up_spares_none_and_is_told(told: Told) -> None:
    warnings: list[str] = []
    sink = logger.add(lambda message: warnings.append(message.record["message"]), level="WARNING")

    async def work() -> None:
        rows = [told.rows("first", failing=True), told.rows("second")]
        for each in rows:
            await anext(each)
        await asyncio.sleep(60)

    await halted(work)
    logger.remove(sink)
    assert sorted(told.closed) == ["first", "second"]
    assert warnings == ["| the clean-up of a halted generator failed"]


async def test_a_second_cancellation_cuts_one_clean_up_short_and_spares_the_others(told: Told) -> None:
    async def stuck() -> AsyncGenerator[None, None]:
        try:
            yield
        finally:
            told.closed.append("stuck")
            await asyncio.sleep(60)
            told.closed.append("never")

    async def work() -> None:
        rows = [stuck(), told.rows()]
        for each in rows:
            await anext(each)
        await asyncio.sleep(60)

    async with asyncio.timeout(10):
        await halted(work, again=True)
    assert sorted(told.closed) == ["rows", "stuck"]


async def test_work_that_is_not_cancelled_is_left_to_asyncio(told: Told) -> None:
    async def work() -> str:
        rows = told.rows()
        await anext(rows)
        HERE.set("the work's own")  # the loop's closing is in another context
        return "done"

    asyncio.get_running_loop().set_exception_handler(lambda *_: None)
    assert await unwound(work()) == "done"
    assert told.closed == []
    for _ in range(10):
        await asyncio.sleep(0)
    assert told.closed == ["rows, elsewhere"]


async def test_an_error_passes(told: Told) -> None:
    async def work() -> None:
        raise ValueError("as it was")

    with pytest.raises(ValueError, match="as it was"):
        await unwound(work())


async def test_nothing_is_left_to_the_collector(told: Told) -> None:
    await halted(lambda: reading(told.rows))
    gc.collect()
    gc.disable()
    try:
        for _ in range(20):
            await halted(lambda: reading(told.rows))
        assert gc.collect() == 0
    finally:
        gc.enable()


def test_hooks_are_set_once_a_loop_and_given_back() -> None:
    before = sys.get_asyncgen_hooks()

    async def work() -> None:
        await asyncio.sleep(0)

    async def many() -> Any:
        await unwound(work())
        hook = sys.get_asyncgen_hooks().finalizer
        await asyncio.gather(*(unwound(work()) for _ in range(10)))
        assert sys.get_asyncgen_hooks().finalizer is hook
        return hook

    assert asyncio.run(many()) is not asyncio.run(many())
    assert sys.get_asyncgen_hooks() == before
