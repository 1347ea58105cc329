"""A replica is killed, told to end, or stalls, with live runs: no chat is lost, no stream is cut that need not be."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest

from tests.contract.client import (
    DONE,
    STOPPED,
    Turn,
    http_client,
    messages_of,
    new_chat,
    said,
    script,
    sending,
    stop_url,
    until,
)
from tests.faults.conftest import FULL
from tests.faults.replicas import PULSE_TTL, Fleet, connect, frozen, request
from tests.integration.test_launcher import launched
from tests.stack import Replica, running_stack

USABLE = 10.0  # seconds after which a chat of a replica that died must answer
HI = script(chunks=["Hello ", "again."], pace_ms=1)
ENDLESS = script(chunks=["on and on "], repeat=100_000, pace_ms=5)
SILENT = script(chunks=["never"], delay_ms=60_000)


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    with running_stack(Path(tmp_path_factory.mktemp("replicas")), replicas=0) as stack:
        yield Fleet(stack)


@pytest.fixture
async def http() -> AsyncIterator[httpx.AsyncClient]:
    async with http_client() as client:
        client.timeout = 60  # a replica that stands still says nothing
        yield client


def in_a_tool(name: str, mark: Path) -> str:
    return script(tool={"name": name, "input": {"mark": str(mark)}}, chunks=["worked"])


async def exists(mark: Path) -> None:
    async def there() -> bool:
        return mark.exists()

    await until(there, 20)


async def answered(http: httpx.AsyncClient, replica: Replica, chat: str, message: str, seconds: float) -> Turn:
    """The answer to a message that is sent again while the chat is busy."""
    deadline = time.monotonic() + seconds
    while True:
        async with sending(http, replica, chat, message) as turn:
            if turn.status == 200:
                return await turn.finish()
            await turn.finish()
        assert (turn.status, time.monotonic() < deadline) == (409, True), (turn.status, bytes(turn.raw))
        await asyncio.sleep(0.1)  # as a client that was refused does


# ---- a stall
@dataclass
class Stale:
    """A chat whose run was frozen and taken over by another replica's."""

    message: str
    turn: Turn
    heard: str = ""  # what was in the socket when the other run had begun

    @property
    def chat(self) -> str:
        return str(self.turn.response.url).rpartition("/")[2]


async def stall(
    fleet: Fleet, http: httpx.AsyncClient, rnd: random.Random, marks: Path, seconds: float, each: int
) -> None:
    """Freeze a replica for so long; 0 takes its pulse away instead. Its chats go on elsewhere, also when it wakes."""
    one, other = fleet.replicas(2)
    async with AsyncExitStack() as stack:
        stale: list[Stale] = []
        for n in range(each):
            mark = marks / f"{n}-{rnd.random()}"
            for message in (
                script(chunks=["stale "], repeat=100_000, pace_ms=3, number=n),
                script(chunks=["stale "], delay_ms=rnd.randint(300, 3000), repeat=100_000, pace_ms=3),
                script(chunks=["stale "], repeat=rnd.randint(20, 200), pace_ms=3),  # done soon after it woke
                script(tool={"name": "work_for_a_moment", "input": {"mark": str(mark)}}, chunks=["stale"]),
            ):
                turn = await stack.enter_async_context(sending(http, one, new_chat("stale"), message))
                stale.append(Stale(message, turn))
            await stale[-4].turn.first_text()
            await exists(mark)
        saved = [asyncio.create_task(until(lambda s=s: messages_of(http, other, s.chat))) for s in stale]
        await asyncio.gather(*saved)
        await asyncio.sleep(rnd.uniform(0, 0.05))  # the random moment
        reading = [asyncio.create_task(s.turn.finish(seconds + 30)) for s in stale]
        with frozen(one):
            if seconds:
                await asyncio.sleep(seconds)
            else:
                fleet.expire_pulse(one)
            fresh = script(chunks=["fresh "], repeat=40, pace_ms=rnd.randint(5, 20))
            takers = [asyncio.create_task(answered(http, other, s.chat, fresh, PULSE_TTL + 4)) for s in stale]

            async def all_taken() -> bool:
                live = (await http.get(f"{other.url}/health")).json()["live_runs"]
                return bool(live >= len(takers) or all(t.done() for t in takers))

            await until(all_taken, PULSE_TTL + 15)
            for s in stale:
                s.heard = s.turn.text
        answers = await asyncio.gather(*takers)
        await asyncio.gather(*reading)
    if seconds > PULSE_TTL:
        # What the one run was about to write when its replica was frozen goes out. Nothing else may.
        assert sum(len(s.turn.text) - len(s.heard) for s in stale) <= len("stale "), "said after it woke"

    async def quiet() -> bool:
        return (await http.get(f"{one.url}/health")).json()["live_runs"] == 0

    await until(quiet, 20)
    for s, answer in zip(stale, answers, strict=True):
        assert (answer.text, answer.closing) == ("fresh " * 40, [DONE])
        kept = await messages_of(http, one, s.chat)
        if s.turn.closing == [DONE]:  # it had been saved before its replica was frozen
            first = said(s.message, s.turn.text)
        else:
            [(event, data)] = s.turn.closing
            assert (event, data.startswith("[ERROR] The chat was taken by another run")) == ("error", True), data
            first = said(s.message, "", stopped=True)
        assert kept == first + said(fresh, "fresh " * 40)
        assert (await answered(http, one, s.chat, HI, 1)).closing == [DONE]


