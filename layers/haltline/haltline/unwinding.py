"""What a cancelled task drops is closed in that task, before it ends.

An async generator that nobody holds any more is closed by asyncio in a task of its own, some time later and in another
context; where it lies in a cycle, the garbage collector closes it in any thread, against that loop. So a halted tool's
`finally` would run after the run has ended, and OpenTelemetry logs an error for its span.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextvars import ContextVar
from typing import Any, TypeVar

from loguru import logger

T = TypeVar("T")
AnyGenerator = AsyncGenerator[Any, Any]


class _Dropped:
    """The generators that one task let go of while it was being cancelled."""

    def __init__(self) -> None:
        self._task: asyncio.Task[Any] | None = asyncio.current_task()
        self._generators: list[AnyGenerator] = []

    def take(self, generator: AnyGenerator) -> bool:
        try:
            task = asyncio.current_task()
        except RuntimeError:  # the collector runs in a thread without a loop
            return False
        if task is None or task is not self._task or not task.cancelling():
            return False
        self._generators.append(generator)
        return True

    async def close(self) -> None:
        """Close them in the order in which they were let go, as Python would; each may drop others in its turn.

        One that fails or is cancelled does not spare the others.
        """
        while self._generators:
            try:
                await self._generators.pop(0).aclose()
            except asyncio.CancelledError:
                pass  # once more, by someone who waits for this task: that one clean-up was cut short
            except Exception as error:
                logger.opt(exception=error).warning("error=<{!r}> | the clean-up of a halted generator failed", error)


_dropped: ContextVar[_Dropped | None] = ContextVar("generators dropped by this task", default=None)


async def unwound(work: Coroutine[Any, Any, T]) -> T:
    """Await `work`. Where it is cancelled, the async generators that it drops are closed before this returns."""
    _watch_finalizer()
    dropped = _Dropped()
    token = _dropped.set(dropped)
    try:
        return await work
    except asyncio.CancelledError as halted:
        halted.with_traceback(None)  # its frames hold the generators
        raise
    finally:
        await dropped.close()
        _dropped.reset(token)


def _watch_finalizer() -> None:
    """Ask `_Dropped` first, then whoever was asked until now, which is the event loop."""
    asked: Callable[[AnyGenerator], None] | None = sys.get_asyncgen_hooks().finalizer
    if isinstance(asked, _Finalizer):
        return
    sys.set_asyncgen_hooks(finalizer=_Finalizer(asked))


class _Finalizer:
    def __init__(self, otherwise: Callable[[AnyGenerator], None] | None) -> None:
        self._otherwise = otherwise

    def __call__(self, generator: AnyGenerator) -> None:
        dropped = _dropped.get()
        if not (dropped and dropped.take(generator)) and self._otherwise:
            self._otherwise(generator)
