"""Logs and metrics. Log lines read `field=<value> | message`; no message text, key or token is logged."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loguru import logger
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from haltline.runs import Outcome, Receipt, Usage
from haltline.settings import Settings

if TYPE_CHECKING:
    from loguru import Message, Record

_FAST = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5)


class _ToLoguru(logging.Handler):
    """Libraries log by the standard module; they end in the same place."""

    def emit(self, record: logging.LogRecord) -> None:
        known = record.levelname in ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")
        level: str | int = record.levelname if known else record.levelno
        logger.opt(depth=6, exception=record.exc_info).log(level, "logger=<{}> | {}", record.name, record.getMessage())


_CHATTY = (
    *("uvicorn.access", "uvicorn.error", "httpx", "httpcore", "httpx2", "httpcore2"),
    *("openai", "botocore", "strands", "asyncio", "mangum"),
)


def configure_logging(settings: Settings, sink: Callable[[Message], None] | None = None) -> None:
    """Log to stderr, JSON in production; to rotating files too where LOG_DIR is set (10 MB each, 10 kept).

    `sink` takes the place of stderr where it is given.
    """
    production = settings.environment == "production"
    logger.remove()
    logger.configure(extra={"replica": settings.replica_name})
    # No variable values in tracebacks: they hold what users wrote.
    common: Any = {"level": settings.log_level, "serialize": production, "backtrace": False, "diagnose": False}
    if sink is not None:
        logger.add(sink, level=settings.log_level, format="{message}", backtrace=False, diagnose=False)
    else:
        logger.add(sys.stderr, format=_line, **common)
    if settings.log_dir:
        path = Path(settings.log_dir) / f"{settings.replica_name}.log"
        logger.add(path, format=_line, rotation="10 MB", retention=10, **common)
    logging.basicConfig(
        handlers=[_ToLoguru()], level=settings.log_level if settings.log_level != "TRACE" else "DEBUG", force=True
    )
    for chatty in _CHATTY:
        logging.getLogger(chatty).setLevel(logging.WARNING)
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access"):
        logging.getLogger(name).handlers.clear()
        logging.getLogger(name).propagate = True


def _line(record: Record) -> str:
    # One line, whatever a value holds: a line end in it could forge the next entry.
    record["extra"]["line"] = record["message"].replace("\r", "\\r").replace("\n", "\\n")
    exception = "\n{exception}" if record["exception"] else ""
    return "{time:YYYY-MM-DDTHH:mm:ss.SSS!UTC}Z {level: <7} {extra[replica]} | {extra[line]}" + exception + "\n"


class Metrics:
    """One registry an app, so that two apps in one process do not meet."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.live_runs = Gauge("haltline_live_runs", "Runs live on this replica", registry=self.registry)
        self._runs = Counter("haltline_runs", "Runs ended", ["outcome", "reason"], registry=self.registry)
        self._stops = Counter("haltline_stops", "Stops answered, by status", ["status"], registry=self.registry)
        self._halted = Histogram(
            "haltline_halt_seconds", "Stop signal to closing frame", buckets=_FAST, registry=self.registry
        )
        self._tokens = Counter("haltline_tokens", "Tokens of ended runs", ["kind"], registry=self.registry)
        self._kept = Counter("haltline_tokens_kept", "Output tokens of stopped runs", registry=self.registry)
        self._events_lost = Counter(
            "haltline_events_lost", "Ends of runs that EventBridge did not confirm", registry=self.registry
        )

    def ended(self, receipt: Receipt | None, usage: Usage) -> None:
        """Count the end of a run and what it used."""
        self._tokens.labels("input").inc(usage.input_tokens)
        self._tokens.labels("output").inc(usage.output_tokens)
        if receipt is None:
            return
        if receipt.outcome is Outcome.STOPPED:
            self._kept.inc(usage.output_tokens)
        self._runs.labels(receipt.outcome.value, receipt.reason.value if receipt.reason else "").inc()
        if receipt.halted_ms is not None:
            self._halted.observe(receipt.halted_ms / 1000)

    def stop_answered(self, status: str) -> None:
        """Count the answer to a stop: what it said, or `failed` where the stop could not be stored."""
        self._stops.labels(status).inc()

    def event_lost(self) -> None:
        """Count an end of a run that EventBridge did not confirm."""
        self._events_lost.inc()

    def flush(self) -> None:
        """Tell whoever must be told; Prometheus asks."""

    def text(self) -> bytes:
        """Prometheus' text format."""
        return generate_latest(self.registry)
