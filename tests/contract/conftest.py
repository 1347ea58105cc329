"""Fixtures of the contract tests: clients, and a second stack of replicas with settings of their own."""

from __future__ import annotations

import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest
import redis.asyncio as redis

from tests.contract.client import http_client, new_chat, script
from tests.fake_bedrock import RunningFakeBedrock, running_fake_bedrock, settings_for
from tests.stack import Replica, Stack, running_stack


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "slow: waits for a timer of the product (leave out with -m 'not slow')")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the slow tests last: what they wait for has begun with the session and is over by then."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is not None)


@pytest.fixture(scope="session", autouse=True)
def _always(bytecode_kept: None) -> None:
    """Replicas start often here."""


@pytest.fixture
async def http() -> AsyncIterator[httpx.AsyncClient]:
    async with http_client() as client:
        yield client


@pytest.fixture
def one(stack: Stack) -> Replica:
    """The replica a test speaks to."""
    return stack.replicas[0]


@pytest.fixture
def other(stack: Stack) -> Replica:
    """The other replica of the same stack."""
    return stack.replicas[1]


@pytest.fixture
async def bus(stack: Stack) -> AsyncIterator[redis.Redis]:
    """The signal bus itself, for what may be seen and done by hand there."""
    client = redis.from_url(stack.redis_url, decode_responses=True)
    yield client
    await client.aclose()


NothingChanges = Callable[[], AbstractAsyncContextManager[None]]


@pytest.fixture
def nothing_changes(stack: Stack, http: httpx.AsyncClient, bus: redis.Redis) -> NothingChanges:
    """A block that leaves no chat, no stop and no file behind, changed or new."""

    async def state() -> dict[str, Any]:
        chats = await http.get(f"{stack.replicas[0].url}/api/v1/chats", params={"limit": 1})
        files = (p for p in stack.session_dir.rglob("*") if p.is_file())
        return {
            "chats": chats.json(),
            "stops": {key async for key in bus.scan_iter("stop:*", count=1000)},
            "files": {str(p): (p.stat().st_size, p.stat().st_mtime_ns) for p in files},
        }

    @asynccontextmanager
    async def block() -> AsyncIterator[None]:
        before = await state()
        yield
        assert await state() == before

    return block


@dataclass
class Variants:
    """Replicas over one more Valkey, each with settings of its own."""

    own_agent: Replica
    own_model: Replica
    no_agent: Replica
    patient: Replica
    bedrock: Replica
    stack: Stack
    fake_bedrock: RunningFakeBedrock


@pytest.fixture(scope="session")
def variants(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Variants]:
    directory = Path(tmp_path_factory.mktemp("variants"))
    agents = "tests.contract.agents"
    with running_fake_bedrock(directory / "bedrock") as fake, running_stack(directory, replicas=0) as stack:
        settings: dict[str, dict[str, str]] = {
            "own_agent": {"AGENT": f"{agents}:make"},
            "own_model": {"AGENT": f"{agents}:make_later", "MODEL_PROVIDER": f"{agents}:make_model"},
            "no_agent": {"AGENT": f"{agents}:make_something_else"},
            "patient": {"ON_DISCONNECT": "continue", "SHUTDOWN_GRACE": "1"},
            "bedrock": settings_for(fake.url, directory),
        }
        started: dict[str, Replica] = {}
        for name, env in settings.items():
            started[name] = stack.add_replica(**env)
            for earlier in stack.replicas[-2:-1]:  # two starting at a time: five at once starve each other
                earlier.wait_until_live(60)
        stack.replicas[-1].wait_until_live(60)
        yield Variants(**started, stack=stack, fake_bedrock=fake)


@dataclass
class QuietRun:
    """A run whose model is silent for 16 s: read by a thread while other tests go on."""

    lines: list[tuple[float, str]]
    thread: threading.Thread

    def result(self) -> list[tuple[float, str]]:
        """Every line of the stream, each with the seconds since the start."""
        self.thread.join(timeout=30)
        assert not self.thread.is_alive()
        return self.lines


@pytest.fixture(scope="session")
def quiet_run(request: pytest.FixtureRequest, variants: Variants) -> QuietRun | None:
    """None where no slow test is to run."""
    if not any(item.get_closest_marker("slow") for item in request.session.items):
        return None
    url = f"{variants.patient.url}/api/v1/chat/{new_chat('quiet')}"
    lines: list[tuple[float, str]] = []

    def read() -> None:
        message = script(chunks=["at last"], delay_ms=16_000)
        begun = time.monotonic()
        with (
            httpx.Client(timeout=30, trust_env=False) as client,
            client.stream("POST", url, json={"message": message}) as response,
        ):
            lines.extend((time.monotonic() - begun, line) for line in response.iter_lines())

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    return QuietRun(lines, thread)
