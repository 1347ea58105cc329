"""The control function starts cold in front of a user who wants a stop: it must not import what only a chat needs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.stack import ROOT

HEAVY = ["boto3", "botocore", "jwt", "mcp", "openai", "strands"]

PROBE = f"""
import json, sys

found = {{}}

def weigh(step):
    found[step] = sorted({{name.partition(".")[0] for name in sys.modules}} & set({HEAVY!r}))
"""

CONTROL = """
import asyncio

import haltline.control_routes
weigh("the routes")

from haltline.bootstrap import make_resources
weigh("the composition root")

from haltline.app import make_app
weigh("the app's module")

from haltline.observability import configure_logging
from haltline.settings import read_settings

settings = read_settings()
configure_logging(settings)
app = make_app(make_resources(settings, serves_chat=False))
app.openapi()
weigh("the app")

import httpx2

async def ask():
    async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url="http://haltline") as http:
        assert (await http.get("/live")).status_code == 200
        assert (await http.get("/metrics")).status_code == 200
        assert (await http.post("/api/v1/stop/bulk", content=b"{")).status_code == 422
        assert (await http.post("/api/v1/chat/a", content=b"{")).status_code == 405, "no chat is served"
        for call in (http.post("/api/v1/stop/a"), http.get("/api/v1/chat/a"), http.delete("/api/v1/chat/a")):
            assert (await call).status_code == 503, "nobody listens at that address"
        assert (await http.get("/health")).status_code == 503

asyncio.run(ask())
weigh("answers")
"""

FUNCTION = f"""
import os, sys

os.environ["AWS_LAMBDA_FUNCTION_NAME"] = "control"
sys.path.insert(0, {str(ROOT / "functions/control")!r})
from app import handler
# Powertools imports botocore's name and nothing of it.
heavy = {{"boto3", "botocore.session", "mcp", "openai", "prometheus_client", "strands"}}
found["the function's init"] = sorted(set(sys.modules) & heavy)

handler.prepare()
found["prepared"] = sorted(set(sys.modules) & {{"mcp", "openai", "strands"}})
"""

Weigh = Callable[[str], dict[str, list[str]]]


@pytest.fixture
def weighed(tmp_path: Path, pytestconfig: pytest.Config) -> Weigh:
    """Run code in a fresh interpreter; what of the heavy packages it held at each step."""
    environment = {**os.environ, "REDIS_URL": "unix:///nowhere/redis.sock", "MODEL_PROVIDER": "scripted"}
    if sys.dont_write_bytecode and pytestconfig.pluginmanager.hasplugin("cacheprovider"):
        environment.pop("PYTHONDONTWRITEBYTECODE", None)  # compiled anew each time, the imports take ten times as long
        environment["PYTHONPYCACHEPREFIX"] = str(pytestconfig.cache.mkdir("bytecode"))  # type: ignore[union-attr]

    def run(code: str) -> dict[str, list[str]]:
        ended = subprocess.run(
            [sys.executable, "-c", f"{PROBE}\n{code}\nprint(json.dumps(found))"],
            env=environment,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=50,
            check=False,
        )
        assert ended.returncode == 0, ended.stderr
        found: dict[str, list[str]] = json.loads(ended.stdout.splitlines()[-1])
        return found

    return run


def test_the_control_app_is_light_at_every_step(weighed: Weigh) -> None:
    steps = ("the routes", "the composition root", "the app's module", "the app", "answers")
    assert weighed(CONTROL) == {step: [] for step in steps}


def test_the_control_function_is_as_light(weighed: Weigh) -> None:
    """What it loads before a snapshot costs no start; Strands and its like are in neither."""
    assert weighed(FUNCTION) == {"the function's init": [], "prepared": []}


S3 = """
import os

os.environ |= {
    "SESSION_STORE": "s3", "SESSION_BUCKET": "b", "EVENT_BUS": "default",
    "AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x",
}
from haltline.app import make_app
from haltline.bootstrap import make_resources
from haltline.settings import read_settings

resources = make_resources(read_settings(), serves_chat=False)
make_app(resources).openapi()
weigh("the app")
resources.store.warm()
weigh("a warm store")
"""


def test_chats_in_s3_weigh_nothing_before_their_first_use(weighed: Weigh) -> None:
    assert weighed(S3) == {"the app": [], "a warm store": ["botocore"]}


def test_the_agent_is_what_imports_strands(weighed: Weigh) -> None:
    """The probe itself: it must see what it looks for."""
    assert "strands" in weighed("import haltline.agent; weigh('agent')")["agent"]


IAM = """
from haltline import cache_auth
from haltline.bootstrap import make_resources
from haltline.settings import read_settings

resources = make_resources(
    read_settings(
        redis_url="rediss://h", redis_cluster=True, redis_auth="iam", redis_username="u", redis_cache_name="c"
    ),
    serves_chat=False,
)
weigh("the composition root")
cache_auth.prepare()
weigh("prepared")
"""


def test_what_signs_in_to_elasticache_is_imported_when_asked(weighed: Weigh) -> None:
    assert weighed(IAM) == {"the composition root": [], "prepared": ["botocore"]}


AUTH = """
from haltline.authentication import make_authenticator
from haltline.settings import read_settings

make_authenticator(read_settings())
make_authenticator(read_settings(auth="api-keys", api_keys="a=" + "0" * 64))
weigh("without tokens")
make_authenticator(read_settings(auth="jwt", jwt_issuer="i", jwt_audience="a", jwt_jwks="https://i/jwks"))
weigh("with tokens")
"""


def test_what_checks_tokens_is_imported_where_there_are_any(weighed: Weigh) -> None:
    assert weighed(AUTH) == {"without tokens": [], "with tokens": ["jwt"]}
