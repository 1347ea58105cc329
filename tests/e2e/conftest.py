"""The running Compose stack. `make e2e` starts it with the fake Bedrock and then these tests."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest

from tests.contract.client import http_client, new_chat
from tests.e2e.stack import REPLICAS, Door, following_fake_bedrock, run, wait_until_healthy
from tests.fake_bedrock import RunningFakeBedrock
from tests.stops.conftest import pytest_terminal_summary

__all__ = ["pytest_terminal_summary"]


@pytest.fixture(scope="session")
def door() -> Door:
    """Nginx of the running stack."""
    wait_until_healthy(*REPLICAS)
    return Door(f"http://{run('docker', 'compose', 'port', 'nginx', '80').strip()}")


@pytest.fixture
async def http() -> AsyncIterator[httpx.AsyncClient]:
    async with http_client() as client:
        yield client


@pytest.fixture(scope="module")
def bedrock(door: Door, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningFakeBedrock]:
    """The fake Bedrock that the replicas call, by its log, until its container ends."""
    with following_fake_bedrock(Path(tmp_path_factory.mktemp("bedrock"))) as fake:
        # The log is followed once a line of ours comes back.
        chat_id = new_chat("e2e-following")
        deadline = time.monotonic() + 30
        while not fake.log():
            answer = httpx.post(f"{door.url}/api/v1/chat/{chat_id}", json={"message": "Hello"}, timeout=20)
            assert answer.status_code == 200, answer.text
            assert time.monotonic() < deadline, "the fake Bedrock is not called: start the stack by `make e2e`"
        httpx.delete(f"{door.url}/api/v1/chat/{chat_id}", timeout=20)
        yield fake


@pytest.fixture
async def chats(door: Door, http: httpx.AsyncClient) -> AsyncIterator[Any]:
    """Makes chat ids; what is said under them is deleted after the test."""
    made: list[str] = []

    def new(about: str) -> str:
        made.append(new_chat(f"e2e-{about}"))
        return made[-1]

    yield new
    for chat_id in made:
        answer = await http.delete(f"{door.url}/api/v1/chat/{chat_id}")
        assert answer.status_code in (200, 404), answer.text
