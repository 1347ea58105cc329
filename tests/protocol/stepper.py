"""Drives the product one step at a time: nothing runs by itself, nothing sleeps.

Replicas of the product stand in one event loop over a real Valkey. Held until the test lets it go are: every command
on its way to Valkey, every reply and every push on its way back, every verb of the store, every wait of the watch's
loops, every second look for a receipt. Clients' requests, the ends of agents, and faults are steps as well. A seed
chooses among all that can happen next; promises are checked after each step and whenever nothing more can move.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from random import Random
from typing import Any

from haltline.events import Closing
from haltline.redis_scripts import record_key
from haltline.runs import StopReason, new_run_id
from tests.protocol import promises
from tests.protocol.clients import AHEAD, BASE, Clients
from tests.protocol.clock import REDIS_CLOCK, Hands, StepLoop, taken_by
from tests.protocol.faults import Faults
from tests.protocol.gates import LOOK_FOR_RECEIPT, Gates
from tests.protocol.parts import WHO, Agents, Press, Replica, Request, Step, Store
from tests.protocol.scenarios import Chat, Scenario
from tests.protocol.wire import Link, Wire

MOST_STEPS = 3000
_BRIEF = ("push: a stop is lost", "push: a receipt is lost", "BEGIN is lost")
_OUTSIDE = ("client", "agent", "fault")


@dataclass(frozen=True)
class Variant:
    """How the product is run: without pushes, without looks, or broken on purpose."""

    name: str = ""
    push: bool = True
    looks: bool = True
    scripts: dict[str, str] = field(default_factory=dict)
    patches: dict[str, Any] = field(default_factory=dict)
    conditional: bool = True  # a save is refused where the stored version is another


AS_IT_IS = Variant()


@dataclass
class Result:
    """One interleaving. `broken`: promise to what happened; `failed`: one that was not expected to break."""

    scenario: str
    seed: int
    steps: int
    failed: bool
    broken: dict[str, str]
    trace: list[str]
    waits: int  # answers of `?wait` that were judged

    @property
    def order(self) -> tuple[str, ...]:
        """Its steps without what differs from one run to the next, and without the beats of a quiet watch."""
        said = (re.sub(r"^ *\d+ |(?<=the reply of )(\S+).*", r"\1", line) for line in self.trace)
        return tuple(line for line in said if not line.startswith("W") and "pulse" not in line)

    def __str__(self) -> str:
        told = "\n".join(f"  {k}: {v}" for k, v in self.broken.items())
        return f"{self.scenario!r}, seed {self.seed}\n{told}\n" + "\n".join(self.trace)


class Stepper:
    """One interleaving of one scenario. `expected`: promises that may be broken; it goes on then."""

    def __init__(
        self,
        scenario: Scenario,
        seed: int,
        port: int,
        control: Wire,
        variant: Variant = AS_IT_IS,
        expected: Collection[str] = (),
    ) -> None:
        self.scenario, self.seed, self.port, self.control, self.variant = scenario, seed, port, control, variant
        self.chat, self.expected = "chat", expected
        self.random = Random(f"{scenario.name} {seed}")
        self.loop = StepLoop()
        self.hands = Hands(self.loop, lambda s: self.gates.sleep(s), lambda fs: self.gates.wait(fs))
        self.store, self.agents = Store(self, conditional=variant.conditional), Agents(self)
        self.requests = [Request(i, c, new_run_id()) for i, c in enumerate(scenario.chats)]
        self.presses = [Press(j, s) for j, s in enumerate(scenario.stops)]
        self.replicas: list[Replica] = []
        self.order: list[Request] = []  # who took the chat, one after the other
        self.doubted: set[int] = set()  # replicas whose pulse has run out once
        self.trace: list[str] = []
        self.broken_ones: dict[str, str] = {}
        self.failed = self.skipped = False  # skipped: time limits were let pass
        self.taken = 0  # steps
        self.changes = 0  # of anything that a client or a run could notice
        self._mode = self.random.choice(("even", "ranks", "ranks", "late"))
        self._outside = self.random.choice((0.04, 0.1, 0.25))  # how soon agents end and things break
        self._slow = scenario.slow if self.random.random() < 0.5 else None
        self._ranks: dict[str, float] = {}
        self._late = ""

    # ---- a whole interleaving
    def run(self) -> Result:
        """Run it to its end."""
        with taken_by(self.hands, self.variant.scripts, self.variant.patches):
            self.control.call("FLUSHALL")
            self.control.call("SET", REDIS_CLOCK, (BASE + AHEAD) * 1000)
            self.gates, self.clients, self.faults = Gates(self), Clients(self), Faults(self)
            self.hands.ahead = lambda: self.faults.ahead[self.replica_of(WHO.get()).index]
            self.loop.set_exception_handler(self._unhandled)
            try:
                self.loop.run_until_complete(self._run())
            finally:
                self.loop.run_until_complete(self._clear_away())
                self.loop.close()
        waits = sum(1 for p in self.presses if p.checked and p.spec.waits)
        return Result(self.scenario.name, self.seed, self.taken, self.failed, self.broken_ones, self.trace, waits)

    async def _run(self) -> None:
        self.gates.open = True
        for index in (0, 1):
            replica = Replica(self, index, self.scenario.loss_grace)
            self.replicas.append(replica)
            WHO.set(replica.watches)
            await replica.bus.__aenter__()
        await self._settle()
        self.gates.open = False
        for part in (self._anything, self._mend, self._probe):
            await part()
            if self.failed:
                return
        promises.at_the_end(self)

    async def _anything(self) -> None:
        """Steps at random, until nothing is left that must happen."""
        checked = -1
        while not self.failed:
            if any(s.kind != "background" for s in self.gates.steps()):
                await self._take(self._choose(self._steps()))
                continue
            if await self._look_around():
                continue
            if checked != self.changes:
                promises.at_rest(self)
                checked = self.changes
            outside = [s for s in self._steps() if s.kind in _OUTSIDE]
            if not outside or (not any(s.kind == "client" for s in outside) and self.random.random() < 0.2):
                return
            await self._take(self.random.choice(outside))

    async def _rest(self) -> None:
        """Whatever the product still does by itself, in any order."""
        while not self.failed:
            steps = [s for s in self.gates.steps() if s.kind != "background"]
            if steps:
                await self._take(self.random.choice(steps))
            elif not await self._look_around():
                return

    async def _look_around(self) -> bool:
        """Every replica pulses and looks, every waiter looks again. Whether anything changed."""
        before = self.changes
        for turn in range(2):  # a waiter gives a run up at the second look only
            for step in [s for s in self.gates.steps() if s.kind == "background"]:
                if step in self.gates.held and (turn == 0 or step.what == LOOK_FOR_RECEIPT):
                    await self._take(step)
            while (steps := [s for s in self.gates.steps() if s.kind != "background"]) and not self.failed:
                await self._take(self.random.choice(steps))
        return self.changes != before and not self.failed

    async def _mend(self) -> None:
        """Whoever stands still goes on, whoever is cut off is back, time limits pass, agents end."""
        for replica in self.replicas:
            if replica.state == "dead":
                self.faults.expire(replica)
            elif replica.state == "stalled":
                self.faults.wake(replica)
            self.faults.join(replica)
        await self._settle()
        self._observe()
        await self._rest()
        if self.failed:
            return
        promises.at_rest(self)
        await self._pass_time(self._unanswered)
        for run in self.requests:
            if run.working and not self.failed:
                await self._take(self.clients.agent_ends(run))
        await self._rest()
        await self._pass_time(lambda: [*self._unanswered(), *self._unended()])

    async def _probe(self) -> None:
        """At the end one more message: the chat must be free, and nothing old may touch it."""
        for replica in self.replicas:
            if not replica.bus.pulse.runs:
                self.faults.expire(replica)  # nobody sets it again
        through = [r.index for r in self.replicas if r.state != "dead"][-1]
        for _ in range(3):  # a pool may still hold connections that Redis closed long ago
            run = Request(len(self.requests), Chat(through, gap=1000, finishes=True), new_run_id())
            self.requests.append(run)
            await self._take(self.clients.sends(run))
            await self._rest()
            await self._pass_time(self._unanswered)
            if run.answer != "503" or self.failed:
                break
        if run.answer == "409":
            self.broken("CHAT_STUCK", "a message long after everything has ended gets 409")
        elif run.answer == "503":
            self.broken("BUS_STUCK", "the bus is not found again")
        elif run.working:
            await self._take(self.clients.agent_ends(run))
            await self._rest()
        await self._pass_time(self._unended)

    async def _pass_time(self, waiting: Callable[[], list[str]]) -> None:
        """Let time limits fire, one after the other, while someone waits."""
        for _ in range(40):
            if not waiting() or self.failed:
                return
            self.skipped = True
            self.loop.now = max(self.loop.now + 0.5, min(self.loop.next_timer() or 0.0, self.loop.now + 5))
            self.note(f"     - the clock says {self.loop.now - self.loop.begun:.1f} s")
            for step in [s for s in self.gates.held if s.what == LOOK_FOR_RECEIPT and self.gates.can(s)]:
                await self._take(step)
            await asyncio.sleep(0)  # timers that are due become callbacks
            await self._settle()
            self._observe()
            await self._rest()
        self.broken("HANGS", f"{' '.join(waiting())} not done")

    def _unanswered(self) -> list[str]:
        late = [r.name for r in self.requests if r.sent >= 0 and not r.answer and not r.killed]
        return late + [p.name for p in self.presses if p.sent >= 0 and not p.answer and not p.killed]

    def _unended(self) -> list[str]:
        runs = [(r, r.execution) for r in self.requests if r.execution and not r.killed]
        return [r.name for r, e in runs if e and not (e.task.done() and r.closing)]

    async def _clear_away(self) -> None:
        """End all tasks and close all connections."""
        self.gates.shut = self.gates.open = True
        me = asyncio.current_task()
        for _ in range(50):
            left = [t for t in asyncio.all_tasks() if t is not me]
            for task in left:
                task.cancel()
            await self._settle()
            if not left:
                break
        for replica in self.replicas:
            for link in replica.links:
                link.cut(told=False)
            for connection in replica.connections:
                connection._reader = connection._writer = None

    # ---- one step
    def _steps(self) -> list[Step]:
        return [*self.gates.steps(), *self.clients.steps(), *self.faults.steps()]

    async def _take(self, step: Step) -> None:
        if step in self.gates.held:
            self.gates.held.remove(step)
        self.taken += 1
        self.note(f"{self.taken:4d} {step.who} {step.what}")
        self.changes += step.kind == "client"
        step.go()
        await self._settle()
        self._observe()
        if self.taken > MOST_STEPS:
            self.broken("NO_END", "it does not come to rest")
            self.failed = True

    async def _settle(self) -> None:
        """Until no callback is left to run."""
        await asyncio.sleep(0)
        for _ in range(100_000):
            if self.loop.idle:
                return
            await asyncio.sleep(0)
        raise RuntimeError("the loop does not come to rest")

    def _choose(self, steps: list[Step]) -> Step:
        """Evenly; or by ranks that change at times; or with one actor always last."""
        outside = [s for s in steps if s.kind in ("agent", "fault")]
        background = [s for s in steps if s.kind == "background"]
        inside = [s for s in steps if s not in outside and s not in background]
        if self._slow:
            inside = [s for s in inside if (s.who, s.kind) != self._slow] or inside
        brief = any(s.what.endswith(_BRIEF) for s in outside)  # possible for a moment only
        chance = self.random.random()
        if outside and chance < (0.3 if brief else self._outside):
            return self.random.choice(outside)
        if background and chance > 0.93:
            return self.random.choice(background)
        if self._mode == "even":
            return self.random.choice(inside)
        if self._mode == "late":
            self._late = self._late or self.random.choice(inside).who
            return self.random.choice([s for s in inside if s.who != self._late] or inside)
        for step in inside:
            self._ranks.setdefault(step.who, self.random.random())
        best = max(inside, key=lambda s: self._ranks[s.who])
        if self.random.random() < 0.08:
            self._ranks[best.who] = -self.random.random()
        return best

    # ---- what is learned from the product
    def written(self, link: Link, data: bytes) -> None:
        """A command has left a replica."""
        self.gates.written(link, data)

    def ran(self, who: str, name: str, argv: list[str], answer: list[str]) -> None:
        """A script was run in Redis for `who`."""
        self.changes += (name, answer[0]) != ("BEGIN", "busy")
        match name, answer[0]:
            case "BEGIN", "begun":
                run = self.request(who)
                run.run_id, run.begun = argv[0], True
                self.order.append(run)
            case "BEGIN", "busy":
                self.request(who).holder = self.by_id(answer[1])
            case "STOP", found if who[0] == "S":
                press = self.presses[int(who[1:])]
                press.stored = True
                press.found = answer[1] if found == "live" else ""
                press.live = [r for r in self.requests if r.holds and press.means(r) and self.up(r)]
            case "END", kept if ended := self.by_id(argv[0]):
                ended.outcome = json.loads(argv[3])["outcome"]
                ended.ended = ended.ended or kept != "lost"

    def wrote(self, what: str) -> None:
        """The store was written."""
        self.changes += 1
        run = self.request(WHO.get())
        promises.saved(self, run)
        run.saved = run.saved or what == "save"

    def halted(self, run: Request) -> None:
        """A run's token has fired."""
        if self.gates.shut or run.execution is None:
            return
        run.fired = run.execution.run.token.reason or StopReason.USER
        self.changes += 1
        self.note(f"       {run.name} is told to halt: {run.fired}")
        promises.halted(self, run, run.fired)

    def _observe(self) -> None:
        """What clients have learned by now, and whether it is true."""
        for run in filter(self.up, self.requests):
            if run.closing is None and run.events and isinstance(run.events[-1], Closing):
                run.closing, run.closed_at = run.events[-1], self.taken
                self._learned(f"{run.name} reads its closing frame: {run.closing}")
            if run.answer and not run.checked:
                run.checked, run.answered_at = True, self.taken
                self._learned(f"{run.name} is answered {run.answer}")
                promises.answered(self, run)
        for press in self.presses:
            if press.answer and not press.checked and self.replicas[press.spec.through].up:
                press.checked = True
                self._learned(f"{press.name} is answered {press.answer}")
                promises.confirmed(self, press)
        promises.always(self)

    def _learned(self, what: str) -> None:
        self.changes += 1
        self.note(f"       {what}")

    def _unhandled(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        if not self.gates.shut:
            self.broken("UNHANDLED", f"{context.get('message')}: {context.get('exception')!r}")

    # ---- for everyone
    def broken(self, promise: str, how: str) -> None:
        """A promise was broken."""
        assert promise in promises.PROMISES
        if promise not in self.broken_ones:
            self.note(f"   >>> {promise}: {how}")
        self.broken_ones.setdefault(promise, how)
        self.failed = self.failed or promise not in self.expected

    def note(self, line: str) -> None:
        """One line of the trace."""
        self.trace.append(line)

    def request(self, who: str) -> Request:
        """The request called `who`."""
        return self.requests[int(who[1:])]

    def by_id(self, run_id: str) -> Request | None:
        """The request of a run."""
        return next((r for r in self.requests if r.run_id == run_id), None)

    def replica_of(self, who: str) -> Replica:
        """Where the code of `who` runs."""
        number = int(who[1:])
        if who[0] == "R":
            number = self.requests[number].spec.through
        elif who[0] == "S":
            number = self.presses[number].spec.through
        return self.replicas[number]

    @property
    def holder(self) -> Request | None:
        """Who holds the chat, as Redis has it."""
        raw = self.control.call("GET", record_key(self.chat))
        return self.by_id(json.loads(raw).get("run", "")) if raw else None

    def held_still(self, run: Request) -> bool:
        """Whether its agent may not go on for now, since another replica may have the chat."""
        before = WHO.set(run.name)
        try:
            return run.execution is not None and not self.replicas[run.spec.through].bus.certain(run.execution.run)
        finally:
            WHO.reset(before)

    def up(self, run: Request) -> bool:
        """Whether its replica works."""
        return self.replicas[run.spec.through].up

    def reachable(self, run: Request) -> bool:
        """Whether its replica works and sees Redis."""
        return self.replicas[run.spec.through].reachable
