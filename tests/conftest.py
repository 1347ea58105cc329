"""Fixtures that more than one kind of test uses."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.stack import Stack, running_stack


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Two replicas with the scripted model over one real Valkey. Shared: a test uses chat ids of its own."""
    with running_stack(Path(tmp_path_factory.mktemp("stack"))) as running:
        yield running
