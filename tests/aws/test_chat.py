"""The chat function behind the real Lambda Web Adapter: what comes through, when, and what ends it."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest
import redis

from local.runtime_api.environment import Environment
from local.runtime_api.invocation import Ending, Invocation
from tests.aws import events
from tests.aws.chat_function import Started, closing_of, has_said, stopped_through, text_of
from tests.contract.client import DONE, LONG, STOPPED, chat_url, new_chat, new_run, script, stop_url
from tests.fake_bedrock import RunningFakeBedrock
from tests.stack import Replica, Stack, free_port

WORDS = ["One ", "two\n", "three ", "[DONE] ", "vier – 5"]
HI = script(chunks=["Hello"])


def transcript(http: httpx.Client, control: Replica, chat: str) -> list[dict[str, Any]]:
    """As people are shown it: role, text and whether it was stopped."""
    answer = http.get(f"{chat_url(control, chat)}/messages")
    assert answer.status_code == 200, answer.text
    return [{k: m[k] for k in ("role", "text", "stopped") if k in m} for m in answer.json()["messages"]]


@pytest.fixture(params=events.DOORS)
def door(request: pytest.FixtureRequest) -> events.Door:
    return events.DOORS[request.param]


# ---- what comes through


def test_the_bytes_of_the_stream_come_through_as_they_are(function: Environment, door: events.Door) -> None:
    run_id = new_run()
    invocation = function.invoke(door(new_chat(), {"message": script(chunks=WORDS, pace_ms=100), "run_id": run_id}))
    invocation.finish()
    assert invocation.ending is Ending.ANSWERED
    assert not invocation.trailers
    prelude = invocation.prelude
    assert prelude
    assert prelude.status == 200
    assert prelude.headers["content-type"].startswith("text/event-stream")
    assert prelude.headers["cache-control"] == "no-cache, no-transform"
    assert prelude.headers["x-run-id"] == run_id
    assert prelude.headers["x-replica"] == function.log_stream.partition("]")[2]
    assert invocation.body.decode() == (
        "data: One \n\ndata: two\ndata: \n\ndata: three \n\ndata: [DONE] \n\ndata: vier – 5\n\n"
        "event: done\ndata: [DONE]\n\n"
    )
    times = [chunk.at for chunk in invocation.chunks]
    assert len(times) >= len(WORDS), "the chunks were held back and came together"
    assert times[len(WORDS) - 1] - times[0] > 0.2, "the model takes 0.4 s for them"


def test_text_comes_while_the_rest_is_still_to_be_said(
    function: Environment, door: events.Door, control: Replica, http: httpx.Client
) -> None:
    """The run takes a minute, and ends by a stop that is sent when its first words are there."""
    chat = new_chat()
    invocation = function.invoke(door(chat, {"message": LONG})).until(has_said("tick "))
    assert invocation.ending is None
    verdict = stopped_through(http, control, chat)
    assert verdict["status"] == "stopped"
    invocation.finish()
    assert invocation.ending is Ending.ANSWERED
    assert closing_of(invocation) == [STOPPED]
    assert transcript(http, control, chat)[-1] == {"role": "assistant", "text": text_of(invocation), "stopped": True}


def test_a_stop_that_names_the_run(function: Environment, control: Replica, http: httpx.Client) -> None:
    chat, run_id = new_chat(), new_run()
    invocation = function.invoke(events.rest(chat, {"message": LONG, "run_id": run_id})).until(has_said("tick "))
    assert stopped_through(http, control, chat, run_id=run_id)["status"] == "stopped"
    assert closing_of(invocation.finish()) == [STOPPED]


def test_a_stop_sent_between_the_gateway_and_a_cold_start_halts_the_run(
    function: Environment, control: Replica, http: httpx.Client
) -> None:
    """The gateway's time of arrival counts, not the moment in which the function reads the request."""
    chat = new_chat()
    assert http.post(stop_url(control, chat)).status_code == 200
    invocation = function.invoke(events.rest(chat, {"message": LONG}, age=5)).finish()
    assert closing_of(invocation) == [STOPPED]
    assert text_of(invocation) == ""


