"""What every ChatStore promises, over files and over S3; then FileChatStore on full disks, and in crashes."""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from haltline.chats import UNREADABLE, ChatDocument, ChatStore, ChatStoreError, FileChatStore, VersionConflict
from haltline.chats_s3 import S3ChatStore
from tests.moto import REGION

RUN = "01JD8X5W3ZJ7V5Q9T4N2M6K8R0"


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "sessions"


@pytest.fixture(params=["files", "s3"])
def place(request: pytest.FixtureRequest) -> Path | str:
    """Where chats lie: a directory, or a bucket."""
    found: Path | str = request.getfixturevalue("directory" if request.param == "files" else "bucket")
    return found


def store_at(place: Path | str) -> ChatStore:
    return S3ChatStore(place, REGION) if isinstance(place, str) else FileChatStore(place)


@pytest.fixture
def store(place: Path | str) -> ChatStore:
    return store_at(place)


@pytest.fixture
def disk(directory: Path) -> FileChatStore:
    return FileChatStore(directory)


def chat(chat_id: str, *texts: str) -> ChatDocument:
    document = ChatDocument(chat_id=chat_id)
    for text in texts:
        document.append("user", text, RUN)
    return document


def texts(document: ChatDocument) -> list[str]:
    return [entry["text"] for entry in document.messages]


def files(directory: Path) -> set[str]:
    """Every file below `directory` but the locks."""
    return {str(p.relative_to(directory)) for p in directory.rglob("*") if p.is_file() and p.parent.name != ".locks"}


async def file_of(disk: FileChatStore, directory: Path, chat_id: str) -> Path:
    """The one file that a first save of the chat makes."""
    before = files(directory) if directory.exists() else set()
    await disk.save(chat(chat_id, "Hello"))
    (name,) = files(directory) - before
    return directory / name


# ---- one writer


async def test_a_chat_nobody_wrote_is_empty(store: ChatStore) -> None:
    assert await store.load("trip") == ChatDocument(chat_id="trip")
    assert await store.scan("") == []
    await store.delete(ChatDocument(chat_id="nobody"))


async def test_what_is_saved_is_loaded(store: ChatStore) -> None:
    document = chat("trip", "Hello", "a\r\nb\0\u2028 é水\U0001f600 [DONE]")
    document.append("assistant", "", RUN, stopped=True, reason="user", error="")
    document.snapshot = json.dumps({"n": 1, "f": 0.1, "big": 2**70, "none": None, "list": [{}, [], True]})
    document.unseen = [{"role": "user", "content": [{"text": "Hello"}]}]
    await store.save(document)
    loaded = await store.load("trip")
    assert loaded == document
    assert loaded.version > 0
    assert {k: v for k, v in loaded.messages[2].items() if k != "at"} == {
        "role": "assistant",
        "text": "",
        "run_id": RUN,
        "stopped": True,
        "reason": "user",
    }


async def test_each_save_raises_the_version_by_one(store: ChatStore) -> None:
    document = chat("trip")
    versions = []
    for _ in range(3):
        await store.save(document)
        versions.append(document.version)
        assert (await store.load("trip")).version == document.version
    assert versions == [versions[0], versions[0] + 1, versions[0] + 2]


async def test_delete(store: ChatStore) -> None:
    document = chat("trip", "Hello")
    await store.save(document)
    await store.delete(document)
    with pytest.raises(VersionConflict):
        await store.delete(document)
    assert await store.load("trip") == ChatDocument(chat_id="trip")
    assert await store.scan("") == []


async def test_scan_tells_each_chat_once(store: ChatStore) -> None:
    before = time.time()
    await store.save(chat("one", "a"))
    await store.save(chat("two", "a", "b"))
    await store.save(chat("gone", "a"))
    await store.delete(await store.load("gone"))
    found = sorted(await store.scan(""))
    assert [(chat_id, count) for chat_id, count, _ in found] == [("one", 1), ("two", 2)]
    assert all(before - 1 <= at <= time.time() + 1 for *_, at in found)


# ---- two writers


async def test_the_second_of_two_writers_is_told(store: ChatStore) -> None:
    await store.save(chat("trip", "Hello"))
    one, other = await store.load("trip"), await store.load("trip")
    one.append("user", "one", RUN)
    other.append("user", "other", RUN)
    await store.save(one)
    read = other.version
    with pytest.raises(VersionConflict, match=r"^trip$"):
        await store.save(other)
    assert other.version == read
    assert await store.load("trip") == one


