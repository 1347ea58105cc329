"""Requests as bytes, for what no client would send, and what comes back."""

from __future__ import annotations

import asyncio
import contextlib
import re
from dataclasses import dataclass

CANARY = "wAnDeRiNgCaNaRy7731"  # in what is sent, and never in an error
DEADLINE = 15.0  # seconds for an answer: a replica that takes as long hangs


@dataclass(frozen=True)
class Answer:
    """What came until the server closed or, on a connection that is kept, one answer was whole."""

    raw: bytes
    closed: bool

    @property
    def status(self) -> int:
        """0 where the server closed without a word."""
        return int(self.raw[9:12]) if self.raw.startswith(b"HTTP/1.1 ") else 0

    @property
    def head(self) -> bytes:
        return self.raw.partition(b"\r\n\r\n")[0].lower()

    @property
    def count(self) -> int:
        return len(re.findall(rb"HTTP/1\.1 \d\d\d ", self.raw))

    def check(self) -> None:
        """What holds for every answer, whatever it is to."""
        if not self.status:
            assert not self.raw, self.raw[:200]
            return
        assert self.status < 500, self.raw
        assert b"\r\nx-replica: replica1" in self.head, self.raw
        if self.status >= 400:
            assert CANARY.encode() not in self.raw, self.raw
            body = self.raw.partition(b"\r\n\r\n")[2]
            # None to a HEAD; what Starlette says of a Range it cannot read is text.
            assert not body or body.startswith(b'{"detail":') or b"range" in body.lower(), self.raw


def request(line: bytes, *headers: bytes, body: bytes = b"", keep: bool = False) -> bytes:
    """A request with a Host, after which the server closes."""
    head = [line, b"Host: x", *([] if keep else [b"Connection: close"]), *headers]
    return b"\r\n".join([*head, b"", b""]) + body


def message(body: bytes, *headers: bytes, chat: bytes = b"bodies", length: int | None = None) -> bytes:
    """A chat message with this body, whatever its Content-Length says."""
    about = (b"Content-Type: application/json", b"Content-Length: %d" % (len(body) if length is None else length))
    return request(b"POST /api/v1/chat/" + chat + b" HTTP/1.1", *about, *headers, body=body)


async def ask(port: int, data: bytes, *, end: bool = False, expect: int = 1) -> Answer:
    """Send and read. `end`: say that nothing follows. `expect`: that many answers, if the connection is kept."""
    async with asyncio.timeout(DEADLINE):
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=2**24)
        raw, closed = b"", False
        try:
            # Reading and writing at once: who refuses a request early closes before all of it was sent.
            sending = asyncio.create_task(_send(writer, data, end))
            with contextlib.suppress(ConnectionError):
                while not (closed := not (piece := await reader.read(2**18))):
                    raw += piece
                    if _whole(raw, expect):
                        break
            sending.cancel()
        finally:
            writer.close()
        return Answer(raw.removeprefix(b"HTTP/1.1 100 Continue\r\n\r\n"), closed)


async def _send(writer: asyncio.StreamWriter, data: bytes, end: bool) -> None:
    with contextlib.suppress(ConnectionError):
        writer.write(data)
        await writer.drain()
        if end:
            writer.write_eof()


def _whole(raw: bytes, expect: int) -> bool:
    """Whether a connection that the server keeps has said all: told by the length of the last answer."""
    head, blank, body = raw[raw.rfind(b"HTTP/1.1 ") :].partition(b"\r\n\r\n")
    if not blank or b"connection: close" in head.lower() or len(re.findall(rb"HTTP/1\.1 \d\d\d ", raw)) < expect:
        return False
    length = re.search(rb"content-length: (\d+)", head.lower())
    return len(body) >= int(length[1]) if length else body.endswith(b"0\r\n\r\n")


async def ask_all(port: int, requests: list[bytes], at_once: int = 20) -> list[Answer]:
    """Each on a connection of its own. Every answer is checked."""
    gate = asyncio.Semaphore(at_once)

    async def one(data: bytes) -> Answer:
        async with gate:
            try:
                answer = await ask(port, data)
            except TimeoutError:
                raise AssertionError(f"no answer in {DEADLINE} s to {data[:200]!r}") from None
        try:
            answer.check()
        except AssertionError as error:
            error.add_note(f"the request was {data[:500]!r}")
            raise
        return answer

    return list(await asyncio.gather(*map(one, requests)))
