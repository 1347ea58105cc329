"""Metrics as CloudWatch reads them, and log lines whatever their keys."""

from __future__ import annotations

import json
import logging
from typing import Any

import pytest
from loguru import logger

from haltline.lambda_telemetry import EmfMetrics, powertools_sink
from haltline.runs import Outcome, Receipt, StopReason, Usage
from haltline.settings import Settings


@pytest.fixture(autouse=True)
def service(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POWERTOOLS_SERVICE_NAME", "unit")


@pytest.mark.parametrize(
    ("receipt", "name"),
    [
        (Receipt("r", Outcome.DONE), "RunsFinished"),
        (Receipt("r", Outcome.STOPPED, StopReason.USER), "RunsStopped"),
        (Receipt("r", Outcome.STOPPED, StopReason.DISCONNECT), "RunsStopped"),
        (Receipt("r", Outcome.ERROR), "RunsFailed"),
        (Receipt("r", Outcome.STOPPED, StopReason.DEADLINE), "RunsFailed"),
        (Receipt("r", Outcome.STOPPED, StopReason.SHUTDOWN), "RunsFailed"),
        (Receipt("r", Outcome.DONE, saved=False), "RunsFailed"),
        (Receipt("r", Outcome.STOPPED, StopReason.SIGNAL_LOST), "RunsLost"),
        (Receipt("r", Outcome.LOST, saved=False), "RunsLost"),
    ],
)
def test_a_run_whose_user_saw_an_error_has_failed(
    receipt: Receipt, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    metrics = EmfMetrics()
    metrics.ended(receipt, Usage(3, 4))
    metrics.flush()
    written = json.loads(capsys.readouterr().out)
    assert {key for key in written if key.startswith("Runs")} == {name}
    assert written["service"] == "unit"
    metrics.flush()
    assert capsys.readouterr().out == "", "said once"


class Keeper(logging.Handler):
    """Keeps what is logged."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[Any] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


def test_a_line_may_have_keys_of_any_name() -> None:
    logger.remove()
    sink, keeper = logger.add(powertools_sink(Settings(model_provider="scripted")), format="{message}"), Keeper()
    logging.getLogger("unit").addHandler(keeper)
    logger.bind(name="ada", message="m", args=1, chat="trip").info("said")
    logger.remove(sink)
    (line,) = keeper.records
    assert (line.getMessage(), line.name_, line.chat) == ("said", "ada", "trip")
