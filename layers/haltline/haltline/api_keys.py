"""API_KEYS: whose keys there are. Pure. It holds the keys' hashes, so that who reads the settings cannot call."""

from __future__ import annotations

import re

from haltline.principals import Principal, is_name

_HEX = re.compile(r"[0-9A-Fa-f]{64}")
# A key that stands where a principal should must not get into an error, and so into a log.
_LIKE_A_KEY = re.compile(r"[\w+/-]{24,}")


def parse_api_keys(text: str) -> dict[bytes, Principal]:
    """Who has which key, by its SHA-256, from a comma list of `principal=HEX` or `principal:admin=HEX`.

    A principal may have several keys, as while one is replaced. Raises: ValueError, which never shows a hash or a key.
    """
    found: dict[bytes, Principal] = {}
    for number, entry in enumerate(text.split(","), 1):
        if entry.strip():  # a comma may stand at the end
            digest, principal = _parse(number, entry.strip())
            if digest in found:
                raise ValueError(f"{_where(number, principal.name)} has the key of another entry; give each its own")
            found[digest] = principal
    if not found:
        raise ValueError("there is no entry; use principal=HEX, HEX the SHA-256 of the key")
    return found


def _parse(number: int, entry: str) -> tuple[bytes, Principal]:
    who, equals, digest = entry.partition("=")
    if not equals:
        raise ValueError(f"entry {number} has no '='; use principal=HEX, HEX the SHA-256 of the key")
    name, colon, scope = who.partition(":")
    if not is_name(name) or not name.isprintable() or name != name.strip():
        raise ValueError(f"entry {number} names no principal that can be used")
    if colon and scope != "admin":
        raise ValueError(f"{_where(number, name)} has an unknown scope; there is only admin: principal:admin=HEX")
    if not _HEX.fullmatch(digest):
        raise ValueError(f"{_where(number, name)} has no SHA-256 after the '='; it is 64 hex digits")
    return bytes.fromhex(digest), Principal(name, admin=bool(colon))


def _where(number: int, name: str) -> str:
    return f"entry {number}" if _LIKE_A_KEY.fullmatch(name) else f"entry {number} ({name})"
