"""What arrives together goes on as one frame, and botocore reads the same of it."""

from __future__ import annotations

import json
import random
import struct
import zlib
from typing import Any

import pytest
from botocore.eventstream import ChecksumMismatch, EventStreamBuffer

from haltline.bedrock_frames import Frames


def frame(name: str, payload: Any, about: str = "event-type", kind: str = "") -> bytes:
    kind = kind or about.partition("-")[0]
    names = {f":{about}": name, ":content-type": "application/json", ":message-type": kind}
    headers = b"".join(
        struct.pack("!B", len(name)) + name.encode() + struct.pack("!BH", 7, len(value)) + value.encode()
        for name, value in names.items()
    )
    body = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
    lengths = struct.pack("!II", 16 + len(headers) + len(body), len(headers))
    whole = lengths + struct.pack("!I", zlib.crc32(lengths)) + headers + body
    return whole + struct.pack("!I", zlib.crc32(whole))


def text(said: str, block: int = 0, **more: Any) -> bytes:
    return frame("contentBlockDelta", {"contentBlockIndex": block, "delta": {"text": said}, "p": "abcd", **more})


def join(events: list[tuple[str, Any]]) -> list[tuple[str, Any]]:
    """Without padding, neighbouring text of a block joined."""
    found = list[tuple[str, Any]]()
    for kind, payload in events:
        payload.pop("p", None)
        last = found[-1][1] if found else {}
        if set(payload.get("delta", ())) == set(last.get("delta", ())) == {"text"} and (
            payload["contentBlockIndex"] == last["contentBlockIndex"]
        ):
            last["delta"]["text"] += payload["delta"]["text"]
        else:
            found.append((kind, payload))
    return found


def by_botocore(data: bytes) -> list[tuple[str, Any]]:
    buffer = EventStreamBuffer()
    buffer.add_data(data)
    return [(m.headers.get(":event-type") or m.headers[":exception-type"], json.loads(m.payload)) for m in buffer]


def kinds(parts: list[Any]) -> list[tuple[str, Any]]:
    """Parts as botocore and ours make them together."""
    found = list[tuple[str, Any]]()
    for part in parts:
        found += list(part.items()) if isinstance(part, dict) else by_botocore(part)
    return found


STREAM = [
    frame("messageStart", {"role": "assistant"}),
    *(text(word) for word in ("one ", "zwölf ", "", "drei \ud83d", "\ude00 ", "\n\r\n", '"')),
    frame("contentBlockStop", {"contentBlockIndex": 0}),
    text("four ", 1),
    text("five", 2),
    frame("contentBlockDelta", {"contentBlockIndex": 3, "delta": {"toolUse": {"input": "{"}}}),
    frame("contentBlockDelta", {"contentBlockIndex": 3, "delta": {"toolUse": {"input": "}"}}}),
    frame("contentBlockDelta", {"contentBlockIndex": 4, "delta": {"reasoningContent": {"text": "hm"}}}),
    text("six ", 5),
    text("seven", 5),
    frame("messageStop", {"stopReason": "end_turn"}),
    text("late"),
    frame("throttlingException", {"message": "slow down"}, "exception-type"),
]


def test_it_is_what_botocore_reads_wherever_it_is_cut() -> None:
    whole = b"".join(STREAM)
    expected = join(by_botocore(whole))
    for seed in range(300):
        cuts = sorted(random.Random(seed).sample(range(1, len(whole)), seed % 40))
        frames, parts = Frames(), list[Any]()
        for a, b in zip([0, *cuts], [*cuts, len(whole)], strict=True):
            parts += frames.feed(whole[a:b])
        assert join(kinds(parts)) == expected


def test_text_that_arrived_together_is_one_event() -> None:
    (together,) = Frames().feed(b"".join(text(f"{n} ") for n in range(50)))
    said = "".join(f"{n} " for n in range(50))
    assert together == {"contentBlockDelta": {"contentBlockIndex": 0, "delta": {"text": said}}}


def test_nothing_waits_but_a_frame_that_is_not_whole() -> None:
    frames, first, second = Frames(), text("one "), text("two ")
    assert said(frames.feed(first + second[:20])) == ["one "]
    assert said(frames.feed(second[20:] + first[:3])) == ["two "]
    assert said(frames.feed(first[3:])) == ["one "]


def said(parts: list[Any]) -> list[str]:
    return [part["contentBlockDelta"]["delta"]["text"] for part in parts]


@pytest.mark.parametrize(
    "odd",
    [
        frame("contentBlockDelta", b"no JSON"),
        frame("contentBlockDelta", b"[]"),
        frame("contentBlockDelta", {"contentBlockIndex": 0, "delta": {"text": "x", "citation": {}}}),
        frame("contentBlockDelta", {"contentBlockIndex": 0, "delta": {"text": 1}}),
        frame("contentBlockDelta", {"contentBlockIndex": 0, "delta": "x"}),
        frame("contentBlockDelta", {"contentBlockIndex": 0, "delta": {"text": "x"}, "new": 1}),
        frame("contentBlockDelta", {"contentBlockIndex": None, "delta": {"text": "x"}}),
        frame("contentBlockDelta", json.dumps({"delta": {"text": "x"}}).encode("utf-16")),
        frame("contentBlockDelta", b'{"delta": {"text": "\xed\xa0\x80"}}'),
        frame("contentBlockDelta", {"contentBlockIndex": 0, "delta": {"text": "x"}}, kind="error"),
        frame("contentBlockDeltaNew", {"contentBlockIndex": 0, "delta": {"text": "x"}}),
    ],
)
def test_what_is_no_plain_text_is_left_to_botocore(odd: bytes) -> None:
    a, *others, b = Frames().feed(text("a ") + odd + odd + text("b "))
    assert said([a, b]) == ["a ", "b "]
    assert others == [odd, odd]


@pytest.mark.parametrize("at", [0, 1, 3, 9, 40, -20, -1])
def test_a_broken_frame_is_left_for_botocore_to_refuse(at: int) -> None:
    broken = bytearray(text("a "))
    broken[at] ^= 1
    parts = Frames().feed(text("x ") + bytes(broken) + text("b ") * 3)
    with pytest.raises(ChecksumMismatch):
        by_botocore(b"".join(part for part in parts if isinstance(part, bytes)))
