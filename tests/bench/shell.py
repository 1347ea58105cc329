"""Other apps served as `haltline.serve` serves a replica: processes that the baselines of stops over HTTP run in."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import uvicorn
from fastapi import FastAPI

from haltline.serve import BACKLOG, Collector

FORKED = multiprocessing.get_context("forkserver")
FORKED.set_forkserver_preload(["__main__", "tests.bench.bare_shell", "tests.bench.polling"])  # imported once for all


class Door(NamedTuple):
    """Where a replica is reached, on loopback."""

    name: str
    port: int


@contextmanager
def serving(make: Callable[[str, str, Path], FastAPI], count: int, redis_url: str, directory: Path) -> Iterator[list]:
    """`count` processes that serve what `make(name, redis_url, directory)` returns. Each takes connections at once."""
    directory.mkdir(exist_ok=True)
    doors, processes = [], []
    try:
        for n in range(count):
            with socket.create_server(("127.0.0.1", 0), backlog=BACKLOG) as listener:
                name = f"{make.__module__.rpartition('.')[2]}{n + 1}"
                process = FORKED.Process(target=_serve, args=(listener, make, name, redis_url, directory))
                process.start()
                processes.append(process)
                doors.append(Door(name, listener.getsockname()[1]))
        yield doors
    finally:
        for process in processes:
            process.kill()
            process.join()


def _serve(listener: socket.socket, make: Callable[..., FastAPI], name: str, redis_url: str, directory: Path) -> None:
    with (directory / f"{name}.log").open("wb") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    config = uvicorn.Config(make(name, redis_url, directory), log_config=None, access_log=False, server_header=False)
    Collector(lambda: 1)
    with asyncio.Runner(loop_factory=config.get_loop_factory()) as runner:
        runner.run(uvicorn.Server(config).serve([socket.socket(fileno=listener.detach())]))  # see `haltline.serve`
