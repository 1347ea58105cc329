"""How long the functions take to start, beside the bare imports of what they cannot do without.

Interpreters are fresh and find their bytecode compiled. Those that are compared take turns, so that a busy machine
weighs on all. The bar is on CPU time: an init on Lambda does hardly anything but compute, and here others may be at
work.
"""

from __future__ import annotations

import os
import signal
import site
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from tests.stack import ROOT, free_port

BAR = 1.15
READY = "os.write(READY, b'1')"


@dataclass
class Start:
    """One way to start, and its times in milliseconds."""

    name: str
    arguments: list[str]
    times: list[tuple[float, float]] = field(default_factory=list)  # CPU, wall

    @property
    def cpu(self) -> float:
        return median(cpu for cpu, _ in self.times)

    @property
    def wall(self) -> float:
        return median(wall for _, wall in self.times)

    def beside(self, other: Start) -> float:
        """How much longer it takes, CPU to CPU: the median over the rounds, for a machine changes its speed."""
        return median(mine / its for (mine, _), (its, _) in zip(self.times, other.times, strict=True))

    def once(self, environment: dict[str, str], cwd: Path) -> None:
        """Start it, until it writes to READY; then it is killed."""
        reading, ready = os.pipe()
        begun = time.perf_counter()
        process = subprocess.Popen(
            [f"{sys.base_prefix}/bin/python3", *(argument.replace("READY", str(ready)) for argument in self.arguments)],
            env={**environment, "PORT": str(free_port())},
            cwd=cwd,
            pass_fds=[ready],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        os.close(ready)
        told = os.read(reading, 1)
        wall = time.perf_counter() - begun
        os.close(reading)
        os.kill(process.pid, signal.SIGKILL)  # Popen might reap it, and its times with it
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        assert process.stderr
        with process.stderr as stderr:
            assert told, stderr.read().decode()
        self.times.append(((used.ru_utime + used.ru_stime) * 1000, wall * 1000))


# All that `python -m haltline` imports, in its way, and the app, without the client of a model's provider.
_CHAT_APP = f"""
import gc, os
gc.disable()
os.environ["MODEL_PROVIDER"] = "scripted"
import haltline.serve, haltline.bedrock
haltline.serve.create_app()
{READY}
"""
# What Lambda's runtime imports before it asks for an event.
_CONTROL_APP = f"import os, sys; sys.path.insert(0, {str(ROOT / 'functions/control')!r}); import app; {READY}"


def _bare(*modules: str) -> Start:
    return Start(f"import {', '.join(modules)}", ["-c", f"import os, {', '.join(modules)}; {READY}"])


def chat() -> tuple[Start, Start]:
    """What the chat function cannot do without, and the function."""
    needed = _bare("strands", "fastapi", "uvicorn", "redis.asyncio", "boto3")
    return needed, Start("the chat function: all imported, the app made", ["-c", _CHAT_APP])


def control() -> tuple[Start, Start]:
    """The same of the control function."""
    needed = _bare("fastapi", "mangum", "aws_lambda_powertools", "redis.asyncio")
    return needed, Start("the control function: all imported, the handler made", ["-c", _CONTROL_APP])


def layers() -> list[Path]:
    """What Lambda finds in /opt/python: the layers that `make lambda` has built, else what they are made of."""
    if built := os.environ.get("LAMBDA_LAYERS"):
        return [ROOT / path for path in built.split(":")]
    return [ROOT / "layers" / "haltline", *map(Path, site.getsitepackages())]


def environment(layers: Iterable[Path], redis_url: str, session_dir: Path) -> dict[str, str]:
    """Of a function, as far as it matters to its start."""
    return {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": ":".join(map(str, layers)),
        "REDIS_URL": redis_url,
        "SESSION_DIR": str(session_dir),
        "AWS_LAMBDA_FUNCTION_NAME": "haltline",
        "AWS_REGION": "us-west-2",
        "AWS_ACCESS_KEY_ID": "ASIAEXAMPLE",
        "AWS_SECRET_ACCESS_KEY": "example",
        "AUTH": "apigateway",
        "LOGURU_AUTOINIT": "0",  # as both functions set it
        **{key: os.environ[key] for key in ("PYTHONPYCACHEPREFIX",) if key in os.environ},
    }


def take_turns(starts: Sequence[Start], rounds: int, environment: dict[str, str], cwd: Path) -> None:
    """Start each so often, after a first time that does not count: it may have compiled something."""
    if not starts[0].times:
        with ThreadPoolExecutor(os.cpu_count()) as several:
            list(several.map(lambda start: start.once(environment, cwd), starts))
        for start in starts:
            start.times.clear()
    for _ in range(rounds):
        for start in starts:
            start.once(environment, cwd)
