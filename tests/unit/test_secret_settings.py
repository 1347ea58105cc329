"""Settings that are secret are told to nobody: not with the settings, not where one is wrong."""

from __future__ import annotations

import hashlib
import secrets
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from haltline.settings import Settings, SettingsError, read_settings
from tests.stack import ROOT, clean_environment

SECRET = secrets.token_hex(12)
HASH = hashlib.sha256(SECRET.encode()).hexdigest()


@pytest.mark.parametrize(
    "secret",
    [
        {"redis_url": f"redis://user:{SECRET}@127.0.0.1"},
        {"redis_auth": "password", "redis_password": SECRET},
        {"api_keys": f"someone={HASH}"},
    ],
    ids=lambda secret: next(iter(secret)),
)
def test_settings_do_not_show_a_secret(secret: dict[str, Any]) -> None:
    given = Settings.model_validate(secret) if "api_keys" not in secret else _with_keys(secret)
    shown = f"{given} {given!r} {given.model_dump()} {given.model_dump_json()} {vars(given)}"
    assert not {word for word in (SECRET, HASH) if word in shown}


def _with_keys(secret: dict[str, Any]) -> Settings:
    try:
        return read_settings(auth="api-keys", **secret)
    except SettingsError:  # a release that has no keys yet
        return read_settings()


@pytest.mark.parametrize(
    "wrong",
    [
        {"redis_url": f"user:{SECRET}@127.0.0.1"},
        {"redis_url": f"redis://user:{SECRET}/{SECRET}@127.0.0.1"},
        {"redis_url": f"redis://user:{SECRET}@[::1:1"},
        {"redis_url": f"redis://:{SECRET}@127.0.0.1", "redis_auth": "iam"},
        {"redis_password": SECRET},
        {"redis_auth": "iam", "redis_password": SECRET},
        {"api_keys": SECRET},
        {"api_keys": f"someone={HASH[:-1]}"},
        {"auth": "api-keys", "api_keys": f"{SECRET}=x"},
        {"auth": "jwt", "jwt_jwks": f"https://user:{SECRET}@127.0.0.1/keys"},
        {"jwt_jwks": f"https://127.0.0.1/keys?key={SECRET}"},
    ],
    ids=lambda wrong: "-".join(wrong),
)
def test_what_is_said_of_a_wrong_value_does_not_show_it(wrong: dict[str, Any]) -> None:
    with pytest.raises(SettingsError) as error:
        read_settings(**wrong)
    assert "\n" not in str(error.value)
    assert not {word for word in (SECRET, HASH[:-1]) if word in str(error.value)}
    assert error.value.__cause__ is None, "a traceback would show the value"


def test_the_first_lines_of_a_process_do_not_show_them(tmp_path: Path) -> None:
    """Nobody listens at port 1: a start ends there, after it has said where it looked for Redis."""
    url = f"redis://user:{SECRET}@127.0.0.1:1/0"
    done = subprocess.run(
        [sys.executable, "-m", "local", "--port", "0", "--model", "scripted", "--replicas", "1"],
        env={**clean_environment(), "PYTHONPATH": str(ROOT), "REDIS_URL": url, "LOG_LEVEL": "TRACE"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    said = done.stdout + done.stderr
    assert done.returncode, said
    assert "no Redis answers at 127.0.0.1:1" in said
    assert SECRET not in said
