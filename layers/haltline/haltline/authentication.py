"""Who asks: the settings to an authenticator, and what each of them takes for a credential.

A refusal tells its client how a credential is sent, and nothing of why this one was not taken; the log tells that.
Neither ever tells a key, a token or what a token claims.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, Protocol

from loguru import logger
from starlette.types import Scope

from haltline.api_keys import parse_api_keys
from haltline.principals import ANYONE, Principal, is_name
from haltline.settings import Settings, SettingsError

if TYPE_CHECKING:
    from haltline.jwt_keys import Keys

TOLD = "haltline.told_principal"  # key of the scope: the principal that the front door has named
MAX_TOKEN_BYTES = 16 * 1024
LEEWAY = 5  # seconds that the issuer's clock and ours may differ

_REASONS = {
    "ExpiredSignatureError": "expired",
    "ImmatureSignatureError": "not yet valid",
    "InvalidAudienceError": "another audience",
    "InvalidIssuerError": "another issuer",
    "InvalidSignatureError": "a wrong signature",
    "InvalidSubjectError": "no usable sub",
    "MissingRequiredClaimError": "a claim is missing",
}


class Unauthorized(Exception):
    """There is no credential, or not a valid one: 401. The text is for the client."""


class AuthenticationUnavailable(Exception):
    """Whether a credential is valid cannot be known now: 503. The text is for the client."""


class Authenticator(Protocol):
    """Tells who sent a request."""

    async def principal_of(self, scope: Scope) -> Principal:
        """Whom the request's credential names. Raises: Unauthorized, AuthenticationUnavailable."""
        ...


def make_authenticator(settings: Settings) -> Authenticator:
    """The one that AUTH asks for. Connects to nothing. Raises: SettingsError, where JWT_JWKS is no usable file."""
    if settings.auth == "api-keys" and settings.api_keys:
        return ApiKeys(parse_api_keys(settings.api_keys.get_secret_value()))
    if settings.auth == "jwt" and settings.jwt_issuer and settings.jwt_audience and settings.jwt_jwks:
        return Jwt(_keys(settings.jwt_jwks), settings.jwt_issuer, settings.jwt_audience)
    if settings.auth == "apigateway":
        return ToldByTheDoor()
    if settings.auth == "none":
        return NoAuthentication()
    raise SettingsError(f"AUTH={settings.auth} lacks its settings")  # no door that stands open by mistake


def _keys(place: str) -> Keys:
    from haltline.jwt_keys import KeysAtUrl, KeysInFile, describe  # what they import is heavy, and for AUTH=jwt alone

    if "://" in place:
        return KeysAtUrl(place)
    try:
        return KeysInFile(Path(place))
    except (OSError, ValueError) as error:
        raise SettingsError(f"JWT_JWKS={place!r}: {describe(error)}") from error


class NoAuthentication:
    """AUTH=none: everyone is the same."""

    async def principal_of(self, scope: Scope) -> Principal:
        """Always `ANYONE`."""
        return ANYONE


class ToldByTheDoor:
    """AUTH=apigateway: the front door has asked, and `lambda_door` has noted whom it named under `TOLD`."""

    async def principal_of(self, scope: Scope) -> Principal:
        """Whom the door named. Raises: Unauthorized."""
        told = scope.get(TOLD)
        if not isinstance(told, Principal):
            _refuse("the front door has named nobody", "Sign in.")
        return told


class ApiKeys:
    """AUTH=api-keys: a key that both sides know, of which the settings hold the hash."""

    def __init__(self, principals: Mapping[bytes, Principal]) -> None:
        """`principals` by the SHA-256 of their keys."""
        self._principals = principals

    async def principal_of(self, scope: Scope) -> Principal:
        """Whose key was sent. Raises: Unauthorized."""
        sent = hashlib.sha256(_bearer(scope, "KEY")).digest()
        found = None
        for digest, principal in self._principals.items():
            if hmac.compare_digest(digest, sent):  # with all of them, or the time would tell which one it was
                found = principal
        if found is None:
            _refuse("an unknown key", _SEND.format("KEY"))
        return found


class Jwt:
    """AUTH=jwt: a token that the issuer has signed with one of its keys."""

    def __init__(self, keys: Keys, issuer: str, audience: str) -> None:
        """`issuer` and `audience` as tokens name them, to the letter."""
        self._keys, self._issuer, self._audience = keys, issuer, audience

    async def principal_of(self, scope: Scope) -> Principal:
        """Whom the token's `sub` names; an admin where its `scope` holds `admin`.

        Raises: Unauthorized; AuthenticationUnavailable where no key is known and none can be fetched.
        """
        token = _bearer(scope, "TOKEN")
        if len(token) > MAX_TOKEN_BYTES:
            self._refuse("too long")
        claims = await self._claims(token)
        name, scopes = claims["sub"], claims.get("scope")
        if not is_name(name) or not name.isprintable():
            self._refuse("no usable sub")
        if isinstance(scopes, str):
            scopes = scopes.split()
        return Principal(name, admin=isinstance(scopes, list) and "admin" in scopes)

    async def _claims(self, token: bytes) -> dict[str, Any]:
        import jwt

        try:
            header = jwt.get_unverified_header(token)
        except jwt.PyJWTError:
            self._refuse("unreadable")
        # Of the header these two are believed, and only to choose among the issuer's keys.
        algorithm, kid = header.get("alg"), header.get("kid")
        if algorithm not in ("RS256", "ES256"):
            self._refuse("another algorithm")
        if "crit" in header:
            self._refuse("a crit")
        try:
            key = await self._keys.find(kid, algorithm)
        except ConnectionError:
            text = "The keys that tokens are checked with cannot be fetched now. Try again."
            raise AuthenticationUnavailable(text) from None
        if key is None:
            self._refuse("an unknown key")
        try:
            claims: dict[str, Any] = jwt.decode(
                token,
                key,
                algorithms=[key.algorithm_name],
                issuer=self._issuer,
                audience=self._audience,
                leeway=LEEWAY,
                options={"require": ["exp", "sub"], "enforce_minimum_key_length": True},
            )
        except jwt.PyJWTError as error:
            self._refuse(_REASONS.get(type(error).__name__, "unreadable"))
        return claims

    @staticmethod
    def _refuse(reason: str) -> NoReturn:
        _refuse(reason, _SEND.format("TOKEN"))


_SEND = "Send Authorization: Bearer {}."


def _bearer(scope: Scope, what: str) -> bytes:
    """What stands after `Bearer` in the one header for it. `what`: how it is called. Raises: Unauthorized."""
    headers = [value for name, value in scope["headers"] if name == b"authorization"]
    if len(headers) != 1:
        _refuse("none was sent" if not headers else "more than one was sent", _SEND.format(what))
    scheme, _, sent = headers[0].partition(b" ")
    sent = sent.strip(b" \t")  # blanks behind a header's value are none of it, and the server leaves them
    if scheme.lower() != b"bearer" or not sent:
        _refuse("another scheme or an empty one", _SEND.format(what))
    return bytes(sent)


def _refuse(reason: str, hint: str) -> NoReturn:
    logger.info("reason=<{}> | a credential was refused", reason)
    raise Unauthorized(f"No valid credential. {hint}")
