"""A stop in every phase: the frame, the upstream, the tools, the next turn. Beside it Strands' own model."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import time
from pathlib import Path
from typing import Any

import pytest
from strands import Agent

from haltline.events import Done, Stopped
from haltline.runs import Outcome, StopReason
from tests.fake_bedrock import RunningFakeBedrock
from tests.stops.agents import COLD, stock
from tests.stops.bench import SOON, Bench, benched, new_name, script
from tests.stops.figures import figure, missed, spread
from tests.stops.phases import PHASES, Phase, open_call, script_of

ROUNDS = 2  # of each phase, times `rounds`; one in `make test`


async def one_stop(bench: Bench, phase: Phase) -> tuple[float | None, float | None]:
    """Stop one run in `phase`, check all that is promised. Returns ms to the frame and to the closed upstream.

    None where it ended by itself, and where no call was open.
    """
    name = new_name(phase.name.replace(" ", "-"))
    COLD["gate"] = asyncio.Event()
    talk = await bench.start(name, script(**script_of(phase, name)))
    talk.probe.hold_second_call = phase.hold_second_call
    await phase.reached(bench, talk, name)
    halted = await talk.halt()
    COLD["gate"].set()

    # the run
    frame_ms: float | None = halted.frame_ms
    if halted.events[-1] == Done():  # only a run that was about to end may have done so
        assert phase.name == "finishing"
        assert halted.receipt.outcome is Outcome.DONE
        frame_ms = None
    else:
        assert halted.events[-1] == Stopped()
        assert (halted.receipt.outcome, halted.receipt.reason) == (Outcome.STOPPED, StopReason.USER)
    assert await talk.kept() == (halted.text, halted.text)

    # the tools
    if "blocks" in str(phase.script):
        assert await asyncio.to_thread(talk.probe.told.wait, SOON), "the thread was not told"
    if not phase.hold_second_call:
        assert not {"waits", "counts"} & set(talk.probe.left), "a tool went on"

    # the provider
    closed_ms = None
    called = open_call(phase, name)
    if phase.upstream:
        closed = await bench.logged(called, "closed", "completed")
        assert closed["event"] == "closed", closed
        assert closed["phase"] == phase.upstream
        assert closed["sent_after_close"] == 0
        closed_ms = (closed["at"] - halted.stopped_at) * 1000
    late = [
        line
        for line in bench.fake.log()
        if line["event"] == "request" and str(line.get("name", "")).startswith(name) and line["at"] > halted.frame_at
    ]
    assert not late, "the model was called after the stop"

    # the next turn
    assert await bench.next_turn(name) == "fine again"
    assert not [line for line in bench.fake.log() if line["event"] == "invalid"]
    return frame_ms, closed_ms


@pytest.mark.parametrize("transport", ["plain", "tls"])
async def test_a_stop_in_every_phase(
    transport: str, request: pytest.FixtureRequest, aws: Any, valkey_url: str, tmp_path: Path, rounds: int
) -> None:
    fake: RunningFakeBedrock = request.getfixturevalue(transport)
    frames: list[float] = []
    closes: list[float] = []
    bare: list[float] = []
    for agent, attempts in sorted({(p.agent, p.attempts) for p in PHASES}):
        aws(fake, attempts)
        async with benched(fake, valkey_url, tmp_path, agent=agent) as bench:
            await warm_up(bench)
            for phase in PHASES:
                if (phase.agent, phase.attempts) != (agent, attempts):
                    continue
                found = []
                for _ in range(ROUNDS * rounds if rounds > 1 else 1):
                    found.append(await one_stop(bench, phase))
                    bare.append(await bare_close(fake))
                for total, mine, what in (
                    (frames, [frame for frame, _ in found if frame is not None], "closing frame"),
                    (closes, [closed for _, closed in found if closed is not None], "closed upstream"),
                ):
                    total += mine
                    if mine:
                        figure(f"{transport}: {phase.name}: to the {what}", spread(mine))
    figure(f"{transport}: ALL PHASES: stop to closing frame", spread(frames))
    figure(f"{transport}: ALL PHASES: stop to closed upstream", spread(closes))
    figure(f"{transport}: beside it, a bare connection's close", spread(bare))
    if rounds > 1:  # of a few stops, beside other tests, a percentile tells nothing
        assert missed(closes, {0.99: 5, 1: 20}, bare) == []
        assert missed(frames, {0.5: 2, 0.99: 10}, bare) == []


async def bare_close(fake: RunningFakeBedrock) -> float:
    """What the machine takes for it: a plain client closes its connection, the server sees it. In ms."""
    context = ssl.create_default_context(cafile=str(fake.cert)) if fake.cert else None
    _, writer = await asyncio.open_connection("127.0.0.1", fake.port, ssl=context)
    port = writer.get_extra_info("sockname")[1]
    await asyncio.sleep(0.01)  # the server has accepted it
    at = time.monotonic()
    writer.transport.abort()
    line = await asyncio.to_thread(
        fake.wait_for,
        lambda line: line["event"] == "connection_closed" and line["connection"] == port and line["at"] >= at,
    )
    return float(line["at"] - at) * 1000


async def warm_up(bench: Bench) -> None:
    """The first call pays for imports and connections."""
    COLD["gate"] = asyncio.Event()
    COLD["gate"].set()
    await bench.next_turn(new_name("warm"))


SILENCES: dict[str, dict[str, Any]] = {
    "before headers": {"headers_ms": 400, "text": "still here"},
    "before the first token": {"delay_ms": 400, "text": "still here"},
    "stalled": {"stall_after": 2, "stall_ms": 400, "text": "one two three", "pace_ms": 1},
}


@pytest.mark.parametrize("way", ["task.cancel()", "agent.cancel()", "under our stop"])
@pytest.mark.parametrize("silence", SILENCES)
async def test_the_stock_model_is_not_closed(
    silence: str, way: str, plain: RunningFakeBedrock, aws: Any, valkey_url: str, tmp_path: Path
) -> None:
    """Strands' BedrockModel in the same silences: its call goes on until the model speaks again, or to its end."""
    aws(plain)
    called = new_name("stock")
    message = script(name=called, **SILENCES[silence])
    if way == "under our stop":
        async with benched(plain, valkey_url, tmp_path, provider="tests.stops.agents:stock") as bench:
            talk = await bench.start(called, message)
            await (talk.heard(2) if silence == "stalled" else bench.logged(called, "request"))
            halted = await talk.halt()
            assert halted.events[-1] == Stopped()  # the run halts all the same
            assert halted.receipt.upstream_closed_ms is None  # and nothing is claimed that is not known
            at = halted.stopped_at
    else:
        agent = Agent(model=stock(), callback_handler=None)
        running = asyncio.create_task(agent.invoke_async(message))
        await asyncio.to_thread(plain.wait_for, lambda line: line.get("name") == called)
        await asyncio.sleep(0.05)  # the two words before the silence
        at = time.monotonic()
        (running if way == "task.cancel()" else agent).cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await running
    line = await asyncio.to_thread(
        plain.wait_for, lambda line: line.get("name") == called and line["event"] in ("closed", "completed")
    )
    late = (line["at"] - at) * 1000
    figure(f"stock BedrockModel, {way}: {silence}", f"{line['event']} {late:.0f} ms after, {line['sent']} chunks sent")
    assert late > 20, "the stock model passes the bar: is the test still able to fail?"
