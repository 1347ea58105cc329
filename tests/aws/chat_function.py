"""The chat function as Lambda runs it: the real adapter beside the real run.sh, and what they answer."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx2 as httpx

from local.runtime_api.environment import Environment
from local.runtime_api.invocation import Invocation
from tests.contract.client import Event, EventStream, stop_url
from tests.stack import ROOT, Replica, Stack, free_port

ADAPTER = ROOT / "build" / "lambda-adapter" / "bin" / "lambda-adapter"
CODE = ROOT / "functions" / "chat"


@contextlib.contextmanager
def chat_function(stack: Stack, layers: Sequence[Path], log: Path, **env: str) -> Iterator[Environment]:
    """An environment over the bus and the chats of `stack`. `layers`: where packages are, as below /opt on Lambda.

    `env` overrides its settings. Its interpreter is no virtual environment, so that nothing but the layers is found.
    """
    port = str(free_port())
    settings = {
        "PATH": f"{sys.base_prefix}/bin:/usr/bin:/bin",
        "PYTHONPATH": ":".join(map(str, layers)),
        "REDIS_URL": stack.redis_url,
        "SESSION_DIR": str(stack.session_dir),
        "MODEL_PROVIDER": "scripted",
        "AWS_LWA_PORT": port,
        "AWS_LWA_READINESS_CHECK_PATH": "/live",
        "AWS_LWA_INVOKE_MODE": "response_stream",
    }
    with Environment(
        [str(CODE / "run.sh")], extensions=[str(ADAPTER)], env={**settings, **env}, task_root=CODE, log=log
    ) as environment:
        yield environment


class Started:
    """Environments by their settings. One that is over or busy, as after a test that failed, is replaced by another."""

    def __init__(self, stack: Stack, layers: Sequence[Path], directory: Path) -> None:
        self._stack, self._layers, self._directory = stack, layers, directory
        self._running: dict[tuple[tuple[str, str], ...], Environment] = {}
        self._all = contextlib.ExitStack()

    def get(self, **env: str) -> Environment:
        key = tuple(sorted(env.items()))
        found = self._running.get(key)
        if found is None or not found.api.idle.wait(1):
            log = self._directory / f"{len(self._running)}.log"
            found = self._all.enter_context(chat_function(self._stack, self._layers, log, **env))
            self._running[key] = found
        return found

    def __enter__(self) -> Started:
        return self

    def __exit__(self, *_: object) -> None:
        self._all.close()


def events_of(invocation: Invocation) -> list[Event]:
    """What a client of the stream has been told so far."""
    stream = EventStream()
    return [event for chunk in list(invocation.chunks) for event in stream.feed(chunk.data)]


def text_of(invocation: Invocation) -> str:
    return "".join(event.data for event in events_of(invocation) if event.event is None)


def closing_of(invocation: Invocation) -> list[tuple[str, str]]:
    """Every frame with an `event:` line: there may be one."""
    return [(event.event, event.data) for event in events_of(invocation) if event.event is not None]


def has_said(text: str) -> Callable[[Invocation], bool]:
    """For `Invocation.until`."""
    return lambda invocation: text in text_of(invocation)


def stopped_through(http: httpx.Client, control: Replica, chat: str, **params: Any) -> dict[str, Any]:
    """Stop a chat through another process and wait for its owner's word."""
    answer = http.post(stop_url(control, chat), params={"wait": 10, **params})
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found
