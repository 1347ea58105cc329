"""Starts the bus, the model and the replicas, keeps them alive, and ends them in the order that loses nothing."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
import time
from collections.abc import Coroutine
from contextlib import ExitStack
from urllib.parse import urlsplit

from haltline.settings import Settings
from haltline.tasks import cancelled
from local import model_server
from local.embedded_valkey import embedded_valkey
from local.errors import CannotStart
from local.ports import free_port, listen
from local.processes import Child, Family, say

MARGIN = 10.0  # seconds beyond SHUTDOWN_GRACE in which a replica says its closing frames and saves
SECOND_THOUGHT = 0.5  # seconds; a SIGINT sooner after the first is the same one, passed on by whoever called


class Launcher:
    """One `python -m local`."""

    def __init__(self, settings: Settings, replicas: int) -> None:
        self._settings = settings
        self._count = replicas
        # What a user did not choose is the local model here; the package alone would take Bedrock.
        self._provider = settings.model_provider if "model_provider" in settings.model_fields_set else "local"
        self._data = settings.session_dir.parent
        self._env = {"HOST": settings.host}  # what the replicas are told
        self._servers: list[Child] = []  # in the order of their start; they end in the reverse one
        self._replicas: list[Child] = []
        self._end_asked, self._hurry = asyncio.Event(), asyncio.Event()

    async def run(self) -> None:
        """Serve until SIGINT, SIGTERM or SIGHUP. No process and no port is left, whatever it returns with.

        Raises: SettingsError when HOST and PORT cannot be bound; CannotStart when a process or a Redis is missing.
        """
        self._watch_signals()
        with ExitStack() as stack:
            terminal = asyncio.create_task(self._watch_terminal())
            stack.callback(terminal.cancel)
            listener = stack.enter_context(listen(self._settings.host, self._settings.port))
            family = await Family.found()
            try:
                await _unless(self._end_asked, self._serve(family, listener, stack))
            finally:
                listener.close()  # or a request would wait for replicas that take no more
                try:
                    await _unless(self._hurry, self._end())
                finally:
                    await family.kill()

    def _watch_signals(self) -> None:
        loop = asyncio.get_running_loop()
        first = 0.0

        def asked(number: int) -> None:
            nonlocal first
            if not self._end_asked.is_set():
                first = loop.time()
                self._end_asked.set()
            elif number == signal.SIGINT and loop.time() - first > SECOND_THOUGHT:
                self._hurry.set()

        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if number == signal.SIGHUP and signal.getsignal(number) == signal.SIG_IGN:
                continue  # nohup
            loop.add_signal_handler(number, asked, number)

    async def _watch_terminal(self) -> None:
        """End with the terminal. make gets its SIGHUP alone where it leads the session, as under ssh -t, and waits."""
        if not _in_foreground():
            return
        while os.isatty(0):  # noqa: ASYNC110 - nothing else tells this process
            await asyncio.sleep(1)
        self._end_asked.set()

    # ---- start
    async def _serve(self, family: Family, listener: socket.socket, stack: ExitStack) -> None:
        began = time.monotonic()
        port = listener.getsockname()[1]
        self._env["PORT"] = str(port)
        if self._settings.has_redis:
            await _check_redis(self._settings)
        else:
            await self._start_valkey(family, port, stack)
        model = self._local_model(family)
        self._env["MODEL_PROVIDER"] = self._provider
        self._replicas = [self._replica(family, f"replica{n}", listener) for n in range(1, self._count + 1)]
        first, *others = self._replicas
        if self._settings.agent or self._provider not in ("local", "scripted"):
            await _start(first)  # alone, so that what it cannot import or reach is said once
            await asyncio.gather(*map(_start, [*others, *([model] if model else [])]))
        else:
            # With two cores, the model and one replica alone are what brings the first token soonest; the others come
            # one by one there, so that it has a core to itself for the first request.
            await asyncio.gather(*map(_start, [first, *([model] if model else [])]))
            at_once = 1 if (os.cpu_count() or 1) <= 2 else len(others)
            for n in range(0, len(others), max(at_once, 1)):
                await asyncio.gather(*map(_start, others[n : n + at_once]))
        if kind := {"api-keys": "KEY", "jwt": "TOKEN"}.get(auth := self._settings.auth):
            say(f"AUTH={auth}: the page asks for a {kind.lower()}, calls send Authorization: Bearer {kind}")
        say(f"Haltline serves {_url(self._settings.host, port)} ({time.monotonic() - began:.1f} s). Ctrl-C ends it.")
        await asyncio.gather(*(child.keep_alive() for child in (*self._servers, *self._replicas)))

    async def _start_valkey(self, family: Family, port: int, stack: ExitStack) -> None:
        valkey, url = embedded_valkey(family, self._data / "valkey" / str(port), stack)
        self._servers.append(valkey)
        self._env["REDIS_URL"] = url
        await _start(valkey)
        await _forget_list(url)

    def _local_model(self, family: Family) -> Child | None:
        if self._provider != "local" or "local_model_url" in self._settings.model_fields_set:
            return None
        if not model_server.find_model():
            say("the local model has no wheels for this platform: the scripted model answers instead")
            self._provider = "scripted"
            return None
        port = free_port()
        self._env["LOCAL_MODEL_URL"] = f"http://127.0.0.1:{port}/v1"
        verbose = self._settings.log_level in ("TRACE", "DEBUG")
        command = [sys.executable, "-m", "local.model_server", "--port", str(port), *(["--verbose"] if verbose else [])]
        self._data.mkdir(parents=True, exist_ok=True)
        log = None if verbose else self._data / "model.log"
        model = Child("model", f"{model_server.NAME} loaded", family, command, log=log)
        self._servers.append(model)
        return model

    def _replica(self, family: Family, name: str, listener: socket.socket) -> Child:
        own = {**self._env, "REPLICA_NAME": name}
        # Settings are read whatever their case: another spelling of one of these must not stay beside it.
        env = {key: value for key, value in os.environ.items() if key.upper() not in own} | own
        command = [sys.executable, "-m", "haltline", "--fd", str(listener.fileno())]
        return Child(name, "live", family, command, env, pass_fds=[listener.fileno()])

    # ---- end
    async def _end(self) -> None:
        """Replicas first, for their runs need the bus to end; Valkey, which was started first, last."""
        grace = self._settings.shutdown_grace
        if self._end_asked.is_set():
            say(f"ending: live runs have {grace:g} s; Ctrl-C again ends everything at once")
        await asyncio.gather(*(replica.end(grace + MARGIN) for replica in self._replicas))
        for server in reversed(self._servers):
            await server.end(MARGIN)


async def _unless(event: asyncio.Event, work: Coroutine[None, None, None]) -> None:
    """Do `work` until it is done or `event` comes; what is left of it is cancelled then."""
    task, waiting = asyncio.create_task(work), asyncio.create_task(event.wait())
    await asyncio.wait({task, waiting}, return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()
    if await cancelled(task, within=MARGIN):
        with contextlib.suppress(asyncio.CancelledError):
            task.result()


def _in_foreground() -> bool:
    try:
        return os.tcgetpgrp(0) == os.getpgrp()
    except OSError:  # no terminal
        return False


async def _start(child: Child) -> None:
    seconds = await child.start()
    say(f"{child.name} {child.ready} (pid {child.pid}, {seconds:.1f} s)")


async def _forget_list(url: str) -> None:
    """The files may have been served beside another Redis since this one's list of chats was made."""
    from haltline.chat_index import forget
    from haltline.redis_connection import connect

    client = connect(url, connections=1)
    await forget(client)
    await client.aclose()


async def _check_redis(settings: Settings) -> None:
    """Raises: CannotStart when no Redis answers there within a few seconds."""
    from redis.exceptions import RedisError

    from haltline.redis_connection import connect, credentials_of

    url = settings.redis_address
    parts = urlsplit(url)
    place = parts.path if parts.scheme == "unix" else f"{parts.hostname}:{parts.port or 6379}"  # never the password
    try:
        client = connect(url, cluster=settings.redis_cluster, credentials=credentials_of(settings), connections=1)
    except ValueError as error:
        raise CannotStart(f"REDIS_URL: {error}") from error
    try:
        await client.ping()
    except (RedisError, OSError, TimeoutError) as error:
        raise CannotStart(f"no Redis answers at {place} (REDIS_URL or REDIS_HOST): {error}") from error
    finally:
        await client.aclose()
    say(f"redis at {place}")


def _url(host: str, port: int) -> str:
    shown = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - shown, not bound
    return f"http://[{shown}]:{port}" if ":" in shown else f"http://{shown}:{port}"
