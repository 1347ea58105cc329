"""Logs. Lines read `field=<value> | message`; no message text, key or token is logged."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loguru import logger

from haltline.settings import Settings

if TYPE_CHECKING:
    from loguru import Message, Record


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
