"""How Redis or Valkey is reached: one server or a cluster, with or without TLS, signed in as somebody or nobody."""

from __future__ import annotations

import time
from functools import cache
from typing import Any

from redis.asyncio import BlockingConnectionPool, Connection, Redis, SSLConnection, UnixDomainSocketConnection
from redis.asyncio.connection import AbstractConnection, RedisSSLContext, parse_url
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.credentials import CredentialProvider, UsernamePasswordCredentialProvider
from redis.exceptions import RedisError
from redis.maint_notifications import MaintNotificationsConfig

from haltline.cache_auth import CacheCredentials
from haltline.redis_cluster import ClusterRedis
from haltline.settings import Settings

COMMAND_TIMEOUT = 2.0  # seconds until a silent bus counts as gone
MAX_AGE = 11 * 3600.0  # seconds; ElastiCache closes a connection that signed in with IAM after 12 hours


class Freshness:
    """Which connections of a client may still be used."""

    def __init__(self, max_age: float = MAX_AGE) -> None:
        """`max_age`: seconds that a connection may be used."""
        self._max_age, self._era = max_age, 0

    def now(self) -> tuple[int, float]:
        """When a connection is opened. By the wall's clock: the other one may stand still while a machine is frozen."""
        return self._era, time.time()

    def holds(self, opened: tuple[int, float]) -> bool:
        """Whether a connection opened then may be used."""
        era, at = opened
        return era == self._era and time.time() - at < self._max_age

    def renew(self) -> None:
        """None that is open now is used again, but for what it is busy with."""
        self._era += 1


class _Aging(AbstractConnection):
    """A connection that is opened anew, before a command is sent on it, when it may not be used any longer."""

    def __init__(self, *, freshness: Freshness, **options: Any) -> None:
        super().__init__(**options)
        self._freshness, self._opened = freshness, freshness.now()

    async def connect(self) -> None:
        """Be connected. The pool calls this before it hands a connection out."""
        if self.is_connected and not self._freshness.holds(self._opened):
            await self.disconnect(nowait=True)  # a peer that is gone would be waited for
        await super().connect()  # type: ignore[no-untyped-call]

    async def on_connect_check_health(self, check_health: bool = True) -> None:
        """Greet the server."""
        self._opened = self._freshness.now()
        await super().on_connect_check_health(check_health)


class _Tcp(_Aging, Connection):
    pass


class _Tls(_Aging, SSLConnection):
    def __init__(self, *, context: RedisSSLContext, **options: Any) -> None:
        super().__init__(**options)
        self.ssl_context = context  # one for all: each would read the machine's certificates, for tens of ms


class _Unix(_Aging, UnixDomainSocketConnection):
    pass


_CLASSES: dict[Any, type[_Aging]] = {SSLConnection: _Tls, UnixDomainSocketConnection: _Unix}


@cache
def _context(url: str) -> RedisSSLContext:
    """What a rediss:// URL says of TLS, read. Raises: OSError, RedisError."""
    told: dict[str, Any] = {name: value for name, value in parse_url(url).items() if name.startswith("ssl_")}
    context: RedisSSLContext = SSLConnection(**told).ssl_context
    context.get()
    return context


def connect(
    url: str,
    *,
    cluster: bool = False,
    credentials: CredentialProvider | None = None,
    freshness: Freshness | None = None,
    timeout: float | None = COMMAND_TIMEOUT,
    connections: int = 64,
    beside: Redis | None = None,
) -> Redis:
    """A client that never sends a command twice by itself: after a lost reply only the caller knows whether it may.

    Nothing connects here.

    Args:
        url: redis://, rediss:// or unix://; of a cluster, any of its nodes.
        cluster: whether the server runs in cluster mode.
        credentials: asked for user and password whenever a connection is opened.
        freshness: which connections may be used; one of its own by default.
        timeout: seconds a reply may take; None for a connection that listens.
        connections: at most this many to a server; a further command waits for one as long as a reply may take.
        beside: a client of the same server; of a cluster it knows the nodes, which one that only listens does not.

    Raises:
        ValueError: the URL says what cannot be used, or what contradicts the rest; a file that it names cannot be read.
    """
    where: dict[str, Any] = {**parse_url(url)}
    if credentials and (where.get("username") or where.get("password")):
        raise ValueError("it holds a user or a password, and REDIS_AUTH tells another way to sign in; use one of them")
    if cluster and where.get("path"):
        raise ValueError("a cluster (REDIS_CLUSTER=true) is reached over TCP, with redis:// or rediss://")
    if cluster and where.get("db"):
        raise ValueError(f"database {where['db']}: a cluster (REDIS_CLUSTER=true) has database 0 only")
    options = {
        "max_connections": connections,
        "timeout": COMMAND_TIMEOUT,
        "socket_timeout": timeout,
        "socket_connect_timeout": COMMAND_TIMEOUT,
        "retry": Retry(NoBackoff(), 0),
        # With them redis-py does not notice, before it sends, that a connection was closed while it lay in the pool.
        "maint_notifications_config": MaintNotificationsConfig(enabled=False),
        "driver_info": None,  # or each connection would tell, in commands of its own, what opens it
        "decode_responses": True,
        "encoding_errors": "replace",  # a value that a person SET by hand may be anything
        "credential_provider": credentials,
        "freshness": freshness or Freshness(),
        **where,
        "connection_class": _CLASSES.get(where.get("connection_class"), _Tcp),
    }

    def client(**address: Any) -> Redis:
        return Redis.from_pool(BlockingConnectionPool(**{**options, **address}))

    try:  # here, or the first command would find out
        if options["connection_class"] is _Tls:
            options["context"] = _context(url)
        made = client()
        made.connection_pool.make_connection()  # type: ignore[no-untyped-call]
    except (TypeError, RedisError, OSError) as error:
        raise ValueError(str(error).rpartition("__init__() ")[2]) from error
    if not cluster:
        return made
    return ClusterRedis((where.get("host", "localhost"), where.get("port", 6379)), client, beside)


def credentials_of(settings: Settings) -> CredentialProvider | None:
    """Whom connections to Redis sign in as; None where REDIS_URL says it, or nobody is asked."""
    match settings.redis_auth:
        case "password":
            secret = settings.redis_password.get_secret_value() if settings.redis_password else ""
            return UsernamePasswordCredentialProvider(settings.redis_username, secret)
        case "iam":
            return CacheCredentials(settings.redis_username or "", settings.redis_cache_name or "", settings.aws_region)
        case _:
            return None
