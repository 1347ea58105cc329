"""The shipped agent, in a module by which a test looks into the replica: SIGUSR1 asks, a line answers."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import signal
import tracemalloc
from collections import Counter
from pathlib import Path
from types import FrameType

from haltline.default_agent import make_agent

__all__ = ["make_agent"]

_ANSWERS = Path(os.environ["PROBE_DIRECTORY"]) / f"{os.getpid()}.jsonl"
_OBJECTS = bool(os.environ.get("PROBE_OBJECTS"))  # for the hunt after what grows: takes a collection, some 50 ms


def _answer(_: int, __: FrameType | None) -> None:
    try:
        tasks = len(asyncio.all_tasks(asyncio.get_running_loop()))
    except RuntimeError:  # between two steps of the loop, where none is running
        return
    said: dict[str, object] = {"tasks": tasks}
    if _OBJECTS:
        gc.collect()
        said["objects"] = dict(Counter(type(o).__qualname__ for o in gc.get_objects()).most_common(60))
        if not tracemalloc.is_tracing():  # from the first question on: what was imported until then stays
            tracemalloc.start(8)
        lines = tracemalloc.take_snapshot().statistics("lineno")[:80]
        said["lines"] = {str(line.traceback): [line.size, line.count] for line in lines}
    with _ANSWERS.open("a") as out:
        out.write(json.dumps(said) + "\n")


signal.signal(signal.SIGUSR1, _answer)
