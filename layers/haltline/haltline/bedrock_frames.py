"""Frames of ConverseStream that arrived together: their text goes on as one frame.

What a token costs further on, in botocore, in Strands and on its way to the client, it costs once a frame. A replica
with time to spare finds one frame in each read and passes it on as it came; one that is busy finds more. Nothing waits
here but a frame of which a part is still to come. No I/O.

Source: https://smithy.io/2.0/aws/amazon-eventstream.html (the encoding)
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Iterator
from typing import Any, NamedTuple

_PRELUDE = struct.Struct("!III")  # length of the frame, length of its headers, checksum of both
_SUM = struct.Struct("!I")
_KIND = b"\x0b:event-type\x07\x00\x11contentBlockDelta"
_FIELDS = {"contentBlockIndex", "delta", "p"}  # p pads a frame, to hide how long its text is


class _Delta(NamedTuple):
    """A frame that says text, and nothing else that matters."""

    headers: bytes
    block: int | None
    text: str
    frame: bytes


class Frames:
    """One response. Whatever is no text, or cannot be read, passes on as it is: botocore knows what to make of it."""

    def __init__(self) -> None:
        self._rest = b""  # a frame that is not whole yet

    def feed(self, data: bytes) -> bytes:
        """The frames that are whole now, those of text joined. b"" where none is."""
        if self._rest:
            data, self._rest = self._rest + data, b""
        if len(data) >= _PRELUDE.size and _SUM.unpack_from(data)[0] == len(data):
            return data  # one, as a rule
        passed: list[bytes] = []
        said: list[_Delta] = []
        for frame in self._whole(data):
            delta = _delta_of(frame)
            if said and (delta is None or delta[:2] != said[0][:2]):
                passed.append(_frame_of(said))
                said = []
            if delta is None:
                passed.append(frame)
            else:
                said.append(delta)
        if said:
            passed.append(_frame_of(said))
        return b"".join(passed)

    def rest(self) -> bytes:
        """What is left at the end, a part of a frame."""
        rest, self._rest = self._rest, b""
        return rest

    def _whole(self, data: bytes) -> Iterator[bytes]:
        at = 0
        while len(data) - at >= _PRELUDE.size:
            length = _SUM.unpack_from(data, at)[0]
            if length < _PRELUDE.size + _SUM.size:  # no frame: nothing can be told of what follows
                yield data[at:]
                return
            if at + length > len(data):
                break
            yield data[at : at + length]
            at += length
        self._rest = data[at:]


def _delta_of(frame: bytes) -> _Delta | None:
    _, size, checksum = _PRELUDE.unpack_from(frame)
    headers, body = frame[_PRELUDE.size : _PRELUDE.size + size], frame[_PRELUDE.size + size : -_SUM.size]
    if _KIND not in headers or zlib.crc32(frame[:8]) != checksum:
        return None
    if zlib.crc32(frame[: -_SUM.size]) != _SUM.unpack(frame[-_SUM.size :])[0]:
        return None
    try:
        said: Any = json.loads(body)
    except ValueError:
        return None
    if not isinstance(said, dict) or not said.keys() <= _FIELDS:
        return None
    delta = said.get("delta")
    if not isinstance(delta, dict) or delta.keys() != {"text"} or not isinstance(delta["text"], str):
        return None
    return _Delta(headers, said.get("contentBlockIndex"), delta["text"], frame)


def _frame_of(said: list[_Delta]) -> bytes:
    headers, block, _, frame = said[0]
    if len(said) == 1:
        return frame
    content: dict[str, Any] = {"delta": {"text": "".join(delta.text for delta in said)}}
    if block is not None:
        content["contentBlockIndex"] = block
    body = json.dumps(content).encode()  # in ASCII: half of a surrogate pair may stand alone
    lengths = struct.pack("!II", _PRELUDE.size + len(headers) + len(body) + _SUM.size, len(headers))
    frame = lengths + _SUM.pack(zlib.crc32(lengths)) + headers + body
    return frame + _SUM.pack(zlib.crc32(frame))
