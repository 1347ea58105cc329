"""What one would write without Haltline: a Strands agent with its stock BedrockModel, streamed by FastAPI.

The same server, event loop, collector and agent as a replica has; as many threads and connections as there are chats.
It keeps no history and cannot be stopped.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager

import boto3
import uvicorn
from botocore.config import Config
from fastapi import FastAPI
from fastapi.responses import StreamingResponse
from loguru import logger
from pydantic import BaseModel
from strands.models import BedrockModel, Model

from haltline.default_agent import make_agent
from haltline.edge import Edge
from haltline.serve import Collector

CHATS = 2000  # at once, at the most


class Message(BaseModel):
    """The body of a request."""

    message: str


def make_app(model: Model) -> FastAPI:
    """The application over a model."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(CHATS))
        yield

    app = FastAPI(lifespan=lifespan)

    @app.post("/api/v1/chat/{chat_id}")
    async def chat(chat_id: str, body: Message) -> StreamingResponse:
        async def frames() -> AsyncIterator[str]:
            async for event in make_agent(model).stream_async(body.message):
                if "data" in event:
                    yield f"data: {event['data']}\n\n"
            yield "event: done\ndata: [DONE]\n\n"

        return StreamingResponse(frames(), media_type="text/event-stream")

    @app.get("/live")
    async def live() -> dict[str, str]:
        return {"status": "live"}

    app.add_middleware(Edge, replica="bare")
    return app


if __name__ == "__main__":
    logger.remove()  # a replica under LOG_LEVEL=WARNING is as quiet
    config = Config(max_pool_connections=CHATS)
    bedrock = BedrockModel(boto_session=boto3.Session(), boto_client_config=config, model_id="fake.model")
    application = make_app(bedrock)
    Collector(lambda: 1)
    uvicorn.run(
        application, port=int(os.environ["PORT"]), log_config=None, access_log=False, server_header=False, loop="auto"
    )
