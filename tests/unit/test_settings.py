"""Settings: the documented defaults, where values come from, and one clear line for each wrong one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from haltline.settings import Settings, SettingsError, load_settings, read_settings


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No variable of this machine, and an empty working directory, so that no `.env` is found by chance."""
    names = set(Settings.model_fields)
    for variable in [v for v in os.environ if v.lower() in names]:
        monkeypatch.delenv(variable)
    monkeypatch.chdir(tmp_path)


DEFAULTS: dict[str, Any] = {
    "host": "127.0.0.1",
    "port": 8000,
    "environment": "development",
    "log_level": "INFO",
    "log_dir": None,
    "redis_url": None,
    "redis_host": None,
    "redis_port": 6379,
    "redis_db": 0,
    "redis_cluster": False,
    "redis_auth": "none",
    "model_provider": "bedrock",
    "aws_region": "us-west-2",
    "bedrock_model_id": "amazon.nova-lite-v1:0",
    "bedrock_temperature": 0.3,
    "agent": None,
    "session_store": "file",
    "session_dir": Path("data/sessions"),
    "session_bucket": None,
    "stop_signal_ttl": 3600,
    "stop_poll_interval": 0.1,
    "signal_loss_policy": "stop",
    "signal_loss_grace": 30.0,
    "on_disconnect": "stop",
    "shutdown_grace": 20.0,
    "run_timeout": 600.0,
    "max_output_tokens": 4096,
    "auth": "none",
    "auth_allow_public": False,
    "api_keys": None,
    "jwt_issuer": None,
    "jwt_audience": None,
    "jwt_jwks": None,
    "max_live_runs": 0,
    "requests_per_minute": 0,
    "cors_origins": "",
}


def test_the_documented_defaults() -> None:
    found = read_settings().model_dump()
    assert {name: found[name] for name in DEFAULTS} == DEFAULTS


def test_a_replica_without_a_name_is_called_after_its_host() -> None:
    import socket

    assert read_settings().replica_name == socket.gethostname()


# ---- where values come from


def test_an_override_beats_the_environment_which_beats_the_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / ".env").write_text("PORT=1001\nAWS_REGION=eu-west-1\nBEDROCK_MODEL_ID=eu.amazon.nova-lite-v1:0\n")
    monkeypatch.setenv("PORT", "1002")
    monkeypatch.setenv("AWS_REGION", "eu-central-1")
    settings = read_settings(port=1003)
    assert (settings.port, settings.aws_region, settings.bedrock_model_id) == (
        1003,
        "eu-central-1",
        "eu.amazon.nova-lite-v1:0",
    )


@pytest.mark.parametrize("name", ["PORT", "port", "Port"])
def test_a_name_is_read_in_any_case(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "1002")
    assert read_settings().port == 1002


