"""What a state of the model is, and how one is made of another."""

from __future__ import annotations

from typing import Any, NamedTuple

from tests.protocol_model.bus import Bus, Receipt, Rules, Scripts, put
from tests.protocol_model.scenarios import Scenario

HOLDS = ("open", "run")  # the run has begun, how it ends is open
ASKS = ("ask", "steal", "told", "busy", "name", "wait")  # it is on its way to the chat


class Run(NamedTuple):
    pc: str = "new"
    sent: int = -1
    a: int = 0  # arrival
    knows_end: bool = False  # its client had seen an end before it sent
    base: int = -1  # the version of the file that it read or wrote last
    claim: int = -1
    began: int = -1  # the claim it had first
    named: int = -1  # the run that it has stopped by name
    seen: tuple[int, int, bool] = (-1, -1, False)  # what BEGIN said: holder, its claim, closing
    told: str = ""  # what BEGIN found, while its reply is under way
    out: str = ""
    cause: str = ""
    frame: str = ""
    tail: tuple[str, ...] = ()  # what is left to do at the end
    conflict: str = ""  # what a refused write has still to do before it tries again
    wrote: bool = False
    saved: bool = True  # what the receipt says
    over: bool = False  # nothing vouches for it any more
    said: bool = False  # END was said and heard
    held: str = ""  # no pulse vouched for it: it has to be claimed again, and until then holds "still" or "goes on"


class Call(NamedTuple):
    """A stop call or a read."""

    pc: str = "new"
    sent: int = -1
    v: int = 0
    stored: int = -1  # the stamp by which the bus knows the stop
    saw: int = -1  # the run it waits for
    gone: bool = False  # once it was not to be seen
    got: Receipt | None = None
    answer: str = ""
    ends: tuple[int, ...] = ()  # runs whose closing frame its client had seen


class Replica(NamedTuple):
    up: str = "up"
    net: bool = True
    hears: bool = True
    inbox: tuple[tuple[Any, ...], ...] = ()
    owes: tuple[str, ...] = ()  # stops that it has to put back


class State(NamedTuple):
    at: int
    runs: tuple[Run, ...]
    calls: tuple[Call, ...]
    reads: tuple[Call, ...]
    replicas: tuple[Replica, ...]
    bus: Bus
    behind: Bus | None  # what a lagging copy of Redis knows
    young: bool  # Redis came back and may lack what the replicas have not put back yet
    version: int
    faults: tuple[tuple[str, int], ...]


class Step(NamedTuple):
    label: str
    state: State
    broken: tuple[str, ...] = ()  # promises
    free: bool = False  # a client or a fault may do it, or not


class States:
    """One scenario under some rules: its first state, and the small changes that steps are made of."""

    def __init__(self, scenario: Scenario, rules: Rules, scripts: type[Scripts] = Scripts) -> None:
        self.sc, self.rules, self.m = scenario, rules, scenario.messages
        self.ids = tuple(i if m.same is None else m.same for i, m in enumerate(self.m))
        self.on_bus = scripts(rules, self.ids, frozenset(i for i, m in enumerate(self.m) if m.delete))

    def start(self) -> State:
        n, faults = len(self.m), tuple(sorted(self.sc.faults.items()))
        calls, reads = (Call(),) * len(self.sc.presses), (Call(),) * len(self.sc.reads)
        bus = Bus(named=("",) * n)
        return State(
            0, (Run(),) * n, calls, reads, (Replica(), Replica()), bus, None, False, int(self.sc.exists), faults
        )

    def run(self, s: State, i: int, **new: Any) -> State:
        return s._replace(runs=put(s.runs, i, s.runs[i]._replace(**new)))

    def call(self, s: State, j: int, **new: Any) -> State:
        return s._replace(calls=put(s.calls, j, s.calls[j]._replace(**new)))

    def read(self, s: State, j: int, **new: Any) -> State:
        return s._replace(reads=put(s.reads, j, s.reads[j]._replace(**new)))

    def replica(self, s: State, k: int, **new: Any) -> State:
        return s._replace(replicas=put(s.replicas, k, s.replicas[k]._replace(**new)))

    def on(self, s: State, k: int) -> bool:
        return s.replicas[k].up == "up" and s.replicas[k].net

    def vouched(self, s: State, k: int) -> frozenset[int]:
        """What the pulse of this replica names."""
        idle = ("new", "sent", "end", "refused", "dead")
        return frozenset(i for i in self.own(k) if s.runs[i].pc not in idle and not s.runs[i].over)

    def own(self, k: int) -> frozenset[int]:
        return frozenset(i for i, m in enumerate(self.m) if m.replica == k)

    def may(self, s: State, fault: str) -> bool:
        return (fault, 0) not in s.faults and fault in self.sc.faults

    def spend(self, s: State, fault: str) -> State:
        return s._replace(faults=tuple((name, left - (name == fault)) for name, left in s.faults))

    def claims(self, s: State) -> int:
        """A new claim: greater than any that is remembered."""
        other = s.behind.claim if s.behind else 0
        return 1 + max(s.bus.claim, other, *(max(r.claim, r.began, r.seen[1]) for r in s.runs))

    def versions(self, s: State) -> int:
        return 1 + max(s.version, *(r.base for r in s.runs))

    def deleted(self, s: State, i: int) -> bool:
        """The chat was deleted by a request that was sent after this one."""
        return any(d.out == "deleted" and d.sent > s.runs[i].sent for d in s.runs)

    def seen(self, s: State, after: tuple[str, ...]) -> bool:
        """Whether a client has seen these: `m0.sent`, `m0.live`, `m0.frame`, `p1.sent`, `p1.answer`."""
        for who, event in (what.split(".") for what in after):
            x: Any = (s.runs if who[0] == "m" else s.calls)[int(who[1:])]
            known = {"sent": x.sent >= 0, "live": x.pc == "run"}.get(event, False)
            if not (known or getattr(x, "answer" if who[0] == "p" else "frame")):
                return False
        return True
