"""The hostile client, a process of its own: `python -m tests.faults.flood ADDRESS CONNECTIONS PORT...`.

Does what each line of its input says, on all of its connections at once, and answers with a line of JSON: the seconds
that took, and how often it was answered with which status. A line is one of

    stop N CHAT [QUERY]    N stops; a {n} in CHAT is the number of the stop
    bulk N CHAT [QUERY]    N calls that stop 1,000 chats each

An address of 127.0.0.0/8 other than 127.0.0.1 makes it another client than the rest of the test.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import uvloop

CHATS = 1000  # of one bulk


@dataclass
class Flood:
    """What one line asks for. Connections share the requests."""

    requests: Iterator[bytes]
    statuses: Counter[str] = field(default_factory=Counter)

    async def on(self, address: str, port: int) -> None:
        """One connection: the next request as soon as the last is answered."""
        reader, writer = await asyncio.open_connection("127.0.0.1", port, local_addr=(address, 0))
        try:
            for request in self.requests:
                writer.write(request)
                head = await reader.readuntil(b"\r\n\r\n")
                length = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
                await reader.readexactly(int(length.partition(b":")[2]))
                self.statuses[head[9:12].decode()] += 1
        finally:
            writer.close()


def requests(kind: str, count: int, chat: str, query: str) -> Iterator[bytes]:
    """Those of a line."""
    for n in range(count):
        if kind == "stop":
            yield _post(f"{chat.format(n=n)}{query}", b"")
        else:
            ids = [chat.format(n=n * CHATS + i) for i in range(CHATS)]
            yield _post(f"bulk{query}", json.dumps({"chat_ids": ids}).encode())


def _post(path: str, body: bytes) -> bytes:
    head = f"POST /api/v1/stop/{path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


async def main(address: str, connections: int, ports: list[int]) -> None:
    """Until its input ends."""
    print("ready", flush=True)
    while line := await asyncio.to_thread(sys.stdin.readline):
        kind, count, chat, *query = line.split()
        flood, since = Flood(requests(kind, int(count), chat, "".join(query))), time.monotonic()
        async with asyncio.TaskGroup() as group:
            for port in itertools.islice(itertools.cycle(ports), connections):
                group.create_task(flood.on(address, port))
        print(json.dumps({"seconds": time.monotonic() - since, "statuses": flood.statuses}), flush=True)


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1], int(sys.argv[2]), [int(port) for port in sys.argv[3:]]))
