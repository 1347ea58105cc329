"""`create_app`: the FastAPI application, the same in a container, on a laptop and on Lambda."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import JSONResponse
from loguru import logger

from haltline import __version__, control_routes
from haltline.bootstrap import check_bucket, make_resources, start_logging
from haltline.chats import ChatStoreError
from haltline.edge import Edge
from haltline.gate import Gate
from haltline.inputs import ResourcesOf
from haltline.lambda_door import LambdaDoor
from haltline.openapi import Health, describe_sign_in
from haltline.page_routes import add_page_routes
from haltline.principals import LimitReached
from haltline.resources import Resources
from haltline.runner import Draining
from haltline.settings import SettingsError, exit_with, load_settings, on_lambda
from haltline.signals import BusUnavailable
from haltline.taking import ChatBusy, RunIdUsed

THREADS = 200
PING_TIMEOUT = 0.8  # seconds: a load balancer is told the truth within one


def create_app() -> FastAPI:
    """Make the application of the settings, for `uvicorn --factory` and `python -m haltline`.

    A setting that cannot be used ends the process with one line on stderr and status 2.
    """
    settings = load_settings()
    start_logging(settings)
    try:
        resources = make_resources(settings)
        if not on_lambda():  # where every cold start would wait for it
            check_bucket(resources)
        return make_app(resources)
    except SettingsError as error:
        exit_with(str(error))


def make_app(resources: Resources) -> FastAPI:
    """Make the application over what it holds. Chat is served where there are `resources.runs`."""
    app = FastAPI(
        title="Haltline",
        version=__version__,
        summary="The agent chat that stops.",
        lifespan=_lifespan,
        redirect_slashes=False,
        docs_url=None,  # both take scripts from a third party; `page_routes` has the first
        redoc_url=None,
    )
    app.state.resources = resources
    app.include_router(control_routes.router)
    if resources.runs is not None:
        from haltline import chat_routes  # the control function has no use for it

        app.include_router(chat_routes.router)
        if on_lambda():
            app.include_router(chat_routes.invoked_router)
    _add_service_routes(app)
    add_page_routes(app)
    describe_sign_in(app, resources.settings.auth)
    _add_error_answers(app)
    app.add_middleware(Gate, resources=resources)
    if origins := resources.settings.allowed_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=origins,
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["Authorization", "Content-Type"],
            expose_headers=["X-Run-Id", "X-Replica", "Retry-After"],
        )
    app.add_middleware(Edge, replica=resources.settings.replica_name)
    if on_lambda():
        app.add_middleware(LambdaDoor, resources=resources)
    return app


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    resources: Resources = app.state.resources
    # Strands calls plain tools in threads, and a stopped one keeps its thread until it ends by itself:
    # with asyncio's few a handful of them would hold up every other run.
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(THREADS, "agent"))
    async with resources.bus:
        yield
        if resources.runs is not None:  # runs whose client has left may go on; they need the bus to end
            await resources.runs.drain(resources.settings.shutdown_grace)


def _add_service_routes(app: FastAPI) -> None:
    told: Any = {"tags": ["service"], "response_model_exclude_none": True, "responses": {503: {"model": Health}}}

    @app.get("/health", summary="Whether stops can be delivered", **told)
    @app.get("/api/v1/health", summary="The same", **told)
    async def health(resources: ResourcesOf, response: Response) -> Health:
        """503 while the signal bus cannot be reached, or takes no stop."""
        try:
            async with asyncio.timeout(PING_TIMEOUT):
                await resources.bus.check()
            connected = True
        except (BusUnavailable, TimeoutError):
            connected = False
            response.status_code = 503
        settings = resources.settings
        return Health(
            status="healthy" if connected else "degraded",
            redis="connected" if connected else "disconnected",
            replica=settings.replica_name,
            version=__version__,
            model=settings.bedrock_model_id if settings.model_provider == "bedrock" else settings.model_provider,
            # It needs no credential, and who runs what is nobody else's affair.
            live_runs=None if settings.auth != "none" else resources.runs.live_count if resources.runs else 0,
        )

    @app.get("/live", tags=["service"], summary="Whether the process serves")
    async def live() -> dict[str, str]:
        """200 with or without the signal bus."""
        return {"status": "live"}

    @app.get("/metrics", tags=["service"], summary="Prometheus metrics", response_class=Response)
    async def metrics(resources: ResourcesOf) -> Response:
        """Of this replica."""
        return Response(resources.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


def _add_error_answers(app: FastAPI) -> None:
    def answer(kind: type[Exception], status: int, detail: str, headers: dict[str, str] | None = None) -> None:
        async def handler(_: Request, error: Exception) -> JSONResponse:
            if status >= 500:
                logger.warning("error=<{}: {}> | answered {}", type(error).__name__, error, status)
            return JSONResponse({"detail": detail.format(error)}, status, headers)

        app.add_exception_handler(kind, handler)

    again = {"Retry-After": "1"}
    answer(ChatBusy, 409, "The chat has a live run. Stop it first, or send with ?if_running=stop.")
    answer(RunIdUsed, 409, "This run_id names a run that has ended. Make a new one for each message.")
    app.add_exception_handler(LimitReached, _say_the_limit)
    answer(BusUnavailable, 503, "The signal bus (Redis) cannot be reached. Nothing was done; try again.", again)
    answer(ChatStoreError, 503, "The session store failed: {}.", again)
    answer(Draining, 503, "This replica is shutting down. Try again.", again)
    app.add_exception_handler(RequestValidationError, _say_what_is_wrong)


async def _say_the_limit(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, LimitReached)  # noqa: S101 - registered for nothing else
    return JSONResponse({"detail": str(error)}, 429, {"Retry-After": str(error.retry_after)})


async def _say_what_is_wrong(_: Request, error: Exception) -> JSONResponse:
    """422 without the input: it may be unprintable, and an error never repeats what was sent."""
    assert isinstance(error, RequestValidationError)  # noqa: S101 - registered for nothing else
    detail = [
        {"loc": list(e["loc"]), "msg": str(e["msg"]).removeprefix("Value error, "), "type": e["type"]}
        for e in error.errors()[:20]
    ]
    return JSONResponse({"detail": detail}, 422)
