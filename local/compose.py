"""The Compose stack, told what only this machine knows: `make start`, `make up` and `make health`.

Run by the machine's own Python from the project's root, before anything is installed: nothing but the standard library.
"""

from __future__ import annotations

import argparse
import json
import os
import pwd
import shutil
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


def aws_directory(uid: int) -> tuple[Path | None, str]:
    """Where ~/.aws is and the container's user may read it; what of credentials it holds, in words."""
    directory = Path(os.environ.get("AWS_DIR") or Path(pwd.getpwuid(_caller()).pw_dir) / ".aws")
    files = [file for name in ("credentials", "config") if (file := directory / name).is_file()]
    if not files:
        return None, ""
    if unreadable := [file for file in files if not _may_read(file, uid)]:
        say(f"{unreadable[0]} cannot be read by the replicas, which run as user {uid}: {directory} is not mounted")
        return None, ""
    found = any(word in file.read_text(errors="replace") for file in files for word in AWS_WORDS)
    return directory, f"credentials of {directory}" if found else ""


def _caller() -> int:
    return int(os.environ.get("SUDO_UID") or os.getuid())


def _may_read(file: Path, uid: int) -> bool:
    if uid == os.getuid():
        return os.access(file, os.R_OK)
    status = file.stat()
    return bool(status.st_mode & (0o400 if status.st_uid == uid else 0o004))


def own_sessions(uid: int, gid: int) -> None:
    """Make data/sessions the containers' to write. Ends the process where that is not in our power."""
    SESSIONS.mkdir(parents=True, exist_ok=True)
    paths = [SESSIONS, *SESSIONS.rglob("*")]
    if foreign := [path for path in paths if path.stat().st_uid != uid]:
        if os.getuid():
            fail(f"{foreign[0]} belongs to another user: sudo chown -R {uid}:{gid} {SESSIONS}")
        for path in foreign:
            os.chown(path, uid, gid)


# ---- commands
def up(asked: str, *, build: bool) -> None:
    """Start what is not running, wait until all of it is healthy, and say what runs where."""
    uid, gid = container_user()
    directory, aws = aws_directory(uid)
    os.environ |= {"HALTLINE_UID": str(uid), "HALTLINE_GID": str(gid)}
    if directory:
        os.environ["AWS_DIR"] = str(directory)
    settings = _settings()
    aws = next((f"{name} is set" for name in AWS_VARIABLES if settings.get(name)), aws)
    model = choose_model(asked, settings, aws)
    say(f"model: {model.words}")
    os.environ |= model.env
    own_sessions(uid, gid)
    profile = ["--profile", model.service] if model.service else []
    started = compose(*profile, "up", "--detach", "--wait", "--remove-orphans", *(["--build"] if build else []))
    idle = [service for service in OWN_MODELS if service != model.service]
    compose("--profile", "*", "rm", "--stop", "--force", *idle, quiet=True)
    if started:
        for service in ("redis", *([model.service] if model.service else []), *REPLICAS, "nginx"):
            compose("logs", "--no-log-prefix", "--tail", "3", service)
        fail("the stack did not become healthy; `make logs` has the rest")
    # Another Redis may have served the files since this one's list of chats was made, as under `make run`.
    compose("exec", "-T", "redis", "redis-cli", "del", LIST_READY, quiet=True)
    say(f"Haltline serves {_url()} through Nginx, by {', '.join(REPLICAS)}. `make stop` ends it.")


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


def _settings() -> dict[str, str]:
    """What the replicas would be given, as Compose reads it of the environment and `.env`."""
    done = subprocess.run(
        ["docker", "compose", "config", "--format", "json"], check=False, stdout=subprocess.PIPE, text=True
    )
    if done.returncode:
        sys.exit(done.returncode)  # it has said why
    environment: dict[str, str | None] = json.loads(done.stdout)["services"][REPLICAS[0]]["environment"]
    return {name: value for name, value in environment.items() if value}


def _url() -> str:
    done = subprocess.run(["docker", "compose", "port", "nginx", "80"], check=False, capture_output=True, text=True)
    address = done.stdout.strip() or "127.0.0.1:80"
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
    starting.add_argument("--model", default="", help="fake-bedrock, or a value of MODEL_PROVIDER")
    commands.add_parser("health")
    options = parser.parse_args()
    check_compose()
    if options.command == "health":
        return health()
    up(options.model, build=options.build)
    return 0


if __name__ == "__main__":
    sys.exit(main())
