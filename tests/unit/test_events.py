"""Events: TextJoiner makes valid text of chunks that were cut anywhere, also between the halves of a surrogate pair."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator

import pytest

from haltline.events import Closing, Done, Event, Failed, Stopped, Text, TextJoiner

GRIN, HIGH, LOW = "\U0001f600", "\ud83d", "\ude00"  # HIGH + LOW is GRIN
LOST = "\ufffd"


def joined(chunks: list[str]) -> str:
    joiner = TextJoiner()
    return "".join([*map(joiner.add, chunks), joiner.flush()])


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


def well_formed(text: str) -> str:
    """UTF-16 as Unicode 3.9 has it: a pair is one character, a half that stays alone U+FFFD."""
    units = text.encode("utf-16-le", "surrogatepass")
    codes = [int.from_bytes(units[i : i + 2], "little") for i in range(0, len(units), 2)]
    found, i = [], 0
    while i < len(codes):
        high = 0xD800 <= codes[i] <= 0xDBFF
        if high and i + 1 < len(codes) and 0xDC00 <= codes[i + 1] <= 0xDFFF:
            found.append(chr(0x10000 + ((codes[i] - 0xD800) << 10) + (codes[i + 1] - 0xDC00)))
            i += 2
        else:
            found.append(LOST if 0xD800 <= codes[i] <= 0xDFFF else chr(codes[i]))
            i += 1
    return "".join(found)


@pytest.mark.parametrize(
    ("chunks", "passed_on", "flushed"),
    [
        pytest.param(["plain", " text"], ["plain", " text"], "", id="ascii passes as it is"),
        pytest.param(["é", "水", GRIN], ["é", "水", GRIN], "", id="so does all other text"),
        pytest.param([HIGH, LOW], ["", GRIN], "", id="a pair over two chunks"),
        pytest.param([f"a{HIGH}", f"{LOW}b"], ["a", f"{GRIN}b"], "", id="with text around it"),
        pytest.param([HIGH, "", LOW], ["", "", GRIN], "", id="an empty chunk between"),
        pytest.param([HIGH + LOW], [GRIN], "", id="two halves in one chunk"),
        pytest.param([HIGH, "a"], ["", f"{LOST}a"], "", id="a first half alone"),
        pytest.param([LOW, "a"], [LOST, "a"], "", id="a second half alone"),
        pytest.param(["a", HIGH], ["a", ""], LOST, id="a first half at the end"),
        pytest.param([HIGH, HIGH, LOW], ["", LOST, GRIN], "", id="a first half before a pair"),
        pytest.param(["\ufeffa"], ["\ufeffa"], "", id="a byte order mark is text"),
        pytest.param([HIGH, f"{LOW}\ufeff"], ["", f"{GRIN}\ufeff"], "", id="also behind a pair"),
        pytest.param(["\ufffe\uffff"], ["\ufffe\uffff"], "", id="noncharacters are text"),
        pytest.param([], [], "", id="nothing"),
    ],
)
def test_joiner(chunks: list[str], passed_on: list[str], flushed: str) -> None:
    joiner = TextJoiner()
    assert ([joiner.add(c) for c in chunks], joiner.flush()) == (passed_on, flushed)


def test_text_is_held_back_no_longer_than_needed() -> None:
    joiner = TextJoiner()
    assert joiner.add(f"{GRIN} a {HIGH}") == f"{GRIN} a "


def test_a_joiner_is_fresh_after_a_flush() -> None:
    joiner = TextJoiner()
    joiner.add(HIGH)
    assert [joiner.flush(), joiner.flush(), joiner.add(LOW), joiner.add("a")] == [LOST, "", LOST, "a"]


ALPHABET = ["a", "é", "\ufeff", HIGH, LOW, "\udbff", "\udc00", GRIN]


def test_every_text_of_four_over_every_split() -> None:
    wrong = [
        (chunks, joined(chunks))
        for length in range(5)
        for text in map("".join, itertools.product(ALPHABET, repeat=length))
        for chunks in splits(text)
        if joined(chunks) != well_formed(text)
    ]
    assert wrong == []


def test_long_texts_over_random_splits() -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    for _ in range(300):
        text = "".join(chance.choices(ALPHABET, k=chance.randrange(5, 60)))
        cuts = sorted(chance.choices(range(len(text) + 1), k=chance.randrange(20)))
        chunks = [text[a:b] for a, b in itertools.pairwise([0, *cuts, len(text)])]
        joiner = TextJoiner()
        passed_on = [joiner.add(c) for c in chunks]
        assert "".join(passed_on) + joiner.flush() == well_formed(text)
        "".join(passed_on).encode()  # every piece can be written on its own


@pytest.mark.parametrize(
    ("event", "closes"),
    [(Text("x"), False), (Done(), True), (Stopped(), True), (Failed("why"), True)],
    ids=["text", "done", "stopped", "failed"],
)
def test_which_events_close_a_stream(event: Event, closes: bool) -> None:
    assert isinstance(event, Closing) is closes
