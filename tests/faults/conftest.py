"""How many times each thing is broken, and at which random moments."""

from __future__ import annotations

import os
import random
from collections.abc import Callable

import pytest

FULL = bool(os.environ.get("FAULTS_FULL"))


@pytest.fixture(scope="session", autouse=True)
def _always(bytecode_kept: None) -> None:
    """Replicas start often here."""


@pytest.fixture(scope="session")
def times() -> Callable[[int, int], int]:
    """`times(few, many)`: the one in `make test`, the other in `make faults`."""
    return lambda few, many: many if FULL else few


@pytest.fixture
def rnd() -> random.Random:
    """Where random moments come from. The seed is shown where the test fails."""
    seed = int(os.environ.get("FAULTS_SEED", random.randrange(10**6)))
    print(f"FAULTS_SEED={seed}")
    return random.Random(seed)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the soak: it takes ten minutes, in which all others are done."""
    items.sort(key=lambda item: "test_soak" not in item.nodeid)
