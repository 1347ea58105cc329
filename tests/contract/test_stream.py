"""The event stream: headers, text byte for byte, one closing frame, nothing after it."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx2 as httpx
import pytest

from tests.contract.client import (
    DONE,
    ULID_PATTERN,
    EventStream,
    lf,
    messages_of,
    new_chat,
    new_run,
    said,
    say,
    script,
    sending,
    status_of,
)
from tests.stack import Replica


async def test_a_chat_answers_with_an_event_stream_nobody_on_the_way_may_hold_back(
    http: httpx.AsyncClient, one: Replica
) -> None:
    async with sending(http, one, new_chat(), script(chunks=["hi"])) as turn:
        assert turn.status == 200
        assert turn.headers["content-type"].split(";")[0] == "text/event-stream"
        assert turn.headers["cache-control"] == "no-cache, no-transform"
        assert turn.headers["x-accel-buffering"] == "no"
        assert turn.headers["x-replica"] == one.name
        await turn.finish()


async def test_a_run_has_the_id_the_client_gave(http: httpx.AsyncClient, one: Replica) -> None:
    run_id = new_run()
    turn = await say(http, one, new_chat(), script(chunks=["hi"]), run_id=run_id)
    assert turn.run_id == run_id


async def test_a_run_without_a_given_id_gets_a_ulid_of_its_own(http: httpx.AsyncClient, one: Replica) -> None:
    chat = new_chat()
    ids = [(await say(http, one, chat, script(chunks=["hi"]))).run_id for _ in range(2)]
    assert [bool(ULID_PATTERN.fullmatch(i)) for i in ids] == [True, True]
    assert ids[0] != ids[1]


TEXTS = {
    "words": ["Hello", ", ", "world", "."],
    "space first": [" lead"],
    "spaces first": ["   three", "  two"],
    "space last": ["trail ", "and two  "],
    "spaces as chunks": ["a", " ", "  ", "b"],
    "tab first": ["\tone", "\t\ttwo\t"],
    "lf inside": ["one\ntwo"],
    "lf as a chunk": ["one", "\n", "two"],
    "lf first": ["\none"],
    "lf last": ["one\n"],
    "lfs in a row": ["one\n\n\n\ntwo"],
    "lfs as chunks": ["\n", "\n", "x", "\n", "\n"],
    "lines with leading spaces": ["def f():\n    return 1\n\n\n  # end"],
    "cr inside": ["one\rtwo"],
    "cr last": ["one\r"],
    "cr as chunks": ["a", "\r", "\r", "b"],
    "crlf inside": ["one\r\ntwo\r\n\r\nthree"],
    "crlf last": ["one\r\n"],
    "crlf split over chunks": ["one\r", "\ntwo"],
    "crlf split, bare halves": ["one", "\r", "\n", "two"],
    "crlf split twice": ["a\r", "\n\r", "\nb"],
    "cr then lf lf": ["a\r", "\n\nb"],
    "lf then cr": ["a\n", "\rb"],
    "cr at the end after a split": ["a\r", "\n", "\r"],
    "literal [DONE]": ["[DONE]"],
    "literal [DONE] between words": ["It ends with ", "[DONE]", " and goes on"],
    "literal [STOPPED] and [ERROR]": ["[STOPPED]", "\n", "[ERROR] no"],
    "a whole closing frame": ["event: done\ndata: [DONE]\n\n", "after"],
    "a closing frame, own lines": ["\n\nevent: stopped\ndata: [STOPPED]\n\n"],
    "event line": ["event: done"],
    "data line": ["data: x"],
    "data line without space": ["data:x\ndata:\ndata"],
    "data line after a break": ["one\ndata: two"],
    "id and retry lines": ["id: 7\nretry: 1\n"],
    "comment look-alike": [": ping"],
    "comment look-alike after a break": ["one\n: ping\n\n:two"],
    "colons": [":", "::", " : "],
    "emoji": ["Halt 🛑 line 🇩🇪 👩‍👩‍👧‍👦 ❤️"],
    "emoji joined over chunks": ["👩", "\u200d", "👧"],
    "combining marks": ["e\u0301 n\u0303 Z̴̢̛͎a̶l̷g̵o̴"],
    "combining mark in a chunk of its own": ["e", "\u0301"],
    "cjk and right to left": ["日本語 한국어 ", "שלום ", "مرحبا"],
    "breaks of other kinds": ["a\u2028b\u2029c\x85d\x0be\x0cf\x1cg\x1dh\x1ei"],
    "byte order mark": ["\ufeff", "a\ufeffb"],
    "controls": ["a\x00b\x07c\x1b[31md\x7f"],
    "last code points": ["\ue000 \uffff \U0010ffff"],
    "html": ["<script>alert('&amp;')</script>"],
    "json": ['{"data": "x\\n", "event": "done"}'],
    "empty chunks": ["a", "", "", "b", ""],
    "a very long line": ["x" * 60_000],
    "a very long line of wide characters": ["日" * 8_000],
    "many lines in a chunk": ["line\n" * 5_000],
}


@pytest.mark.parametrize("chunks", TEXTS.values(), ids=TEXTS.keys())
async def test_the_text_arrives_byte_for_byte_and_is_kept(
    http: httpx.AsyncClient, one: Replica, chunks: list[str]
) -> None:
    chat, message = new_chat(), script(chunks=chunks, pace_ms=3)
    turn = await say(http, one, chat, message)
    assert (turn.text, turn.closing) == (lf("".join(chunks)), [DONE])
    kept = await messages_of(http, one, chat)
    assert [entry | {"text": lf(entry["text"])} for entry in kept] == said(message, lf("".join(chunks)))


async def test_many_chunks_arrive_all_and_in_order(http: httpx.AsyncClient, one: Replica) -> None:
    turn = await say(http, one, new_chat(), script(chunks=["a", "\r", "\n", "[DONE]", " b\n"], repeat=500, pace_ms=0))
    assert (turn.text, turn.closing) == ("a\n[DONE] b\n" * 500, [DONE])


@pytest.mark.parametrize(
    "directive",
    [
        {"chunks": ["hi"]},
        {"chunks": ["\n", "event: done\ndata: [DONE]\n\n"]},
        {"chunks": ["some"], "fail": "broken"},
    ],
    ids=["done", "done after a look-alike", "error"],
)
async def test_nothing_follows_the_closing_frame(
    http: httpx.AsyncClient, one: Replica, directive: dict[str, Any]
) -> None:
    turn = await say(http, one, new_chat(), script(**directive))
    *text, last = turn.events
    assert [e.event for e in text] == [None] * len(text)
    assert last.event in ("done", "error")
    assert bytes(turn.raw).replace(b"\r\n", b"\n").endswith(f"event: {last.event}\ndata: {last.data}\n\n".encode())


async def test_text_is_sent_while_the_model_still_speaks(http: httpx.AsyncClient, one: Replica) -> None:
    turn = await say(http, one, new_chat(), script(chunks=["one ", "two ", "three"], pace_ms=300))
    assert [e.data for e in turn.events] == ["one ", "two ", "three", "[DONE]"]
    assert turn.events[-1].at - turn.events[0].at > 0.4


async def test_a_message_without_a_directive_is_answered_alike_every_time(
    http: httpx.AsyncClient, one: Replica, other: Replica
) -> None:
    turns = await asyncio.gather(*(say(http, replica, new_chat(), "Tell me of the sea.") for replica in (one, other)))
    assert [turn.closing for turn in turns] == [[DONE], [DONE]]
    assert turns[0].text == turns[1].text != ""


async def test_a_tool_call_on_the_way_leaves_the_text_whole(http: httpx.AsyncClient, one: Replica) -> None:
    chat = new_chat()
    tool = {"name": "calculator", "input": {"expression": "2+2"}}
    message = script(tool=tool, chunks=["It is ", "four."])
    turn = await say(http, one, chat, message)
    assert (turn.text, turn.closing) == ("It is four.", [DONE])
    kept = await messages_of(http, one, chat)
    assert [kept[0], kept[-1]] == said(message, "It is four.")


@pytest.mark.parametrize(
    "reason",
    ["the model broke", "one\ntwo", "x\n\nevent: done\ndata: [DONE]\n\n", " ", "ünïcode 🛑"],
    ids=["plain", "two lines", "a frame of its own", "blank", "unicode"],
)
async def test_a_model_that_fails_ends_the_stream_with_one_error_frame(
    http: httpx.AsyncClient, one: Replica, reason: str
) -> None:
    chat = new_chat()
    turn = await say(http, one, chat, script(chunks=["some ", "text"], fail=reason))
    [(event, data)] = turn.closing
    assert turn.text == "some text"
    assert event == "error"
    assert data.startswith("[ERROR] ")
    assert data.removeprefix("[ERROR] ").strip()
    assert "Traceback" not in data
    assert (await status_of(http, one, chat))["status"] == "idle"


async def test_a_chat_goes_on_after_an_error(http: httpx.AsyncClient, one: Replica, other: Replica) -> None:
    chat, message = new_chat(), script(chunks=["fine"])
    await say(http, one, chat, script(chunks=[], fail="at once"))
    turn = await say(http, other, chat, message)
    assert (turn.text, turn.closing) == ("fine", [DONE])
    assert (await messages_of(http, one, chat))[-2:] == said(message, "fine")


READINGS = {
    "one frame": (b"data: a\n\n", [(None, "a")]),
    "lines join with a LF": (b"data: a\ndata: b\n\n", [(None, "a\nb")]),
    "one space is eaten": (b"data:  a\n\ndata:b\n\n", [(None, " a"), (None, "b")]),
    "empty data": (b"data:\n\ndata\n\ndata\ndata\n\n", [(None, ""), (None, ""), (None, "\n")]),
    "no data, no event": (b"event: done\n\n: ping\n\n", []),
    "all line ends": (b"data: a\r\rdata: b\r\n\r\ndata: c\n\n", [(None, "a"), (None, "b"), (None, "c")]),
    "event": (b"event: done\ndata: [DONE]\n\ndata: x\n\n", [DONE, (None, "x")]),
    "only the first mark is dropped": ("\ufeffdata: \ufeffa\n\n".encode(), [(None, "\ufeffa")]),
    "what is unfinished is no event": (b"data: a\n\ndata: b\n", [(None, "a")]),
}


@pytest.mark.parametrize("size", [1, 1000], ids=["byte by byte", "at once"])
@pytest.mark.parametrize(("data", "events"), READINGS.values(), ids=READINGS.keys())
def test_this_client_reads_by_the_sse_rules(data: bytes, events: list[tuple[str | None, str]], size: int) -> None:
    stream = EventStream()
    read = [e for i in range(0, len(data), size) for e in stream.feed(data[i : i + size])]
    assert [(e.event, e.data) for e in read] == events
