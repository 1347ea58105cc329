"""Every setting of the product, in one typed class. Nothing else reads the environment.

CONFIGURATION.md says what each one means to a user.
"""

from __future__ import annotations

import os
import re
import socket
import sys
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn, Self
from urllib.parse import urlsplit, urlunsplit

from pydantic import AfterValidator, Field, SecretStr, ValidationError, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from haltline.api_keys import parse_api_keys

_OBJECT_PATH = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")
_LOCAL_NAMES = {"localhost", "localhost.localdomain", "ip6-localhost"}


class SettingsError(Exception):
    """A setting has a value that cannot be used. The text is one line and names the variable."""


def _provider(value: str) -> str:
    if value in ("bedrock", "local", "scripted") or _OBJECT_PATH.fullmatch(value):
        return value
    raise ValueError("use bedrock, local, scripted or module:callable")


def _object_path(value: str | None) -> str | None:
    if value and not _OBJECT_PATH.fullmatch(value):
        raise ValueError("use module:callable, for example my_agents:make_agent")
    return value


def _redis_url(value: SecretStr | None) -> SecretStr | None:
    if value and not value.get_secret_value().startswith(("redis://", "rediss://", "unix://")):
        raise ValueError("use redis://, rediss:// or unix://, for example redis://127.0.0.1:6379/0")
    try:
        _ = urlsplit(value.get_secret_value()).port if value else None
    except ValueError:  # whose text may show half of a password, as the port
        raise ValueError("write / ? # [ ] in a user name and a password as %2F %3F %23 %5B %5D") from None
    return value


def _api_keys(value: SecretStr | None) -> SecretStr | None:
    if value:
        parse_api_keys(value.get_secret_value())
    return value


def _jwks(value: str | None) -> str | None:
    if value is None or "://" not in value:  # a file
        return value
    try:
        url = urlsplit(value)
        usable = url.scheme in ("http", "https") and url.hostname and url.port != 0 and value.isascii()
    except ValueError:
        usable = False
    if not usable or not value.isprintable() or " " in value:
        raise ValueError("use an https:// address or the path of a file")
    if "@" in url.netloc:
        raise ValueError("no user and password can stand in this address")
    return urlunsplit(url)  # the scheme in small letters


def _http_url(value: str) -> str:
    if not value.startswith(("http://", "https://")):
        raise ValueError("use an http:// or https:// address")
    return value.rstrip("/")


def _replica_name() -> str:
    """The host's name. On Lambda, where all have the same, that of the log stream, which SnapStart does not tell."""
    if not on_lambda():
        return socket.gethostname()
    stream = os.environ.get("AWS_LAMBDA_LOG_STREAM_NAME", "")
    return stream.rpartition("]")[2] or os.environ["AWS_LAMBDA_FUNCTION_NAME"]


Seconds = Annotated[float, Field(allow_inf_nan=False)]


