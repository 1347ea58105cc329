"""Logs. Lines read `field=<value> | message`; no message text, key or token is logged, at any level.

What an exception says may quote either, so of one that is logged only the places and the types are: see `_untold`.
"""

from __future__ import annotations

import logging
import re
import sys
import threading
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
        said = record.getMessage()
        if record.name.partition(".")[0] in _SEE_CONVERSATIONS:
            said = str(record.msg).partition("\n")[0]  # the sentence without its values
        logger.opt(depth=6, exception=record.exc_info).log(level, "logger=<{}> | {}", record.name, said)


# Libraries through which messages, answers and exceptions that quote them pass. Strands warns of a tool's input that it
# cannot read by showing it; asyncio shows the exception of a task on its second line.
_SEE_CONVERSATIONS = {"strands", "openai", "httpx", "httpx2", "httpcore", "httpcore2", "asyncio", "opentelemetry"}
_CONTROL = re.compile("[\\x00-\\x1f\\x7f-\\x9f\\u2028\\u2029]")
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
    logger.configure(extra={"replica": settings.replica_name}, patcher=_without_texts)
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


def log_what_nobody_caught() -> None:
    """For a process of its own: an exception that ends a thread, or that is dropped, is logged as any other is."""

    def of_thread(args: threading.ExceptHookArgs) -> None:
        name = args.thread.name if args.thread else ""
        if args.exc_value is not None and not isinstance(args.exc_value, SystemExit):
            logger.opt(exception=args.exc_value).error("thread=<{}> | a thread failed", name)

    def dropped(args: sys.UnraisableHookArgs) -> None:
        logger.opt(exception=args.exc_value).error("| an exception could not be raised")

    threading.excepthook, sys.unraisablehook = of_thread, dropped


def _without_texts(record: Record) -> None:
    if (failure := record["exception"]) is not None and failure.value is not None:
        record["exception"] = failure._replace(value=_untold(failure.value, {}))


def _untold(error: BaseException, seen: dict[int, BaseException]) -> BaseException:
    """The exception with its type, traceback and causes, and without its text, for which there is only a code."""
    if id(error) in seen:
        return seen[id(error)]
    kind = type(error)
    same: dict[str, Any] = {"__module__": kind.__module__, "__qualname__": kind.__qualname__, "__str__": _code}
    told: BaseException
    if isinstance(error, BaseExceptionGroup):
        group = ExceptionGroup if isinstance(error, ExceptionGroup) else BaseExceptionGroup
        told = type(kind.__name__, (group,), same)("group", [_untold(each, seen) for each in error.exceptions])
    else:
        told = type(kind.__name__, (Exception if isinstance(error, Exception) else BaseException,), same)()
    seen[id(error)] = told
    told.code = _code_of(error)  # type: ignore[attr-defined]
    told.__traceback__ = error.__traceback__
    told.__cause__ = _untold(error.__cause__, seen) if error.__cause__ else None
    told.__context__ = _untold(error.__context__, seen) if error.__context__ else None
    told.__suppress_context__ = error.__suppress_context__
    return told


def _code(told: Any) -> str:
    return str(told.code)


def _code_of(error: BaseException) -> str:
    """The system's word for an error of the system, AWS' code for one of AWS."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.strerror or ""
    response = getattr(error, "response", None)
    code = response.get("Error", {}).get("Code", "") if isinstance(response, dict) else ""
    return code if isinstance(code, str) and code.isalnum() else ""


def _line(record: Record) -> str:
    # One line, whatever a value holds: a line end in it could forge the next entry, an escape sequence hide one.
    record["extra"]["line"] = _CONTROL.sub(lambda c: c[0].encode("unicode_escape").decode(), record["message"])
    exception = "\n{exception}" if record["exception"] else ""
    return "{time:YYYY-MM-DDTHH:mm:ss.SSS!UTC}Z {level: <7} {extra[replica]} | {extra[line]}" + exception + "\n"
