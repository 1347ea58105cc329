"""What this machine has for the Compose stack: somebody to run as, AWS credentials, a model, a place for chats.

The standard library alone: it is asked before anything is installed.
"""

from __future__ import annotations

import os
import pwd
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from local.errors import CannotStart
from local.processes import say

SESSIONS = Path("data/sessions")
# What tells botocore of credentials: variables, and words in the files of ~/.aws.
AWS_VARIABLES = (
    *("AWS_ACCESS_KEY_ID", "AWS_PROFILE", "AWS_BEARER_TOKEN_BEDROCK", "AWS_ENDPOINT_URL_BEDROCK_RUNTIME"),
    *("AWS_CONTAINER_CREDENTIALS_FULL_URI", "AWS_WEB_IDENTITY_TOKEN_FILE"),
)
AWS_WORDS = ("aws_access_key_id", "credential_process", "sso_", "role_arn", "login_session")


@dataclass(frozen=True)
class Model:
    """Which model answers.

    Attributes:
        words: say so to a person.
        env: what Compose is to be told.
        service: the one of the stack that it needs, or None.
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
        keys = {"AWS_ACCESS_KEY_ID": "fake", "AWS_SECRET_ACCESS_KEY": "fake", "AWS_PROFILE": ""}
        env = {"MODEL_PROVIDER": "bedrock", "AWS_ENDPOINT_URL_BEDROCK_RUNTIME": endpoint, **keys}
        words = "the fake Bedrock, which says what a message scripts (local/fake_bedrock), by the real Bedrock client"
        return Model(words, env, "fake-bedrock")
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

    Raises: CannotStart where `given` is no directory.
    """
    directory = Path(given or Path(pwd.getpwuid(_caller()).pw_dir) / ".aws").expanduser().absolute()
    try:
        if given and not directory.is_dir():
            raise CannotStart(f"AWS_DIR={given} is no directory of this machine")
        files = [file for name in ("credentials", "config") if (file := directory / name).is_file()]
        foreign = next((path for path in (directory, *files) if not _may_read(path, uid)), None) if files else None
        words = [word for file in files for word in AWS_WORDS if word in file.read_text(errors="replace")]
    except PermissionError as error:
        files, foreign, words = [], Path(error.filename), []
    if foreign:
        say(f"haltline: {directory} is not mounted: the replicas run as user {uid}, who may not read {foreign}")
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
    """Make data/sessions the containers' to write. Raises: CannotStart where that is not in our power."""
    try:
        SESSIONS.mkdir(mode=0o700, parents=True, exist_ok=True)
        paths = [SESSIONS, *SESSIONS.rglob("*")]
    except PermissionError as error:
        mend = f"sudo chown -R {uid}:{gid} {SESSIONS.parts[0]}"
        raise CannotStart(f"{error.filename} belongs to another user: {mend}") from error
    if foreign := [path for path in paths if path.stat().st_uid != uid]:
        if os.getuid():
            raise CannotStart(f"{foreign[0]} belongs to another user: sudo chown -R {uid}:{gid} {SESSIONS}")
        for path in foreign:
            os.chown(path, uid, gid)
