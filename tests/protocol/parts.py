"""What takes part in an interleaving: replicas, clients' requests, agents, and the store of chats."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

from redis.asyncio import Redis

from haltline.authentication import NoAuthentication
from haltline.chat_index import ChatIndex
from haltline.chats import ChatDocument, VersionConflict
from haltline.events import Closing, Event
from haltline.execution import Execution
from haltline.limits import Limits
from haltline.metrics import Metrics
from haltline.redis_bus import RedisBus
from haltline.resources import Resources
from haltline.runner import Deps, Runner
from haltline.runs import StopReason
from haltline.settings import Settings
from tests.integration.steps import StepAgents, StepTurn
from tests.protocol.scenarios import Chat, Stop
from tests.protocol.wire import Link, connection_class

if TYPE_CHECKING:
    from tests.protocol.stepper import Stepper

WHO: ContextVar[str] = ContextVar("WHO", default="harness")  # for whom code runs: a request, or a replica's watch
METRICS = Metrics()
SETTINGS = Settings(_env_file=None)


@dataclass(eq=False)
class Step:
    """Something that can happen next. `go` makes it happen."""

    who: str
    kind: str  # command, reply, push, store, sleep, background, client, agent, fault
    what: str
    go: Callable[[], None]
    replica: Replica | None = None
    link: Link | None = None
    unsent: bool = False  # of a replica that stands still


@dataclass(eq=False)
class Push:
    """Something on its way to a subscription."""

    link: Link
    data: bytes
    said: str


class Replica:
    """A replica of the product: a bus, a runner. `state`: up, stalled, dead."""

    def __init__(self, stepper: Stepper, index: int, loss_grace: float | None) -> None:
        self._stepper, self.index, self.state, self.net = stepper, index, "up", True
        self.links: list[Link] = []
        self.connections: list[Any] = []
        self.pushes: deque[Push] = deque()
        self.bus = RedisBus(
            f"redis://127.0.0.1:{stepper.port}/0",
            f"replica{index}",
            stop_ttl=3600,
            poll_interval=1.0,
            run_timeout=1e9,
            loss_grace=loss_grace,
            max_age=1e9,
        )
        listener: Redis = self.bus.watch._listener
        for client in (self.bus.redis, listener):
            pool = client.connection_pool
            pool.connection_class = connection_class(self, pool.connection_class)
        index_of = ChatIndex(self.bus.redis, self.bus, cast("Any", stepper.store))
        store, limits = cast("Any", stepper.store), Limits(self.bus.redis, self.bus)
        deps = Deps(self.bus, store, index_of, cast("Any", stepper.agents), METRICS, limits, 1e9)
        self.runner = Runner(deps)
        self.resources = Resources(
            SETTINGS, self.bus, store, index_of, METRICS, NoAuthentication(), limits, cast("Any", self.runner)
        )

    @property
    def up(self) -> bool:
        return self.state == "up"

    @property
    def reachable(self) -> bool:
        return self.up and self.net

    @property
    def listeners(self) -> list[Link]:
        """The connections on which it hears pushes."""
        return [link for link in self.links if link.listens and link.alive and not link.closed]

    @property
    def watches(self) -> str:
        """What its own tasks are called."""
        return f"W{self.index}"

    async def dial(self) -> Link:
        """A new connection to Valkey."""
        if not self.up:
            await self._stepper.gates.hold("command", "dials", self)
        if not self.net or self._stepper.gates.shut:
            raise ConnectionRefusedError("no way to Valkey")
        link = Link(self._stepper, self)
        self.links.append(link)
        return link


@dataclass(eq=False)
class Request:
    """A message or a deletion, from its client's sending to the end of its run."""

    index: int
    spec: Chat
    run_id: str
    sent: int = -1  # ms of true time
    task: asyncio.Task[None] | None = None
    execution: Execution | None = None
    agents: StepAgents | None = None
    answer: str = ""  # 200, 409, 503, deleted, 404
    events: list[Event] = field(default_factory=list)
    closing: Closing | None = None  # the closing frame, once its client has read it
    closed_at: int = -1  # the step at which it was read
    sent_at: int = -1  # the step at which it was sent
    answered_at: int = -1  # the step at which its answer was read
    begun: bool = False  # BEGIN gave it the chat
    ended: bool = False  # END was said, and the chat was its own
    outcome: str = ""  # what END was told of it
    holder: Request | None = None  # whom BEGIN found
    fired: StopReason | None = None
    finished: bool = False  # its agent has come to its own end
    killed: bool = False  # with its replica
    checked: bool = False  # its answer was judged
    saved: bool = False  # it has written the chat

    @property
    def name(self) -> str:
        return f"R{self.index}"

    @property
    def message(self) -> str:
        return f"message {self.index}"

    @property
    def text(self) -> str:
        return f"answer {self.index}"

    @property
    def working(self) -> bool:
        """Its agent works: it was called, was not told to halt, has not ended."""
        return (
            self.agents is not None
            and self.agents.started.is_set()
            and not self.finished
            and self.fired is None
            and self.execution is not None
            and not self.execution.task.done()
        )

    @property
    def holds(self) -> bool:
        """It holds the chat as far as anyone was told, and was not told to halt."""
        return self.begun and not self.ended and self.fired is None and not self.finished and not self.spec.deletes


