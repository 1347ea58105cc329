"""Time that moves only when a test says so: for the event loop, for the product's clocks, for Redis.

Three clocks, since a delay is an order of steps here and not a number:
- the loop's, which fires time limits. It moves when nothing else can happen any more, or when a test skips it.
- the one by which a replica tells for how long it has not been heard. A test moves it when a pulse runs out.
- Redis' own, which a counter replaces: it gives every command a time of its own, the same in every run of a test.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import redis

from haltline import execution, redis_bus, redis_pulse, redis_scripts, redis_watch, runs, stopping, tasks

REDIS_CLOCK = "clock"  # the key that stands for Redis TIME, in microseconds
NEVER = 1e6  # seconds: what is due later is no time limit of the protocol

_TIME = "local t = redis.call('TIME')"
_COUNTED = f"local n = redis.call('INCR', '{REDIS_CLOCK}'); local t = {{math.floor(n / 1000000), n % 1000000}}"
SCRIPTS = ("BEGIN", "STOP", "CLOSING", "END", "CLAIM")


class _Nothing(selectors.SelectSelector):
    """No file is ever waited for: what comes from Valkey is handed in by the test."""

    def select(self, timeout: float | None = None) -> list[Any]:
        return []


class StepLoop(asyncio.SelectorEventLoop):
    """An event loop that never waits."""

    def __init__(self) -> None:
        self.now = self.begun = 1000.0  # seconds
        super().__init__(_Nothing())

    def time(self) -> float:
        return self.now

    @property
    def idle(self) -> bool:
        """Whether no callback is ready to run."""
        return not self._ready  # type: ignore[attr-defined]

    def next_timer(self) -> float | None:
        """When the next time limit is due."""
        due = [t._when for t in self._scheduled if not t._cancelled]  # type: ignore[attr-defined]
        return min((w for w in due if w < NEVER), default=None)


@dataclass
class Hands:
    """What the product's modules get in place of `time` and of the waits in `asyncio`: set by whoever drives them."""

    loop: StepLoop
    sleep: Callable[[float], Any]
    wait: Callable[[set[asyncio.Future[Any]]], Any]
    ahead: Callable[[], float] = lambda: 0.0  # seconds that a replica's clock of pulses is ahead of the loop's


class _Time:
    """Stands for the module `time`."""

    def __init__(self, now: Callable[[], float]) -> None:
        self.monotonic = self.time = now
        self.CLOCK_BOOTTIME, self.clock_gettime = 7, lambda _: now()


class _Asyncio:
    """Stands for the module `asyncio`, but for the waits given."""

    def __init__(self, **own: Any) -> None:
        self.__dict__.update(own)

    def __getattr__(self, name: str) -> Any:
        return getattr(asyncio, name)


@contextmanager
def taken_by(
    hands: Hands, scripts: dict[str, str] | None = None, patches: dict[str, Any] | None = None
) -> Iterator[None]:
    """Let the product run by `hands`, with `scripts` and `patches` in place of what has these names."""
    usual, heard = _Time(lambda: hands.loop.now), _Time(lambda: hands.loop.now + hands.ahead())
    with ExitStack() as stack:
        for module in (execution, runs, stopping, tasks):
            stack.enter_context(patch.object(module, "time", usual))
        stack.enter_context(patch.object(redis_pulse, "time", heard))
        for module in (redis_pulse, redis_watch):
            stack.enter_context(patch.object(module, "asyncio", _Asyncio(sleep=lambda s: hands.sleep(s))))
        of_bus = _Asyncio(sleep=lambda s: hands.sleep(s), wait=lambda fs, timeout: hands.wait(fs))
        stack.enter_context(patch.object(redis_bus, "asyncio", of_bus))
        # redis-py reads its own version from disk for each connection
        stack.enter_context(patch("redis.utils.get_lib_version", lambda: redis.__version__))
        for target, own in (patches or {}).items():
            stack.enter_context(patch(target, own))
        for name in SCRIPTS:
            text = (scripts or {}).get(name, getattr(redis_scripts, name))
            assert _TIME in text, f"{name} asks for the time in another way"
            stack.enter_context(patch.object(redis_scripts, name, text.replace(_TIME, _COUNTED)))
        yield
