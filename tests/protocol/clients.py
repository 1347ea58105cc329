"""Clients: they send when they have seen what they wait for, each request a task of its own."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Coroutine, Iterable
from typing import TYPE_CHECKING, Any

from fastapi import HTTPException

from haltline.control_routes import delete
from haltline.events import Closing
from haltline.redis_scripts import mailbox_key
from haltline.runs import Arrival
from haltline.signals import BusUnavailable
from haltline.stopping import stop_chat
from haltline.taking import ChatBusy
from tests.protocol.clock import NEVER
from tests.protocol.parts import WHO, Press, Request, Step

if TYPE_CHECKING:
    from tests.protocol.stepper import Stepper

BASE = 1_700_000_000_000  # ms since the epoch: the true time at which a scenario begins
AHEAD = 60_000  # ms that Redis' clock is ahead of it, so that no stamp lies in the future
WAIT = 10.0  # seconds that `?wait` asks for


class Clients:
    """All clients of an interleaving. `now` is the true time, ms since its beginning: it moves with what they send."""

    def __init__(self, stepper: Stepper) -> None:
        self._at = stepper
        self.now = 0

    def steps(self) -> list[Step]:
        """What clients may send now, and agents that may come to their end."""
        at = self._at
        found = [self.sends(r) for r in at.requests if self._may(r.sent, r.spec.through, r.spec.after)]
        found += [self._presses(p) for p in at.presses if self._may(p.sent, p.spec.through, p.spec.after)]
        return found + [self.agent_ends(r) for r in at.requests if r.spec.finishes and r.working and at.up(r)]

    def _may(self, sent: int, through: int, after: Iterable[str]) -> bool:
        return sent < 0 and self._at.replicas[through].state != "dead" and all(map(self._happened, after))

    def _happened(self, event: str) -> bool:
        who, _, what = event.partition(".")
        if who[0] == "s":
            press = self._at.presses[int(who[1:])]
            return press.sent >= 0 if what == "sent" else press.answer not in ("", "503")
        run = self._at.request(who)
        match what:
            case "sent":
                return run.sent >= 0
            case "begun":
                return run.begun or run.closing is not None
            case "live":
                return run.working or run.closing is not None
            case "closed":
                return run.closing is not None
        raise ValueError(event)

    def sends(self, run: Request) -> Step:
        """A message or a deletion."""
        spec = run.spec
        kind = "a deletion" if spec.deletes else "a message" + (" with if_running=stop" if spec.replaces else "")

        def go() -> None:
            self.now += spec.gap
            run.sent, run.sent_at = self.now, self._at.taken
            run.task = self._start(run.name, self._delete(run) if spec.deletes else self._chat(run))

        return Step(run.name, "client", f"sends {kind} to replica {spec.through}", go)

    def _presses(self, press: Press) -> Step:
        spec = press.spec
        how = (f" for R{spec.names}" if spec.names is not None else "") + (" and waits" if spec.waits else "")

        def go() -> None:
            self.now += spec.gap
            press.sent = self.now
            if spec.by_hand:
                value = spec.value or str(BASE + self.now + spec.clock_off)
                self._at.control.call("SET", mailbox_key(self._at.chat), value)
                press.stored, press.answer = True, "set"
            else:
                press.task = self._start(press.name, self._stop(press))

        what = f"sets stop:{self._at.chat} by hand" if spec.by_hand else f"sends a stop{how} to replica {spec.through}"
        return Step(press.name, "client", what, go)

    def agent_ends(self, run: Request) -> Step:
        """The agent of a run comes to its end."""

        def go() -> None:
            run.finished = True
            if run.agents:
                run.agents.end()
            self._at.changes += 1

        return Step(f"A{run.index}", "agent", "comes to its end", go)

    # ---- requests
    async def _chat(self, run: Request) -> None:
        runner, arrival = self._at.replicas[run.spec.through].runner, self._arrival(0)
        try:
            execution = await runner.start(
                self._at.chat, run.message, arrival, run_id=run.run_id, stop_first=run.spec.replaces
            )
        except ChatBusy:
            run.answer = "409"
            return
        except BusUnavailable:
            run.answer = "503"
            return
        run.answer, run.execution = "200", execution
        execution.run.token.on_stop(lambda: self._at.halted(run))
        while not (run.events and isinstance(run.events[-1], Closing)):
            run.events += await execution.stream.take(2 * NEVER)

    async def _delete(self, run: Request) -> None:
        try:
            await delete(self._at.chat, self._arrival(0), self._at.replicas[run.spec.through].resources)
            run.answer = "deleted"
        except ChatBusy:
            run.answer = "409"
        except BusUnavailable:
            run.answer = "503"
        except HTTPException as error:
            run.answer = str(error.status_code)

    async def _stop(self, press: Press) -> None:
        spec, arrival = press.spec, self._arrival(press.spec.clock_off)
        run_id = self._at.requests[spec.names].run_id if spec.names is not None else None
        resources, wait = self._at.replicas[spec.through].resources, WAIT if spec.waits else None
        try:
            answer = await stop_chat(resources, self._at.chat, arrival, run_id=run_id, wait=wait)
        except BusUnavailable:
            press.answer = "503"
            return
        press.answer, press.told = answer.status, answer.run_id or ""

    def _arrival(self, off: int) -> Arrival:
        """By the front door's clock; where a client's is another, by that of Redis, from the age of the request."""
        if not off:
            return Arrival(BASE + self.now, self._at.loop.now)
        return Arrival(0, self._at.loop.now - (AHEAD - self.now - off) / 1000)

    def _start(self, who: str, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        context = contextvars.copy_context()
        context.run(WHO.set, who)
        return self._at.loop.create_task(work, context=context)
