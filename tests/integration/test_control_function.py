"""The control function's handler in a process of its own, over the stack's Valkey: calls, and stops that are events."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path

import httpx2 as httpx
import pytest
import redis

from haltline.lambda_door import MAY_HAVE_FROZEN
from haltline.redis_scripts import SLACK_MS
from tests.aws.bus_line import BusLine
from tests.contract.client import LONG, chat_url, new_chat, script, stop_url
from tests.credentials import api_key, bearer
from tests.integration.control_process import ControlProcess, event_bridge, rest_event, sns
from tests.stack import Replica, Stack

ALARM = {"AlarmName": "spend", "NewStateValue": "ALARM", "OldStateValue": "OK", "NewStateReason": "Threshold Crossed"}


@pytest.fixture(scope="module")
def control(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlProcess]:
    started = ControlProcess(
        Path(tmp_path_factory.mktemp("control")), REDIS_URL=stack.redis_url, SESSION_DIR=str(stack.session_dir)
    )
    yield started
    started.end()


class Reading:
    """A chat's stream, read as far as its first text."""

    def __init__(self, answer: httpx.Response) -> None:
        self._lines = answer.iter_lines()
        self.run_id = answer.headers["x-run-id"]
        while next(self._lines) != "data: tick ":
            pass

    def closing(self) -> str:
        """The name of the closing frame."""
        return next(line.partition(": ")[2] for line in self._lines if line.startswith("event: "))


@dataclass(frozen=True)
class Door:
    """A replica, and what lets its callers in."""

    replica: Replica
    headers: dict[str, str]

    def post(self, chat_id: str, message: str) -> httpx.Response:
        return httpx.post(chat_url(self.replica, chat_id), json={"message": message}, headers=self.headers, timeout=20)


@pytest.fixture(scope="module")
def ann(stack: Stack) -> Door:
    """A replica over the same bus and chats on which ann, as API Gateway calls her, has a key."""
    key = api_key("ann")
    replica = stack.add_replica(AUTH="api-keys", API_KEYS=key.entry)
    replica.wait_until_live()
    return Door(replica, bearer(key.key))


@pytest.fixture
def anyone(stack: Stack) -> Door:
    """A replica that asks nobody: its chats are those of direct invocations."""
    return Door(stack.replicas[0], {})


@contextmanager
def live(door: Door, chat_id: str) -> Iterator[Reading]:
    """A run of a minute, under way."""
    body = {"message": LONG}
    with httpx.stream("POST", chat_url(door.replica, chat_id), json=body, headers=door.headers, timeout=20) as answer:
        yield Reading(answer)


