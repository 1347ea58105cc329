"""How long the functions take to start, beside the bare imports of what they cannot do without: tests/cold_start."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests import cold_start
from tests.aws.conftest import FULL
from tests.cold_start import BAR, Start, take_turns
from tests.stack import Stack, free_port

ROUNDS = 15 if FULL else 5


@pytest.fixture
def environment(stack: Stack, layers: Sequence[Path]) -> dict[str, str]:
    return cold_start.environment(layers, stack.redis_url, stack.session_dir)


@pytest.mark.parametrize(
    ("needed", "ours", "told"),
    [
        (
            *cold_start.chat(),
            [
                Start(
                    "  until it serves: with the client of Bedrock, TLS and the bus",
                    ["-m", "haltline", "--ready-fd", "READY"],
                )
            ],
        ),
        (*cold_start.control(), []),
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
    for _ in range(3):  # on a busy machine it may take more of them
        take_turns(starts, ROUNDS, environment, tmp_path)
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
