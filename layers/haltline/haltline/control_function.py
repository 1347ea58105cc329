"""The control function: the app without chat, behind API Gateway by Mangum; and stops that come as events.

Everything lives on one event loop, which stands still with the function between two invocations. Nothing connects
before the first of them: what the init leaves may be a snapshot (SnapStart) that many environments start from.
"""

from __future__ import annotations

import asyncio
import os
import random
import ssl
import time
from typing import Any

from mangum import Mangum
from mangum.adapter import DEFAULT_TEXT_MIME_TYPES
from snapshot_restore_py import register_after_restore, register_before_snapshot

from haltline import cache_auth
from haltline.app import make_app
from haltline.bootstrap import make_resources, start_logging
from haltline.chats_s3 import S3ChatStore
from haltline.lambda_door import rest, thaw
from haltline.lambda_telemetry import powertools_logger
from haltline.settings import load_settings


class ControlFunction:
    """The handler."""

    def __init__(self) -> None:
        settings = load_settings()
        start_logging(settings)
        self._loop = asyncio.new_event_loop()
        asyncio.set_event_loop(self._loop)  # Mangum runs the app on the current one
        self._resources = make_resources(settings, serves_chat=False)
        self._app = make_app(self._resources)
        # API Gateway would hand on base64 as it is.
        self._http = Mangum(self._app, lifespan="off", text_mime_types=[*DEFAULT_TEXT_MIME_TYPES, "image/svg+xml"])
        self._entered = False
        self._handle = powertools_logger(settings).inject_lambda_context(self._answer)
        register_before_snapshot(self.prepare)
        register_after_restore(self.restored)

    def __call__(self, event: dict[str, Any], context: Any) -> Any:
        """Answer an API Gateway event as HTTP, any other as what became of the stop that it asks for."""
        return self._handle(event, context)

    def _answer(self, event: dict[str, Any], context: Any) -> Any:
        if not self._entered:
            self._loop.run_until_complete(self._resources.bus.__aenter__())
            self._entered, self._resources.at_rest_since = True, time.time()
        if "httpMethod" in event:
            return self._http(event, context)
        return self._loop.run_until_complete(self._obey(event))

    async def _obey(self, event: dict[str, Any]) -> dict[str, int]:
        from haltline.stop_events import obey

        thaw(self._resources)
        try:
            return await obey(self._resources, event)
        finally:
            rest(self._resources)

    def prepare(self) -> None:
        """Before a snapshot: load what the first calls would have to, without a connection or a credential."""
        import haltline.stop_events  # noqa: F401 - Powertools' parser takes a while

        if self._resources.settings.redis_auth == "iam":
            cache_auth.prepare()
        if isinstance(self._resources.store, S3ChatStore):
            self._resources.store.warm()
        self._app.openapi()

    def restored(self) -> None:
        """After a snapshot was restored: randomness of this environment's own. Its bus is not yet entered."""
        random.seed()
        ssl.RAND_add(os.urandom(32), 32)
