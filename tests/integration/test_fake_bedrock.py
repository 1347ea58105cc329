"""The fake Bedrock, seen by boto3, by Strands and by a bare socket."""

from __future__ import annotations

import gc
import json
import signal
import socket
import ssl
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import quote

import boto3
import pytest
from botocore import UNSIGNED
from botocore.config import Config
from botocore.exceptions import ClientError, EventStreamError
from strands import Agent, tool
from strands.models import BedrockModel
from strands.types.exceptions import ContextWindowOverflowException, ModelThrottledException
from urllib3.exceptions import ProtocolError

from local.fake_bedrock.history import invalid_history
from local.fake_bedrock.script import ANSWER, BEHAVIOURS, SIGNATURE
from tests.fake_bedrock import RunningFakeBedrock, running_fake_bedrock

MODEL = "amazon.nova-lite-v1:0"
PROFILE = "arn:aws:bedrock:us-west-2:123456789012:inference-profile/us.amazon.nova-lite-v1:0"


@pytest.fixture(scope="module")
def fake(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningFakeBedrock]:
    """Shared: a test names its scripts, by its own name."""
    with running_fake_bedrock(Path(tmp_path_factory.mktemp("bedrock"))) as running:
        yield running


@pytest.fixture(scope="module")
def fake_tls(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningFakeBedrock]:
    with running_fake_bedrock(Path(tmp_path_factory.mktemp("bedrock_tls")), tls=True) as running:
        yield running


@pytest.fixture(scope="module")
def session() -> boto3.Session:
    return boto3.Session(aws_access_key_id="test", aws_secret_access_key="test", region_name="us-west-2")


def config(attempts: int = 1, **more: Any) -> Config:
    return Config(proxies={}, retries={"total_max_attempts": attempts, "mode": "standard"}, **more)


@pytest.fixture(scope="module")
def client(session: boto3.Session, fake: RunningFakeBedrock) -> Any:
    return session.client("bedrock-runtime", endpoint_url=fake.url, config=config())


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    """A name for the scripts of this test."""
    return str(request.node.name)


def script(**keys: Any) -> str:
    return f"/script {json.dumps({'pace_ms': 0, **keys})}"


def user(*texts: str) -> dict[str, Any]:
    return {"role": "user", "content": [{"text": text} for text in texts]}


def ask(client: Any, text: str, model: str = MODEL, **more: Any) -> list[dict[str, Any]]:
    """Every event of one answer."""
    return ask_until(client, text, model, **more)[0]


def ask_until(
    client: Any, text: str, model: str = MODEL, *, error: type[Exception] | None = None, **more: Any
) -> tuple[list[dict[str, Any]], Any]:
    """Every event of one answer up to an `error`, and the error."""
    events: list[dict[str, Any]] = []
    with closing(client.converse_stream(modelId=model, messages=[user(text)], **more)["stream"]) as stream:
        if not error:
            return list(stream), None
        with pytest.raises(error) as raised:
            events.extend(stream)
    return events, raised.value


def deltas(events: list[dict[str, Any]], kind: str) -> list[Any]:
    found = (event["contentBlockDelta"]["delta"] for event in events if "contentBlockDelta" in event)
    return [delta[kind] for delta in found if kind in delta]


def refused(client: Any, text: str, model: str = MODEL, **more: Any) -> tuple[int, str, str]:
    with pytest.raises(ClientError) as raised:
        ask(client, text, model, **more)
    error = raised.value.response
    return error["ResponseMetadata"]["HTTPStatusCode"], error["Error"]["Code"], error["Error"]["Message"]


# ---- what boto3 sees


