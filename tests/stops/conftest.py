"""Fake Bedrock servers, how many rounds are run, and the table at the end."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.fake_bedrock import RunningFakeBedrock, running_fake_bedrock
from tests.integration.conftest import valkey_url
from tests.stops.figures import FIGURES

__all__ = ["valkey_url"]


@pytest.fixture(scope="session")
def rounds() -> int:
    """1 in `make test`, 20 in `make stops`: every count of the suite is a multiple of it."""
    return 20 if os.environ.get("STOPS_FULL") else 1


@pytest.fixture(scope="session")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningFakeBedrock]:
    with running_fake_bedrock(Path(tmp_path_factory.mktemp("bedrock"))) as fake:
        yield fake


@pytest.fixture(scope="session")
def tls(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningFakeBedrock]:
    with running_fake_bedrock(Path(tmp_path_factory.mktemp("bedrock-tls")), tls=True) as fake:
        yield fake


@pytest.fixture
def aws(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Lead the Bedrock client to a fake, as a user would: by botocore's own variables."""

    def lead(fake: RunningFakeBedrock, attempts: int = 5) -> None:
        monkeypatch.setenv("AWS_ENDPOINT_URL_BEDROCK_RUNTIME", fake.url)
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
        monkeypatch.setenv("AWS_MAX_ATTEMPTS", str(attempts))
        if fake.cert:
            monkeypatch.setenv("AWS_CA_BUNDLE", str(fake.cert))
        else:
            monkeypatch.delenv("AWS_CA_BUNDLE", raising=False)

    return lead


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if FIGURES:
        terminalreporter.section("stops")
        for line in FIGURES:
            terminalreporter.write_line(line)
