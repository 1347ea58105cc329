"""The Compose stack as a test sees it: a URL behind Nginx, containers, and the log of the fake Bedrock."""

from __future__ import annotations

import contextlib
import json
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from local.compose import REPLICAS
from tests.fake_bedrock import RunningFakeBedrock
from tests.stack import ROOT

__all__ = ["REPLICAS"]


def run(*command: str, seconds: float = 120) -> str:
    """The output of a command. Raises: AssertionError with it where the command fails."""
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=seconds, check=False)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def docker(*arguments: str) -> str:
    return run("docker", *arguments)


def make(target: str) -> str:
    """As a person would at the project's root; the model stays the fake."""
    return run("make", "--no-print-directory", target, "MODEL=fake-bedrock", seconds=180)


def log_of(service: str, *options: str) -> list[str]:
    """The lines that a service's container wrote."""
    return run("docker", "compose", "logs", "--no-log-prefix", "--no-color", *options, service).splitlines()


def access_log(since: str) -> list[dict[str, Any]]:
    """What Nginx says of each request since then (RFC 3339): every line of its log is one JSON object."""
    lines = (line.removeprefix("\x1b[2K") for line in log_of("nginx", "--since", since))
    return [json.loads(line) for line in lines if line.startswith("{")]


def now() -> str:
    """The time as `docker logs --since` takes it."""
    return f"{time.time():.3f}"


@dataclass(frozen=True)
class Door:
    """Where requests go in: Nginx, whichever replica answers."""

    url: str


def wait_until_healthy(*containers: str, seconds: float = 60) -> None:
    """Raises: TimeoutError."""
    deadline = time.monotonic() + seconds
    while any(docker("inspect", "-f", "{{.State.Health.Status}}", name).strip() != "healthy" for name in containers):
        if time.monotonic() > deadline:
            raise TimeoutError(f"not healthy: {containers}")
        time.sleep(0.1)  # polled because the engine tells by asking only


@contextlib.contextmanager
def following_fake_bedrock(directory: Path) -> Iterator[RunningFakeBedrock]:
    """The log of the fake Bedrock's container from now on."""
    directory.mkdir(parents=True, exist_ok=True)
    log_file = directory / "bedrock.jsonl"
    container = run("docker", "compose", "--profile", "fake-bedrock", "ps", "--quiet", "fake-bedrock").strip()
    with log_file.open("wb") as out:
        following = subprocess.Popen(["docker", "logs", "--follow", "--tail", "0", container], stdout=out)
        fake = RunningFakeBedrock("", None, following, log_file)
        try:
            yield fake
        finally:
            fake.end()
