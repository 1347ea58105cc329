"""The stoppable Bedrock model: Strands' behaviour in all but the stop, over the real client and real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import re
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import aclosing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import boto3
import pytest
import uvloop
from botocore.config import Config
from botocore.credentials import RefreshableCredentials
from botocore.exceptions import (
    ClientError,
    ConnectionClosedError,
    EndpointConnectionError,
    EventStreamError,
    ReadTimeoutError,
)
from strands import Agent, tool
from strands.models import BedrockModel
from strands.types.exceptions import ContextWindowOverflowException, ModelThrottledException

from haltline import bedrock
from haltline.agent import AgentSource
from haltline.bedrock import RunStopped, StoppableBedrockModel, close_connections
from haltline.runs import StopReason, StopToken, live_token
from haltline.settings import Settings
from tests.fake_bedrock import RunningFakeBedrock, running_fake_bedrock
from tests.stack import free_port
from tests.stops.bench import new_name, script

SOON = 10.0  # seconds: a deadline for what must happen, never a measure
# One for all models: what it has loaded makes the next client cheap.
SESSION = boto3.Session(aws_access_key_id="test", aws_secret_access_key="test", region_name="us-west-2")


@pytest.fixture(scope="module")
def fake(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningFakeBedrock]:
    with running_fake_bedrock(Path(tmp_path_factory.mktemp("bedrock"))) as running:
        yield running


Make = Callable[..., Any]


@pytest.fixture
async def make(fake: RunningFakeBedrock, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Make]:
    """Make a model that calls the fake."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")

    def model(kind: type[BedrockModel] = StoppableBedrockModel, url: str = "", attempts: int = 1, **how: Any) -> Any:
        retries: Any = {"mode": "standard", "total_max_attempts": attempts}
        options = {name: how.pop(name) for name in ("read_timeout", "proxies") if name in how}
        config = Config(retries=how.pop("retries", retries), max_pool_connections=100, **options)
        how = {"model_id": "fake.model", "boto_session": SESSION, **how}
        return kind(endpoint_url=url or fake.url, boto_client_config=config, **how)

    yield model
    close_connections()


def user(text: str) -> list[Any]:
    return [{"role": "user", "content": [{"text": text}]}]


def text_of(event: Any) -> str | None:
    text: str | None = event.get("contentBlockDelta", {}).get("delta", {}).get("text")
    return text


async def said(model: Any, message: str, **how: Any) -> list[Any]:
    return [event async for event in model.stream(user(message), **how)]


# ---- the same as Strands' own


TURNS: dict[str, dict[str, Any]] = {
    "text": {"text": "one two three", "pace_ms": 0},
    "reasoning": {"text": "so", "reasoning": ["hm ", "well"], "pace_ms": 0},
    "tools": {"tools": [{"name": "a", "input": {"x": 1}}, {"name": "b", "input": {}}], "tool_text": "Let me see."},
    "a guardrail": {"text": "not that", "guardrail": True, "pace_ms": 0},
    "too many tokens": {"text": "and so", "stop_reason": "max_tokens", "pace_ms": 0},
}
SPECS: Any = [{"name": n, "description": n, "inputSchema": {"json": {"type": "object"}}} for n in ("a", "b")]


@pytest.mark.parametrize("turn", TURNS)
@pytest.mark.parametrize("how", [{}, {"streaming": False}, {"guardrail_id": "g", "guardrail_version": "1"}])
async def test_it_says_what_strands_own_model_says(make: Make, turn: str, how: dict[str, Any]) -> None:
    def plain(events: list[Any]) -> list[Any]:
        found: list[Any] = []
        for event in events:
            event.get("metadata", {}).pop("metrics", None)
            event.get("contentBlockStart", {}).get("start", {}).get("toolUse", {}).pop("toolUseId", None)
            text, before = text_of(event), text_of(found[-1]) if found else None
            if text and before:  # what arrives together goes on as one piece
                found[-1]["contentBlockDelta"]["delta"]["text"] = before + text
            else:
                found.append(event)
        return found

    ours, theirs = [
        plain(await said(make(kind, **how), script(**TURNS[turn]), tool_specs=SPECS))
        for kind in (StoppableBedrockModel, BedrockModel)
    ]
    assert ours == theirs
    assert len(ours) > 3


