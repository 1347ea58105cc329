"""A wrong setting ends the start: status 2, one line that names it."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.stack import ROOT, clean_environment, free_port

JWT = {"AUTH": "jwt", "JWT_ISSUER": "https://i/", "JWT_AUDIENCE": "a"}

# What is set, and the name the line must have.
WRONG: dict[str, tuple[dict[str, str], str]] = {
    "PORT=abc": ({"PORT": "abc"}, "PORT"),
    "STOP_POLL_INTERVAL=-1": ({"STOP_POLL_INTERVAL": "-1"}, "STOP_POLL_INTERVAL"),
    "SIGNAL_LOSS_POLICY=hope": ({"SIGNAL_LOSS_POLICY": "hope"}, "SIGNAL_LOSS_POLICY"),
    "ON_DISCONNECT=shrug": ({"ON_DISCONNECT": "shrug"}, "ON_DISCONNECT"),
    "SHUTDOWN_GRACE=-1": ({"SHUTDOWN_GRACE": "-1"}, "SHUTDOWN_GRACE"),
    "LOG_LEVEL=loud": ({"LOG_LEVEL": "loud"}, "LOG_LEVEL"),
    "REDIS_URL=ftp://x": ({"REDIS_URL": "ftp://x"}, "REDIS_URL"),
    "SESSION_STORE=tape": ({"SESSION_STORE": "tape"}, "SESSION_STORE"),
    "SESSION_DIR where none can be": ({"SESSION_DIR": "/dev/null/sessions"}, "SESSION_DIR"),
    "MODEL_PROVIDER=nope": ({"MODEL_PROVIDER": "nope"}, "MODEL_PROVIDER"),
    "AGENT=nosuchmodule:x": ({"AGENT": "nosuchmodule:x"}, "AGENT"),
    "AGENT without a colon": ({"AGENT": "tests.contract.agents"}, "AGENT"),
    "AUTH=sometimes": ({"AUTH": "sometimes"}, "AUTH"),
    "AUTH=none on a public address": ({"HOST": "0.0.0.0"}, "AUTH"),
    "AUTH=apigateway outside Lambda": ({"AUTH": "apigateway"}, "AUTH"),
    "AUTH=api-keys without keys": ({"AUTH": "api-keys"}, "API_KEYS"),
    "API_KEYS that hold a key": ({"AUTH": "api-keys", "API_KEYS": "alice=secret"}, "API_KEYS"),
    "API_KEYS that nothing uses": ({"API_KEYS": f"alice={'0' * 64}"}, "API_KEYS"),
    "JWT_JWKS that is not there": ({**JWT, "JWT_JWKS": "/nowhere/jwks.json"}, "JWT_JWKS"),
    "JWT_JWKS without a usable key": ({**JWT, "JWT_JWKS": "pyproject.toml"}, "JWT_JWKS"),
    "JWT_JWKS over the open net": ({**JWT, "JWT_JWKS": "http://issuer.example/jwks.json"}, "JWT_JWKS"),
    "AUTH=jwt without an issuer": ({"AUTH": "jwt", "JWT_AUDIENCE": "a", "JWT_JWKS": "https://i/"}, "JWT_ISSUER"),
}


def start(env: dict[str, str], directory: Path) -> subprocess.CompletedProcess[str]:
    """Start the server with settings that work but for `env`. Raises: TimeoutExpired when it serves all the same."""
    working = {
        "HOST": "127.0.0.1",
        "PORT": str(free_port()),
        "MODEL_PROVIDER": "scripted",
        "REDIS_URL": f"redis://127.0.0.1:{free_port()}/0",
        "SESSION_DIR": str(directory / "sessions"),
    }
    return subprocess.run(
        [sys.executable, "-m", "haltline"],
        env={**clean_environment(), **working, **env},
        cwd=directory if "PYTHONPATH" in env else ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


Started = dict[str, subprocess.CompletedProcess[str] | subprocess.TimeoutExpired]


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Started:
    """Every wrong start that is asked for, a few at a time."""
    directory = Path(tmp_path_factory.mktemp("settings"))

    def attempt(case: str) -> subprocess.CompletedProcess[str] | subprocess.TimeoutExpired:
        try:
            return start(WRONG[case][0], directory)
        except subprocess.TimeoutExpired as timeout:
            return timeout

    wanted = [case for case in WRONG if any(f"[{case}]" in item.name for item in request.session.items)]
    with ThreadPoolExecutor(4) as pool:
        return dict(zip(wanted, pool.map(attempt, wanted), strict=True))


def assert_one_line_naming(name: str, ended: subprocess.CompletedProcess[str] | subprocess.TimeoutExpired) -> None:
    assert isinstance(ended, subprocess.CompletedProcess), "it serves all the same"
    lines = ended.stderr.strip().splitlines()
    assert (ended.returncode, len(lines), ended.stdout.strip()) == (2, 1, ""), ended.stderr
    assert name in lines[0]


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_setting_ends_the_start_with_one_line(started: Started, case: str) -> None:
    assert_one_line_naming(WRONG[case][1], started[case])


def test_a_wrong_line_of_the_env_file_ends_the_start_too(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("# mine\nRUN_TIMEOUT=soon\n")
    assert_one_line_naming("RUN_TIMEOUT", start({"PYTHONPATH": str(ROOT)}, tmp_path))
