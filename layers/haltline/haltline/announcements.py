"""The end of each run, told to EventBridge: what became of it, never what was said.

Source: https://docs.aws.amazon.com/eventbridge/latest/APIReference/API_PutEvents.html
"""

from __future__ import annotations

import asyncio
import json
from typing import Any

from anyio import CapacityLimiter, to_thread
from loguru import logger

from haltline.aws import Client
from haltline.metrics import Metrics
from haltline.principals import split
from haltline.runs import Outcome, Receipt, Usage

LIMIT = 2.0  # seconds that an event may take in all
AT_ONCE = 16  # events under way together: a dead EventBridge must not take the threads that chats are saved in
_TYPES = {Outcome.DONE: "RunFinished", Outcome.STOPPED: "RunStopped"}


class Announcements:
    """Where runs' ends go. An event that got no answer is sent again, so it may come twice: `run_id` tells."""

    def __init__(self, bus_name: str, region: str, replica: str, metrics: Metrics) -> None:
        self._bus_name, self._replica, self._metrics = bus_name, replica, metrics
        self._events = Client("events", region, connect=1, read=1, attempts=2, connections=AT_ONCE)
        self._threads = CapacityLimiter(AT_ONCE)

    async def run_ended(self, chat_id: str, receipt: Receipt, usage: Usage, duration_ms: int) -> None:
        """Send one event; return within LIMIT. One that may be lost is counted and logged, and nothing is raised.

        `chat_id`: the scoped one. The event has the client's, and whose it is.
        """
        principal, clients_id = split(chat_id)
        detail = {
            "chat_id": clients_id,
            "principal": principal or None,
            "run_id": receipt.run_id,
            "outcome": receipt.outcome.value,
            "reason": receipt.reason.value if receipt.reason else None,
            "halted_ms": receipt.halted_ms,
            "upstream_closed_ms": receipt.upstream_closed_ms,
            "saved": receipt.saved,
            "replica": self._replica,
            "duration_ms": duration_ms,
            "tokens": {"input": usage.input_tokens, "output": usage.output_tokens, "estimated": usage.estimated},
        }
        entry = {
            "Source": "haltline",
            "DetailType": "RunFailed" if receipt.failed else _TYPES[receipt.outcome],
            "Detail": json.dumps(detail),
            "EventBusName": self._bus_name,
        }
        try:
            async with asyncio.timeout(LIMIT):
                await to_thread.run_sync(self._put, entry, abandon_on_cancel=True, limiter=self._threads)
        except Exception as error:
            self._metrics.event_lost()
            logger.warning(
                "chat_id=<{}> run_id=<{}> error=<{}: {}> | the run's end may not have been announced",
                *(chat_id, receipt.run_id, type(error).__name__, error),
            )

    def _put(self, entry: dict[str, Any]) -> None:
        answer = self._events.get().put_events(Entries=[entry])
        if answer["FailedEntryCount"]:
            raise RuntimeError(str(answer["Entries"][0].get("ErrorCode")))
