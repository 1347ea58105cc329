"""Signing in on the page, in a real browser: with a key, by Cognito's hosted page; and that nothing else gets in."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import re
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit
from uuid import uuid4

import pytest
import uvicorn
from playwright.sync_api import Browser, BrowserContext, Page, Route, expect
from starlette.responses import JSONResponse, PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from haltline.app import make_app
from haltline.bootstrap import make_resources
from haltline.inputs import mark_principal
from haltline.openapi import describe_sign_in
from haltline.principals import ANYONE
from haltline.settings import Settings
from tests.integration.hosted_page import CLIENT, HostedPage
from tests.integration.test_page import (
    CHAT_CALL,
    CONTRASTS,
    FOREVER_MS,
    HOSTILE,
    STOP_CALL,
    STOPPED_AFTER,
    Screen,
    new_chat,
    new_context,
    open_browser,
    script,
)
from tests.integration.test_page import pytestmark as in_chromium

pytestmark = in_chromium

KEY = "a-key-of-ann"
OPEN = ("/live", "/health", "/api/v1/health", "/", "/sign-in", "/docs", "/openapi.json")
LIST_CALL = re.compile(r"/api/v1/chats\?")
ENDLESS = script(chunks=["some ", "more"], pace_ms=FOREVER_MS)


# ---------------------------------------------------------------- a server that wants to know who asks


@dataclass
class Guard:
    """In front of the app: 401 but for those whose `Authorization` is among `good`."""

    app: ASGIApp
    good: set[str]
    event: dict[str, Any] = field(default_factory=dict)  # as API Gateway tells it
    seen: list[tuple[str, str]] = field(default_factory=list)  # path, Authorization

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            path, given = scope["path"], dict(scope["headers"]).get(b"authorization", b"").decode()
            self.seen.append((path, given))
            if path not in OPEN and not path.startswith("/static/") and given not in self.good:
                answer = JSONResponse({"detail": "Not authenticated."}, 401, {"WWW-Authenticate": "Bearer"})
                await answer(scope, receive, send)
                return
            mark_principal(scope, ANYONE)
            if self.event:
                scope["aws.event"] = self.event
        await self.app(scope, receive, send)


@contextlib.contextmanager
def serving(app: ASGIApp) -> Iterator[str]:
    """Uvicorn in a thread. Gives the address, which takes connections at once."""
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, timeout_graceful_shutdown=5))
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/"
    finally:
        server.should_exit = True
        thread.join()
        listener.close()


@contextlib.contextmanager
def guarded(
    redis_url: str, directory: Path, auth: str, guard: Callable[[ASGIApp], Guard]
) -> Iterator[tuple[str, Guard]]:
    """The app, whose page is told that `auth` is on, behind a guard."""
    settings = Settings(redis_url=redis_url, model_provider="scripted", session_dir=directory, shutdown_grace=1)
    resources = make_resources(settings)
    app = make_app(resources)
    resources.settings = settings.model_copy(update={"auth": auth})
    describe_sign_in(app, auth)
    made = guard(app)
    with serving(made) as url:
        yield url, made


@pytest.fixture(scope="module")
def keyed(valkey_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a server with AUTH=api-keys that knows KEY."""
    settings = Settings(
        redis_url=valkey_url,
        model_provider="scripted",
        session_dir=tmp_path_factory.mktemp("keyed"),
        shutdown_grace=1,
        auth="api-keys",
        api_keys=f"ann={hashlib.sha256(KEY.encode()).hexdigest()}",
    )
    with serving(make_app(make_resources(settings))) as url:
        yield url


@dataclass
class Endpoint:
    """An endpoint on AWS: the page behind API Gateway, and the hosted page."""

    url: str
    hosted: HostedPage
    guard: Guard


@pytest.fixture(scope="module")
def _endpoint(valkey_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Endpoint]:
    hosted = HostedPage()
    with serving(hosted.app) as domain:
        told = {"stageVariables": {"SignInDomain": domain.rstrip("/"), "SignInClient": CLIENT}}
        directory = tmp_path_factory.mktemp("endpoint")
        make = lambda app: Guard(app, hosted.good, told)  # noqa: E731
        with guarded(valkey_url, directory, "apigateway", make) as (url, guard):
            hosted.redirects.add(url)
            yield Endpoint(url, hosted, guard)