@dataclass(eq=False)
class Press:
    """A stop, from its client's sending to its answer."""

    index: int
    spec: Stop
    sent: int = -1
    task: asyncio.Task[None] | None = None
    answer: str = ""  # the status, `set` by hand, 503
    told: str = ""  # the run id in the answer
    stored: bool = False
    forgotten: bool = False  # by Redis, before anyone was told that it was stored
    found: str = ""  # the run id that STOP named, of a live run or an ended one
    live: list[Request] = field(default_factory=list)  # runs that it covers, live when STOP was run
    killed: bool = False
    checked: bool = False

    @property
    def name(self) -> str:
        return f"S{self.index}"

    def means(self, request: Request) -> bool:
        """Whether it was sent for this run."""
        return self.sent > request.sent >= 0 and self.spec.names in (None, request.index)


class Agents:
    """Where runs get their agent: it says one thing, then goes on until the stepper ends it."""

    def __init__(self, stepper: Stepper) -> None:
        self._stepper = stepper

    async def make(self) -> StepTurn:
        request = self._stepper.request(WHO.get())
        request.agents = StepAgents()
        request.agents.say(request.text)
        return await request.agents.make()


class Store:
    """Chats at rest, in memory: every verb is a step, a write is refused where the version is not the stored one."""

    def __init__(self, stepper: Stepper, *, conditional: bool = True) -> None:
        self._stepper, self._conditional = stepper, conditional
        self.text: str | None = None
        self.done: list[tuple[str, str]] = []  # what was written, and for whom

    async def load(self, chat_id: str) -> ChatDocument:
        await self._stepper.gates.hold("store", "reads the chat")
        return self.document(chat_id)

    async def save(self, document: ChatDocument) -> None:
        await self._stepper.gates.hold("store", "writes the chat")
        self._check(document)
        document.version = document.next_version()
        self.text = document.model_dump_json()
        self._wrote("save")

    async def delete(self, document: ChatDocument) -> None:
        await self._stepper.gates.hold("store", "deletes the chat")
        self._check(document)
        self.text = None
        self._wrote("delete")

    async def scan(self, namespace: str | None) -> list[tuple[str, int, float]]:
        return []

    def document(self, chat_id: str) -> ChatDocument:
        """What lies there."""
        return ChatDocument.model_validate_json(self.text) if self.text else ChatDocument(chat_id=chat_id)

    def _check(self, document: ChatDocument) -> None:
        if self._conditional and self.document(document.chat_id).version != document.version:
            self._stepper.note("       ... refused")
            raise VersionConflict(document.chat_id)

    def _wrote(self, what: str) -> None:
        self.done.append((what, WHO.get()))
        self._stepper.wrote(what)
