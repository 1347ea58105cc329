"""What runs and chats cost the bus while nothing happens."""

from __future__ import annotations

import asyncio
from typing import Any

from haltline import redis_pulse
from haltline.redis_bus import RedisBus
from haltline.runs import Arrival, Outcome, Receipt, Run, new_run_id
from tests.stops.bench import new_name
from tests.stops.figures import figure

INTERVALS = 20
POLL = 0.05  # seconds


async def commands(redis: Any) -> dict[str, int]:
    """How often each command was called on the server, by its name."""
    return {name.removeprefix("cmdstat_"): s["calls"] for name, s in (await redis.info("commandstats")).items()}


async def spent(bus: RedisBus, looks: int) -> dict[str, int]:
    """Commands from just after one look to just after the `looks`th next, those of this measurement left out."""
    looked = asyncio.Event()
    look = bus.watch.look

    async def counted() -> None:
        await look()
        looked.set()

    bus.watch.look = counted  # type: ignore[method-assign]
    await next_of(looked)
    before = await commands(bus.redis)
    for _ in range(looks):
        await next_of(looked)
    after = await commands(bus.redis)
    bus.watch.look = look  # type: ignore[method-assign]
    # (A connection that the pool opens meanwhile says hello: not a cost of chats.)
    return {name: after[name] - before.get(name, 0) for name in after if after[name] != before.get(name, 0)}


async def next_of(event: asyncio.Event) -> None:
    event.clear()
    await event.wait()


async def test_what_a_quiet_chat_costs(valkey_url: str, monkeypatch: Any) -> None:
    """Looks and pulses are a replica's: with fifty live runs there are as many as with one, and none without a run."""
    monkeypatch.setattr(redis_pulse, "PULSE_EVERY", POLL * 5)
    async with RedisBus(valkey_url, "quiet", stop_ttl=3600, poll_interval=POLL, run_timeout=600) as bus:
        await bus.watch.subscribed()
        before = await commands(bus.redis)
        await asyncio.sleep(10 * POLL)  # time in which nothing is to happen
        idle = await commands(bus.redis)
        assert {n: idle[n] - before.get(n, 0) for n in idle if idle[n] != before.get(n, 0)} == {"info": 1}

        found = {}
        runs: list[Run] = []
        for count in (1, 50):
            while len(runs) < count:
                runs.append(Run(new_name("quiet"), new_run_id(), Arrival()))
                await bus.begin(runs[-1])
            cost = await spent(bus, INTERVALS)
            found[count] = {name: calls for name, calls in cost.items() if name not in ("hello", "client|setinfo")}
        for run in runs:
            await bus.end(run, Receipt(run.run_id, Outcome.DONE))
    for count, cost in found.items():
        assert cost.pop("info") == 1
        assert set(cost) == {"mget", "set"}, cost
        assert cost["mget"] == INTERVALS, (count, cost)
        assert INTERVALS / 5 - 2 <= cost["set"] <= INTERVALS / 5 + 2, (count, cost)
    figure("commands of a replica without a live run", "0")
    for count, cost in found.items():
        figure(
            f"commands of a replica with {count} quiet live runs",
            f"{cost['mget'] / INTERVALS:.2f} a look, {cost['set']} pulses in {INTERVALS / 5:.0f} intervals of its own, "
            "0 of the chats'",
        )