@pytest.fixture
def endpoint(_endpoint: Endpoint) -> Endpoint:
    """With nothing remembered of the test before."""
    _endpoint.hosted.revoke()
    _endpoint.hosted.subject, _endpoint.hosted.seconds = "ann", 3600
    _endpoint.hosted.grants.clear()
    _endpoint.guard.seen.clear()
    return _endpoint


# ---------------------------------------------------------------- the browser


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with open_browser() as opened:
        yield opened


@dataclass
class SignInScreen(Screen):
    """The page of somebody who must sign in. `strangers` is what was asked of other servers."""

    strangers: list[str] = field(default_factory=list)

    @property
    def dialog(self) -> Any:
        return self.page.get_by_role("dialog", name="Sign in")

    @property
    def problem(self) -> Any:
        return self.page.locator("#sign-in-problem")

    @property
    def field(self) -> Any:
        return self.page.get_by_label("API key")

    def press_sign_in(self) -> None:
        self.dialog.get_by_role("button", name="Sign in").click()

    def sign_in(self, key: str = KEY) -> None:
        self.field.fill(key)
        self.press_sign_in()
        expect(self.dialog).to_be_hidden()

    def sign_out(self) -> None:
        self.page.get_by_role("button", name="Sign out").click()

    def remembered(self) -> dict[str, str]:
        return self.page.evaluate("() => ({ ...sessionStorage })")


@pytest.fixture(scope="module")
def shared_context(browser: Browser) -> BrowserContext:
    """For speed: who is signed in the page remembers by the tab, and each screen is a tab of its own."""
    return new_context(browser)


VIOLATIONS = "addEventListener('securitypolicyviolation', (e) => console.error('CSP refused ' + e.violatedDirective))"


@pytest.fixture
def screens(browser: Browser, shared_context: BrowserContext) -> Iterator[Callable[..., SignInScreen]]:
    """Makes screens. None may end with a complaint in its console, or with a call of a server that is none of ours."""
    made: list[SignInScreen] = []

    def make(url: str, *known: str, **options: Any) -> SignInScreen:
        page = (new_context(browser, **options) if options else shared_context).new_page()
        screen = SignInScreen(page, url)
        made.append(screen)
        page.add_init_script(VIOLATIONS)
        page.on("pageerror", lambda error: screen.troubles.append(f"error: {error}"))
        page.on(
            "console",
            lambda message: (
                screen.troubles.append(f"{message.type}: {message.text}")
                if message.type in ("error", "warning") and not message.text.startswith("Failed to load resource")
                else None
            ),
        )
        ours = {urlsplit(address).netloc for address in (url, *known)}
        page.on(
            "request",
            lambda request: (
                screen.strangers.append(request.url)
                if urlsplit(request.url).netloc not in ours and not request.url.startswith("data:")
                else None
            ),
        )
        return screen

    yield make
    for screen in made:
        (screen.page if screen.page.context is shared_context else screen.page.context).close()
    assert [trouble for screen in made for trouble in screen.troubles] == []
    assert [url for screen in made for url in screen.strangers] == []


# ---------------------------------------------------------------- with a key


