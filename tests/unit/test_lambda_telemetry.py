"""Metrics as CloudWatch reads them, and log lines whatever their keys."""

from __future__ import annotations

import json
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


def test_a_line_may_have_keys_of_any_name(caplog: pytest.LogCaptureFixture) -> None:
    logger.remove()
    sink = logger.add(powertools_sink(Settings(model_provider="scripted")), format="{message}")
    logger.bind(name="ada", message="m", args=1, chat="trip").info("said")
    logger.remove(sink)
    line: Any = caplog.records[-1]
    assert (line.getMessage(), line.name_, line.chat) == ("said", "ada", "trip")
