"""Replicas that ask who one is, over one Valkey: by API keys and by tokens, or with limits on what one may have."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.credentials import AUDIENCE, ISSUER, ApiKey, api_key, bearer, rsa_key, token, write_jwks
from tests.stack import Replica, Stack, running_stack

FULL = bool(os.environ.get("FAULTS_FULL"))
MOST_RUNS, MOST_REQUESTS, MOST_CHATS = 7, 220, 12


@dataclass
class Guarded:
    """`keys` and `tokens` know the same three people, ada, bob and the admin ops: by API keys, and by tokens."""

    stack: Stack
    keys: Replica
    tokens: Replica
    people: dict[str, ApiKey]

    def key_of(self, name: str) -> dict[str, str]:
        """The header of a person's API key."""
        return bearer(self.people[name].key)

    @staticmethod
    def token_of(name: str) -> dict[str, str]:
        """The header of a person's token."""
        return bearer(token(rsa_key(), sub=name, scope="read admin" if name == "ops" else "read"))


@contextmanager
def running_guarded(directory: Path) -> Iterator[Guarded]:
    """Start them below `directory`."""
    people = {name: api_key(name, admin=name == "ops") for name in ("ada", "bob", "ops")}
    jwks = write_jwks(directory / "jwks.json", rsa_key())
    with running_stack(directory, replicas=0) as stack:
        keys = stack.add_replica(AUTH="api-keys", API_KEYS=",".join(key.entry for key in people.values()))
        tokens = stack.add_replica(AUTH="jwt", JWT_ISSUER=ISSUER, JWT_AUDIENCE=AUDIENCE, JWT_JWKS=str(jwks))
        for replica in stack.replicas:
            replica.wait_until_live(60)
        yield Guarded(stack, keys, tokens, people)


@dataclass
class Limited:
    """Two replicas with limits."""

    replicas: tuple[Replica, Replica]
    _guests: list[ApiKey]

    def guest(self) -> dict[str, str]:
        """The header of somebody whom they have never seen."""
        return bearer(self._guests.pop().key)


@contextmanager
def running_limited(directory: Path) -> Iterator[Limited]:
    """Start them below `directory`."""
    guests = [api_key(f"guest-{n}@example.com") for n in range(200)]
    settings = {
        "AUTH": "api-keys",
        "API_KEYS": ",".join(key.entry for key in guests),
        "MAX_LIVE_RUNS": str(MOST_RUNS),
        "REQUESTS_PER_MINUTE": str(MOST_REQUESTS),
        "MAX_CHATS": str(MOST_CHATS),
        "MAX_MESSAGE_BYTES": "2000",
    }
    with running_stack(directory, replicas=2, **settings) as stack:
        yield Limited((stack.replicas[0], stack.replicas[1]), guests)


def at(replica: Replica, path: str) -> str:
    """The address of a call."""
    return f"{replica.url}/api/v1/{path}"
