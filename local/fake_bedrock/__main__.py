"""The process. See the package for what it does."""

from __future__ import annotations

import argparse
import contextlib
import sys
from pathlib import Path
from typing import IO

import uvicorn

from local.fake_bedrock.app import FakeBedrock
from local.fake_bedrock.connections import Log, Server, serving

KEEP_ALIVE = 75  # seconds; far more than a pooled client needs between two calls of a test


def main() -> None:
    """Entry point of the process."""
    parser = argparse.ArgumentParser(prog="python -m local.fake_bedrock")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8082)
    parser.add_argument("--log", type=Path, help="a file to append to, or - for standard output")
    parser.add_argument("--tls-cert", type=Path)
    parser.add_argument("--tls-key", type=Path)
    options = parser.parse_args()
    with contextlib.ExitStack() as stack:
        file: IO[str] | None = None
        if options.log == Path("-"):
            file = sys.stdout
        elif options.log:
            file = stack.enter_context(options.log.open("a", encoding="utf-8"))
        connections = serving(Log(file))
        Server(
            uvicorn.Config(
                FakeBedrock(connections),
                host=options.host,
                port=options.port,
                ssl_certfile=options.tls_cert,
                ssl_keyfile=options.tls_key,
                http=connections,
                interface="asgi3",
                ws="none",
                lifespan="off",
                log_config=None,
                log_level="error",
                access_log=False,
                proxy_headers=False,
                server_header=False,
                timeout_keep_alive=KEEP_ALIVE,
            )
        ).run()


if __name__ == "__main__":
    main()