def test_a_whole_session_with_a_key_breaks_no_policy_and_calls_nobody_else(
    screens: Callable[..., SignInScreen], keyed: str
) -> None:
    screen = screens(keyed)
    page = screen.page
    page.goto(f"{keyed}#{(chat_id := new_chat())}")
    expect(screen.field).to_be_focused()
    assert (screen.field.get_attribute("type"), screen.field.get_attribute("autocomplete")) == ("password", "off")
    expect(screen.problem).to_be_empty()
    for wrong in ("not-this", "nor thät"):
        screen.field.fill(wrong)
        page.keyboard.press("Enter")
        expect(screen.problem).to_have_text("The server does not know this key.")
        expect(screen.field).to_have_attribute("aria-invalid", "true")
    page.route(LIST_CALL, lambda route: route.fulfill(status=503, json={"detail": "The keys cannot be had just now."}))
    screen.field.fill(KEY)
    screen.press_sign_in()
    expect(screen.problem).to_have_text("The keys cannot be had just now.")
    page.unroute(LIST_CALL)
    page.keyboard.press("Escape")
    page.keyboard.press("Escape")
    expect(screen.dialog).to_be_visible()
    screen.sign_in()
    assert screen.has_chat() == chat_id
    expect(screen.box).to_be_focused()

    screen.send(script(chunks=[HOSTILE, " and on"], pace_ms=FOREVER_MS))
    expect(screen.answer).to_contain_text("[image: pixel]")
    screen.stop.click()
    expect(screen.answer).to_contain_text(STOPPED_AFTER)
    expect(page.get_by_role("link", name=chat_id)).to_be_visible()
    page.reload()
    expect(screen.answer).to_contain_text(STOPPED_AFTER)
    expect(screen.dialog).to_be_hidden()
    page.get_by_role("button", name="Delete chat").click()
    page.get_by_role("dialog").get_by_role("button", name="Delete").click()
    expect(page.locator("#title")).not_to_have_text(chat_id)
    assert page.evaluate("window.hacked") is None
    screen.sign_out()
    expect(screen.field).to_be_focused()
    expect(screen.field).to_have_value("")
    assert screen.remembered() == {}

    page.goto(f"{keyed}docs")
    page.locator("#operations-stop-stop_api_v1_stop__chat_id__post button.opblock-summary-control").click()
    page.get_by_role("button", name="Try it out").click()
    page.get_by_placeholder("chat_id").fill("x")
    with page.expect_response(STOP_CALL) as stopped:
        page.get_by_role("button", name="Execute").click()
    assert stopped.value.status == 401
    expect(page.locator(".live-responses-table .response .response-col_status")).to_have_text("401")
    page.get_by_role("button", name="Authorize").first.click()
    page.locator("#auth-bearer-value").fill(KEY)
    page.get_by_role("button", name="Apply credentials").click()
    page.get_by_role("button", name="Close", exact=True).click()
    with page.expect_response(STOP_CALL) as stopped:
        page.get_by_role("button", name="Execute").click()
    assert stopped.value.json()["status"] == "accepted"


def test_signing_out_forgets_everything_here_and_stops_nothing_there(
    screens: Callable[..., SignInScreen], keyed: str
) -> None:
    screen = screens(keyed)
    screen.page.goto(f"{keyed}#{(chat_id := new_chat())}")
    screen.sign_in()
    screen.send(script(text="soon over", pace_ms=1))
    expect(screen.status).to_have_text("Finished")
    screen.send(ENDLESS)
    expect(screen.answer).to_contain_text("some")
    screen.box.fill("not for the next one")
    assert len(screen.remembered()) == 3, "the key, a measured run, a draft"
    screen.sign_out()
    expect(screen.dialog).to_be_visible()
    assert screen.remembered() == {}
    expect(screen.box).to_have_value("")
    expect(screen.page.get_by_role("article")).to_have_count(0)
    expect(screen.page.locator("#chat-list a")).to_have_count(0)
    expect(screen.page.locator("#title")).not_to_have_text(chat_id)
    expect(screen.page.get_by_role("button", name="Sign out")).to_be_hidden()

    screen.sign_in()
    row = screen.page.get_by_role("link", name=chat_id)
    expect(row).to_contain_text("running")
    row.click()
    expect(screen.status).to_have_text("Answering in another window or program")
    screen.stop.click()
    expect(screen.answer).to_contain_text(STOPPED_AFTER)
    assert list(screen.remembered()) == ["haltline.sign-in"], "what was begun before is measured for nobody"


def test_a_key_that_ran_out_is_asked_for_again_and_nothing_is_lost(
    screens: Callable[..., SignInScreen], keyed: str
) -> None:
    screen = screens(keyed)
    page = screen.page
    page.goto(f"{keyed}#{new_chat()}")
    screen.sign_in()
    screen.send(ENDLESS)
    expect(screen.answer).to_contain_text("some")
    refused = lambda route: route.fulfill(status=401, json={"detail": "Not authenticated."})  # noqa: E731
    page.route(re.compile("/api/v1/"), refused)
    screen.stop.click()
    expect(screen.dialog).to_be_visible()
    expect(screen.problem).to_contain_text("not good any more. What you have written is kept.")
    expect(screen.status).to_have_text("Stopping…")
    expect(screen.answer).to_contain_text("some")
    page.unroute(re.compile("/api/v1/"))
    with page.expect_response(STOP_CALL) as stopped:
        screen.sign_in()  # the stop goes out by itself
    assert stopped.value.json()["status"] == "stopped"
    expect(screen.answer).to_contain_text(STOPPED_AFTER)

    page.route(CHAT_CALL, refused)
    screen.send(message := script(text="at last", pace_ms=1))
    expect(screen.dialog).to_be_visible()
    page.unroute(CHAT_CALL)
    screen.sign_in()
    expect(screen.box).to_have_value(message)
    page.get_by_role("button", name="Send again").click()
    expect(screen.answer).to_contain_text("at last")
    expect(screen.status).to_have_text("Finished")


