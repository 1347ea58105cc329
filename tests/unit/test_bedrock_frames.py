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


def frame(kind: str, payload: Any, about: str = "event-type") -> bytes:
    names = {f":{about}": kind, ":content-type": "application/json", ":message-type": about.partition("-")[0]}
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


def read(data: bytes) -> list[tuple[str, Any]]:
    """What botocore makes of it: kinds and payloads, without padding, neighbouring text of a block joined."""
    buffer, found = EventStreamBuffer(), list[tuple[str, Any]]()
    buffer.add_data(data)
    for message in buffer:
        kind = message.headers.get(":event-type") or message.headers[":exception-type"]
        payload = json.loads(message.payload)
        payload.pop("p", None)
        last = found[-1][1] if found else {}
        if set(payload.get("delta", ())) == set(last.get("delta", ())) == {"text"} and (
            payload["contentBlockIndex"] == last["contentBlockIndex"]
        ):
            # Halves of a pair that meet are one character.
            said = last["delta"]["text"] + payload["delta"]["text"]
            last["delta"]["text"] = said.encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass")
        else:
            found.append((kind, payload))
    return found


def count(data: bytes) -> int:
    buffer = EventStreamBuffer()
    buffer.add_data(data)
    return len(list(buffer))


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


def test_botocore_reads_the_same_wherever_it_is_cut() -> None:
    whole = b"".join(STREAM)
    expected = read(whole)
    for seed in range(300):
        cuts = sorted(random.Random(seed).sample(range(1, len(whole)), seed % 40))
        frames = Frames()
        passed = [frames.feed(whole[a:b]) for a, b in zip([0, *cuts], [*cuts, len(whole)], strict=True)]
        assert frames.rest() == b""
        assert read(b"".join(passed)) == expected


def test_text_that_arrived_together_is_one_frame() -> None:
    together = Frames().feed(b"".join(text(f"{n} ") for n in range(50)))
    assert count(together) == 1
    assert read(together)[0][1]["delta"]["text"] == "".join(f"{n} " for n in range(50))


def test_text_that_arrives_alone_passes_as_it_came_and_at_once() -> None:
    frames = Frames()
    for n in range(5):
        assert frames.feed(text(f"{n} ")) == text(f"{n} ")


def test_nothing_waits_but_a_frame_that_is_not_whole() -> None:
    frames, first, second = Frames(), text("one "), text("two ")
    assert frames.feed(first + second[:20]) == first
    assert frames.feed(second[20:]) == second


def test_a_part_of_a_frame_at_the_end_is_passed_on() -> None:
    frames = Frames()
    assert frames.feed(text("one ")[:30]) == b""
    assert frames.rest() == text("one ")[:30]
    assert frames.rest() == b""


@pytest.mark.parametrize(
    "odd",
    [
        frame("contentBlockDelta", b"no JSON"),
        frame("contentBlockDelta", b"[]"),
        frame("contentBlockDelta", {"contentBlockIndex": 0, "delta": {"text": "x", "citation": {}}}),
        frame("contentBlockDelta", {"contentBlockIndex": 0, "delta": {"text": 1}}),
        frame("contentBlockDelta", {"contentBlockIndex": 0, "delta": "x"}),
        frame("contentBlockDelta", {"contentBlockIndex": 0, "delta": {"text": "x"}, "new": 1}),
        frame("contentBlockDeltaNew", {"contentBlockIndex": 0, "delta": {"text": "x"}}),
    ],
)
def test_what_is_no_plain_text_passes_as_it_is(odd: bytes) -> None:
    passed = Frames().feed(text("a ") + odd + odd + text("b "))
    assert odd + odd in passed
    assert count(passed) == 4


@pytest.mark.parametrize("at", [3, 9, 40, -20, -1])
def test_a_broken_frame_is_left_for_botocore_to_refuse(at: int) -> None:
    broken = bytearray(text("a "))
    broken[at] ^= 1
    frames = Frames()
    fed = frames.feed(text("x ") + bytes(broken) + text("b ") * 3) + frames.rest()
    with pytest.raises(ChecksumMismatch):
        read(fed)
