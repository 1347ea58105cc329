"""asyncio tasks: the one that runs, and ending others for certain."""

from __future__ import annotations

import asyncio
import time
from typing import Any

AGAIN = 0.1  # seconds; what a cancelled task may take to close what it holds, before it is cancelled again


async def cancelled(*tasks: asyncio.Task[Any], within: float) -> bool:
    """Cancel tasks until they have ended, at most `within` seconds. Whether all have.

    A task that is being cancelled already is given time first.

    Once is not enough: on Python 3.11 `asyncio.wait_for`, which redis-py and others use, loses a cancellation that
    comes in the moment its own wait is over.
    """
    until = time.monotonic() + within
    left = {task for task in tasks if not task.done()}
    begun = {task for task in left if task.cancelling()}
    while left and time.monotonic() < until:
        for task in left - begun:
            task.cancel()
        begun = set()
        _, left = await asyncio.wait(left, timeout=min(AGAIN, within))
    return not left


def this_task() -> asyncio.Task[Any]:
    """The task that a coroutine runs in."""
    task = asyncio.current_task()
    assert task is not None  # noqa: S101 - called from a coroutine
    return task
