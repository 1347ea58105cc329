"""The Compose stack, told what only this machine knows: `make start`, `make up` and `make health`.

Run by the machine's own Python from the project's root, before anything is installed: nothing but the standard library.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from local.errors import CannotStart
from local.host import AWS_VARIABLES, aws_directory, choose_model, container_user, own_sessions
from local.processes import say

REPLICAS = ("backend1", "backend2", "backend3")
OWN_MODELS = ("local-model", "fake-bedrock")  # services, each behind a profile of its name
OLDEST = (2, 24)  # of Compose: the first to know `env_file: required`
LISTS_WHOLE = "whole:{chats}"  # haltline.chat_index: without it the next page reads the store again
# Makes the whole application, which connects to nothing: a wrong setting ends it with one line and status 2.
TRY_SETTINGS = "from haltline.app import create_app; create_app()"
HEALTH = (
    "import urllib.error, urllib.request as u\n"
    "try: print(u.urlopen('http://127.0.0.1:8000/health', timeout=3).read().decode())\n"
    "except urllib.error.HTTPError as error: print(error.read().decode())"
)


# ---- commands
def up(asked: str, *, build: bool, again: bool) -> None:
    """Start what is not running, wait until all of it is healthy, and say what runs where.

    What runs goes on running where the settings are wrong: they are tried first, in a container of their own.

    Args:
        asked: the model that was asked for, see `choose_model`.
        build: build the images first, even where there are some.
        again: where no model is asked for, ask for the one that was asked for last.
    """
    if again and not asked:
        asked = _asked_last()
    uid, gid = container_user()
    os.environ |= {"HALTLINE_UID": str(uid), "HALTLINE_GID": str(gid), "HALTLINE_MODEL": asked}
    file = _config()
    settings = {name: value for name, value in file["services"][REPLICAS[0]]["environment"].items() if value}
    directory, aws = aws_directory(os.environ.get("AWS_DIR") or settings.get("AWS_DIR", ""), uid)
    os.environ["AWS_DIR"] = directory
    variables = [name for name in AWS_VARIABLES if settings.get(name) and (directory or name != "AWS_PROFILE")]
    model = choose_model(asked, settings, f"{variables[0]} is set" if variables else aws)
    say(f"haltline: model: {model.words}")
    os.environ |= model.env
    own_sessions(uid, gid)
    _check_ports(file)
    profile = ["--profile", model.service] if model.service else []
    if build and compose(*profile, "build"):
        raise CannotStart("the images cannot be built")
    if status := compose("run", "--rm", "--no-deps", "-T", REPLICAS[0], "python", "-c", TRY_SETTINGS):
        raise CannotStart("", status)  # it has said why
    started = compose(*profile, "up", "--detach", "--wait", "--remove-orphans")
    idle = [service for service in OWN_MODELS if service != model.service]
    docker("compose", "--profile", "*", "rm", "--stop", "--force", *idle)
    if started:
        for service in ("redis", *([model.service] if model.service else []), *REPLICAS, "nginx"):
            compose("logs", "--no-log-prefix", "--tail", "3", service)
        raise CannotStart("the stack did not become healthy; `make logs` has the rest")
    # Another Redis may have served the files since this one's list of chats was made, as under `make run`.
    docker("compose", "exec", "-T", "redis", "redis-cli", "del", LISTS_WHOLE)
    say(f"haltline: Haltline serves {_url()} through Nginx, by {', '.join(REPLICAS)}. `make stop` ends it.")


def _asked_last() -> str:
    return docker("inspect", "--format", '{{index .Config.Labels "haltline.model"}}', REPLICAS[0]).stdout.strip()


def _check_ports(file: dict[str, Any]) -> None:
    """Raises: CannotStart where somebody else serves a port that is to be published."""
    for service, variable in (("nginx", "NGINX_PORT"), ("redis", "REDIS_PUBLISHED_PORT")):
        port = int(file["services"][service]["ports"][0]["published"])
        if not docker("compose", "ps", "--quiet", service).stdout and not _free(port):
            raise CannotStart(f"{variable}={port}: address already in use, choose another")


def _free(port: int) -> bool:
    with socket.socket() as probe:
        return bool(probe.connect_ex(("127.0.0.1", port)))


def health() -> int:
    """Print what each replica says of itself, and Nginx. Returns 1 where something is not healthy."""
    with ThreadPoolExecutor() as pool:
        rows = list(pool.map(_health_of, REPLICAS))
    try:
        with urllib.request.urlopen(f"{_url()}/live", timeout=5) as answer:  # noqa: S310 - an address of ours
            rows.append(("nginx", "healthy", f"{_url()}, this answer by {answer.headers['X-Replica']}"))
    except (urllib.error.URLError, OSError) as error:
        rows.append(("nginx", "unreachable", str(error)))
    for name, state, more in rows:
        print(f"{name:10} {state:12} {more}")
    return int(any(state != "healthy" for _, state, _ in rows))


def _health_of(replica: str) -> tuple[str, str, str]:
    done = docker("compose", "exec", "-T", replica, "python", "-c", HEALTH)
    try:
        told: dict[str, Any] = json.loads(done.stdout)
    except ValueError:
        return replica, "unreachable", (done.stderr.strip().splitlines() or ["it does not answer"])[-1]
    words = f"redis {told['redis']}, model {told['model']}"
    if "live_runs" in told:  # where AUTH=none
        words += f", live runs {told['live_runs']}"
    return replica, told["status"], words


# ---- Docker Compose
def compose(*arguments: str) -> int:
    """Run `docker compose` before the eyes of whoever called. Returns its exit status."""
    return subprocess.run(["docker", "compose", *arguments], check=False).returncode


def docker(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run `docker` and catch what it says."""
    return subprocess.run(["docker", *arguments], check=False, capture_output=True, text=True)


