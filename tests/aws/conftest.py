"""One bus, one replica that people stop runs through, and chat functions over both."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import httpx2 as httpx
import pytest

from local.runtime_api.environment import Environment
from tests import cold_start
from tests.aws.chat_function import ADAPTER, Started
from tests.fake_bedrock import RunningFakeBedrock, running_fake_bedrock
from tests.stack import Replica, Stack, running_stack

FULL = bool(os.environ.get("LAMBDA_FULL"))


@pytest.fixture(scope="session", autouse=True)
def _always(bytecode_kept: None) -> None:
    """As layers bring theirs."""


@pytest.fixture(scope="session")
def adapter() -> None:
    """The AWS Lambda Web Adapter, or a reason to leave a test out; on CI there is none."""
    if not ADAPTER.exists():
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(
            "the AWS Lambda Web Adapter is not built: `make lambda-adapter` does it where cargo and crates.io are there"
        )


@pytest.fixture(scope="session")
def layers() -> list[Path]:
    """What Lambda finds in /opt/python: the layers that `make lambda` has built, else what they are made of."""
    return cold_start.layers()


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with running_stack(Path(tmp_path_factory.mktemp("stack")), replicas=1) as running:
        yield running


@pytest.fixture(scope="session")
def control(stack: Stack) -> Replica:
    """Another process, through which runs are stopped and chats are read."""
    return stack.replicas[0]


@pytest.fixture
def http() -> Iterator[httpx.Client]:
    with httpx.Client(timeout=20, trust_env=False) as client:
        yield client


@pytest.fixture(scope="session")
def functions(
    adapter: None, stack: Stack, layers: list[Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Started]:
    """Environments of the function, started as they are asked for."""
    with Started(stack, layers, Path(tmp_path_factory.mktemp("functions"))) as started:
        yield started


@pytest.fixture
def function(functions: Started) -> Environment:
    """The function with the scripted model."""
    return functions.get()


@pytest.fixture(scope="module")
def bedrock(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningFakeBedrock]:
    with running_fake_bedrock(Path(tmp_path_factory.mktemp("bedrock"))) as running:
        yield running
