"""How long the functions take to start, beside the bare imports of what they cannot do without.

Interpreters are fresh and find their bytecode compiled. The two of a pair take turns, so that a busy machine weighs on
both. The bar is on CPU time: an init on Lambda does hardly anything but compute, and here others may be at work.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import pytest

from tests.aws.conftest import FULL
from tests.stack import ROOT, Stack, free_port

ROUNDS = 15 if FULL else 5
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


CHAT = ["strands", "fastapi", "uvicorn", "redis.asyncio", "boto3"]
CONTROL = ["fastapi", "mangum", "aws_lambda_powertools", "redis.asyncio"]

# All that `python -m haltline` imports, in its way, and the app, without the client of a model's provider.
CHAT_APP = f"""
import gc, os
gc.disable()
os.environ["MODEL_PROVIDER"] = "scripted"
import haltline.serve, haltline.bedrock
haltline.serve.create_app()
{READY}
"""
CHAT_SERVES = ["-m", "haltline", "--ready-fd", "READY"]
# What Lambda's runtime imports before it asks for an event.
CONTROL_APP = f"import os, sys; sys.path.insert(0, {str(ROOT / 'functions/control')!r}); import app; {READY}"


def bare(*modules: str) -> Start:
    return Start(f"import {', '.join(modules)}", ["-c", f"import os, {', '.join(modules)}; {READY}"])


@pytest.fixture
def environment(stack: Stack, layers: Sequence[Path]) -> dict[str, str]:
    """Of a function, as far as it matters here."""
    return {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": ":".join(map(str, layers)),
        "REDIS_URL": stack.redis_url,
        "SESSION_DIR": str(stack.session_dir),
        "AWS_LAMBDA_FUNCTION_NAME": "haltline",
        "AWS_REGION": "us-west-2",
        "AWS_ACCESS_KEY_ID": "ASIAEXAMPLE",
        "AWS_SECRET_ACCESS_KEY": "example",
        "AUTH": "apigateway",
        "LOGURU_AUTOINIT": "0",  # as both functions set it
        **{key: os.environ[key] for key in ("PYTHONPYCACHEPREFIX",) if key in os.environ},
    }


@pytest.mark.parametrize(
    ("needed", "ours", "told"),
    [
        (
            bare(*CHAT),
            Start("the chat function: all imported, the app made", ["-c", CHAT_APP]),
            [Start("  until it serves: with the client of Bedrock, TLS and the bus", CHAT_SERVES)],
        ),
        (bare(*CONTROL), Start("the control function: all imported, the handler made", ["-c", CONTROL_APP]), []),
    ],
    ids=["chat", "control"],
)
def test_a_function_starts_hardly_later_than_what_it_needs(
    needed: Start,
    ours: Start,
    told: list[Start],
    environment: dict[str, str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    starts = [needed, ours, *told]
    for start in starts:
        start.once(environment, tmp_path)  # it may have compiled something
        start.times.clear()
    for _ in range(3):  # on a busy machine it may take more of them
        for _ in range(ROUNDS):
            for start in starts:
                start.once(environment, tmp_path)
        if ours.beside(needed) <= BAR:
            break
    with capsys.disabled():
        print(f"\n{f'cold start, medians of {len(ours.times)}, in ms':80}   CPU    wall   CPU ratio")
        for start in starts:
            print(f"  {start.name:78}{start.cpu:6.0f}{start.wall:8.0f}{start.beside(needed):12.2f}")
    assert ours.beside(needed) <= BAR, _heaviest(ours, needed, environment, tmp_path)


def _heaviest(ours: Start, needed: Start, environment: dict[str, str], cwd: Path) -> str:
    """What is imported beyond what is needed, the slowest first."""
    extra = _imported(ours.arguments, environment, cwd)
    for module in _imported(needed.arguments, environment, cwd):
        extra.pop(module, None)
    slowest = sorted(extra.items(), key=lambda item: -item[1])[:25]
    return "\n".join(f"{ms:8.1f} ms {module}" for module, ms in slowest)


def _imported(arguments: list[str], environment: dict[str, str], cwd: Path) -> dict[str, float]:
    """Milliseconds of each import by itself."""
    reading, ready = os.pipe()
    with (cwd / "imports").open("w+b") as err:
        process = subprocess.Popen(
            [
                f"{sys.base_prefix}/bin/python3",
                "-X",
                "importtime",
                *(a.replace("READY", str(ready)) for a in arguments),
            ],
            env={**environment, "PORT": str(free_port())},
            cwd=cwd,
            pass_fds=[ready],
            stdout=subprocess.DEVNULL,
            stderr=err,
        )
        os.close(ready)
        os.read(reading, 1)
        os.close(reading)
        process.kill()
        process.wait()
        err.seek(0)
        lines = [line.decode().split("|") for line in err if line.startswith(b"import time:") and b"self" not in line]
    return {name.strip(): int(own.removeprefix("import time:")) / 1000 for own, _, name in lines}
