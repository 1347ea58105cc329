"""How often one client may have a stop begun: so that many of one do not hold up those of others, nor their tokens.

A stop waits its turn; its time of arrival, which decides what it halts, is that at the door. Clients are told apart by
their address and what a proxy in front says of whom it speaks for. Who makes that up where there is no proxy gets more
turns, and takes none of anyone else's: the address stands beside it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass, field

from starlette.types import Scope


def client_of(scope: Scope) -> str:
    """Who asks."""
    host, _ = scope.get("client") or ("", 0)
    spoken_for: bytes = next((value for name, value in scope["headers"] if name == b"x-forwarded-for"), b"")
    return f"{host} {spoken_for[:100].decode('latin-1')}"


@dataclass(slots=True)
class _Line:
    """A client's turns that are taken, and who waits for one."""

    left: int
    waiting: deque[asyncio.Future[None]] = field(default_factory=deque)


class Turns:
    """Turns of many clients: `at_once` of one, then one each `every` seconds."""

    def __init__(self, every: float, at_once: int, waiting: int) -> None:
        """`waiting`: how many of one client may wait."""
        self._every, self._at_once, self._room = every, at_once, waiting
        self._lines: dict[str, _Line] = {}
        self._pacing: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        return len(self._lines)

    async def wait(self, client: str) -> bool:
        """Wait for this client's next turn. False at once, and no turn, where too many wait."""
        if (line := self._lines.get(client)) is None:
            line = self._lines[client] = _Line(self._at_once)
            pacing = asyncio.create_task(self._pace(client, line))
            self._pacing.add(pacing)
            pacing.add_done_callback(self._pacing.discard)
        if line.left:
            line.left -= 1
            return True
        if len(line.waiting) >= self._room:
            return False
        turn = asyncio.get_running_loop().create_future()
        line.waiting.append(turn)
        await turn
        return True

    async def _pace(self, client: str, line: _Line) -> None:
        """Give turns until all are back that this client may take at once."""
        while line.waiting or line.left < self._at_once:
            await asyncio.sleep(self._every)
            while line.waiting and line.waiting[0].done():  # whoever waited has gone
                line.waiting.popleft()
            if line.waiting:
                line.waiting.popleft().set_result(None)
            else:
                line.left += 1
        del self._lines[client]
