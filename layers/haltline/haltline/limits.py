"""What one principal may have: requests in a minute, runs at once. Counted in Redis, each by one command.

- `requests:<namespace>`: when the last requests came (ms), the newest first, as many as a minute may have.
- `stops:<namespace>`: chats that were to be stopped in this minute. A stop of a chat without a run is kept for an hour:
  without a bound one principal could fill Redis for all.
- `live_runs:<namespace>`: runs that have begun, chat by nonce. Which of them still live say their records: nothing has
  to be taken out at a run's end, or after a replica's death. Whoever finds as many as there may be looks, once,
  and drops those that have ended.
"""

from __future__ import annotations

import math

from redis.asyncio import Redis

from haltline.principals import LimitReached, namespace
from haltline.redis_bus import reachable
from haltline.runs import Run
from haltline.signals import SignalBus

WINDOW_MS = 60_000
STOPS_A_REQUEST, LEAST_STOPS = 10, 1000  # in a minute, for each request that it may have, and in any case

# ARGV: most requests in a window, ms of a window. How long (ms) until the next one may come; 0 where this one may.
_REQUEST = """
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local first = tonumber(redis.call('LINDEX', KEYS[1], ARGV[1] - 1) or '-inf') -- of the last that are allowed
local wait = math.min(first + ARGV[2] - now, tonumber(ARGV[2])) -- clocks may go back
if wait > 0 then return wait end
redis.call('LPUSH', KEYS[1], now)
redis.call('LTRIM', KEYS[1], 0, ARGV[1] - 1)
redis.call('PEXPIRE', KEYS[1], ARGV[2])
return 0
"""
# ARGV: chats that are to be stopped, most of them in a window, ms of a window. As above.
_STOPS = """
local counted = tonumber(redis.call('GET', KEYS[1]) or 0)
if counted + ARGV[1] > tonumber(ARGV[2]) then return math.max(redis.call('PTTL', KEYS[1]), 1) end
redis.call('INCRBY', KEYS[1], ARGV[1])
if counted == 0 then redis.call('PEXPIRE', KEYS[1], ARGV[3]) end
return 0
"""
# ARGV: nonce, chat, most runs, ttl s, nonces of runs that have ended... Nothing where the run may begin, else all
# that are known, nonce and chat.
_BEGIN = """
for i = 5, #ARGV do redis.call('HDEL', KEYS[1], ARGV[i]) end
if redis.call('HLEN', KEYS[1]) >= tonumber(ARGV[3]) then return redis.call('HGETALL', KEYS[1]) end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
redis.call('EXPIRE', KEYS[1], ARGV[4])
return {}
"""


class Limits:
    """Of every principal the same; 0 is no limit. `run_timeout` in seconds."""

    def __init__(
        self, redis: Redis, bus: SignalBus, *, requests_per_minute: int = 0, live_runs: int = 0, run_timeout: float = 0
    ) -> None:
        self._redis, self._bus = redis, bus
        self._requests, self._live_runs, self._run_ttl = requests_per_minute, live_runs, math.ceil(run_timeout) + 60
        self._request, self._stops, self._begin = map(redis.register_script, (_REQUEST, _STOPS, _BEGIN))

    async def count_request(self, owner: str) -> None:
        """Count a request of a namespace. Raises: LimitReached, and it was not counted; BusUnavailable."""
        if not self._requests:
            return
        async with reachable():
            wait = int(await self._request(keys=[f"requests:{owner}"], args=[self._requests, WINDOW_MS]))
        if wait:
            raise LimitReached(f"More than {self._requests} requests in a minute.", wait / 1000)

    async def count_stops(self, owner: str, chats: int) -> None:
        """Count chats that a namespace has stopped. Raises: LimitReached, and none was counted; BusUnavailable."""
        if not self._requests:
            return
        most = max(STOPS_A_REQUEST * self._requests, LEAST_STOPS)
        async with reachable():
            wait = int(await self._stops(keys=[f"stops:{owner}"], args=[chats, most, WINDOW_MS]))
        if wait:
            raise LimitReached(f"More than {most} stops in a minute.", wait / 1000)

    async def count_run(self, run: Run) -> None:
        """Count a run that has taken its chat. Raises: LimitReached, and it was not counted; BusUnavailable."""
        ended: list[str] = []
        while self._live_runs:
            async with reachable():
                flat = await self._begin(
                    keys=[f"live_runs:{namespace(run.chat_id)}"],
                    args=[run.nonce, run.chat_id, self._live_runs, self._run_ttl, *ended],
                )
            if not flat:
                return
            known = dict(zip(flat[::2], flat[1::2], strict=True))
            live = await self._bus.going_on(known)
            ended = [nonce for nonce in known if nonce not in live]
            if not ended:
                words = f"{self._live_runs} runs are live, as many as may be at once. Stop one, or wait for its end."
                raise LimitReached(words, 1)