def test_a_stop_of_somebody_who_has_left_is_not_sent_by_the_next(
    screens: Callable[..., SignInScreen], keyed: str
) -> None:
    screen = screens(keyed)
    page = screen.page
    page.goto(f"{keyed}#{new_chat()}")
    screen.sign_in()
    screen.send(ENDLESS)
    expect(screen.answer).to_contain_text("some")
    held: list[Route] = []
    page.route(STOP_CALL, lambda route: held.append(route))
    with page.expect_request(STOP_CALL):
        screen.stop.click()
    screen.sign_out()
    with page.expect_response(STOP_CALL):
        held[0].fulfill(status=401, json={"detail": "Not authenticated."})
    screen.sign_in()
    screen.send(script(text="of the next", pace_ms=1))
    expect(screen.status).to_have_text("Finished")
    assert len(held) == 1


def test_a_page_that_was_kept_aside_is_made_anew_where_its_person_has_signed_out_since(
    screens: Callable[..., SignInScreen], keyed: str
) -> None:
    screen = screens(keyed)
    page = screen.page
    page.goto(f"{keyed}#{new_chat()}")
    screen.sign_in()
    screen.box.fill("not for the next one")
    back = "dispatchEvent(new PageTransitionEvent('pageshow', { persisted: true }))"
    page.evaluate(back)
    expect(screen.dialog).to_be_hidden()
    page.evaluate("sessionStorage.clear()")  # as a later page of this tab does at a sign-out
    with page.expect_navigation():
        page.evaluate(back)
    expect(screen.dialog).to_be_visible()
    expect(screen.box).to_have_value("")


# ---------------------------------------------------------------- with a token


def token_of(name: str) -> str:
    claims = base64.urlsafe_b64encode(json.dumps({"sub": name}).encode()).decode().rstrip("=")
    return f"head.{claims}.{uuid4().hex}"


def test_what_is_left_of_one_person_is_not_for_the_next_whose_token_is_taken(
    screens: Callable[..., SignInScreen], valkey_url: str, tmp_path: Path
) -> None:
    old, new, other = token_of("ann"), token_of("ann"), token_of("bob")
    with guarded(valkey_url, tmp_path, "jwt", lambda app: Guard(app, {f"Bearer {old}"})) as (url, guard):
        screen = screens(url)
        page = screen.page
        field = page.get_by_label("Token")

        def stop_with(token: str, good: str) -> None:
            """Press Stop with a token that has run out, and sign in with another."""
            guard.good = {f"Bearer {good}"}
            screen.stop.click()
            expect(screen.problem).to_contain_text("not good any more")
            field.fill(token)
            screen.press_sign_in()
            expect(screen.dialog).to_be_hidden()

        page.goto(f"{url}#{(chat_id := new_chat())}")
        field.fill(old)
        screen.press_sign_in()
        expect(screen.dialog).to_be_hidden()
        screen.send(ENDLESS)
        expect(screen.answer).to_contain_text("some")
        screen.box.fill("still to be said")
        stop_with(new, good=new)
        expect(screen.answer).to_contain_text(STOPPED_AFTER)
        expect(screen.box).to_have_value("still to be said")

        screen.box.fill("")
        screen.send(ENDLESS)
        expect(screen.answer.last).to_contain_text("some")
        screen.box.fill("of ann alone")
        guard.seen.clear()
        stop_with(other, good=other)
        expect(page.locator("#title")).not_to_have_text(chat_id)
        expect(screen.box).to_have_value("")
        expect(page.get_by_role("article")).to_have_count(0)
        assert set(screen.remembered()) == {"haltline.sign-in-subject", "haltline.sign-in"}
        assert [given for path, given in guard.seen if "/stop/" in path] == [f"Bearer {new}"]
        page.goto("about:blank")  # ann's run ends with its page


