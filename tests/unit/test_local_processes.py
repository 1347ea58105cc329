"""The launcher's children: how they become ready, come back, and end."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from haltline.settings import SettingsError
from local.embedded_valkey import embedded_valkey
from local.errors import CannotStart
from local.launcher import _unless
from local.ports import free_port, listen
from local.processes import Child, Family

READY_THEN = "echo 1 > /dev/fd/$2; "  # $2 is the number after --ready-fd


@pytest.fixture
async def family() -> AsyncIterator[Family]:
    one = await Family.found()
    yield one
    await one.kill()


def shell(family: Family, script: str, log: Path | None = None) -> Child:
    return Child("child", "live", family, ["/bin/sh", "-c", script, "sh"], log=log)


async def test_a_child_is_ready_when_it_says_so(family: Family) -> None:
    child = shell(family, READY_THEN + "exec sleep 60")
    assert await child.start() < 10
    assert child.pid
    assert os.getpgid(child.pid) == family.group  # apart from the terminal's group
    await child.end(10)
    assert child.process
    assert child.process.returncode == -signal.SIGTERM


async def test_a_child_that_ends_at_once_says_where_to_look(family: Family, tmp_path: Path) -> None:
    with pytest.raises(CannotStart, match=rf"^child ended with status 7 while it started; see {tmp_path}/log$"):
        await shell(family, "exit 7", tmp_path / "log").start()


async def test_a_wrong_setting_is_told_by_the_child_alone(family: Family) -> None:
    with pytest.raises(CannotStart) as caught:
        await shell(family, "exit 2").start()
    assert (str(caught.value), caught.value.status) == ("", 2)


async def test_a_child_that_keeps_dying_comes_back_after_growing_pauses(
    family: Family, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    child = shell(family, READY_THEN + f"echo . >> {tmp_path}/starts; exit 1")
    await child.start()
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(child.keep_alive(), 1)
    said = capsys.readouterr().out
    assert "child ended with status 1; starting it again\n" in said
    assert "child ended with status 1; starting it again in 0.5 s\n" in said
    assert len((tmp_path / "starts").read_text()) <= 2 * 4


async def test_a_child_that_ignores_sigterm_is_killed(family: Family, capsys: pytest.CaptureFixture[str]) -> None:
    child = shell(family, "trap '' TERM; " + READY_THEN + "while :; do sleep 1; done")
    await child.start()
    await child.end(0.1)
    assert child.process
    assert child.process.returncode == -signal.SIGKILL
    assert capsys.readouterr().out == "child did not end within 0.1 s; killed\n"


async def test_a_family_that_is_killed_takes_grandchildren_along(family: Family) -> None:
    reading, writing = os.pipe()
    child = shell(family, "sleep 60 & " + READY_THEN + "wait")
    child.pass_fds = [writing]
    await child.start()
    os.close(writing)  # the child and its own child have the last copies of this end
    await family.kill()
    assert await asyncio.wait_for(asyncio.to_thread(os.read, reading, 1), 10) == b""
    os.close(reading)
    assert child.process
    await child.process.wait()


def test_what_cannot_be_bound_names_the_setting() -> None:
    with listen("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(SettingsError, match=rf"^PORT={port}: address already in use, choose another with --port$"):
            listen("127.0.0.1", port)
    with pytest.raises(SettingsError, match=r"^HOST=192\.0\.2\.1: "):
        listen("192.0.2.1", 0)


def test_a_port_of_our_own_is_not_one_that_connections_get() -> None:
    assert 20_000 <= free_port() < 32_000


async def test_a_data_directory_in_use_is_left_alone(family: Family, tmp_path: Path) -> None:
    with ExitStack() as first, ExitStack() as second:
        one, _ = embedded_valkey(family, tmp_path / "valkey", first)
        two, _ = embedded_valkey(family, tmp_path / "valkey", second)
        assert str(tmp_path / "valkey") in one.command
        assert str(tmp_path / "valkey") not in two.command
        first.close()
        three, _ = embedded_valkey(family, tmp_path / "valkey", second)
        assert str(tmp_path / "valkey") in three.command


async def test_ctrl_c_while_it_starts_is_obeyed_though_a_library_lost_the_cancellation() -> None:
    asked = asyncio.Event()

    async def work() -> None:
        with contextlib.suppress(asyncio.CancelledError):  # as redis-py may on Python 3.11
            await asyncio.sleep(60)
        await asyncio.sleep(60)

    asyncio.get_running_loop().call_later(0.01, asked.set)
    ending = asyncio.create_task(_unless(asked, work()))
    ended, _ = await asyncio.wait({ending}, timeout=5)
    ending.cancel()
    assert ended


async def test_what_keeps_it_from_starting_is_told() -> None:
    async def work() -> None:
        raise CannotStart("no Redis")

    with pytest.raises(CannotStart):
        await _unless(asyncio.Event(), work())
