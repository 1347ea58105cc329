"""Cognito's hosted page and token endpoint, as far as a page without a secret uses them.

https://docs.aws.amazon.com/cognito/latest/developerguide/federation-endpoints-oauth-grants.html
"""

from __future__ import annotations

import base64
import hashlib
import json
import secrets
import time
from dataclasses import dataclass, field
from urllib.parse import urlencode

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import Route

CLIENT = "1example23456789"


@dataclass
class HostedPage:
    """Signs everybody in at once, as `subject`. `redirects` is what is registered with the client."""

    redirects: set[str] = field(default_factory=set)
    subject: str = "ann"
    seconds: int = 3600  # of an id token's life, as it is told
    good: set[str] = field(default_factory=set)  # id tokens that the authorizer lets in
    grants: list[str] = field(default_factory=list)
    logouts: int = 0
    _codes: dict[str, dict[str, str]] = field(default_factory=dict)
    _refresh: set[str] = field(default_factory=set)

    @property
    def app(self) -> Starlette:
        routes = [
            Route("/oauth2/authorize", self._authorize),
            Route("/oauth2/token", self._token, methods=["POST"]),
            Route("/logout", self._logout),
        ]
        return Starlette(routes=routes, middleware=[Middleware(CORSMiddleware, allow_origins=["*"])])

    def expire(self) -> None:
        """No id token is let in any more."""
        self.good.clear()

    def revoke(self) -> None:
        """No refresh token is taken any more either."""
        self.expire()
        self._refresh.clear()

    async def _authorize(self, request: Request) -> Response:
        asked = dict(request.query_params)
        known = (asked["client_id"], asked["response_type"], asked["code_challenge_method"], asked["scope"])
        if known != (CLIENT, "code", "S256", "openid") or asked["redirect_uri"] not in self.redirects:
            return Response("An error was encountered with the requested page.", 400)
        code = secrets.token_urlsafe()
        self._codes[code] = asked
        return RedirectResponse(f"{asked['redirect_uri']}?{urlencode({'code': code, 'state': asked['state']})}", 302)

    async def _token(self, request: Request) -> Response:
        async with request.form() as form:
            asked = {name: str(value) for name, value in form.items()}
        self.grants.append(asked["grant_type"])
        if asked["client_id"] != CLIENT:
            return JSONResponse({"error": "invalid_client"}, 400)
        fresh = {"id_token": self._id_token(), "access_token": "for nothing here", "expires_in": self.seconds}
        if asked["grant_type"] == "refresh_token":
            taken = asked["refresh_token"] in self._refresh
        else:
            begun = self._codes.pop(asked["code"], None)  # once
            digest = hashlib.sha256(asked["code_verifier"].encode()).digest()
            challenge = base64.urlsafe_b64encode(digest).decode().rstrip("=")
            taken = (
                begun is not None
                and (begun["redirect_uri"], begun["code_challenge"]) == (asked["redirect_uri"], challenge)
                and len(asked["code_verifier"]) >= 43
            )
            fresh["refresh_token"] = secrets.token_urlsafe()
        if not taken:
            return JSONResponse({"error": "invalid_grant"}, 400)
        self._refresh.add(str(fresh.get("refresh_token", "")))
        self.good.add(str(fresh["id_token"]))
        return JSONResponse({**fresh, "token_type": "Bearer"})

    async def _logout(self, request: Request) -> Response:
        asked = request.query_params
        if asked["client_id"] != CLIENT or asked["logout_uri"] not in self.redirects:
            return Response("An error was encountered with the requested page.", 400)
        self.logouts += 1
        return RedirectResponse(asked["logout_uri"], 302)

    def _id_token(self) -> str:
        now = int(time.time())
        parts = {"alg": "RS256"}, {"sub": self.subject, "exp": now + self.seconds, "jti": secrets.token_hex(8)}
        text = ".".join(base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=") for part in parts)
        return f"{text}.c2lnbmF0dXJl"
