"""Stops at random moments of random turns, each followed by the next turn of its chat; and what is left behind."""

from __future__ import annotations

import asyncio
import gc
import os
import random
import threading
import time
from pathlib import Path
from typing import Any

from anyio import to_thread

from haltline import bedrock
from haltline.events import Done, Stopped
from haltline.runs import Outcome
from tests.fake_bedrock import RunningFakeBedrock
from tests.stops.agents import PROBES
from tests.stops.bench import Bench, Halted, Talk, benched, new_name, script
from tests.stops.figures import figure, missed, spread

HISTORIES, AT_ONCE = 25, 10  # times `rounds`; how many chats at a time
LATENCIES = 10  # times `rounds`, one at a time
LONGEST_TURN = 0.6  # seconds


def random_turn(chance: random.Random) -> dict[str, Any]:
    """A turn of at most about LONGEST_TURN: silence, reasoning, tools of every kind, refusals, text."""
    turn: dict[str, Any] = {
        "name": new_name("random"),
        "headers_ms": chance.choice([0, 0, chance.uniform(1, 100)]),
        "delay_ms": chance.choice([0, 0, chance.uniform(1, 100)]),
        "text": "a b c d e ",
        "repeat": chance.randint(1, 8),
        "pace_ms": chance.choice([0, 1, 8]),
    }
    if chance.random() < 0.3:
        turn["reasoning"] = ["hm ", "well "]
    if chance.random() < 0.5:
        kinds = chance.sample(["waits", "blocks", "counts"], chance.randint(1, 3))
        turn["tools"] = [{"name": kind, "input": {"seconds": chance.uniform(0, 0.1)}} for kind in kinds]
        turn["rounds"] = chance.randint(1, 2)
        if chance.random() < 0.5:
            turn["tool_text"] = "Let me see. "
    if chance.random() < 0.15:
        turn["throttle"] = 1
    return turn


async def stopped_somewhere(bench: Bench, chat: str, chance: random.Random) -> tuple[Talk, Halted]:
    """One random turn of `chat`, a stop at a random moment of it, all that is promised of it checked."""
    talk = await bench.start(chat, script(**random_turn(chance)))
    await asyncio.sleep(chance.uniform(0, LONGEST_TURN))  # the moment is meant to be a random one
    halted = await talk.halt()
    ended = Done() if halted.receipt.outcome is Outcome.DONE else Stopped()
    assert halted.events[-1] == ended
    assert await talk.kept() == (halted.text, halted.text), "text was lost"
    return talk, halted


async def test_histories_after_stops_at_random_moments(
    plain: RunningFakeBedrock, aws: Any, valkey_url: str, tmp_path: Path, rounds: int
) -> None:
    """Three stopped turns of one chat on end, then one that ends by itself: the fake checks each history."""
    seed = random.randrange(10**6)
    aws(plain)
    outcomes: dict[Outcome, int] = {}
    asked_before = len(plain.log())
    async with benched(plain, valkey_url, tmp_path) as bench:
        gate = asyncio.Semaphore(AT_ONCE)

        async def chat(number: int) -> None:
            chance, name = random.Random(f"{seed} {number}"), new_name("history")
            async with gate, asyncio.timeout(60):
                for _ in range(chance.randint(1, 3)):
                    _, halted = await stopped_somewhere(bench, name, chance)
                    outcomes[halted.receipt.outcome] = outcomes.get(halted.receipt.outcome, 0) + 1
                assert await bench.next_turn(name) == "fine again"

        async with asyncio.TaskGroup() as group:
            for number in range(HISTORIES * rounds):
                group.create_task(chat(number), name=f"seed {seed}, chat {number}")
    invalid = [line for line in plain.log()[asked_before:] if line["event"] == "invalid"]
    late = [line for line in plain.log()[asked_before:] if line.get("sent_after_close")]
    halted_count, chats = outcomes[Outcome.STOPPED], HISTORIES * rounds
    figure(
        "histories after stops at random moments",
        f"n {sum(outcomes.values())} in {chats} chats, {halted_count} halted: {len(invalid)} invalid, 0 lost text, "
        f"0 hung, {len(late)} sent to after the close",
    )
    assert invalid == []
    assert late == []
    assert halted_count > chats / 2


async def test_latency_of_stops_at_random_moments(
    tls: RunningFakeBedrock, aws: Any, valkey_url: str, tmp_path: Path, rounds: int
) -> None:
    aws(tls)
    chance = random.Random()
    frames: list[float] = []
    bare: list[float] = []
    async with benched(tls, valkey_url, tmp_path) as bench:
        await bench.next_turn(new_name("warm"))
        while len(frames) < (LATENCIES * rounds if rounds > 1 else 2):
            _, halted = await stopped_somewhere(bench, new_name("latency"), chance)
            if halted.receipt.outcome is Outcome.STOPPED:
                frames.append(halted.frame_ms)
                bare += await bare_pushes(bench, 1)
    figure("random moments: stop on the bus to closing frame", spread(frames))
    figure("beside it, a bare publish to its subscriber", spread(bare))
    if rounds > 1:
        assert missed(frames, {0.5: 2, 0.99: 10}, bare) == []


async def bare_pushes(bench: Bench, count: int) -> list[float]:
    """What the machine takes for it: PUBLISH to the message's arrival, in ms, in the same process."""
    loop, found = asyncio.get_running_loop(), []
    async with bench.owner.redis.pubsub() as heard:
        await heard.subscribe("bare")
        await heard.get_message(timeout=5)
        for _ in range(count):
            arrival = asyncio.create_task(heard.get_message(timeout=5))
            await asyncio.sleep(0.005)
            at = loop.time()
            await bench.stopper.redis.publish("bare", "x")
            await arrival
            found.append((loop.time() - at) * 1000)
    return found


async def test_nothing_is_left_behind(
    plain: RunningFakeBedrock, aws: Any, valkey_url: str, tmp_path: Path, rounds: int
) -> None:
    aws(plain)
    async with benched(plain, valkey_url, tmp_path) as bench:
        chance = random.Random()

        async def many(count: int, at_once: int = AT_ONCE) -> None:
            for _ in range(count):
                async with asyncio.TaskGroup() as group:
                    for _ in range(at_once):
                        group.create_task(stopped_somewhere(bench, new_name("leak"), chance))

        async def held() -> dict[str, int]:
            PROBES.clear()
            gc.collect()
            await bench.close_idle()
            await asyncio.sleep(0.3)  # a tool's thread has seen the signal, a closed socket is closed
            return {
                "threads": threading.active_count(),
                "sockets": sum(
                    os.readlink(f"/proc/self/fd/{fd}").startswith("socket:")
                    for fd in os.listdir("/proc/self/fd")
                    if os.path.islink(f"/proc/self/fd/{fd}")
                ),
                "tasks": len(asyncio.all_tasks()),
                "subscriptions": len(await bench.owner.redis.pubsub_channels()),
            }

        # All pools of threads are full: they keep what they have made.
        await asyncio.gather(*(asyncio.to_thread(time.sleep, 0.1) for _ in range(32)))
        loop = asyncio.get_running_loop()
        await asyncio.gather(*(loop.run_in_executor(bedrock._signers, time.sleep, 0.1) for _ in range(8)))
        await asyncio.gather(*(to_thread.run_sync(time.sleep, 0.1) for _ in range(40)))
        await many(1, 3 * AT_ONCE)
        before = await held()
        await many(2 * rounds)
        after = await held()
    figure("held before and after", f"{before} {after}, {AT_ONCE * 2 * rounds} stopped runs between")
    assert all(after[what] <= before[what] for what in before)
