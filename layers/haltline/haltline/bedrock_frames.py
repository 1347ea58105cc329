"""The frames of ConverseStream: text is read here, all else is left to botocore.

botocore's parser is made for every service there is, and took a third of what a token cost; nearly all frames are
text. Text that arrived together is one event: what it costs further on, in Strands and on its way to the client, it
costs once. A replica with time to spare finds one frame in each read; one that is busy finds more. Nothing waits here
but a frame of which a part is still to come. No I/O.

Source: https://smithy.io/2.0/aws/amazon-eventstream.html (the encoding)
"""

from __future__ import annotations

import json
import struct
import zlib
from typing import Any

_PRELUDE = struct.Struct("!III")  # length of the frame, length of its headers, checksum of both
_SUM = struct.Struct("!I")
_LEAST = _PRELUDE.size + _SUM.size
_HEADERS = (b"\x0b:event-type\x07\x00\x11contentBlockDelta", b"\x0d:message-type\x07\x00\x05event")
_LONGEST = 24 * 1024 * 1024  # bytes; botocore refuses a longer payload
_FIELDS = {"contentBlockIndex", "delta", "p"}  # p pads a frame, to hide how long its text is

Event = dict[str, Any]


class Frames:
    """One response. Whatever is no plain text, or cannot be read, is passed on: botocore knows what to make of it."""

    def __init__(self) -> None:
        self._rest: list[bytes] = []  # a frame that is not whole yet
        self._size, self._wanted = 0, 0  # bytes of it that are there, and from which on it is worth a look

    def feed(self, data: bytes) -> list[Event | bytes]:
        """What is whole now, in its order: events of text, and frames of all else."""
        if self._rest:
            self._rest.append(data)
            self._size += len(data)
            if self._size < self._wanted:  # joined once, or a large frame would be copied for each of its parts
                return []
            data, self._rest = b"".join(self._rest), []
        found: list[Event | bytes] = []
        at = 0
        while len(data) - at >= _LEAST:
            length, _, checksum = _PRELUDE.unpack_from(data, at)
            # No frame: nothing can be told of what follows, and what is not to come might be waited for to the end.
            if not _LEAST <= length <= _LONGEST or zlib.crc32(data[at : at + 8]) != checksum:
                found.append(data[at:])
                return found
            if at + length > len(data):
                break
            self._add(found, data[at : at + length])
            at += length
        if at < len(data):
            self._rest, self._size = [data[at:]], len(data) - at
            self._wanted = length if self._size >= _LEAST else _LEAST
        return found

    @staticmethod
    def _add(found: list[Event | bytes], frame: bytes) -> None:
        event = _text_in(frame)
        if event is None:
            found.append(frame)
        elif found and isinstance(last := found[-1], dict) and _block(last) == _block(event):
            last["contentBlockDelta"]["delta"]["text"] += event["contentBlockDelta"]["delta"]["text"]
        else:
            found.append(event)


def _block(event: Event) -> Any:
    return event["contentBlockDelta"].get("contentBlockIndex")


def _text_in(frame: bytes) -> Event | None:
    """The event as botocore would give it; None where it is not one of plain text."""
    body = _PRELUDE.size + _PRELUDE.unpack_from(frame)[1]
    if any(frame.find(header, _PRELUDE.size, body) < 0 for header in _HEADERS):
        return None
    if zlib.crc32(frame[: -_SUM.size]) != _SUM.unpack_from(frame, len(frame) - _SUM.size)[0]:
        return None
    try:
        said: Any = json.loads(frame[body : -_SUM.size].decode())  # of bytes alone it would take other encodings, too
    except ValueError:
        return None
    if not isinstance(said, dict) or not said.keys() <= _FIELDS or None in said.values():
        return None
    delta = said.get("delta")
    if not isinstance(delta, dict) or delta.keys() != {"text"} or not isinstance(delta["text"], str):
        return None
    said.pop("p", None)
    return {"contentBlockDelta": said}
