"""The emulator of the Lambda Runtime API, asked by small functions and by AWS's own runtime client."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest

from local.runtime_api.environment import Environment, InitFailed
from local.runtime_api.invocation import Ending, Invocation
from tests.stack import ROOT

# What functions here are made of: `ask()` waits for an event, `say()` posts. Standard library only.
_CLIENT = """
import http.client, json, os, sys, time
api = http.client.HTTPConnection(os.environ["AWS_LAMBDA_RUNTIME_API"])
BASE = "/2018-06-01/runtime"
HTTP = {"Lambda-Runtime-Function-Response-Mode": "streaming",
        "Content-Type": "application/vnd.awslambda.http-integration-response"}

def ask():
    api.request("GET", BASE + "/invocation/next")
    answer = api.getresponse()
    event = json.loads(answer.read())
    return answer.headers["Lambda-Runtime-Aws-Request-Id"], event, answer.headers

def say(path, body, **headers):
    api.request("POST", BASE + path, body, headers)
    answer = api.getresponse()
    answer.read()
    return answer.status
"""


class Function(Environment):
    """An environment whose function is a Python text."""

    def __init__(self, tmp_path: Path, code: str) -> None:
        self.log = tmp_path / "log"
        command = [sys.executable, "-c", _CLIENT + textwrap.dedent(code)]
        super().__init__(command, env={}, task_root=tmp_path, log=self.log)


def ask(function: Environment, event: Any, timeout: float = 10) -> Invocation:
    return function.invoke(json.dumps(event).encode(), timeout)


def test_events_are_answered_one_after_another(tmp_path: Path) -> None:
    code = """
    while True:
        id, event, headers = ask()
        left = int(headers["Lambda-Runtime-Deadline-Ms"]) / 1000 - time.time()
        say(f"/invocation/{id}/response", json.dumps({"twice": event * 2, "left": left}))
    """
    with Function(tmp_path, code) as function:
        for n in (1, 21):
            invocation = ask(function, n, timeout=9).finish()
            assert invocation.ending is Ending.ANSWERED
            told = json.loads(invocation.body)
            assert told["twice"] == n * 2
            assert 8 < told["left"] <= 9.01


def test_a_streamed_response_is_passed_on_as_it_comes(tmp_path: Path) -> None:
    """The function waits for a file that the test writes when it has seen the first words."""
    code = """
    id, event, _ = ask()
    def words():
        yield b'{"statusCode": 201, "headers": {"X-Run-Id": "a", "Vary": ["b", "c"]}, "cookies": ["d=e"]}'
        yield bytes(4)
        yield bytes(4) + b"first "
        while not os.path.exists(event): time.sleep(0.01)
        yield b"last"
    api.request("POST", f"{BASE}/invocation/{id}/response", words(), HTTP, encode_chunked=True)
    api.getresponse().read()
    ask()
    """
    with Function(tmp_path, code) as function:
        invocation = ask(function, str(tmp_path / "go-on")).until(lambda i: bool(i.chunks))
        prelude = invocation.prelude
        assert prelude
        assert (prelude.status, prelude.headers, prelude.cookies) == (201, {"x-run-id": "a", "vary": "b, c"}, ["d=e"])
        assert (invocation.body, invocation.ending) == (b"first ", None)
        (tmp_path / "go-on").touch()
        assert [chunk.data for chunk in invocation.read()] == [b"first ", b"last"]
        assert invocation.finish().ending is Ending.ANSWERED


def test_an_error_in_mid_stream_comes_in_trailers(tmp_path: Path) -> None:
    code = """
    id, _, _ = ask()
    api.putrequest("POST", f"{BASE}/invocation/{id}/response")
    for name, value in {**HTTP, "Transfer-Encoding": "chunked"}.items():
        api.putheader(name, value)
    api.endheaders()
    body = b'{"statusCode": 200}' + bytes(8) + b"half"
    api.send(b"%x\\r\\n%s\\r\\n0\\r\\nLambda-Runtime-Function-Error-Type: Broken\\r\\n\\r\\n" % (len(body), body))
    api.getresponse().read()
    ask()
    """
    with Function(tmp_path, code) as function:
        invocation = ask(function, 1).finish()
        assert (invocation.ending, invocation.body) == (Ending.ANSWERED, b"half")
        assert invocation.trailers == {"lambda-runtime-function-error-type": "Broken"}


def test_a_response_that_is_cut_off_has_failed(tmp_path: Path) -> None:
    code = """
    id, _, _ = ask()
    api.putrequest("POST", f"{BASE}/invocation/{id}/response")
    api.putheader("Transfer-Encoding", "chunked")
    api.endheaders()
    api.send(b"4\\r\\nhalf\\r\\n")
    api.close()
    ask()
    """
    with Function(tmp_path, code) as function:
        invocation = ask(function, 1).finish()
        assert (invocation.ending, invocation.body) == (Ending.FAILED, b"half")
        assert invocation.error["errorType"] == "Runtime.TruncatedResponse"


def test_a_client_that_has_left_is_told_nothing_more_and_the_function_goes_on(tmp_path: Path) -> None:
    code = """
    id, event, _ = ask()
    def words():
        yield b"first "
        while not os.path.exists(event): time.sleep(0.01)
        yield b"last"
    api.request("POST", f"{BASE}/invocation/{id}/response", words(), encode_chunked=True)
    answer = api.getresponse()
    answer.read()
    print("the function was answered", answer.status, file=sys.stderr)
    ask()
    """
    with Function(tmp_path, code) as function:
        invocation = ask(function, str(tmp_path / "go-on")).until(lambda i: bool(i.chunks))
        invocation.leave()
        (tmp_path / "go-on").touch()
        assert invocation.finish().body == b"first "
        assert invocation.ending is Ending.ANSWERED
        assert function.api.idle.wait(5)
        assert "answered 202" in function.log.read_text()


def test_an_error_of_the_function(tmp_path: Path) -> None:
    code = """
    id, _, _ = ask()
    error = json.dumps({"errorType": "ValueError", "errorMessage": "no"})
    say(f"/invocation/{id}/error", error, **{"Lambda-Runtime-Function-Error-Type": "Unhandled"})
    print("answered twice", say(f"/invocation/{id}/response", "1"), file=sys.stderr)
    ask()
    """
    with Function(tmp_path, code) as function:
        invocation = ask(function, 1).finish()
        assert invocation.ending is Ending.FAILED
        assert invocation.error == {"errorType": "ValueError", "errorMessage": "no"}
        assert function.api.idle.wait(5)
        assert "answered twice 400" in function.log.read_text()


def test_a_function_that_takes_too_long_is_killed(tmp_path: Path) -> None:
    with Function(tmp_path, "ask(); time.sleep(60)") as function:
        invocation = ask(function, 1, timeout=0.3).finish()
        assert invocation.ending is Ending.TIMED_OUT
        assert invocation.error["errorMessage"].endswith("Task timed out after 0.30 seconds")
        assert function.processes[0].wait(5) == -signal.SIGKILL


def test_a_function_that_ends_ends_its_invocation(tmp_path: Path) -> None:
    with Function(tmp_path, "ask(); os._exit(3)") as function:
        invocation = ask(function, 1).finish()
        assert invocation.ending is Ending.EXITED
        assert invocation.error["errorMessage"].endswith("ended with status 3")


def test_a_function_that_cannot_start_says_why(tmp_path: Path) -> None:
    with pytest.raises(InitFailed, match="a wrong setting"), Function(tmp_path, "sys.exit('a wrong setting')"):
        pass
    error = json.dumps({"errorType": "ImportError", "errorMessage": "no such module"})
    code = f"say('/init/error', {error!r}); time.sleep(60)"
    with pytest.raises(InitFailed, match="no such module"), Function(tmp_path, code):
        pass


def test_a_frozen_function_does_nothing(tmp_path: Path) -> None:
    code = """
    import threading
    def tick():
        while True:
            open("ticks", "a").write("."); time.sleep(0.005)
    threading.Thread(target=tick, daemon=True).start()
    while True:
        say(f"/invocation/{ask()[0]}/response", "1")
    """
    with Function(tmp_path, code) as function:
        ask(function, 1).finish()
        function.freeze()
        time.sleep(0.05)  # signals are delivered by now
        ticks = (tmp_path / "ticks").stat().st_size
        time.sleep(0.2)  # in which nothing is to happen
        assert (tmp_path / "ticks").stat().st_size == ticks > 0
        assert ask(function, 1).finish().ending is Ending.ANSWERED


def test_an_extension_is_let_in_and_lives_as_long_as_the_function(tmp_path: Path) -> None:
    extension = tmp_path / "extension"
    extension.write_text(f"""#!{sys.executable}
{_CLIENT}
api.request("POST", "/2020-01-01/extension/register", '{{"events": []}}', {{"Lambda-Extension-Name": "probe"}})
answer = api.getresponse()
answer.read()
headers = {{"Lambda-Extension-Identifier": answer.headers["Lambda-Extension-Identifier"]}}
open("registered", "w").close()
api.request("GET", "/2020-01-01/extension/event/next", headers=headers)
api.getresponse()
""")
    extension.chmod(0o755)
    code = """
    while not os.path.exists("registered"): time.sleep(0.01)
    while True:
        say(f"/invocation/{ask()[0]}/response", "1")
    """
    command = [sys.executable, "-c", _CLIENT + textwrap.dedent(code)]
    with Environment(
        command, extensions=[str(extension)], env={}, task_root=tmp_path, log=tmp_path / "log"
    ) as function:
        assert ask(function, 1).finish().ending is Ending.ANSWERED
        assert function.api.extensions == ["probe"]
        probe = function.processes[0]
        assert probe.poll() is None
    assert probe.returncode == -signal.SIGTERM


def test_awss_own_runtime_client(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(
        "def handler(event, context):\n"
        "    return {'event': event, 'id': context.aws_request_id, 'left': context.get_remaining_time_in_millis()}\n"
    )
    command = [sys.executable, "-m", "awslambdaric", "app.handler"]
    with Environment(command, env={"_HANDLER": "app.handler"}, task_root=tmp_path, log=tmp_path / "log") as function:
        invocation = ask(function, {"a": 1}, timeout=9).finish()
        told = json.loads(invocation.body)
        assert (told["event"], told["id"]) == ({"a": 1}, invocation.request_id)
        assert 8_000 < told["left"] <= 9_010


def test_the_command_line_prints_what_comes(tmp_path: Path) -> None:
    event = tmp_path / "event.json"
    event.write_text('"hello"')
    function = tmp_path / "function"
    function.write_text(f"""#!{sys.executable}
{_CLIENT}
while True:
    id, event, _ = ask()
    said = b'{{"statusCode": 418}}' + bytes(8) + event.encode()
    api.request("POST", BASE + f"/invocation/{{id}}/response", said, HTTP)
    api.getresponse().read()
""")
    function.chmod(0o755)
    command = [
        sys.executable,
        "-m",
        "local.runtime_api",
        "--event",
        str(event),
        "--event",
        str(event),
        "--",
        str(function),
    ]
    ended = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": str(ROOT)}, cwd=tmp_path, capture_output=True, text=True, timeout=30
    )
    assert (ended.returncode, ended.stdout) == (0, "hellohello"), ended.stderr
    assert ended.stderr.count("418\n") == 2
    assert ended.stderr.count("END answered") == 2
