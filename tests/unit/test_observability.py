"""Logs and metrics: a log line is one line, and nothing a user or a model wrote stands in it."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx2 as httpx
import pytest
from fastapi import FastAPI
from loguru import logger

from haltline.agent import AgentSource
from haltline.app import make_app
from haltline.authentication import NoAuthentication
from haltline.chats import ChatDocument
from haltline.edge import Edge
from haltline.observability import configure_logging
from haltline.prometheus import PrometheusMetrics
from haltline.resources import Resources
from haltline.runner import Deps, Runner
from haltline.runs import Arrival, Outcome, Receipt, Run, StopReason, Usage
from haltline.settings import Settings, read_settings
from haltline.signals import Begun, StopState, StopVerdict

LINE = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z (?P<level>[A-Z]+) +(?P<replica>\S+) \| (?P<message>.*)")


@pytest.fixture(autouse=True)
def logging_as_it_was() -> Iterator[None]:
    """Logging belongs to the process: put the standard module's part back, and loguru's to nothing."""
    root = logging.getLogger()
    names = (
        "uvicorn",
        "uvicorn.error",
        "uvicorn.access",
        "httpx",
        "httpcore",
        "openai",
        "botocore",
        "strands",
        "asyncio",
        "httpx2",
    )
    before = [(n, logging.getLogger(n).level, logging.getLogger(n).handlers[:]) for n in names]
    handlers, level = root.handlers[:], root.level
    logging.getLogger("httpx2").setLevel(logging.WARNING)  # the client of these tests
    yield
    logger.remove()
    root.handlers[:], root.level = handlers, level
    for name, was, kept in before:
        logging.getLogger(name).setLevel(was)
        logging.getLogger(name).handlers[:] = kept


def settings_of(**values: Any) -> Settings:
    return read_settings(**{"replica_name": "replica1", "model_provider": "scripted", "scripted_pace_ms": 0, **values})


def log_of(capsys: pytest.CaptureFixture[str]) -> list[str]:
    """Each line on stderr. Only LF and CR end a line for those who read logs."""
    told = capsys.readouterr()
    assert told.out == ""
    return re.split(r"\r\n|\n|\r", told.err)[:-1]


def parts(line: str) -> tuple[str, str, str]:
    found = LINE.fullmatch(line)
    assert found, line
    return found["level"], found["replica"], found["message"]


# ---- the lines


def test_a_line_has_time_level_replica_and_message(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(settings_of())
    logger.info("chat_id=<{}> | run begun", "trip")
    assert [parts(line) for line in log_of(capsys)] == [("INFO", "replica1", "chat_id=<trip> | run begun")]


def test_braces_and_markup_in_a_value_are_left_alone(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(settings_of())
    logger.info("chat_id=<{}> | x", "{message} {0} <red>%s")
    logging.getLogger("redis").warning("{message} %s", "<red>{0}")
    assert [parts(line)[2] for line in log_of(capsys)] == [
        "chat_id=<{message} {0} <red>%s> | x",
        "logger=<redis> | {message} <red>{0}",
    ]


@pytest.mark.parametrize(
    ("level", "shown"),
    [
        ("TRACE", ["TRACE", "DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"]),
        ("INFO", ["INFO", "WARNING", "ERROR", "CRITICAL"]),
        ("ERROR", ["ERROR", "CRITICAL"]),
    ],
)
def test_the_level(level: str, shown: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(settings_of(log_level=level))
    for name in ("TRACE", "DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"):
        logger.log(name, "x")
    assert [parts(line)[0] for line in log_of(capsys)] == shown


def test_libraries_end_in_the_same_place(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(settings_of())
    logging.getLogger("uvicorn.error").info("Started server process [%d]", 6)
    logging.getLogger("uvicorn.error").warning("Exceeded concurrency limit of %d", 7)
    logging.getLogger("uvicorn.access").info("GET / 200")
    logging.getLogger("botocore.endpoint").info("request body: secret")
    assert [parts(line) for line in log_of(capsys)] == [
        ("WARNING", "replica1", "logger=<uvicorn.error> | Exceeded concurrency limit of 7")
    ]


def test_a_library_with_a_level_of_its_own_is_not_brought_down(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(settings_of())
    logging.addLevelName(25, "NOTICE")
    try:
        logging.getLogger("library").log(25, "hello")
    finally:
        logging.addLevelName(25, "Level 25")
    assert len(log_of(capsys)) == 1


@pytest.mark.parametrize("end", ["\n", "\r", "\r\n", "\x85", "\u2028"], ids=["LF", "CR", "CRLF", "NEL", "LS"])
def test_a_line_end_in_a_value_does_not_forge_a_line(end: str, capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(settings_of())
    logger.info("error=<{}> | x", f"a{end}2026-01-01T00:00:00.000Z INFO    replica1 | forged")
    logging.getLogger("redis").warning("a%sforged", end)
    assert len(log_of(capsys)) == 2


def test_a_value_cannot_steer_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(settings_of())
    logger.info("error=<{}> | x", "\x1b[2K\x08hidden\x9b1A")
    assert r"error=<\x1b[2K\x08hidden\x9b1A> | x" in log_of(capsys)[0]


@pytest.mark.parametrize("end", ["\n", "\r", "\r\n", "\u2028"], ids=["LF", "CR", "CRLF", "LS"])
def test_in_production_each_line_is_json(end: str, capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(settings_of(environment="production"))
    logger.info("chat_id=<{}> | x", f"a{end}b")
    try:
        raise ValueError(f"c{end}d")
    except ValueError:
        logger.exception("failed")
    lines = log_of(capsys)
    records = [json.loads(line)["record"] for line in lines]
    assert [(r["level"]["name"], r["message"], r["extra"]["replica"]) for r in records] == [
        ("INFO", f"chat_id=<a{end}b> | x", "replica1"),
        ("ERROR", "failed", "replica1"),
    ]
    assert records[1]["exception"]["type"] == "ValueError"


def test_a_traceback_shows_no_values(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(settings_of())

    def fail(text: str) -> None:
        raise KeyError(len(text))

    try:
        fail("what the user wrote")
    except KeyError:
        logger.exception("failed")
    log = "\n".join(log_of(capsys))
    assert "KeyError" in log
    assert "fail(" in log
    assert "'what the user wrote'" not in log.replace('fail("what the user wrote")', "")


def test_a_directory_gets_the_lines_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(settings_of(log_dir=tmp_path / "logs"))
    logger.info("hello")
    logger.remove()
    assert (tmp_path / "logs" / "replica1.log").read_text().splitlines() == log_of(capsys)


def test_without_a_directory_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    configure_logging(settings_of())
    logger.info("hello")
    assert list(tmp_path.iterdir()) == []
    assert len(log_of(capsys)) == 1


# ---- requests


async def teapot(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 418, "headers": []})
    await send({"type": "http.response.body", "body": b""})


async def broken(scope: Any, receive: Any, send: Any) -> None:
    raise RuntimeError("no")


def client_of(app: Any) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://haltline")


@pytest.mark.parametrize(
    ("path", "shown"),
    [
        pytest.param("/a", "/a", id="plain"),
        pytest.param("/a%0d%0aforged", r"/a\r\nforged", id="line ends"),
        pytest.param("/a%00%1b[31m", r"/a\x00\x1b[31m", id="controls"),
        pytest.param("/%e2%80%a8%c2%85", r"/\u2028\x85", id="line ends of other standards"),
        pytest.param("/" + "x" * 5000, "/" + "x" * 199, id="long"),
        pytest.param("/a?key=secret", "/a", id="no query"),
    ],
)
async def test_a_request_is_one_line(path: str, shown: str, capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(settings_of())
    async with client_of(Edge(teapot, "replica1")) as http:
        await http.get(path)
    ((level, _, message),) = [parts(line) for line in log_of(capsys)]
    assert level == "INFO"
    assert re.sub(r"ms=<[\d.]+>", "ms=<>", message) == f"method=<GET> path=<{shown}> status=<418> ms=<> | request"


@pytest.mark.parametrize("path", ["/live", "/health", "/api/v1/health", "/metrics"])
async def test_what_a_load_balancer_asks_is_not_logged(path: str, capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(settings_of())
    async with client_of(Edge(teapot, "replica1")) as http:
        await http.get(path)
    assert log_of(capsys) == []


async def test_a_failed_request_names_the_replica_and_hides_the_error(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(settings_of())
    async with client_of(Edge(broken, "replica1")) as http:
        answer = await http.get("/a")
    assert (answer.status_code, answer.headers["x-replica"], answer.json()) == (
        500,
        "replica1",
        {"detail": "Internal server error. The log of this replica has the details."},
    )
    assert "RuntimeError" in log_of(capsys), "its type, where it was raised, and not what it says"


async def test_a_failed_request_does_not_forge_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(settings_of())
    async with client_of(Edge(broken, "replica1")) as http:
        await http.get("/a%0aforged")
    assert [line for line in log_of(capsys) if line.startswith("forged")] == []


# ---- whole turns


class OneRun:
    """The bus of a chat that nobody else uses: every run begins at once."""

    settled = True

    def certain(self, run: Run) -> bool:
        return True

    def __init__(self) -> None:
        self.receipts: list[Receipt] = []

    async def begin(self, run: Run, **_: Any) -> Begun:
        return Begun()

    async def holds(self, run: Run) -> bool:
        return True

    async def closing(self, run: Run) -> None:
        return None

    async def end(self, run: Run, receipt: Receipt) -> bool:
        self.receipts.append(receipt)
        return True

    async def stop(self, chat_id: str, arrival: Arrival, **_: Any) -> StopVerdict:
        return StopVerdict(StopState.IDLE)

    async def live_among(self, chat_ids: Any) -> dict[str, str]:
        return {}

    async def until_certain(self, run: Run) -> None:
        return None

    async def ping(self) -> None:
        return None

    async def check(self) -> None:
        return None


class OneChat:
    """A store and a list that keep one document in memory."""

    def __init__(self) -> None:
        self.document = ChatDocument(chat_id="trip")

    async def load(self, chat_id: str) -> ChatDocument:
        return self.document.model_copy(deep=True)

    async def save(self, document: ChatDocument) -> None:
        document.version += 1
        self.document = document.model_copy(deep=True)

    async def put(self, chat_id: str, message_count: int, *, live: bool) -> None:
        return None


async def _nothing(*_: object) -> None:
    return None


@pytest.fixture
def app() -> FastAPI:
    settings = settings_of()
    bus, chats, metrics = OneRun(), OneChat(), PrometheusMetrics()
    limits: Any = SimpleNamespace(count_request=_nothing, count_run=_nothing)
    resources = Resources(settings, bus, chats, chats, metrics, NoAuthentication(), limits)  # type: ignore[arg-type]
    resources.runs = Runner(Deps(bus, chats, chats, AgentSource(settings), metrics, limits, 60))  # type: ignore[arg-type]
    return make_app(resources)


SAID, THOUGHT, TOOL_INPUT = "blue-elephant", "green-giraffe", "19283746"


@pytest.mark.parametrize("environment", ["development", "production"])
@pytest.mark.parametrize("level", ["INFO", "DEBUG"])
async def test_no_message_is_logged(
    environment: str, level: str, app: FastAPI, capsys: pytest.CaptureFixture[str]
) -> None:
    configure_logging(settings_of(environment=environment, log_level=level))
    told = {
        "chunks": [THOUGHT, " says hello"],
        "tool": {"name": "calculator", "input": {"expression": f"{TOOL_INPUT}+1"}},
    }
    async with client_of(app) as http:
        for _ in range(2):
            answer = await http.post("/api/v1/chat/trip", json={"message": f"{SAID} /script {json.dumps(told)}"})
            assert answer.text.endswith("event: done\ndata: [DONE]\n\n"), answer.text
        for wrong in ({"message": SAID * 9000}, {"message": [SAID]}, {"message": "x", "run_id": SAID}):
            assert (await http.post("/api/v1/chat/trip", json=wrong)).status_code in (413, 422)
        transcript = (await http.get("/api/v1/chat/trip/messages")).text
    log = "\n".join(log_of(capsys))
    assert "run begun" in log
    for secret in (SAID, THOUGHT):
        assert secret in transcript
    for secret in (SAID, THOUGHT, TOOL_INPUT):
        assert secret not in log


async def test_each_line_of_a_turn_is_one_line(app: FastAPI, capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(settings_of())
    async with client_of(app) as http:
        answer = await http.post("/api/v1/chat/trip", json={"message": "a\r\nb"})
        run_id = answer.headers["x-run-id"]
    lines = [parts(line) for line in log_of(capsys)]
    assert [(level, re.sub(r"ms=<[\d.]+>", "ms=<>", message)) for level, _, message in lines] == [
        ("INFO", f"chat_id=<trip> run_id=<{run_id}> | run begun"),
        ("INFO", "method=<POST> path=</api/v1/chat/trip> status=<200> ms=<> | request"),
    ]


# ---- metrics


def sample(metrics: PrometheusMetrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(name, labels)


def test_ends_are_counted_by_outcome_and_reason() -> None:
    metrics = PrometheusMetrics()
    metrics.ended(Receipt("r", Outcome.STOPPED, StopReason.USER, halted_ms=3.0), Usage())
    metrics.ended(Receipt("r", Outcome.DONE), Usage())
    metrics.ended(None, Usage())
    assert sample(metrics, "haltline_runs_total", outcome="stopped", reason="user") == 1
    assert sample(metrics, "haltline_runs_total", outcome="done", reason="") == 1
    assert sample(metrics, "haltline_halt_seconds_count") == 1
    assert sample(metrics, "haltline_halt_seconds_sum") == pytest.approx(0.003)
    assert sample(metrics, "haltline_halt_seconds_bucket", le="0.002") == 0
    assert sample(metrics, "haltline_halt_seconds_bucket", le="0.005") == 1


def test_tokens_are_counted_and_those_of_stopped_runs_apart() -> None:
    metrics = PrometheusMetrics()
    metrics.ended(Receipt("r", Outcome.STOPPED, StopReason.USER), Usage(100, 7, estimated=True))
    metrics.ended(Receipt("r", Outcome.DONE), Usage(10, 20))
    metrics.ended(None, Usage(1, 2))
    assert sample(metrics, "haltline_tokens_total", kind="input") == 111
    assert sample(metrics, "haltline_tokens_total", kind="output") == 29
    assert sample(metrics, "haltline_tokens_kept_total") == 7


def test_two_apps_in_one_process_count_apart() -> None:
    one, other = PrometheusMetrics(), PrometheusMetrics()
    one.run_began()
    one.stop_answered("idle")
    assert (sample(one, "haltline_live_runs"), sample(other, "haltline_live_runs")) == (1, 0)
    assert (
        sample(one, "haltline_stops_total", status="idle"),
        sample(other, "haltline_stops_total", status="idle"),
    ) == (
        1,
        None,
    )


def test_the_text_is_that_of_prometheus() -> None:
    lines = PrometheusMetrics().text().decode().splitlines()
    assert "# TYPE haltline_live_runs gauge" in lines
    assert "haltline_live_runs 0.0" in lines
