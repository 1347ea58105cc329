"""A server that answers as a whole: no reset in place of an answer, no answer to another request, no wait for all."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import hashlib
import http.client
import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.contract.client import chat_url, http_client, new_chat, say, script
from tests.faults.conftest import FULL
from tests.faults.raw_http import ask, request
from tests.stack import Replica, Stack, running_stack

pytestmark = pytest.mark.skipif(not FULL, reason="in the long round")


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with running_stack(Path(tmp_path_factory.mktemp("review")), 1) as stack:
        yield stack


@pytest.fixture
def replica(stack: Stack) -> Replica:
    return stack.replicas[0]


def test_who_sends_all_of_a_large_body_before_reading_is_told_413(replica: Replica) -> None:
    """As urllib does, and what is built on it: a connection that is reset under it hides the answer."""
    body = json.dumps({"message": "x" * 8 * 2**20})
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", replica.port, timeout=20)) as client:
        client.request("POST", "/api/v1/chat/large", body, {"content-type": "application/json"})
        assert client.getresponse().status == 413


async def test_a_pipelined_request_that_cannot_be_read_answers_for_no_other(replica: Replica) -> None:
    stop = request(b"POST /api/v1/stop/first HTTP/1.1", b"Content-Length: 0", keep=True)
    answer = await ask(replica.port, stop + request(b"GET http://[bad HTTP/1.1"))
    assert answer.status in (0, 200), answer.raw


async def test_a_lock_that_a_frozen_replica_holds_costs_one_chat_and_not_all(stack: Stack, replica: Replica) -> None:
    def lock_of(chat: str) -> str:
        return hashlib.sha256(chat.encode()).hexdigest()[:2]

    frozen = new_chat()
    same = [chat for n in range(20_000) if lock_of(chat := f"same-{n}") == lock_of(frozen)][:45]
    async with http_client() as http, asyncio.TaskGroup() as group:
        with (stack.session_dir / ".locks" / lock_of(frozen)).open("ab") as held:
            fcntl.flock(held, fcntl.LOCK_EX)
            waiting = [group.create_task(say(http, replica, chat, script(chunks=["hi"]))) for chat in (frozen, *same)]
            await asyncio.sleep(1)
            began = time.monotonic()
            try:
                async with asyncio.timeout(10):
                    assert (await http.get(chat_url(replica, "another"))).status_code == 200
                    told = await waiting[0]
                assert told.closing[0][0] == "error"
            finally:
                print(f"{time.monotonic() - began:.1f} s")
                fcntl.flock(held, fcntl.LOCK_UN)
