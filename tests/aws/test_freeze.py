"""Lambda freezes a function between invocations, for as long as it likes; its connections may be dead when it thaws."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx2 as httpx
import pytest
import redis

from local.runtime_api.environment import Environment
from tests.aws import events
from tests.aws.bus_line import BusLine
from tests.aws.chat_function import chat_function, closing_of, has_said, stopped_through
from tests.aws.conftest import FULL
from tests.contract.client import DONE, LONG, STOPPED, new_chat, script
from tests.stack import Replica, Stack

SECONDS = 30 if FULL else 3
Befall = Callable[[Stack, BusLine], None]


@pytest.fixture(scope="module")
def line(stack: Stack) -> Iterator[BusLine]:
    with BusLine(stack.valkey.port) as line:
        yield line


@pytest.fixture(scope="module")
def function(
    adapter: None, stack: Stack, line: BusLine, layers: list[Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Environment]:
    """Its bus is at the other end of the line. It hardly ever polls, so that only a push can stop a run in time."""
    log = Path(tmp_path_factory.mktemp("frozen")) / "log"
    with chat_function(stack, layers, log, REDIS_URL=line.url, STOP_POLL_INTERVAL="60") as running:
        yield running


def nothing(stack: Stack, line: BusLine) -> None:
    """The connections outlive the freeze."""


def closed(stack: Stack, line: BusLine) -> None:
    with redis.Redis.from_url(stack.redis_url) as bus:
        killed = [bus.execute_command("CLIENT", "KILL", "TYPE", kind) for kind in ("pubsub", "normal")]
    assert all(killed), "the function has a subscription and a connection in its pool"


def dead(stack: Stack, line: BusLine) -> None:
    assert line.go_dead() >= 2, "the function has a subscription and a connection in its pool"


@pytest.mark.parametrize("befall", [nothing, closed, dead])
def test_a_function_that_was_frozen_streams_and_stops_as_ever(
    befall: Befall, function: Environment, line: BusLine, stack: Stack, control: Replica, http: httpx.Client
) -> None:
    before = function.invoke(events.rest(new_chat(), {"message": script(chunks=["Hello"])})).finish()
    assert closing_of(before) == [DONE]
    function.freeze()
    befall(stack, line)
    time.sleep(SECONDS)  # what is tested is that time passes
    chat = new_chat()
    invocation = function.invoke(events.rest(chat, {"message": LONG})).until(has_said("tick "))
    assert invocation.ending is None
    assert stopped_through(http, control, chat)["status"] == "stopped"
    assert closing_of(invocation.finish()) == [STOPPED]
