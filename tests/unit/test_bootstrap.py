"""Settings that cannot be used together are told when the parts are put together, by their name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from haltline.bootstrap import make_resources
from haltline.redis_cluster import ClusterRedis
from haltline.redis_connection import credentials_of
from haltline.settings import Settings, SettingsError

PASSWORD: dict[str, Any] = {"redis_auth": "password", "redis_password": "p"}


def settings(tmp_path: Path, **values: Any) -> Settings:
    return Settings(_env_file=None, session_dir=tmp_path, model_provider="scripted", **values)


@pytest.mark.parametrize(
    ("values", "line"),
    [
        pytest.param(
            PASSWORD | {"redis_url": "redis://user:secret@h"},
            "REDIS_URL: it holds a user or a password",
            id="two users",
        ),
        pytest.param(
            {"redis_url": "unix:///run/r.sock", "redis_cluster": True},
            "REDIS_URL: a cluster (REDIS_CLUSTER=true)",
            id="socket",
        ),
        pytest.param(
            {"redis_url": "redis://h/2", "redis_cluster": True}, "REDIS_URL: database 2: a cluster", id="database"
        ),
        pytest.param({"redis_url": "redis://h?timeout=x"}, "REDIS_URL: Invalid value for 'timeout'", id="bad value"),
        pytest.param(
            {"redis_url": "redis://h?sll_ca_certs=ca.pem"},
            "REDIS_URL: got an unexpected keyword argument 'sll_ca_certs'",
            id="no such option",
        ),
        pytest.param(
            {"redis_url": "rediss://h?ssl_ca_certs=/none/ca.pem"},
            "REDIS_URL: [Errno 2] No such file",
            id="no such file",
        ),
        pytest.param(
            {"redis_url": "rediss://h?ssl_cert_reqs=maybe"}, "REDIS_URL: Invalid SSL Certificate", id="bad TLS"
        ),
    ],
)
def test_a_redis_that_cannot_be_reached_so_is_told(tmp_path: Path, values: dict[str, Any], line: str) -> None:
    with pytest.raises(SettingsError) as error:
        make_resources(settings(tmp_path, **values), serves_chat=False)
    assert str(error.value).startswith(line)
    assert "secret" not in str(error.value)


def test_a_cluster_is_reached_as_one(tmp_path: Path) -> None:
    made = make_resources(settings(tmp_path, redis_url="redis://h", redis_cluster=True), serves_chat=False)
    assert isinstance(made.bus.redis, ClusterRedis)  # type: ignore[attr-defined]
    alone = make_resources(settings(tmp_path, redis_url="redis://h"), serves_chat=False)
    assert not isinstance(alone.bus.redis, ClusterRedis)  # type: ignore[attr-defined]


@pytest.mark.parametrize(("user", "told"), [(None, ("p",)), ("u", ("u", "p"))])
def test_a_password_is_told_with_its_user(tmp_path: Path, user: str | None, told: tuple[str, ...]) -> None:
    provider = credentials_of(settings(tmp_path, redis_username=user, **PASSWORD))
    assert provider is not None
    assert provider.get_credentials() == told
    assert credentials_of(settings(tmp_path)) is None