def test_an_error_in_mid_stream_is_a_closing_frame_and_no_failed_invocation(function: Environment) -> None:
    invocation = function.invoke(
        events.rest(new_chat(), {"message": script(chunks=["Half "], fail="no more")})
    ).finish()
    assert invocation.ending is Ending.ANSWERED
    assert not invocation.trailers
    assert text_of(invocation) == "Half "
    [(kind, data)] = closing_of(invocation)
    assert kind == "error"
    assert data.startswith("[ERROR] ")


# ---- what is refused


def test_a_refusal_comes_back_as_such(function: Environment) -> None:
    for body, status in (({"message": " "}, 422), ("{", 422), ({"message": "x" * 65_537}, 413), ({"messag": "x"}, 422)):
        invocation = function.invoke(events.rest(new_chat(), body)).finish()
        assert _refusal(invocation) == status, body


def test_a_chat_with_a_live_run_is_refused(function: Environment, control: Replica, http: httpx.Client) -> None:
    chat = new_chat()
    with http.stream("POST", chat_url(control, chat), json={"message": LONG}) as live:
        assert live.status_code == 200
        assert _refusal(function.invoke(events.rest(chat, {"message": HI})).finish()) == 409


def test_without_the_bus_no_run_begins(functions: Started) -> None:
    function = functions.get(REDIS_URL=f"redis://127.0.0.1:{free_port()}/0")
    assert _refusal(function.invoke(events.rest(new_chat(), {"message": HI})).finish()) == 503


def _refusal(invocation: Invocation) -> int:
    """The status of an answer that is JSON with a reason."""
    assert invocation.ending is Ending.ANSWERED
    assert invocation.prelude
    assert invocation.prelude.headers["content-type"] == "application/json"
    assert json.loads(invocation.body)["detail"]
    return invocation.prelude.status


# ---- what ends it, and what does not


def test_a_client_that_leaves_ends_nothing(function: Environment, control: Replica, http: httpx.Client) -> None:
    """Nobody tells a function. The run goes on to its end."""
    chat, message = new_chat(), script(chunks=["tick "], repeat=20, pace_ms=50)
    invocation = function.invoke(events.rest(chat, {"message": message})).until(has_said("tick "))
    invocation.leave()
    assert invocation.finish().ending is Ending.ANSWERED
    assert len(text_of(invocation)) < 20 * 5
    assert transcript(http, control, chat)[-1] == {"role": "assistant", "text": "tick " * 20}


def test_a_run_whose_client_left_can_be_stopped(function: Environment, control: Replica, http: httpx.Client) -> None:
    chat = new_chat()
    invocation = function.invoke(events.rest(chat, {"message": LONG})).until(has_said("tick "))
    invocation.leave()
    assert stopped_through(http, control, chat)["status"] == "stopped"
    assert invocation.finish().ending is Ending.ANSWERED
    assert transcript(http, control, chat)[-1]["stopped"] is True


def test_a_run_ends_ten_seconds_before_the_deadline(
    function: Environment, control: Replica, http: httpx.Client
) -> None:
    chat = new_chat()
    invocation = function.invoke(events.rest(chat, {"message": LONG}), timeout=12).finish()
    assert invocation.ending is Ending.ANSWERED, invocation.error
    assert invocation.begun_at
    assert invocation.ended_at
    left = 12 - (invocation.ended_at - invocation.begun_at)
    assert 7 < left < 10.2
    [(kind, data)] = closing_of(invocation)
    assert kind == "error"
    assert "time" in data
    entry = transcript(http, control, chat)[-1]
    assert entry["text"] == text_of(invocation) != ""


def test_an_invocation_with_less_time_than_that_says_so(function: Environment) -> None:
    invocation = function.invoke(events.rest(new_chat(), {"message": LONG}), timeout=6).finish()
    assert invocation.ending is Ending.ANSWERED, invocation.error
    assert invocation.prelude
    assert [kind for kind, _ in closing_of(invocation)] == ["error"]


# ---- one environment, many invocations


