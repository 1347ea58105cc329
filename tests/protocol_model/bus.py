"""What Redis holds of one chat, and the scripts of `haltline.redis_scripts`, one method each.

Runs are numbers. A cause says who halts a run: `p0` a stop call, `h0` a key SET by hand, `m1` a message with
`?if_running=stop`, `d1` a deletion. Times are small whole numbers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

Stamp = tuple[int, str]  # a time, and who caused it
Receipt = tuple[int, str, bool]  # which run, how it ended, whether it was saved
NEVER: Stamp = (-1, "")


@dataclass(frozen=True)
class Rules:
    """The protocol, in switches: with any of them off, some promise should break."""

    # of the scripts
    stop_marks: bool = True  # STOP marks the record closing
    stopped_holds: bool = True  # a run that begins stopped holds the chat until END
    upto: bool = True  # consumed stops leave a watermark
    gone: bool = True  # deletions leave one
    gone_first: bool = True  # it counts before a stop that names the run
    later_wins: bool = True  # the mailbox keeps the later of two stops
    late_spares: bool = True  # a stop older than the live run only raises the watermark
    slack: int = 2  # how far other clocks than the front door's may differ
    nonce: bool = True  # the nonce, not the run id, says whose a record is
    claim_closing: bool = True  # a record that is put back says closing if its run was told to halt, nothing else
    claim_deletes: bool = True  # and that of a deletion says so
    claim_drains: bool = True  # and drops a stop from before its run, which a failover brought back
    any_claim: bool = True  # CLOSING and END do not ask for the claim, which may be raised while they are under way
    # of the replicas
    owner_marks: bool = True  # CLOSING before the frame where STOP has not marked
    done_last: bool = True  # `done` after END
    post_waits: bool = True  # a message that finds the chat closing waits for END
    reads_wait: bool = True  # so does a read
    look: bool = True  # replicas look at the keys of their live runs
    tombstone: bool = True  # a receipt that was missed is found in the record
    by_name: bool = True  # a deletion and `?if_running=stop` name the run they stop
    resend: bool = True  # a BEGIN whose reply was lost is sent again
    here_in_order: bool = True  # without the bus, too, a stop halts no run whose message was sent after it
    saved_said: bool = True  # whoever waits is told of an answer that was not saved, however the run ended
    holds_still: bool = True  # runs hold still from where no pulse vouches for them, until they are claimed again
    raises_claim: bool = True  # which raises the claim, so that a takeover that read the old one is refused
    settles: bool = True  # on a bus that came back nothing begins, and `idle` is not said, until all is put back
    claims_begun: bool = True  # also a run whose BEGIN was answered only after the pulse that followed a lapse
    asks_settled: bool = True  # a BEGIN that is sent again waits for that, too
    outbox: bool = True  # stops of the last minute are put back, too
    outbox_gone: bool = True  # and deletions
    idle_if_unread: bool = True  # a stop that asks again says `idle` only if nobody has consumed it meanwhile
    # of the chat's file
    fenced: bool = True  # it is saved only if it is the version that was read
    load_first: bool = True  # after a conflict: read again, then ask whether the chat is still ours
    delete_asks: bool = True  # a deletion asks too, before it removes the file
    version_stays: bool = True  # a deleted chat does not count as one that never was
    deleted_writes: bool = True  # a run that a deletion halts is saved: the deletion may yet fail


class Bus(NamedTuple):
    run: int = -1  # the holder
    a: int = 0  # its arrival
    claim: int = 0
    closing: bool = False
    delete: bool = False
    stopped: str = ""  # what BEGIN found
    waiters: frozenset[int] = frozenset()
    mail: Stamp | None = None
    upto: Stamp = NEVER
    gone: Stamp = NEVER
    named: tuple[str, ...] = ()  # for each run id, the stop that names it
    last: Receipt | None = None
    before: Receipt | None = None  # the one before it
    pulse: frozenset[int] = frozenset()  # the runs that a pulse names


class Scripts:
    """Each takes the bus as it is and gives the bus after it and the reply. `ids[i]` is the run id of run i."""

    def __init__(self, rules: Rules, ids: tuple[int, ...], deletes: frozenset[int]) -> None:
        self.rules, self.ids, self.deletes = rules, ids, deletes

    def begin(self, b: Bus, i: int, replica: int, a: int, claim: int, takeover: int) -> tuple[Bus, str]:
        mine = b.run == i if self.rules.nonce else b.run >= 0 and self.ids[b.run] == self.ids[i]
        if self.rules.nonce and not mine and b.last and self.ids[b.last[0]] == self.ids[i]:
            return b, "used"
        if b.run >= 0 and not mine and b.claim != takeover:
            return (b._replace(waiters=b.waiters | {replica}) if b.closing else b), "busy"
        if mine:
            return b._replace(run=i, claim=claim), "begun"
        b, stopped = self._drained(b), ""
        if i in self.deletes:
            b = b._replace(gone=max(b.gone, (a, f"d{i}"))) if self.rules.gone else b
        else:
            named, gone, upto = b.named[self.ids[i]], _from(b.gone, a), _from(b.upto, a)
            stopped = (gone or named or upto) if self.rules.gone_first else (named or gone or upto)
        closing = bool(stopped) or i in self.deletes
        b = b._replace(
            a=a, claim=claim, closing=closing, delete=i in self.deletes, stopped=stopped, waiters=frozenset()
        )
        if stopped and not self.rules.stopped_holds:
            return b._replace(run=-1, closing=False, last=(i, "stopped", True)), "begun"
        return b._replace(run=i), "begun"

    def stop(
        self, b: Bus, v: int, cause: str, name: int | None, waiter: int | None, slack: int, again: bool = False
    ) -> tuple[Bus, str, int]:
        """Also gives the stamp that counts. `again`: it was stored before, in a world that may be lost."""
        live = b.run >= 0 and not b.delete
        if name is not None:
            if b.last and self.ids[b.last[0]] == name:
                return b, "ended", v
            if again and b.named[name]:
                return b, "known", v
            b = b._replace(named=put(b.named, name, cause))
            return self._halt(b, waiter, v) if live and self.ids[b.run] == name else (b, "idle", v)
        if again and cause[0] == "d":
            return b._replace(gone=max(b.gone, (v, cause))), "known", v
        if again and max(b.mail or NEVER, b.upto)[0] >= v:
            return b, "known", v
        if live and v < b.a and self.rules.late_spares:
            if v < b.a - slack:
                return b._replace(upto=max(b.upto, (v, cause))), "idle", v
            v = b.a
        if not (self.rules.later_wins and b.mail and b.mail[0] >= v):
            b = b._replace(mail=(v, cause))
        return self._halt(b, waiter, v) if live and v >= b.a else (b, "idle", v)

    def holds(self, b: Bus, i: int, claim: int) -> bool:
        """Whether the record is still this run's."""
        return b.run == i and (self.rules.any_claim or b.claim == claim)

    def closing(self, b: Bus, i: int, claim: int) -> tuple[Bus, str]:
        return (b._replace(closing=True), "closing") if self.holds(b, i, claim) else (b, "lost")

    def end(self, b: Bus, i: int, claim: int, out: str, saved: bool) -> tuple[Bus, str]:
        if not self.holds(b, i, claim) and b.claim >= claim:
            return b, "again" if b.last and self.ids[b.last[0]] == self.ids[i] else "lost"
        b = self._drained(b)._replace(named=put(b.named, self.ids[i], ""), last=(i, out, saved), before=b.last)
        b = b._replace(claim=max(b.claim, claim))  # where it was forgotten none may put it back
        return b._replace(run=-1, a=0, closing=False, delete=False, stopped="", waiters=frozenset()), "ended"

    def claim(self, b: Bus, i: int, a: int, known: int, claim: int, halted: bool) -> tuple[Bus, str]:
        if b.run != i and b.claim >= known:
            return b, "lost"
        if self.rules.claim_closing:
            mine = b.run == i
            b = b._replace(closing=halted or (mine and b.closing))
            b = b if mine else b._replace(stopped="", waiters=frozenset())
        b = b._replace(delete=i in self.deletes and (self.rules.claim_deletes or (b.run == i and b.delete)))
        if self.rules.claim_drains and b.mail and b.mail[0] < a:
            b = self._drained(b)
        return b._replace(run=i, a=a, claim=claim), "held"

    def _halt(self, b: Bus, waiter: int | None, v: int) -> tuple[Bus, str, int]:
        b = b._replace(closing=b.closing or self.rules.stop_marks)
        return (b if waiter is None else b._replace(waiters=b.waiters | {waiter})), "live", v

    def _drained(self, b: Bus) -> Bus:
        return b._replace(mail=None, upto=max(b.upto, b.mail) if self.rules.upto else b.upto) if b.mail else b


def _from(mark: Stamp, a: int) -> str:
    return mark[1] if mark[0] >= a else ""


def put(row: tuple[Any, ...], i: int, new: Any) -> tuple[Any, ...]:
    return (*row[:i], new, *row[i + 1 :])
