"""What a stop promises, checked from outside: after every step, at rest, and of every answer."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from haltline.events import Closing, Done, Event, Failed, Stopped
from haltline.runs import Outcome, StopReason

if TYPE_CHECKING:
    from tests.protocol.parts import Press, Request
    from tests.protocol.stepper import Stepper

PROMISES = {
    "STOP_LOST": "a stop that is stored halts the run it was sent for",
    "STOP_HITS_ANOTHER_RUN": "a stop halts no run that was sent after it, and none but the one it names",
    "FALSE_ANSWER": "`?wait` says what happened",
    "RECEIPT_MISSED": "`?wait` is told of the end of the run it waits for",
    "TWO_RUNS_LIVE": "at most one run of a chat works",
    "TWO_WRITERS": "nobody writes a chat that another run has written since it took it",
    "RUN_LOST": "a run that is vouched for keeps its chat",
    "UNAVAILABLE": "no request gets 503 while Redis is there",
    "FALSE_409_TO_ITSELF": "a request is not refused for its own sake",
    "FALSE_409_AFTER_CLOSING_FRAME": "a message sent when the closing frame was read is not refused",
    "SUPERSEDE_STUCK": "whoever stops a run first finds the chat free when that has ended",
    "CHAT_STUCK": "when all has ended the chat is free",
    "BUS_STUCK": "when all is mended requests find Redis",
    "HANGS": "every request is answered, every run ends",
    "NO_END": "the product comes to rest",
    "UNHANDLED": "no error is left to the event loop",
    "CLOSING_FRAMES": "an accepted message has one closing frame, the last and the right one",
    "TRANSCRIPT": "roles alternate, each message stands once, beside its answer",
    "DELETED_CHAT_COMES_BACK": "a deletion covers what was sent before it",
    "MESSAGE_LOST": "what was said to be saved is there",
}


def always(at: Stepper) -> None:
    """After every step."""
    live = [r.name for r in at.requests if r.working and at.up(r) and not at.held_still(r)]
    if len(live) > 1:
        at.broken("TWO_RUNS_LIVE", " and ".join(live))


def halted(at: Stepper, run: Request, reason: StopReason) -> None:
    """When a run is told to halt: somebody must have meant it, and have said so by now."""
    others = [r for r in at.requests if r is not run and r.sent >= 0]
    match reason:
        case StopReason.USER:
            meant = any(s.stored and s.means(run) for s in at.presses)
        case StopReason.SUPERSEDED:
            meant = any(r.spec.replaces and r.sent > run.sent for r in others)
        case StopReason.DELETED:  # it names the run it finds, whenever that was sent
            meant = any(r.spec.deletes for r in others)
        case _ if run.ended:
            return  # a look between END and its reply; the end was decided
        case _ if run.spec.through in at.doubted:
            return  # nobody vouched for it for a while: another may have the chat
        case _:
            at.broken("RUN_LOST", f"{run.name} was halted: {reason}")
            return
    if not meant:
        at.broken("STOP_HITS_ANOTHER_RUN", f"{run.name} was halted by a stop not meant for it ({reason})")


def saved(at: Stepper, run: Request) -> None:
    """When a run writes or deletes the chat: none that took the chat after it may have written already."""
    holder = at.holder
    if holder is not None and holder is not run and holder.saved and at.order.index(holder) > at.order.index(run):
        at.broken("TWO_WRITERS", f"{run.name} wrote while {holder.name} holds the chat")


def answered(at: Stepper, run: Request) -> None:
    """When a message or a deletion was answered."""
    if run.answer == "503" and not at.scenario.bus_breaks:
        at.broken("UNAVAILABLE", f"{run.name} got 503")
    if run.answer != "409":
        return
    found = run.holder
    if found is run:
        at.broken("FALSE_409_TO_ITSELF", run.name)
    elif found is not None and found.closing is not None and found.closed_at < run.sent_at:
        at.broken("FALSE_409_AFTER_CLOSING_FRAME", f"{run.name}, sent when {found.name} had said it was at its end")
    elif run.spec.through in at.doubted:
        return  # it may have lost the chat
    elif found is not None and (found.ended or run.spec.replaces or run.spec.deletes) and at.skipped:
        at.broken("SUPERSEDE_STUCK", f"{run.name} waited in vain for {found.name}")


def confirmed(at: Stepper, press: Press) -> None:
    """When a stop was answered: it says what happened."""
    run = next((r for r in at.requests if r.run_id == (press.told or press.found)), None)
    outcome = run.outcome if run else None
    wrong = ""
    match press.answer:
        case "503" if not at.scenario.bus_breaks:
            at.broken("UNAVAILABLE", f"{press.name} got 503")
        case "idle" if press.spec.names is None and press.live:
            wrong = f"idle, while {press.live[0].name} was live"
        case "idle" if press.spec.names is not None and any(r.index == press.spec.names for r in press.live):
            wrong = "idle, while the run it names was live"
        case "stopped" if run is None or outcome != Outcome.STOPPED:
            wrong = f"stopped, but {run.name if run else 'no run'} was not"
        case "finished" if run is None or outcome not in (Outcome.DONE, Outcome.ERROR):
            wrong = f"finished, but {run.name if run else 'no run'} did not"
        case "stopped" | "finished" if run and not press.means(run):
            wrong = f"{press.answer} of {run.name}, which it was not sent for"
        case "unconfirmed" if run is not None and run.ended and outcome in (Outcome.STOPPED, Outcome.DONE):
            at.broken("RECEIPT_MISSED", f"{press.name} was not told of the end of {run.name}")
        case "unconfirmed" if not at.scenario.faults:
            wrong = f"unconfirmed of {run.name if run else 'no run'}"
    if wrong:
        at.broken("FALSE_ANSWER", f"{press.name} was told {wrong}")


def at_rest(at: Stepper) -> None:
    """When nothing but clients, agents and faults could move: what was owed must have happened."""
    causes = [s for s in at.presses if s.stored and not s.forgotten]
    for run in at.requests:
        if run.working and at.reachable(run):
            for cause in causes:
                if cause.means(run):
                    at.broken("STOP_LOST", f"{cause.name} did not halt {run.name}")
            for gone in at.requests:
                if gone.answer in ("deleted", "404") and gone.sent > run.sent and gone.spec.deletes:
                    at.broken("STOP_LOST", f"{gone.name} deleted the chat, {run.name} goes on")
    for press in at.presses:
        found = next((r for r in at.requests if r.run_id == press.found), None)
        waits = press.task is not None and not press.task.done() and at.replicas[press.spec.through].reachable
        if waits and found is not None and found.ended:
            at.broken("RECEIPT_MISSED", f"{press.name} still waits for {found.name}, which has ended")
    for run in at.requests:
        waits = run.task is not None and not run.task.done() and run.execution is None and at.reachable(run)
        if waits and run.holder is not None and run.holder.working and at.reachable(run.holder):
            at.broken("SUPERSEDE_STUCK", f"{run.name} waits for {run.holder.name}, which goes on")


def at_the_end(at: Stepper) -> None:
    """When every run has ended: frames and the chat itself."""
    for run in at.requests:
        if run.execution is None or not at.up(run):
            continue
        closings = [e for e in run.events if isinstance(e, Closing)]
        if len(closings) != 1 or not isinstance(run.events[-1], Closing):
            at.broken("CLOSING_FRAMES", f"{run.name} said {run.events}")
        receipt = run.execution.receipt
        fits: tuple[type[Event], ...] = (Failed,)
        if receipt and receipt.outcome is Outcome.DONE:
            fits = (Done, Failed) if not receipt.saved else (Done,)
        elif receipt and run.fired not in (None, StopReason.SIGNAL_LOST, StopReason.TAKEN):
            fits = (Stopped, Failed) if receipt.outcome is Outcome.LOST else (Stopped,)
        if closings and not isinstance(closings[0], fits):
            at.broken("CLOSING_FRAMES", f"{run.name} ended as {receipt} and said {closings[0]}")
    _transcript(at)


def _transcript(at: Stepper) -> None:
    document = at.store.document(at.chat)
    entries = [(m["role"], m["run_id"], m["text"]) for m in document.messages]
    by_id = {r.run_id: r for r in at.requests}
    said = [(role, by_id[i].name, text) for role, i, text in entries]
    for n, (role, run_id, text) in enumerate(entries):
        run = by_id[run_id]
        expected = (run.message,) if role == "user" else ("", run.text)
        if role != ("user", "assistant")[n % 2] or text not in expected or (n % 2 and entries[n - 1][1] != run_id):
            at.broken("TRANSCRIPT", f"entry {n} of {said}")
    if len(entries) % 2:
        at.broken("TRANSCRIPT", f"an answer is missing in {said}")
    if len({(role, i) for role, i, _ in entries}) != len(entries):
        at.broken("TRANSCRIPT", f"a message stands twice in {said}")
    known = json.loads(document.snapshot) if document.snapshot else []
    if any(m["role"] != ("user", "assistant")[n % 2] for n, m in enumerate(known)):
        at.broken("TRANSCRIPT", f"the agent's history does not alternate: {known}")
    _kept(at, {i for _, i, _ in entries})


def _kept(at: Stepper, there: set[str]) -> None:
    """What was said to be saved is there; what was deleted is not."""
    deleted = [n for n, (what, _) in enumerate(at.store.done) if what == "delete"]
    for run in at.requests:
        if run.spec.deletes:
            continue
        later = [r for r in at.requests if r.spec.deletes and r.answer in ("deleted", "404") and r.sent > run.sent]
        if later and run.run_id in there:
            at.broken("DELETED_CHAT_COMES_BACK", f"{run.name}, though {later[0].name} was sent after it")
        receipt = run.execution.receipt if run.execution else None
        saves = [n for n, done in enumerate(at.store.done) if done == ("save", run.name)]
        by = [at.request(at.store.done[n][1]) for n in deleted if saves and n > saves[-1]]
        meant = any(d.sent > run.sent or d.answered_at > run.sent_at for d in by)
        told = receipt is not None and receipt.saved and receipt.outcome in (Outcome.DONE, Outcome.STOPPED)
        if told and receipt and receipt.reason is not StopReason.DELETED and run.run_id not in there and not meant:
            at.broken("MESSAGE_LOST", f"{run.name} was said to be saved")