class Settings(BaseSettings):
    """Read from the environment, then from `.env` in the working directory; names are the fields' in capitals."""

    model_config = SettingsConfigDict(
        env_file=".env",
        env_file_encoding="utf-8",
        env_ignore_empty=True,
        extra="ignore",
        frozen=True,
        str_strip_whitespace=True,
    )

    host: str = "127.0.0.1"
    port: int = Field(8000, ge=0, le=65535)
    environment: str = "development"
    log_level: Literal["TRACE", "DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"] = "INFO"
    log_dir: Path | None = None
    replica_name: str = Field(default_factory=_replica_name, min_length=1, max_length=128, pattern=r"^[\x21-\x7e]+$")

    redis_url: Annotated[SecretStr | None, AfterValidator(_redis_url)] = None
    redis_host: str | None = None
    redis_port: int = Field(6379, ge=1, le=65535)
    redis_db: int = Field(0, ge=0)
    redis_cluster: bool = False
    redis_auth: Literal["none", "password", "iam"] = "none"
    redis_username: str | None = None
    redis_password: SecretStr | None = None
    redis_cache_name: str | None = None

    model_provider: Annotated[str, AfterValidator(_provider)] = "bedrock"
    aws_region: str = "us-west-2"
    bedrock_model_id: str = Field("amazon.nova-lite-v1:0", min_length=1)
    bedrock_temperature: float = Field(0.3, ge=0, le=1)
    local_model_id: str = Field("SmolLM2-135M-Instruct", min_length=1)
    local_model_url: Annotated[str, AfterValidator(_http_url)] = "http://127.0.0.1:8081/v1"
    scripted_pace_ms: float = Field(20, ge=0, le=60_000, allow_inf_nan=False)
    agent: Annotated[str | None, AfterValidator(_object_path)] = None

    session_store: Literal["file", "s3"] = "file"
    session_dir: Path = Path("data/sessions")
    session_bucket: str | None = None
    event_bus: str | None = None

    stop_signal_ttl: int = Field(3600, ge=1, le=30 * 86400)
    stop_poll_interval: Seconds = Field(0.1, gt=0, le=60)
    signal_loss_policy: Literal["stop", "continue"] = "stop"
    signal_loss_grace: Seconds = Field(30, ge=0, le=86400)
    on_disconnect: Literal["stop", "continue"] = "stop"
    shutdown_grace: Seconds = Field(20, ge=0, le=3600)
    run_timeout: Seconds = Field(600, gt=0, le=86400)
    max_output_tokens: int = Field(4096, ge=1, le=1_000_000)

    auth: Literal["none", "api-keys", "jwt", "apigateway"] = "none"
    auth_allow_public: bool = False
    api_keys: Annotated[SecretStr | None, AfterValidator(_api_keys)] = None
    jwt_issuer: str | None = None
    jwt_audience: str | None = None
    jwt_jwks: Annotated[str | None, AfterValidator(_jwks)] = None
    max_live_runs: int = Field(0, ge=0, le=10_000)
    requests_per_minute: int = Field(0, ge=0, le=100_000)
    max_chats: int = Field(0, ge=0)
    max_message_bytes: int = Field(64 * 1024, ge=1, le=128 * 1024)
    allowed_hosts: str = ""
    cors_origins: str = ""

    @model_validator(mode="before")
    @classmethod
    def _upper_log_level(cls, values: Any) -> Any:
        if isinstance(values, dict) and isinstance(values.get("log_level"), str):
            values["log_level"] = values["log_level"].upper()
        return values

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        # Named in the message because an error of the whole model has no field of its own.
        if self.auth == "none" and not self.auth_allow_public and not self._is_loopback(self.host):
            raise ValueError(
                f"AUTH=none on the public address HOST={self.host} is refused: "
                "bind 127.0.0.1, or set AUTH_ALLOW_PUBLIC=1"
            )
        if (self.session_store == "s3") != (self.session_bucket is not None):
            raise ValueError("SESSION_STORE=s3 and SESSION_BUCKET belong together; set both or neither")
        self._check_redis_auth()
        if self.auth == "apigateway" and not on_lambda():
            raise ValueError(
                "AUTH=apigateway is for Lambda: its claims come from API Gateway, which is not in front here"
            )
        self._check_auth()
        return self

    def _check_auth(self) -> None:
        needed = {"api-keys": ("API_KEYS",), "jwt": ("JWT_ISSUER", "JWT_AUDIENCE", "JWT_JWKS")}
        for method, names in needed.items():
            for name in names:
                is_set = getattr(self, name.lower()) is not None
                if self.auth == method and not is_set:
                    raise ValueError(f"AUTH={method} needs {name}; set it")
                if self.auth != method and is_set:  # it would not be used, and nobody would know
                    raise ValueError(f"{name} is set but AUTH={self.auth} does not use it; set AUTH={method}")
        if self.jwt_jwks and self.jwt_jwks.startswith("http://"):
            host = urlsplit(self.jwt_jwks).hostname or ""
            if not self._is_loopback(host):
                raise ValueError("JWT_JWKS: whoever is on the way could replace the keys; use https://")

    def _check_redis_auth(self) -> None:
        if self.redis_cluster and self.redis_db:
            raise ValueError(f"REDIS_DB={self.redis_db}: a cluster (REDIS_CLUSTER=true) has database 0 only")
        needed = {"none": (), "password": ("REDIS_PASSWORD",), "iam": ("REDIS_USERNAME", "REDIS_CACHE_NAME")}
        for name in needed[self.redis_auth]:
            if not getattr(self, name.lower()):
                raise ValueError(f"REDIS_AUTH={self.redis_auth} needs {name}; set it")
        if self.redis_auth == "none" and self.redis_password:  # it would not be used, and nobody would know
            raise ValueError("REDIS_PASSWORD is set but REDIS_AUTH=none does not use it; set REDIS_AUTH=password")
        if self.redis_auth == "iam" and not self.redis_address.startswith("rediss://"):
            raise ValueError("REDIS_AUTH=iam needs TLS; write REDIS_URL=rediss://…")

    @staticmethod
    def _is_loopback(host: str) -> bool:
        if host.lower() in _LOCAL_NAMES:
            return True
        try:
            return ip_address(host).is_loopback
        except ValueError:
            return False

    @property
    def redis_address(self) -> str:
        """The URL of the signal bus; 127.0.0.1:6379 where neither REDIS_URL nor REDIS_HOST is set."""
        if self.redis_url:
            return self.redis_url.get_secret_value()
        return f"redis://{self.redis_host or '127.0.0.1'}:{self.redis_port}/{self.redis_db}"

    @property
    def has_redis(self) -> bool:
        """Whether the user named a Redis of their own."""
        return self.redis_url is not None or self.redis_host is not None

    @property
    def host_names(self) -> list[str]:
        """ALLOWED_HOSTS as a list, in lower case."""
        return _listed(self.allowed_hosts.lower())

    @property
    def allowed_origins(self) -> list[str]:
        """CORS_ORIGINS as a list; empty means closed."""
        return _listed(self.cors_origins)