@pytest.mark.parametrize("recreated", [False, True], ids=["deleted", "deleted and created again"])
async def test_a_writer_of_a_deleted_chat_is_told(recreated: bool, store: ChatStore) -> None:
    stale = chat("trip", "before")
    await store.save(stale)
    await store.delete(await store.load("trip"))
    after = ChatDocument(chat_id="trip")
    if recreated:
        after.append("user", "after", RUN)
        await store.save(after)
    with pytest.raises(VersionConflict):
        await store.save(stale)
    assert await store.load("trip") == after


async def test_two_writers_of_a_new_chat(store: ChatStore) -> None:
    one, other = chat("trip", "one"), chat("trip", "other")
    await store.save(one)
    with pytest.raises(VersionConflict):
        await store.save(other)
    assert texts(await store.load("trip")) == ["one"]


async def test_of_many_threads_one_wins(store: ChatStore) -> None:
    await store.save(chat("trip"))
    for _ in range(10):
        documents = [await store.load("trip") for _ in range(20)]
        for n, document in enumerate(documents):
            document.append("user", str(n), RUN)
        results = await asyncio.gather(*map(store.save, documents), return_exceptions=True)
        won = [n for n, result in enumerate(results) if result is None]
        assert len(won) == 1
        assert [type(r) for r in results if r is not None] == [VersionConflict] * 19
        assert await store.load("trip") == documents[won[0]]


WRITERS, LINES = 4, 12


def write_lines(place: Path | str, writer: int, barrier: Any, told: Any) -> None:
    """A process that adds its lines to one chat, reading again whenever it is told of another writer."""

    async def write() -> list[int]:
        store, versions = store_at(place), []
        for n in range(LINES):
            while True:
                document = await store.load("trip")
                document.append("user", f"{writer}.{n}", RUN)
                try:
                    await store.save(document)
                except VersionConflict:
                    continue
                versions.append(document.version)
                break
        return versions

    barrier.wait(30)
    told.put(asyncio.run(write()))


async def test_among_processes_no_line_is_lost(store: ChatStore, place: Path | str) -> None:
    spawn = multiprocessing.get_context("spawn")
    barrier, told = spawn.Barrier(WRITERS), spawn.Queue()
    writers = [spawn.Process(target=write_lines, args=(place, n, barrier, told)) for n in range(WRITERS)]
    for writer in writers:
        writer.start()
    try:
        versions = sorted(v for _ in writers for v in told.get(timeout=40))
    finally:
        for writer in writers:
            writer.join(10)
            writer.kill()
        told.close()
        told.join_thread()
    document = await store.load("trip")
    assert sorted(texts(document)) == sorted(f"{w}.{n}" for w in range(WRITERS) for n in range(LINES))
    for w in range(WRITERS):
        assert [t for t in texts(document) if t.startswith(f"{w}.")] == [f"{w}.{n}" for n in range(LINES)]
    assert versions == list(range(versions[0], versions[0] + WRITERS * LINES))
    assert document.version == versions[-1]


async def test_a_deletion_of_what_was_written_since_is_refused(store: ChatStore) -> None:
    document = chat("trip", "before")
    await store.save(document)
    seen = await store.load("trip")
    document.append("user", "after", RUN)
    await store.save(document)
    with pytest.raises(VersionConflict):
        await store.delete(seen)
    assert texts(await store.load("trip")) == ["before", "after"]


@pytest.mark.parametrize("version", [0, UNREADABLE], ids=["of no chat", "of a chat that cannot be read"])
async def test_a_deletion_that_knows_nothing_of_a_whole_chat_is_refused(version: int, store: ChatStore) -> None:
    await store.save(chat("trip", "Hello"))
    with pytest.raises(VersionConflict):
        await store.delete(ChatDocument(chat_id="trip", version=version))
    assert texts(await store.load("trip")) == ["Hello"]


async def test_a_deletion_of_an_unreadable_chat_that_is_gone_is_refused(store: ChatStore) -> None:
    with pytest.raises(VersionConflict):
        await store.delete(ChatDocument(chat_id="trip", version=UNREADABLE))


async def test_ids_that_differ_in_case_stay_apart(store: ChatStore) -> None:
    ids = ["trip", "Trip", "TRIP", "tRIP", "trip.json", "9", "a" * 128, "-._-".join("aZ0")]
    for chat_id in ids:
        await store.save(chat(chat_id, chat_id))
    assert [texts(await store.load(i)) for i in ids] == [[i] for i in ids]
    assert sorted(i for i, *_ in await store.scan("")) == sorted(ids)


# ---- versions


async def lifetime(store: ChatStore, saves: int) -> list[int]:
    """The versions of a chat from its first save to its deletion."""
    document, versions = chat("trip"), []
    for _ in range(saves):
        await store.save(document)
        versions.append(document.version)
    await store.delete(document)
    return versions


