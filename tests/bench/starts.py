"""How long starts take.

- the two functions for Lambda, in ms of CPU time, beside the bare imports of what each cannot do without: see
  tests/cold_start. What they import is the development environment, not a layer.
- `python -m local` with three replicas, in seconds on the clock from its spawn to the first GET /health that says
  healthy, beside a fresh interpreter that imports what a replica is made of and no more; only told.
"""

from __future__ import annotations

import http.client
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from statistics import median

from local.model_server import find_model
from tests import cold_start
from tests.bench.figures import Figure
from tests.cold_start import BAR, Start, take_turns
from tests.stack import ROOT, clean_environment, free_port

PATIENCE = 60  # seconds until a start counts as failed


def measure(quick: bool) -> list[Figure]:
    pairs = {"chat": cold_start.chat(), "control": cold_start.control()}
    models = ["scripted", *(["local"] if find_model() and not quick else [])]
    seconds: dict[str, list[float]] = {model: [] for model in models}
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        bus = f"redis://127.0.0.1:{free_port()}"  # a function connects to none before it is asked something
        function = cold_start.environment(cold_start.layers(), bus, directory / "sessions")
        for n in range(1 if quick else 2):
            take_turns([start for pair in pairs.values() for start in pair], 1 if quick else 2, function, directory)
            for model in models:
                seconds[model].append(_serves_after(model, directory / f"{model}{n}"))
    return [
        *(_function(name, *pair) for name, pair in pairs.items()),
        *(_local(model, seconds[model], pairs["chat"][0]) for model in models),
    ]


def _function(name: str, needed: Start, ours: Start) -> Figure:
    ratio = ours.beside(needed)
    return Figure(
        f"import of the {name} function, CPU",
        "ms",
        ours.cpu,
        {"bare imports": needed.cpu},
        bar=f"<= {BAR} times the bare imports",
        met=ratio <= BAR,
        more={"times": ratio, "wall_ms": ours.wall, "bare": needed.name, "bare_wall_ms": needed.wall},
    )


def _local(model: str, seconds: list[float], bare: Start) -> Figure:
    name = f"start of three replicas, {model} model"
    return Figure(name, "s", median(seconds), {"bare imports": bare.wall / 1000}, more={"all": seconds})


def _serves_after(model: str, directory: Path) -> float:
    """Seconds from the spawn of `python -m local` to its first healthy answer. Raises: RuntimeError with its log."""
    directory.mkdir()
    port, log = free_port(), directory / "log"
    command = [sys.executable, "-m", "local", "--replicas", "3", "--port", str(port), "--model", model]
    environment = {**clean_environment(), "PYTHONPATH": str(ROOT), "SESSION_DIR": str(directory / "sessions")}
    with log.open("wb") as out:
        began = time.monotonic()
        process = subprocess.Popen(
            command, env=environment, cwd=directory, stdin=subprocess.DEVNULL, stdout=out, stderr=out
        )
        try:
            while process.poll() is None and time.monotonic() - began < PATIENCE:
                if _healthy(port):
                    return time.monotonic() - began
                time.sleep(0.01)
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(PATIENCE)
    raise RuntimeError(f"`python -m local` does not serve:\n{log.read_text()[-4000:]}")


def _healthy(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    try:
        with suppress(OSError, http.client.HTTPException):
            connection.request("GET", "/health")
            return connection.getresponse().status == 200
        return False
    finally:
        connection.close()
