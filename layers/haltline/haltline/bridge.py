"""Code written to block, run on the event loop: where it would block, it awaits. No thread.

botocore and what Strands builds on it know no asyncio. Run in a greenlet, such code can hand an awaitable, or
something to yield, to the coroutine that drives it, and goes on with the outcome.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any, Generic, TypeVar, cast

from greenlet import GreenletExit, getcurrent, greenlet

T = TypeVar("T")
C = TypeVar("C")


class Flow(greenlet, Generic[C]):
    """Blocking-style code under way. `context` is whatever its callbacks need to know of it."""

    def __init__(self, work: Callable[[Callable[[Any], None]], None], context: C) -> None:
        super().__init__(lambda: work(self._emit))
        self.context = context
        self.gr_context = getcurrent().gr_context  # context variables are those of the coroutine

    @staticmethod
    def current() -> Flow[Any] | None:
        """The flow that the caller runs in, None outside of any."""
        here = getcurrent()
        return here if isinstance(here, Flow) else None

    def wait(self, awaitable: Awaitable[T]) -> T:
        """Await something. Called from inside; raises what it raises, CancelledError too."""
        return cast("T", self._leave(True, awaitable))

    def _emit(self, event: Any) -> None:
        self._leave(False, event)

    def _leave(self, is_awaitable: bool, what: Any) -> Any:
        assert self.parent is not None  # noqa: S101 - set before each entry
        return self.parent.switch(is_awaitable, what)

    async def events(self) -> AsyncGenerator[Any, None]:
        """Drive it, yielding what it emits. Closed early, it unwinds like a generator."""
        try:
            said = self._enter(self.switch)
            while not self.dead:
                is_awaitable, what = said
                if not is_awaitable:
                    yield what
                    said = self._enter(self.switch)
                    continue
                try:
                    outcome = await what
                except BaseException as error:
                    said = self._enter(self.throw, error)
                else:
                    said = self._enter(self.switch, outcome)
        finally:
            while not self.dead and self:  # left early: whatever it still wants, it does not get
                self._enter(self.throw, GreenletExit())

    def _enter(self, how: Callable[..., Any], *args: Any) -> Any:
        self.parent = getcurrent()
        return how(*args)
