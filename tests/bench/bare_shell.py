"""The least that a stop over HTTP and Redis takes: a POST publishes, whoever streams the chat hears it and says so.

No model, no agent, no chat at rest, and nothing is stored: a stop that is not heard is lost. The caller names the
replica that streams the chat (it is what the chat's id begins with), so that a stop wakes no other. Each stream gets a
frame of text 20 times a second.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Response

from haltline import sse
from haltline.events import Stopped, Text
from haltline.redis_connection import connect

PACE = 0.05  # seconds between two frames


def make(name: str, redis_url: str, _: Path) -> FastAPI:
    """One replica, which hears its name's channel."""
    redis, listener, live = connect(redis_url), connect(redis_url, timeout=None), dict[str, asyncio.Event]()

    async def hear() -> None:
        async with listener.pubsub() as pubsub:
            await pubsub.subscribe(name)
            while True:
                message = await pubsub.get_message(timeout=None)
                if message and message["type"] == "message":
                    live[message["data"]].set()

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        hearing = asyncio.create_task(hear())
        yield
        hearing.cancel()

    app = FastAPI(lifespan=lifespan)

    @app.get("/health")
    async def health() -> dict[str, int]:
        return {"live_runs": len(live)}

    @app.post("/api/v1/chat/{chat_id}", response_class=Response)
    async def chat(chat_id: str) -> Response:
        return Ticking(chat_id, live)

    @app.post("/api/v1/stop/{chat_id}")
    async def stop(chat_id: str) -> dict[str, str]:
        await redis.publish(chat_id.partition("-")[0], chat_id)
        return {"status": "accepted"}

    return app


class Ticking(Response):
    """Frames of text until the stop or until the client leaves."""

    def __init__(self, chat_id: str, live: dict[str, asyncio.Event]) -> None:
        super().__init__(headers={**sse.HEADERS, "connection": "close"})
        del self.headers["content-length"]
        self._chat_id, self._live = chat_id, live

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Stream."""
        encoder, stopped = sse.Encoder(), asyncio.Event()
        self._live[self._chat_id] = stopped

        async def leaving() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass
            stopped.set()

        left = asyncio.create_task(leaving())
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        while not stopped.is_set():
            await send({"type": "http.response.body", "body": encoder.encode(Text("tick ")), "more_body": True})
            with suppress(TimeoutError):
                async with asyncio.timeout(PACE):
                    await stopped.wait()
        del self._live[self._chat_id]
        await send({"type": "http.response.body", "body": encoder.encode(Stopped()), "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})
        left.cancel()
