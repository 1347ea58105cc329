"""The Lambda Runtime API and the part of the Extensions API that an extension needs to be let in, over HTTP."""

from __future__ import annotations

import json
import queue
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar

from local.runtime_api.invocation import HTTP_INTEGRATION, Ending, Invocation

ARN = "arn:aws:lambda:us-west-2:123456789012:function:"
RUNTIME, EXTENSION = "/2018-06-01/runtime", "/2020-01-01/extension"


class RuntimeAPI:
    """Listens on a free port of 127.0.0.1 at `address` until it is closed. For one environment of one function."""

    def __init__(self, function: str, on_timeout: Callable[[], None]) -> None:
        self.function = function
        self.idle = threading.Event()  # the function waits for an event
        self.init_error: dict[str, Any] = {}
        self.extensions: list[str] = []
        self._on_timeout = on_timeout
        self._waiting: queue.SimpleQueue[Invocation | None] = queue.SimpleQueue()
        self._open: dict[str, Invocation] = {}
        self.closed = threading.Event()
        handler = type("Handler", (_Handler,), {"api": self})
        self._server = _Server(("127.0.0.1", 0), handler)
        self.address = f"127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def invoke(self, event: bytes, timeout: float) -> Invocation:
        """Hand an event out as soon as the function asks for one."""
        invocation = Invocation(event, timeout)
        self._open[invocation.request_id] = invocation
        self._waiting.put(invocation)
        return invocation

    def fail(self, ending: Ending, error: dict[str, Any]) -> None:
        """End every invocation that is open."""
        for invocation in list(self._open.values()):
            invocation.end(ending, error)

    def close(self) -> None:
        """Listen no more, and let go of whoever waits."""
        self.closed.set()
        self._waiting.put(None)
        self._server.shutdown()
        self._server.server_close()

    # ---- what the function asks
    def next(self) -> tuple[Invocation, int] | None:
        """The next invocation with its deadline, None at the end of the environment. It blocks."""
        self.idle.set()
        invocation = self._waiting.get()
        self.idle.clear()
        if invocation is None:
            return None
        deadline = invocation.begin()
        clock = threading.Timer(invocation.timeout, self._time_out, [invocation])
        clock.daemon = True
        clock.start()
        return invocation, deadline

    def _time_out(self, invocation: Invocation) -> None:
        said = f"{invocation.request_id} Task timed out after {invocation.timeout:.2f} seconds"
        if invocation.end(Ending.TIMED_OUT, {"errorType": "Sandbox.Timedout", "errorMessage": said}):
            self._on_timeout()

    def open_invocation(self, request_id: str) -> Invocation | None:
        """The one of this id, None where it is over or was never there."""
        invocation = self._open.get(request_id)
        return invocation if invocation and not invocation.ending else None


class _Server(ThreadingHTTPServer):
    block_on_close = False  # connections are kept for as long as the function lives: nobody waits for their threads

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A function that was killed leaves its connections as they are."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    api: ClassVar[RuntimeAPI]
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        """What is waited for."""
        if self.path == f"{RUNTIME}/invocation/next":
            self._next()
        elif self.path == f"{EXTENSION}/event/next":
            self.api.closed.wait()  # no extension here asks for events
            self.close_connection = True
        else:
            self._answer(404)

    def do_POST(self) -> None:
        """What is said."""
        match self.path.removeprefix(RUNTIME).removeprefix(EXTENSION).strip("/").split("/"):
            case ["invocation", request_id, "response" | "error" as kind]:
                if invocation := self.api.open_invocation(request_id):
                    (self._response if kind == "response" else self._error)(invocation)
                else:
                    self._drop()
                    self._answer(400, {"errorType": "InvalidRequestID", "errorMessage": "no such invocation is open"})
            case ["init" | "exit", "error"]:
                self.api.init_error = self._reported()
                self._answer(202, {"status": "OK"})
            case ["register"]:
                self._drop()
                self.api.extensions.append(self.headers.get("Lambda-Extension-Name", ""))
                told = {"functionName": self.api.function, "functionVersion": "$LATEST", "handler": ""}
                self._answer(200, told, {"Lambda-Extension-Identifier": str(uuid.uuid4())})
            case _:
                self._drop()
                self._answer(404)

    def _next(self) -> None:
        handed = self.api.next()
        if handed is None:
            self.close_connection = True
            return
        invocation, deadline = handed
        headers = {
            "Lambda-Runtime-Aws-Request-Id": invocation.request_id,
            "Lambda-Runtime-Deadline-Ms": str(deadline),
            "Lambda-Runtime-Invoked-Function-Arn": ARN + self.api.function,
            "Lambda-Runtime-Trace-Id": f"Root=1-5bef4de7-{uuid.uuid4().hex[:24]};Parent=9a9197af755a6419;Sampled=0",
        }
        self._answer(200, invocation.event, headers)

    def _response(self, invocation: Invocation) -> None:
        if self.headers.get("Content-Type", "").startswith(HTTP_INTEGRATION):
            invocation.expect_prelude()
        try:
            for data in self._body(invocation.trailers):
                invocation.put(data)
        except (EOFError, OSError, ValueError) as error:
            self.close_connection = True
            invocation.end(Ending.FAILED, {"errorType": "Runtime.TruncatedResponse", "errorMessage": str(error)})
            return
        self._answer(202, {"status": "OK"})
        invocation.end(Ending.ANSWERED)

    def _error(self, invocation: Invocation) -> None:
        error = self._reported()
        self._answer(202, {"status": "OK"})
        invocation.end(Ending.FAILED, error)

    def _reported(self) -> dict[str, Any]:
        kind = self.headers.get("Lambda-Runtime-Function-Error-Type", "")
        raw = b"".join(self._body({}))
        try:
            told = json.loads(raw)
        except ValueError:
            told = None
        return {"errorType": kind} | (
            told if isinstance(told, dict) else {"errorMessage": raw.decode(errors="replace")}
        )

    def _drop(self) -> None:
        for _ in self._body({}):
            pass

    def _body(self, trailers: dict[str, str]) -> Iterator[bytes]:
        """The request's body, a piece for each chunk. Raises: EOFError, ValueError where it is cut off or no HTTP."""
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            if data := self._exactly(int(self.headers.get("Content-Length", 0))):
                yield data
            return
        while size := int(self._line().partition(b";")[0], 16):
            yield self._exactly(size)
            self._line()
        while line := self._line():
            name, _, value = line.decode("latin-1").partition(":")
            trailers[name.strip().lower()] = value.strip()

    def _line(self) -> bytes:
        line = self.rfile.readline(65536)
        if not line.endswith(b"\n"):
            raise EOFError("the response was cut off")
        return line.strip()

    def _exactly(self, size: int) -> bytes:
        data = self.rfile.read(size)
        if len(data) < size:
            raise EOFError("the response was cut off")
        return data

    def _answer(
        self, status: int, body: bytes | dict[str, Any] | None = None, headers: dict[str, str] | None = None
    ) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body or {}).encode()
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)
