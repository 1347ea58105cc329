"""Child processes that are started again when they die, and that never outlive the launcher."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import time
from asyncio.subprocess import DEVNULL, PIPE, STDOUT, Process
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from local.errors import CannotStart

STEADY = 10.0  # seconds a process has to live before its death counts as the first one again
WRONG_SETTING = 2  # exit status of the package
LONGEST_PAUSE = 10.0  # seconds between two starts of a process that keeps dying


def say(line: str) -> None:
    """One line of progress for the person at the terminal, who may have closed it."""
    try:
        print(line, flush=True)
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class Family:
    """One process group for all children, apart from the terminal's, so that Ctrl-C reaches the launcher alone.

    Its leader is a shell that waits for the other end of a pipe to close and then kills the whole group. The launcher
    holds that end: however it dies, even by SIGKILL, the kernel closes it. Holds on Linux and macOS alike.
    """

    def __init__(self, leader: Process) -> None:
        self._leader = leader
        self.group = leader.pid

    @classmethod
    async def found(cls) -> Family:
        """Start the leader."""
        # Children in the background may write to the terminal even where it is set to stop them (stty tostop).
        signal.signal(signal.SIGTTOU, signal.SIG_IGN)
        return cls(
            await asyncio.create_subprocess_exec(
                *("/bin/sh", "-c", "read -r _; kill -9 0"), stdin=PIPE, stdout=DEVNULL, stderr=DEVNULL, process_group=0
            )
        )

    async def kill(self) -> None:
        """SIGKILL whoever is left, at once."""
        if self._leader.stdin:
            self._leader.stdin.close()
        await self._leader.wait()


@dataclass
class Child:
    """One process of the family.

    It is ready when it has written to the file descriptor that `--ready-fd` names or, where there is `answers`, when
    that says so. What it prints goes to `log`, or to the terminal without one.
    """

    name: str
    ready: str  # what to say of it then
    family: Family
    command: Sequence[str]
    env: Mapping[str, str] | None = None
    pass_fds: Sequence[int] = ()
    log: Path | None = None
    answers: Callable[[], Awaitable[bool]] | None = None
    process: Process | None = field(default=None, init=False)

    async def start(self) -> float:
        """Start it and wait until it is ready. Returns the seconds that took.

        Raises: CannotStart when it ends first.
        """
        began = time.monotonic()
        if self.answers:
            self.process = await self._spawn(self.command, self.pass_fds)
            await self._until_it_answers(self.process, self.answers)
        else:
            await self._start_and_read_the_pipe()
        return time.monotonic() - began

    async def keep_alive(self) -> None:
        """Start it again whenever it ends, at once at first and then after growing pauses, until cancelled."""
        pause = 0.0
        while self.process:
            began = time.monotonic()
            status = await self.process.wait()
            if time.monotonic() - began > STEADY:
                pause = 0.0
            say(f"{self.name} {_how(status)}; starting it again" + (f" in {pause:g} s" if pause else ""))
            await asyncio.sleep(pause)
            pause = min(max(0.5, pause * 2), LONGEST_PAUSE)
            with contextlib.suppress(CannotStart, OSError):
                seconds = await self.start()
                say(f"{self.name} {self.ready} again (pid {self.pid}, {seconds:.1f} s)")

    async def end(self, patience: float) -> None:
        """SIGTERM, and SIGKILL after `patience` seconds. Returns when it has ended."""
        if not self.process:
            return
        with contextlib.suppress(ProcessLookupError):
            self.process.terminate()
        try:
            await asyncio.wait_for(self.process.wait(), patience)
        except TimeoutError:
            say(f"{self.name} did not end within {patience:g} s; killed")
            with contextlib.suppress(ProcessLookupError):
                self.process.kill()
            await self.process.wait()

    @property
    def pid(self) -> int | None:
        """Of the latest start."""
        return self.process.pid if self.process else None

    def _ended_early(self, status: int) -> CannotStart:
        if status == WRONG_SETTING and not self.log:
            return CannotStart("", status)  # it has said itself which
        place = f"; see {self.log}" if self.log else ""
        return CannotStart(f"{self.name} {_how(status)} while it started{place}")

    async def _spawn(self, command: Sequence[str], pass_fds: Sequence[int]) -> Process:
        with contextlib.ExitStack() as stack:
            out = stack.enter_context(self.log.open("ab")) if self.log else None
            return await asyncio.create_subprocess_exec(
                *command,
                env=self.env,
                pass_fds=pass_fds,
                stdin=DEVNULL,
                stdout=out,
                stderr=STDOUT if out else None,
                process_group=self.family.group,
            )

    async def _start_and_read_the_pipe(self) -> None:
        reading, writing = os.pipe()
        try:
            self.process = await self._spawn([*self.command, "--ready-fd", str(writing)], [*self.pass_fds, writing])
        except BaseException:
            os.close(reading)
            raise
        finally:
            os.close(writing)  # the child's copy is the last one: its death reads as the end of the pipe
        stream = asyncio.StreamReader()
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(stream), os.fdopen(reading, "rb")
        )
        try:
            if not await stream.read(1):
                raise self._ended_early(await self.process.wait())
        finally:
            transport.close()

    async def _until_it_answers(self, process: Process, answers: Callable[[], Awaitable[bool]]) -> None:
        while process.returncode is None:
            if await answers():
                return
            await asyncio.sleep(0.01)  # a foreign server gives no event to wait for
        raise self._ended_early(process.returncode)


def _how(status: int) -> str:
    return f"was killed by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"