FAILURES: dict[str, tuple[dict[str, Any], type[Exception]]] = {
    "throttling": ({"throttle": -1}, ModelThrottledException),
    "throttling before any text": ({"fail": {"code": "throttlingException"}, "chunks": []}, ModelThrottledException),
    "validation": ({"refuse": {"code": "ValidationException", "message": "no"}}, ClientError),
    "a context that is too long": (
        {"refuse": {"code": "ValidationException", "message": "Input is too long for requested model."}},
        ContextWindowOverflowException,
    ),
    "an error in mid-stream": ({"fail": {"code": "modelStreamErrorException"}, "pace_ms": 0}, EventStreamError),
    "no access": ({"refuse": {"status": 403, "code": "AccessDeniedException", "message": "no"}}, ClientError),
}


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # of Strands' own model, which leaves a failed stream open
@pytest.mark.parametrize("failure", FAILURES)
async def test_it_fails_as_strands_own_model_fails(make: Make, failure: str) -> None:
    what, kind = FAILURES[failure]
    found = []
    for model in (make(), make(BedrockModel)):
        with pytest.raises(kind) as raised:
            await said(model, script(name=new_name("failure"), **what))
        told = re.sub(r" \(reached max retries: \d\)", "", str(raised.value))  # a note of botocore's
        found.append((type(raised.value).__name__, told, getattr(raised.value, "__notes__", None)))
    gc.collect()
    assert found[0] == found[1]


async def test_a_connection_that_breaks_in_mid_stream(make: Make) -> None:
    with pytest.raises(ConnectionClosedError):
        await said(make(), script(text="a b", drop=True, pace_ms=0))


async def test_an_endpoint_that_is_not_there(make: Make) -> None:
    with pytest.raises(EndpointConnectionError):
        await said(make(url=f"http://127.0.0.1:{free_port()}"), "hello")


