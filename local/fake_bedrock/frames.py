"""Frames of `application/vnd.amazon.eventstream`: values in, bytes out."""

from __future__ import annotations

import json
import struct
from typing import Any
from zlib import crc32

CONTENT_TYPE = "application/vnd.amazon.eventstream"

_STRING = 7  # the type of a header's value


def event(kind: str, payload: dict[str, Any]) -> bytes:
    """One event, such as contentBlockDelta."""
    return _frame({":event-type": kind, ":content-type": "application/json", ":message-type": "event"}, payload)


def exception(code: str, message: str) -> bytes:
    """The exception that ends a stream, such as modelStreamErrorException."""
    headers = {":exception-type": code, ":content-type": "application/json", ":message-type": "exception"}
    return _frame(headers, {"message": message})


def _frame(headers: dict[str, str], payload: dict[str, Any]) -> bytes:
    """Total and header length, their CRC32, headers, payload, CRC32 of all before it. All numbers are big-endian."""
    head = b"".join(_header(name.encode(), value.encode()) for name, value in headers.items())
    body = json.dumps(payload).encode()
    prelude = struct.pack("!II", 16 + len(head) + len(body), len(head))
    message = prelude + struct.pack("!I", crc32(prelude)) + head + body
    return message + struct.pack("!I", crc32(message))


def _header(name: bytes, value: bytes) -> bytes:
    return struct.pack("!B", len(name)) + name + struct.pack("!BH", _STRING, len(value)) + value
