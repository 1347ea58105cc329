"""The issuer's public keys, from its address or from a file: read again as they change, kept while they cannot be.

Imports PyJWT and with it cryptography: for AUTH=jwt alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import time
import urllib.request
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from pathlib import Path
from threading import Thread
from typing import Any, Protocol
from urllib.parse import urlsplit

from jwt import PyJWK
from jwt.exceptions import PyJWTError
from loguru import logger

from haltline.redis_pulse import now

REFRESH = 300.0  # seconds after which keys are fetched again, by their use
PAUSE = 1800.0  # seconds without a fetch after which the next one is waited for
KEEP = 24 * 3600.0  # seconds that keys are used while the issuer does not answer
AGAIN = 10.0  # seconds between two fetches for unknown keys, or two that nobody waits for
AGAIN_WITHOUT = 1.0  # the same where no keys are known
TIMEOUT = 3.0  # seconds: of each step of a fetch, and for reading the answer
PATIENCE = 4.0  # seconds that a request waits for a fetch; looking up a name can take longer than any TIMEOUT
LOOK_EVERY = 1.0  # seconds between two looks at a file
MAX_BYTES = 256 * 1024
MIN_RSA_BITS = 2048

_ALGORITHMS = {"RSA": "RS256", "EC": "ES256"}  # by the kind of key: what a token says of itself is not asked


class KeySet:
    """Keys that can be used, with their names."""

    def __init__(self, keys: Iterable[tuple[str | None, PyJWK]] = ()) -> None:
        """`keys`: pairs of `kid` and key."""
        self._keys = tuple(keys)

    def __bool__(self) -> bool:
        return bool(self._keys)

    def __contains__(self, kid: str) -> bool:
        return any(known == kid for known, _ in self._keys)

    def find(self, kid: str | None, algorithm: str) -> PyJWK | None:
        """The key that a token names; where it names none, the only one for its algorithm."""
        fitting = [k for known, k in self._keys if k.algorithm_name == algorithm and (kid is None or known == kid)]
        return fitting[0] if len(fitting) == 1 else None


def parse_jwks(document: bytes) -> KeySet:
    """The keys of a JWKS that can be used: for signing, RSA of 2048 bits and more with RS256, P-256 with ES256.

    Raises: ValueError where there is none.
    """
    if len(document) > MAX_BYTES:
        raise ValueError(f"it is larger than {MAX_BYTES // 1024} KiB")
    try:
        keys = [(jwk.get("kid"), key) for jwk in json.loads(document)["keys"] if (key := _usable(jwk))]
    except (ValueError, TypeError, KeyError, RecursionError):
        raise ValueError("it cannot be read as a JWKS") from None
    if not keys:
        raise ValueError("it holds no key that can be used for RS256 or ES256")
    return KeySet(keys)


def _usable(jwk: dict[str, Any]) -> PyJWK | None:
    try:
        kind, kid = jwk["kty"], jwk.get("kid")
        algorithm = _ALGORITHMS[kind]
        if jwk.get("use") not in (None, "sig") or jwk.get("alg") not in (None, algorithm):
            return None
        if "verify" not in (jwk.get("key_ops") or ["verify"]) or not isinstance(kid, str | None):
            return None
        if kind == "EC" and jwk["crv"] != "P-256":
            return None
        # The public part alone: PyJWT would take a private one too, and check tokens with it.
        public: dict[str, Any] = {name: jwk[name] for name in ("kty", "crv", "n", "e", "x", "y") if name in jwk}
        key = PyJWK(public, algorithm)
    except (PyJWTError, KeyError, TypeError, AttributeError):  # one that is broken does not take the others with it
        return None
    return None if kind == "RSA" and key.key.key_size < MIN_RSA_BITS else key


class Keys(Protocol):
    """Where the keys are that tokens are checked with."""

    async def find(self, kid: str | None, algorithm: str) -> PyJWK | None:
        """The key for a token's `kid` and `alg`, if there is one.

        Raises: ConnectionError where no keys are known and none can be fetched.
        """
        ...


class KeysInFile:
    """A JWKS in a file, read again when it has changed. Where it is gone or broken by then, the old keys go on."""

    def __init__(self, path: Path, clock: Callable[[], float] = now) -> None:
        """Raises: OSError, ValueError where the file cannot be read or holds no usable key."""
        self._path, self._clock = path, clock
        self._looked_at, self._trouble = clock(), ""
        self._seen = self._stat()
        self._keys = parse_jwks(self._read())

    async def find(self, kid: str | None, algorithm: str) -> PyJWK | None:
        """See `Keys`. Never raises."""
        if self._clock() - self._looked_at >= LOOK_EVERY:
            self._looked_at = self._clock()
            self._look()
        return self._keys.find(kid, algorithm)

    def _look(self) -> None:
        try:
            if (seen := self._stat()) == self._seen:
                return
            self._keys, self._seen, self._trouble = parse_jwks(self._read()), seen, ""
            logger.info("file=<{}> | the keys were read again", self._path)
        except (OSError, ValueError) as error:
            trouble = describe(error)
            if trouble != self._trouble:
                logger.warning("file=<{}> error=<{}> | no keys can be read, the old ones go on", self._path, trouble)
            self._trouble = trouble

    def _stat(self) -> tuple[int, ...]:
        stat = os.stat(self._path)
        return stat.st_mtime_ns, stat.st_ctime_ns, stat.st_size, stat.st_ino

    def _read(self) -> bytes:
        with self._path.open("rb") as file:
            return file.read(MAX_BYTES + 1)


class KeysAtUrl:
    """A JWKS at the issuer's address. It is fetched when keys are first needed, and again by use, one fetch at a time.

    In a thread of its own that nothing waits for in the end, and not in a task: a function that is frozen, a loop that
    is closed or a request that is given up leave nothing half done.
    """

    def __init__(self, url: str, clock: Callable[[], float] = now) -> None:
        """Nothing is fetched here. `url`: http:// for this machine alone."""
        self._url, self._clock = url, clock
        self._keys = KeySet()
        self._known_at = self._begun_at = self._asked_at = float("-inf")  # by `clock`; the last: for an unknown key
        self._fetch: Future[None] | None = None
        self._after_pause = False  # the fetch that was begun last is waited for

    async def find(self, kid: str | None, algorithm: str) -> PyJWK | None:
        """See `Keys`. Waits for a fetch where the key is not known, or after a pause; at most `PATIENCE`."""
        at = self._clock()
        if not self._has_keys(at):
            await _end_of(self._fetch or self._begin(at, AGAIN_WITHOUT))
            if not self._has_keys(self._clock()):
                raise ConnectionError("no keys are known")
        elif kid is not None and kid not in self._keys:
            if self._fetch is None and at - self._asked_at >= AGAIN:
                self._asked_at = at
                self._begin(at)
            await _end_of(self._fetch)
        elif at - self._known_at > REFRESH:
            if self._fetch is None:
                self._after_pause = at - self._begun_at > PAUSE
                self._begin(at, AGAIN)
            if self._after_pause:  # a key may have been withdrawn while nobody asked
                await _end_of(self._fetch)
        return self._keys.find(kid, algorithm)

    def _has_keys(self, at: float) -> bool:
        return bool(self._keys) and at - self._known_at <= KEEP

    def _begin(self, at: float, pause: float = 0) -> Future[None] | None:
        """Fetch, unless the last fetch was begun less than `pause` seconds ago."""
        if at - self._begun_at < pause:
            return None
        self._begun_at = at
        fetch: Future[None] = Future()
        self._fetch = fetch
        fetch.set_running_or_notify_cancel()  # from here on who waits for it cannot cancel it
        try:
            Thread(target=self._do, args=(fetch, at), name="jwt-keys", daemon=True).start()
        except RuntimeError as error:  # no thread is left
            self._over(fetch, error)
        return fetch

    def _do(self, fetch: Future[None], at: float) -> None:
        try:
            self._keys, self._known_at = parse_jwks(read_url(self._url)), at
        except Exception as error:  # whatever it was, there are no new keys, and those who wait go on
            self._over(fetch, error)
        else:
            self._over(fetch)

    def _over(self, fetch: Future[None], error: Exception | None = None) -> None:
        if error:
            logger.warning("error=<{}> | the issuer's keys cannot be fetched", describe(error))
        self._fetch = None
        fetch.set_result(None)


