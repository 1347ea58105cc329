"""The Compose stack, told what only this machine knows: `make start`, `make up` and `make health`.

Run by the machine's own Python from the project's root, before anything is installed: nothing but the standard library.
"""

from __future__ import annotations

import argparse
import json
import os
import pwd
import shutil
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

REPLICAS = ("backend1", "backend2", "backend3")
OWN_MODELS = ("local-model", "fake-bedrock")  # services, each behind a profile of its name
OLDEST = (2, 24)  # of Compose: the first to know `env_file: required`
SESSIONS = Path("data/sessions")
LIST_READY = "ready:{chats}"  # haltline.chat_index: without it the next page reads the store again
# What tells botocore of credentials: variables, and words in the files of ~/.aws.
AWS_VARIABLES = (
    *("AWS_ACCESS_KEY_ID", "AWS_PROFILE", "AWS_BEARER_TOKEN_BEDROCK", "AWS_ENDPOINT_URL_BEDROCK_RUNTIME"),
    *("AWS_CONTAINER_CREDENTIALS_FULL_URI", "AWS_WEB_IDENTITY_TOKEN_FILE"),
)
AWS_WORDS = ("aws_access_key_id", "credential_process", "sso_", "role_arn", "login_session")
# Makes the whole application, which connects to nothing: a wrong setting ends it with one line and status 2.
TRY_SETTINGS = "from haltline.app import create_app; create_app()"
HEALTH = (
    "import urllib.error, urllib.request as u\n"
    "try: print(u.urlopen('http://127.0.0.1:8000/health', timeout=3).read().decode())\n"
    "except urllib.error.HTTPError as error: print(error.read().decode())"
)


@dataclass(frozen=True)
class Model:
    """Which model answers.

    Attributes:
        words: say so to a person.
        env: what Compose is to be told.
        service: the one of OWN_MODELS that it needs, or None.
    """

    words: str
    env: Mapping[str, str] = field(default_factory=dict)
    service: str | None = None


def choose_model(asked: str, settings: Mapping[str, str], aws: str) -> Model:
    """The model that was asked for, else the one that the settings name, else what can be had.

    Args:
        asked: `make start MODEL=…`: fake-bedrock or a value of MODEL_PROVIDER; empty where it was not given.
        settings: what a replica would be given, of the environment and `.env`.
        aws: what of AWS credentials was found, in words; empty for none.
    """
    if asked == "fake-bedrock":
        endpoint = "http://fake-bedrock:8082"
        env = {
            "AWS_ENDPOINT_URL_BEDROCK_RUNTIME": endpoint,
            "AWS_ACCESS_KEY_ID": "fake",
            "AWS_SECRET_ACCESS_KEY": "fake",
        }
        words = (
            "the fake Bedrock, which says what a message scripts (local/fake_bedrock), through the real Bedrock client"
        )
        return Model(words, {"MODEL_PROVIDER": "bedrock", **env}, "fake-bedrock")
    provider = asked or settings.get("MODEL_PROVIDER", "") or ("bedrock" if aws else "local")
    env = {"MODEL_PROVIDER": provider}
    if provider == "bedrock":
        model = settings.get("BEDROCK_MODEL_ID") or "amazon.nova-lite-v1:0"
        return Model(f"Amazon Bedrock, {model} ({aws or 'no AWS credentials were found on this machine'})", env)
    if provider != "local":
        return Model(provider, env)
    url = settings.get("LOCAL_MODEL_URL", "")
    if "//local-model:" not in url:
        return Model(f"the OpenAI-compatible server at {url}", env)
    why = "" if asked or settings.get("MODEL_PROVIDER") else "no AWS credentials were found, so this is "
    words = f"{why}SmolLM2-135M-Instruct, a small language model on this machine; do not trust what it says"
    return Model(words, env, "local-model")


def container_user() -> tuple[int, int]:
    """As whom replicas run: whoever calls, so that the files on both sides are theirs.

    Never root: in its place comes whoever called sudo, else the image's own user. Returns user and group.
    """
    if os.getuid():
        return os.getuid(), os.getgid()
    return int(os.environ.get("SUDO_UID") or 0) or 1000, int(os.environ.get("SUDO_GID") or 0) or 1000


def aws_directory(given: str, uid: int) -> tuple[str, str]:
    """The directory to mount as ~/.aws, empty for none, and what of credentials it holds, in words.

    Args:
        given: AWS_DIR; empty means ~/.aws of whoever calls.
        uid: the containers' user, who must be able to read what is in it.

    Ends the process where `given` is no directory.
    """
    directory = Path(given or Path(pwd.getpwuid(_caller()).pw_dir) / ".aws").expanduser().absolute()
    if given and not directory.is_dir():
        fail(f"AWS_DIR={given} is no directory of this machine")
    try:
        files = [file for name in ("credentials", "config") if (file := directory / name).is_file()]
        foreign = next((path for path in (directory, *files) if not _may_read(path, uid)), None) if files else None
        words = [word for file in files for word in AWS_WORDS if word in file.read_text(errors="replace")]
    except PermissionError as error:
        files, foreign, words = [], Path(error.filename), []
    if foreign:
        say(f"{directory} is not mounted: the replicas run as user {uid}, who may not read {foreign}")
    if foreign or not files:
        return "", ""
    return str(directory), f"credentials of {directory}" if words else ""


def _caller() -> int:
    return int(os.environ.get("SUDO_UID") or os.getuid())


