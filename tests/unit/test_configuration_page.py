"""CONFIGURATION.md and .env.example name every setting with the default that it has."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from haltline.settings import Settings

ROOT = Path(__file__).parents[2]
ROW = re.compile(r"^\| `([A-Z_]+)` \| (.+?) \|", re.MULTILINE)
LINE = re.compile(r"^# ([A-Z_]+)=(.*)$", re.MULTILINE)
# What the Compose stack alone reads, with its defaults.
STACK = dict(re.findall(r"\$\{((?!AWS_)[A-Z_]+):-([^}]*)\}", (ROOT / "docker-compose.yml").read_text(encoding="utf-8")))
OWN = {name.upper(): field for name, field in Settings.model_fields.items()}


def default_of(name: str) -> str:
    """A default as a person would write it into `.env`; "" where there is none to write."""
    if OWN[name].default_factory is not None:
        return ""
    default = OWN[name].get_default()
    if isinstance(default, bool):
        return str(default).lower()
    if isinstance(default, float):
        return f"{default:g}"
    return "" if default is None else str(default)


def page() -> dict[str, str]:
    """Every setting of the page and its default as it stands there."""
    cells = ROW.findall((ROOT / "CONFIGURATION.md").read_text(encoding="utf-8"))
    assert len(cells) == len(dict(cells)), "a setting stands there twice"
    return dict(cells)


def env_example() -> dict[str, str]:
    lines = LINE.findall((ROOT / ".env.example").read_text(encoding="utf-8"))
    assert len(lines) == len(dict(lines)), "a setting stands there twice"
    return dict(lines)


def test_the_page_names_every_setting_and_no_other() -> None:
    # Two share a line of the page, and the third is a note of `make start` to itself.
    stack = STACK.keys() - {"HALTLINE_UID", "HALTLINE_GID", "HALTLINE_MODEL"}
    assert {name for name in page() if name in OWN or not name.startswith("AWS_")} == OWN.keys() | stack


@pytest.mark.parametrize("name", OWN)
def test_the_page_tells_the_default(name: str) -> None:
    expected = f"`{default_of(name)}`" if default_of(name) else "unset"
    if name in ("CORS_ORIGINS", "ALLOWED_HOSTS"):
        expected = "empty"
    elif name == "REPLICA_NAME":
        expected = "the host's name"
    assert page()[name] == expected


@pytest.mark.parametrize("name", ["NGINX_PORT", "REDIS_PUBLISHED_PORT", "PYTHON_VERSION"])
def test_the_page_tells_the_defaults_of_the_stack(name: str) -> None:
    assert page()[name] == STACK[name]


def test_the_example_file_holds_every_setting_and_no_other() -> None:
    ports = {name: STACK[name] for name in ("NGINX_PORT", "REDIS_PUBLISHED_PORT")}
    assert env_example() == {name: default_of(name) for name in OWN} | ports


def test_the_example_file_sets_nothing() -> None:
    lines = (ROOT / ".env.example").read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if line and not line.startswith("#")] == []


def test_the_example_file_uncommented_is_the_default(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in OWN:
        monkeypatch.delenv(name, raising=False)
    text = LINE.sub(r"\1=\2", (ROOT / ".env.example").read_text(encoding="utf-8"))
    (tmp_path / ".env").write_text(text, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    assert Settings() == Settings(_env_file=None)
