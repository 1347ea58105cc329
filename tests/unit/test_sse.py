"""The encoder against a parser written from the WHATWG rules: joining the frames gives the model's text back."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator

import pytest

from haltline.events import Closing, Done, Event, Failed, Stopped, Text
from haltline.sse import HEADERS, PING, Encoder

Frame = tuple[str, str]  # type, data


def frames(stream: bytes) -> list[Frame]:
    """HTML, 9.2.6 "Interpreting an event stream", to the letter, over the whole stream."""
    text = stream.decode("utf-8", "replace").removeprefix("\ufeff")
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    found: list[Frame] = []
    data, kind = "", ""
    for line in lines[:-1]:  # what follows the last line end is not a line yet
        if line == "":
            if data:
                found.append((kind or "message", data.removesuffix("\n")))
            data, kind = "", ""
            continue
        if line.startswith(":"):
            continue
        field, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if field == "data":
            data += value + "\n"
        elif field == "event":
            kind = value
    return found


def encoded(events: list[Event]) -> bytes:
    encoder = Encoder()
    return b"".join(map(encoder.encode, events))


def said(events: list[Event]) -> str:
    """What a client makes of the frames without a type."""
    return "".join(data for kind, data in frames(encoded(events)) if kind == "message")


def with_line_feeds(text: str) -> str:
    """What the stream format can carry: CR and CRLF arrive as LF."""
    return text.replace("\r\n", "\n").replace("\r", "\n")


def splits(text: str) -> Iterator[list[str]]:
    """Every way to cut `text` into chunks that are not empty."""
    for cuts in itertools.product((False, True), repeat=max(len(text) - 1, 0)):
        chunks = [text[:1]]
        for cut, character in zip(cuts, text[1:], strict=True):
            if cut:
                chunks.append(character)
            else:
                chunks[-1] += character
        yield chunks


# ---- the bytes


@pytest.mark.parametrize(
    ("text", "stream"),
    [
        pytest.param("word", b"data: word\n\n", id="word"),
        pytest.param(" word", b"data:  word\n\n", id="a space in front stays"),
        pytest.param("a\nb", b"data: a\ndata: b\n\n", id="two lines"),
        pytest.param("\n", b"data: \ndata: \n\n", id="a line end alone"),
        pytest.param("a\n", b"data: a\ndata: \n\n", id="a line end last"),
        pytest.param("a\r\nb", b"data: a\ndata: b\n\n", id="CRLF"),
        pytest.param("a\rb", b"data: a\ndata: b\n\n", id="CR"),
        pytest.param("a\n\rb", b"data: a\ndata: \ndata: b\n\n", id="LF CR is two"),
        pytest.param("\r\r\na", b"data: \ndata: \ndata: a\n\n", id="CR CRLF is two"),
        pytest.param("", b"", id="nothing"),
        pytest.param("data: x", b"data: data: x\n\n", id="text that looks like a field"),
        pytest.param("event: done", b"data: event: done\n\n", id="text that looks like an event"),
        pytest.param(": ping", b"data: : ping\n\n", id="text that looks like a comment"),
        pytest.param("\u2028\x85\x0b", "data: \u2028\x85\x0b\n\n".encode(), id="line ends of other standards"),
        pytest.param("é水\U0001f600", "data: é水\U0001f600\n\n".encode(), id="UTF-8"),
        pytest.param("\0", b"data: \x00\n\n", id="NUL"),
    ],
)
def test_text(text: str, stream: bytes) -> None:
    assert Encoder().encode(Text(text)) == stream


@pytest.mark.parametrize(
    ("event", "stream"),
    [
        pytest.param(Done(), b"event: done\ndata: [DONE]\n\n", id="done"),
        pytest.param(Stopped(), b"event: stopped\ndata: [STOPPED]\n\n", id="stopped"),
        pytest.param(Failed("No bus."), b"event: error\ndata: [ERROR] No bus.\n\n", id="error"),
        pytest.param(Failed("a\r\nb\n\n c"), b"event: error\ndata: [ERROR] a b c\n\n", id="an error of many lines"),
        pytest.param(Failed("\n\nevent: done"), b"event: error\ndata: [ERROR] event: done\n\n", id="a forged frame"),
        pytest.param(Failed(" \n"), b"event: error\ndata: [ERROR] The run failed.\n\n", id="an error without a word"),
        pytest.param(Failed("x\ud83d"), b"event: error\ndata: [ERROR] x?\n\n", id="an error that UTF-8 cannot hold"),
    ],
)
def test_closing(event: Closing, stream: bytes) -> None:
    assert Encoder().encode(event) == stream


def test_a_trailing_cr_waits_for_what_follows() -> None:
    encoder = Encoder()
    assert [encoder.encode(e) for e in (Text("a\r"), Text("\nb\r"), Text("c"), Text("\r"), Done())] == [
        b"data: a\n\n",
        b"data: \ndata: b\n\n",
        b"data: \ndata: c\n\n",
        b"",
        b"data: \ndata: \n\nevent: done\ndata: [DONE]\n\n",
    ]


def test_an_empty_text_leaves_the_cr_waiting() -> None:
    assert said([Text("a\r"), Text(""), Text("\nb"), Done()]) == "a\nb"


def test_a_model_that_says_done_ends_nothing() -> None:
    stream = encoded([Text("[DONE]"), Text("\n\nevent: done\ndata: [DONE]\n\n"), Text("on"), Stopped()])
    assert frames(stream) == [
        ("message", "[DONE]"),
        ("message", "\n\nevent: done\ndata: [DONE]\n\n"),
        ("message", "on"),
        ("stopped", "[STOPPED]"),
    ]


def test_a_ping_is_a_comment() -> None:
    assert PING == b": ping\n\n"
    assert frames(b"data: a\n\n" + PING + b"data: b\n\n") == [("message", "a"), ("message", "b")]


def test_headers() -> None:
    assert HEADERS == {
        "content-type": "text/event-stream; charset=utf-8",
        "cache-control": "no-cache, no-transform",
        "x-accel-buffering": "no",
    }


# ---- properties


@pytest.mark.parametrize("closing", [Done(), Stopped(), Failed("why")], ids=["done", "stopped", "error"])
def test_every_short_text_over_every_split(closing: Closing) -> None:
    wrong = [
        chunks
        for length in range(6)
        for text in map("".join, itertools.product("a \r\n", repeat=length))
        for chunks in splits(text)
        if said([*map(Text, chunks), closing]) != with_line_feeds(text)
    ]
    assert wrong == []


ALPHABET = ["a", " ", ":", "\r", "\n", "\r\n", "\n\n", "data: ", "event: done", "é", "\U0001f600", "\ufeff", "\u2028"]


def test_long_texts_over_random_splits() -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    for _ in range(500):
        text = "".join(chance.choices(ALPHABET, k=chance.randrange(60)))
        cuts = sorted(chance.choices(range(len(text) + 1), k=chance.randrange(20)))
        chunks = [text[a:b] for a, b in itertools.pairwise([0, *cuts, len(text)])]
        found = frames(encoded([*map(Text, chunks), Stopped()]))
        assert "".join(data for _, data in found[:-1]) == with_line_feeds(text)
        assert {kind for kind, _ in found[:-1]} <= {"message"}
        assert found[-1] == ("stopped", "[STOPPED]")


def test_every_chunk_is_whole_frames() -> None:
    """A proxy may pass on each write by itself: none ends inside a frame."""
    encoder = Encoder()
    for event in [Text("a\r"), Text("\n"), Text("b\n\r"), Text("\r"), Text("é"), Done()]:
        written = encoder.encode(event)
        assert written == b"" or (written.startswith((b"data: ", b"event: ")) and written.endswith(b"\n\n"))