def _config() -> dict[str, Any]:
    """The Compose file, filled in from the environment and `.env`. Raises: CannotStart where it cannot be."""
    done = docker("compose", "config", "--format", "json")
    if done.returncode:
        told = " ".join(done.stderr.split())
        if "stop_grace_period" in told:
            told = "SHUTDOWN_GRACE: use seconds, for example 20"
        elif "ort: " in told:
            told = f"NGINX_PORT or REDIS_PUBLISHED_PORT: {told}"
        raise CannotStart(told)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def _url() -> str:
    address = docker("compose", "port", "nginx", "80").stdout.strip() or "127.0.0.1:80"
    return f"http://{address.removesuffix(':80')}"


def check_compose() -> None:
    """Raises: CannotStart with a line that helps where there is no Compose to be had."""
    version = ""
    if shutil.which("docker"):
        version = docker("compose", "version", "--short").stdout.strip().lstrip("v")
    try:
        found = tuple(int(part) for part in version.split("-")[0].split(".")[:2])
    except ValueError:
        found = ()
    if found < OLDEST:
        have = f"Compose {version}" if version else "no `docker compose`"
        wanted = ".".join(map(str, OLDEST))
        raise CannotStart(
            f"Docker with Compose {wanted} or newer is needed, and here is {have}. `make run` needs none."
        )


def main() -> int:
    """Returns the exit status."""
    parser = argparse.ArgumentParser(prog="python3 -m local.compose")
    commands = parser.add_subparsers(dest="command", required=True)
    starting = commands.add_parser("up")
    starting.add_argument("--build", action="store_true", help="build the images first")
    starting.add_argument("--again", action="store_true", help="with the model that was asked for last")
    starting.add_argument("--model", default="", help="fake-bedrock, or a value of MODEL_PROVIDER")
    commands.add_parser("health")
    options = parser.parse_args()
    try:
        check_compose()
        if options.command == "health":
            return health()
        up(options.model, build=options.build, again=options.again)
    except CannotStart as error:
        return error.tell()
    return 0


if __name__ == "__main__":
    sys.exit(main())
