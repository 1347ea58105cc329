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


@dataclass
class Start:
    """One way to start, and its times in milliseconds."""

    name: str
    arguments: list[str]
    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)

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
        process.send_signal(signal.SIGKILL)
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        assert process.stderr
        with process.stderr as stderr:
            assert told, stderr.read().decode()
        self.wall.append(wall * 1000)
        self.cpu.append((used.ru_utime + used.ru_stime) * 1000)


def importing(*modules: str, path: str = "") -> list[str]:
    """Arguments of an interpreter that imports `modules`, also those in `path`, and is ready."""
    return ["-c", f"import os, sys; sys.path.insert(0, {path!r}); import {', '.join(modules)}; os.write(READY, b'1')"]


CHAT = ["strands", "fastapi", "uvicorn", "redis.asyncio", "boto3"]
CONTROL = ["fastapi", "mangum", "aws_lambda_powertools", "redis.asyncio"]
PAIRS = {
    # Until it serves: the app is made, the bus is connected, the adapter's next question is answered.
    "chat": (["-m", "haltline", "--ready-fd", "READY"], CHAT),
    # What Lambda's runtime imports before it asks for an event.
    "control": (importing("app", path=str(ROOT / "functions/control")), CONTROL),
}


@pytest.mark.parametrize("name", PAIRS)
def test_a_function_starts_hardly_later_than_what_it_needs(
    name: str, stack: Stack, layers: Sequence[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments, modules = PAIRS[name]
    starts = [Start(f"import {', '.join(modules)}", importing(*modules)), Start(f"the {name} function", arguments)]
    environment = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": ":".join(map(str, layers)),
        "REDIS_URL": stack.redis_url,
        "SESSION_DIR": str(stack.session_dir),
        "AWS_LAMBDA_FUNCTION_NAME": name,
        "AWS_REGION": "us-west-2",
        "AWS_ACCESS_KEY_ID": "ASIAEXAMPLE",
        "AWS_SECRET_ACCESS_KEY": "example",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AUTH": "apigateway",
        "MODEL_PROVIDER": "bedrock",
        **{key: os.environ[key] for key in ("PYTHONPYCACHEPREFIX",) if key in os.environ},
    }
    for round_ in range(ROUNDS + 1):
        for start in starts:
            start.once(environment, tmp_path)
            if round_ == 0:  # this one may have compiled
                start.wall.clear()
                start.cpu.clear()
    bare, ours = starts
    ratio = median(ours.cpu) / median(bare.cpu)
    with capsys.disabled():
        print(f"\ncold start, medians of {ROUNDS}, in ms{'CPU':>52}{'wall':>8}")
        for start in starts:
            print(f"  {start.name:80}{median(start.cpu):6.0f}{median(start.wall):8.0f}")
        print(f"  {'ratio':80}{ratio:6.2f}{median(ours.wall) / median(bare.wall):8.2f}")
    assert ratio <= BAR, _heaviest(arguments, modules, environment, tmp_path)


def _heaviest(arguments: list[str], modules: list[str], environment: dict[str, str], cwd: Path) -> str:
    """What the function imports beyond `modules`, the slowest first."""
    extra = _imported(arguments, environment, cwd)
    for module in _imported(importing(*modules), environment, cwd):
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
