"""docker-compose.yml, local/nginx.conf and local/Dockerfile agree with the product and with each other."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from haltline import chat_index
from haltline.inputs import MAX_BODY_BYTES
from haltline.settings import Settings
from local import compose

ROOT = Path(__file__).parents[2]
FILE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))
REPLICAS = {name: service for name, service in FILE["services"].items() if name.startswith("backend")}
NGINX = (ROOT / "local" / "nginx.conf").read_text(encoding="utf-8")
# Where REDIS_URL says it all.
REDIS = {"REDIS_HOST", "REDIS_PORT", "REDIS_DB", "REDIS_USERNAME", "REDIS_CACHE_NAME"}


@pytest.mark.parametrize("name", sorted({name.upper() for name in Settings.model_fields} - REDIS))
def test_every_setting_reaches_the_replicas(name: str) -> None:
    for replica in REPLICAS.values():
        assert name in replica["environment"]


def test_nginx_knows_each_replica() -> None:
    assert set(re.findall(r"server (\w+):8000 ", NGINX)) == set(REPLICAS) == set(compose.REPLICAS)


def test_replicas_are_known_by_their_own_names() -> None:
    assert {name: service["hostname"] for name, service in REPLICAS.items()} == {name: name for name in REPLICAS}


def test_nothing_is_published_beyond_this_machine() -> None:
    ports = [port for service in FILE["services"].values() for port in service.get("ports", ())]
    assert len(ports) == 2
    assert all(port.startswith("127.0.0.1:") for port in ports)


def test_every_service_is_checked_and_waited_for() -> None:
    for name, service in FILE["services"].items():
        assert "healthcheck" in service or name in REPLICAS, name  # theirs stands in the image
        for needed, how in service.get("depends_on", {}).items():
            assert how["condition"] == "service_healthy", (name, needed)


def test_nginx_takes_bodies_as_large_as_the_api() -> None:
    assert re.findall(r"client_max_body_size (\d+)m;", NGINX) == [str(MAX_BODY_BYTES // 1024**2)]
    assert f"The body is larger than {MAX_BODY_BYTES // 1024} KiB." in NGINX


def test_the_list_of_chats_is_made_anew_by_the_key_that_marks_it() -> None:
    assert chat_index.WHOLE == compose.LISTS_WHOLE


def test_redis_evicts_nothing() -> None:
    command = FILE["services"]["redis"]["command"]
    assert command[command.index("--maxmemory-policy") + 1] == "noeviction"


def test_models_without_aws_have_profiles_of_their_own_names() -> None:
    profiles = {name: service["profiles"] for name, service in FILE["services"].items() if "profiles" in service}
    assert profiles == {name: [name] for name in compose.OWN_MODELS}


def test_images_are_built_from_what_the_ignore_file_lets_in() -> None:
    let_in = re.findall(r"^!(.+)$", (ROOT / ".dockerignore").read_text(encoding="utf-8"), re.MULTILINE)
    copied = re.findall(r"^COPY (?!--from)(.+) \S+$", (ROOT / "local" / "Dockerfile").read_text(), re.MULTILINE)
    roots = {source.split("/*")[0].removesuffix("/uv.txt") for line in copied for source in line.split()}
    assert roots <= {name.split("/*")[0] for name in let_in}
