"""The image: small, quick, without root and without the tools that built it."""

from __future__ import annotations

import json
import statistics
import time

import httpx2 as httpx
import pytest

from tests.e2e.stack import REPLICAS, Door, docker
from tests.stops.figures import figure

START = 3.0  # seconds in which a replica must serve


def in_image(*command: str) -> str:
    return docker("run", "--rm", "--network", "none", "haltline", *command)


def test_it_runs_without_root_and_holds_no_build_tool() -> None:
    tools = "pip pip3 uv gcc cc make git curl"
    found = in_image("sh", "-c", f"id -u; for tool in {tools}; do command -v $tool; done; true").split()
    assert found == ["1000"]
    for module in ("pip", "ensurepip", "hatchling"):
        code = f"import importlib.util as u; print(u.find_spec('{module}'))"
        for python in ("python", "/usr/local/bin/python3"):
            if module == "ensurepip" and in_image(python, "-c", "import os; print(os.__file__)").startswith(
                "/usr/lib/"
            ):
                continue  # of Debian's Python, which stands in for the public image where no registry is reached
            assert in_image(python, "-c", code).strip() == "None", (python, module)


def test_the_package_is_installed_and_nothing_of_this_machine_came_along() -> None:
    code = "import haltline, importlib.metadata as m; print(haltline.__file__, m.version('haltline'))"
    where, version = in_image("python", "-c", code).split()
    assert where.startswith("/opt/haltline/lib/")
    assert version == "0.1.0"
    assert in_image("sh", "-c", "ls -A /app /data/sessions /build 2>/dev/null || true").split() == [
        "/app:",
        "/data/sessions:",
    ]
    local = docker("run", "--rm", "--network", "none", "haltline-local", "find", "/app", "-type", "f").splitlines()
    assert local
    assert all(name.startswith("/app/local/") and name.endswith(".py") for name in local)


def test_any_user_may_run_it() -> None:
    """`make start` runs it as whoever calls, whose credentials are mounted at its home."""
    mine = docker("run", "--rm", "--network", "none", "--user", "1234:1234", "haltline", "sh", "-c", "cd ~ && pwd")
    assert mine.strip() == "/home/haltline"


def test_its_size_is_told() -> None:
    size, base = (int(docker("image", "inspect", "-f", "{{.Size}}", name)) for name in ("haltline", "python:3.13-slim"))
    figure("image size", f"{size / 1e6:.0f} MB, {(size - base) / 1e6:.0f} MB of it above python:3.13-slim")
    assert size - base < 200e6


def test_a_replica_serves_within_three_seconds(door: Door) -> None:
    seconds, bare = [], []
    for _ in range(3):
        at = time.monotonic()
        in_image("true")
        bare.append(time.monotonic() - at)
        at = time.monotonic()
        settings = ("AUTH_ALLOW_PUBLIC=1", "MODEL_PROVIDER=scripted", "REDIS_URL=redis://redis:6379/0")
        env = [f"--env={setting}" for setting in settings]
        name = docker("run", "--detach", "--rm", "--init", "--network", "haltline_default", *env, "haltline").strip()
        try:
            address = docker("inspect", "-f", "{{.NetworkSettings.Networks.haltline_default.IPAddress}}", name).strip()
            while not _lives(f"http://{address}:8000"):
                assert time.monotonic() - at < 60
                time.sleep(0.02)  # polled: what is measured is when it answers
            seconds.append(time.monotonic() - at)
            assert httpx.get(f"http://{address}:8000/health", timeout=5).json()["status"] == "healthy"
        finally:
            docker("stop", name)
    figure(
        "a replica's start, docker run to its first answer",
        f"{', '.join(f'{s:.2f}' for s in seconds)} s; a container that does nothing: {statistics.median(bare):.2f} s",
    )
    assert min(seconds) < START


def _lives(url: str) -> bool:
    try:
        return httpx.get(f"{url}/live", timeout=1).status_code == 200
    except httpx.TransportError:
        return False


@pytest.mark.parametrize("name", REPLICAS)
def test_replicas_run_as_a_user_without_root_under_an_init(name: str) -> None:
    found = json.loads(docker("inspect", name))[0]
    assert found["Config"]["User"].split(":")[0] not in ("", "0")
    assert found["HostConfig"]["Init"] is True
    assert found["HostConfig"]["RestartPolicy"]["Name"] == "unless-stopped"
    assert found["Config"]["StopTimeout"] > 20  # SHUTDOWN_GRACE and a moment for closing frames and writes
    mounts = {mount["Destination"]: mount for mount in found["Mounts"]}
    assert mounts["/home/haltline/.aws"]["RW"] is False