async def test_a_certificate_that_is_not_trusted(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from botocore.exceptions import SSLError

    with running_fake_bedrock(tmp_path, tls=True) as other:
        with pytest.raises(SSLError):
            await said(make(url=other.url), "hello")
        monkeypatch.setenv("AWS_CA_BUNDLE", str(other.cert))
        assert await said(make(url=other.url), "hello")


async def test_an_agent_with_tools_and_usage(make: Make) -> None:
    @tool
    def a(x: int) -> str:
        """Add one."""
        return str(x + 1)

    agent = Agent(model=make(), tools=[a], callback_handler=None)
    result = await agent.invoke_async(script(tools=[{"name": "a", "input": {"x": 1}}], text="two it is"))
    assert str(result).strip() == "two it is"
    assert agent.messages[2]["content"][0]["toolResult"]["content"] == [{"text": "2"}]
    assert result.metrics.accumulated_usage["outputTokens"] >= 3


# ---- trying again


async def test_a_call_that_is_refused_is_tried_again_without_holding_up_others(
    make: Make, fake: RunningFakeBedrock, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, longest = new_name("again"), 0.0
    monkeypatch.setattr("haltline.bedrock.random.random", lambda: 0.9)  # of the longest back-off, a second

    async def beat() -> None:
        nonlocal longest
        while True:
            before = time.monotonic()
            await asyncio.sleep(0.01)
            longest = max(longest, time.monotonic() - before)

    beating = asyncio.create_task(beat())
    assert await said(make(attempts=2), script(name=name, throttle=1, text="at last", pace_ms=0))
    beating.cancel()
    assert [line["attempt"] for line in fake.log(name) if line["event"] == "request"] == [1, 2]
    assert longest < 0.5  # botocore itself would have slept for 0.9 s


async def test_a_call_outside_of_the_model_behaves_as_ever(make: Make) -> None:
    """The same client, used from a thread as botocore is meant to be used."""
    client = make(attempts=3).client

    def call() -> str:
        answer = client.converse(
            modelId="fake.model", messages=user(script(name=new_name("thread"), throttle=1, text="by thread"))
        )
        client.close()
        return str(answer["output"]["message"]["content"][0]["text"])

    assert await asyncio.to_thread(call) == "by thread"


@pytest.mark.parametrize(("mode", "attempts"), [("legacy", 5), ("standard", 3)])
async def test_how_often_is_botocores_default(
    make: Make, fake: RunningFakeBedrock, mode: str, attempts: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("haltline.bedrock.LONGEST_BACK_OFF", 0.0)
    name = new_name("often")
    model = make(retries={"mode": mode})
    with pytest.raises(ModelThrottledException):
        await said(model, script(name=name, throttle=-1))
    assert [line["attempt"] for line in fake.log(name) if line["event"] == "request"] == [*range(1, attempts + 1)]


async def test_the_clients_own_time_limits_count(make: Make) -> None:
    with pytest.raises(ReadTimeoutError):
        await said(make(read_timeout=0.3), script(name=new_name("slow"), headers_ms=60_000))


async def test_a_refusal_that_passes_by_any_of_its_names(
    make: Make, fake: RunningFakeBedrock, monkeypatch: Any
) -> None:
    monkeypatch.setattr("haltline.bedrock.LONGEST_BACK_OFF", 0.0)
    for code in ("RequestLimitExceeded", "ProvisionedThroughputExceededException", "RequestTimeout"):
        name = new_name(code)
        with pytest.raises(ClientError):
            await said(make(attempts=2), script(name=name, refuse={"status": 400, "code": code, "message": "later"}))
        assert [line["attempt"] for line in fake.log(name) if line["event"] == "request"] == [1, 2]


async def test_only_the_proxies_that_botocore_knows(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    nowhere = f"127.0.0.1:{free_port()}"
    monkeypatch.setenv("ALL_PROXY", f"socks5://{nowhere}")
    assert await said(make(), "hello")
    with pytest.raises(EndpointConnectionError):
        await said(make(proxies={"http": nowhere}), "hello")
    monkeypatch.setenv("HTTP_PROXY", f"http://{nowhere}")
    monkeypatch.setenv("NO_PROXY", "example.org")
    with pytest.raises(EndpointConnectionError):
        await said(make(), "hello")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    assert await said(make(), "hello")


async def test_handlers_of_others_see_the_request_first(make: Make, fake: RunningFakeBedrock) -> None:
    model, seen = make(), []
    model.client.meta.events.register("before-send", lambda request, **_: seen.append(request.url))
    assert await said(model, "hello")
    assert len(seen) == 1


async def test_credentials_whose_refresh_fails_are_asked_for_in_the_thread_only(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In their last minutes credentials are still good when a refresh fails: signing must not try it again."""
    import botocore.session

    asked_in: list[str] = []

    def fetch() -> dict[str, str]:
        asked_in.append(threading.current_thread().name)
        raise OSError("not now")

    soon = (datetime.now(UTC) + timedelta(minutes=12)).isoformat()
    core = botocore.session.get_session()
    core._credentials = RefreshableCredentials.create_from_metadata(  # type: ignore[attr-defined]
        {"access_key": "k", "secret_key": "s", "token": "t", "expiry_time": soon}, fetch, "test"
    )
    core.set_config_variable("region", "us-west-2")
    model = make(boto_session=boto3.Session(botocore_session=core))
    assert await said(model, "hello")
    assert [name.partition("_")[0] for name in asked_in] == ["aws-credentials"]


async def test_credentials_that_ran_out_are_fetched_in_a_thread(
    make: Make, fake: RunningFakeBedrock, monkeypatch: pytest.MonkeyPatch
) -> None:
    import botocore.session

    fetched_in: list[str] = []

    def fetch() -> dict[str, str]:
        fetched_in.append(threading.current_thread().name)
        return {"access_key": "k", "secret_key": "s", "token": "t", "expiry_time": "2999-01-01T00:00:00Z"}

    core = botocore.session.get_session()
    core._credentials = RefreshableCredentials.create_from_metadata(  # type: ignore[attr-defined]
        {"access_key": "k", "secret_key": "s", "token": "t", "expiry_time": "2000-01-01T00:00:00Z"}, fetch, "test"
    )
    core.set_config_variable("region", "us-west-2")
    model = make(boto_session=boto3.Session(botocore_session=core))
    assert await said(model, "hello")
    assert [name.startswith("aws-credentials") for name in fetched_in] == [True]


# ---- the stop


async def test_other_calls_keep_their_connections(make: Make, fake: RunningFakeBedrock) -> None:
    """One of three is cancelled: the others go on, and the next call takes a connection that is there already."""
    model, names = make(), [new_name("one"), new_name("two"), new_name("three")]
    talks = [
        asyncio.create_task(said(model, script(name=name, text="a b c d e f", repeat=5, pace_ms=10))) for name in names
    ]
    for name in names:
        await asyncio.to_thread(fake.wait_for, lambda line, name=name: line.get("name") == name)  # type: ignore[misc]
    talks[1].cancel()
    await asyncio.gather(talks[0], talks[2])
    ends = {name: [line["event"] for line in fake.log(name)] for name in names}
    assert ends == {n: ["request", "closed" if n == names[1] else "completed"] for n in names}

    used = {line["connection"] for name in names for line in fake.log(name)}
    again = new_name("again")
    await said(model, script(name=again, text="x", pace_ms=0))
    assert fake.log(again)[0]["connection"] in used


async def test_a_call_on_its_second_attempt_closes_no_connection_of_its_first(
    make: Make, fake: RunningFakeBedrock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It made a connection and was refused; another call took that connection over during the back-off."""
    monkeypatch.setattr("haltline.bedrock.random.random", lambda: 0.99)  # of the longest back-off, a second
    model, names = make(attempts=2), [new_name("early"), new_name("refused"), new_name("other")]

    async def requests(name: str, count: int = 1) -> list[Any]:
        def found() -> list[Any]:
            return [line["connection"] for line in fake.log(name) if line["event"] == "request"]

        await asyncio.to_thread(fake.wait_for, lambda _: len(found()) >= count)
        return found()

    early = asyncio.create_task(said(model, script(name=names[0], delay_ms=600, text="x", pace_ms=0)))
    (first,) = await requests(names[0])
    refused = asyncio.create_task(said(model, script(name=names[1], throttle=1, headers_ms=60_000)))
    (second,) = await requests(names[1])
    await asyncio.to_thread(fake.wait_for, lambda line: line.get("name") == names[1] and line["event"] == "refused")
    await asyncio.sleep(0.3)  # it has read the refusal, and its connection is free; its back-off is three times that
    other = asyncio.create_task(said(model, script(name=names[2], delay_ms=2_000, text="still there", pace_ms=0)))
    assert await requests(names[2]) == [second]
    await early
    assert await requests(names[1], 2) == [second, first]
    refused.cancel()
    assert await other


async def test_a_token_that_fires_ends_the_call_in_another_event_loop(make: Make, fake: RunningFakeBedrock) -> None:
    token, name, model = StopToken(), new_name("loop"), make()
    raised: list[BaseException] = []

    def call() -> None:
        try:
            asyncio.run(said(model, script(name=name, delay_ms=60_000)))
        except BaseException as error:
            raised.append(error)

    live_token.set(token)
    thread = asyncio.create_task(asyncio.to_thread(call))
    await asyncio.to_thread(fake.wait_for, lambda line: line.get("name") == name)
    at = time.monotonic()
    token.stop(StopReason.USER)
    closed = await asyncio.to_thread(fake.wait_for, lambda line: line.get("name") == name and line["event"] == "closed")
    await thread
    assert closed["at"] - at < 1
    assert [type(error) for error in raised] == [RunStopped]


class PromptLoop:
    """A call's loop whose thread has its turn, and ends the call, before whoever stops it goes on."""

    def __init__(self, loop: Any, ended: threading.Event) -> None:
        self._loop, self._ended = loop, ended

    def call_soon_threadsafe(self, callback: Callable[[], None]) -> None:
        self._loop.call_soon_threadsafe(callback)
        assert self._ended.wait(SOON)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loop, name)


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run])
async def test_a_stop_whose_connection_is_closed_by_its_own_thread_first(
    make: Make, run: Callable[[Any], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    token, loop, ended = StopToken(), asyncio.get_running_loop(), threading.Event()
    begin = bedrock._Call.__init__

    def begin_promptly(call: Any, *args: Any) -> None:
        begin(call, *args)
        call._loop = PromptLoop(call._loop, ended)

    monkeypatch.setattr(bedrock._Call, "__init__", begin_promptly)
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        model = make(url=f"https://127.0.0.1:{server.getsockname()[1]}")

        def call() -> None:
            with contextlib.suppress(RunStopped):
                run(said(model, "hello"))
            ended.set()

        live_token.set(token)
        thread = asyncio.create_task(asyncio.to_thread(call))
        peer, _ = await loop.sock_accept(server)
        with peer:
            peer.setblocking(False)
            assert await loop.sock_recv(peer, 65536)  # it begins the handshake
            token.stop(StopReason.USER)
            await thread


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run])
async def test_a_stop_while_a_connection_is_being_made(make: Make, run: Callable[[Any], Any]) -> None:
    """The server takes the connection and says nothing: the TLS handshake stands still."""
    token, loop = StopToken(), asyncio.get_running_loop()
    server = socket.create_server(("127.0.0.1", 0))
    server.setblocking(False)
    model = make(url=f"https://127.0.0.1:{server.getsockname()[1]}")
    others: list[str] = []

    def call() -> None:
        with contextlib.suppress(RunStopped):
            run(said(model, "hello"))

    live_token.set(token)
    thread = asyncio.create_task(asyncio.to_thread(call))
    peer, _ = await loop.sock_accept(server)
    peer.setblocking(False)
    assert await loop.sock_recv(peer, 65536)  # it begins the handshake
    token.on_stop(lambda: others.append("called"))
    token.stop(StopReason.USER)
    async with asyncio.timeout(SOON):
        while await loop.sock_recv(peer, 65536):
            pass
        await thread
    assert others == ["called"]
    peer.close()
    server.close()


async def test_a_cancellation_while_a_connection_is_being_made(make: Make) -> None:
    loop = asyncio.get_running_loop()
    server = socket.create_server(("127.0.0.1", 0))
    server.setblocking(False)
    talk = asyncio.create_task(said(make(url=f"https://127.0.0.1:{server.getsockname()[1]}"), "hello"))
    peer, _ = await loop.sock_accept(server)
    peer.setblocking(False)
    assert await loop.sock_recv(peer, 65536)
    talk.cancel()
    async with asyncio.timeout(SOON):
        while await loop.sock_recv(peer, 65536):
            pass
    peer.close()
    server.close()


async def test_a_call_that_is_stopped_and_cancelled_at_once_is_closed(make: Make, fake: RunningFakeBedrock) -> None:
    token, name = StopToken(), new_name("both")
    live_token.set(token)
    talk = asyncio.create_task(said(make(), script(name=name, delay_ms=60_000)))
    await asyncio.to_thread(fake.wait_for, lambda line: line.get("name") == name)
    talk.cancel()
    token.stop(StopReason.USER)
    talk.cancel()
    await asyncio.wait({talk})
    closed = await asyncio.to_thread(
        fake.wait_for, lambda line: line.get("name") == name and line["event"] != "request"
    )
    assert closed["event"] == "closed"


async def test_a_call_after_the_stop_is_not_begun(make: Make, fake: RunningFakeBedrock) -> None:
    token, name = StopToken(), new_name("late")
    token.stop(StopReason.USER)
    live_token.set(token)
    with pytest.raises(RunStopped):
        await said(make(), script(name=name))
    assert fake.log(name) == []


@pytest.mark.parametrize("silence", ["headers_ms", "delay_ms"])
async def test_strands_cancel_signal_ends_a_silent_call(make: Make, fake: RunningFakeBedrock, silence: str) -> None:
    agent, name = Agent(model=make(), callback_handler=None), new_name("signal")
    talk = asyncio.create_task(agent.invoke_async(script(name=name, **{silence: 60_000})))
    await asyncio.to_thread(fake.wait_for, lambda line: line.get("name") == name)
    agent.cancel()
    async with asyncio.timeout(SOON):
        assert (await talk).stop_reason == "cancelled"
    await asyncio.to_thread(fake.wait_for, lambda line: line.get("name") == name and line["event"] == "closed")


async def test_a_reader_that_stops_reading(make: Make, fake: RunningFakeBedrock) -> None:
    name = new_name("left")
    async with aclosing(make().stream(user(script(name=name, text="a ", repeat=999, pace_ms=1)))) as events:
        async for event in events:
            if "contentBlockDelta" in event:
                break
    line = await asyncio.to_thread(fake.wait_for, lambda line: line.get("name") == name and line["event"] != "request")
    assert line["event"] == "closed"


# ---- many


async def test_two_hundred_at_once_wait_for_nobody(make: Make, fake: RunningFakeBedrock) -> None:
    """Each is silent until all have asked: with a thread a call, they would stand in line."""
    model, group, threads = make(), new_name("many"), threading.active_count()

    async def one(number: int) -> None:
        await said(model, script(name=f"{group}-{number}", headers_ms=1500, text="x", pace_ms=0))

    talks = [asyncio.create_task(one(number)) for number in range(200)]
    await asyncio.gather(*talks)
    lines = [line for line in fake.log() if str(line.get("name", "")).startswith(group)]
    asked = [line["at"] for line in lines if line["event"] == "request"]
    answered = [line["first_at"] for line in lines if line["event"] == "completed"]
    assert len(asked) == len(answered) == 200
    assert max(asked) < min(answered)
    assert threading.active_count() <= threads + 6  # the few that fetch credentials and read the test's log


# ---- agents that bring a model of their own


def brings_its_own(model: Any) -> Agent:
    return Agent(model=BedrockModel(region_name="us-west-2", model_id="fake.own"), callback_handler=None)


async def test_strands_own_model_in_an_agent_is_made_stoppable(make: Make) -> None:
    source = AgentSource(Settings(model_provider="scripted", agent=f"{__name__}:brings_its_own"))
    turn = await source.make()
    model: Any = turn._agent.model
    assert isinstance(model, StoppableBedrockModel)
    assert model.config["model_id"] == "fake.own"


async def test_models_made_for_each_run_share_their_connections(make: Make, fake: RunningFakeBedrock) -> None:
    names = [new_name("each") for _ in range(3)]
    for name in names:
        assert await said(make(), script(name=name, text="x", pace_ms=0))
    assert len({fake.log(name)[0]["connection"] for name in names}) == 1