def test_invocations_share_nothing_but_the_process(function: Environment, control: Replica, http: httpx.Client) -> None:
    chats = [new_chat() for _ in range(3)]
    for n, chat in enumerate(chats):
        invocation = function.invoke(events.rest(chat, {"message": script(chunks=[f"answer {n}"])})).finish()
        assert (text_of(invocation), closing_of(invocation)) == (f"answer {n}", [DONE])
    # After one that was stopped and one that failed, too.
    live = function.invoke(events.rest(chats[0], {"message": LONG})).until(has_said("tick "))
    assert stopped_through(http, control, chats[0])["status"] == "stopped"
    live.finish()
    function.invoke(events.rest(chats[1], {"message": script(chunks=["Half "], fail="no more")})).finish()
    invocation = function.invoke(events.rest(chats[2], {"message": HI})).finish()
    assert (text_of(invocation), closing_of(invocation)) == ("Hello", [DONE])
    assert [entry["text"] for entry in transcript(http, control, chats[2])] == [
        script(chunks=["answer 2"]), "answer 2", HI, "Hello"
    ]  # fmt: skip
    assert {http.get(chat_url(control, chat)).json()["status"] for chat in chats} == {"idle"}


def test_between_invocations_nothing_is_done(function: Environment, stack: Stack) -> None:
    function.invoke(events.rest(new_chat(), {"message": HI})).finish()
    assert function.api.idle.wait(10)
    with redis.Redis.from_url(stack.redis_url) as bus:
        bus.ping()
        before = _commands(bus), sum(map(_cpu, function.processes))
        time.sleep(3)  # longer than a pulse's period; nothing is to happen
        after = _commands(bus), sum(map(_cpu, function.processes))
    assert after[0] - before[0] == 1, "of this test itself"
    assert after[1] - before[1] < 0.1


def _commands(bus: redis.Redis) -> int:
    info: Any = bus.info("stats")
    return int(info["total_commands_processed"])


def _cpu(process: Any) -> float:
    """Seconds (Linux)."""
    fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_metrics_are_written_before_the_response_ends(function: Environment) -> None:
    """The process may be frozen with the last byte, and not be thawed for another request."""
    chat = new_chat()
    function.invoke(events.rest(chat, {"message": HI})).finish()
    assert function.log
    written = [json.loads(line) for line in function.log.read_text().splitlines() if line.startswith('{"_aws"')]
    assert written[-1]["RunsFinished"] == [1.0]
    assert written[-1]["OutputTokens"] == [pytest.approx(2, abs=1)]


def test_the_trace_stands_on_the_lines_of_the_log(function: Environment) -> None:
    chat = new_chat()
    function.invoke(events.rest(chat, {"message": HI})).finish()
    assert function.log
    lines = [json.loads(line) for line in function.log.read_text().splitlines() if f"chat_id=<{chat}>" in line]
    assert all(line["xray_trace_id"] for line in lines)
    assert lines


# ---- Bedrock


@pytest.fixture
def on_bedrock(functions: Started, bedrock: RunningFakeBedrock) -> Environment:
    """The function with the product's own model, whose provider is the fake Bedrock."""
    return functions.get(
        MODEL_PROVIDER="bedrock",
        AWS_ENDPOINT_URL_BEDROCK_RUNTIME=bedrock.url,
        AWS_ACCESS_KEY_ID="ASIAEXAMPLE",
        AWS_SECRET_ACCESS_KEY="example",
        AWS_SESSION_TOKEN="example",
    )


def test_a_stop_on_lambda_reaches_bedrock(
    on_bedrock: Environment, bedrock: RunningFakeBedrock, control: Replica, http: httpx.Client
) -> None:
    chat = new_chat()
    message = script(name=chat, chunks=["tick "], repeat=3000, pace_ms=20)
    invocation = on_bedrock.invoke(events.rest(chat, {"message": message})).until(has_said("tick "))
    assert stopped_through(http, control, chat)["status"] == "stopped"
    assert closing_of(invocation.finish()) == [STOPPED]
    closed = bedrock.wait_for(lambda line: line.get("name") == chat and line["event"] == "closed")
    assert closed["phase"] == "streaming"


def test_bedrock_on_lambda_streams_to_its_end(on_bedrock: Environment, door: events.Door) -> None:
    invocation = on_bedrock.invoke(door(new_chat(), {"message": script(chunks=WORDS)})).finish()
    assert text_of(invocation) == "".join(WORDS)
    assert closing_of(invocation) == [DONE]
