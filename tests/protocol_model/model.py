"""The stop protocol as a state machine: one chat, two replicas, every order of what a scenario allows.

A step is one script (`bus`), one write of the chat's file, one frame, one message heard, or one thing a client does.
Delays, stalls and losses are orders of steps, not numbers; pulses expire only while their replica stalls, is cut off
or dead. Time moves only when a client sends something, by 1 (25 ms, a program) or 10 (a person); a stamp is that time
plus the skew of the clock that told it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tests.protocol_model.bus import Bus, Receipt
from tests.protocol_model.scenarios import Press
from tests.protocol_model.states import ASKS, HOLDS, Call, Run, State, States, Step


class Model(States):
    """The steps. Each method yields those of one kind that are possible in a state."""

    # ---- every step that may come next
    def steps(self, s: State) -> Iterator[Step]:
        yield from self.clients(s)
        for i, m in enumerate(self.m):
            if s.replicas[m.replica].up == "up":
                yield from self.run_steps(s, i, s.runs[i], f"m{i}@{m.replica}")
        for j, p in enumerate(self.sc.presses):
            if s.replicas[p.replica].up == "up":
                yield from self.press_steps(s, j, s.calls[j], f"p{j}@{p.replica}")
        for j, look in enumerate(self.sc.reads):
            if self.on(s, look.replica):
                yield from self.read_steps(s, j, s.reads[j], f"read {j}")
        for k in (0, 1):
            if s.replicas[k].up == "up":
                yield from self.replica_steps(s, k)
        yield from self.faults(s)

    def clients(self, s: State) -> Iterator[Step]:
        ends = tuple(i for i, r in enumerate(s.runs) if r.frame in ("stopped", "done"))
        for i, m in enumerate(self.m):
            if s.runs[i].pc == "new" and self.seen(s, m.after) and s.replicas[m.replica].up != "dead":
                at = s.at + m.gap
                knows = bool(ends) or any(c.answer.startswith("stopped") for c in s.calls)
                n = self.run(s._replace(at=at), i, pc="sent", sent=at, a=at + (m.skew or 0), knows_end=knows)
                yield Step(f"client sends {'DELETE' if m.delete else 'message'} m{i} at {at}", n, free=True)
        for j, p in enumerate(self.sc.presses):
            if s.calls[j].pc == "new" and self.seen(s, p.after):
                at, v = s.at + p.gap, s.at + p.gap + (p.skew or 0)
                n = self.call(s._replace(at=at), j, pc="sent", sent=at, v=v)
                if p.by_hand:
                    n = self.call(n._replace(bus=s.bus._replace(mail=(v, f"h{j}"))), j, pc="end", answer="set")
                yield Step(f"client {'SETs the key' if p.by_hand else 'sends stop'} p{j} at {at}", n, free=True)
        for j, look in enumerate(self.sc.reads):
            if s.reads[j].pc == "new" and self.seen(s, look.after):
                yield Step(f"client sends read {j}", self.read(s, j, pc="sent", ends=ends), free=True)

    # ---- a run
    def run_steps(self, s: State, i: int, r: Run, me: str) -> Iterator[Step]:
        b, m = s.bus, self.m[i]
        if r.pc == "ending":
            yield from self.ending(s, i, r, me)
        elif r.pc == "run" and m.ends:
            tail = ("write", "END", "done") if self.rules.done_last else ("done", "write", "END")
            yield Step(f"{me} ends by itself", self.run(s, i, pc="ending", out="done", tail=tail), free=True)
        elif r.pc == "open":
            yield from self.write(s, i, r, me)
        if not s.replicas[m.replica].net:
            return
        if r.pc == "sent" and s.replicas[m.replica].hears:
            yield Step(f"{me} reads the chat, pulses", self.vouch(self.run(s, i, base=s.version), i, "ask"))
        elif r.pc in ("ask", "steal") and (not s.young or self.asks_at_once(s, m.replica)):
            yield from self.begin(s, i, r, me)
        elif r.pc == "told":
            yield Step(f"{me} hears that it has begun", *self.has_begun(s, i, r.told))
        elif r.pc == "busy" and not (s.young and r.seen[0] not in b.pulse):
            yield self.make_room(s, i, r, me)
        elif r.pc == "name":
            name = self.ids[r.seen[0]] if self.rules.by_name else None
            cause, v = f"{'d' if m.delete else 'm'}{i}", r.a if self.rules.by_name else s.at
            after, reply, _ = self.on_bus.stop(b, v, cause, name, m.replica, 0)
            n = self.run(s._replace(bus=after), i, pc="wait", named=-1 if name is None else name)
            yield Step(f"{me} STOP m{r.seen[0]}: {reply}", self.push(n, cause) if reply == "live" else n)
        elif r.pc == "wait":
            if b.run != r.seen[0] or (r.seen[0] not in b.pulse and not s.young):
                yield Step(f"{me} m{r.seen[0]} is gone", self.vouch(s, i, "ask"))
            elif not self.on(s, self.m[r.seen[0]].replica) or s.runs[r.seen[0]].over:
                yield Step(f"{me} has waited long enough: 409", self.run(s, i, pc="refused"), free=True)
        elif r.pc == "remove":
            if self.rules.delete_asks and not self.on_bus.holds(b, i, r.claim):
                n, broken = self.run(s, i, pc="ending", out="lost", tail=("END",)), False
            else:
                broken = any(o.sent > r.sent and o.began > r.began and (o.wrote or o.pc == "run") for o in s.runs)
                version = self.versions(s) if self.rules.version_stays else 0
                n = self.run(s._replace(version=version), i, pc="ending", out="deleted", tail=("END", "done"))
            yield Step(f"{me} removes the file", n, ("A_LATER_MESSAGE_IS_DELETED",) * broken)
        if self.begun(r):
            if r.held and i in b.pulse:
                yield from self.claim_again(s, i, r, me)
            if self.rules.look:
                yield from self.look(s, i, r, me)

    def begun(self, r: Run) -> bool:
        return r.claim >= 0 and not r.over and r.pc in (*HOLDS, "ending", "remove")

    def vouch(self, s: State, i: int, pc: str) -> State:
        return self.run(s._replace(bus=s.bus._replace(pulse=s.bus.pulse | {i})), i, pc=pc)

    def begin(self, s: State, i: int, r: Run, me: str) -> Iterator[Step]:
        for what in ("", *(fault for fault in ("reply", "late") if self.may(s, fault))):
            claim = self.claims(s)
            takeover = r.seen[1] if r.pc == "steal" else -1
            b, reply = self.on_bus.begin(s.bus, i, self.m[i].replica, r.a, claim, takeover)
            n, broken = s._replace(bus=b), tuple[str, ...]()
            if what == "reply":
                n = self.run(self.spend(n, what), i, pc=r.pc if self.rules.resend else "refused")
                n = n if self.rules.resend else self.run(n, i, over=True)
            elif reply == "used":
                n = self.run(n, i, pc="refused")
            elif reply == "busy":
                n = self.run(n, i, pc="busy", seen=(b.run, b.claim, b.closing))
            else:
                n = self.run(n, i, began=claim, pc="told", told=b.stopped)
                if what == "late":
                    n = self.spend(n, what)
                else:
                    n, broken = self.has_begun(n, i, b.stopped)
            said = {"reply": " (reply lost)", "late": " (reply late)"}.get(what, "")
            yield Step(f"{me} BEGIN: {reply}{said}", n, broken, bool(what))

    def asks_at_once(self, s: State, k: int) -> bool:
        """Its connection broke under it, the replica has not heard of more."""
        return not self.rules.asks_settled and not s.replicas[k].hears

    def has_begun(self, s: State, i: int, stopped: str) -> tuple[State, tuple[str, ...]]:
        r = s.runs[i]
        n = self.run(s, i, claim=r.began, told="", pc="remove" if self.m[i].delete else "open")
        return self.halted(n, i, stopped, marked=True) if stopped else (n, ())

    def make_room(self, s: State, i: int, r: Run, me: str) -> Step:
        holder, _, closing = r.seen
        other = s.runs[holder]
        if holder not in s.bus.pulse:
            return Step(f"{me} no pulse names m{holder}", self.vouch(s, i, "steal"))
        if self.ids[holder] == self.ids[i] or (self.m[i].stop_first and other.a > r.a):
            return Step(f"{me} 409 for m{holder}", self.run(s, i, pc="refused"))
        if self.m[i].stop_first or self.m[i].delete:
            return Step(f"{me} will stop m{holder}", self.run(s, i, pc="name"))
        if closing and self.rules.post_waits:
            return Step(f"{me} waits for m{holder}", self.run(s, i, pc="wait"))
        broken = ("409_AFTER_AN_END",) * (r.knows_end and other.frame in ("stopped", "done"))
        broken += ("409_FOR_NO_RUN",) * (other.pc == "refused")
        return Step(f"{me} 409 for m{holder}", self.run(s, i, pc="refused"), broken)

    def halted(self, s: State, i: int, cause: str, *, marked: bool) -> tuple[State, tuple[str, ...]]:
        if cause == "lost":
            return self.run(s, i, pc="ending", out="lost", saved=False, tail=("END", "error")), (
                ("A_TURN_IS_LOST",)
                * (not any(fault.startswith(("stall", "cut", "silent")) for fault in self.sc.faults))
            )
        name = self.sc.presses[int(cause[1:])].names if cause[0] == "p" else None
        sent = (s.calls if cause[0] in "ph" else s.runs)[int(cause[1:])].sent
        # By name it does not matter who was first, and a deletion halts whomever it meets.
        meant = name == self.ids[i] if name is not None else cause[0] == "d" or sent > s.runs[i].sent
        tail = ("mark",) * (self.rules.owner_marks and not marked) + ("stopped", "write", "END")
        n = self.run(s, i, pc="ending", out="stopped", cause=cause, tail=tail)
        return n, ("ANOTHER_RUN_IS_HALTED",) * (not meant)

    def look(self, s: State, i: int, r: Run, me: str) -> Iterator[Step]:
        b = s.bus
        if b.claim < r.claim:
            if not r.held:
                n, claim = s if s.young else self.came_back(s, self.m[i].replica), self.claims(s)
                b, _ = self.on_bus.claim(b, i, r.a, r.claim, claim, r.pc == "ending" and r.out == "stopped")
                yield Step(f"{me} puts its record back", self.run(n._replace(bus=b), i, claim=claim))
        elif r.pc in HOLDS:
            cause = "lost" if b.run != i else b.named[self.ids[i]] or (b.mail[1] if b.mail else "")
            if cause:
                yield Step(f"{me} looks, finds {cause}", *self.halted(s, i, cause, marked=b.closing))

    def claim_again(self, s: State, i: int, r: Run, me: str) -> Iterator[Step]:
        """A pulse names it again."""
        for lost in (False, True) if self.may(s, "reply") else (False,):
            claim = self.claims(s) if self.rules.raises_claim else r.claim
            b, reply = self.on_bus.claim(s.bus, i, r.a, r.claim, claim, r.pc == "ending" and r.out == "stopped")
            n, broken = s._replace(bus=b), tuple[str, ...]()
            if lost:
                n = self.spend(n, "reply")
            elif reply == "held":
                n = self.run(n, i, claim=claim, held="")
            else:
                n = self.run(n, i, held="")
                n, broken = self.halted(n, i, "lost", marked=False) if r.pc in HOLDS else (n, broken)
            yield Step(f"{me} CLAIM: {reply}{' (reply lost)' * lost}", n, broken, lost)

    def write(self, s: State, i: int, r: Run, me: str) -> Iterator[Step]:
        """The opening write of a run that is not ending, else the closing one."""
        tail, closing, mine = r.tail[1:], r.pc == "ending", self.on_bus.holds(s.bus, i, r.claim)
        lost = self.run(s, i, pc="ending", out="lost", saved=False, conflict="", tail=tail or ("END", "error"))
        if not r.conflict and (r.base == s.version or not self.rules.fenced):
            version, pc = self.versions(s), "ending" if closing else "run"
            n = self.run(s._replace(version=version), i, pc=pc, base=version, tail=tail, wrote=closing)
            newer = s.bus.run >= 0 and s.runs[s.bus.run].pc == "run" and s.runs[s.bus.run].began > r.began
            broken = ("DELETED_CHAT_COMES_BACK",) * self.deleted(s, i) + ("A_NEWER_RUN_IS_WRITTEN_OVER",) * newer
            yield Step(f"{me} {'closing' if closing else 'opening'} write", n, broken)
            if closing and self.may(s, "disk"):
                n = self.run(self.spend(s, "disk"), i, tail=tail, saved=False)
                yield Step(f"{me} closing write fails", n, free=True)
        elif not r.conflict and self.rules.load_first:
            yield Step(f"{me} is refused, reads again", self.run(s, i, base=s.version, conflict="ask"))
        elif r.conflict == "load":
            yield Step(f"{me} reads again", self.run(s, i, base=s.version, conflict=""))
        elif mine and self.on(s, self.m[i].replica):
            yield Step(f"{me} still has the chat", self.run(s, i, conflict="" if r.conflict else "load"))
        else:
            yield Step(f"{me} has lost the chat", lost, ("A_TURN_IS_LOST",) * (not self.sc.faults))

    def ending(self, s: State, i: int, r: Run, me: str) -> Iterator[Step]:
        k, step = self.m[i].replica, r.tail[0]
        n = self.run(s, i, tail=r.tail[1:], pc="ending" if r.tail[1:] else "end")
        if step == "write" and r.cause[:1] == "d" and (not self.rules.deleted_writes or self.deleted(s, i)):
            yield Step(f"{me} is to be deleted, writes nothing", n)
        elif step == "write":
            yield from self.write(s, i, r, me)
        elif step == "mark":
            if self.on(s, k):
                yield Step(f"{me} CLOSING", n._replace(bus=self.on_bus.closing(s.bus, i, r.claim)[0]))
            if not self.on(s, k) or self.may(s, "mark"):
                yield Step(f"{me} cannot mark its record", self.spend(n, "mark"), free=True)
        elif step != "END":
            yield Step(f"{me} frame {step}", self.run(n, i, frame=step))
        elif not self.on(s, k):
            yield Step(f"{me} cannot say END", self.run(n, i, over=True))
        else:
            for lost in (False, True) if self.may(s, "receipt") else (False,):
                b, reply = self.on_bus.end(s.bus, i, r.claim, r.out, r.saved)
                x = self.run(n._replace(bus=b._replace(pulse=b.pulse - {i})), i, over=True, said=reply == "ended")
                for w in sorted(s.bus.waiters) if reply == "ended" and not lost else ():
                    x = self.hear(x, w, ("ended", i, r.out, r.saved))
                yield Step(
                    f"{me} END: {reply}{' (not heard)' * lost}", self.spend(x, "receipt") if lost else x, (), lost
                )

    # ---- a stop call
    def push(self, s: State, cause: str) -> State:
        return self.hear(s, self.m[s.bus.run].replica, ("stop", s.bus.run, cause))

    def hear(self, s: State, k: int, message: tuple[Any, ...]) -> State:
        x = s.replicas[k]
        return self.replica(s, k, inbox=(*x.inbox, message)) if x.hears and x.up != "dead" else s

    def slack(self, s: State, p: Press) -> int:
        same_clock = s.bus.run < 0 or (p.skew is None and self.m[s.bus.run].skew is None)
        return 0 if same_clock else self.rules.slack

    def press_steps(self, s: State, j: int, c: Call, me: str) -> Iterator[Step]:
        p, b, rep = self.sc.presses[j], s.bus, s.replicas[self.sc.presses[j].replica]
        if c.pc == "sent" and not rep.net:
            own = (i for i, r in enumerate(s.runs) if self.m[i].replica == p.replica and r.pc in HOLDS)
            i = next((i for i in own if p.names in (None, self.ids[i])), None)
            late = self.rules.here_in_order and p.names is None and i is not None and s.runs[i].a > c.v
            if i is not None and not late:
                n, broken = self.halted(s, i, f"p{j}", marked=False)
                yield Step(f"{me} halts m{i} without the bus", self.call(n, j, pc="end", answer="accepted"), broken)
            else:
                yield Step(f"{me} 503", self.call(s, j, pc="end"))
        elif (c.pc == "sent" and (rep.hears or not p.wait)) or (c.pc == "again" and rep.net and not s.young):
            for lost in (False, True) if self.may(s, "push") else (False,):
                waiter = p.replica if p.wait else None
                b, reply, stored = self.on_bus.stop(s.bus, c.v, f"p{j}", p.names, waiter, self.slack(s, p))
                n = self.call(s._replace(bus=b), j, stored=-1 if reply == "ended" else stored)
                if reply == "live":
                    n = self.spend(n, "push") if lost else self.push(n, f"p{j}")
                if p.wait and reply == "live":
                    n, broken = self.call(n, j, pc="wait", saw=b.run), ()
                elif p.wait and reply == "ended" and b.last:
                    n, broken = self.told(n, j, b.last)
                elif p.wait and s.young:
                    n, broken = self.call(n, j, pc="again"), ()
                elif c.pc == "again" and self.rules.idle_if_unread and not self.unread(s, j):
                    n, broken = self.answer(n, j, "unconfirmed")
                else:
                    n, broken = self.answer(n, j, "idle" if p.wait else "accepted")
                yield Step(f"{me} STOP: {reply}{' (push lost)' * lost}", n, broken, lost)
        elif c.pc == "wait" and c.got:
            yield Step(f"{me} hears the receipt", *self.told(s, j, c.got))
        elif c.pc == "wait" and rep.net and self.rules.tombstone:
            if found := next((x for x in (b.last, b.before) if x and x[0] == c.saw), None):
                yield Step(f"{me} finds the receipt", *self.told(s, j, found))
            elif (b.run != c.saw or c.saw not in b.pulse) and not rep.inbox:  # by the second look a push has come
                seen = self.answer(s, j, "unconfirmed") if c.gone else (self.call(s, j, gone=True), ())
                yield Step(f"{me} does not see m{c.saw}", *seen)

    def unread(self, s: State, j: int) -> bool:
        """The stop lies where it was stored."""
        name = self.sc.presses[j].names
        return s.bus.mail == (s.calls[j].stored, f"p{j}") if name is None else s.bus.named[name] != ""

    def told(self, s: State, j: int, receipt: Receipt) -> tuple[State, tuple[str, ...]]:
        i, out, saved = receipt
        if out == "lost":
            return self.answer(s, j, "unconfirmed")
        r, stopped = s.runs[i], out == "stopped"
        said = saved or (not stopped and not self.rules.saved_said)
        wrong = stopped and r.sent > s.calls[j].sent and self.sc.presses[j].names != self.ids[i]
        broken = ("ANOTHER_STOP_IS_CONFIRMED",) * wrong
        broken += ("SAVED_IS_SAID_WRONGLY",) * (said and not r.wrote and r.cause[:1] != "d")
        return self.call(s, j, pc="end", answer="stopped" if stopped else "finished"), broken

    def answer(self, s: State, j: int, answer: str) -> tuple[State, tuple[str, ...]]:
        c, live = s.calls[j], False
        for i, r in enumerate(s.runs):
            here = r.pc in HOLDS and s.replicas[self.m[i].replica].up == "up"
            live |= 0 <= r.sent < c.sent and here and r.held != "still" and self.sc.presses[j].names is None
        broken = ("IDLE_IS_SAID_OF_A_LIVE_RUN",) * (answer == "idle" and live)
        broken += ("IDLE_IS_SAID_BY_A_STOP_THAT_HALTED",) * (
            answer == "idle" and any(r.cause == f"p{j}" for r in s.runs)
        )
        broken += ("A_RECEIPT_IS_MISSED",) * (answer == "unconfirmed" and c.saw >= 0 and s.runs[c.saw].said)
        return self.call(s, j, pc="end", answer=answer), broken

    # ---- a read, and a replica
    def read_steps(self, s: State, j: int, c: Call, me: str) -> Iterator[Step]:
        b, closing = s.bus, s.bus.closing and s.bus.run in s.bus.pulse
        if c.pc == "load":
            missing = any("write" in s.runs[i].tail and s.runs[i].cause[:1] != "d" for i in c.ends)
            yield Step(f"{me} reads the chat", self.read(s, j, pc="end"), ("A_READ_LACKS_THE_END",) * missing)
        elif c.pc == "sent" and closing and self.rules.reads_wait:
            yield Step(f"{me} waits for m{b.run}", self.read(s, j, pc="wait", saw=b.run))
        elif not s.young and (c.pc == "sent" or (c.pc == "wait" and (b.run != c.saw or c.saw not in b.pulse))):
            yield Step(f"{me} waits for nobody", self.read(s, j, pc="load"))

    def replica_steps(self, s: State, k: int) -> Iterator[Step]:
        x = s.replicas[k]
        if x.inbox:
            n, broken, what = self.replica(s, k, inbox=x.inbox[1:]), tuple[str, ...](), x.inbox[0]
            if what[0] == "stop" and s.runs[what[1]].pc in HOLDS:
                n, broken = self.halted(n, what[1], what[2], marked=True)
            for j, c in enumerate(s.calls):
                if what[0] == "ended" and self.sc.presses[j].replica == k and c.pc == "wait" and c.saw == what[1]:
                    n = self.call(n, j, got=what[1:])
            yield Step(f"replica {k} hears {what}", n, broken)
        if x.net and not x.hears:  # the look that follows is one of `look`
            yield Step(f"replica {k} hears again", self.replica(s, k, hears=True))
        if x.net and (pulse := s.bus.pulse - self.own(k) | self.vouched(s, k)) != s.bus.pulse:
            n = s._replace(bus=s.bus._replace(pulse=pulse))
            for i in self.own(k):  # what has not begun yet has no claim to raise
                asks = s.runs[i].pc in ASKS and not (s.runs[i].pc == "told" and self.rules.claims_begun)
                n = self.run(n, i, held="") if asks else n
            yield Step(f"replica {k} pulses", n)
        if x.net and x.hears and x.owes:
            yield self.put_back_stop(s, k, x.owes)
        if k == 0 and s.young and self.settled(s):
            yield Step("the bus has settled", s._replace(young=False))

    def put_back_stop(self, s: State, k: int, owes: tuple[str, ...]) -> Step:
        cause, j = owes[0], int(owes[0][1:])
        if cause[0] == "p":
            name, stored = self.sc.presses[j].names, s.calls[j].stored
        else:
            name, stored = None if cause[0] == "D" else s.runs[j].named, s.runs[j].a
        b, reply, _ = self.on_bus.stop(s.bus, stored, cause.lower(), name, None, 0, True)
        n = self.replica(s._replace(bus=b), k, owes=owes[1:])
        return Step(f"replica {k} puts {cause} back: {reply}", self.push(n, cause.lower()) if reply == "live" else n)

    def settled(self, s: State) -> bool:
        """Every replica that can has put back what it knows: in the product this is a time."""
        for k, x in enumerate(s.replicas):
            if self.on(s, k):
                runs = [s.runs[i] for i in self.own(k)]
                lacks = any(r.pc == "told" or (self.begun(r) and (r.held or s.bus.claim < r.claim)) for r in runs)
                if not x.hears or x.owes or lacks or s.bus.pulse & self.own(k) != self.vouched(s, k):
                    return False
        return True

    # ---- what may fail
    def faults(self, s: State) -> Iterator[Step]:
        deaf: dict[str, Any] = {"hears": False, "inbox": ()}
        for k, x in enumerate(s.replicas):
            own = self.own(k)
            changes: dict[str, tuple[bool, dict[str, Any]]] = {
                f"stall{k}": (x.up == "up", {"up": "stalled"}),
                f"kill{k}": (x.up == "up", {"up": "dead", **deaf}),
                f"drop{k}": (x.hears, deaf),
                f"cut{k}": (x.net, {"net": False, **deaf}),
            }
            for fault, (can, change) in changes.items():
                if can and self.may(s, fault):
                    n = self.spend(self.replica(s, k, **change), fault)
                    for i in own if change.get("up") == "dead" else ():
                        n = self.run(n, i, pc="dead") if s.runs[i].pc not in ("new", "end", "refused") else n
                    yield Step(fault, n, free=True)
            if x.up == "stalled" or not x.net:
                yield Step(f"replica {k} is back", self.replica(s, k, up="up", net=True), free=True)
            if (x.up != "up" or not x.net) and s.bus.pulse & own:
                n = s._replace(bus=s.bus._replace(pulse=s.bus.pulse - own))
                yield Step(f"the pulse of replica {k} expires", self.lapse(n, k), free=True)
        if self.may(s, "empty"):
            yield Step("Redis restarts empty", self.lost(s, "empty", Bus(named=("",) * len(self.m))), free=True)
        if self.may(s, "restart"):
            n = self.lost(s, "restart", s.bus._replace(pulse=frozenset()))
            yield Step("Redis restarts, no pulse is left", self.lapse(self.lapse(n, 0), 1), free=True)
        if self.may(s, "lag") and not s.behind:
            yield Step("the copy of Redis falls behind", self.spend(s, "lag")._replace(behind=s.bus), free=True)
        if s.behind and self.may(s, "failover"):
            yield Step("Redis fails over", self.lost(s, "failover", s.behind)._replace(behind=None), free=True)
        if s.behind and self.may(s, "silent"):
            yield Step(
                "Redis fails over unseen", self.spend(s, "silent")._replace(bus=s.behind, behind=None), free=True
            )

    def lapse(self, s: State, k: int) -> State:
        """For so long nobody heard of a replica that another may have taken its chats. It knows, by its own clock."""
        up = s.replicas[k].up == "up"
        for i in self.own(k):
            r = s.runs[i]
            if up and r.pc in ASKS:  # its commands have failed for as long: 503
                s = self.run(s, i, pc="refused")
            elif self.rules.holds_still and (r.pc in ASKS or self.begun(r)):
                s = self.run(s, i, held="goes on" if up and self.sc.goes_on else "still")
        return s

    def lost(self, s: State, fault: str, b: Bus) -> State:
        for k in (0, 1):
            s = self.came_back(self.replica(s, k, hears=False, inbox=()), k)
        return self.spend(s, fault)._replace(bus=b, young=self.rules.settles)

    def came_back(self, s: State, k: int) -> State:
        """A replica has found that the bus may lack what it stored."""
        stored = [f"p{j}" for j, c in enumerate(s.calls) if c.stored >= 0 and self.sc.presses[j].replica == k]
        stored += [f"{'d' if self.m[i].delete else 'm'}{i}" for i in sorted(self.own(k)) if s.runs[i].named >= 0]
        if self.rules.outbox_gone:
            stored += [f"D{i}" for i in sorted(self.own(k)) if self.m[i].delete and s.runs[i].began >= 0]
        owes = tuple(stored) if self.rules.outbox and s.replicas[k].up != "dead" else ()
        return self.replica(s, k, owes=owes)
