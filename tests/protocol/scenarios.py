"""What clients do and what breaks, in small: one chat, two replicas, a few requests, at most a few faults.

`after` tells what must have happened before a client sends. `rN` is the N-th request of `chats`, `sN` the N-th of
`stops`:
- `rN.sent`, `sN.sent`: it has left its client
- `rN.begun`: the run holds the chat; `rN.live`: its agent works
- `rN.closed`: its client has read the closing frame
- `sN.answered`: its answer has been read

Between two clients' sendings lies a gap: what a program needs, or a person.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import product

PROGRAM, PERSON = 25, 250  # ms


@dataclass(frozen=True)
class Chat:
    """A request that takes the chat: a message, or a deletion.

    `finishes`: its agent may come to its own end; the others talk until they are stopped. `replaces`: it is sent with
    `?if_running=stop`.
    """

    through: int = 0
    after: tuple[str, ...] = ()
    gap: int = PROGRAM
    finishes: bool = False
    replaces: bool = False
    deletes: bool = False


@dataclass(frozen=True)
class Stop:
    """A stop. `names`: the request whose run it names. `by_hand`: a person sets the key, with `value` where given.

    `clock_off`: the ms by which its stamp differs from the front door's clock; it comes without a door's stamp then.
    """

    through: int = 1
    after: tuple[str, ...] = ()
    gap: int = PROGRAM
    waits: bool = False
    names: int | None = None
    by_hand: bool = False
    value: str = ""
    clock_off: int = 0


@dataclass(frozen=True)
class Scenario:
    """`faults`: how often each may happen, at any time. `loss_grace`: seconds, None lets runs go on without a bus.

    `slow`: what comes last of all in every other interleaving, who and what kind of step.
    """

    name: str
    chats: tuple[Chat, ...]
    stops: tuple[Stop, ...] = ()
    faults: Mapping[str, int] = field(default_factory=dict)
    loss_grace: float | None = 30.0
    slow: tuple[str, str] | None = None

    @property
    def by_hand(self) -> bool:
        """Whether a person sets a key, which only a look can find."""
        return any(s.by_hand for s in self.stops)

    @property
    def bus_breaks(self) -> bool:
        """Whether a request may find no way to Redis."""
        return any(not f.startswith(("kill", "stall", "push", "lag")) for f in self.faults)


SENT, ANSWERED = ("r0.sent",), ("s0.answered",)

# ---- nothing breaks, one clock
CALM = (
    Scenario("a run that may end, stopped", (Chat(finishes=True),), (Stop(after=SENT, waits=True),)),
    Scenario("a run without end, stopped", (Chat(),), (Stop(after=SENT, waits=True),)),
    Scenario(
        "one run, stopped twice at once",
        (Chat(finishes=True),),
        (Stop(after=SENT, waits=True), Stop(0, after=SENT, waits=True)),
    ),
    Scenario("a message right behind a stop", (Chat(finishes=True), Chat(1, after=("s0.sent",))), (Stop(after=SENT),)),
    Scenario(
        "a message when the stop was answered", (Chat(finishes=True), Chat(1, after=ANSWERED)), (Stop(after=SENT),)
    ),
    Scenario(
        "stop, message, stop, each answered first",
        (Chat(), Chat(1, after=ANSWERED)),
        (Stop(after=SENT, waits=True), Stop(0, after=("r1.sent",), waits=True)),
    ),
    Scenario("a stop of a quiet chat, a message, a stop", (Chat(after=("s0.sent",)),), (Stop(), Stop(0, after=SENT))),
    Scenario(
        "two messages at once, then a stop",
        (Chat(), Chat(1, after=SENT)),
        (Stop(0, after=("r1.sent",), waits=True),),
    ),
    Scenario(
        "two messages and a stop for each",
        (Chat(finishes=True), Chat(1, after=SENT)),
        (Stop(0, after=SENT), Stop(1, after=("r1.sent",))),
    ),
    Scenario(
        "a message on the closing frame",
        (Chat(finishes=True), Chat(1, after=("r0.closed",))),
        (Stop(after=SENT, waits=True),),
    ),
    Scenario("a message that replaces the run", (Chat(finishes=True), Chat(1, replaces=True, after=SENT))),
    Scenario(
        "a message that replaces the run, then a stop",
        (Chat(), Chat(1, replaces=True, after=SENT)),
        (Stop(0, after=("r1.sent",), waits=True),),
    ),
    Scenario("a deletion while a run goes on", (Chat(), Chat(1, deletes=True, after=SENT))),
    Scenario(
        "a deletion, then a message",
        (Chat(), Chat(1, deletes=True, after=SENT), Chat(0, after=("r1.sent",), finishes=True)),
    ),
    Scenario(
        "a stop set by hand, then a message",
        (Chat(finishes=True), Chat(1, after=("r0.closed", "s0.answered"))),
        (Stop(by_hand=True, after=("r0.live",)),),
    ),
    Scenario(
        "a stop set by hand and one sent",
        (Chat(), Chat(1, after=("r0.closed",))),
        (Stop(by_hand=True, after=("r0.live",)), Stop(after=("r0.live",), waits=True)),
    ),
    Scenario(
        "a stop that names its run", (Chat(), Chat(1, after=("s0.sent",))), (Stop(names=0, after=SENT, waits=True),)
    ),
    Scenario(
        "a stop that names the second run",
        (Chat(finishes=True), Chat(1, after=SENT)),
        (Stop(0, names=1, after=("r1.sent",), waits=True),),
    ),
)

# ---- connections and replicas break
_ONE = (Chat(),), (Stop(after=SENT, waits=True),)
_PAIR = (Chat(finishes=True), Chat(1, after=("r0.begun",), finishes=True))
BROKEN = (
    Scenario("the subscription breaks twice", *_ONE, {"drop0": 2}),
    Scenario(
        "both subscriptions break, two runs",
        (Chat(finishes=True), Chat(1, after=("s0.sent",))),
        (Stop(after=SENT, waits=True),),
        {"drop0": 1, "drop1": 1},
    ),
    Scenario("the push is lost", *_ONE, {"push_lost": 1}),
    Scenario("the stopper's subscription breaks", *_ONE, {"drop1": 1}),
    Scenario("the reply of BEGIN is lost", (Chat(),), (Stop(after=SENT),), {"begin_reply_lost": 1}),
    Scenario(
        "the owner is killed", (Chat(), Chat(1, after=("r0.live",))), (Stop(after=SENT, waits=True),), {"kill0": 1}
    ),
    Scenario("the stopper is killed", *_ONE, {"kill1": 1}),
    Scenario("the owner stalls", _PAIR, (), {"stall0": 1}),
    Scenario(
        "the owner stalls, stop",
        (Chat(), Chat(1, after=("r0.begun",), gap=PERSON)),
        (Stop(after=("r1.sent",), waits=True),),
        {"stall0": 1},
    ),
    Scenario(
        "the owner stalls, the chat is deleted",
        (Chat(finishes=True), Chat(1, deletes=True, after=("r0.begun",))),
        (),
        {"stall0": 1},
    ),
    Scenario(
        "a deletion stalls, then a message", (Chat(deletes=True), Chat(1, after=SENT, finishes=True)), (), {"stall0": 1}
    ),
    Scenario("both owners stall", _PAIR, (), {"stall0": 1, "stall1": 1}),
    Scenario("the owner is cut off", _PAIR, (), {"cut0": 1}),
    Scenario("the owner is cut off, stop", *_ONE, {"cut0": 1}),
    Scenario(
        "Redis restarts with its data",
        (Chat(), Chat(1, after=("r0.begun",))),
        (Stop(after=SENT, waits=True),),
        {"restart": 1},
    ),
)

# ---- Redis loses data
_ONE_BEGUN = (Chat(),), (Stop(after=("r0.begun",), waits=True),)
LOSSY = (
    Scenario("Redis comes back empty", *_ONE_BEGUN, {"empty": 1}),
    Scenario("Redis comes back empty, two messages", _PAIR, (), {"empty": 1}),
    Scenario(
        "Redis comes back empty, then a stop",
        (Chat(), Chat(1, after=("r0.begun",))),
        (Stop(after=("r1.sent",), gap=PERSON, waits=True),),
        {"empty": 1},
    ),
    Scenario("an older Redis takes over", *_ONE_BEGUN, {"lag": 1, "failover": 1}),
    Scenario("an older Redis takes over, two messages", _PAIR, (), {"lag": 1, "failover": 1}),
    Scenario(
        "an older Redis takes over, stop, then a message",
        (Chat(), Chat(1, after=("r0.closed",), gap=PERSON)),
        (Stop(after=SENT, gap=PERSON),),
        {"lag": 1, "failover": 1},
    ),
    Scenario(
        "an older Redis takes over, the live run is stopped",
        (Chat(),),
        (Stop(after=("r0.live",), waits=True),),
        {"lag": 1, "failover": 1},
    ),
    Scenario("Redis comes back empty, the stopper is killed", (Chat(),), (Stop(after=SENT),), {"empty": 1, "kill1": 1}),
    Scenario("Redis comes back empty, the owner stalls", _PAIR, (), {"empty": 1, "stall0": 1}),
    Scenario("an older Redis behind a proxy", *_ONE_BEGUN, {"lag": 1, "silent": 1}),
    Scenario("an older Redis behind a proxy, two messages", _PAIR, (), {"lag": 1, "silent": 1}),
    Scenario("the owner is cut off and may go on", _PAIR, (), {"cut0": 1}, loss_grace=None),
)


# ---- nothing breaks, but the clocks differ
def _clocks(sender: str, gap: int, off: int) -> tuple[Scenario, ...]:
    said = f"clock {off:+d} ms, a {sender}"
    return (
        Scenario(f"{said}: message, stop", (Chat(),), (Stop(after=SENT, gap=gap, clock_off=off, waits=True),)),
        Scenario(
            f"{said}: message, answer seen, stop",
            (Chat(),),
            (Stop(after=("r0.live",), gap=gap, clock_off=off, waits=True),),
        ),
        Scenario(
            f"{said}: stop answered, message",
            (Chat(), Chat(1, gap=gap, after=ANSWERED)),
            (Stop(after=SENT, gap=PERSON, clock_off=off),),
        ),
        Scenario(
            f"{said}: a stop that names its run",
            (Chat(), Chat(1, gap=gap, after=ANSWERED)),
            (Stop(after=SENT, gap=gap, clock_off=off, names=0, waits=True),),
        ),
    )


CLOCKS = (
    *(
        s
        for (who, gap), off in product((("program", PROGRAM), ("person", PERSON)), (-50, 50))
        for s in _clocks(who, gap, off)
    ),
    Scenario("clock -50 ms, a stop set by hand", (Chat(),), (Stop(by_hand=True, after=("r0.live",), clock_off=-50),)),
    Scenario(
        "clock +50 ms, a stop set by hand, then a person's message",
        (Chat(), Chat(1, after=("r0.closed",), gap=PERSON)),
        (Stop(by_hand=True, after=("r0.live",), gap=PERSON, clock_off=50),),
    ),
)

# ---- a stop that is older than the run, and then another
STALE = (
    Scenario(
        "a stale stop, a message, one set by hand",
        (Chat(after=ANSWERED),),
        (Stop(), Stop(by_hand=True, after=SENT, gap=PERSON)),
    ),
    Scenario(
        "a stale stop, a message, a stop whose push is lost",
        (Chat(after=ANSWERED),),
        (Stop(), Stop(0, after=SENT)),
        {"drop0": 1},
    ),
)

ALL = CALM + BROKEN + LOSSY + CLOCKS + STALE

# Not of the 65: what a person may also write into the key, a stop that learns late that it was not answered.
BESIDES = (
    Scenario(
        "the reply of STOP is lost, a message meanwhile",
        (Chat(), Chat(1, after=("s0.sent",))),
        (Stop(1, after=("r0.live",)),),
        {"stop_reply_lost": 1},
        slow=("S0", "reply"),
    ),
    Scenario(
        "a stop set by hand to a word, a message meanwhile",
        (Chat(), Chat(1, after=("s0.sent",))),
        (Stop(by_hand=True, after=("r0.live",), value="now please"),),
    ),
)
FAULT_FREE = tuple(s for s in ALL + BESIDES if not s.faults)
