"""The secret scan on trees of its own. What is planted is made here, so that no file holds what the scan finds."""

from __future__ import annotations

import base64
import json
import secrets
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from tests.stack import ROOT

BASE32 = "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567"


def _aws_key() -> str:
    key = "AKIA" + "".join(secrets.choice(BASE32) for _ in range(16))
    return f"AWS_ACCESS_KEY_ID={key}\nAWS_SECRET_ACCESS_KEY={base64.b64encode(secrets.token_bytes(30)).decode()}\n"


def _private_key() -> str:
    pem, plain = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    key = ec.generate_private_key(ec.SECP256R1())
    return key.private_bytes(serialization.Encoding.PEM, pem, plain).decode()


def _jwt() -> str:
    def part(content: bytes) -> str:
        return base64.urlsafe_b64encode(content).decode().rstrip("=")

    head = {"alg": "RS256", "typ": "JWT", "kid": secrets.token_hex(4)}
    claims = {"sub": secrets.token_hex(8), "iss": "https://issuer.example", "exp": 2_000_000_000}
    parts = [json.dumps(head).encode(), json.dumps(claims).encode(), secrets.token_bytes(256)]
    return f'TOKEN = "{".".join(map(part, parts))}"\n'


def _api_key() -> str:
    return f'API_KEY = "{secrets.token_urlsafe(32)}"\n'


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    _git(tmp_path, "init", "--quiet")
    (tmp_path / "app.py").write_text('print("hello")\n')
    (tmp_path / ".gitignore").write_text(".env\n")
    (tmp_path / ".env").write_text(_api_key())  # where a developer's own keys belong
    _commit(tmp_path)
    return tmp_path


def _git(tree: Path, *arguments: str) -> None:
    name = ["-c", "user.name=someone", "-c", "user.email=someone@example.org"]
    subprocess.run(["git", *name, *arguments], cwd=tree, check=True, capture_output=True)


def _commit(tree: Path) -> None:
    _git(tree, "add", "--all")
    _git(tree, "commit", "--quiet", "--message", "more")


def _scan(tree: Path) -> tuple[bool, str]:
    if shutil.which("kingfisher") is None:
        pytest.fail("kingfisher is not on the path: call this by `make check`")
    done = subprocess.run([ROOT / ".ci/secrets", tree], capture_output=True, text=True, check=False)
    return done.returncode == 0, done.stdout + done.stderr


def test_a_tree_without_secrets_passes(tree: Path) -> None:
    clean, said = _scan(tree)
    assert clean, said
    assert said == "no secrets in the files and the history\n"


@pytest.mark.parametrize("planted", [_aws_key, _private_key, _jwt, _api_key])
def test_a_planted_secret_is_found_and_not_printed(tree: Path, planted: Callable[[], str]) -> None:
    secret = planted()
    (tree / "not yet added.txt").write_text(secret)
    clean, said = _scan(tree)
    assert not clean
    assert "not yet added.txt" in said
    assert not any(line in said for line in secret.splitlines() if "PRIVATE KEY" not in line), said


def test_a_secret_that_was_removed_again_is_found_in_the_history(tree: Path) -> None:
    (tree / "key.txt").write_text(_private_key())
    _commit(tree)
    (tree / "key.txt").unlink()
    assert "key.txt" in _scan(tree)[1], "removed, and not yet committed"
    _commit(tree)
    clean, said = _scan(tree)
    assert (clean, "key.txt" in said) == (False, True), said


def test_a_made_up_one_passes_by_a_comment_in_its_line(tree: Path) -> None:
    (tree / "test_it.py").write_text(_api_key().rstrip() + "  # kingfisher:ignore made up\n")
    clean, said = _scan(tree)
    assert clean, said
