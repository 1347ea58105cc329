"""The list of chats, newest first: kept in Redis so that a page costs the same however many chats there are.

It is a copy: the chat documents are the truth. Where Redis has lost it, it is made again from the store.
Every principal has a list of its own, in keys with its namespace behind them (`index:{chats}:ada`; nothing with
AUTH=none); they name chats by their scoped ids. All keys lie in one slot: `index:{chats}` (chat by time of its last
turn, ms), `info:{chats}` (number of messages) and `live:{chats}` (chats with a run when they were last written);
`gone:{chats}` names what was deleted lately. Of all principals together are `whole:{chats}`, which names the lists
that are whole, `live:{chats}` without a namespace, whole where the list without one is, and `stopped:{chats}`, the time
(ms) of the latest stop that means all chats: a run that is listed only after it finds it there.
"""

from __future__ import annotations

import base64
import binascii
import json
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

from redis.asyncio import Redis

from haltline.chats import ChatStore
from haltline.principals import LimitReached, chat_id_of, namespace
from haltline.redis_bus import reachable
from haltline.runs import Arrival
from haltline.signals import SignalBus

WHOLE, STOPPED, LIVE_OF_ALL = "whole:{chats}", "stopped:{chats}", "live:{chats}"
REBUILD_AT_ONCE = 1000  # chats
GONE_FOR = 600_000  # ms that a deleted chat is remembered: longer than the store is read for a list
ROOM_LATER = 60  # seconds after which it is worth trying whether a chat was deleted meanwhile


def keys(namespace: str) -> list[str]:
    """The keys of every script, in order, for the list of one principal."""
    own = f":{namespace}" if namespace else ""
    return [*(f"{what}:{{chats}}{own}" for what in ("index", "info", "live", "gone")), WHOLE, STOPPED, LIVE_OF_ALL]


# ARGV: chat, messages, time ms, '1' | '' live
_PUT = """
redis.call('ZADD', KEYS[1], ARGV[3], ARGV[1])
redis.call('ZREM', KEYS[4], ARGV[1])
redis.call('HSET', KEYS[2], ARGV[1], ARGV[2])
for _, live in ipairs({KEYS[3], KEYS[7]}) do
  if ARGV[4] == '1' then redis.call('HSET', live, ARGV[1], '1') else redis.call('HDEL', live, ARGV[1]) end
end
return redis.call('GET', KEYS[6])
"""
# ARGV: chat, time ms, ms that it is remembered
_REMOVE = """
redis.call('ZREM', KEYS[1], ARGV[1]); redis.call('HDEL', KEYS[2], ARGV[1])
redis.call('HDEL', KEYS[3], ARGV[1]); redis.call('HDEL', KEYS[7], ARGV[1])
-- whoever makes the list again, now or with another, may have seen the chat before it was deleted
redis.call('ZADD', KEYS[4], ARGV[2], ARGV[1]); redis.call('PEXPIRE', KEYS[4], ARGV[3])
redis.call('ZREMRANGEBYSCORE', KEYS[4], '-inf', ARGV[2] - ARGV[3]) -- or who goes on deleting would fill the memory
"""
# ARGV: stamp ms, age ms, ttl s. As in STOP: a stamp from the future counts as now.
_STOP_ALL = """
local t, given = redis.call('TIME'), tonumber(ARGV[1])
local now = t[1] * 1000 + t[2] / 1000
if given <= 0 then given = now - tonumber(ARGV[2]) elseif given > now + 1000 then given = now end
if given > tonumber(redis.call('GET', KEYS[6]) or 0) then
  redis.call('SET', KEYS[6], string.format('%.3f', given), 'EX', ARGV[3])
end
return {redis.call('HEXISTS', KEYS[5], KEYS[1]), redis.call('HKEYS', KEYS[7])}
"""
# ARGV: chat, time ms, most chats. Makes room in the list for a chat that is about to be written for the first time.
_ADMIT = """
if redis.call('ZSCORE', KEYS[1], ARGV[1]) then return 'listed' end
if redis.call('HEXISTS', KEYS[5], KEYS[1]) == 0 then return 'not whole' end
if redis.call('ZCARD', KEYS[1]) >= tonumber(ARGV[3]) then return 'full' end
redis.call('ZADD', KEYS[1], ARGV[2], ARGV[1]); redis.call('HSET', KEYS[2], ARGV[1], '0')
return 'listed'
"""
# ARGV: limit, score and id of the last chat of the page before ('' for the first page). Newest first; of two chats of
# one millisecond the greater id comes first, as Redis orders them.
_PAGE = """
if redis.call('HEXISTS', KEYS[5], KEYS[1]) == 0 then return false end
local function not_before(a, b) -- by bytes, as ZRANGE orders; Lua's own comparison is the server's locale's
  for i = 1, math.min(#a, #b) do
    if string.byte(a, i) ~= string.byte(b, i) then return string.byte(a, i) > string.byte(b, i) end
  end
  return #a >= #b
end
local page, limit, offset = {}, tonumber(ARGV[1]), 0
local top = ARGV[2] ~= '' and ARGV[2] or '+inf'
while #page < limit do
  local got = redis.call('ZRANGE', KEYS[1], top, '-inf', 'BYSCORE', 'REV', 'LIMIT', offset, limit, 'WITHSCORES')
  if #got == 0 then break end
  for i = 1, #got, 2 do
    local seen = ARGV[2] ~= '' and tonumber(got[i + 1]) == tonumber(ARGV[2]) and not_before(got[i], ARGV[3])
    if not seen and #page < limit then
      table.insert(page, {got[i], got[i + 1], redis.call('HGET', KEYS[2], got[i]) or '0'})
    end
  end
  offset = offset + #got / 2
end
return {redis.call('ZCARD', KEYS[1]), cjson.encode(page)}
"""
# ARGV: '1' for the last part | '', then [chat, messages, time ms]... What the index knows already is newer.
_REBUILD = """
for i = 2, #ARGV, 3 do
  local gone = redis.call('ZSCORE', KEYS[4], ARGV[i])
  if not gone and redis.call('ZADD', KEYS[1], 'NX', ARGV[i + 2], ARGV[i]) == 1 then
    redis.call('HSET', KEYS[2], ARGV[i], ARGV[i + 1])
  end
end
if ARGV[1] == '1' then redis.call('HSET', KEYS[5], KEYS[1], '1') end
"""


