"""Replicas that ask who one is, over one Valkey: by API keys, by tokens, and two that limit what one may have."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import httpx2 as httpx

from tests.credentials import AUDIENCE, ISSUER, ApiKey, api_key, bearer, rsa_key, token, write_jwks
from tests.stack import Replica, Stack

MOST_RUNS, MOST_REQUESTS, MOST_CHATS = 7, 220, 12


@dataclass
class Guarded:
    """`keys` and `tokens` know the same three people, ada, bob and the admin ops: by API keys, and by tokens.

    `limited` are two replicas with limits, each of which lets anyone of `guests` in.
    """

    stack: Stack
    keys: Replica
    tokens: Replica
    limited: tuple[Replica, Replica]
    people: dict[str, ApiKey]
    _guests: list[ApiKey] = field(default_factory=list)

    def key_of(self, name: str) -> dict[str, str]:
        """The header of a person's API key."""
        return bearer(self.people[name].key)

    @staticmethod
    def token_of(name: str) -> dict[str, str]:
        """The header of a person's token."""
        return bearer(token(rsa_key(), sub=name, scope="read admin" if name == "ops" else "read"))

    def guest(self) -> dict[str, str]:
        """The header of somebody whom the limited replicas have never seen."""
        return bearer(self._guests.pop().key)


def start(stack: Stack, directory: Path) -> Guarded:
    """Add these replicas to a stack."""
    people = {name: api_key(name, admin=name == "ops") for name in ("ada", "bob", "ops")}
    guests = [api_key(f"guest-{n}@example.com") for n in range(40)]
    with_keys = {"AUTH": "api-keys", "API_KEYS": ",".join(key.entry for key in [*people.values(), *guests])}
    jwks = write_jwks(directory / "jwks.json", rsa_key())
    with_tokens = {"AUTH": "jwt", "JWT_ISSUER": ISSUER, "JWT_AUDIENCE": AUDIENCE, "JWT_JWKS": str(jwks)}
    limits = {
        "MAX_LIVE_RUNS": str(MOST_RUNS),
        "REQUESTS_PER_MINUTE": str(MOST_REQUESTS),
        "MAX_CHATS": str(MOST_CHATS),
        "MAX_MESSAGE_BYTES": "2000",
    }
    keys, tokens = stack.add_replica(**with_keys), stack.add_replica(**with_tokens)
    keys.wait_until_live(60)  # two starting at a time: more starve each other
    limited = stack.add_replica(**with_keys, **limits), stack.add_replica(**with_keys, **limits)
    for replica in stack.replicas:
        replica.wait_until_live(60)
    return Guarded(stack, keys, tokens, limited, people, guests)


def at(replica: Replica, path: str) -> str:
    """The address of a call."""
    return f"{replica.url}/api/v1/{path}"


def client(headers: dict[str, str]) -> httpx.AsyncClient:
    """A client of one person."""
    return httpx.AsyncClient(headers=headers, timeout=30, limits=httpx.Limits(max_connections=None), trust_env=False)
