"""The model provider breaks: a user is told in a line of words, or it is tried again; and it can be stopped throughout.

The real Bedrock client and the OpenAI-compatible one, over real sockets, against a server that says byte for byte what
is wrong (`upstream.py`). Runs are real ones over a real Valkey, stopped through another replica's bus.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import random
import re
import struct
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from zlib import crc32

import pytest
import pytest_asyncio
from anyio import to_thread
from botocore.config import Config
from strands import Agent, tool
from strands.event_loop._retry import ModelRetryStrategy
from strands.models import Model

from haltline import bedrock
from haltline.bedrock import StoppableBedrockModel
from haltline.events import Done, Failed, Stopped
from haltline.runs import Outcome
from haltline.settings import Settings
from local.fake_bedrock.frames import _header, event, exception
from tests.faults.conftest import FULL
from tests.faults.upstream import (
    FINE,
    LAST,
    START,
    Answer,
    Exchange,
    Upstream,
    bytewise,
    delta,
    end,
    fine,
    head,
    part,
    text,
    tool_call,
    whole,
)
from tests.integration.conftest import valkey_url
from tests.stack import free_port
from tests.stops.bench import SOON, Bench, Talk, benched_with, new_name

__all__ = ["valkey_url"]

Times = Callable[[int, int], int]

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(180)]

SECRETS = {"AWS_ACCESS_KEY_ID": "AKIDOFTHISTEST00", "AWS_SECRET_ACCESS_KEY": "secret-of-this-test"}
QUICK = 1000  # ms within which a stop must be seen everywhere. Some 3 ms are usual; this machine has two busy cores.
SILENCE = 1.0  # seconds that the model of `impatient` waits, where nothing else should take that long
HELLO = text("Hello ")
BROKEN_OFF = "The model's answer broke off before its end."
CONNECTION = "The connection to the model broke off."
NOT_NOW = "The model provider is not available now."
MODEL_FAILED = "The model failed while it was answering."
LIMIT = "The answer reached MAX_OUTPUT_TOKENS. Send another message to go on."


# ---- models and agents that the settings name


def impatient() -> Model:
    """MODEL_PROVIDER: the real client, whose limits of time do not take minutes."""
    config = Config(connect_timeout=2, read_timeout=SILENCE)
    return StoppableBedrockModel(region_name="us-west-2", model_id="fake.model", boto_client_config=config)


@tool
def again(number: int = 0) -> str:
    """Something to be called for ever."""
    return "Call me again."


def make(model: Model) -> Agent:
    """AGENT: tries a throttled call twice, as Strands does six times in two minutes."""
    patience = ModelRetryStrategy(max_attempts=2, initial_delay=0)
    return Agent(model=model, tools=[again], callback_handler=None, retry_strategy=patience)


def make_patient(model: Model) -> Agent:
    """AGENT: waits as Strands does, for longer than any of these tests."""
    return Agent(model=model, callback_handler=None)


# ---- runs


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def upstream() -> AsyncIterator[Upstream]:
    async with Upstream().serving() as serving:
        yield serving


@asynccontextmanager
async def bench_over(
    upstream: Upstream | str, valkey_url: str, directory: Path, *, attempts: int = 1, agent: str = "make", **how: Any
) -> AsyncIterator[Bench]:
    """A bench whose Bedrock client finds `upstream`. `attempts`: as botocore makes them."""
    url = upstream if isinstance(upstream, str) else upstream.url
    here = "tests.faults.test_providers"
    how = {
        "model_provider": "bedrock",
        "bedrock_model_id": "fake.model",
        "agent": f"{here}:{agent}",
        "session_dir": directory,
        **how,
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {
            **SECRETS,
            "AWS_ENDPOINT_URL_BEDROCK_RUNTIME": url,
            "AWS_MAX_ATTEMPTS": str(attempts),
            "AWS_EC2_METADATA_DISABLED": "true",
            "NO_PROXY": "127.0.0.1",
        }.items():
            patch.setenv(name, value)
        patch.setattr(bedrock, "LONGEST_BACK_OFF", 0.1)
        async with benched_with(Settings(**how), valkey_url) as bench:
            yield bench


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def bench(upstream: Upstream, valkey_url: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Bench]:
    directory = Path(tmp_path_factory.mktemp("providers"))
    async with bench_over(upstream, valkey_url, directory, max_output_tokens=1_000_000) as made:
        yield made


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def hasty(upstream: Upstream, valkey_url: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Bench]:
    provider = "tests.faults.test_providers:impatient"
    directory = Path(tmp_path_factory.mktemp("hasty"))
    async with bench_over(upstream, valkey_url, directory, attempts=2, model_provider=provider) as made:
        yield made


async def next_turn(bench: Bench, upstream: Upstream, chat: str) -> None:
    """One more turn of the chat, whose history the upstream checks as Bedrock would."""
    upstream.now(fine)
    talk = await bench.start(chat, "And now?")
    await talk.rest()
    assert (talk.text, talk.events[-1]) == (FINE, Done())


def line_of(talk: Talk) -> str:
    """What the user is told: one line in plain words."""
    closing = talk.events[-1]
    assert isinstance(closing, Failed), closing
    line = closing.reason
    assert line.splitlines() == [line]
    assert not re.search(r"\w(Error|Exception|Mismatch)\b|[{}<>]|://|127\.0\.0\.1|Traceback|\barn:", line), line
    assert not any(secret in line for secret in SECRETS.values()), line
    return line


async def failing(bench: Bench, upstream: Upstream, *answers: Answer) -> tuple[str, str]:
    """A run that these answers end: what the user is told, and the text they have got, which the chat keeps."""
    upstream.now(*answers)
    talk = await bench.start(new_name("broken"), "Go on.")
    async with asyncio.timeout(SOON):
        await talk.rest()
        receipt = await talk.execution.ended(SOON)
    assert receipt is not None
    assert receipt.saved
    line = line_of(talk)
    assert await talk.kept() == (talk.text, talk.text)
    assert bench.runner.live_count == 0
    await next_turn(bench, upstream, talk.chat)
    return line, talk.text


# ---- what is wrong


def frame(head: bytes, body: bytes, *, length: int = 0, heads: int = -1, first: int = -1, last: int = -1) -> bytes:
    """A frame whose lengths and checksums may be others than its own."""
    prelude = struct.pack("!II", length or 16 + len(head) + len(body), len(head) if heads < 0 else heads)
    message = prelude + struct.pack("!I", crc32(prelude) if first < 0 else first) + head + body
    return message + struct.pack("!I", crc32(message) if last < 0 else last)


def headers(**named: str) -> bytes:
    return b"".join(_header(f":{name.replace('_', '-')}".encode(), value.encode()) for name, value in named.items())


TEXT = headers(event_type="contentBlockDelta", content_type="application/json", message_type="event")
ERROR = headers(message_type="error", error_code="Boom", error_message="It went wrong.")
ABSURD = 0xFFFF_FFF0


def refused(status: str, code: str, message: str = "", body: bytes | None = None) -> Answer:
    async def answer(exchange: Exchange) -> None:
        said = json.dumps({"message": message}).encode() if body is None else body
        await exchange.say(whole(status, said, *([f"x-amzn-errortype: {code}"] if code else [])))

    return answer


def says(*parts: bytes, last: bytes = LAST) -> Answer:
    """An answer that ends as any does, whatever it says."""

    async def answer(exchange: Exchange) -> None:
        await exchange.say(head() + b"".join(map(part, parts)) + last)

    return answer


def then(how: str, *parts: bytes, raw: bytes = b"") -> Answer:
    """`raw` and `parts`, then the connection is cut by a `reset` or a `close`."""

    async def answer(exchange: Exchange) -> None:
        exchange.write(raw + b"".join(map(part, parts)))
        if raw or parts:
            await asyncio.sleep(0.02)  # a reset throws away what its client has not read
        await getattr(exchange, how)()

    return answer


def silent(*parts: bytes, raw: bytes = b"") -> Answer:
    async def answer(exchange: Exchange) -> None:
        exchange.write(raw + b"".join(map(part, parts)))
        await exchange.silence()

    return answer


def endless(data: bytes, pause: float = 0, opening: bytes = head() + part(START)) -> Answer:
    """`data` again and again, after `opening`."""

    async def answer(exchange: Exchange) -> None:
        exchange.write(opening)
        while True:
            await exchange.say(data)
            await asyncio.sleep(pause)

    return answer


def dripping(data: bytes, pause: float) -> Answer:
    """A byte at a time."""

    async def answer(exchange: Exchange) -> None:
        exchange.write(head())
        for chunk in bytewise(data):
            await exchange.say(chunk)
            await asyncio.sleep(pause)
        exchange.write(LAST)

    return answer


BROKEN: dict[str, tuple[Answer, str, str]] = {  # the answer, the text that is seen of it, what is told
    "429 ThrottlingException": (refused("429 Too Many Requests", "ThrottlingException", "Wait."), "", "throttling"),
    "500": (refused("500 Internal Server Error", "InternalServerException", "The server has an error"), "", NOT_NOW),
    "500 of a proxy": (refused("500 Internal Server Error", "", body=b"<html>nginx at 10.0.0.1</html>"), "", NOT_NOW),
    "502 of a proxy": (refused("502 Bad Gateway", "", body=b""), "", NOT_NOW),
    "503": (refused("503 Service Unavailable", "ServiceUnavailableException", "Down."), "", NOT_NOW),
    "504 of a proxy": (refused("504 Gateway Timeout", "", body=b""), "", NOT_NOW),
    "model not ready": (refused("429 Too Many Requests", "ModelNotReadyException", "No."), "", "not ready yet"),
    "model timed out": (refused("408 Request Timeout", "ModelTimeoutException", "No."), "", "did not answer in time"),
    "model failed": (
        refused("424 Failed Dependency", "ModelErrorException", '{"secret": "AKIA0123456789ABCDEF"}'),
        "",
        MODEL_FAILED,
    ),
    "a role that may not": (
        refused("403 Forbidden", "AccessDeniedException", "User: arn:aws:sts::1:assumed-role/x may not"),
        "",
        "AWS denied access",
    ),
    "a wrong secret": (
        refused("403 Forbidden", "InvalidSignatureException", "It should have been 'host:127.0.0.1'"),
        "",
        "AWS does not accept these credentials",
    ),
    "quota": (refused("400 Bad Request", "ServiceQuotaExceededException", "quota"), "", "quota"),
    "JSON instead of a stream": (refused("200 OK", "", body=b'{"hello": 1}'), "", BROKEN_OFF),
    "a stream error": (says(START, HELLO, exception("modelStreamErrorException", '{"a": 1}')), "Hello ", MODEL_FAILED),
    "500 in mid-stream": (says(START, HELLO, exception("internalServerException", "x://y")), "Hello ", NOT_NOW),
    "503 in mid-stream": (says(START, HELLO, exception("serviceUnavailableException", "")), "Hello ", NOT_NOW),
    "throttled in mid-stream": (says(START, HELLO, exception("throttlingException", "Slow")), "Hello ", BROKEN_OFF),
    "throttled before text": (says(START, exception("throttlingException", "Slow")), "", "throttling"),
    "an error frame": (says(START, HELLO, frame(ERROR, b"")), "Hello ", "refused the call: It went wrong."),
    "a reset before headers": (then("reset"), "", CONNECTION),
    "a reset in headers": (then("reset", raw=head()[:20]), "", CONNECTION),
    "a reset after headers": (then("reset", raw=head()), "", CONNECTION),
    "a reset in a frame": (then("reset", START, HELLO, text("world")[:30], raw=head()), "Hello ", CONNECTION),
    "an end before headers": (then("close"), "", CONNECTION),
    "an end in a frame": (then("close", START, HELLO, text("world")[:30], raw=head()), "Hello ", CONNECTION),
    "no HTTP": (then("close", raw=b"SSH-2.0-OpenSSH_9.2\r\n"), "", CONNECTION),
    "headers without an end": (endless(b"x-y: " + b"z" * 1000 + b"\r\n", opening=head()[:-2]), "", CONNECTION),
    "one header without an end": (endless(b"z" * 1000, opening=head()[:-2] + b"x: "), "", CONNECTION),
    "no messageStop": (says(START, HELLO), "Hello ", BROKEN_OFF),
    "nothing in the stream": (says(), "", BROKEN_OFF),
    "a wrong checksum": (says(START, HELLO, frame(TEXT, b"{}", last=1)), "Hello ", BROKEN_OFF),
    "a wrong checksum of a prelude": (
        says(START, HELLO, frame(TEXT, b'{"delta":{"text":"x"}}', first=1)),  # alone in what is read
        "Hello ",
        BROKEN_OFF,
    ),
    "an absurd length": (says(START, HELLO, frame(TEXT, b"{}", length=ABSURD, first=1), end()), "Hello ", BROKEN_OFF),
    "an absurd length with its checksum": (
        silent(START, HELLO, frame(TEXT, b"{}", length=ABSURD), raw=head()),  # who waits for all of it waits for ever
        "Hello ",
        BROKEN_OFF,
    ),
    "an absurd length of headers": (says(START, HELLO, frame(TEXT, b"{}", heads=1 << 20)), "Hello ", BROKEN_OFF),
    "a truncated prelude": (says(START, HELLO, HELLO[:7]), "Hello ", BROKEN_OFF),
    "garbage for headers": (says(START, HELLO, frame(b"\xff\x00garbage\x99", b"{}")), "Hello ", BROKEN_OFF),
    "a header that ends early": (says(START, HELLO, frame(b"\x05", b"{}")), "Hello ", BROKEN_OFF),
    "headers twice": (says(START, HELLO, frame(TEXT + TEXT, b"{}")), "Hello ", BROKEN_OFF),
    "JSON cut off": (says(START, HELLO, frame(TEXT, b'{"delta":{"text":"x"')), "Hello ", BROKEN_OFF),
    "a list": (says(START, HELLO, frame(TEXT, b"[1]")), "Hello ", BROKEN_OFF),
    "a text that is none": (says(START, HELLO, frame(TEXT, b'{"delta":{"text":5}}')), "Hello ", BROKEN_OFF),
    "no delta": (says(START, HELLO, frame(TEXT, b'{"contentBlockIndex":0}')), "Hello ", BROKEN_OFF),
    "bad UTF-8": (says(START, HELLO, frame(TEXT, b'{"delta":{"text":"\xff"}}')), "Hello ", BROKEN_OFF),
}


FEW_BROKEN = [
    "429 ThrottlingException",
    "500 of a proxy",
    "a role that may not",
    "JSON instead of a stream",
    "a stream error",
    "a reset in a frame",
    "one header without an end",
    "no messageStop",
    "a wrong checksum of a prelude",
    "an absurd length with its checksum",
    "garbage for headers",
    "JSON cut off",
]


@pytest.mark.parametrize("fault", BROKEN if FULL else FEW_BROKEN)
async def test_what_broke_is_told_in_words(fault: str, bench: Bench, upstream: Upstream, times: Times) -> None:
    answer, seen, told = BROKEN[fault]
    for _ in range(times(1, 3)):
        line, said = await failing(bench, upstream, answer)
        assert said == seen
        assert told in line


async def test_a_silence_that_is_too_long(hasty: Bench, upstream: Upstream) -> None:
    """Before headers the call is made again, as AWS_MAX_ATTEMPTS says; afterwards nothing is said twice."""
    line, said = await failing(hasty, upstream, silent(START, HELLO, raw=head()), fine)
    assert (said, line) == ("Hello ", "The model provider did not answer in time. Try again.")
    if FULL:
        line, said = await failing(hasty, upstream, silent(), silent(raw=head()))
        assert (said, line) == ("", "The model provider did not answer in time. Try again.")
        upstream.now(silent(), fine)
        talk = await hasty.start(new_name("silent"), "Hello")
        await talk.rest()
        assert (talk.text, talk.events[-1]) == (FINE, Done())


async def test_a_stream_cut_anywhere_keeps_what_was_seen(
    bench: Bench, upstream: Upstream, times: Times, rnd: random.Random
) -> None:
    """At a random byte, by a reset or an end: what was said until then stays, and nothing is claimed to be whole."""
    stream = START + b"".join(text(f"word{n} ") for n in range(20)) + end()
    whole_text = "".join(f"word{n} " for n in range(20))
    whole_from = len(stream) - len(event("metadata", {})) - 100  # messageStop lies about there
    for _ in range(times(3, 60)):
        cut = rnd.randrange(whole_from)
        line, said = await failing(bench, upstream, then(rnd.choice(["reset", "close"]), stream[:cut], raw=head()))
        assert CONNECTION in line
        assert whole_text.startswith(said)
        line, said = await failing(bench, upstream, says(stream[:cut]))
        assert BROKEN_OFF in line
        assert whole_text.startswith(said)


@pytest.mark.skipif(not FULL, reason="in the long round")
async def test_an_endpoint_where_nobody_listens(valkey_url: str, tmp_path: Path) -> None:
    async with bench_over(f"http://127.0.0.1:{free_port()}", valkey_url, tmp_path) as bench:
        talk = await bench.start(new_name("refused"), "Hello")
        await talk.rest()
        assert "The model's endpoint cannot be reached." in line_of(talk)
        assert await talk.kept() == ("", "")


# ---- tried again


PASSING = [
    "429 ThrottlingException",
    "500",
    "503",
    "model not ready",
    "a reset before headers",
    "a reset in headers",
]


async def test_what_passes_is_tried_again(valkey_url: str, tmp_path: Path, upstream: Upstream, times: Times) -> None:
    """As often as AWS_MAX_ATTEMPTS says; the answer is there once."""
    async with bench_over(upstream, valkey_url, tmp_path, attempts=3) as bench:
        for fault in PASSING if FULL else PASSING[::4]:
            answer, _, told = BROKEN[fault]
            for failures in range(1, 1 + times(1, 2)):
                upstream.now(*[answer] * failures, fine)
                talk = await bench.start(new_name("passing"), "Hello")
                await talk.rest()
                assert (talk.text, talk.events[-1]) == (FINE, Done()), fault
                assert len(upstream.exchanges) == failures + 1
            if fault.startswith(("500", "a reset before")):
                upstream.now(answer)
                talk = await bench.start(new_name("for ever"), "Hello")
                await talk.rest()
                assert told in line_of(talk)
                assert len(upstream.exchanges) == 3


async def test_a_model_throttled_after_some_text_does_not_say_it_twice(bench: Bench, upstream: Upstream) -> None:
    line, said = await failing(bench, upstream, BROKEN["throttled in mid-stream"][0], fine)
    assert (said, line) == ("Hello ", f"{BROKEN_OFF} Send another message to go on.")


async def test_a_call_throttled_before_any_text_is_tried_again(bench: Bench, upstream: Upstream) -> None:
    upstream.now(BROKEN["throttled before text"][0], fine)
    talk = await bench.start(new_name("throttled"), "Hello")
    await talk.rest()
    assert (talk.text, talk.events[-1]) == (FINE, Done())


# ---- stopped throughout

LARGE = text("x" * 20_000_000)
INPUT = delta({"toolUse": {"input": "1234"}})
THOUGHT = delta({"reasoningContent": {"text": "hm "}})
STATES: dict[str, Answer] = {
    "throttled for ever": BROKEN["429 ThrottlingException"][0],
    "500 for ever": BROKEN["500"][0],
    "reset for ever": BROKEN["a reset before headers"][0],
    "silence before headers": silent(),
    "silence after headers": silent(raw=head()),
    "silence in mid-stream": silent(START, HELLO, raw=head()),
    "silence in a frame": silent(START, HELLO, text("world")[:20], raw=head()),
    "text without end": endless(part(HELLO), 0.001),
    "a flood of text": endless(part(HELLO * 50)),
    "a flood of thoughts": endless(part(THOUGHT * 50)),
    "a flood of a tool's input": endless(part(INPUT * 50), opening=head() + part(START + tool_call("again", {}, "t1"))),
    "a flood of nothing": endless(part(event("ping", {"p": "abc"}) * 50)),
    "headers byte by byte": endless(b"x", 0.01, opening=head()[:-2] + b"x: "),
    "frames byte by byte": dripping(START + HELLO * 1000, 0.01),
    "an enormous event under way": silent(START, LARGE[:-1], raw=head()),
}


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def patient(
    upstream: Upstream, valkey_url: str, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Bench]:
    """Tries for ever, and waits for two minutes, as the product does."""
    directory = Path(tmp_path_factory.mktemp("patient"))
    how: dict[str, Any] = {"agent": "make_patient", "max_output_tokens": 1_000_000}
    async with bench_over(upstream, valkey_url, directory, attempts=1000, **how) as made:
        yield made


async def stopped_in(bench: Bench, upstream: Upstream, state: str, moment: float) -> None:
    """A run in this state, stopped after `moment` seconds; all that is promised of it checked."""
    upstream.now(STATES[state])
    talk = await bench.start(new_name("stopped"), "Go on.")
    await asyncio.sleep(moment)  # meant to be a random one
    halted = await talk.halt()
    if isinstance(talk.events[-1], Failed):  # a flood has met its limit before
        assert line_of(talk) == LIMIT
    else:
        assert halted.events[-1] == Stopped()
        assert halted.receipt.outcome is Outcome.STOPPED
        assert halted.frame_ms < QUICK
    assert await talk.kept() == (halted.text, halted.text)
    for exchange in upstream.exchanges:
        if not exchange.over:
            async with asyncio.timeout(SOON):
                assert (await exchange.left_at - halted.stopped_at) * 1000 < QUICK
    await next_turn(bench, upstream, talk.chat)


FEW_STATES = ["throttled for ever", "silence before headers", "a flood of thoughts", "an enormous event under way"]


@pytest.mark.parametrize("state", STATES if FULL else FEW_STATES)
async def test_a_stop_in_each_state(
    state: str, patient: Bench, upstream: Upstream, times: Times, rnd: random.Random
) -> None:
    for _ in range(times(1, 10)):
        await stopped_in(patient, upstream, state, rnd.uniform(0, times(100, 500) / 1000))


# ---- the limits of a run


SLOW = [
    "throttled for ever",
    "silence before headers",
    "text without end",
    "a flood of thoughts",
    "frames byte by byte",
]


@pytest.mark.parametrize("state", SLOW if FULL else SLOW[-1:])
async def test_the_time_of_a_run_is_limited(
    state: str, valkey_url: str, upstream: Upstream, tmp_path: Path, times: Times
) -> None:
    how: dict[str, Any] = {"run_timeout": 0.3, "max_output_tokens": 1_000_000}
    async with bench_over(upstream, valkey_url, tmp_path, attempts=1000, **how) as bench:
        for _ in range(times(1, 5)):
            upstream.now(STATES[state])
            began = time.monotonic()
            talk = await bench.start(new_name("deadline"), "Go on.")
            await talk.rest()
            assert "RUN_TIMEOUT" in line_of(talk)
            assert 0.3 <= time.monotonic() - began < 0.3 + QUICK / 1000
            assert await talk.kept() == (talk.text, talk.text)


TOKENS = 100
# What AgentTurn allows a call of which nothing is told yet: 8 characters a token, twice of what is usual, since an
# honest answer must never be taken for one that ignores its limit; and one token more, which may be a long one.
CHARACTERS = TOKENS * 8 + 64


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def limited(
    upstream: Upstream, valkey_url: str, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Bench]:
    directory = Path(tmp_path_factory.mktemp("limited"))
    async with bench_over(upstream, valkey_url, directory, max_output_tokens=TOKENS) as made:
        yield made


TOO_MUCH: dict[str, tuple[Answer, str]] = {
    "words": (endless(part(HELLO), 0.0001), "Hello "),
    "a flood of words": (endless(part(HELLO * 50)), "Hello "),
    "one enormous event": (says(START, text("x" * 5_000_000), end()), "x"),
    "emoji cut in half": (endless(part(text("\ud83d") + text("\ude00")), 0.0001), "\U0001f600"),
    "thoughts": (endless(part(THOUGHT), 0.0001), ""),
    "a tool's input": (endless(part(INPUT), 0.0001, head() + part(START + tool_call("again", {}, "t1"))), ""),
}


@pytest.mark.parametrize("what", TOO_MUCH if FULL else ["words", "one enormous event", "a tool's input"])
async def test_a_provider_that_ignores_the_limit_is_cut_off(what: str, limited: Bench, upstream: Upstream) -> None:
    answer, repeated = TOO_MUCH[what]
    line, said = await failing(limited, upstream, answer)
    assert line == LIMIT
    assert said == (repeated * CHARACTERS)[: len(said)]
    if repeated:
        assert CHARACTERS - 64 <= len(said.encode("utf-16-le")) // 2 <= CHARACTERS


@pytest.mark.parametrize("told", [10, None, 1], ids=["tells what it used", "tells nothing", "tells too little"])
async def test_an_agent_that_calls_tools_for_ever_has_one_limit(
    told: int | None, limited: Bench, upstream: Upstream
) -> None:
    calls = 0

    async def asks(exchange: Exchange) -> None:
        nonlocal calls
        calls += 1
        said = text("x" * 39 + " ") + event("contentBlockStop", {"contentBlockIndex": 0})
        called = tool_call("again", {"number": calls}, f"t{calls}")
        await exchange.say(head() + part(START + said + called + end("tool_use", told)) + LAST)

    line, said = await failing(limited, upstream, asks)
    assert line == LIMIT
    assert calls == TOKENS // 10 if told == 10 else TOKENS // 10 <= calls <= CHARACTERS // 40
    assert len(said) <= CHARACTERS


@pytest.mark.skipif(not FULL, reason="in the long round")
async def test_an_answer_of_long_tokens_is_within_its_limit(limited: Bench, upstream: Upstream) -> None:
    """Of 7 characters each: no honest answer is cut."""
    upstream.now(says(START, *[text("honest ") for _ in range(TOKENS)], end("max_tokens", TOKENS)))
    talk = await limited.start(new_name("honest"), "Hello")
    await talk.rest()
    assert talk.text == "honest " * TOKENS
    assert line_of(talk) == LIMIT  # the provider said so itself


async def test_a_stop_as_the_limit_is_met(limited: Bench, upstream: Upstream, times: Times, rnd: random.Random) -> None:
    """Whichever comes first: one closing event, and the next turn works."""
    for _ in range(times(3, 50)):
        upstream.now(endless(part(HELLO), 0.0001))
        talk = await limited.start(new_name("race"), "Go on.")
        await talk.heard(CHARACTERS // 6 - rnd.randrange(3))
        halted = await talk.halt()
        assert halted.events[-1] in (Stopped(), Failed(LIMIT))
        assert await talk.kept() == (halted.text, halted.text)
        await next_turn(limited, upstream, talk.chat)


# ---- nothing grows, nothing stays


async def test_a_client_that_does_not_read_holds_up_the_provider(bench: Bench, upstream: Upstream) -> None:
    """Or the replica would have to keep what the model says in the meantime."""
    upstream.now(endless(part(HELLO * 50)))
    talk = await bench.start(new_name("slow"), "Go on.")
    exchange = await upstream.asked.get()
    async with asyncio.timeout(SOON):
        sent = -1
        while sent != exchange.sent or not sent:
            sent = exchange.sent
            await asyncio.sleep(0.2)  # nothing tells that nothing more happens
    assert sent < 32 * 2**20  # sockets hold some MB of frames, which are 20 times as long as their text
    assert talk.execution.stream._waiting < 512 * 1024
    halted = await talk.halt()
    assert halted.events[-1] == Stopped()
    assert await talk.kept() == (halted.text, halted.text)


async def held(bench: Bench) -> dict[str, int]:
    gc.collect()
    await bench.close_idle()
    for _ in range(20):  # a closed socket is closed some turns of the loop later
        await asyncio.sleep(0.01)
    return {
        "threads": threading.active_count(),
        "tasks": len(asyncio.all_tasks()),
        "sockets": sum(
            os.readlink(f"/proc/self/fd/{fd}").startswith("socket:")
            for fd in os.listdir("/proc/self/fd")
            if os.path.islink(f"/proc/self/fd/{fd}")
        ),
    }


async def test_nothing_is_left_behind(
    bench: Bench, patient: Bench, upstream: Upstream, times: Times, rnd: random.Random
) -> None:
    # Pools of threads are full: they keep what they have made.
    loop = asyncio.get_running_loop()
    await asyncio.gather(*(loop.run_in_executor(bedrock._signers, time.sleep, 0.05) for _ in range(8)))
    await asyncio.gather(*(to_thread.run_sync(time.sleep, 0.05) for _ in range(40)))
    await asyncio.gather(*(asyncio.to_thread(time.sleep, 0.05) for _ in range(32)))
    await next_turn(bench, upstream, new_name("warm"))
    before = await held(bench)
    for fault in rnd.choices(list(BROKEN), k=times(5, 100)):
        await failing(bench, upstream, BROKEN[fault][0])
    for state in rnd.choices(list(STATES), k=times(2, 30)):
        await stopped_in(patient, upstream, state, rnd.uniform(0, 0.1))
    after = await held(bench)
    assert all(after[what] <= before[what] for what in before), (before, after)
    assert upstream.open == 0


# ---- a minute


@pytest.mark.timeout(120)
@pytest.mark.skipif(not FULL, reason="takes a minute: in the long round")
async def test_a_minute_of_silence_is_waited_for(patient: Bench, valkey_url: str, tmp_path: Path) -> None:
    """Before headers and in mid-stream, at once; a third run is stopped at the end of it."""
    quiet = asyncio.Event()

    async def before(exchange: Exchange) -> None:
        await quiet.wait()
        await fine(exchange)

    async def between(exchange: Exchange) -> None:
        await exchange.say(head() + part(START + HELLO))
        await quiet.wait()
        await exchange.say(part(text("world") + end()) + LAST)

    async with Upstream().serving() as upstream, bench_over(upstream, valkey_url, tmp_path) as bench:
        talks = []
        for answer in (before, between, silent()):
            upstream.now(answer)
            talks.append(await bench.start(new_name("minute"), "Hello"))
            await upstream.asked.get()
        await asyncio.sleep(60)
        quiet.set()
        for talk in talks[:2]:
            await asyncio.wait_for(rest_of(talk), SOON)
        halted = await talks[2].halt()
    assert [(talk.text, talk.events[-1]) for talk in talks[:2]] == [(FINE, Done()), ("Hello world", Done())]
    assert halted.events[-1] == Stopped()
    assert halted.frame_ms < QUICK


async def rest_of(talk: Talk) -> None:
    """As `Talk.rest`, of a stream that may say nothing for longer."""
    while not talk.over:
        talk.events += await talk.execution.stream.take(90)


# ---- the local model's client


def says_openai(*parts: bytes, last: bytes = LAST) -> Answer:
    async def answer(exchange: Exchange) -> None:
        await exchange.say(SSE + b"".join(map(part, parts)) + last)

    return answer


def chunk(words: str, finish: str | None = None) -> bytes:
    choice = {"index": 0, "delta": {"content": words} if words else {}, "finish_reason": finish}
    return f"data: {json.dumps({'id': 'x', 'object': 'chat.completion.chunk', 'choices': [choice]})}\n\n".encode()


SSE = head(content_type="text/event-stream")
HI = chunk("Hello ")
LOCAL_FAILED = "The local model server failed."
LOCAL: dict[str, tuple[Answer, str, str]] = {
    "500": (refused("500 Internal Server Error", "", "x"), "", LOCAL_FAILED),
    "503 while it loads": (refused("503 Service Unavailable", "", body=b'{"error": {"code": 503}}'), "", LOCAL_FAILED),
    "400": (refused("400 Bad Request", "", body=b'{"error": {"message": "no"}}'), "", "LOCAL_MODEL_ID"),
    "401": (refused("401 Unauthorized", "", body=b""), "", "LOCAL_MODEL_URL"),
    "404": (refused("404 Not Found", "", body=b""), "", "LOCAL_MODEL_URL"),
    "a reset before headers": (then("reset"), "", "cannot be reached. Check LOCAL_MODEL_URL"),
    "a reset after headers": (then("reset", raw=SSE), "", CONNECTION),
    "a reset in mid-stream": (then("reset", HI, raw=SSE), "Hello ", CONNECTION),
    "an end in mid-stream": (then("close", HI, raw=SSE), "Hello ", CONNECTION),
    "no reason for the end": (says_openai(HI), "Hello ", BROKEN_OFF),
    "no reason for the end, but [DONE]": (says_openai(HI, b"data: [DONE]\n\n"), "Hello ", BROKEN_OFF),
    "nothing": (says_openai(), "", BROKEN_OFF),
    "HTML": (says_openai(b"<html>nginx</html>"), "", BROKEN_OFF),
    "JSON cut off": (says_openai(HI, b"data: {bad\n\n"), "Hello ", BROKEN_OFF),
    "bad UTF-8": (says_openai(HI, b"data: \xff\xfe\n\n"), "Hello ", BROKEN_OFF),
    "an error in mid-stream": (
        says_openai(HI, b'data: {"error": {"message": "boom at http://10.1.1.1", "code": 500}}\n\n'),
        "Hello ",
        LOCAL_FAILED,
    ),
    "no HTTP": (then("close", raw=b"SSH-2.0-OpenSSH_9.2\r\n"), "", "cannot be reached. Check LOCAL_MODEL_URL"),
}
LOCAL_STATES: dict[str, Answer] = {
    "500 for ever": LOCAL["500"][0],
    "silence before headers": silent(),
    "silence after headers": silent(raw=SSE),
    "silence in mid-stream": silent(HI, raw=SSE),
    "text without end": endless(part(HI), 0.001, SSE),
}


@asynccontextmanager
async def local_bench(url: str, valkey_url: str, directory: Path, **how: Any) -> AsyncIterator[Bench]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("openai._base_client.INITIAL_RETRY_DELAY", 0.01)
        patch.setattr("openai._base_client.MAX_RETRY_DELAY", 0.01)
        settings = Settings(model_provider="local", local_model_url=f"{url}/v1", session_dir=directory, **how)
        async with benched_with(settings, valkey_url) as bench:
            yield bench


async def finer(exchange: Exchange) -> None:
    """A whole answer of a local model."""
    await exchange.say(SSE + part(chunk(FINE)) + part(chunk("", "stop")) + part(b"data: [DONE]\n\n") + LAST)


@pytest.mark.skipif(not FULL, reason="in the long round")
async def test_a_local_model_that_breaks_and_its_stops(
    upstream: Upstream, valkey_url: str, tmp_path: Path, times: Times, rnd: random.Random
) -> None:
    async with local_bench(upstream.url, valkey_url, tmp_path) as bench:

        async def goes_on(chat: str) -> None:
            upstream.now(finer)
            talk = await bench.start(chat, "And now?")
            await talk.rest()
            assert (talk.text, talk.events[-1]) == (FINE, Done())

        await goes_on(new_name("warm"))
        for fault in LOCAL if FULL else ["no reason for the end", *rnd.sample(list(LOCAL), 3)]:
            answer, seen, told = LOCAL[fault]
            upstream.now(answer)
            talk = await bench.start(new_name("local"), "Hello")
            await talk.rest()
            assert told in line_of(talk), fault
            assert talk.text == seen, fault
            assert await talk.kept() == (seen, seen)
            await goes_on(talk.chat)
        for answer in [LOCAL_STATES["silence in mid-stream"]] if not FULL else list(LOCAL_STATES.values()) * 5:
            upstream.now(answer)
            talk = await bench.start(new_name("local"), "Go on.")
            await asyncio.sleep(rnd.uniform(0, 0.1))  # meant to be a random moment
            halted = await talk.halt()
            if isinstance(halted.events[-1], Failed):  # 500 for ever is four times
                assert LOCAL_FAILED in line_of(talk)
                continue
            assert halted.events[-1] == Stopped()
            assert halted.frame_ms < QUICK
            for exchange in upstream.exchanges:
                if not exchange.over:
                    async with asyncio.timeout(SOON):
                        await exchange.left_at
            await goes_on(talk.chat)


@pytest.mark.skipif(not FULL, reason="in the long round")
async def test_a_local_model_that_ignores_its_limit(upstream: Upstream, valkey_url: str, tmp_path: Path) -> None:
    async with local_bench(upstream.url, valkey_url, tmp_path, max_output_tokens=TOKENS) as bench:
        upstream.now(endless(part(HI), 0.0001, SSE))
        talk = await bench.start(new_name("local"), "Go on.")
        await talk.rest()
        assert line_of(talk) == LIMIT
        assert len(talk.text) == CHARACTERS


@pytest.mark.skipif(not FULL, reason="in the long round")
async def test_a_local_server_that_is_not_there(valkey_url: str, tmp_path: Path) -> None:
    async with local_bench(f"http://127.0.0.1:{free_port()}", valkey_url, tmp_path) as bench:
        talk = await bench.start(new_name("local"), "Hello")
        await talk.rest()
        assert line_of(talk) == "The local model server cannot be reached. Check LOCAL_MODEL_URL."
