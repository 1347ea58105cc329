"""The process. See the package for what it does."""

from __future__ import annotations

import argparse
import contextlib
from pathlib import Path

import uvicorn

from local.fake_bedrock.app import FakeBedrock
from local.fake_bedrock.connections import Log, Server, serving

KEEP_ALIVE = 75  # seconds; far more than a pooled client needs between two calls of a test


def main() -> None:
    """Entry point of the process."""
    parser = argparse.ArgumentParser(prog="python -m local.fake_bedrock")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8082)
    parser.add_argument("--log", type=Path)
    parser.add_argument("--tls-cert", type=Path)
    parser.add_argument("--tls-key", type=Path)
    options = parser.parse_args()
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(options.log.open("a", encoding="utf-8")) if options.log else None
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
