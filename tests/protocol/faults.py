"""What may break at any time: processes, connections, messages, Redis' memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING

from haltline.redis_scripts import pulse_key
from tests.protocol.clock import REDIS_CLOCK
from tests.protocol.parts import Replica, Step

if TYPE_CHECKING:
    from tests.protocol.stepper import Stepper

PULSE, GRACE = 6.1, 31.0  # seconds: more than a pulse lives; more than the grace of a bus that is away


class Faults:
    """The faults that a scenario allows, and what mends them."""

    def __init__(self, stepper: Stepper) -> None:
        self._at = stepper
        self._left = dict(stepper.scenario.faults)
        self._copy: dict[bytes, bytes] | None = None  # what Redis' copy holds, where it lags behind
        self._waited = False
        self.ahead = [0.0, 0.0]  # seconds by which each replica's clock of pulses is ahead of the loop's
        self.server = 0  # which Redis answers
        self._long = stepper.random.random() < 0.6  # whoever stands still or is cut off loses its pulse first

    def steps(self) -> Iterator[Step]:
        """What may break now, or go on, or run out."""
        for replica in self._at.replicas:
            yield from self._of(replica)
        for reply in self._at.gates.held:
            for script, said in (("begin", "BEGIN: begun"), ("stop", "STOP: live")):
                if reply.kind == "reply" and said in reply.what and (script == "begin" or self._another(reply)):
                    lost = f"the reply of {script.upper()} is lost"
                    yield from self._may(f"{script}_reply_lost", lost, partial(self._cut_link, reply))
        yield from self._may("restart", "Redis restarts with its data", self._restart)
        yield from self._may("empty", "Redis restarts empty", self._empty)
        if self._copy is None:
            yield from self._may("lag", "Redis' copy falls behind", self._lag)
        else:
            yield from self._may("failover", "Redis' copy takes over", self._failover)
            yield from self._may("silent", "Redis' copy takes over, unseen", self._restore)

    def _of(self, replica: Replica) -> Iterator[Step]:
        n = replica.index
        if replica.up:
            yield from self._may(f"kill{n}", f"replica {n} is killed", lambda: self._kill(replica))
            yield from self._may(f"stall{n}", f"replica {n} stalls", lambda: setattr(replica, "state", "stalled"))
            yield from self._may(f"cut{n}", f"replica {n} is cut off", lambda: self._cut_off(replica))
            if replica.listeners:
                yield from self._may(f"drop{n}", f"subscription {n} breaks", lambda: self._drop(replica))
            if replica.pushes and "push: a" in replica.pushes[0].said:
                yield from self._may("push_lost", f"{replica.pushes[0].said} is lost", replica.pushes.popleft)
        if replica.reachable:
            return
        vouched = bool(self._at.control.call("EXISTS", pulse_key(replica.bus.replica_id)))
        if vouched:
            yield self._step(f"the pulse of replica {n} expires", lambda: self.expire(replica))
        elif not replica.net and not self._waited:
            yield self._step("half a minute passes", lambda: self._grace(replica))
        if vouched and self._long:
            return
        if replica.state == "stalled":
            yield self._step(f"replica {n} wakes", lambda: self.wake(replica))
        if not replica.net:
            yield self._step(f"replica {n} reaches Redis again", lambda: self.join(replica))

    def _may(self, what: str, said: str, do: Callable[[], object]) -> Iterator[Step]:
        if self._left.get(what):

            def go() -> None:
                self._left[what] -= 1
                do()

            yield self._step(said, go)

    def _step(self, said: str, do: Callable[[], object]) -> Step:
        def go() -> None:
            self._at.changes += 1
            do()

        return Step("!", "fault", said, go)

    # ---- one replica
    def _kill(self, replica: Replica) -> None:
        replica.state = "dead"
        for link in replica.links:
            self._at.gates.cut(link, told=False)
        replica.pushes.clear()
        for run in self._at.requests:
            run.killed = run.killed or (run.spec.through == replica.index and run.sent >= 0)
        for press in self._at.presses:
            press.killed = press.killed or (press.spec.through == replica.index and press.sent >= 0)

    def wake(self, replica: Replica) -> None:
        """A process that stood still goes on."""
        replica.state = "up"
        for step in self._at.gates.held:
            if step.replica is replica:
                step.unsent = False

    def join(self, replica: Replica) -> None:
        """A replica that was cut off finds Redis again."""
        replica.net = True

    def expire(self, replica: Replica) -> None:
        """Its pulse was not set again in time."""
        self.ahead[replica.index] += PULSE
        self._at.doubted.add(replica.index)
        self._at.control.call("DEL", pulse_key(replica.bus.replica_id))

    def _grace(self, replica: Replica) -> None:
        self._waited = True
        self.ahead[replica.index] += GRACE

    def _drop(self, replica: Replica) -> None:
        for link in replica.listeners:
            self._at.gates.cut(link)
        replica.pushes.clear()

    def _cut_off(self, replica: Replica) -> None:
        replica.net = False
        self._disconnect(replica)

    def _disconnect(self, replica: Replica) -> None:
        for link in replica.links:
            self._at.gates.cut(link)
        replica.pushes.clear()

    def _another(self, reply: Step) -> bool:
        """Whether a message that was sent after this stop has a run on the same replica by now."""
        if reply.who[0] != "S":
            return False
        press = self._at.presses[int(reply.who[1:])]
        runs = [r for r in self._at.requests if r.spec.through == press.spec.through and r.sent > press.sent]
        return any(r.working or (r.execution and not r.closing) for r in runs)

    def _cut_link(self, reply: Step) -> None:
        if reply.link:
            self._at.gates.cut(reply.link)

    # ---- Redis
    def _restart(self) -> None:
        for replica in self._at.replicas:
            self._disconnect(replica)
            self.expire(replica)
        self._another_server()

    def _another_server(self) -> None:
        self.server += 1
        self._at.control.call("SCRIPT", "FLUSH")

    def _empty(self) -> None:
        for replica in self._at.replicas:
            self._disconnect(replica)
            self._at.doubted.add(replica.index)
        self._forget()
        now = self._at.control.call("GET", REDIS_CLOCK)
        self._at.control.call("FLUSHALL")
        self._at.control.call("SET", REDIS_CLOCK, now)
        self._another_server()

    def _lag(self) -> None:
        self._copy = {k: self._at.control.call("GET", k) for k in self._keys()}

    def _failover(self) -> None:
        for replica in self._at.replicas:
            self._disconnect(replica)
        self._restore()
        self._another_server()

    def _restore(self) -> None:
        self._forget()
        self._at.doubted.update(r.index for r in self._at.replicas)
        for key in self._keys():
            self._at.control.call("DEL", key)
        for key, value in (self._copy or {}).items():
            self._at.control.call("SET", key, value, "EX", 3600)
        self._copy = None

    def _forget(self) -> None:
        """What nobody was told of has not happened: stops that were not known to be stored, runs that had not begun."""
        for run in self._at.requests:
            run.begun = run.begun and bool(run.answer)
        for press in self._at.presses:
            known = any(chat == self._at.chat for chat, _, _ in self._at.replicas[press.spec.through].bus._stored)
            press.forgotten = press.stored and not known and not press.spec.by_hand

    def _keys(self) -> list[bytes]:
        found: list[bytes] = [k for p in (f"*{self._at.chat}*", "replica:*") for k in self._at.control.call("KEYS", p)]
        return [k for k in found if b"{chats}" not in k]
