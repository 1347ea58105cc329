"""What `make start` finds out about the machine before it calls Docker Compose."""

from __future__ import annotations

import errno
import os
import socket
import subprocess
from pathlib import Path

import pytest

from local import compose, host
from local.errors import CannotStart
from local.host import aws_directory, choose_model, container_user, own_sessions

AWS = "credentials of /home/you/.aws"
LOCAL = {"LOCAL_MODEL_URL": "http://local-model:8081/v1"}


@pytest.mark.parametrize(
    ("asked", "settings", "aws", "provider", "service", "words"),
    [
        pytest.param("", LOCAL, "", "local", "local-model", "no AWS credentials were found", id="nothing found"),
        pytest.param("", LOCAL, AWS, "bedrock", None, AWS, id="credentials found"),
        pytest.param(
            "", {"MODEL_PROVIDER": "scripted"} | LOCAL, AWS, "scripted", None, "scripted", id="the settings say"
        ),
        pytest.param(
            "local", {"MODEL_PROVIDER": "scripted"} | LOCAL, AWS, "local", "local-model", "SmolLM2", id="asked for"
        ),
        pytest.param("bedrock", LOCAL, "", "bedrock", None, "no AWS credentials", id="bedrock without credentials"),
        pytest.param("fake-bedrock", LOCAL, AWS, "bedrock", "fake-bedrock", "fake Bedrock", id="the fake"),
        pytest.param("mine:model", LOCAL, "", "mine:model", None, "mine:model", id="one's own"),
        pytest.param(
            "",
            {"LOCAL_MODEL_URL": "http://host:1/v1"},
            "",
            "local",
            None,
            "http://host:1/v1",
            id="a server of one's own",
        ),
    ],
)
def test_the_model(
    asked: str, settings: dict[str, str], aws: str, provider: str, service: str | None, words: str
) -> None:
    model = choose_model(asked, settings, aws)
    assert (model.env["MODEL_PROVIDER"], model.service) == (provider, service)
    assert words in model.words


def test_the_fake_is_reached_as_botocore_documents_it() -> None:
    model = choose_model("fake-bedrock", {}, "")
    assert model.env["AWS_ENDPOINT_URL_BEDROCK_RUNTIME"] == "http://fake-bedrock:8082"
    assert model.env["AWS_PROFILE"] == ""  # one that is set would be looked for


def test_bedrock_names_the_model_of_the_settings() -> None:
    assert "eu.nova" in choose_model("", {"BEDROCK_MODEL_ID": "eu.nova"}, AWS).words


def test_replicas_run_as_whoever_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getuid", lambda: 1234)
    monkeypatch.setattr(os, "getgid", lambda: 99)
    assert container_user() == (1234, 99)


@pytest.mark.parametrize(
    ("env", "expected"),
    [({}, (1000, 1000)), ({"SUDO_UID": "1234", "SUDO_GID": "99"}, (1234, 99)), ({"SUDO_UID": "0"}, (1000, 1000))],
)
def test_replicas_never_run_as_root(
    monkeypatch: pytest.MonkeyPatch, env: dict[str, str], expected: tuple[int, int]
) -> None:
    monkeypatch.setattr(os, "getuid", lambda: 0)
    for name in ("SUDO_UID", "SUDO_GID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    assert container_user() == expected


@pytest.fixture
def aws(tmp_path: Path) -> Path:
    directory = tmp_path / "aws"
    directory.mkdir(mode=0o755)
    return directory


def test_nothing_is_mounted_where_nothing_is(aws: Path) -> None:
    assert aws_directory(str(aws), os.getuid()) == ("", "")


def test_credentials_are_found(aws: Path) -> None:
    (aws / "credentials").write_text("[default]\naws_access_key_id = x\naws_secret_access_key = y\n")
    assert aws_directory(str(aws), os.getuid()) == (str(aws), f"credentials of {aws}")


def test_a_region_alone_is_no_credential(aws: Path) -> None:
    (aws / "config").write_text("[default]\nregion = eu-central-1\n")
    assert aws_directory(str(aws), os.getuid()) == (str(aws), "")


def test_a_directory_that_is_named_and_not_there_is_told(aws: Path) -> None:
    with pytest.raises(CannotStart, match=r"AWS_DIR=.*nope is no directory"):
        aws_directory(str(aws / "nope"), os.getuid())


def test_a_directory_is_mounted_by_its_whole_name(aws: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (aws / "config").touch()
    monkeypatch.chdir(aws.parent)
    assert aws_directory("aws", os.getuid()) == (str(aws), "")


@pytest.mark.parametrize(("directory", "file"), [(0o755, 0o600), (0o700, 0o644), (0o744, 0o644)])
def test_files_that_the_replicas_could_not_read_are_not_mounted(
    aws: Path, capsys: pytest.CaptureFixture[str], directory: int, file: int
) -> None:
    (aws / "credentials").write_text("[default]\naws_access_key_id = x\n")
    (aws / "credentials").chmod(file)
    aws.chmod(directory)
    other = os.getuid() + 1
    assert aws_directory(str(aws), other) == ("", "")
    told = capsys.readouterr().out
    assert str(aws) in told
    assert f"user {other}" in told
    assert aws_directory(str(aws), os.getuid()) == (str(aws), f"credentials of {aws}")


def test_a_directory_that_cannot_be_looked_into_is_not_mounted(
    aws: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(path: Path) -> bool:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))  # as for any user but root

    monkeypatch.setattr(Path, "is_dir", refuse)
    assert aws_directory(str(aws), os.getuid()) == ("", "")
    assert str(aws) in capsys.readouterr().out


def test_a_foreign_store_is_told_with_what_mends_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    own_sessions(os.getuid(), os.getgid())
    (host.SESSIONS / "chat.json").write_text("{}")
    monkeypatch.setattr(os, "getuid", lambda: 1)  # root would change the owner
    with pytest.raises(CannotStart, match=r"sudo chown -R 77777:7 data/sessions"):
        own_sessions(77777, 7)


def test_a_port_that_others_serve_is_seen() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        assert not compose._free(port)
    assert compose._free(port)


@pytest.mark.parametrize(
    ("script", "told"),
    [
        ("exit 1", "no `docker compose`"),
        ("echo 2.23.4", "Compose 2.23.4"),
        ("echo v2.24.0-desktop.1", None),
        ("echo 5.6.1", None),
    ],
)
def test_an_old_compose_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, told: str | None
) -> None:
    docker = tmp_path / "docker"
    docker.write_text(f"#!/bin/sh\n{script}\n")
    docker.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    if told is None:
        compose.check_compose()
    else:
        with pytest.raises(CannotStart, match=told):
            compose.check_compose()


@pytest.mark.parametrize(("more", "words"), [('"live_runs": 3', ", live runs 3"), ('"version": "1"', "")])
def test_health_is_told_whether_or_not_a_replica_tells_of_its_runs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], more: str, words: str
) -> None:
    told = f'{{"status": "healthy", "redis": "connected", "model": "scripted", {more}}}'
    done = subprocess.CompletedProcess((), 0, stdout=told, stderr="")
    monkeypatch.setattr(compose, "docker", lambda *_: done)
    monkeypatch.setattr(compose, "_url", lambda: "http://127.0.0.1:1")
    compose.health()
    shown = capsys.readouterr().out.splitlines()[0]
    assert shown.endswith(f"healthy      redis connected, model scripted{words}")
