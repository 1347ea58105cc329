"""The control function's real handler: awslambdaric under AWS's Runtime Interface Emulator, as `sam local` runs it."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import signal
import site
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest

from local.runtime_api.environment import Environment
from tests.aws import events
from tests.aws.chat_function import Started, closing_of, has_said
from tests.aws.conftest import FULL
from tests.contract.client import LONG, STOPPED, new_chat
from tests.integration.control_process import event_bridge, rest_event
from tests.stack import ROOT, Stack, free_port

MACHINE = {"x86_64": "x86_64", "aarch64": "arm64", "arm64": "arm64"}[platform.machine()]


class Control:
    """The function, invoked one event at a time: the emulator takes no two at once."""

    def __init__(self, url: str, process: subprocess.Popen[bytes]) -> None:
        self._url, self._process = url, process

    def invoke(self, event: dict[str, Any]) -> Any:
        return httpx.post(self._url, json=event, timeout=30).json()

    def call(self, method: str, path: str, **event: Any) -> tuple[int, Any]:
        answer = self.invoke(rest_event(method, path, sub=events.SUB, **event))  # who sends the chat function's too
        return answer["statusCode"], json.loads(answer["body"])

    def freeze(self, seconds: float) -> None:
        """Let the function and the emulator stand still, as between two invocations."""
        os.killpg(self._process.pid, signal.SIGSTOP)
        time.sleep(seconds)  # what is tested is that time passes
        os.killpg(self._process.pid, signal.SIGCONT)


@pytest.fixture(scope="module")
def emulator() -> Path:
    found = list((ROOT / ".venv-sam").glob(f"lib/python3*/site-packages/samcli/local/rapid/aws-lambda-rie-{MACHINE}"))
    if not found:
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)("the SAM CLI is not there: `make lambda`")
    return found[0]


@pytest.fixture(scope="module")
def control(
    emulator: Path, stack: Stack, layers: list[Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Control]:
    """Over the bus and chats of `stack`. On Lambda the runtime has awslambdaric; here it is the tests' environment."""
    door, runtime = free_port(), free_port()
    log = Path(tmp_path_factory.mktemp("control")) / "log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            [
                str(emulator),
                f"--runtime-interface-emulator-address=127.0.0.1:{door}",
                f"--runtime-api-address=127.0.0.1:{runtime}",
                "--log-level=error",
                *(f"{sys.base_prefix}/bin/python3", "-m", "awslambdaric", "app.handler"),
            ],
            cwd=ROOT / "functions" / "control",
            env={
                "PATH": os.environ["PATH"],
                "PYTHONPATH": ":".join(map(str, [*layers, *site.getsitepackages()])),
                "LAMBDA_TASK_ROOT": str(ROOT / "functions" / "control"),
                "AWS_LAMBDA_FUNCTION_NAME": "control",
                "AWS_LAMBDA_FUNCTION_TIMEOUT": "15",
                "AWS_REGION": "us-west-2",
                "REDIS_URL": stack.redis_url,
                "SESSION_DIR": str(stack.session_dir),
                "AUTH": "apigateway",
            },
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        wait_until_it_listens(door, log)
        yield Control(f"http://127.0.0.1:{door}/2015-03-31/functions/function/invocations", process)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def wait_until_it_listens(port: int, log: Path) -> None:
    for _ in range(200):
        with contextlib.suppress(httpx.TransportError):
            httpx.get(f"http://127.0.0.1:{port}", timeout=1)
            return
        time.sleep(0.05)  # polled because a foreign process gives no event to wait for
    raise RuntimeError(log.read_text())


@pytest.fixture
def function(functions: Started) -> Environment:
    """The chat function as the template sets it."""
    return functions.get(AUTH="apigateway")


def test_a_stop_through_it_halts_a_run_of_the_chat_function(control: Control, function: Environment) -> None:
    chat = new_chat()
    invocation = function.invoke(events.rest(chat, {"message": LONG})).until(has_said("tick "))
    status, told = control.call("POST", f"/api/v1/stop/{chat}", query={"wait": "5"})
    assert (status, told["status"]) == (200, "stopped")
    assert closing_of(invocation.finish()) == [STOPPED]
    entries = control.call("GET", f"/api/v1/chat/{chat}/messages")[1]["messages"]
    assert [(e["role"], e.get("stopped")) for e in entries] == [("user", None), ("assistant", True)]


def test_an_event_halts_all(control: Control, function: Environment) -> None:
    invocation = function.invoke(events.rest(new_chat(), {"message": LONG})).until(has_said("tick "))
    sent = event_bridge({"all": True}, at=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()))
    assert control.invoke(sent) == {"stops": 1}
    assert closing_of(invocation.finish()) == [STOPPED]


def test_an_event_that_cannot_be_read_is_an_error_of_the_invocation(control: Control) -> None:
    told = control.invoke(event_bridge({"chat_ids": "all"}))
    assert told["errorType"] == "ValueError"
    assert "chat_ids" in told["errorMessage"]


def test_it_stops_as_ever_after_a_freeze(control: Control, function: Environment, stack: Stack) -> None:
    import redis

    assert control.call("POST", f"/api/v1/stop/{new_chat()}", query={"wait": "1"})[1]["status"] == "idle"
    with redis.Redis.from_url(stack.redis_url) as bus:
        for kind in ("pubsub", "normal"):
            bus.execute_command("CLIENT", "KILL", "TYPE", kind)
    control.freeze(30 if FULL else 2)
    chat = new_chat()
    invocation = function.invoke(events.rest(chat, {"message": LONG})).until(has_said("tick "))
    assert control.call("POST", f"/api/v1/stop/{chat}", query={"wait": "5"})[1]["status"] == "stopped"
    assert closing_of(invocation.finish()) == [STOPPED]