def test_an_answer_is_told_event_by_event(client: Any, fake: RunningFakeBedrock, name: str) -> None:
    text = script(name=name, text="one two three", reasoning=["hm, ", "so"])
    events, words = ask(client, text, PROFILE), len(text.split())
    latency = events[-1]["metadata"].pop("metrics")["latencyMs"]
    assert 0 <= latency < 5000
    assert events == [
        {"messageStart": {"role": "assistant"}},
        {"contentBlockDelta": {"contentBlockIndex": 0, "delta": {"reasoningContent": {"text": "hm, "}}}},
        {"contentBlockDelta": {"contentBlockIndex": 0, "delta": {"reasoningContent": {"text": "so"}}}},
        {"contentBlockDelta": {"contentBlockIndex": 0, "delta": {"reasoningContent": {"signature": SIGNATURE}}}},
        {"contentBlockStop": {"contentBlockIndex": 0}},
        {"contentBlockDelta": {"contentBlockIndex": 1, "delta": {"text": "one "}}},
        {"contentBlockDelta": {"contentBlockIndex": 1, "delta": {"text": "two "}}},
        {"contentBlockDelta": {"contentBlockIndex": 1, "delta": {"text": "three"}}},
        {"contentBlockStop": {"contentBlockIndex": 1}},
        {"messageStop": {"stopReason": "end_turn"}},
        {"metadata": {"usage": {"inputTokens": words, "outputTokens": 3, "totalTokens": words + 3}}},
    ]
    request, completed = fake.log(name)
    assert request["model"] == PROFILE
    assert request["attempt"] == 1
    assert (completed["event"], completed["id"], completed["sent"]) == ("completed", request["id"], 3)
    assert request["at"] <= completed["first_at"] <= completed["last_at"] <= completed["at"] <= time.monotonic()


def test_a_message_without_a_script_gets_a_fixed_answer(client: Any) -> None:
    assert "".join(deltas(ask(client, "Hello"), "text")) == ANSWER


def test_converse_says_the_same_at_once(client: Any) -> None:
    keys: dict[str, Any] = {"tools": [{"name": "look", "input": {"at": "it"}}], "tool_text": "Let me see."}
    answer = client.converse(modelId=MODEL, messages=[user(script(reasoning=["hm"], **keys))])
    thought, text, use = answer["output"]["message"]["content"]
    assert thought == {"reasoningContent": {"reasoningText": {"text": "hm", "signature": SIGNATURE}}}
    assert text == {"text": "Let me see."}
    assert (use["toolUse"]["name"], use["toolUse"]["input"]) == ("look", {"at": "it"})
    assert (answer["stopReason"], answer["usage"]["outputTokens"]) == ("tool_use", 3)


def test_time_passes_where_the_script_says(client: Any, fake: RunningFakeBedrock, name: str) -> None:
    silence = {"headers_ms": 60, "delay_ms": 50, "pace_ms": 20, "stall_after": 1, "stall_ms": 70}
    began = time.monotonic()
    response = client.converse_stream(modelId=MODEL, messages=[user(script(name=name, text="a b", **silence))])
    assert time.monotonic() - began > 0.055  # timers may be a millisecond early
    assert deltas(list(response["stream"]), "text") == ["a ", "b"]
    request, completed = fake.log(name)
    assert completed["first_at"] - request["at"] > 0.105
    assert completed["last_at"] - completed["first_at"] > 0.085


def test_the_end_may_have_another_reason(client: Any) -> None:
    assert {"messageStop": {"stopReason": "max_tokens"}} in ask(client, script(text="a", stop_reason="max_tokens"))


@pytest.mark.parametrize(
    ("behaviour", "status", "code"),
    [
        ("throttle", 429, "ThrottlingException"),
        ("on-demand", 400, "ValidationException"),
        ("overflow", 400, "ValidationException"),
        ("denied", 403, "AccessDeniedException"),
    ],
)
def test_a_refusal_by_model_id_and_by_the_first_word(client: Any, behaviour: str, status: int, code: str) -> None:
    by_model = refused(client, script(text="whatever"), f"fake.{behaviour}")
    assert by_model == refused(client, f"{behaviour}, please")
    assert by_model[:2] == (status, code)
    assert by_model[2] == BEHAVIOURS[behaviour].get("refuse", {}).get("message", by_model[2])


def test_a_script_refuses_as_it_likes(client: Any, fake: RunningFakeBedrock, name: str) -> None:
    refuse = {"status": 424, "code": "ModelErrorException", "message": "Oh."}
    assert refused(client, script(name=name, refuse=refuse)) == (424, "ModelErrorException", "Oh.")
    assert [(line["event"], line.get("code")) for line in fake.log(name)] == [
        ("request", None),
        ("refused", "ModelErrorException"),
    ]


def test_throttling_ends_after_as_many_calls_as_asked(
    session: boto3.Session, fake: RunningFakeBedrock, name: str
) -> None:
    client = session.client("bedrock-runtime", endpoint_url=fake.url, config=config(attempts=3))
    assert deltas(ask(client, script(name=name, text="at last", throttle=1)), "text") == ["at ", "last"]
    requests = [line for line in fake.log(name) if line["event"] == "request"]
    assert [line["attempt"] for line in requests] == [1, 2]
    assert requests[0]["connection"] == requests[1]["connection"]


