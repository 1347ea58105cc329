"""Fixtures that more than one kind of test uses."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.stack import Stack, running_stack

# Those that take longest, so that no worker begins one of them when the others have nothing left to do.
_FIRST = (
    "test_soak",
    *("test_page", "test_chats_s3", "test_outage", "test_control_function", "test_sign_in", "test_chats"),
    *("test_own_settings", "test_launcher", "test_bedrock", "test_providers", "test_model", "test_settings"),
    *("test_announcements", "test_phases", "test_connections", "test_limits", "test_principals", "test_secrets"),
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the longest files."""
    place = {name: n for n, name in enumerate(_FIRST)}
    items.sort(key=lambda item: place.get(item.path.stem, len(place)))


@pytest.fixture(scope="session")
def bytecode_kept(request: pytest.FixtureRequest) -> Iterator[None]:
    """Let interpreters keep compiled modules where this machine keeps none: each start would compile them all anew."""
    with pytest.MonkeyPatch.context() as patch:
        if sys.dont_write_bytecode and request.config.pluginmanager.hasplugin("cacheprovider"):
            patch.delenv("PYTHONDONTWRITEBYTECODE", raising=False)
            patch.setenv("PYTHONPYCACHEPREFIX", str(request.config.cache.mkdir("bytecode")))
        yield


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Two replicas with the scripted model over one real Valkey. Shared: a test uses chat ids of its own."""
    with running_stack(Path(tmp_path_factory.mktemp("stack"))) as running:
        yield running
