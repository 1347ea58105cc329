"""A replica with a home of its own, and what a hostile client must not be able to change about it."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path

from tests.stack import ROOT, Replica, Stack, running_stack

MAX_GROWTH = 64 * 1024  # KiB of memory at the peak: what the largest requests that are read may take together
CHAT_FILE = re.compile(r"[0-9a-f]{40}\.json")
LOCK_FILE = re.compile(r"\.locks(/[0-9a-f]{2})?")


class Watched:
    """One replica. `check` compares it with what it was when this was made."""

    def __init__(self, stack: Stack, replica: Replica) -> None:
        self.stack, self.replica = stack, replica
        self._read = len(replica.log.read_bytes())
        self._files = self._outside()
        self._peak = self._memory("VmHWM")

    def check(self) -> None:
        """Nothing failed, nothing was written but chats, the process lives and has not grown."""
        assert self.replica.process.poll() is None, "the replica has died"
        # The log, from where the last look ended.
        said = self.replica.log.read_bytes()[self._read :]
        self._read += len(said)
        for line in said.decode().splitlines():
            assert not re.search(r"Traceback| ERROR | CRITICAL ", line), said.decode()
            assert not re.search(r"status=<5\d\d>", line), line
        assert self._outside() == self._files, "something was written outside the session store"
        self._check_store()
        grown = self._memory("VmHWM") - self._peak
        assert grown <= MAX_GROWTH, f"the replica took {grown} KiB more"

    def _check_store(self) -> None:
        store = self.stack.session_dir
        for path in store.rglob("*"):
            name = str(path.relative_to(store))
            if LOCK_FILE.fullmatch(name) or name.endswith(".tmp"):  # a save that is under way
                continue
            assert CHAT_FILE.fullmatch(name), f"{name} is no chat's file"
            with contextlib.suppress(FileNotFoundError):  # deleted meanwhile
                chat_id = json.loads(path.read_bytes())["chat_id"]
                assert re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}", chat_id), chat_id
                assert path.stem == hashlib.sha256(chat_id.encode()).hexdigest()[:40]

    def _outside(self) -> dict[str, tuple[int, int]]:
        """Every file that this replica could reach by a path of its own: where it runs, its home, the package."""
        places = (self.stack.log_dir, ROOT / "layers", ROOT / "examples")
        mine = (self.replica.log, self.stack.session_dir, self.stack.log_dir / "valkey")
        found = {}
        for path in (p for place in places for p in place.rglob("*")):
            if "__pycache__" in path.parts or any(path == m or m in path.parents for m in mine):
                continue
            about = path.lstat()
            found[str(path)] = (about.st_size, 0 if path.is_dir() else about.st_mtime_ns)
        return found

    def _memory(self, name: str) -> int:
        lines = Path(f"/proc/{self.replica.process.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(name))


@contextlib.contextmanager
def watched_replica(directory: Path) -> Iterator[Watched]:
    """Start one, with the scripted model at its fastest."""
    homes = {name: directory / name.lower() for name in ("HOME", "TMPDIR", "XDG_CACHE_HOME")}
    for path in homes.values():
        path.mkdir()
    with running_stack(directory, replicas=0) as stack:
        replica = stack.add_replica(SCRIPTED_PACE_MS="0", **{name: str(path) for name, path in homes.items()})
        replica.wait_until_live()
        yield Watched(stack, replica)
