"""AWS for tests: moto's server, in a thread, on a port of its own. Nothing is patched: clients find it by variables."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import botocore.session
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
from werkzeug.serving import make_server

REGION = "us-west-2"


@dataclass
class Aws:
    """A running moto. It looks and writes in two steps where S3 has one, so requests are let in one by one.

    `lose_reply` of a request that is to be lost: it is carried out, then called, then the connection is closed.
    """

    url: str = ""
    lose_reply: Callable[[dict[str, Any]], bool] | None = None
    seen: list[str] = field(default_factory=list)  # method and path of each request
    _one: threading.Lock = field(default_factory=threading.Lock)

    @property
    def environment(self) -> dict[str, str]:
        """What a process must be given to use it."""
        return {
            "AWS_ENDPOINT_URL": self.url,
            "AWS_ACCESS_KEY_ID": "testing",
            "AWS_SECRET_ACCESS_KEY": "testing",
            "AWS_REGION": REGION,
        }

    def client(self, service: str) -> Any:
        """A plain client: what an operator with the AWS CLI can do."""
        return botocore.session.Session().create_client(
            service, REGION, endpoint_url=self.url, aws_access_key_id="testing", aws_secret_access_key="testing"
        )

    def answer(self, app: Any, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        """One request, as WSGI has it."""
        with self._one:
            self.seen.append(f"{environ['REQUEST_METHOD']} {environ['PATH_INFO']}")
            body = list(app(environ, start_response))
        if self.lose_reply is not None and self.lose_reply(environ):
            environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
        return body


class Quiet(MotoRequestHandler):
    """Without a line for each request."""

    def log(self, *_: Any, **__: Any) -> None:
        pass


@contextlib.contextmanager
def running_aws() -> Iterator[Aws]:
    """Start moto; end it on the way out."""
    aws, app = Aws(), DomainDispatcherApplication(create_backend_app)
    server = make_server(
        "127.0.0.1",
        0,
        lambda environ, start_response: aws.answer(app, environ, start_response),
        threaded=True,
        request_handler=Quiet,
    )
    aws.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield aws
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class Canned:
    """A server that gives everyone the same answer, or none."""

    def __init__(self, answer: bytes | None) -> None:
        self._answer, self._socket, self.asked = answer, socket.create_server(("127.0.0.1", 0)), 0
        self._taken: list[socket.socket] = []
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self._socket.accept()
            except OSError:
                return
            self._taken.append(client)
            if self._answer is not None:
                client.recv(65536)
                self.asked += 1
                client.sendall(self._answer)
                client.close()

    def close(self) -> None:
        with contextlib.suppress(OSError):  # closed already
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        for client in self._taken:
            client.close()