def test_an_empty_variable_counts_as_unset(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in DEFAULTS:
        monkeypatch.setenv(name.upper(), "")
    found = read_settings().model_dump()
    assert {name: found[name] for name in DEFAULTS} == DEFAULTS


def test_unknown_variables_in_the_file_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("NGINX_PORT=8080\nAWS_PROFILE=work\n")
    assert read_settings().port == 8000


@pytest.mark.parametrize(
    ("variable", "value", "field", "expected"),
    [
        pytest.param("LOG_LEVEL", "debug", "log_level", "DEBUG", id="log level in small letters"),
        pytest.param("MODEL_PROVIDER", " scripted ", "model_provider", "scripted", id="spaces around a value"),
        pytest.param("MODEL_PROVIDER", "my_models:make", "model_provider", "my_models:make", id="a model of one's own"),
        pytest.param("AGENT", "pkg.sub_1.agents:make", "agent", "pkg.sub_1.agents:make", id="an agent in a package"),
        pytest.param("LOCAL_MODEL_URL", "http://h/v1/", "local_model_url", "http://h/v1", id="no slash at the end"),
        pytest.param("STOP_POLL_INTERVAL", "0.001", "stop_poll_interval", 0.001, id="a short poll"),
        pytest.param("SIGNAL_LOSS_GRACE", "0", "signal_loss_grace", 0.0, id="no grace at all"),
        pytest.param("SHUTDOWN_GRACE", "0", "shutdown_grace", 0.0, id="no grace at the end"),
        pytest.param("PORT", "0", "port", 0, id="any free port"),
        pytest.param("PORT", "65535", "port", 65535, id="the last port"),
        pytest.param("BEDROCK_TEMPERATURE", "0", "bedrock_temperature", 0.0, id="temperature 0"),
        pytest.param("BEDROCK_TEMPERATURE", "1", "bedrock_temperature", 1.0, id="temperature 1"),
        pytest.param("REPLICA_NAME", "backend-1", "replica_name", "backend-1", id="replica name"),
        pytest.param("REPLICA_NAME", "r" * 128, "replica_name", "r" * 128, id="longest replica name"),
    ],
)
def test_usable_values(
    variable: str, value: str, field: str, expected: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, value)
    assert getattr(read_settings(), field) == expected


# ---- wrong values

WRONG = [
    ("PORT", "70000", "PORT='70000': input should be less than or equal to 65535"),
    ("PORT", "-1", "PORT='-1': input should be greater than or equal to 0"),
    ("PORT", "http", "PORT='http': input should be a valid integer, unable to parse string as an integer"),
    (
        "LOG_LEVEL",
        "loud",
        "LOG_LEVEL='LOUD': input should be 'TRACE', 'DEBUG', 'INFO', 'WARNING', 'ERROR' or 'CRITICAL'",
    ),
    ("MODEL_PROVIDER", "foo", "MODEL_PROVIDER='foo': use bedrock, local, scripted or module:callable"),
    ("MODEL_PROVIDER", "a:b:c", "MODEL_PROVIDER='a:b:c': use bedrock, local, scripted or module:callable"),
    ("AGENT", "my_agents", "AGENT='my_agents': use module:callable, for example my_agents:make_agent"),
    ("AGENT", "my-agents:make", "AGENT='my-agents:make': use module:callable, for example my_agents:make_agent"),
    ("LOCAL_MODEL_URL", "ftp://h", "LOCAL_MODEL_URL='ftp://h': use an http:// or https:// address"),
    ("SESSION_STORE", "redis", "SESSION_STORE='redis': input should be 'file' or 's3'"),
    ("STOP_SIGNAL_TTL", "0", "STOP_SIGNAL_TTL='0': input should be greater than or equal to 1"),
    ("STOP_POLL_INTERVAL", "0", "STOP_POLL_INTERVAL='0': input should be greater than 0"),
    ("STOP_POLL_INTERVAL", "nan", "STOP_POLL_INTERVAL='nan': input should be a finite number"),
    ("RUN_TIMEOUT", "inf", "RUN_TIMEOUT='inf': input should be a finite number"),
    ("RUN_TIMEOUT", "0", "RUN_TIMEOUT='0': input should be greater than 0"),
    ("SHUTDOWN_GRACE", "-1", "SHUTDOWN_GRACE='-1': input should be greater than or equal to 0"),
    ("SIGNAL_LOSS_POLICY", "panic", "SIGNAL_LOSS_POLICY='panic': input should be 'stop' or 'continue'"),
    ("ON_DISCONNECT", "halt", "ON_DISCONNECT='halt': input should be 'stop' or 'continue'"),
    ("MAX_OUTPUT_TOKENS", "0", "MAX_OUTPUT_TOKENS='0': input should be greater than or equal to 1"),
    ("BEDROCK_TEMPERATURE", "1.1", "BEDROCK_TEMPERATURE='1.1': input should be less than or equal to 1"),
    ("BEDROCK_TEMPERATURE", "nan", "BEDROCK_TEMPERATURE='nan': input should be less than or equal to 1"),
    ("REDIS_PORT", "0", "REDIS_PORT='0': input should be greater than or equal to 1"),
    ("REDIS_DB", "-1", "REDIS_DB='-1': input should be greater than or equal to 0"),
    ("REPLICA_NAME", "a b", r"REPLICA_NAME='a b': string should match pattern '^[\x21-\x7e]+$'"),
    ("REPLICA_NAME", "a\r\nx: y", r"REPLICA_NAME='a\r\nx: y': string should match pattern '^[\x21-\x7e]+$'"),
    ("AUTH", "basic", "AUTH='basic': input should be 'none', 'api-keys', 'jwt' or 'apigateway'"),
]


@pytest.mark.parametrize(("variable", "value", "line"), WRONG, ids=[f"{w[0]}={w[1]!r}" for w in WRONG])
def test_a_wrong_value_is_one_line_that_names_it(
    variable: str, value: str, line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(SettingsError) as error:
        read_settings()
    assert str(error.value) == line


def test_every_wrong_value_is_named_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PORT", "x")
    monkeypatch.setenv("REDIS_DB", "-1")
    with pytest.raises(SettingsError) as error:
        read_settings()
    assert str(error.value) == (
        "PORT='x': input should be a valid integer, unable to parse string as an integer; "
        "REDIS_DB='-1': input should be greater than or equal to 0"
    )


def test_a_long_wrong_value_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AGENT", "x" * 500)
    with pytest.raises(SettingsError) as error:
        read_settings()
    assert str(error.value) == f"AGENT='{'x' * 60}': use module:callable, for example my_agents:make_agent"


def test_a_value_of_another_kind_is_not_shown() -> None:
    with pytest.raises(SettingsError) as error:
        read_settings(port=[8000])
    assert str(error.value) == "PORT: input should be a valid integer"


HEX = "0123456789abcdef" * 4
JWT = {"AUTH": "jwt", "JWT_ISSUER": "https://i/", "JWT_AUDIENCE": "haltline", "JWT_JWKS": "https://i/jwks.json"}


@pytest.mark.parametrize(
    ("environment", "line"),
    [
        pytest.param({"SESSION_STORE": "s3"}, "SESSION_STORE=s3 and SESSION_BUCKET belong together", id="no bucket"),
        pytest.param({"SESSION_BUCKET": "b"}, "SESSION_STORE=s3 and SESSION_BUCKET belong together", id="no s3"),
        pytest.param({"REDIS_CLUSTER": "true", "REDIS_DB": "1"}, "REDIS_DB=1: a cluster", id="cluster"),
        pytest.param({"REDIS_AUTH": "password"}, "REDIS_AUTH=password needs REDIS_PASSWORD", id="no password"),
        pytest.param({"REDIS_PASSWORD": "hunter2"}, "REDIS_PASSWORD is set but REDIS_AUTH=none", id="password unused"),
        pytest.param({"REDIS_AUTH": "iam"}, "REDIS_AUTH=iam needs REDIS_USERNAME", id="no user"),
        pytest.param(
            {"REDIS_AUTH": "iam", "REDIS_USERNAME": "u"}, "REDIS_AUTH=iam needs REDIS_CACHE_NAME", id="no cache"
        ),
        pytest.param(
            {"REDIS_AUTH": "iam", "REDIS_USERNAME": "u", "REDIS_CACHE_NAME": "c", "REDIS_URL": "redis://h"},
            "REDIS_AUTH=iam needs TLS; write REDIS_URL=rediss://",
            id="no tls",
        ),
        pytest.param({"AUTH": "apigateway"}, "AUTH=apigateway is for Lambda", id="not on lambda"),
        pytest.param({"AUTH": "api-keys"}, "AUTH=api-keys needs API_KEYS; set it", id="no keys"),
        *(
            pytest.param({**JWT, name: ""}, f"AUTH=jwt needs {name}; set it", id=f"no {name}")
            for name in ("JWT_ISSUER", "JWT_AUDIENCE", "JWT_JWKS")
        ),
        *(
            pytest.param(
                {**JWT, "AUTH": method, "JWT_JWKS": ""},
                f"JWT_ISSUER is set but AUTH={method} does not use it; set AUTH=jwt",
                id=f"tokens unused with {method}",
            )
            for method in ("none", "apigateway")
        ),
        *(
            pytest.param(
                {**JWT, "AUTH": method, "API_KEYS": f"hunter2={HEX}"},
                f"API_KEYS is set but AUTH={method} does not use it; set AUTH=api-keys",
                id=f"keys unused with {method}",
            )
            for method in ("none", "jwt", "apigateway")
        ),
        pytest.param(
            {"AUTH": "api-keys", "API_KEYS": f"alice={HEX}", "JWT_JWKS": "hunter2"},
            "JWT_JWKS is set but AUTH=api-keys does not use it; set AUTH=jwt",
            id="both",
        ),
        *(
            pytest.param(
                {**JWT, "JWT_JWKS": url}, "JWT_JWKS: whoever is on the way could replace the keys; use https://"
            )
            for url in (
                "http://issuer.example/jwks",
                "HTTP://issuer.example",
                "http://127.0.0.1.issuer.example/",
                "http://0.0.0.0/",
            )
        ),
        *(
            pytest.param({**JWT, "JWT_JWKS": url}, "JWT_JWKS: use an https:// address or the path of a file")
            for url in (
                "ftp://h/jwks",
                "file:///hunter2",
                "https://",
                "https://h:port/",
                "https://h/a b",
                "https://h/\x01",
                "https://h:0/",
                "https://[::1/",
            )
        ),
        pytest.param(
            {**JWT, "JWT_JWKS": "https://user:hunter2@h/jwks"},
            "JWT_JWKS: no user and password can stand in this address",
            id="credentials in the address",
        ),
    ],
)
def test_settings_that_belong_together_are_told(
    environment: dict[str, str], line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    if environment.get("AUTH") == "apigateway" and len(environment) > 1:
        monkeypatch.setenv("AWS_LAMBDA_FUNCTION_NAME", "chat")
    with pytest.raises(SettingsError) as error:
        read_settings()
    assert str(error.value).startswith(line)
    assert "hunter2" not in str(error.value)


@pytest.mark.parametrize(
    "environment",
    [
        pytest.param({"SESSION_STORE": "s3", "SESSION_BUCKET": "b"}, id="s3"),
        pytest.param({"REDIS_CLUSTER": "true", "REDIS_AUTH": "password", "REDIS_PASSWORD": "p"}, id="cluster"),
        pytest.param(
            {"REDIS_AUTH": "iam", "REDIS_USERNAME": "u", "REDIS_CACHE_NAME": "c", "REDIS_URL": "rediss://h"}, id="iam"
        ),
        pytest.param({"AUTH": "apigateway", "AWS_LAMBDA_FUNCTION_NAME": "chat"}, id="on lambda"),
        pytest.param({"AUTH": "api-keys", "API_KEYS": f"alice={HEX}", "HOST": "0.0.0.0"}, id="keys"),
        pytest.param({**JWT, "HOST": "0.0.0.0"}, id="tokens"),
        *(
            pytest.param({**JWT, "JWT_JWKS": place}, id=place)
            for place in (
                "http://127.0.0.1:9/jwks",
                "http://localhost/",
                "http://[::1]:80/",
                "HTTPS://h:8443/x?y=z",
                "jwks.json",
            )
        ),
    ],
)
def test_settings_that_belong_together_are_taken(environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    read_settings()


# ---- the public address


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "localhost", "LOCALHOST", "ip6-localhost"])
def test_a_loopback_address_needs_no_auth(host: str) -> None:
    assert read_settings(host=host).host == host


@pytest.mark.parametrize(
    "host", ["0.0.0.0", "::", "192.168.1.4", "example.org", "localhost.example.org", "127.0.0.1.example.org"]
)
def test_a_public_address_without_auth_is_refused(host: str) -> None:
    with pytest.raises(SettingsError) as error:
        read_settings(host=host)
    assert str(error.value) == (
        f"AUTH=none on the public address HOST={host} is refused: bind 127.0.0.1, or set AUTH_ALLOW_PUBLIC=1"
    )
    assert read_settings(host=host, auth_allow_public=True).host == host


def test_a_line_end_in_host_does_not_break_the_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOST", "0.0.0.0\nINFO all is well")
    with pytest.raises(SettingsError) as error:
        read_settings()
    assert len(str(error.value).splitlines()) == 1


# ---- secrets


SECRET = "hunter2-hunter2"


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        pytest.param("REDIS_URL", f"https://user:{SECRET}@h:1", id="url of another scheme"),
        pytest.param("REDIS_URL", f"user:{SECRET}@h:1", id="url without a scheme"),
    ],
)
def test_a_wrong_secret_is_named_and_not_shown(variable: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(SettingsError) as error:
        read_settings()
    assert str(error.value).startswith(f"{variable}: ")
    assert SECRET not in str(error.value)
    assert error.value.__cause__ is None  # a traceback would show the value


KEY, OTHER = "f00d" * 16, "BEEF" * 16  # as `openssl rand -hex 32` makes one, which looks like its hash


@pytest.mark.parametrize(
    ("value", "line"),
    [
        pytest.param(",", "there is no entry; use principal=HEX, HEX the SHA-256 of the key", id="nothing"),
        pytest.param(KEY, "entry 1 has no '='; use principal=HEX, HEX the SHA-256 of the key", id="a key"),
        pytest.param(f"a={HEX},{KEY}", "entry 2 has no '='; use principal=HEX, HEX the SHA-256 of the key", id="2nd"),
        pytest.param(f"={KEY}", "entry 1 names no principal that can be used", id="no principal"),
        pytest.param(f":admin={KEY}", "entry 1 names no principal that can be used", id="no principal but a scope"),
        pytest.param(f"{'x' * 257}={KEY}", "entry 1 names no principal that can be used", id="a long name"),
        pytest.param(f"a\tb={KEY}", "entry 1 names no principal that can be used", id="a control character"),
        pytest.param(f"a ={KEY}", "entry 1 names no principal that can be used", id="a space at the end of it"),
        pytest.param(f"a=b={KEY}", "entry 1 (a) has no SHA-256 after the '='; it is 64 hex digits", id="two ="),
        pytest.param(
            f"a= {KEY}", "entry 1 (a) has no SHA-256 after the '='; it is 64 hex digits", id="a space before it"
        ),
        pytest.param(f"a={KEY[:-1]}", "entry 1 (a) has no SHA-256 after the '='; it is 64 hex digits", id="too short"),
        pytest.param(f"a={KEY}0", "entry 1 (a) has no SHA-256 after the '='; it is 64 hex digits", id="too long"),
        pytest.param(f"a={KEY[1:]}g", "entry 1 (a) has no SHA-256 after the '='; it is 64 hex digits", id="no hex"),
        pytest.param(f"a={KEY[1:]}٣", "entry 1 (a) has no SHA-256 after the '='; it is 64 hex digits", id="no ASCII"),
        pytest.param(f"{KEY}=a", "entry 1 has no SHA-256 after the '='; it is 64 hex digits", id="the wrong way round"),
        pytest.param(
            f"a:root={KEY}", "entry 1 (a) has an unknown scope; there is only admin: principal:admin=HEX", id="a scope"
        ),
        pytest.param(
            f"a:={KEY}",
            "entry 1 (a) has an unknown scope; there is only admin: principal:admin=HEX",
            id="an empty scope",
        ),
        pytest.param(
            f"a:b:admin={KEY}", "entry 1 (a) has an unknown scope; there is only admin: principal:admin=HEX", id="two :"
        ),
        pytest.param(
            f"a:Admin={KEY}", "entry 1 (a) has an unknown scope; there is only admin: principal:admin=HEX", id="Admin"
        ),
        pytest.param(
            f"{KEY}:root={OTHER}", "entry 1 has an unknown scope; there is only admin: principal:admin=HEX", id="a key:"
        ),
        pytest.param(f"a={KEY},b={KEY}", "entry 2 (b) has the key of another entry; give each its own", id="twice"),
        pytest.param(
            f"a={KEY},,a:admin={KEY.upper()}",
            "entry 3 (a) has the key of another entry; give each its own",
            id="in capitals",
        ),
    ],
)
def test_a_wrong_entry_is_told_by_its_number_and_never_by_a_key(
    value: str, line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AUTH", "api-keys")
    monkeypatch.setenv("API_KEYS", value)
    with pytest.raises(SettingsError) as error:
        read_settings()
    assert str(error.value) == f"API_KEYS: {line}"
    assert error.value.__cause__ is None


def test_keys_and_their_hashes_are_not_shown_with_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUTH", "api-keys")
    monkeypatch.setenv("API_KEYS", f"alice={HEX}, bob:admin={OTHER}")
    settings = read_settings()
    assert HEX not in (shown := f"{settings!r} {settings} {settings.model_dump()} {settings.model_dump_json()}")
    assert OTHER not in shown


def test_a_secret_is_not_shown_with_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REDIS_URL", f"redis://:{SECRET}@h")
    settings = read_settings()
    assert SECRET not in f"{settings!r} {settings} {settings.model_dump()}"


# ---- the bus, the origins


@pytest.mark.parametrize(
    ("values", "address", "has_redis"),
    [
        pytest.param({}, "redis://127.0.0.1:6379/0", False, id="nothing set"),
        pytest.param({"redis_host": "redis"}, "redis://redis:6379/0", True, id="host"),
        pytest.param(
            {"redis_host": "r", "redis_port": 7000, "redis_db": 3}, "redis://r:7000/3", True, id="host, port, db"
        ),
        pytest.param({"redis_url": "rediss://u:p@r:1/2"}, "rediss://u:p@r:1/2", True, id="url"),
        pytest.param({"redis_url": "unix:///run/r.sock"}, "unix:///run/r.sock", True, id="socket"),
        pytest.param({"redis_url": "redis://a", "redis_host": "b"}, "redis://a", True, id="url beats host"),
        pytest.param({"redis_port": 7000}, "redis://127.0.0.1:7000/0", False, id="a port names no Redis"),
    ],
)
def test_the_address_of_the_bus(values: dict[str, Any], address: str, has_redis: bool) -> None:
    settings = read_settings(**values)
    assert (settings.redis_address, settings.has_redis) == (address, has_redis)


@pytest.mark.parametrize(
    ("value", "origins"),
    [
        ("", []),
        (" , ,", []),
        ("https://a.example", ["https://a.example"]),
        (" https://a.example , http://localhost:3000 ", ["https://a.example", "http://localhost:3000"]),
    ],
)
def test_origins_are_a_comma_list(value: str, origins: list[str]) -> None:
    assert read_settings(cors_origins=value).allowed_origins == origins


def test_settings_cannot_be_changed() -> None:
    settings = read_settings()
    with pytest.raises(ValueError, match="frozen"):
        settings.port = 1


# ---- the end of a start


def test_an_entry_point_ends_with_one_line_and_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        load_settings(port="x")
    assert end.value.code == 2
    assert capsys.readouterr() == (
        "",
        "haltline: PORT='x': input should be a valid integer, unable to parse string as an integer\n",
    )


def test_the_process_ends_with_one_line_and_status_2(tmp_path: Path) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", "from haltline.settings import load_settings; load_settings()"],
        env={**os.environ, "STOP_POLL_INTERVAL": "never"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (
        2,
        "",
        "haltline: STOP_POLL_INTERVAL='never': input should be a valid number, unable to parse string as a number\n",
    )