async def test_a_chat_created_again_repeats_no_version(store: ChatStore) -> None:
    versions = [version for _ in range(20) for version in await lifetime(store, 5)]
    assert len(versions) == len(set(versions)) == 100


# ---- crashes and full disks


def in_a_process(code: str, directory: Path) -> subprocess.CompletedProcess[str]:
    """Run `code` in a process of its own; it finds `store` over `directory`, and what it needs imported."""
    head = f"""
import asyncio, os, resource, signal
from pathlib import Path
from haltline.chats import UNREADABLE, ChatDocument, ChatStoreError, FileChatStore
store = FileChatStore(Path({str(directory)!r}))
"""
    return subprocess.run(
        [sys.executable, "-c", head + code],
        env=dict(os.environ),
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )


SAVE_MORE = """
async def save_more():
    document = await store.load("trip")
    document.append("user", "x" * 1_000_000, "r")
    version = document.version
    try:
        await store.save(document)
    except ChatStoreError as error:
        print(error, document.version == version)

asyncio.run(save_more())
"""


async def test_a_full_disk_leaves_the_chat_as_it_was(disk: FileChatStore, directory: Path) -> None:
    document = chat("trip", "Hello")
    await disk.save(document)
    before = files(directory)
    ended = in_a_process(f"resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n{SAVE_MORE}", directory)
    assert (ended.returncode, ended.stdout) == (0, "the session store cannot be written: File too large True\n")
    assert files(directory) == before  # no half-written file either
    assert await disk.load("trip") == document
    await disk.save(document)


async def test_a_full_disk_and_a_new_chat(disk: FileChatStore, directory: Path) -> None:
    ended = in_a_process(f"resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n{SAVE_MORE}", directory)
    assert (ended.returncode, ended.stdout) == (0, "the session store cannot be written: File too large True\n")
    assert files(directory) == set()
    assert await disk.load("trip") == ChatDocument(chat_id="trip")


@pytest.mark.parametrize(
    "moment",
    [
        pytest.param("os.fsync = lambda fd: os.kill(os.getpid(), signal.SIGKILL)", id="before the file is on disk"),
        pytest.param("Path.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)", id="before the rename"),
    ],
)
async def test_a_process_killed_in_a_save_leaves_the_chat_as_it_was(
    moment: str, disk: FileChatStore, directory: Path
) -> None:
    document = chat("trip", "Hello")
    await disk.save(document)
    ended = in_a_process(f"{moment}\n{SAVE_MORE}", directory)
    assert (ended.returncode, ended.stdout, ended.stderr) == (-9, "", "")
    assert await disk.load("trip") == document
    assert [(chat_id, count) for chat_id, count, _ in await disk.scan("")] == [("trip", 1)]
    document.append("user", "on", RUN)
    await disk.save(document)  # its lock went with it, and what it left is in nobody's way
    assert texts(await disk.load("trip")) == ["Hello", "on"]
    assert len(files(directory)) == 1


@pytest.mark.parametrize("verb", ["load", "save", "delete"])
async def test_a_store_that_is_no_directory(verb: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    store = FileChatStore(tmp_path / "file")
    with pytest.raises(ChatStoreError):
        await getattr(store, verb)("trip" if verb == "load" else chat("trip"))


async def test_a_scan_tells_chats_only(disk: FileChatStore, directory: Path) -> None:
    await disk.save(chat("one", "a"))
    (directory / "notes.txt").write_text("{}")
    (directory / "half.tmp").write_text(chat("half").model_dump_json())
    (directory / "broken.json").write_text("{")
    (directory / "directory.json").mkdir()
    assert [(chat_id, count) for chat_id, count, _ in await disk.scan("")] == [("one", 1)]


async def test_a_scan_of_no_directory_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ChatStoreError):
        await FileChatStore(tmp_path / "file").scan("")


# ---- names


async def test_names_of_files_differ_in_more_than_case(disk: FileChatStore, directory: Path) -> None:
    ids = ["trip", "Trip", "TRIP", "tRIP"]
    for chat_id in ids:
        await disk.save(chat(chat_id, chat_id))
    assert len({name.casefold() for name in files(directory)}) == len(ids)


HOSTILE = [
    "..",
    "../../escaped",
    "/tmp/escaped",
    "a/b",
    "a\\b",
    "a\0b",
    "a\nb",
    "",
    ".locks",
    "CON",
    "~root",
    "é",
    "e\u0301",
    "x" * 10_000,
    "trip.json",
    "trip.tmp",
    "*",
]