def _may_read(path: Path, uid: int) -> bool:
    status = path.stat()
    needed = 0o500 if path.is_dir() else 0o400
    return status.st_mode & (mine := needed if status.st_uid == uid else needed >> 6) == mine


def own_sessions(uid: int, gid: int) -> None:
    """Make data/sessions the containers' to write. Ends the process where that is not in our power."""
    try:
        SESSIONS.mkdir(parents=True, exist_ok=True)
        paths = [SESSIONS, *SESSIONS.rglob("*")]
    except PermissionError as error:
        fail(f"{error.filename} belongs to another user: sudo chown -R {uid}:{gid} {SESSIONS.parts[0]}")
    if foreign := [path for path in paths if path.stat().st_uid != uid]:
        if os.getuid():
            fail(f"{foreign[0]} belongs to another user: sudo chown -R {uid}:{gid} {SESSIONS}")
        for path in foreign:
            os.chown(path, uid, gid)


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
    say(f"model: {model.words}")
    os.environ |= model.env
    own_sessions(uid, gid)
    _check_ports(file)
    profile = ["--profile", model.service] if model.service else []
    if build and compose(*profile, "build"):
        fail("the images cannot be built")
    if status := compose("run", "--rm", "--no-deps", "-T", REPLICAS[0], "python", "-c", TRY_SETTINGS):
        sys.exit(status)  # it has said why
    started = compose(*profile, "up", "--detach", "--wait", "--remove-orphans")
    idle = [service for service in OWN_MODELS if service != model.service]
    compose("--profile", "*", "rm", "--stop", "--force", *idle, quiet=True)
    if started:
        for service in ("redis", *([model.service] if model.service else []), *REPLICAS, "nginx"):
            compose("logs", "--no-log-prefix", "--tail", "3", service)
        fail("the stack did not become healthy; `make logs` has the rest")
    # Another Redis may have served the files since this one's list of chats was made, as under `make run`.
    compose("exec", "-T", "redis", "redis-cli", "del", LIST_READY, quiet=True)
    say(f"Haltline serves {_url()} through Nginx, by {', '.join(REPLICAS)}. `make stop` ends it.")


def _asked_last() -> str:
    command = ["docker", "inspect", "--format", '{{index .Config.Labels "haltline.model"}}', REPLICAS[0]]
    return subprocess.run(command, check=False, capture_output=True, text=True).stdout.strip()


def _check_ports(file: dict[str, Any]) -> None:
    """End the process where somebody else serves a port that is to be published."""
    for service, variable in (("nginx", "NGINX_PORT"), ("redis", "REDIS_PUBLISHED_PORT")):
        port = int(file["services"][service]["ports"][0]["published"])
        if not _output("ps", "--quiet", service) and not _free(port):
            fail(f"{variable}={port}: address already in use, choose another ({variable}={port + 8000} make start)")


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
    done = subprocess.run(
        ["docker", "compose", "exec", "-T", replica, "python", "-c", HEALTH],
        capture_output=True,
        text=True,
        check=False,
    )
    try:
        told: dict[str, Any] = json.loads(done.stdout)
    except ValueError:
        return replica, "unreachable", (done.stderr.strip().splitlines() or ["it does not answer"])[-1]
    return replica, told["status"], f"redis {told['redis']}, model {told['model']}, live runs {told['live_runs']}"


# ---- Docker Compose
def compose(*arguments: str, quiet: bool = False) -> int:
    """Run `docker compose`. Returns its exit status."""
    return subprocess.run(["docker", "compose", *arguments], check=False, capture_output=quiet).returncode


def _output(*arguments: str) -> str:
    command = ["docker", "compose", *arguments]
    return subprocess.run(command, check=False, capture_output=True, text=True).stdout.strip()


def _config() -> dict[str, Any]:
    """The Compose file, filled in from the environment and `.env`. Ends the process where it cannot be."""
    command = ["docker", "compose", "config", "--format", "json"]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        names = {"stop_grace_period": "SHUTDOWN_GRACE (seconds)", "ort": "NGINX_PORT or REDIS_PUBLISHED_PORT"}
        name = next((name for part, name in names.items() if part in done.stderr), "")
        fail(f"{f'{name} cannot be used: ' if name else ''}{done.stderr.strip()}")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def _url() -> str:
    address = _output("port", "nginx", "80") or "127.0.0.1:80"
    return f"http://{address.removesuffix(':80')}"


def check_compose() -> None:
    """End the process with a line that helps where there is no Compose to be had."""
    version = ""
    if shutil.which("docker"):
        command = ["docker", "compose", "version", "--short"]
        version = subprocess.run(command, check=False, capture_output=True, text=True).stdout.strip().lstrip("v")
    try:
        found = tuple(int(part) for part in version.split("-")[0].split(".")[:2])
    except ValueError:
        found = ()
    if found < OLDEST:
        have = f"Compose {version}" if version else "no `docker compose`"
        wanted = ".".join(map(str, OLDEST))
        fail(f"Docker with Compose {wanted} or newer is needed, and here is {have}. `make run` needs none.")


def say(line: str) -> None:
    """One line for the person at the terminal."""
    print(f"haltline: {line}", flush=True)


def fail(line: str) -> NoReturn:
    """Say why, and end."""
    sys.exit(f"haltline: {line}")


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
    check_compose()
    if options.command == "health":
        return health()
    up(options.model, build=options.build, again=options.again)
    return 0


if __name__ == "__main__":
    sys.exit(main())