async def test_a_replica_that_stalled_ends_the_runs_whose_chats_were_taken_and_writes_nothing(
    fleet: Fleet,
    http: httpx.AsyncClient,
    rnd: random.Random,
    times: Callable[[int, int], int],
    tmp_path: Path,
) -> None:
    for _ in range(times(1, 6)):
        await stall(fleet, http, rnd, tmp_path, 0, times(1, 3))
    for _ in range(times(0, 2)):
        await stall(fleet, http, rnd, tmp_path, PULSE_TTL + 1, 3)


@pytest.mark.skipif(not FULL, reason="30 s: make faults")
async def test_a_replica_that_stalled_for_30_s_says_nothing_more_of_chats_that_were_taken(
    fleet: Fleet, http: httpx.AsyncClient, rnd: random.Random, tmp_path: Path
) -> None:
    await stall(fleet, http, rnd, tmp_path, 30, 3)


# ---- SIGKILL
@dataclass
class Talk:
    """One chat with a replica that will be killed, and what its client was told.

    `turns` are those it saw the end of; `broken` is the message whose answer broke off, `heard` what came of it.
    """

    chat: str = field(default_factory=lambda: new_chat("killed"))
    turns: list[tuple[str, str, list[tuple[str, str]]]] = field(default_factory=list)
    broken: str = ""
    heard: str = ""
    begun: asyncio.Event = field(default_factory=asyncio.Event)
    verdict: str = ""  # what the ?wait for the last one said

    async def ask(self, http: httpx.AsyncClient, replica: Replica, message: str, then: Any = None) -> bool:
        """Send and read on to the end; `then` when text has come. Whether the answer came to an end."""
        turn = None
        try:
            async with sending(http, replica, self.chat, message) as turn:
                assert turn.status == 200, bytes(turn.raw)
                if then:
                    await then(turn)
                await turn.finish(30)
        except httpx.HTTPError:
            self.broken, self.heard = message, turn.text if turn else ""
            return False
        self.turns.append((message, turn.text, turn.closing))
        return True

    async def until_broken(self, http: httpx.AsyncClient, replica: Replica, message: str, begun: Any) -> None:
        """One long answer."""

        async def note(turn: Turn) -> None:
            await begun(turn)
            self.begun.set()

        assert not await self.ask(http, replica, message, note)

    async def again_and_again(self, http: httpx.AsyncClient, replica: Replica, rnd: random.Random) -> None:
        """Short answers, so that the kill comes while one is being begun, said or saved."""
        n = 0
        while await self.ask(http, replica, script(chunks=[f"{n} "] * rnd.randint(1, 5), pace_ms=1, number=n)):
            n += 1
            if n == 3:
                self.begun.set()

    async def stopped_again_and_again(
        self, http: httpx.AsyncClient, replica: Replica, other: Replica, rnd: random.Random
    ) -> None:
        """Answers that are stopped through the other replica, so that the kill comes while one is stopping."""
        waiting: asyncio.Task[httpx.Response] | None = None

        async def stop_it(turn: Turn) -> None:
            nonlocal waiting
            await turn.first_text()
            await asyncio.sleep(rnd.uniform(0, 0.01))
            url = stop_url(other, self.chat)
            waiting = asyncio.create_task(http.post(url, params={"wait": "10", "run_id": turn.run_id}))

        n, going = 0, True
        while going:
            waiting, self.verdict = None, ""
            message = script(chunks=["on and on "], repeat=10_000, pace_ms=2, number=n)
            going = await self.ask(http, replica, message, stop_it)
            if waiting is not None:
                answer = await waiting
                assert answer.status_code == 200, answer.text
                self.verdict = answer.json()["status"]
                if going:
                    assert (self.turns[-1][2], self.verdict) == ([STOPPED], "stopped")
            n += 1
            if n == 2:
                self.begun.set()