@pytest.mark.parametrize(
    "code", ["modelStreamErrorException", "throttlingException", "internalServerException", "validationException"]
)
def test_a_stream_fails_after_its_text(client: Any, code: str) -> None:
    text = script(text="a b", fail={"code": code, "message": "Oh."})
    events, error = ask_until(client, text, error=EventStreamError)
    assert deltas(events, "text") == ["a ", "b"]
    assert (error.response["Error"]["Code"], error.response["Error"]["Message"]) == (code, "Oh.")


def test_a_connection_is_cut_after_its_text(client: Any, fake: RunningFakeBedrock, name: str) -> None:
    seen, error = ask_until(client, script(name=name, text="a b", drop=True), error=ProtocolError)
    assert "ended prematurely" in str(error)
    assert deltas(seen, "text") == ["a ", "b"]
    assert [line["event"] for line in fake.log(name)] == ["request", "dropped"]


def test_only_signed_requests_to_known_operations_are_answered(
    session: boto3.Session, fake: RunningFakeBedrock, client: Any
) -> None:
    unsigned = session.client("bedrock-runtime", endpoint_url=fake.url, config=config(signature_version=UNSIGNED))
    assert refused(unsigned, "Hello")[:2] == (403, "MissingAuthenticationTokenException")
    with pytest.raises(ClientError, match="UnknownOperationException"):
        client.invoke_model(modelId=MODEL, body=b"{}")
    assert refused(client, "/script nonsense")[1] == "ValidationException"


def test_tls_serves_whoever_trusts_the_certificate(session: boto3.Session, fake_tls: RunningFakeBedrock) -> None:
    client = session.client("bedrock-runtime", endpoint_url=fake_tls.url, verify=str(fake_tls.cert), config=config())
    assert deltas(ask(client, script(text="so far, so good")), "text") == ["so ", "far, ", "so ", "good"]


# ---- what Strands makes of it


@tool
def weather(city: str) -> str:
    """Look up the weather."""
    return f"rain in {city}"


@tool
def hour(city: str) -> str:
    """Look up the hour."""
    return f"noon in {city}"


@pytest.fixture(scope="module")
def bedrock(session: boto3.Session, fake: RunningFakeBedrock) -> BedrockModel:
    return BedrockModel(boto_session=session, endpoint_url=fake.url, model_id=MODEL, boto_client_config=config())


async def test_two_tools_at_once_and_in_two_rounds(bedrock: BedrockModel, fake: RunningFakeBedrock, name: str) -> None:
    tools = [{"name": "weather", "input": {"city": "Oslo"}}, {"name": "hour", "input": {"city": "Oslo"}}]
    agent = Agent(model=bedrock, tools=[weather, hour], callback_handler=None)
    text = script(name=name, text="It rains.", tools=tools, tool_text="Let me see. ", rounds=2)
    result = await agent.invoke_async(text)
    assert str(result).strip() == "It rains."
    assert [message["role"] for message in agent.messages] == ["user", "assistant"] * 3
    kinds = [[next(iter(block)) for block in message["content"]] for message in agent.messages]
    assert kinds[1:] == [["text", "toolUse", "toolUse"], ["toolResult", "toolResult"]] * 2 + [["text"]]
    assert [line["event"] for line in fake.log(name)] == ["request", "completed"] * 3
    assert invalid_history({"messages": agent.messages[:-1], "toolConfig": {}}) == NO_TOOLS


async def test_a_guardrail_redacts_what_the_user_said(bedrock: BedrockModel) -> None:
    agent = Agent(model=bedrock, callback_handler=None)
    result = await agent.invoke_async(script(text="Not this.", guardrail=True))
    assert (result.stop_reason, str(result).strip()) == ("guardrail_intervened", "Not this.")
    assert agent.messages[0]["content"] == [{"text": "[User input redacted.]"}]


@pytest.mark.parametrize(
    ("text", "error"),
    [
        (script(throttle=-1), ModelThrottledException),
        (script(text="a", fail={"code": "throttlingException"}), ModelThrottledException),
        ("overflow", ContextWindowOverflowException),
    ],
)
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
async def test_errors_that_strands_knows(bedrock: BedrockModel, text: str, error: type[Exception]) -> None:
    with pytest.raises(error):
        async for _ in bedrock.stream([user(text)]):  # type: ignore[list-item]
            pass
    gc.collect()  # Strands leaves a stream that failed open: its socket complains here, not in a later test