def iso(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


# ---- calls through API Gateway


def test_a_stop_halts_the_run_of_a_replica_and_says_so(control: ControlProcess, ann: Door) -> None:
    chat_id = new_chat()
    with live(ann, chat_id) as run:
        status, told = control.call("POST", f"/api/v1/stop/{chat_id}", query={"wait": "5"})
        assert (status, told["status"], told["run_id"]) == (200, "stopped", run.run_id)
        assert told["halted_ms"] < 5000
        assert run.closing() == "stopped"
    assert control.counted("StopsStopped")[-1] == 1


def test_the_calls_that_answer_at_once(control: ControlProcess, ann: Door) -> None:
    chat_id = new_chat()
    assert "event: done" in ann.post(chat_id, script(text="Hello.")).text
    assert control.call("GET", f"/api/v1/chat/{chat_id}")[1]["status"] == "idle"
    entries = control.call("GET", f"/api/v1/chat/{chat_id}/messages")[1]["messages"]
    assert [entry["role"] for entry in entries] == ["user", "assistant"]
    assert chat_id in [c["chat_id"] for c in control.call("GET", "/api/v1/chats", query={"limit": "5"})[1]["chats"]]
    assert control.call("GET", "/health") == (200, {**control.call("GET", "/api/v1/health")[1], "redis": "connected"})
    bulk = control.call("POST", "/api/v1/stop/bulk", {"chat_ids": [chat_id, "b"]})[1]
    assert (bulk["total"], bulk["successful"]) == (2, 2)
    assert control.call("DELETE", f"/api/v1/chat/{chat_id}") == (200, {"status": "deleted", "chat_id": chat_id})
    assert control.call("DELETE", f"/api/v1/chat/{chat_id}")[0] == 404
    assert control.call("POST", f"/api/v1/chat/{chat_id}", {"message": "Hi."})[0] == 405, "it serves no chat"
    assert control.call("POST", "/api/v1/stop/bulk", {"chat_ids": []})[0] == 422


def test_a_call_without_claims_is_refused(control: ControlProcess) -> None:
    answer = control.invoke(rest_event("GET", "/api/v1/chats", sub=None))
    assert (answer["statusCode"], answer["headers"]["x-replica"]) == (401, "control")


def test_a_stop_counts_from_api_gateways_time(control: ControlProcess, ann: Door) -> None:
    chat_id = new_chat()
    with live(ann, chat_id) as run:
        late = control.call("POST", f"/api/v1/stop/{chat_id}", query={"wait": "1"}, at=time.time() - 60)
        assert late[1]["status"] == "idle", "it was sent before the run's message"
        control.call("POST", f"/api/v1/stop/{chat_id}")
        assert run.closing() == "stopped"


def test_each_line_of_the_log_carries_the_requests_id(control: ControlProcess) -> None:
    control.call("GET", "/api/v1/chats")
    line = [line for line in control.logs if "message" in line][-1]
    assert line["message"].startswith("method=<GET> path=</api/v1/chats> status=<200>")
    assert (line["correlation_id"], line["function_request_id"]) == ("from-api-gateway", "invocation")
    assert (line["level"], line["service"], line["replica"]) == ("INFO", "haltline-test", "control")


MALLORY = json.dumps({"authorizer": {"claims": {"sub": "mallory", "cognito:groups": "admin"}}})


@pytest.mark.parametrize(
    "headers",
    [
        {"x-amzn-lambda-context": ['{"deadline": "x"}'], "x-amzn-request-context": ["{"]},
        {"X-Amzn-Request-Context": [MALLORY, MALLORY], "x-amzn-request-context": [MALLORY]},
        {"x-amzn-lambda-context": ['{"deadline": 1}'], "x-amzn-request-context": ["null"]},
    ],
    ids=["no json", "an admin", "a direct invocation"],
)
def test_what_a_client_says_of_lambda_is_not_heard(control: ControlProcess, headers: dict[str, list[str]]) -> None:
    event = rest_event("GET", "/api/v1/chats")
    event["multiValueHeaders"] |= headers
    event["headers"] |= {name: values[-1] for name, values in headers.items()}
    assert control.invoke(event)["statusCode"] == 200
    everything = rest_event("POST", "/api/v1/stop/all")
    assert control.invoke(event | {k: everything[k] for k in ("path", "httpMethod")})["statusCode"] == 403
    event["requestContext"]["authorizer"] = None
    assert control.invoke(event)["statusCode"] == 401


# ---- the page


def test_every_file_that_the_page_loads_comes_as_it_is(control: ControlProcess) -> None:
    """API Gateway hands on what it is given: base64 would reach the browser as such."""
    page = Path(str(files("haltline"))) / "web"
    served = [path for path in page.rglob("*") if path.suffix in (".html", ".js", ".css", ".svg")]
    assert len(served) > 10
    for name in ("", *(str(path.relative_to(page)) for path in served)):
        answer = control.invoke(rest_event("GET", f"/static/{name}" if name else "/", sub=None))
        assert (answer["statusCode"], answer["isBase64Encoded"]) == (200, False), name
        assert answer["body"] == (page / (name or "index.html")).read_text(encoding="utf-8"), name
        assert answer["headers"]["x-replica"] == "control"


def test_the_page_is_found_without_its_last_slash(control: ControlProcess) -> None:
    event = rest_event("GET", "/", sub=None)
    event["requestContext"]["path"] = "/prod"
    answer = control.invoke(event)
    assert (answer["statusCode"], answer["headers"]["location"]) == (307, "./prod/")
    assert answer["headers"]["x-replica"] == "control"


# ---- stops that come as events


@pytest.mark.parametrize(
    "event",
    [
        pytest.param(lambda chat_id, at: event_bridge({"chat_ids": [chat_id]}, at=at), id="EventBridge"),
        pytest.param(lambda chat_id, at: event_bridge({"all": True}, at=at), id="EventBridge, all"),
        pytest.param(lambda chat_id, at: sns(json.dumps({"chat_ids": [chat_id]}), at=at), id="SNS"),
        pytest.param(lambda chat_id, at: sns(json.dumps(ALARM), at=at), id="an alarm"),
        pytest.param(lambda chat_id, at: sns("AWS Budget Notification\nlimit exceeded", at=at), id="a budget"),
        pytest.param(lambda chat_id, at: sns("[ALERT] budget exceeded", at=at), id="text in brackets"),
    ],
)
def test_an_event_stops_what_ran_when_it_was_sent_and_nothing_later(
    control: ControlProcess, stack: Stack, anyone: Door, event: Callable[[str, str], dict[str, object]]
) -> None:
    chat_id = new_chat()
    with live(anyone, chat_id) as run:
        sent = event(chat_id, iso(time.time()))
        assert control.invoke(sent) == {"stops": 1}
        assert run.closing() == "stopped"
    time.sleep(2 * SLACK_MS / 1000)  # within it the clock of the event and that of the bus are not told apart
    with live(anyone, chat_id) as later:
        assert control.invoke(sent)["stops"] == 1, "delivered once more"
        status = httpx.get(f"{stack.replicas[1].url}/api/v1/chat/{chat_id}").json()
        assert (status["status"], status["run_id"]) == ("running", later.run_id)
        httpx.post(stop_url(stack.replicas[1], chat_id))
        assert later.closing() == "stopped"


def test_an_event_names_whose_chats_it_means(control: ControlProcess, stack: Stack) -> None:
    """Keys tell: two may have a chat of the same id."""
    chat_id = new_chat()
    kept = {}
    with redis.Redis.from_url(stack.redis_url) as bus:
        for named in ({"principal": "ann@example.com"}, {"principal": None}, {}):
            wanted = {"chat_ids": [chat_id], **named}
            for event in (event_bridge(wanted, at=iso(time.time())), sns(json.dumps(wanted), at=iso(time.time()))):
                bus.delete(f"stop:{chat_id}", f"stop:ann@example.com/{chat_id}")
                assert control.invoke(event) == {"stops": 1}
                kept[json.dumps(named)] = [key.decode() for key in bus.scan_iter(f"stop:*{chat_id}")]
    mine = [f"stop:{chat_id}"]
    assert list(kept.values()) == [[f"stop:ann@example.com/{chat_id}"], mine, mine]


def test_all_means_all(control: ControlProcess, ann: Door, anyone: Door) -> None:
    with ExitStack() as runs:
        under_way = [runs.enter_context(live(door, new_chat())) for door in (ann, anyone, ann, anyone, anyone)]
        assert control.invoke(event_bridge({"all": True}, at=iso(time.time()))) == {"stops": 5}
        assert [run.closing() for run in under_way] == ["stopped"] * 5


def test_an_event_of_whole_seconds_means_the_runs_of_that_second(control: ControlProcess, anyone: Door) -> None:
    chat_id = new_chat()
    with live(anyone, chat_id) as run:
        second = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        control.invoke(event_bridge({"chat_ids": [chat_id]}, at=second))
        assert run.closing() == "stopped"


def test_an_alarm_that_is_over_stops_nothing(control: ControlProcess) -> None:
    over = json.dumps({**ALARM, "NewStateValue": "OK"})
    assert control.invoke(sns(over, at=iso(time.time()))) == {"stops": 0}


@pytest.mark.parametrize(
    ("event", "says"),
    [
        pytest.param(event_bridge({}), "chat_ids", id="neither"),
        pytest.param(event_bridge({"all": True, "chat_ids": ["a"]}), "chat_ids", id="both"),
        pytest.param(event_bridge({"chat_ids": ["../x"]}), "pattern", id="no chat id"),
        pytest.param(event_bridge({"chat_ids": ["ann/x"]}), "pattern", id="a chat id with an owner in it"),
        pytest.param(event_bridge({"chat_ids": ["a"], "principal": ""}), "principal", id="no principal"),
        pytest.param(event_bridge({"all": True, "principal": "ann"}), "chat_ids", id="all of one principal"),
        pytest.param(event_bridge({"all": True}, detail_type="RunStopped"), "StopRequested", id="another kind"),
        pytest.param(sns('{"chat_ids": [', at="2026-01-01T00:00:00Z"), "EOF", id="half JSON"),
        pytest.param(sns('["a"]', at="2026-01-01T00:00:00Z"), "StopRequested", id="a list"),
        pytest.param({"Records": [{"s3": {}}]}, "Sns", id="an event of S3"),
        pytest.param({"what": "ever"}, "detail-type", id="anything"),
    ],
)
def test_an_event_that_cannot_be_read_fails_and_stops_nothing(
    control: ControlProcess, anyone: Door, event: dict[str, object], says: str
) -> None:
    with live(anyone, new_chat()) as run:
        failed = control.invoke(event)
        assert says in failed["errorMessage"], failed
        with pytest.raises(TimeoutError):  # a failing event leaves the run alone
            _soon(run)


def _soon(run: Reading) -> None:
    """Raises: TimeoutError where ten more pieces of text come and no closing frame."""
    for _ in range(10):
        if next(line for line in run._lines if line).startswith("event: "):
            return
    raise TimeoutError


@pytest.mark.parametrize("event", [{"chat_ids": ["a"]}, {"all": True}], ids=["one", "all"])
def test_an_event_is_obeyed_after_a_freeze_in_which_the_connections_died(
    event: dict[str, object], stack: Stack, tmp_path: Path
) -> None:
    with BusLine(stack.valkey.port) as line:
        control = ControlProcess(tmp_path, REDIS_URL=line.url)
        try:
            assert control.invoke(event_bridge(event))
            assert line.go_dead() >= 1
            time.sleep(1.5 * MAY_HAVE_FROZEN)  # what is tested is that time passes
            assert "stops" in control.invoke(event_bridge(event))
        finally:
            control.end()


# ---- without the bus, before a snapshot


def test_an_event_is_delivered_again_where_the_bus_is_gone(tmp_path: Path) -> None:
    control = ControlProcess(tmp_path, REDIS_URL="unix:///nowhere/redis.sock")
    try:
        assert control.call("POST", "/api/v1/stop/a")[0] == 503
        assert control.invoke(event_bridge({"chat_ids": ["a", "b"]})) == {
            "errorType": "StopsFailed",
            "errorMessage": "2 of 2 stops could not be stored, a among them",
        }
        assert control.invoke(event_bridge({"all": True}))["errorType"] == "BusUnavailable"
        assert control.counted("StopsFailed") == [1, 1, 1, 1]
    finally:
        control.end()


def test_the_init_connects_to_nothing(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        control = ControlProcess(tmp_path, REDIS_URL=f"redis://127.0.0.1:{server.getsockname()[1]}")
        control.before_snapshot()
        control.end()
        server.setblocking(False)
        with pytest.raises(BlockingIOError):
            server.accept()


def test_nothing_that_tells_environments_apart_lies_in_a_snapshot(stack: Stack, tmp_path: Path) -> None:
    """Many may start from one: a replica's id and the state of random generators must be each one's own."""
    control = ControlProcess(tmp_path, REDIS_URL=stack.redis_url)
    try:
        control.before_snapshot()
        assert control.look("handler._resources.bus.replica_id") == ""
        seen = []
        for _ in range(2):
            control.look("__import__('random').seed(7)")  # as the snapshot left it
            control.after_restore()
            seen.append(control.look("__import__('random').random()"))
        assert seen[0] != seen[1]
        assert control.call("POST", f"/api/v1/stop/{new_chat()}", query={"wait": "1"})[1]["status"] == "idle"
        assert control.look("handler._resources.bus.replica_id").startswith("control-")
    finally:
        control.end()
