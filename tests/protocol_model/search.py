"""Every state of a scenario, and the promises that are broken on the way."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

from tests.protocol_model.bus import Rules
from tests.protocol_model.model import Model
from tests.protocol_model.scenarios import Scenario
from tests.protocol_model.states import HOLDS, State


def broken_in(model: Model, s: State) -> Iterator[str]:
    goes = (r.pc == "run" and r.held != "still" for r in s.runs)
    if sum(g and s.replicas[m.replica].up == "up" for g, m in zip(goes, model.m, strict=True)) > 1:
        yield "ONE_LIVE_RUN"


def broken_at_rest(model: Model, s: State) -> Iterator[str]:
    """Nothing but clients and faults could move: what was owed must have happened."""
    meant = [(c.sent, p.names) for c, p in zip(s.calls, model.sc.presses, strict=True) if c.answer]
    meant += [(d.sent, None) for d in s.runs if d.out == "deleted"]
    for i, r in enumerate(s.runs):
        told = any(sent > r.sent and name in (None, model.ids[i]) for sent, name in meant)
        if r.pc in HOLDS and told and model.on(s, model.m[i].replica):
            yield "A_STOP_IS_LOST"
        asked = r.cause[:1] == "d" and s.runs[int(r.cause[1:])].pc not in ("refused", "dead")
        if r.pc == "end" and r.out == "stopped" and r.saved and not (r.wrote or asked or model.deleted(s, i)):
            yield "NEITHER_SAVED_NOR_SAID"
        other = r.seen[0]
        stops = r.pc == "wait" and r.named == model.ids[other] and model.on(s, model.m[i].replica)
        if stops and s.runs[other].pc in HOLDS and model.on(s, model.m[other].replica):
            yield "A_STOP_IS_LOST"
    for c, p in zip(s.calls, model.sc.presses, strict=True):
        if c.pc == "wait" and model.on(s, p.replica) and s.runs[c.saw].said:
            yield "A_RECEIPT_IS_MISSED"


def check(scenario: Scenario, rules: Rules, *, until: str = "") -> tuple[dict[str, list[str]], int]:
    """Every state that can be reached. The promises broken, each with a shortest way there; the number of states.

    `until`: a promise; the search ends where it is broken.
    """
    model = Model(scenario, rules)
    came: dict[State, tuple[State, str] | None] = {model.start(): None}
    todo, found = deque(came), dict[str, list[str]]()

    def note(promise: str, s: State, *last: str) -> None:
        way = list(last)
        while promise not in found and (step := came[s]) is not None:
            s = step[0]
            way.insert(0, step[1])
        found.setdefault(promise, way)

    while todo and until not in found:
        s, rests = todo.popleft(), True
        for label, n, broken, free in model.steps(s):
            if n == s:
                continue
            rests &= free
            for promise in broken:
                note(promise, s, label)
            if n not in came:
                came[n] = (s, label)
                todo.append(n)
                for promise in broken_in(model, n):
                    note(promise, n)
        for promise in broken_at_rest(model, s) if rests else ():
            note(promise, s)
    return found, len(came)