def talks_of(
    http: httpx.AsyncClient, one: Replica, other: Replica, rnd: random.Random, marks: Path, each: int
) -> list[tuple[Talk, asyncio.Task[None]]]:
    """`each` chats of every phase that the kill may come in."""

    async def first_text(turn: Turn) -> None:
        await turn.first_text()

    async def saved(turn: Turn) -> None:
        async def there() -> bool:
            return bool(await messages_of(http, other, str(turn.response.url).rpartition("/")[2]))

        await until(there, 20)

    def tool(name: str) -> Callable[[Talk], Any]:
        mark = marks / f"{name}-{rnd.random()}"
        return lambda talk: talk.until_broken(http, one, in_a_tool(name, mark), lambda _: exists(mark))

    kinds: list[Callable[[Talk], Any]] = []
    for _ in range(each):
        kinds += [
            lambda talk: talk.until_broken(http, one, SILENT, saved),
            lambda talk: talk.until_broken(http, one, ENDLESS, first_text),
            tool("work_async"),
            tool("work_in_a_thread"),
            lambda talk: talk.again_and_again(http, one, rnd),
            lambda talk: talk.again_and_again(http, one, rnd),
            lambda talk: talk.stopped_again_and_again(http, one, other, rnd),
            lambda talk: talk.stopped_again_and_again(http, one, other, rnd),
        ]
    return [(talk, asyncio.create_task(kind(talk))) for kind in kinds for talk in [Talk()]]


def check_transcript(kept: list[dict[str, Any]], talk: Talk) -> None:
    """All that the client saw the end of lies in the chat; of the answer that broke off, its message."""
    whole = [
        line for message, text, closing in talk.turns for line in said(message, text, stopped=closing == [STOPPED])
    ]
    assert kept[: len(whole)] == whole
    rest = kept[len(whole) :]
    if not rest:
        assert not talk.heard, "the model had been called, so the message had been saved"
        return
    assert rest[0] == {"role": "user", "text": talk.broken}
    # It may have been saved whole, and the kill came before the closing frame.
    assert [line["role"] for line in rest] in (["user"], ["user", "assistant"])


