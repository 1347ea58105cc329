"""Time to the first token above the model's own, in ms.

Ours: a real replica over a real Valkey, from just before the POST is written to an open connection until the first
frame of text was read. Beside it, in turns, bare Strands in process: from `Agent.stream_async` with the stock
BedrockModel to its first `data`, the agent (the shipped one) made before. The model is a fake Bedrock, a process of its
own; what it takes from having read the request until it has sent the first text is subtracted. All is warm.

A new chat and the second turn of a chat are told apart.
"""

from __future__ import annotations

import asyncio
import os
import socket
import tempfile
from collections import defaultdict
from pathlib import Path
from time import monotonic, sleep

from strands import Agent

from haltline.default_agent import make_agent
from tests.bench.figures import Figure
from tests.bench.live_chats import post
from tests.bench.upstream import leading_to
from tests.fake_bedrock import RunningFakeBedrock, running_fake_bedrock
from tests.stack import Replica, running_stack
from tests.stops.agents import stock
from tests.stops.bench import new_name, script
from tests.stops.figures import percentile

NEW, LATER = "a new chat", "the second turn"
OURS, BARE = "Haltline", "bare Strands"
WARM = 5  # chats
WHY = (  # measured by marks in a replica, on two cores
    "what bare Strands takes is Strands and botocore, which ours runs, too; of some 7 ms beyond, HTTP and FastAPI take "
    "1.5, reading the chat 0.5, four commands of Redis in a row 1.5, saving the message (fsync) 1.5, making the agent 1"
)

Times = dict[tuple[str, str], list[float]]  # by turn and way


def measure(quick: bool) -> list[Figure]:
    """A figure a turn."""
    with tempfile.TemporaryDirectory() as directory, running_fake_bedrock(Path(directory) / "bedrock") as fake:
        os.environ.update(leading_to(fake))  # the replica inherits it
        settings = {"MODEL_PROVIDER": "bedrock", "BEDROCK_MODEL_ID": "fake.model"}
        with running_stack(Path(directory), replicas=1, **settings) as stack:
            times = asyncio.run(_measured(fake, stack.replicas[0], 10 if quick else 70))
    return [_figure(turn, times) for turn in (NEW, LATER)]


async def _measured(fake: RunningFakeBedrock, replica: Replica, chats: int) -> Times:
    model, taken = stock(), {}
    for n in range(WARM + chats):
        agent, chat = make_agent(model), new_name("chat")
        for turn in (NEW, LATER):
            for way in (OURS, BARE):
                name = new_name(way.split()[0])
                message = script(name=name, text="one two three", pace_ms=0, delay_ms=20)
                took = _ours(replica, chat, message) if way == OURS else await _bare(agent, message)
                if n >= WARM:
                    taken[name] = (turn, way, took)
    own = _of_the_model(fake)
    times: Times = defaultdict(list)
    for name, (turn, way, took) in taken.items():
        times[turn, way].append((took - own[name]) * 1000)
    return times


def _of_the_model(fake: RunningFakeBedrock) -> dict[str, float]:
    """Seconds from a request to its first text, by the request's name."""
    lines = fake.log()
    began = {line["name"]: line["at"] for line in lines if line["event"] == "request"}
    return {line["name"]: line["first_at"] - began[line["name"]] for line in lines if line["event"] == "completed"}


def _ours(replica: Replica, chat: str, message: str) -> float:
    """Seconds to the first text. Reads to the end."""
    request = post(f"chat/{chat}", {"message": message})
    with socket.create_connection(("127.0.0.1", replica.port)) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sleep(0.005)  # the replica has accepted it
        read, began, first = b"", monotonic(), 0.0
        connection.sendall(request)
        while data := connection.recv(65536):
            read += data
            if not first and b"\ndata: one" in read:
                first = monotonic()
    assert b"event: done" in read, read
    return first - began


async def _bare(agent: Agent, message: str) -> float:
    """Seconds to the first text. Goes on to the end."""
    first, began = 0.0, monotonic()
    async for event in agent.stream_async(message):
        if not first and "data" in event:
            first = monotonic()
    return first - began


def _figure(turn: str, times: Times) -> Figure:
    ours, bare = times[turn, OURS], times[turn, BARE]
    p50 = percentile(ours, 0.5)
    more = {way: {"n": len(ms), "p99": percentile(ms, 0.99)} for way, ms in ((OURS, ours), (BARE, bare))}
    return Figure(
        *(f"first token over HTTP above the model's own, p50: {turn}", "ms", p50, {BARE: percentile(bare, 0.5)}),
        bar="p50 <= 5 ms",
        met=p50 <= 5,
        why=WHY if p50 > 5 else "",
        more=more,
    )
