"""The examples that README.md points to do what it says, against real replicas."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest
from ulid import ULID

from haltline.chats import FileChatStore
from tests.stack import ROOT, Replica, Stack

NODE = shutil.which("node")
needs_node = pytest.mark.skipif(NODE is None, reason="node is not installed; the snippet is also for browsers")


def new_chat() -> str:
    return f"example-{ULID()}".lower()


def script(**directive: Any) -> str:
    return "/script " + json.dumps(directive)


def node(*arguments: str) -> subprocess.CompletedProcess[str]:
    assert NODE is not None
    ended = subprocess.run([NODE, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=30)
    assert ended.returncode == 0, ended.stderr
    return ended


def read_stream(replica: Replica, chat: str, message: str, *more: str) -> subprocess.CompletedProcess[str]:
    return node("examples/read_stream.mjs", "--url", replica.url, "--chat", chat, *more, message)


# ---- examples/read_stream.mjs
@needs_node
def test_the_snippet_reads_the_text_exactly(stack: Stack) -> None:
    chunks = ["two\n\nbreaks, ", "  spaces ahead, ", "[DONE] said, ", "data: too, ", "naïve 日本語 👩‍👩‍👧", "\n"]
    ended = read_stream(stack.replicas[0], new_chat(), script(chunks=chunks, pace_ms=5))
    assert ended.stdout == "".join(chunks) + "\n"
    assert ended.stderr == "done: [DONE]\n"


@needs_node
def test_the_snippet_stops_a_run_and_is_told_so(stack: Stack) -> None:
    chat = new_chat()
    message = script(chunks=["tick "], repeat=1000, pace_ms=20)
    ended = read_stream(stack.replicas[0], chat, message, "--stop-after", "0.5")
    answer = next(json.loads(line) for line in ended.stderr.splitlines() if line.startswith("{"))
    assert answer["status"] == "stopped"
    assert "stopped: [STOPPED]" in ended.stderr
    kept = httpx.get(f"{stack.replicas[1].url}/api/v1/chat/{chat}/messages").json()["messages"]
    assert kept[-1].items() >= {"role": "assistant", "text": ended.stdout[:-1], "stopped": True}.items()


@needs_node
def test_a_run_id_of_the_snippet_is_one_that_the_server_takes(stack: Stack) -> None:
    made = node(
        "--input-type=module", "-e", 'import("./examples/read_stream.mjs").then(m => console.log(m.newRunId()))'
    )
    run_id = made.stdout.strip()
    assert abs(ULID.from_str(run_id).timestamp - ULID().timestamp) < 60
    url = f"{stack.replicas[0].url}/api/v1/stop/{new_chat()}"
    assert httpx.post(url, params={"run_id": run_id}).status_code == 200


@needs_node
def test_the_lines_in_the_readme_work(stack: Stack) -> None:
    lines = re.search(r"```js\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert lines is not None
    assert "http://127.0.0.1:8000" in lines[1]
    ended = node("--input-type=module", "-e", lines[1].replace("http://127.0.0.1:8000", stack.replicas[0].url))
    assert re.search(r"status: 'stopped'", ended.stdout)
    assert re.search(r"event: 'stopped'", ended.stdout)


# ---- examples/my_agent.py
@pytest.fixture(scope="module")
def own_agent(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Replica]:
    """One more replica of the stack, with the example as its agent."""
    beside = Stack(stack.redis_url, stack.session_dir, Path(tmp_path_factory.mktemp("own-agent")), stack.valkey)
    replica = beside.add_replica(AGENT="examples.my_agent:make_agent", REPLICA_NAME="own-agent")
    try:
        replica.wait_until_live()
        yield replica
    finally:
        replica.end()


def say(replica: Replica, chat: str, **directive: Any) -> str:
    url = f"{replica.url}/api/v1/chat/{chat}"
    return httpx.post(url, json={"message": script(**directive)}, timeout=20).text


async def test_notes_are_kept_with_their_chat(stack: Stack, own_agent: Replica) -> None:
    chat = new_chat()
    for note in ("milk", "bread"):
        answer = say(own_agent, chat, tool={"name": "write_note", "input": {"text": note}}, text="Noted.")
        assert answer.endswith("event: done\ndata: [DONE]\n\n")
    say(own_agent, chat, tool={"name": "read_notes", "input": {}}, text="There.")
    document = await FileChatStore(stack.session_dir).load(chat)
    assert document.snapshot is not None
    history = json.dumps(json.loads(document.snapshot)["data"]["messages"])
    assert f"Note 2 of chat {chat} is written down." in history
    assert r"milk\nbread" in history


def test_a_tool_of_the_agent_is_stopped_while_it_waits(stack: Stack, own_agent: Replica) -> None:
    chat = new_chat()
    message = script(tool={"name": "wait", "input": {"seconds": 60}}, text="never said")
    with httpx.stream("POST", f"{own_agent.url}/api/v1/chat/{chat}", json={"message": message}, timeout=20) as response:
        answer = httpx.post(f"{stack.replicas[1].url}/api/v1/stop/{chat}", params={"wait": 5}, timeout=20).json()
        assert (answer["status"], answer["run_id"]) == ("stopped", response.headers["x-run-id"])
        assert response.read() == b"event: stopped\ndata: [STOPPED]\n\n"