@dataclass(frozen=True, slots=True)
class Listed:
    """One chat in a list. `updated_ms` since the epoch."""

    chat_id: str
    message_count: int
    updated_ms: int
    run_id: str | None

    @property
    def updated_at(self) -> str:
        """ISO 8601, UTC, milliseconds."""
        at = datetime.fromtimestamp(self.updated_ms / 1000, UTC)
        return at.isoformat(timespec="milliseconds").replace("+00:00", "Z")


@dataclass(frozen=True, slots=True)
class Page:
    """`count` is the number of all chats; `next_cursor` is None on the last page."""

    chats: list[Listed]
    count: int
    next_cursor: str | None


class BadCursor(ValueError):
    """The cursor was not made by this list."""


class ChatIndex:
    """The lists over one Redis."""

    def __init__(self, redis: Redis, bus: SignalBus, store: ChatStore) -> None:
        self._redis, self._bus, self._store = redis, bus, store
        self._put, self._remove, self._stop_all, self._admit, self._page, self._rebuild = (
            redis.register_script(s) for s in (_PUT, _REMOVE, _STOP_ALL, _ADMIT, _PAGE, _REBUILD)
        )

    async def put(self, chat_id: str, message_count: int, *, live: bool) -> float:
        """Note that the chat was written now. Returns the time (ms) of the latest stop that means all chats.

        Raises: BusUnavailable.
        """
        async with reachable():
            stopped = await self._put(
                keys=keys(namespace(chat_id)), args=[chat_id, message_count, _now(), "1" if live else ""]
            )
        return float(stopped or 0)

    async def stop_all(self, arrival: Arrival, ttl: int) -> tuple[bool, list[str]]:
        """Note a stop that means all, for `ttl` seconds; whether all lists are whole, and their chats that have a run.

        A run is either among them or finds the stop when it is listed. Raises: BusUnavailable.
        """
        async with reachable():
            whole, live = await self._stop_all(keys=keys(""), args=[arrival.stamp, arrival.age_ms, ttl])
        return bool(whole), list(live)

    async def remove(self, chat_id: str) -> None:
        """Forget a deleted chat. Raises: BusUnavailable."""
        async with reachable():
            await self._remove(keys=keys(namespace(chat_id)), args=[chat_id, _now(), GONE_FOR])

    async def admit(self, chat_id: str, most: int) -> None:
        """List a chat that is about to be written for the first time, where its principal has fewer than `most`.

        Raises: LimitReached; BusUnavailable; ChatStoreError where the list had to be made again and could not.
        """
        while True:
            async with reachable():
                answer = await self._admit(keys=keys(namespace(chat_id)), args=[chat_id, _now(), most])
            if answer == "listed":
                return
            if answer == "full":
                raise LimitReached(f"There are {most} chats, as many as may be. Delete one.", ROOM_LATER)
            await self.rebuild(namespace(chat_id))

    async def page(self, owner: str, limit: int, cursor: str | None, status: Literal["idle", "running"] | None) -> Page:
        """At most `limit` chats of a namespace after `cursor`.

        Raises: BadCursor; BusUnavailable; ChatStoreError where the index had to be made again and could not.
        """
        after = _decode(cursor, owner) if cursor else ("", "")
        live = await self._live(owner)  # first: it waits for runs that were told to halt, which then are in the rows
        if status == "running":
            return await self._running(owner, limit, after, live)
        chats: list[Listed] = []
        while True:
            wanted = limit - len(chats)
            count, rows = await self._rows(owner, wanted + 1, after)
            more = len(rows) > wanted
            live |= await self._bus.live_among(r[0] for r in rows[:wanted])
            for chat_id, score, messages in rows[:wanted]:
                after = (score, chat_id)
                if status is None or chat_id not in live:
                    chats.append(Listed(chat_id, int(messages), int(float(score)), live.get(chat_id)))
            if not more or len(chats) >= limit:
                return Page(chats, count, _encode(*after) if more else None)

    async def _rows(self, owner: str, limit: int, after: tuple[str, str]) -> tuple[int, list[tuple[str, str, str]]]:
        for _ in range(2):
            async with reachable():
                answer = await self._page(keys=keys(owner), args=[limit, *after])
            if answer is not None:
                return int(answer[0]), [tuple(row) for row in json.loads(answer[1])]
            await self.rebuild(owner)
        return 0, []  # emptied twice while we looked

    async def rebuild(self, owner: str | None) -> None:
        """Make the list of a namespace again, or those of all. Raises: BusUnavailable, ChatStoreError.

        All as well where that of nobody is asked for, as one that is whole says that all are.
        """
        found: dict[str, list[tuple[str, int, float]]] = {owner or "": []}
        for chat in await self._store.scan(owner or None):
            found.setdefault(namespace(chat[0]), []).append(chat)
        live = await self._bus.live_among([chat for chats in found.values() for chat, _, _ in chats])
        async with reachable():
            if live:
                await self._redis.hset(LIVE_OF_ALL, mapping=dict.fromkeys(live, "1"))
            # That of nobody last: it says that all are whole.
            for whose, chats in sorted(found.items(), reverse=True):
                if own := [chat for chat, _, _ in chats if chat in live]:
                    await self._redis.hset(keys(whose)[2], mapping=dict.fromkeys(own, "1"))
                for i in range(0, max(len(chats), 1), REBUILD_AT_ONCE):
                    part = [x for c, n, at in chats[i : i + REBUILD_AT_ONCE] for x in (c, n, int(at * 1000))]
                    last = i + REBUILD_AT_ONCE >= len(chats)
                    await self._rebuild(keys=keys(whose), args=["1" if last else "", *part])

    async def _live(self, owner: str) -> dict[str, str]:
        async with reachable():
            noted = [str(i) for i in await self._redis.hkeys(keys(owner)[2])]
        return await self._bus.live_among(noted)

    async def _running(self, owner: str, limit: int, after: tuple[str, str], live: dict[str, str]) -> Page:
        """The live ones are few: sort them here."""
        count, _ = await self._rows(owner, 1, ("", ""))
        if not live:
            return Page([], count, None)
        ids = list(live)
        async with reachable():
            scores = await self._redis.zmscore(keys(owner)[0], ids)
            messages = await self._redis.hmget(keys(owner)[1], ids)
        rows = [Listed(i, int(m or 0), int(s or 0), live[i]) for i, s, m in zip(ids, scores, messages, strict=True)]
        rows.sort(key=lambda r: (r.updated_ms, r.chat_id), reverse=True)
        if after[0]:
            rows = [r for r in rows if (r.updated_ms, r.chat_id) < (int(float(after[0])), after[1])]
        page = rows[:limit]
        more = len(rows) > limit
        return Page(page, count, _encode(str(page[-1].updated_ms), page[-1].chat_id) if more else None)


async def forget(redis: Redis) -> None:
    """Make the next page read the store: it may hold chats that this Redis has never seen. Raises: BusUnavailable."""
    async with reachable():
        await redis.delete(WHOLE)


def _now() -> int:
    return int(time.time() * 1000)


def _encode(score: str, chat_id: str) -> str:
    # Whose list it is its reader knows; a principal's name could make it longer than a query may be.
    return base64.urlsafe_b64encode(f"{score} {chat_id_of(chat_id)}".encode()).decode().rstrip("=")


def _decode(cursor: str, owner: str) -> tuple[str, str]:
    try:
        score, chat_id = base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)).decode("ascii").split(" ")
        return str(int(float(score))), f"{owner}/{chat_id}" if owner else chat_id
    except (binascii.Error, ValueError, OverflowError):
        raise BadCursor("not a cursor of this list; leave it out to begin at the newest chat") from None
