"""Events to bytes, by the event stream format (WHATWG HTML, 9.2.6 "Interpreting an event stream"). No I/O."""

from __future__ import annotations

from haltline.events import Closing, Done, Event, Failed, Stopped, Text

PING = b": ping\n\n"

HEADERS = {
    "content-type": "text/event-stream; charset=utf-8",
    "cache-control": "no-cache, no-transform",
    "x-accel-buffering": "no",  # Nginx: pass each frame on as it comes
}


class Encoder:
    """One stream's encoder. It keeps a trailing CR back until the next chunk tells whether an LF follows.

    A line end in the stream format is CR, LF or CRLF, so each of them arrives as LF; a CRLF that the model
    cut in two must arrive as one.
    """

    def __init__(self) -> None:
        self._cr = False

    def encode(self, event: Event) -> bytes:
        """The frame or frames of one event; b"" where nothing can be said yet."""
        if isinstance(event, Text):
            text = "\r" + event.text if self._cr else event.text
            self._cr = text.endswith("\r")
            return _text(text[:-1] if self._cr else text)
        held, self._cr = self._cr, False
        return (_text("\n") if held else b"") + _closing(event)


def _text(text: str) -> bytes:
    if not text:
        return b""
    if "\r" in text:
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    return ("data: " + text.replace("\n", "\ndata: ") + "\n\n").encode()


def _closing(event: Closing) -> bytes:
    match event:
        case Done():
            return b"event: done\ndata: [DONE]\n\n"
        case Stopped():
            return b"event: stopped\ndata: [STOPPED]\n\n"
        case Failed(reason):
            line = " ".join(reason.split()) or "The run failed."
            return f"event: error\ndata: [ERROR] {line}\n\n".encode(errors="replace")