def _listed(text: str) -> list[str]:
    return [item.strip() for item in text.split(",") if item.strip()]


def on_lambda() -> bool:
    """Whether this process is a Lambda function's: Lambda sets this variable, and nothing else does."""
    return bool(os.environ.get("AWS_LAMBDA_FUNCTION_NAME"))


def read_settings(**overrides: Any) -> Settings:
    """Read the settings; `overrides` (field names) win over the environment.

    Raises:
        SettingsError: one line that names each wrong variable.
    """
    try:
        return Settings(**overrides)
    except ValidationError as error:
        raise SettingsError(" ".join("; ".join(map(_line, error.errors())).split())) from None


def load_settings(**overrides: Any) -> Settings:
    """`read_settings` for an entry point: a wrong value ends the process with one line on stderr, status 2."""
    try:
        return read_settings(**overrides)
    except SettingsError as error:
        exit_with(str(error))


def exit_with(line: str) -> NoReturn:
    """Say one line on stderr and end with the status of a wrong setting, 2."""
    sys.stderr.write(f"haltline: {line}\n")
    raise SystemExit(2)


def _line(error: Any) -> str:
    message = str(error["msg"]).removeprefix("Value error, ")
    if not error["loc"]:
        return message
    name = str(error["loc"][0]).upper()
    value = error.get("input")
    secret = name in ("REDIS_URL", "REDIS_PASSWORD", "API_KEYS", "JWT_JWKS")
    shown = "" if secret or not isinstance(value, str | int | float) else f"={str(value)[:60]!r}"
    return f"{name}{shown}: {message[:1].lower()}{message[1:]}"
