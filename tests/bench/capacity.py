"""What a token costs one replica on one core, and how many chats at 20 tokens a second it carries.

Beside it the same agent without Haltline (`bare_strands`), on the same core, under the same load. A chat is carried
where of all its model's chunks 99 in 100 reach the client within 100 ms. The replica has the first core to itself, the
model provider and the clients have the others.
"""

from __future__ import annotations

import contextlib
import math
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import uvloop

from tests.bench.figures import Figure
from tests.bench.load import PACE, Load, provider
from tests.stack import ROOT, Replica, clean_environment, free_port, running_stack
from tests.stops.figures import percentile

LATE = 100.0  # ms
WINDOW = 2.5  # seconds that a number of chats is looked at


@dataclass
class Carried:
    """What was found of one server."""

    cpu_us: float = 0.0  # a token, while it is not busy
    busy_us: float = 0.0  # a token, at the most chats it carries
    busy: float = 0.0  # the share of its core that takes
    chats: int = 0
    steps: dict[int, float] = field(default_factory=dict)  # chats to the 99th percentile of lateness in ms


def measure(quick: bool) -> list[Figure]:
    """Both figures."""
    cores = os.sched_getaffinity(0)
    with tempfile.TemporaryDirectory() as directory:
        if len(cores) > 1:
            os.sched_setaffinity(0, cores - {min(cores)})  # Valkey inherits it
        with running_stack(Path(directory), replicas=0) as stack:
            ours = uvloop.run(_carried(["-m", "haltline"], Path(directory), quick, REDIS_URL=stack.redis_url))
        bare = uvloop.run(_carried(["-m", "tests.bench.bare_strands"], Path(directory), quick))
    beside = {"bare Strands": bare.cpu_us}
    figures = [Figure("CPU a token, 60 chats at 20 tokens/s, one replica on one core", "µs", ours.cpu_us, beside)]
    if quick:
        return figures
    return [
        *figures,
        Figure("CPU a token, at the most chats", "µs", ours.busy_us, {"bare Strands": bare.busy_us}),
        Figure(
            "most chats at 20 tokens/s with p99 lateness <= 100 ms, one replica on one core",
            "chats",
            ours.chats,
            {"bare Strands": bare.chats},
            ">= 1.5 x bare",
            ours.chats >= 1.5 * bare.chats,
            why=" and ".join(map(_told, (("Haltline", ours), ("bare Strands", bare)))),
            more={"p99 lateness in ms by chats": {"Haltline": ours.steps, "bare Strands": bare.steps}},
        ),
    ]


def _told(whose: tuple[str, Carried]) -> str:
    """How near the next number of chats came."""
    name, found = whose
    chats, late = min((n, late) for n, late in found.steps.items() if n > found.chats)
    return f"{name} was {late:.0f} ms late at {chats} chats"


async def _carried(command: list[str], directory: Path, quick: bool, **env: str) -> Carried:
    found = Carried()
    async with provider() as upstream:
        with _server(command, directory, upstream, **env) as (pid, port):
            load = Load(port)
            await load.grow(60)
            await load.heard(1)
            before = _cpu(pid)
            _, sent = await load.heard(1.0 if quick else 2.0)
            found.cpu_us = (_cpu(pid) - before) / sent * 1e6
            if not quick:
                await _find_most(load, found, pid)
            load.leave()
            return found


async def _find_most(load: Load, found: Carried, pid: int) -> None:
    """More and more chats, a tenth at a time in the end, until they are too many, twice in a row."""
    chats, misses = int(PACE * 1e6 / found.cpu_us), 0
    while misses < 2:
        if await _carries(load, chats, found, pid):
            misses = 0
            chats = int(chats * min(2.0, max(1.1, 0.95 / found.busy)))
        else:
            misses += 1
            chats = int(chats * 1.1)


async def _carries(load: Load, chats: int, found: Carried, pid: int) -> bool:
    try:
        await load.grow(chats)
    except TimeoutError:  # it does not even let them in
        found.steps[chats] = math.inf
        return False
    for _ in range(5):  # until what starting them held up is made good
        late, _ = await load.heard(0.5)
        if percentile(late, 0.99) <= LATE:
            break
    before = _cpu(pid)
    late, sent = await load.heard(WINDOW)
    found.steps[chats] = percentile(late, 0.99)
    if found.steps[chats] > LATE or len(late) < 0.95 * sent:
        return False
    found.chats, used = chats, _cpu(pid) - before
    found.busy, found.busy_us = used / WINDOW, used / sent * 1e6
    return True


@contextlib.contextmanager
def _server(command: list[str], directory: Path, upstream: int, **env: str) -> Iterator[tuple[int, int]]:
    """A server on a core of its own; its pid and its port."""
    port = free_port()
    settings = {
        "PORT": str(port),
        "SESSION_DIR": str(directory / "sessions"),
        "PYTHONPATH": str(ROOT),
        "MODEL_PROVIDER": "bedrock",
        "BEDROCK_MODEL_ID": "fake.model",
        "LOG_LEVEL": "WARNING",
        "AWS_REGION": "us-west-2",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_ENDPOINT_URL_BEDROCK_RUNTIME": f"http://127.0.0.1:{upstream}",
    }
    core = min(os.sched_getaffinity(0) ^ set(range(os.cpu_count() or 1)), default=0)
    log = directory / f"{port}.log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, *command],
            env={**clean_environment(), **settings, **env},
            cwd=directory,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
        )
    server = Replica(command[-1], port, log, process)
    try:
        server.wait_until_live()
        with contextlib.suppress(OSError):  # a machine with one core
            os.sched_setaffinity(process.pid, {core})
        yield process.pid, port
    finally:
        server.end(signal.SIGKILL)


def _cpu(pid: int) -> float:
    """Seconds of CPU time that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
