"""Chats at rest: one JSON document a chat, behind three verbs. No event loop is blocked: files are read in threads.

A document holds the whole transcript, as the user saw it, and the agent's snapshot, as the model sees it.
Saving is conditional on the version that was read, so that of two writers one is told.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import secrets
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any, NotRequired, Protocol

from anyio import to_thread
from pydantic import BaseModel, Field, PrivateAttr, ValidationError
from pydantic_core import from_json, to_json
from typing_extensions import TypedDict

from haltline.principals import chat_id_of, namespace

LOCKED_FOR, LOOK_AGAIN = 3.0, 0.005  # seconds that a lock is waited for, and between two looks at it
UNREADABLE = -1  # the version of a chat that is there and cannot be read: it can be deleted


class Entry(TypedDict):
    """One line of the transcript. `stopped` and `error` stand only where they are so."""

    role: str
    text: str
    at: str
    run_id: str
    stopped: NotRequired[bool]
    reason: NotRequired[str]
    error: NotRequired[str]


class ChatDocument(BaseModel):
    """One chat, by its scoped id.

    `version` 0 is a chat nobody has written; versions of a chat never come twice, deleted or not.
    """

    version: int = 0
    chat_id: str
    messages: list[Entry] = Field(default_factory=list)
    snapshot: str | None = None  # the agent's own, as JSON text: only the agent reads it
    unseen: list[dict[str, Any]] = Field(default_factory=list)  # messages since then, of turns whose agent never ran
    _etag: str = PrivateAttr("")  # what S3 knows this version by; only its store sets and reads it
    _file: Any = PrivateAttr(None)  # what tells the file of this version from others, for the store of files

    def append(self, role: str, text: str, run_id: str, **marks: Any) -> None:
        """Add a line to the transcript; `marks` that are false or None are left out."""
        at = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        entry: dict[str, Any] = {"role": role, "text": text, "at": at, "run_id": run_id}
        self.messages.append(entry | {k: v for k, v in marks.items() if v})  # type: ignore[arg-type]

    def next_version(self) -> int:
        """The version that a save of this document gets."""
        # A new chat begins at random: one that was deleted and made again must not come upon an old version.
        return self.version + 1 if self.version else secrets.randbits(62) + 1


def document_of(data: bytes) -> ChatDocument:
    """A chat as it lies at rest. Raises: ValueError, ValidationError where it is none."""
    # "keys": the reader would keep 16,384 short strings for the next time, and times and ids never come again.
    return ChatDocument.model_validate(from_json(data, cache_strings="keys"))


class VersionConflict(Exception):
    """The chat was written by another since it was read. Nothing was saved."""


class ChatStoreError(Exception):
    """The store could not be read or written. What it held before is intact."""


class ChatDamaged(ChatStoreError):
    """What lies there is no chat. Unlike any other failure it does not pass, so such a chat can be deleted."""


class ChatStore(Protocol):
    """Where chats lie. Every verb raises ChatStoreError when the store fails."""

    async def load(self, chat_id: str) -> ChatDocument:
        """The chat; an empty document of version 0 where there is none."""

    async def save(self, document: ChatDocument) -> None:
        """Save if the stored version is still `document.version`, then raise it. Raises: VersionConflict."""

    async def delete(self, document: ChatDocument) -> None:
        """Delete if the stored version is still `document.version`. Raises: VersionConflict.

        A chat that cannot be read has the version UNREADABLE.
        """

    async def scan(self, namespace: str | None) -> list[tuple[str, int, float]]:
        """Every chat of a namespace (see `principals`), None for all.

        Of each its scoped id, the number of messages, the time of the last write (seconds since the epoch).
        """


class ThreadedStore(ABC):
    """The verbs of a store that is read and written by blocking calls: each in a thread."""

    async def load(self, chat_id: str) -> ChatDocument:
        """See `ChatStore.load`."""
        return await to_thread.run_sync(self._load, chat_id)

    async def save(self, document: ChatDocument) -> None:
        """See `ChatStore.save`."""
        await to_thread.run_sync(self._save, document)

    async def delete(self, document: ChatDocument) -> None:
        """See `ChatStore.delete`."""
        await to_thread.run_sync(self._delete, document)

    async def scan(self, namespace: str | None) -> list[tuple[str, int, float]]:
        """See `ChatStore.scan`. Reads every chat."""
        return await to_thread.run_sync(self._scan, namespace)

    @abstractmethod
    def _load(self, chat_id: str) -> ChatDocument: ...

    @abstractmethod
    def _save(self, document: ChatDocument) -> None: ...

    @abstractmethod
    def _delete(self, document: ChatDocument) -> None: ...

    @abstractmethod
    def _scan(self, namespace: str | None) -> list[tuple[str, int, float]]: ...


class FileChatStore(ThreadedStore):
    """One file a chat below `directory`, shared by every replica that mounts it; each principal has a directory in it.

    A file's name is a hash of the chat id: no id can leave the directory, and ids that differ only in case stay
    apart on file systems that fold it. So is a principal's directory. A save writes a new file and renames it, so a
    crash or a full disk leaves the old one whole.
    """

    def __init__(self, directory: Path) -> None:
        self._directory, self._locks = directory, directory / ".locks"
        self._device: int | None = None  # the file system that the store was seen on

    def prepare(self) -> None:
        """Make the directory where there is none. Raises: ChatStoreError when nothing can be written into it."""
        try:
            self._make_directory()
            os.scandir(self._directory).close()
            tempfile.TemporaryFile(dir=self._directory).close()
            self._make_locks()
        except FileExistsError as error:
            raise ChatStoreError("there is a file in its place") from error
        except OSError as error:
            raise ChatStoreError(f"user {os.getuid()} cannot use it: {error.strerror or error}") from error

    def _path(self, chat_id: str) -> Path:
        return self._home(namespace(chat_id)) / f"{_hashed(chat_id_of(chat_id))}.json"

    def _home(self, owner: str) -> Path:
        return self._directory / _hashed(owner) if owner else self._directory

    def _load(self, chat_id: str) -> ChatDocument:
        path = self._path(chat_id)
        try:
            with path.open("rb") as file:
                known_by = _known_by(file)
                document = document_of(file.read())
                document._file = known_by
                return document
        except FileNotFoundError:
            self._check_there()
            return ChatDocument(chat_id=chat_id)
        except OSError as error:
            raise ChatStoreError(f"the chat cannot be read: {error.strerror}") from error
        except (ValueError, ValidationError) as error:
            raise ChatDamaged("the chat's document is damaged") from error

    def _save(self, document: ChatDocument) -> None:
        path = self._path(document.chat_id)
        with self._locked(path):
            if not self._is_still(path, document) and self._load(document.chat_id).version != document.version:
                raise VersionConflict(document.chat_id)
            version = document.next_version()
            path.parent.mkdir(exist_ok=True)
            fresh = path.with_suffix(".tmp")
            try:
                with fresh.open("wb") as out:
                    out.write(to_json(document.model_copy(update={"version": version})))
                    out.flush()
                    os.fsync(out.fileno())
                    known_by = _known_by(out)
                fresh.replace(path)
            except BaseException:
                fresh.unlink(missing_ok=True)
                raise
            document.version, document._file = version, known_by

    def _is_still(self, path: Path, document: ChatDocument) -> bool:
        """Whether the file is the one that was read or written, told without reading all of it once more."""
        if document._file is None:
            return False
        try:
            with path.open("rb") as file:
                # An inode's number comes again; the version never does.
                same = _known_by(file) == document._file
                return same and file.read(64).startswith(b'{"version":%d,' % document.version)
        except OSError:
            return False

    def _delete(self, document: ChatDocument) -> None:
        path = self._path(document.chat_id)
        with self._locked(path):
            try:
                version = self._load(document.chat_id).version
            except ChatDamaged:
                version = UNREADABLE
            if version != document.version:
                raise VersionConflict(document.chat_id)
            path.unlink(missing_ok=True)

    def _scan(self, owner: str | None) -> list[tuple[str, int, float]]:
        found = []
        self._check_there()
        try:
            for path in self._files(owner):
                try:
                    document = document_of(path.read_bytes())
                    found.append((document.chat_id, len(document.messages), path.stat().st_mtime))
                except (FileNotFoundError, IsADirectoryError, ValueError):
                    continue  # deleted meanwhile, or not one of ours
        except FileNotFoundError:
            return []
        except OSError as error:  # of any file: a list that lacks chats would be taken for the whole
            raise ChatStoreError(f"the session store cannot be listed: {error.strerror}") from error
        return found

    def _files(self, owner: str | None) -> Iterator[Path]:
        for entry in os.scandir(self._home(owner or "")):
            if entry.name.endswith(".json"):
                yield Path(entry.path)
            elif owner is None and entry.name != self._locks.name and entry.is_dir():
                yield from (Path(inner.path) for inner in os.scandir(entry.path) if inner.name.endswith(".json"))

    def _check_there(self) -> None:
        """Called where something was not found. Raises: ChatStoreError where the store that was here is gone.

        Otherwise a directory that was moved away, or whose volume is not mounted, would be one of new chats.
        """
        if self._device is None or os.path.exists(self._locks):
            return
        try:
            there = os.stat(self._directory).st_dev == self._device  # else it was emptied, which is not for us to judge
        except OSError:
            there = False
        if not there:
            raise ChatStoreError("the session store's directory (SESSION_DIR) is gone")

    def _make_directory(self) -> None:
        # Chats are nobody else's to read. One that is there already is as its owner wants it.
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)

    def _make_locks(self) -> None:
        self._make_directory()
        self._locks.mkdir(exist_ok=True)
        self._device = os.stat(self._directory).st_dev

    @contextmanager
    def _locked(self, path: Path) -> Iterator[None]:
        """Hold the lock of a chat among all processes. 256 lock files serve all chats."""
        try:
            try:
                lock = (self._locks / path.name[:2]).open("ab")
            except FileNotFoundError:
                self._check_there()
                self._make_locks()
                lock = (self._locks / path.name[:2]).open("ab")
            with lock:
                _take(lock)
                yield
        except OSError as error:
            raise ChatStoreError(f"the session store cannot be written: {error.strerror}") from error


def _take(lock: IO[bytes]) -> None:
    """Wait for a lock in a thread, but not for ever: a replica that is frozen within a write keeps it.

    Raises: ChatStoreError.
    """
    until = time.monotonic() + LOCKED_FOR
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > until:
                raise ChatStoreError("another replica has held this chat's lock for too long") from None
            time.sleep(LOOK_AGAIN)
        else:
            return


def _hashed(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()[:40]


def _known_by(file: IO[bytes]) -> tuple[int, int, int]:
    about = os.fstat(file.fileno())
    return about.st_ino, about.st_size, about.st_mtime_ns
