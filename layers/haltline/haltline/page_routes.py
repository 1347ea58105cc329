"""What a browser asks for beside the API: the page, how one signs in there, the description of the API."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.responses import FileResponse, JSONResponse
from fastapi.staticfiles import StaticFiles
from starlette.types import Scope

from haltline.inputs import ResourcesOf

WEB = Path(__file__).parent / "web"
_NOTHING_ELSE = "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; object-src 'none'"
# Trusted Types: a string that did not go through DOMPurify cannot become HTML, whoever forgets to send it there.
_PAGE = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src {}; "
    f"{_NOTHING_ELSE}; require-trusted-types-for 'script'; trusted-types dompurify"
)
_DOCS = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    f"{_NOTHING_ELSE}"
)
_ORIGIN = re.compile(r"https?://[A-Za-z0-9.-]+(:\d{1,5})?")

router = APIRouter(include_in_schema=False)


def add_page_routes(app: FastAPI) -> None:
    """`/`, `/static`, `/sign-in` and `/docs`."""
    app.include_router(router)
    app.mount("/static", Fresh(directory=WEB, check_dir=False), name="static")


@router.get("/")
async def page(request: Request, resources: ResourcesOf) -> FileResponse:
    """The page may call this server, and whoever signs its people in."""
    domain = asked(request.scope, resources.settings.auth).get("domain", "")
    return _html("index.html", _PAGE.format(f"'self' {domain}".rstrip()))


@router.get("/docs")
async def docs() -> FileResponse:
    """FastAPI's own page would take its script from a third party, which could read the key of whoever signs in."""
    return _html("docs.html", _DOCS)


@router.get("/sign-in")
async def sign_in(request: Request, resources: ResourcesOf) -> JSONResponse:
    """What the page needs to know to sign somebody in. Nothing of it is secret."""
    return JSONResponse(asked(request.scope, resources.settings.auth))


def asked(scope: Scope, auth: str) -> dict[str, str]:
    """With what one signs in: `{"with": "nothing" | "key" | "token"}`, or Cognito's address and client.

    That one is made after the endpoint, which names it in stage variables: `SignInDomain`, an origin, and
    `SignInClient`.
    """
    if auth == "apigateway":
        told: dict[str, Any] = scope.get("aws.event", {}).get("stageVariables") or {}
        domain, client = told.get("SignInDomain", ""), told.get("SignInClient", "")
        if client and _ORIGIN.fullmatch(domain):  # it becomes a part of the page's policy
            return {"with": "cognito", "domain": domain, "client_id": client}
    return {"with": {"api-keys": "key", "jwt": "token"}.get(auth, "nothing")}


def _html(name: str, policy: str) -> FileResponse:
    return FileResponse(WEB / name, headers={"Content-Security-Policy": policy, "Cache-Control": "no-cache"})


class Fresh(StaticFiles):
    """Files that a browser asks for again by their ETag: the page's modules must be of one release."""

    def file_response(self, *args: Any, **kwargs: Any) -> Response:
        """As Starlette's, with a header."""
        response = super().file_response(*args, **kwargs)
        response.headers["Cache-Control"] = "no-cache"
        return response