async def test_no_id_leaves_the_directory(disk: FileChatStore, directory: Path, tmp_path: Path) -> None:
    for chat_id in HOSTILE:
        await disk.save(chat(chat_id, chat_id))
    assert [texts(await disk.load(i)) for i in HOSTILE] == [[i] for i in HOSTILE]
    assert [p.name for p in tmp_path.iterdir()] == ["sessions"]
    kept = [path.relative_to(directory) for path in directory.rglob("*.json")]
    assert len(kept) == len(HOSTILE)
    # What stands before a slash is a principal: a directory.
    assert sum(len(path.parts) == 2 for path in kept) == sum("/" in i for i in HOSTILE)
    names = {part for path in kept for part in path.parts}
    assert all(len(n) < 100 and n.isascii() and n.replace(".json", "").isalnum() for n in names)
    assert sorted(i for i, _, _ in await disk.scan(None)) == sorted(HOSTILE)
    for i in HOSTILE:
        await disk.delete(await disk.load(i))
    assert not list(directory.rglob("*.json"))


# ---- files that cannot be read


def contents() -> Iterator[Any]:
    whole = chat("trip", "secret").model_dump_json().encode()
    yield pytest.param(b"", id="empty")
    yield pytest.param(whole[:-1], id="cut off")
    yield pytest.param(whole + b"x", id="with something behind")
    yield pytest.param(whole.replace(b"secret", b"secret\xff"), id="bad UTF-8")
    yield pytest.param(b"secret", id="no JSON")
    yield pytest.param(b"[]", id="a list")
    yield pytest.param(b"{}", id="no chat")
    yield pytest.param(whole.replace(b'"version":0', b'"version":"secret"'), id="a version that is none")
    yield pytest.param(whole.replace(b'"role":"user",', b""), id="a line without a role")
    yield pytest.param(None, id="a directory")


@pytest.mark.parametrize("content", list(contents()))
async def test_a_file_that_cannot_be_read(content: bytes | None, disk: FileChatStore, directory: Path) -> None:
    path = await file_of(disk, directory, "trip")
    path.unlink()
    if content is None:
        path.mkdir()
    else:
        path.write_bytes(content)
    for verb in (disk.load("trip"), disk.save(chat("trip"))):
        with pytest.raises(ChatStoreError) as error:
            await verb
        assert "secret" not in str(error.value)
        assert str(directory) not in str(error.value)
    assert (path.read_bytes() if content is not None else None) == content  # not overwritten: it may yet be mended
    assert await disk.scan("") == []
    await disk.save(chat("other", "Hello"))
    assert texts(await disk.load("other")) == ["Hello"]


async def test_a_chat_that_cannot_be_read_can_be_deleted(disk: FileChatStore, directory: Path) -> None:
    (await file_of(disk, directory, "trip")).write_bytes(b"{")
    await disk.delete(ChatDocument(chat_id="trip", version=UNREADABLE))
    await disk.save(chat("trip", "anew"))
    assert texts(await disk.load("trip")) == ["anew"]


# ---- a save that need not read what it replaces


async def test_a_save_reads_nothing_of_a_file_that_is_still_the_one_it_knows(
    disk: FileChatStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    await disk.save(chat("trip", "Hello"))
    document = await disk.load("trip")
    monkeypatch.setattr("haltline.chats.document_of", None)
    for text in ("one", "two"):
        document.append("user", text, RUN)
        await disk.save(document)
    monkeypatch.undo()
    assert texts(await disk.load("trip")) == ["Hello", "one", "two"]


@pytest.mark.parametrize("size", ["the same", "another"])
async def test_a_file_that_only_looks_like_it_is_another(disk: FileChatStore, directory: Path, size: str) -> None:
    """Written by another in the same place, at the same time as far as its file tells."""
    await disk.save(chat("trip", "Hello"))
    mine = await disk.load("trip")
    (path,) = directory.glob("*.json")
    about, theirs = path.stat(), await disk.load("trip")
    theirs.version += 1
    body = theirs.model_dump_json().replace("Hello", "World" if size == "the same" else "Hello, world")
    path.write_text(body)
    os.utime(path, ns=(about.st_atime_ns, about.st_mtime_ns))
    with pytest.raises(VersionConflict):
        await disk.save(mine)
    assert texts(await disk.load("trip")) == ["World" if size == "the same" else "Hello, world"]


def test_nobody_else_may_read_the_directory_that_is_made(directory: Path) -> None:
    old = os.umask(0o000)
    try:
        FileChatStore(directory).prepare()
    finally:
        os.umask(old)
    assert directory.stat().st_mode & 0o777 == 0o700


def test_a_directory_that_is_there_keeps_its_mode(directory: Path) -> None:
    directory.mkdir()
    directory.chmod(0o770)  # a group shares it
    FileChatStore(directory).prepare()
    assert directory.stat().st_mode & 0o777 == 0o770
