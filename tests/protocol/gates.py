"""What is held between a replica and the world: commands, replies, pushes, the store, the watch's waits."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from haltline import chat_index, redis_scripts
from tests.protocol.clock import SCRIPTS
from tests.protocol.parts import WHO, Push, Replica, Step
from tests.protocol.wire import Link, push_bytes, words_of

if TYPE_CHECKING:
    from tests.protocol.stepper import Stepper

_FREE = {"HELLO", "CLIENT", "SELECT", "PING", "SCRIPT", "INFO"}  # commands that are no steps
_LIST = {  # nor is what the list of chats is told
    hashlib.sha1(text.encode()).hexdigest()
    for text in (chat_index._PUT, chat_index._REMOVE, chat_index._PAGE, chat_index._REBUILD)
}
LOOK, LOOK_FOR_RECEIPT, SETTLED = "looks", "looks for the receipt", "has given the others time"


class Gates:
    """Every step that the product waits for. `open`: everything passes by itself."""

    def __init__(self, stepper: Stepper) -> None:
        self._at = stepper
        self.held: list[Step] = []
        self.open = self.shut = False
        self._scripts = {hashlib.sha1(getattr(redis_scripts, n).encode()).hexdigest(): n for n in SCRIPTS}

    def steps(self) -> list[Step]:
        """All that the product can do next."""
        found = [s for s in self.held if self.can(s)]
        for replica in self._at.replicas:
            if replica.pushes and replica.up:
                said = f"gets {replica.pushes[0].said}"
                found.append(Step(f"P{replica.index}", "push", said, self._deliver(replica)))
        return found

    def can(self, step: Step) -> bool:
        """Whether a held step can be taken now."""
        replica, looks = step.replica, self._at.variant.looks
        if step.what == SETTLED and not self._all_are_back():
            return False
        if (step.what == LOOK and not looks) or (step.what == LOOK_FOR_RECEIPT and not looks and not self._at.skipped):
            return False
        if replica is None or replica.up:
            return True
        # What a process had sent before it stood still goes on its way.
        return step.kind == "command" and replica.state == "stalled" and not step.unsent and step.link is not None

    def _all_are_back(self) -> bool:
        """A bus settles for longer than any replica that sees it needs to subscribe and to put back what it knows."""
        back = all(r.bus.watch._standing.is_set() for r in self._at.replicas if r.reachable)
        works = ("command", "reply", "sleep")
        return back and not any(
            s.who[0] == "W" and s.kind in works and s.what != SETTLED and s.replica and s.replica.reachable
            for s in self.held
        )

    # ---- waits
    async def hold(self, kind: str, what: str, replica: Replica | None = None) -> None:
        """Wait until the step is taken."""
        if self.shut:
            raise asyncio.CancelledError
        who = WHO.get()
        go: asyncio.Future[None] = self._at.loop.create_future()
        step = Step(who, kind, what, lambda: None if go.done() else go.set_result(None))
        step.replica = replica or self._at.replica_of(who)
        self.held.append(step)
        try:
            await go
        finally:
            if step in self.held:
                self.held.remove(step)

    async def sleep(self, seconds: float) -> None:
        """In place of asyncio.sleep in the loops of the watch and of what is asked until it is answered."""
        task = asyncio.current_task()
        loop = getattr(task.get_coro() if task else None, "__name__", "")
        kind, what = {
            "_listen": ("sleep", "subscribes again"),
            "asking": ("sleep", "asks again"),
            "_keep_beating": ("background", "pulses"),
            "_keep_claiming": ("sleep", "claims again"),
            "_settle": ("sleep", SETTLED),
            "_poll": ("background", LOOK),
        }[loop]
        await self.hold(kind, what)

    async def wait(self, futures: set[asyncio.Future[Any]]) -> None:
        """In place of asyncio.wait where a receipt is waited for: the time until the next look is a step."""
        again = asyncio.ensure_future(self.hold("background", LOOK_FOR_RECEIPT))
        try:
            await asyncio.wait({*futures, again}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            again.cancel()

    # ---- commands and their replies
    def written(self, link: Link, data: bytes) -> None:
        """A command has left a replica."""
        words, who, replica = words_of(data), WHO.get(), link.replica
        free = words[0].upper() in _FREE or (words[0] == "EVALSHA" and words[1] in _LIST)
        if self.open or (free and replica.up):
            self._execute(link, data, words, who, hold=False)
            return

        def go() -> None:
            self._execute(link, data, words, who, hold=True)

        said = f"reaches Redis: {self._said(words)}"
        self.held.append(Step(who, "command", said, go, replica, link, unsent=not replica.up))

    def _execute(self, link: Link, data: bytes, words: list[str], who: str, *, hold: bool) -> None:
        """Let Valkey have a command. Its reply is held, or handed in at once."""
        if words[0] == "SUBSCRIBE":
            link.wire.subscribe(data)
            link.listens = True
            self._collect()
        else:
            raw, answer = self._info() if words[0] == "INFO" else link.wire.ask(data)
            if words[0] == "EVALSHA":
                if (name := self._scripts.get(words[1])) and not isinstance(answer, Exception):
                    self._at.ran(who, name, words[6:], [_text(a) for a in answer])
                self._collect()
            if not hold:
                link.hand_in(raw)
            elif not link.closed:
                said = f"gets the reply of {self._said(words)}: {_short(answer)}"
                self.held.append(Step(who, "reply", said, lambda: link.hand_in(raw), link.replica, link))
        while link.replica.pushes and not hold:
            self._deliver(link.replica)()

    def _info(self) -> tuple[bytes, str]:
        told = f"master_replid:{self._at.faults.server}\r\n"
        return b"$%d\r\n%s\r\n" % (len(told), told.encode()), told

    def _collect(self) -> None:
        """Fetch what was pushed."""
        for replica in self._at.replicas:
            for link, message in [(k, m) for k in replica.listeners for m in k.wire.pushed()]:
                kind = message[0].decode()
                if kind == "message" and not self._at.variant.push:
                    continue
                told = json.loads(message[2]) if kind == "message" else {}
                said = "a stop" if "stop" in told else "a receipt" if "ended" in told else kind
                replica.pushes.append(Push(link, push_bytes(message), f"push: {said}"))

    def _deliver(self, replica: Replica) -> Callable[[], None]:
        def go() -> None:
            push = replica.pushes.popleft()
            push.link.hand_in(push.data)

        return go

    def _said(self, words: list[str]) -> str:
        match words[0]:
            case "EVALSHA":
                return self._scripts.get(words[1], "another script")
            case "MGET":
                return "look"
            case "SET":
                return "pulse"
            case "GET":
                return "read of the record" if words[1].startswith("run:") else "read of a pulse"
        return words[0]

    # ---- connections break
    def cut(self, link: Link, *, told: bool = True) -> None:
        """Replies are lost; of the commands under way some had got there. `told`: the client's next read ends."""
        if not link.alive:
            return
        for step in [s for s in self.held if s.link is link and s.kind == "command" and not s.unsent]:
            self.held.remove(step)
            if self._at.random.random() < 0.5:
                self._at.note(f"       {step.who} {step.what}, and nobody reads the reply")
                step.go()
        self.held = [s for s in self.held if s.link is not link]
        link.cut(told=told)


def _text(part: Any) -> str:
    return part.decode() if isinstance(part, bytes) else str(part)


def _short(answer: Any) -> str:
    first = answer[0] if isinstance(answer, list) and answer and isinstance(answer[0], bytes) else answer
    return _text(first)[:60]