def test_the_dialog_fits_and_is_easy_to_read(screens: Callable[..., SignInScreen], keyed: str) -> None:
    screen = screens(keyed)
    page = screen.page
    page.goto(keyed)
    screen.field.fill("wrong")
    screen.press_sign_in()
    expect(screen.problem).not_to_be_empty()
    places = [f"#sign-in-{place}" for place in ("title", "words", "label", "value", "kept", "problem", "go")]
    for scheme, width in (("light", 1100), ("dark", 360)):
        page.emulate_media(color_scheme=scheme, reduced_motion="reduce")  # type: ignore[arg-type]
        page.set_viewport_size({"width": width, "height": 640})
        contrasts = page.evaluate(CONTRASTS, places)
        assert {place: ratio for place, ratio in contrasts.items() if ratio < 4.5} == {}
        box = screen.dialog.bounding_box()
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= width
        assert page.evaluate("document.documentElement.scrollWidth") == width
    screen.field.focus()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "sign-in-go"


# ---------------------------------------------------------------- by Cognito's hosted page


def open_endpoint(screen: SignInScreen, chat_id: str = "") -> Page:
    screen.page.goto(f"{screen.url}#{chat_id or new_chat()}")
    screen.press_sign_in()
    expect(screen.page.get_by_role("button", name="Sign out")).to_be_visible()
    return screen.page


def hosted_screen(screens: Callable[..., SignInScreen], endpoint: Endpoint, **options: Any) -> SignInScreen:
    domain = endpoint.guard.event["stageVariables"]["SignInDomain"]
    return screens(endpoint.url, domain, **options)


def test_the_hosted_page_signs_in_and_gives_the_chat_back(
    screens: Callable[..., SignInScreen], endpoint: Endpoint
) -> None:
    screen = hosted_screen(screens, endpoint)
    page = open_endpoint(screen, chat_id := new_chat())
    assert screen.has_chat() == chat_id
    assert page.url == f"{endpoint.url}#{chat_id}", "nothing of the code is left in the address"
    screen.send(script(text="by Cognito", pace_ms=1))
    expect(screen.answer).to_contain_text("by Cognito")
    sent = {given for path, given in endpoint.guard.seen if path.startswith("/api/v1/chat")}
    assert sent == endpoint.hosted.good, "the id token as it is, and nothing before it"
    page.reload()
    expect(screen.answer).to_contain_text("by Cognito")
    assert endpoint.hosted.grants == ["authorization_code"]

    before = endpoint.hosted.logouts
    with page.expect_navigation():
        screen.sign_out()
    expect(screen.dialog).to_be_visible()
    assert page.url.partition("#")[0] == endpoint.url
    assert endpoint.hosted.logouts == before + 1
    assert screen.remembered() == {}


def test_a_sign_in_that_was_begun_elsewhere_is_refused_and_one_that_failed_is_told(
    screens: Callable[..., SignInScreen], endpoint: Endpoint
) -> None:
    screen = hosted_screen(screens, endpoint)
    for begun in (False, True):
        if begun:  # one of our own is under way
            screen.page.route("**/oauth2/authorize?*", lambda route: route.abort())
            with screen.page.expect_request("**/oauth2/authorize?*"):
                screen.press_sign_in()
        screen.page.goto(f"{endpoint.url}?code=stolen&state=foreign#x")
        expect(screen.problem).to_contain_text("not begun in this tab, so it was not taken")
        assert screen.page.url.partition("#")[0] == endpoint.url
    assert endpoint.hosted.grants == []
    screen.page.unroute("**/oauth2/authorize?*")

    def refuse(route: Route) -> None:
        state = parse_qs(urlsplit(route.request.url).query)["state"][0]
        why = {"error": "access_denied", "error_description": "Ask <b>Eve</b>", "state": state}
        route.fulfill(status=302, headers={"Location": f"{endpoint.url}?{urlencode(why)}"})

    screen.page.route("**/oauth2/authorize?*", refuse)
    screen.press_sign_in()
    expect(screen.problem).to_have_text("The sign-in was refused: Ask <b>Eve</b>.")
    screen.page.unroute("**/oauth2/authorize?*")
    screen.press_sign_in()
    expect(screen.page.get_by_role("button", name="Sign out")).to_be_visible()


