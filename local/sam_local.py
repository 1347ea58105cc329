"""`make sam-invoke`: `sam local invoke` of each function with its events, in Docker, on a real Redis.

The exit status of `sam local invoke` says nothing, so what it prints is looked at.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from local.errors import CannotStart
from local.processes import say
from local.sam_template import ADAPTER, BUILT, ROOT, write_local_template

EVENTS = ROOT / "local" / "events"
REDIS = "redis:7-alpine"
ARCHITECTURE = {"aarch64": "arm64", "arm64": "arm64"}.get(platform.machine(), "x86_64")
Check = Callable[[str], bool]


def _streams(*wanted: str) -> Check:
    return lambda said: all(text in said for text in wanted)


def _answers(code: int, **wanted: Any) -> Check:
    """An answer to API Gateway with that status code, whose body says at least this."""

    def check(said: str) -> bool:
        answer = json.loads(said)
        body = json.loads(answer["body"])
        return bool(answer["statusCode"] == code and body.items() >= wanted.items())

    return check


def _serves(kind: str, wanted: str) -> Check:
    """A file of the page, as API Gateway can hand it on."""

    def check(said: str) -> bool:
        answer = json.loads(said)
        served = answer["statusCode"] == 200 and answer["headers"]["content-type"].startswith(kind)
        return bool(served and not answer["isBase64Encoded"] and wanted in answer["body"])

    return check


def _obeys(stops: int | None = None) -> Check:
    return lambda said: json.loads(said).keys() == {"stops"} and stops in (None, json.loads(said)["stops"])


# Every file of local/events, in the order in which they are sent: the list has the chat of the first.
EXPECTED: dict[str, Check] = {
    "chat_rest": _streams("data: ", "event: done", "data: [DONE]"),
    "chat_function_url": _streams("data: ", "event: done", "data: [DONE]"),
    "chat_direct": _streams("event: done"),
    "control_health": _answers(200, status="healthy", redis="connected"),
    "control_chats": _answers(200, next_cursor=None),
    "control_status": _answers(200, chat_id="trip-to-rome"),
    "control_messages": _answers(200, chat_id="trip-to-rome"),
    "control_stop": _answers(200, chat_id="trip-to-rome", status="idle"),
    "control_stop_bulk": _answers(200, total=2, successful=2, failed=0),
    "control_stop_all": _answers(200),
    "control_page": _serves("text/html", "<!doctype html>"),
    "control_page_icon": _serves("image/svg+xml", "<svg"),
    "control_sign_in": _answers(200, **{"with": "cognito", "client_id": "1example23456789"}),
    "control_delete": _answers(404, detail="There is no such chat."),  # chats lie in the other function's container
    "control_eventbridge_stop": _obeys(2),
    "control_eventbridge_stop_all": _obeys(0),
    "control_sns_stop": _obeys(1),
    "control_sns_alarm": _obeys(0),
    "control_sns_alarm_over": _obeys(0),
    "control_sns_budget": _obeys(0),
}


class SamLocal:
    """One network, one Redis, one template; each call a container of its own."""

    def __init__(self, directory: Path, network: str) -> None:
        self._directory, self._network = directory, network

    def invoke(self, event: dict[str, Any], function: str, *, log: Path) -> str:
        """What the function answers; what it logs goes to `log`. Raises: CannotStart where it is not run at all."""
        with tempfile.NamedTemporaryFile("w", suffix=".json") as file, log.open("w", encoding="utf-8") as errors:
            json.dump(event, file)
            file.flush()
            done = subprocess.run(
                [
                    *(ROOT / ".venv-sam/bin/sam", "local", "invoke", function, "--event", file.name),
                    *("--template", self._directory / "template.json"),
                    *("--layer-cache-basedir", self._directory / "layers"),
                    *("--docker-network", self._network, "--skip-pull-image"),
                ],
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                errors="replace",
                env=os.environ | {"SAM_CLI_TELEMETRY": "0", "AWS_DEFAULT_REGION": "us-west-2"},
                check=False,
            )
        if done.returncode:
            raise CannotStart(f"sam local invoke {function}: {log.read_text(errors='replace').strip()[-2000:]}")
        return done.stdout


def function_of(name: str) -> str:
    """Whose event a file of local/events is."""
    return {"chat": "ChatFunction", "control": "ControlFunction"}[name.partition("_")[0]]


def now(event: dict[str, Any]) -> dict[str, Any]:
    """The event as if it came now. A stop that comes late means only what had come before it."""
    at = datetime.now(UTC)
    context = event.get("requestContext", {})
    for name in {"requestTimeEpoch", "timeEpoch"} & context.keys():
        context[name] = int(at.timestamp() * 1000)
    if "time" in event:
        event["time"] = at.isoformat(timespec="seconds").replace("+00:00", "Z")
    for record in event.get("Records", ()):
        record["Sns"]["Timestamp"] = at.isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return event


def sample(name: str) -> dict[str, Any]:
    """An event of local/events, as if it came now."""
    found: dict[str, Any] = json.loads((EVENTS / f"{name}.json").read_text(encoding="utf-8"))
    return now(found)


def docker(*arguments: str) -> str:
    """What docker prints. Raises: CannotStart with what it complains of."""
    done = subprocess.run(["docker", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise CannotStart(f"docker {arguments[0]}: {done.stderr.strip()}")
    return done.stdout.strip()


@contextmanager
def network_with_redis() -> Iterator[tuple[str, str]]:
    """A network of our own and the Redis in it, by their names; both are gone afterwards."""
    network = f"haltline-sam-{os.getpid()}"
    docker("network", "create", network)
    try:
        redis = docker("run", "--detach", "--rm", "--network", network, "--network-alias", "redis", REDIS)
        try:
            yield network, redis
        finally:
            docker("rm", "--force", redis)
    finally:
        docker("network", "rm", network)


@contextmanager
def images_removed() -> Iterator[None]:
    """`sam local` makes an image for each set of layers and keeps it; ours are of no use to another run."""
    listed = ("images", "--format", "{{.Repository}}:{{.Tag}}", "samcli/lambda-python")
    before = set(docker(*listed).split())
    try:
        yield
    finally:
        if ours := set(docker(*listed).split()) - before:
            docker("image", "rm", *ours)


def try_events(sam: SamLocal, names: list[str], logs: Path) -> list[str]:
    """Send each, look at the answer, say so. Those whose answer was another."""
    failed = []
    for name in names:
        begun = time.monotonic()
        said = sam.invoke(sample(name), function_of(name), log=logs / f"{name}.log")
        try:
            good = EXPECTED[name](said)
        except (ValueError, KeyError, TypeError):
            good = False
        say(f"{'ok  ' if good else 'FAIL'} {function_of(name)} {name}.json, {time.monotonic() - begun:.1f} s")
        if not good:
            failed.append(name)
            say(f"     {said.strip()[-2000:] or 'nothing was answered'}\n     its log: {logs / name}.log")
    return failed


def try_a_stop(sam: SamLocal, redis: str, logs: Path) -> bool:
    """A run of two minutes in one container, stopped by the control function in another."""
    chat = sample("chat_rest")
    answer: dict[str, str] = {}
    script = {"chunks": ["word "], "repeat": 1200, "pace_ms": 100}
    chat["body"] = json.dumps({"message": f"/script {json.dumps(script)}"})
    run = threading.Thread(
        target=lambda: answer.update(said=sam.invoke(chat, "ChatFunction", log=logs / "live_chat.log"))
    )
    run.start()
    deadline = time.monotonic() + 60
    while "trip-to-rome" not in docker("exec", redis, "redis-cli", "hkeys", "live:{chats}"):
        if time.monotonic() > deadline or not run.is_alive():
            say(f"FAIL no run became live; its log: {logs}/live_chat.log")
            return False
        time.sleep(0.2)
    stop = sample("control_stop")
    said = sam.invoke(stop, "ControlFunction", log=logs / "live_stop.log")
    run.join()
    good = _answers(200, status="stopped")(said) and _streams("event: stopped", "data: [STOPPED]")(answer["said"])
    say(f"{'ok  ' if good else 'FAIL'} a live run in one container, stopped from another: {json.loads(said)['body']}")
    if not good:
        say(f"     {answer['said'].strip()[-500:]}\n     the logs: {logs}/live_*.log")
    return good


def main() -> int:
    """Exit status 0 where every answer was right."""
    parser = argparse.ArgumentParser(prog="python -m local.sam_local", description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "names", nargs="*", help="files of local/events, without .json; all, and a live stop, by default"
    )
    names = parser.parse_args().names
    logs = ROOT / "build" / "sam-local"
    try:
        _check(names)
        write_local_template(logs, ARCHITECTURE)
        with images_removed(), network_with_redis() as (network, redis):
            sam = SamLocal(logs, network)
            failed = try_events(sam, names or list(EXPECTED), logs)
            if not names and not try_a_stop(sam, redis, logs):
                failed.append("the live stop")
    except CannotStart as error:
        return error.tell()
    if failed:
        say(f"haltline: {len(failed)} failed: {', '.join(failed)}")
    return 1 if failed else 0


def _check(names: list[str]) -> None:
    for name in set(names) - EXPECTED.keys():
        raise CannotStart(f"local/events has no {name}.json")
    for path in (ADAPTER, BUILT / "dependencies"):
        if not path.exists():
            raise CannotStart(f"{path.relative_to(ROOT)} is not there; `make sam-invoke` makes it")


if __name__ == "__main__":
    sys.exit(main())
