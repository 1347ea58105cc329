"""Stops over HTTP: ms from the POST to one replica until the closing frame is read from another.

Three replicas with 1, 60 and 200 live chats at 20 tokens a second. Beside it, in turns, over the same Valkey and with
the same client: `bare`, the least that it takes (see `bare_shell`), and `polling`, the product with runs that ask for
their stop each 100 ms (see `polling`). Client, replicas and Valkey share one machine.
"""

from __future__ import annotations

import asyncio
import gc
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.bench import bare_shell, polling
from tests.bench.figures import Figure
from tests.bench.live_chats import LiveChats, Replica
from tests.bench.shell import serving
from tests.stack import running_stack
from tests.stops.figures import percentile

AIMS = {60: (3.0, 12.0), 200: (6.0, 30.0)}  # live chats to p50 and p99 in ms
TURNS = 2
WARM = 3  # stops that pay for connections and count for nothing
Times = dict[str, list[float]]


def measure(quick: bool) -> list[Figure]:
    """p50 and p99 at each count of chats."""
    plan = {20: 20} if quick else {1: 60, 60: 150, 200: 150}  # chats to samples
    with tempfile.TemporaryDirectory() as directory:
        into = Path(directory)
        with (
            running_stack(into, 3) as stack,
            serving(bare_shell.make, 3, stack.redis_url, into) as bare,
            serving(polling.make, 3, stack.redis_url, into) as polls,
        ):
            all_of = {"haltline": stack.replicas, "bare": bare, "polling": polls}
            times = {chats: asyncio.run(in_turns(all_of, chats, samples)) for chats, samples in plan.items()}
    return [figure for chats, found in times.items() for figure in figures(chats, found)]


async def in_turns(all_of: dict[str, Sequence[Replica]], chats: int, samples: int) -> Times:
    """The times of stops of each way."""
    found: Times = {way: [] for way in all_of}
    gc.collect()
    gc.disable()  # the client's own pauses
    for way in ("polling", *("haltline", "bare") * TURNS):
        async with LiveChats(all_of[way], chats) as live:
            await live.stops(WARM)
            found[way] += await live.stops(min(samples, 40) if way == "polling" else samples // TURNS)
    gc.enable()
    return found


def figures(chats: int, found: Times) -> Iterator[Figure]:
    """Of one count of chats."""
    what = f"stop over HTTP, {chats} live chat{'s' if chats > 1 else ''}"
    counts = {way: len(times) for way, times in found.items()}
    p50, p99 = ({way: percentile(times, share) for way, times in found.items()} for share in (0.5, 0.99))
    for name, mine, factor in (("p50", p50, 3), ("p99", p99, 6)):
        ours, beside = mine["haltline"], {"bare": mine["bare"], "polling": mine["polling"]}
        bar, met = f"<= {factor} x bare", ours <= factor * mine["bare"]
        if name == "p50":
            bar, met = f"{bar}, <= polling / 10", met and ours * 10 <= mine["polling"]
        yield Figure(f"{what}, {name}", "ms", ours, beside, bar, met, gated=True, more={"samples": counts})
    for name, mine, aim in zip(("p50", "p99"), (p50, p99), AIMS.get(chats, ()), strict=False):
        yield Figure(
            f"{what}, {name}, aimed at", "ms", mine["haltline"], bar=f"<= {aim:.0f} ms", met=mine["haltline"] <= aim
        )
