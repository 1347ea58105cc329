"""Who sends a request, by its credential."""

from __future__ import annotations

from typing import Protocol

from starlette.types import Scope

from haltline.principals import ANYONE, Principal
from haltline.settings import Settings

TOLD = "haltline.told_principal"


class Unauthorized(Exception):
    """No valid credential. The text is for the client."""


class AuthenticationUnavailable(Exception):
    """It cannot be told now whether a credential is valid. The text is for the client."""


class Authenticator(Protocol):
    """Tells who sends a request."""

    async def principal_of(self, scope: Scope) -> Principal:
        """Raises: Unauthorized, AuthenticationUnavailable."""


class NoAuthentication:
    """AUTH=none."""

    async def principal_of(self, scope: Scope) -> Principal:
        """The one principal."""
        return ANYONE


def make_authenticator(settings: Settings) -> Authenticator:
    """Of the settings."""
    return NoAuthentication()