async def test_a_killed_replica_leaves_every_chat_whole_and_usable(
    fleet: Fleet,
    http: httpx.AsyncClient,
    rnd: random.Random,
    times: Callable[[int, int], int],
    tmp_path: Path,
) -> None:
    kills = times(0, 5)
    for n in range(kills or 1):
        one, other = fleet.replicas(2)
        talks = talks_of(http, one, other, rnd, tmp_path, times(1, 3))
        async with asyncio.timeout(30):
            for talk, task in talks:
                begun = asyncio.create_task(talk.begun.wait())
                await asyncio.wait({begun, task}, return_when=asyncio.FIRST_COMPLETED)
                assert not task.done() or task.result() is not None
        await asyncio.sleep(rnd.uniform(0, 0.1))  # the random moment
        one.process.kill()
        killed = time.monotonic()
        one.process.wait()
        if kills:
            if n < kills - 1:
                fleet.start()  # as the launcher does, at once
        else:
            fleet.expire_pulse(one)
        await asyncio.gather(*(task for _, task in talks))

        async def next_turn(talk: Talk, other: Replica = other, killed: float = killed) -> None:
            kept = await messages_of(http, other, talk.chat)
            check_transcript(kept, talk)
            if talk.verdict and talk.broken:
                # Its stop was sent when text had come, so the run was live then.
                assert talk.verdict in ("stopped", "unconfirmed")
                if talk.verdict == "stopped":
                    assert kept[-1].get("stopped"), kept
            turn = await answered(http, other, talk.chat, HI, USABLE - (time.monotonic() - killed))
            assert (turn.text, turn.closing) == ("Hello again.", [DONE])
            assert time.monotonic() - killed < USABLE
            told = await messages_of(http, other, talk.chat)
            if kept and kept[-1]["role"] == "user":  # nobody closed that turn
                kept = [*kept, {"role": "assistant", "text": "", "stopped": True}]
            assert told == kept + said(HI, "Hello again.")

        await asyncio.gather(*(next_turn(talk) for talk, _ in talks))


# ---- SIGTERM
@dataclass
class SlowReader:
    """A client that takes so many bytes a second of an answer that comes faster, and all that is left at the end."""

    replica: Replica
    rate: int
    raw: bytearray = field(default_factory=bytearray)
    hurry: asyncio.Event = field(default_factory=asyncio.Event)  # the other end has gone: nothing is waited for now

    async def read(self) -> None:
        loop = asyncio.get_running_loop()
        message = json.dumps({"message": script(chunks=["x" * 2000], repeat=100_000, pace_ms=1)})
        with connect(self.replica, receive_buffer=16_384) as client:
            await loop.sock_sendall(client, request(self.replica, new_chat("slow"), message.encode()))
            while data := await loop.sock_recv(client, 8192):
                self.raw += data
                with suppress(TimeoutError):
                    await asyncio.wait_for(self.hurry.wait(), len(data) / self.rate)

    async def held_up(self) -> None:
        async def some() -> bool:
            return len(self.raw) > 20_000

        await until(some, 20)

    @property
    def closing(self) -> list[str]:
        """Every frame with an `event:` line. The text has none of these letters."""
        return [line.removeprefix("event: ") for line in self.raw.decode().splitlines() if line.startswith("event: ")]


async def trickle(replica: Replica, *, body: bool) -> None:
    """A request that never comes whole, a byte now and then; until the server closes."""
    loop = asyncio.get_running_loop()
    whole = request(replica, new_chat("half"), b'{"message": "', length=100_000)
    with connect(replica) as client:
        await loop.sock_sendall(client, whole if body else whole[:60])
        reading = asyncio.create_task(loop.sock_recv(client, 4096))
        with suppress(OSError):
            while not (await asyncio.wait({reading}, timeout=0.05))[0]:
                await loop.sock_sendall(client, b"x")
        with suppress(OSError):
            await reading


