"""What is checked: what clients may do, how often each fault may happen, which promises a fault is known to break.

`HOLD` is checked with the whole protocol, `BREAK` with one rule of it left out. `NOT_BUILT` names the rules that the
product does not keep yet; each has its line in `BREAK`, which says what goes wrong without it.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Message:
    """A chat call or a deletion. `after` lists what its client has seen: `m0.frame`, `p1.answer`."""

    replica: int = 0
    after: tuple[str, ...] = ()
    gap: int = 1
    skew: int | None = None  # None: a front door's clock
    ends: bool = False  # the agent may end by itself
    stop_first: bool = False
    delete: bool = False
    same: int | None = None  # it carries the run id of that message


@dataclass(frozen=True)
class Press:
    """A stop call; `by_hand`: a person SETs the key; `names`: the message whose run it names."""

    replica: int = 1
    after: tuple[str, ...] = ()
    gap: int = 1
    skew: int | None = None
    wait: bool = False
    by_hand: bool = False
    names: int | None = None


@dataclass(frozen=True)
class Read:
    """A read of the transcript."""

    replica: int = 1
    after: tuple[str, ...] = ()


@dataclass(frozen=True)
class Scenario:
    """What clients may do. `accepted`: promises that these faults may break, as ARCHITECTURE.md says."""

    messages: tuple[Message, ...]
    presses: tuple[Press, ...] = ()
    reads: tuple[Read, ...] = ()
    faults: dict[str, int] = field(default_factory=dict)
    exists: bool = False  # the chat has been written before
    goes_on: bool = False  # SIGNAL_LOSS_POLICY=continue
    accepted: tuple[str, ...] = ()


M, P, R, S = Message, Press, Read, Scenario
SENT, LIVE, FRAME = ("m0.sent",), ("m0.live",), ("m0.frame",)
TWO_LIVE = ("ONE_LIVE_RUN",)  # until one of them has looked
NO_END = ("409_AFTER_AN_END",)  # it could not be said, or Redis lost it
NO_RECEIPT = ("A_RECEIPT_IS_MISSED",)  # Redis lost it: `unconfirmed`
FALLS_BACK = {"lag": 1, "failover": 1}

HOLD: dict[str, Scenario] = {
    # nothing fails
    "a stop": S((M(ends=True),), (P(after=SENT, wait=True),)),
    "two stops": S((M(ends=True),), (P(after=SENT, wait=True), P(0, SENT, wait=True))),
    "a stop, then a message": S((M(ends=True), M(1, ("p0.sent",))), (P(after=SENT),)),
    "a stop is answered, then a message": S((M(ends=True), M(1, ("p0.answer",))), (P(after=SENT),)),
    "a stop is answered, a message, a stop": S(
        (M(), M(1, ("p0.answer",))), (P(after=SENT, wait=True), P(0, ("m1.sent",), wait=True))
    ),
    "a stop that finds nobody, a message, a stop": S((M(after=("p0.sent",)),), (P(), P(0, SENT))),
    "two messages, then a stop": S((M(), M(1, SENT)), (P(0, ("m1.sent",), wait=True),)),
    "a message after the closing frame": S((M(ends=True), M(1, FRAME)), (P(after=SENT, wait=True),)),
    "reads after the closing frame": S((M(ends=True),), (P(after=SENT),), (R(1, FRAME), R(0, FRAME))),
    "a message that stops the run first": S((M(ends=True), M(1, SENT, stop_first=True))),
    "a message that stops the run first, a stop": S(
        (M(), M(1, SENT, stop_first=True)), (P(0, ("m1.sent",), wait=True),)
    ),
    "a deletion": S((M(ends=True), M(1, SENT, delete=True)), exists=True),
    "a deletion, then a stop": S((M(), M(1, SENT, delete=True)), (P(0, ("m1.sent",), wait=True),)),
    "a deletion, then a message": S((M(delete=True), M(1, SENT, ends=True)), exists=True),
    "a stop that names its run, then a deletion": S(
        (M(), M(1, ("p0.answer",), delete=True)), (P(after=SENT, names=0),)
    ),
    "a stop that names its run, then a message": S((M(), M(1, ("p0.sent",))), (P(after=SENT, names=0, wait=True),)),
    "a stop that names the second run": S((M(ends=True), M(1, SENT)), (P(0, ("m1.sent",), names=1, wait=True),)),
    "a key set by hand": S((M(), M(1, FRAME)), (P(after=LIVE, by_hand=True),), (R(1, FRAME),)),
    "a key set by hand and a stop": S((M(), M(1, FRAME)), (P(after=LIVE, by_hand=True), P(after=LIVE, wait=True))),
    "one request sent twice": S((M(ends=True), M(1, SENT, same=0)), (P(after=SENT, names=0, wait=True),)),
    # other clocks than the front door's, 50 ms apart
    "a slow clock stops what is seen": S((M(),), (P(after=LIVE, skew=-2, wait=True),)),
    "a fast clock, then a person's message": S((M(), M(1, ("p0.answer",), gap=10)), (P(after=SENT, gap=10, skew=2),)),
    # one thing fails
    "the subscription is lost": S((M(),), (P(after=SENT, wait=True),), faults={"drop0": 2}),
    "a push is lost, then a message": S((M(), M(1, ("p0.answer",))), (P(after=SENT),), (R(0, FRAME),), {"push": 1}),
    "a receipt is lost": S((M(),), (P(after=SENT, wait=True),), faults={"receipt": 1}),
    "the reply of BEGIN is lost": S((M(), M(1, SENT)), (P(after=SENT),), faults={"reply": 1}),
    "the closing write fails": S((M(ends=True),), (P(after=SENT, wait=True),), (R(1, FRAME),), {"disk": 1}),
    "the owner is killed": S((M(), M(1, LIVE)), (P(after=SENT, wait=True),), faults={"kill0": 1}),
    "the stopper is killed": S((M(),), (P(after=SENT, wait=True),), faults={"kill1": 1}),
    "the deleter is killed": S((M(ends=True), M(1, SENT, delete=True)), faults={"kill1": 1}, exists=True),
    "the owner stalls": S((M(ends=True), M(1, SENT, ends=True)), faults={"stall0": 1}),
    "the owner stalls twice": S((M(ends=True), M(1, SENT, ends=True)), faults={"stall0": 2}),
    "the owner stalls, a message, a stop": S(
        (M(), M(1, LIVE, gap=10)), (P(after=("m1.sent",), wait=True),), faults={"stall0": 1}
    ),
    "the owner stalls, BEGIN is answered late": S(
        (M(ends=True), M(1, SENT, ends=True)), faults={"stall0": 1, "late": 1}
    ),
    "the owner stalls, the reply of CLAIM is lost": S(
        (M(), M(1, FRAME)), (P(after=LIVE, by_hand=True),), faults={"stall0": 1, "reply": 1}
    ),
    "the owner stalls, a deletion": S((M(ends=True), M(1, SENT, delete=True)), faults={"stall0": 1}),
    "the deleter stalls": S((M(delete=True), M(1, SENT, ends=True)), faults={"stall0": 1}),
    "the owner is cut off": S((M(ends=True), M(1, LIVE, ends=True)), faults={"cut0": 1}, accepted=NO_END),
    "the owner is cut off, a stop": S((M(),), (P(after=SENT, wait=True),), faults={"cut0": 1}),
    "the owner is cut off, a stop there": S((M(), M(1, FRAME)), (P(0, LIVE),), faults={"cut0": 1}, accepted=NO_END),
    "the owner is cut off and goes on": S(
        (M(ends=True), M(1, LIVE, ends=True)), faults={"cut0": 1}, goes_on=True, accepted=(*TWO_LIVE, *NO_END)
    ),
    "the owner stalls and would go on": S((M(ends=True), M(1, LIVE, ends=True)), faults={"stall0": 1}, goes_on=True),
    "a stop, a message, the owner is cut off": S((M(after=("p0.sent",)),), (P(0),), faults={"cut0": 1}),
    "the mark cannot be set": S(
        (M(), M(1, FRAME)),
        (P(after=LIVE, by_hand=True),),
        (R(1, FRAME),),
        {"mark": 1},
        accepted=("409_AFTER_AN_END", "A_READ_LACKS_THE_END"),
    ),
    # Redis was away, and comes back with its data
    "Redis restarts": S((M(), M(1, LIVE)), (P(after=SENT, wait=True),), faults={"restart": 1}),
    # without them
    "Redis forgets, a stop": S((M(),), (P(after=LIVE, wait=True),), faults={"empty": 1}, accepted=NO_RECEIPT),
    "Redis forgets, a stop that names its run": S(
        (M(),), (P(after=LIVE, names=0, wait=True),), faults={"empty": 1}, accepted=NO_RECEIPT
    ),
    "Redis forgets, a message": S((M(), M(1, FRAME)), (P(after=LIVE),), faults={"empty": 1}),
    "Redis forgets, two messages": S((M(ends=True), M(1, LIVE, ends=True)), faults={"empty": 1}),
    "Redis forgets, two messages, a stop": S(
        (M(), M(1, LIVE)), (P(after=("m1.sent",), gap=10, wait=True),), faults={"empty": 1}, accepted=NO_RECEIPT
    ),
    "Redis forgets, a message that stops the run first": S(
        (M(ends=True), M(1, SENT, stop_first=True)), faults={"empty": 1}
    ),
    "Redis forgets, a deletion": S((M(ends=True), M(1, SENT, delete=True)), faults={"empty": 1}, exists=True),
    "Redis forgets, a deletion, then a stop": S(
        (M(delete=True),), (P(after=SENT, wait=True),), faults={"empty": 1}, exists=True
    ),
    "Redis forgets, a read": S((M(ends=True),), (P(after=SENT),), (R(1, FRAME),), {"empty": 1}),
    "Redis forgets, the stopper is killed": S(
        (M(),), (P(after=SENT),), faults={"empty": 1, "kill1": 1}, accepted=("A_STOP_IS_LOST",)
    ),
    "Redis forgets, the owner stalls": S(
        (M(ends=True), M(1, LIVE, ends=True)), faults={"empty": 1, "stall0": 1}, accepted=TWO_LIVE
    ),
    "Redis forgets, a slow clock": S(
        (M(),), (P(after=LIVE, skew=-2),), faults={"empty": 1}, accepted=("A_STOP_IS_LOST",)
    ),
    "Redis forgets, a key set by hand": S(
        (M(),), (P(after=LIVE, by_hand=True),), faults={"empty": 1}, accepted=("A_STOP_IS_LOST",)
    ),
    # with those that a copy had
    "Redis falls back, a stop": S((M(),), (P(after=SENT, wait=True),), faults=FALLS_BACK, accepted=NO_RECEIPT),
    "Redis falls back, two messages": S((M(ends=True), M(1, LIVE, ends=True)), faults=FALLS_BACK),
    "Redis falls back, a stop, then a message": S((M(), M(1, FRAME, gap=10)), (P(after=SENT),), faults=FALLS_BACK),
    "Redis falls back unseen, a stop": S(
        (M(),), (P(after=LIVE, wait=True),), faults={"lag": 1, "silent": 1}, accepted=("IDLE_IS_SAID_OF_A_LIVE_RUN",)
    ),
    "Redis falls back unseen, two messages": S(
        (M(ends=True), M(1, LIVE, ends=True)), faults={"lag": 1, "silent": 1}, accepted=(*TWO_LIVE, *NO_END)
    ),
}

# too large for every test run
WIDE = frozenset(
    {
        "Redis restarts",
        "Redis forgets, a deletion",
        "Redis forgets, a message that stops the run first",
        "Redis forgets, two messages, a stop",
        "Redis forgets, the owner stalls",
    }
)

# too large for any
LARGE: dict[str, Scenario] = {
    "Redis falls back, a deletion": S((M(ends=True), M(1, SENT, delete=True)), faults=FALLS_BACK, exists=True),
    "two messages and a stop for each": S((M(ends=True), M(1, SENT)), (P(0, SENT), P(1, ("m1.sent",)))),
    "three messages, two stop the run first": S((M(), M(1, SENT, stop_first=True), M(0, SENT, stop_first=True))),
    "a message, a deletion, a message": S((M(), M(1, SENT, delete=True), M(0, ("m1.sent",), ends=True))),
    "a refused write, then a stall": S((M(ends=True), M(1, SENT), M(0, SENT)), faults={"stall1": 1}),
    "both stall": S((M(ends=True), M(1, SENT, ends=True)), faults={"stall0": 1, "stall1": 1}),
    "the owner is cut off, a message, a stop": S((M(), M(1, LIVE)), (P(after=SENT, wait=True),), faults={"cut0": 1}),
}

# rule left out, scenario, promise that breaks
BREAK: tuple[tuple[str, str, str], ...] = (
    ("stop_marks", "a message after the closing frame", "409_AFTER_AN_END"),
    ("stop_marks", "reads after the closing frame", "A_READ_LACKS_THE_END"),
    ("owner_marks", "a key set by hand", "409_AFTER_AN_END"),
    ("done_last", "a message after the closing frame", "409_AFTER_AN_END"),
    ("post_waits", "a key set by hand", "409_AFTER_AN_END"),
    ("reads_wait", "a key set by hand", "A_READ_LACKS_THE_END"),
    ("stopped_holds", "a stop is answered, then a message", "A_TURN_IS_LOST"),
    ("upto", "a receipt is lost", "A_STOP_IS_LOST"),
    ("gone", "a deletion", "DELETED_CHAT_COMES_BACK"),
    ("gone_first", "a stop that names its run, then a deletion", "DELETED_CHAT_COMES_BACK"),
    ("later_wins", "a stop that finds nobody, a message, a stop", "A_STOP_IS_LOST"),
    ("late_spares", "a stop that finds nobody, a message, a stop", "ANOTHER_RUN_IS_HALTED"),
    ("slack", "a slow clock stops what is seen", "A_STOP_IS_LOST"),
    ("look", "a key set by hand", "A_STOP_IS_LOST"),
    ("tombstone", "a receipt is lost", "A_RECEIPT_IS_MISSED"),
    ("nonce", "one request sent twice", "ONE_LIVE_RUN"),
    ("by_name", "a message that stops the run first", "ANOTHER_RUN_IS_HALTED"),
    ("fenced", "the owner stalls", "A_NEWER_RUN_IS_WRITTEN_OVER"),
    ("version_stays", "the owner stalls, a deletion", "DELETED_CHAT_COMES_BACK"),
    ("delete_asks", "the deleter stalls", "A_LATER_MESSAGE_IS_DELETED"),
    ("deleted_writes", "the deleter is killed", "NEITHER_SAVED_NOR_SAID"),
    ("saved_said", "the closing write fails", "SAVED_IS_SAID_WRONGLY"),
    ("here_in_order", "a stop, a message, the owner is cut off", "ANOTHER_RUN_IS_HALTED"),
    ("resend", "the reply of BEGIN is lost", "409_FOR_NO_RUN"),
    ("holds_still", "the owner stalls", "ONE_LIVE_RUN"),
    ("holds_still", "the owner is cut off", "ONE_LIVE_RUN"),
    ("raises_claim", "the owner stalls", "ONE_LIVE_RUN"),
    ("claims_begun", "the owner stalls, BEGIN is answered late", "ONE_LIVE_RUN"),
    ("any_claim", "the owner stalls, the reply of CLAIM is lost", "409_AFTER_AN_END"),
    ("settles", "Redis restarts", "A_TURN_IS_LOST"),
    ("settles", "Redis forgets, two messages", "ONE_LIVE_RUN"),
    ("settles", "Redis forgets, a stop", "IDLE_IS_SAID_OF_A_LIVE_RUN"),
    ("asks_settled", "Redis forgets, two messages", "ONE_LIVE_RUN"),
    ("outbox", "Redis forgets, a stop", "A_STOP_IS_LOST"),
    ("outbox", "Redis forgets, a message that stops the run first", "A_STOP_IS_LOST"),
    ("outbox", "Redis falls back, a stop", "A_STOP_IS_LOST"),
    ("outbox_gone", "Redis forgets, a deletion", "DELETED_CHAT_COMES_BACK"),
    ("idle_if_unread", "Redis forgets, a stop", "IDLE_IS_SAID_BY_A_STOP_THAT_HALTED"),
    ("claim_deletes", "Redis forgets, a deletion, then a stop", "SAVED_IS_SAID_WRONGLY"),
    ("claim_closing", "Redis forgets, a message", "409_AFTER_AN_END"),
    ("claim_drains", "Redis falls back, a stop, then a message", "ANOTHER_RUN_IS_HALTED"),
)

# `load_first` is needed in "a refused write, then a stall": A_NEWER_RUN_IS_WRITTEN_OVER.
NOT_BUILT: frozenset[str] = frozenset(
    {
        "version_stays",
    }
)