# ---- a client that leaves


def connect(fake: RunningFakeBedrock, text: str, padding: int = 0) -> socket.socket:
    """Send a request by hand, so that the moment of leaving is known."""
    connection = socket.create_connection(("127.0.0.1", fake.port), timeout=5)
    if fake.cert:
        context = ssl.create_default_context(cafile=str(fake.cert))
        connection = context.wrap_socket(connection, server_hostname="127.0.0.1")
    body = json.dumps({"messages": [user("x" * (padding + 1), text)]}).encode()
    head = f"POST /model/{quote(MODEL)}/converse-stream HTTP/1.1\r\nHost: x\r\nAuthorization: x\r\n"
    connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
    return connection


def leave(fake: RunningFakeBedrock, name: str, padding: int = 0, reset: bool = False, **keys: Any) -> dict[str, Any]:
    """Leave once something was said, or at once where the script says nothing. Returns the line, with `late` in s."""
    connection = connect(fake, script(name=name, **keys), padding)
    request = fake.wait_for(lambda line: line["event"] == "request" and line.get("name") == name)
    if "headers_ms" not in keys:
        while b"messageStart" not in (data := connection.recv(65536)) and "delay_ms" not in keys:
            assert data
    if reset:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    left = time.monotonic()
    connection.close()
    closed = fake.wait_for(lambda line: line["event"] == "closed" and line["id"] == request["id"])
    lost = {"event": "connection_closed", "at": closed["at"], "connection": request["connection"], "by": "client"}
    assert fake.wait_for(lambda line: line["event"] == "connection_closed" and line["at"] == closed["at"]) == lost
    return {**closed, "late": closed["at"] - left}


@pytest.mark.parametrize(
    ("phase", "keys"),
    [
        ("before_headers", {"headers_ms": 60_000}),
        ("before_first", {"delay_ms": 60_000}),
        ("streaming", {"repeat": 1000, "pace_ms": 20}),
        ("streaming", {"stall_after": 1, "pace_ms": 20}),
    ],
)
@pytest.mark.parametrize("reset", [False, True])
@pytest.mark.parametrize("tls", [False, True])
def test_leaving_is_stamped_when_it_happens(
    request: pytest.FixtureRequest, name: str, phase: str, keys: dict[str, int], reset: bool, tls: bool
) -> None:
    running = request.getfixturevalue("fake_tls" if tls else "fake")
    # Other processes may hold this one up for a moment, never three times in a row.
    lines = [leave(running, f"{name} {n}", reset=reset, **keys) for n in range(3)]
    assert all(line["late"] > 0 for line in lines)
    assert min(line["late"] for line in lines) < 0.02
    assert {(line["phase"], line["sent_after_close"]) for line in lines} == {(phase, 0)}
    assert all((line["sent"] > 0) == (phase == "streaming") for line in lines)


@pytest.mark.parametrize("keys", [{"headers_ms": 60_000}, {"repeat": 1000}])
def test_leaving_is_seen_after_a_large_request(fake: RunningFakeBedrock, name: str, keys: dict[str, int]) -> None:
    assert leave(fake, name, padding=300_000, **keys)["sent_after_close"] == 0


def test_leaving_is_seen_while_nobody_reads(fake: RunningFakeBedrock, name: str) -> None:
    connection = connect(fake, script(name=name, chunks=["x" * 100_000], repeat=1000))
    fake.wait_for(lambda line: line["event"] == "request" and line.get("name") == name)
    connection.recv(1)
    connection.close()
    closed = fake.wait_for(lambda line: line["event"] == "closed" and line.get("name") == name)
    assert (closed["phase"], closed["sent_after_close"]) == ("streaming", 0)
    assert closed["sent"] < 1000


def test_who_keeps_the_socket_open_has_not_left(fake: RunningFakeBedrock, name: str) -> None:
    with connect(fake, script(name=name, text="a b c")):
        completed = fake.wait_for(lambda line: line["event"] == "completed" and line.get("name") == name)
    assert completed["sent"] == 3
    port = completed["connection"]
    assert fake.wait_for(lambda line: line["event"] == "connection_closed" and line["connection"] == port)