def test_a_stop_with_a_token_that_ran_out_gets_through(
    screens: Callable[..., SignInScreen], endpoint: Endpoint
) -> None:
    screen = hosted_screen(screens, endpoint)
    page = open_endpoint(screen)
    screen.send(ENDLESS)
    expect(screen.answer).to_contain_text("some")
    endpoint.hosted.expire()
    endpoint.hosted.grants.clear()
    with page.expect_response(lambda answer: "/api/v1/stop/" in answer.url and answer.status == 200) as stopped:
        screen.stop.click()
    assert stopped.value.json()["status"] == "stopped"
    expect(screen.answer).to_contain_text(STOPPED_AFTER)
    expect(screen.notice).to_be_hidden()
    assert endpoint.hosted.grants == ["refresh_token"]

    endpoint.hosted.expire()
    answered = page.evaluate(
        """async () => {
          const api = await import(new URL("static/api.js", document.baseURI));
          const asked = ["a", "b", "c", "d"].map((id) => api.chatStatus(id));
          return (await Promise.all([...asked, api.listChats()])).length;
        }"""
    )
    assert (answered, endpoint.hosted.grants) == (5, ["refresh_token"] * 2), "renewed once for all"
    expect(screen.dialog).to_be_hidden()


def test_a_token_is_renewed_before_it_runs_out(screens: Callable[..., SignInScreen], endpoint: Endpoint) -> None:
    screen = hosted_screen(screens, endpoint, locale="en-GB")  # an option, as the clock is the whole context's
    screen.page.clock.install()
    page = open_endpoint(screen)
    with page.expect_response("**/oauth2/token"):
        page.clock.fast_forward(3300 * 1000)
    expect(screen.page.get_by_role("button", name="Sign out")).to_be_visible()
    assert endpoint.hosted.grants == ["authorization_code", "refresh_token"]
    endpoint.guard.seen.clear()
    screen.send(script(text="still here", pace_ms=1))
    page.clock.run_for(1000)
    expect(screen.answer).to_contain_text("still here")
    assert endpoint.hosted.grants == ["authorization_code", "refresh_token"]


def test_where_a_token_cannot_be_renewed_one_signs_in_again_and_the_draft_and_the_stop_are_kept(
    screens: Callable[..., SignInScreen], endpoint: Endpoint
) -> None:
    screen = hosted_screen(screens, endpoint)
    page = open_endpoint(screen, chat_id := new_chat())
    screen.send(ENDLESS)
    expect(screen.answer).to_contain_text("some")
    screen.box.fill("still to be said")
    endpoint.hosted.revoke()
    screen.stop.click()
    expect(screen.problem).to_contain_text("not good any more. What you have written is kept.")
    expect(screen.answer).to_contain_text("some")
    with page.expect_response(lambda answer: "/api/v1/stop/" in answer.url and answer.status == 200):
        screen.press_sign_in()
    assert screen.has_chat() == chat_id
    expect(screen.box).to_have_value("still to be said")
    expect(screen.answer).to_contain_text("Stopped")

    endpoint.hosted.revoke()
    endpoint.hosted.subject = "bob"
    page.reload()
    with page.expect_navigation(url=f"{endpoint.url}?code=*"):
        screen.press_sign_in()
    expect(page.get_by_role("button", name="Sign out")).to_be_visible()
    expect(screen.box).to_have_value(""), "what is ann's is not for bob"


# ---------------------------------------------------------------- other people's pages


CALLS = """async ([url, message]) => {
  const headers = { Authorization: "Bearer x", "Content-Type": "application/json" };
  const answer = await fetch(`${url}api/v1/chat/cors`, { method: "POST", headers, body: JSON.stringify({ message }) });
  const unasked = await fetch(`${url}live`, { mode: "no-cors" }).catch((error) => error.name);
  return [answer.headers.get("X-Run-Id").length, await answer.text(), unasked];
}"""


def test_an_origin_that_cors_lets_in_may_call_and_nothing_is_embedded_unasked(
    screens: Callable[..., SignInScreen], valkey_url: str, tmp_path: Path
) -> None:
    with serving(PlainTextResponse("another site")) as other:
        settings = Settings(
            redis_url=valkey_url, model_provider="scripted", session_dir=tmp_path, cors_origins=other.rstrip("/")
        )
        with serving(Guard(make_app(make_resources(settings)), {"", "Bearer x"})) as url:
            screen = screens(other, url)
            screen.page.goto(other)
            seen = screen.page.evaluate(CALLS, [url, script(text="hello", pace_ms=1)])
            assert seen == [26, "data: hello\n\nevent: done\ndata: [DONE]\n\n", "TypeError"]
