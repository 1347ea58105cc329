"""What a cancelled task drops is closed in that task, before it ends.

An async generator that nobody holds any more is closed by asyncio in a task of its own, some time later and in another
context; where it lies in a cycle, the garbage collector closes it in any thread, against that loop. So a halted tool's
`finally` would run after the run has ended, and OpenTelemetry logs an error for its span.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncGenerator, Callable, Coroutine
from typing import Any, TypeVar

from loguru import logger

T = TypeVar("T")
AnyGenerator = AsyncGenerator[Any, Any]

_dropped: dict[asyncio.Task[Any], list[AnyGenerator]] = {}  # what each task in `unwound` let go of while cancelled


async def unwound(work: Coroutine[Any, Any, T]) -> T:
    """Await `work`. Where it is cancelled, the async generators that it drops are closed before this returns."""
    _watch_finalizer()
    task = asyncio.current_task()
    assert task is not None  # noqa: S101 - called from a coroutine
    if task in _dropped:
        return await work  # whoever called first in this task closes them
    _dropped[task] = []
    try:
        return await work
    except asyncio.CancelledError as halted:
        halted.with_traceback(None)  # its frames hold the generators
        raise
    finally:
        try:
            await _close(_dropped[task])
        finally:
            del _dropped[task]


async def _close(generators: list[AnyGenerator]) -> None:
    """Close them in the order in which they were let go, as Python would; each may drop others in its turn.

    One that fails or is cancelled does not spare the others.
    """
    while generators:
        try:
            await generators.pop(0).aclose()
        except asyncio.CancelledError:
            pass  # once more, by someone who waits for this task: that one clean-up was cut short
        except Exception as error:
            logger.opt(exception=error).warning("| the clean-up of a halted generator failed")


def _watch_finalizer() -> None:
    """Be asked first when a generator is dropped, before whoever was asked until now, which is the event loop."""
    asked = sys.get_asyncgen_hooks().finalizer
    if not isinstance(asked, _Finalizer):
        sys.set_asyncgen_hooks(finalizer=_Finalizer(asked))


class _Finalizer:
    def __init__(self, otherwise: Callable[[AnyGenerator], None] | None) -> None:
        self._otherwise = otherwise

    def __call__(self, generator: AnyGenerator) -> None:
        try:
            task = asyncio.current_task()
        except RuntimeError:  # the collector runs in a thread without a loop
            task = None
        if task in _dropped and task.cancelling():
            _dropped[task].append(generator)
        elif self._otherwise:
            self._otherwise(generator)
