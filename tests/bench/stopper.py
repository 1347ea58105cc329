"""The other process of stops at function level: `python -m tests.bench.stopper REDIS_URL`.

Does what each line of its input says and answers with the time at which it was called, by `time.monotonic`, the clock
of the whole machine.
"""

from __future__ import annotations

import asyncio
import sys
import time

import uvloop

from haltline.redis_bus import RedisBus
from haltline.runs import Arrival
from tests.bench.polling import set_stop


async def main() -> None:
    """Until its input ends."""
    async with RedisBus(sys.argv[1], "stopper", stop_ttl=3600, poll_interval=30, run_timeout=600) as bus:
        ways = {
            "haltline": lambda chat: bus.stop(chat, Arrival()),
            "bare": lambda channel: bus.redis.publish(channel, "stop"),
            "polling": lambda chat: set_stop(bus.redis, chat),
        }
        while line := await asyncio.to_thread(sys.stdin.readline):
            way, whom = line.split()
            at = time.monotonic()
            await ways[way](whom)
            print(at, flush=True)


if __name__ == "__main__":
    uvloop.run(main())
