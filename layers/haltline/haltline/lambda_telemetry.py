"""Logs and metrics on Lambda, by Powertools: JSON log lines, and metrics as log lines that CloudWatch reads (EMF)."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

from aws_lambda_powertools import Logger
from aws_lambda_powertools import Metrics as Emf

from haltline.metrics import Metrics
from haltline.runs import Outcome, Receipt, StopReason, Usage
from haltline.settings import Settings

if TYPE_CHECKING:
    from loguru import Message

NAMESPACE = "Haltline"  # of all metrics; their one dimension, `service`, is POWERTOOLS_SERVICE_NAME
_TAKEN = {*vars(logging.makeLogRecord({})), "message", "asctime"}  # keys that `logging` refuses


def _name_of(receipt: Receipt) -> str:
    if receipt.outcome is Outcome.LOST or receipt.reason is StopReason.SIGNAL_LOST:
        return "RunsLost"
    if receipt.failed:
        return "RunsFailed"
    return "RunsStopped" if receipt.outcome is Outcome.STOPPED else "RunsFinished"


def powertools_logger(settings: Settings) -> Logger:
    """Powertools' logger, which writes JSON lines to stdout; one a process, however often it is asked for."""
    level = "DEBUG" if settings.log_level == "TRACE" else settings.log_level
    made = Logger(level=level, location=None, use_rfc3339=True)  # the form of time that Lambda reads
    logging.getLogger(made.name).propagate = False  # the root's handlers lead back to loguru
    return made


def powertools_sink(settings: Settings) -> Callable[[Message], None]:
    """A sink for loguru. What `logger.contextualize` holds, a correlation id say, becomes keys of the line."""
    lines = logging.getLogger(powertools_logger(settings).name)  # where Powertools has put its handler

    def write(message: Message) -> None:
        record, error = message.record, message.record["exception"]
        lines.log(
            record["level"].no,
            record["message"],
            extra={f"{k}_" if k in _TAKEN else k: v for k, v in record["extra"].items()}
            | {"location": f"{record['name']}:{record['line']}"},
            exc_info=error.value if error else None,
        )

    return write


class EmfMetrics(Metrics):
    """Kept for CloudWatch, which is told once a request. Errors in mid-stream are no errors to Lambda."""

    def __init__(self) -> None:
        self._emf = Emf(namespace=NAMESPACE)

    def ended(self, receipt: Receipt | None, usage: Usage) -> None:
        """Count the end of a run and what it used."""
        self._emf.add_metric("InputTokens", "Count", usage.input_tokens)
        self._emf.add_metric("OutputTokens", "Count", usage.output_tokens)
        if receipt is None:
            return
        if receipt.outcome is Outcome.STOPPED:
            self._emf.add_metric("TokensKept", "Count", usage.output_tokens)
        self._emf.add_metric(_name_of(receipt), "Count", 1)
        if receipt.halted_ms is not None:
            self._emf.add_metric("HaltedMs", "Milliseconds", receipt.halted_ms)
        if receipt.upstream_closed_ms is not None:
            self._emf.add_metric("UpstreamClosedMs", "Milliseconds", receipt.upstream_closed_ms)

    def stop_answered(self, status: str) -> None:
        """Count the answer to a stop."""
        self._emf.add_metric(f"Stops{status.capitalize()}", "Count", 1)

    def stop_late(self) -> None:
        """Count a stop that was stored but not pushed: a look had to find it."""
        self._emf.add_metric("StopsLate", "Count", 1)

    def bus_forgot(self, what: Literal["record", "stop"]) -> None:
        """Count what the bus had stored and lost, and what was put back."""
        self._emf.add_metric("RecordsForgotten" if what == "record" else "StopsForgotten", "Count", 1)

    def event_lost(self) -> None:
        """Count an end of a run that EventBridge did not confirm."""
        self._emf.add_metric("EventsLost", "Count", 1)

    def flush(self) -> None:
        """Write what was counted since the last time, as one log line."""
        if self._emf.metric_set:
            self._emf.flush_metrics()
            sys.stdout.flush()  # a pipe keeps lines back, and an environment may see no other request
