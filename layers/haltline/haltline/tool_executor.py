"""Strands' concurrent tool executor, whose tools are unwound where they ran when they are halted."""

from __future__ import annotations

import asyncio
import itertools
import sys
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack
from contextvars import ContextVar
from typing import Any
from weakref import WeakValueDictionary

from strands.tools.executors import ConcurrentToolExecutor


class _Begun:
    """The async generators that one task has begun and that are still there, in this order."""

    def __init__(self) -> None:
        self._task = asyncio.current_task()
        self._generators: WeakValueDictionary[int, AsyncGenerator[Any, Any]] = WeakValueDictionary()
        self._number = itertools.count()

    def note(self, generator: AsyncGenerator[Any, Any]) -> None:
        if asyncio.current_task() is self._task:  # a task that a tool starts inherits the context, and ends its own
            self._generators[next(self._number)] = generator

    async def close(self) -> None:
        """Close them, the innermost first; one that fails, or is cancelled in it, does not spare the others."""
        async with AsyncExitStack() as stack:
            for generator in list(self._generators.values()):
                stack.push_async_callback(generator.aclose)


_begun: ContextVar[_Begun | None] = ContextVar("generators begun by this tool", default=None)


class UnwindingToolExecutor(ConcurrentToolExecutor):
    """Closes the generators of a tool that is halted between two of its events, in the tool's own task.

    Strands drops them there. The event loop then closes them one by one in tasks of its own: a tool's `finally` runs
    some time after the run has ended, and OpenTelemetry finds its span in a foreign context and logs an error. Where
    they are part of a cycle the garbage collector ends them in whichever thread it happens to run, against that loop.
    """

    async def _task(self, *args: Any, **kwargs: Any) -> None:
        _note_generators()
        begun = _Begun()
        _begun.set(begun)  # the context is of this task alone
        try:
            await super()._task(*args, **kwargs)
        except asyncio.CancelledError:
            await begun.close()
            raise


def _note_generators() -> None:
    """Tell `_Begun` of each async generator that is begun in this thread, after whoever is told already."""
    told = sys.get_asyncgen_hooks().firstiter
    if getattr(told, "notes_generators", False):
        return

    def first(generator: AsyncGenerator[Any, Any]) -> None:
        if told is not None:
            told(generator)
        if (begun := _begun.get()) is not None:
            begun.note(generator)

    first.notes_generators = True  # type: ignore[attr-defined]
    sys.set_asyncgen_hooks(firstiter=first)