@pytest.mark.skipif(not FULL, reason="4 s: make faults")
async def test_fifty_streams_of_a_replica_that_is_told_to_end_have_their_closing_frames(
    fleet: Fleet,
    http: httpx.AsyncClient,
    times: Callable[[int, int], int],
    tmp_path: Path,
) -> None:
    for n in range(times(1, 3)):
        [one] = fleet.replicas(1)
        marks = [tmp_path / f"{n}-{i}" for i in range(10)]
        slow = [SlowReader(one, rate=times(400_000, 100_000)) for _ in range(10)]
        async with AsyncExitStack() as stack:

            async def ask(message: str, one: Replica = one, stack: AsyncExitStack = stack) -> Turn:
                turn = await stack.enter_async_context(sending(http, one, new_chat("ending"), message))
                assert turn.status == 200, bytes(turn.raw)
                return turn

            reading = [asyncio.create_task(reader.read()) for reader in slow]
            silent = [await ask(SILENT) for _ in range(10)]
            tools = [await ask(in_a_tool(("work_async", "work_in_a_thread")[i % 2], marks[i])) for i in range(10)]
            fast = [await ask(script(chunks=["on "], repeat=100_000, pace_ms=10)) for _ in range(10)]
            halves = [asyncio.create_task(trickle(one, body=i % 2 == 0)) for i in range(4)]
            await asyncio.gather(*map(exists, marks), *(r.held_up() for r in slow), *(t.first_text() for t in fast))
            # These end by themselves within the grace.
            soon = script(chunks=["soon "], repeat=5, pace_ms=50)
            short = await asyncio.gather(*(ask(soon) for _ in range(10)))
            one.process.terminate()
            told = time.monotonic()
            halted = [*silent, *tools, *fast]
            finishing = asyncio.gather(*(t.finish(fleet.GRACE + 15) for t in [*halted, *short]))
            await asyncio.wait({finishing}, timeout=0.2)
            second = (signal.SIGTERM, signal.SIGINT)[n % 2]  # from whoever is impatient: the latter ends the grace
            one.process.send_signal(second)
            await finishing
            status = await asyncio.to_thread(one.process.wait, 30)
            took = time.monotonic() - told
            for reader in slow:
                reader.hurry.set()
            await asyncio.gather(*reading, *halves)
        if second == signal.SIGTERM:
            assert [t.closing for t in short] == [[DONE]] * 10
        assert [len(t.closing) for t in short] == [1] * 10
        assert {event for t in halted for event, data in t.closing if data.startswith("[ERROR] ")} == {"error"}
        assert [len(t.closing) for t in halted] == [1] * 30
        assert [r.closing for r in slow] == [["error"]] * 10
        assert all(reader.raw.endswith(b"\r\n0\r\n\r\n") for reader in slow), "cut off"
        assert status == 0
        assert took < fleet.GRACE + 6, f"{took:.1f} s: the last of it is cut 5 s after the grace"


# ---- a signal while it starts
def until_it_has_begun(pid: int) -> None:
    """Wait until the program has taken SIGINT from Python, and imports: before that nothing of ours is asked."""
    deadline = time.monotonic() + 20
    while "pydantic_core" not in Path(f"/proc/{pid}/maps").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.001)  # polled: nothing tells of it


@pytest.mark.skipif(not FULL, reason="12 s: make faults")
def test_a_replica_that_is_told_to_end_while_it_starts_says_nothing_of_it(fleet: Fleet, rnd: random.Random) -> None:
    for n in range(8):
        number = (signal.SIGINT, signal.SIGTERM)[n % 2]
        replica = fleet.start()
        until_it_has_begun(replica.process.pid)
        time.sleep(rnd.uniform(0, 2.5))  # the random moment
        replica.process.send_signal(number)
        assert replica.process.wait(20) in (0, -number)  # 0 where it served by then
        assert "Traceback" not in replica.log.read_text()


@pytest.mark.skipif(not FULL, reason="20 s of CPU: make faults")
def test_a_launcher_that_is_told_to_end_while_it_starts_leaves_nothing(rnd: random.Random, tmp_path: Path) -> None:
    for n in range(8):
        number = (signal.SIGINT, signal.SIGTERM)[n % 2]
        (directory := tmp_path / str(n)).mkdir()
        with launched(directory, "--model", "scripted", "--replicas", "2") as launcher:
            until_it_has_begun(launcher.process.pid)
            time.sleep(rnd.uniform(0, 4))  # the random moment
            os.killpg(launcher.process.pid, number)
            assert launcher.ended() in (0, -number)  # 0 where it had begun anything
            assert launcher.left() == []
            assert "Traceback" not in launcher.errors.read_text()


@pytest.mark.skipif(not FULL, reason="10 s: make faults")
def test_ctrl_c_leaves_no_replica_that_is_frozen(tmp_path: Path) -> None:
    with launched(tmp_path, "--model", "scripted", "--replicas", "3", SHUTDOWN_GRACE="0") as launcher:
        launcher.url()
        os.kill(launcher.pid("replica2"), signal.SIGSTOP)
        launcher.interrupt()
        launcher.expect(r"^replica2 did not end within 10 s; killed$")
        assert launcher.ended() == 0
        assert launcher.left() == []
