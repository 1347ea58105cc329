"""What a run says while it goes on. Pure values: sse.py turns them into bytes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias


@dataclass(frozen=True, slots=True)
class Text:
    """A piece of the answer, exactly as the model gave it."""

    text: str


@dataclass(frozen=True, slots=True)
class Done:
    """The run ended by itself."""


@dataclass(frozen=True, slots=True)
class Stopped:
    """The run was halted."""


@dataclass(frozen=True, slots=True)
class Failed:
    """The run could not go on. `reason` is one line for a person."""

    reason: str


Closing: TypeAlias = Done | Stopped | Failed
Event: TypeAlias = Text | Closing


def valid_text(text: str) -> str:
    """`text` as it can be written in UTF-8: surrogate pairs become one character, a half alone U+FFFD."""
    return text if text.isascii() else text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


class TextJoiner:
    """Makes valid text of a model's chunks: a surrogate pair split over two chunks becomes one character.

    JSON escapes let a provider cut an emoji in half; alone, a half cannot be written as UTF-8. A half that
    stays alone becomes U+FFFD.
    """

    def __init__(self) -> None:
        self._half = ""

    def add(self, chunk: str) -> str:
        """The text that can be passed on now, often `chunk` itself, "" where it must wait for its other half."""
        if chunk.isascii() and not self._half:
            return chunk
        chunk, self._half = self._half + chunk, ""
        if chunk and "\ud800" <= chunk[-1] <= "\udbff":
            chunk, self._half = chunk[:-1], chunk[-1]
        return valid_text(chunk)

    def flush(self) -> str:
        """What was still held back, at the end."""
        half, self._half = self._half, ""
        return "\ufffd" if half else ""