def describe(error: Exception) -> str:
    """An error in a few words that name no place: an address may hold what is secret."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return (str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}")[:200]


async def _end_of(fetch: Future[None] | None) -> None:
    """Wait for a fetch, at most `PATIENCE`."""
    if fetch is not None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(PATIENCE):
                await asyncio.wrap_future(fetch)


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        """Keys are believed by where they come from."""


def read_url(url: str) -> bytes:
    """What a GET answers. Blocks. Raises: OSError, HTTPException, ValueError where that is no answer to use."""
    handlers: list[Any] = [_NoRedirects()]
    if urlsplit(url).scheme == "http":
        handlers.append(urllib.request.ProxyHandler({}))  # to this machine: a proxy would be another
    headers = {"Accept": "application/json", "User-Agent": "haltline"}  # urllib's own name is shut out at some doors
    request = urllib.request.Request(url, headers=headers)  # noqa: S310 - http or https, the settings have seen to it
    until = time.monotonic() + TIMEOUT
    document = bytearray()
    with urllib.request.build_opener(*handlers).open(request, timeout=TIMEOUT) as answer:
        while chunk := answer.read1(65536):
            document += chunk
            if len(document) > MAX_BYTES:
                raise ValueError(f"the answer is larger than {MAX_BYTES // 1024} KiB")
            if time.monotonic() > until:
                raise TimeoutError("the answer takes too long")
    return bytes(document)