@pytest.mark.parametrize("tls", [False, True])
@pytest.mark.parametrize("sig", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_with_a_stream_open(tmp_path: Path, tls: bool, sig: int) -> None:
    with running_fake_bedrock(tmp_path, tls) as running, connect(running, script(name="open", stall_after=1)) as stream:
        assert stream.recv(1)
        began = time.monotonic()
        assert running.end(sig) == 0
        assert time.monotonic() - began < 2
        assert [line["event"] for line in running.log("open")] == ["request", "ended"]
    assert (tmp_path / "bedrock.err").read_text() == ""


# ---- histories


def use(*ids: str, **keys: Any) -> dict[str, Any]:
    blocks = [{"toolUse": {"toolUseId": id_, "name": "look", "input": {}, **keys}} for id_ in ids]
    return {"role": "assistant", "content": blocks}


def result(*ids: str, **keys: Any) -> dict[str, Any]:
    blocks = [{"toolResult": {"toolUseId": id_, "content": [{"text": "seen"}], **keys}} for id_ in ids]
    return {"role": "user", "content": blocks}


ASK, SAY = user("Hello"), {"role": "assistant", "content": [{"text": "Hi"}]}

GOOD = {
    "one message": [ASK],
    "a second turn": [ASK, SAY, ASK],
    "a tool": [ASK, use("a"), result("a")],
    "two tools, answered in another order": [ASK, use("a", "b"), result("b", "a")],
    "text beside uses and results": [
        ASK,
        {"role": "assistant", "content": [*SAY["content"], *use("a")["content"]]},
        {"role": "user", "content": [*result("a")["content"], *ASK["content"]]},
    ],
    "an id that comes again in a later turn": [ASK, use("a"), result("a"), use("a"), result("a")],
    "a result without content": [ASK, use("a"), result("a", content=[])],
    "an id of 64 characters": [ASK, use("a" * 64), result("a" * 64)],
    "an image": [{"role": "user", "content": [{"image": {"format": "png", "source": {"bytes": "AA=="}}}]}],
}

START = "A conversation must start with a user message. Try again with a conversation that starts with a user message."
ALTERNATE = (
    "A conversation must alternate between user and assistant roles. Make sure the conversation alternates between "
    "user and assistant roles and try again."
)
END = (
    "The model returned the following errors: This model does not support assistant message prefill. The conversation "
    "must end with a user message."
)
NO_TOOLS = "The toolConfig field must be defined when using toolUse and toolResult content blocks."
CONSTRAINT = "1 validation error detected: Value {} at 'messages.{}' failed to satisfy constraint: {}"
USE_ID, RESULT = "2.member.content.1.member.toolUse.toolUseId", "3.member.content.1.member.toolResult"

BAD = {
    "nothing": ([], START),
    "an assistant first": ([SAY, ASK], START),
    "two users": ([ASK, ASK], ALTERNATE),
    "two assistants": ([ASK, SAY, SAY, ASK], ALTERNATE),
    "an assistant last": ([ASK, SAY], END),
    "a use last": ([ASK, use("a")], END),
    "no content": (
        [ASK, {"role": "assistant", "content": []}, ASK],
        "The content field in the Message object at messages.1 is empty. Add a ContentBlock object to the content "
        "field and try again.",
    ),
    "null content": (
        [ASK, {"role": "assistant", "content": None}, ASK],
        CONSTRAINT.format("null", "2.member.content", "Member must not be null"),
    ),
    "another role": (
        [{"role": "system", "content": [{"text": "Hello"}]}],
        CONSTRAINT.format("'system'", "1.member.role", "Member must satisfy enum value set: [user, assistant]"),
    ),
    "a blank text": (
        [ASK, {"role": "assistant", "content": [{"text": "Hi"}, {"text": " \n"}]}, ASK],
        "The text field in the ContentBlock object at messages.1.content.1 is blank. Add text to the text field, and "
        "try again.",
    ),
    "a use without its result": (
        [ASK, use("a"), ASK],
        "Expected toolResult blocks at messages.2.content for the following Ids: a",
    ),
    "one result of three": (
        [ASK, use("a", "b", "c"), result("b")],
        "Expected toolResult blocks at messages.2.content for the following Ids: a, c",
    ),
    "the result of another use": (
        [ASK, use("a"), result("b")],
        "Expected toolResult blocks at messages.2.content for the following Ids: a",
    ),
    "a result too many": (
        [ASK, use("a"), result("a", "b")],
        "The number of toolResult blocks at messages.2.content exceeds the number of toolUse blocks of previous turn.",
    ),
    "a result without a use": (
        [ASK, SAY, result("a")],
        "The number of toolResult blocks at messages.2.content exceeds the number of toolUse blocks of previous turn.",
    ),
    "a result first": (
        [result("a")],
        "The number of toolResult blocks at messages.0.content exceeds the number of toolUse blocks of previous turn.",
    ),
    "a late result": (
        [ASK, use("a"), ASK, SAY, result("a")],
        "Expected toolResult blocks at messages.2.content for the following Ids: a",
    ),
    "a use twice": (
        [ASK, use("a", "a"), result("a")],
        "The toolUse blocks at messages.1.content contain duplicate Ids: a",
    ),
    "a result twice": (
        [ASK, use("a", "b"), result("a", "a")],
        "The toolResult blocks at messages.2.content contain duplicate Ids: a",
    ),
    "an id of other characters": (
        [ASK, use("a b"), result("a b")],
        CONSTRAINT.format("'a b'", USE_ID, "Member must satisfy regular expression pattern: [a-zA-Z0-9_.:-]+"),
    ),
    "an id of 65 characters": (
        [ASK, use("a" * 65), result("a" * 65)],
        CONSTRAINT.format(f"'{'a' * 65}'", USE_ID, "Member must have length less than or equal to 64"),
    ),
    "an empty id": (
        [ASK, use(""), result("")],
        CONSTRAINT.format("''", USE_ID, "Member must have length greater than or equal to 1"),
    ),
    "an input that is no object": (
        [ASK, use("a", input='{"at": '), result("a")],
        "The format of the value at messages.1.content.0.toolUse.input is invalid. Provide a json object for the field "
        "and try again.",
    ),
    "a result that is no object": (
        [ASK, use("a"), result("a", content=[{"json": ["seen"]}])],
        "The format of the value at messages.2.content.0.toolResult.content.0.json is invalid. Provide a json object "
        "for the field and try again.",
    ),
    "a result of null": (
        [ASK, use("a"), result("a", content=None)],
        CONSTRAINT.format("null", f"{RESULT}.content", "Member must not be null"),
    ),
    "an error that says nothing": (
        [ASK, use("a"), result("a", content=[], status="error")],
        "The content field at messages.2.content.0.toolResult cannot be empty when status value is error.",
    ),
    "a use by the user": (
        [{**use("a"), "role": "user"}],
        "The model returned the following errors: messages.0: `tool_use` blocks can only be in `assistant` messages",
    ),
    "a result by the assistant": (
        [ASK, {**result("a"), "role": "assistant"}, ASK],
        "The model returned the following errors: messages.1: `tool_result` blocks can only be in `user` messages",
    ),
}


@pytest.mark.parametrize("messages", GOOD.values(), ids=GOOD)
def test_a_history_in_order_is_accepted(messages: list[Any]) -> None:
    assert invalid_history({"messages": messages, "toolConfig": {"tools": []}}) is None


@pytest.mark.parametrize(("messages", "why"), BAD.values(), ids=BAD)
def test_a_history_out_of_order_is_refused(messages: list[Any], why: str) -> None:
    assert invalid_history({"messages": messages, "toolConfig": {"tools": []}}) == why


def test_tools_in_a_history_want_a_tool_config() -> None:
    assert invalid_history({"messages": GOOD["a tool"]}) == NO_TOOLS


def test_a_history_out_of_order_is_logged(client: Any, fake: RunningFakeBedrock) -> None:
    tools = {"tools": [{"toolSpec": {"name": "look", "inputSchema": {"json": {}}}}]}
    messages, why = BAD["one result of three"]
    with pytest.raises(ClientError) as raised:
        client.converse_stream(modelId="fake.history", messages=messages, toolConfig=tools)
    assert raised.value.response["Error"] == {"Code": "ValidationException", "Message": why}
    request = fake.wait_for(lambda line: line["event"] == "request" and line["model"] == "fake.history")
    lines = [line for line in fake.log() if line.get("id") == request["id"]]
    assert [line["event"] for line in lines] == ["request", "invalid", "refused"]
    assert lines[1]["why"] == why
