"""Credentials for tests: keys, tokens and API keys, and an issuer to fetch keys from. No test, no fixture.

API keys: `api_key("alice")` makes a key and the entry of API_KEYS that goes with it; `bearer(key)` the headers to send.

Tokens: `rsa_key("a")` and `ec_key("a")` are signing keys, each made once in a process (RSA takes a tenth of a second);
`jwks(*keys)` is the document with their public halves, `write_jwks(path, *keys)` puts it into a file, `Issuer` serves
it over HTTP on loopback. `token(key)` is a good token of `ISSUER` for `AUDIENCE`; keywords replace claims, and None
leaves one out:

    token(rsa_key(), sub="alice", scope="read admin")     # an admin
    token(rsa_key(), exp=int(time.time()) - 60)           # expired
    token(rsa_key(), headers={"kid": "other"}, aud=None)  # another kid, no audience

A replica that takes them: `AUTH="jwt", JWT_ISSUER=ISSUER, JWT_AUDIENCE=AUDIENCE, JWT_JWKS=str(path)`, or `issuer.url`.
"""

from __future__ import annotations

import hashlib
import json
import secrets
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from jwt.algorithms import ECAlgorithm, RSAAlgorithm

ISSUER = "https://issuer.example/"
AUDIENCE = "haltline"


@dataclass(frozen=True)
class ApiKey:
    """A key, and its entry in API_KEYS."""

    key: str
    entry: str

    @property
    def hex(self) -> str:
        return hashlib.sha256(self.key.encode()).hexdigest()


def api_key(principal: str, *, admin: bool = False) -> ApiKey:
    """A new key of this principal, who may have several."""
    key = secrets.token_hex(32)
    return ApiKey(key, f"{principal}{':admin' * admin}={hashlib.sha256(key.encode()).hexdigest()}")


def bearer(credential: str) -> dict[str, str]:
    """The header that sends a key or a token."""
    return {"Authorization": f"Bearer {credential}"}


@dataclass(frozen=True)
class SigningKey:
    """A private key and what it is called."""

    kid: str
    algorithm: str
    private: Any

    def jwk(self, **members: Any) -> dict[str, Any]:
        """The public half as a JWK; `members` replace or, where None, leave out."""
        kind = RSAAlgorithm if self.algorithm.startswith("RS") else ECAlgorithm
        made = kind.to_jwk(self.private.public_key(), as_dict=True)
        return _without_none({**made, "kid": self.kid, "use": "sig", "alg": self.algorithm, **members})

    @property
    def pem(self) -> bytes:
        """The public half, as an attacker might take it for a secret."""
        return bytes(self.private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))

    @property
    def der(self) -> bytes:
        return bytes(self.private.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo))


@cache
def rsa_key(kid: str = "rsa", bits: int = 2048) -> SigningKey:
    """The RSA key of this name."""
    return SigningKey(kid, "RS256", rsa.generate_private_key(public_exponent=65537, key_size=bits))


@cache
def ec_key(kid: str = "ec", curve: type[ec.EllipticCurve] = ec.SECP256R1) -> SigningKey:
    """The key of this name on P-256, or another curve."""
    algorithm = {"secp256r1": "ES256", "secp384r1": "ES384", "secp521r1": "ES512"}[curve.name]
    return SigningKey(kid, algorithm, ec.generate_private_key(curve()))


def jwks(*keys: SigningKey | dict[str, Any]) -> bytes:
    """The document of these keys; a dict stands in it as it is."""
    return json.dumps({"keys": [key.jwk() if isinstance(key, SigningKey) else key for key in keys]}).encode()


def write_jwks(path: Path, *keys: SigningKey | dict[str, Any]) -> Path:
    """Put them into a file, in one step as a careful issuer does."""
    part = path.with_name(f"{path.name}.part")
    part.write_bytes(jwks(*keys))
    return part.replace(path)


def claims(**replaced: Any) -> dict[str, Any]:
    """What a good token says."""
    at = int(time.time())
    good = {"iss": ISSUER, "aud": AUDIENCE, "sub": "alice", "iat": at, "exp": at + 3600}
    return _without_none({**good, **replaced})


def token(key: SigningKey, *, headers: Mapping[str, Any] | None = None, **replaced: Any) -> str:
    """A token that this key has signed. `headers` and claims replace those of a good one; None leaves one out."""
    made = _without_none({"kid": key.kid, "alg": key.algorithm, **(headers or {})})
    return jwt.encode(claims(**replaced), key.private, made["alg"], headers=made)


def _without_none(members: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in members.items() if value is not None}


class Issuer:
    """A real HTTP server on loopback that publishes keys: `with Issuer(rsa_key()) as issuer`.

    `status`, `headers` and `body` (in the place of the keys) are what it answers, `requests` counts. `asked` is set
    with every request; who clears `answers` lets requests wait until it is set again.
    """

    def __init__(self, *keys: SigningKey | dict[str, Any]) -> None:
        self.keys, self.body = keys, b""
        self.status, self.headers = 200, dict[str, str]()
        self.requests, self.port = 0, 0
        self.asked, self.answers = threading.Event(), threading.Event()
        self.answers.set()
        self._server: ThreadingHTTPServer | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/jwks.json"

    def publish(self, *keys: SigningKey | dict[str, Any]) -> None:
        """From now on these are its keys."""
        self.keys = keys

    def start(self) -> None:
        """Listen, at the same port as before if it has listened."""
        issuer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                issuer.requests += 1
                issuer.asked.set()
                issuer.answers.wait(30)
                self.send_response(issuer.status)
                for name, value in issuer.headers.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(issuer.body or jwks(*issuer.keys))

            def log_message(self, *_: Any) -> None:
                """Nothing on stderr."""

        self._server = ThreadingHTTPServer(("127.0.0.1", self.port), Handler)
        self._server.daemon_threads = True
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def stop(self) -> None:
        """Let nobody in."""
        if self._server is not None:
            self.answers.set()
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
