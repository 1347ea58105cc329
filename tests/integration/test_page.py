"""The web page in a real browser, against real replicas: what a person sees, and what a browser would refuse."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import os
import re
import shutil
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, urlsplit
from uuid import uuid4

import httpx2 as httpx
import pytest
from playwright.sync_api import (
    Browser,
    BrowserContext,
    Error,
    Locator,
    Page,
    Request,
    Response,
    Route,
    expect,
    sync_playwright,
)

from tests.stack import Stack

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
CHROMIUM = next(filter(None, map(shutil.which, BROWSERS)), None)
NO_CHROMIUM = f"no Chromium on PATH (looked for {', '.join(BROWSERS)})"
BROWSER_ARGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
)
ULID = re.compile(r"[0-7][0-9A-HJKMNP-TV-Z]{25}")
STOPPED_AFTER = re.compile(r"Stopped after [\d,.]+ ms")
FOREVER_MS = 600_000
CHAT_CALL = re.compile(r"/api/v1/chat/[^/]+$")
STOP_CALL = re.compile(r"/api/v1/stop/")

expect.set_options(timeout=15_000)  # a deadline for slow machines, not a wait

# On a machine of one's own the browser may be missing; in CI a page that nobody looked at is a failure.
pytestmark = [
    pytest.mark.skipif(CHROMIUM is None and os.environ.get("CI") != "true", reason=NO_CHROMIUM),
    # A browser opens connections ahead of time; one that comes while a test's own front door closes is nobody's fault.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


# ---------------------------------------------------------------- the browser, the door, the page


def script(**fields: Any) -> str:
    """A message that tells the scripted model what to say."""
    return f"/script {json.dumps(fields)}"


def new_chat() -> str:
    return f"page-{uuid4().hex[:12]}"


@contextlib.contextmanager
def open_browser() -> Iterator[Browser]:
    """Chromium as it is installed here; none is downloaded. Raises: RuntimeError where there is none."""
    if CHROMIUM is None:
        raise RuntimeError(NO_CHROMIUM)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(BROWSER_ARGS))
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with open_browser() as opened:
        yield opened


@dataclass
class Door:
    """A small front door over two replicas: cuts a prefix off and hands stops to another replica than all the rest."""

    first: str
    stops: str
    prefix: str = ""
    _loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.new_event_loop)
    _port: int = 0
    _clients: dict[asyncio.Task[None], asyncio.StreamWriter] = field(default_factory=dict)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}{self.prefix}/"

    @contextlib.contextmanager
    def open(self) -> Iterator[Door]:
        thread = threading.Thread(target=self._loop.run_forever)
        thread.start()
        server = asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result()
        try:
            yield self
        finally:
            asyncio.run_coroutine_threadsafe(self._close(server), self._loop).result()
            self._loop.call_soon_threadsafe(self._loop.stop)
            thread.join()
            self._loop.close()
            gc.collect()  # what the closed loop left behind is told here and not in another test

    async def _listen(self) -> asyncio.Server:
        server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self._port = server.sockets[0].getsockname()[1]
        return server

    async def _close(self, server: asyncio.Server) -> None:
        server.close()
        for _ in range(10):
            await asyncio.sleep(0)  # a client that was let in just now is handed over in five turns of the loop
        for task in self._clients:
            task.cancel()
        await asyncio.gather(*self._clients, return_exceptions=True)
        for out in self._clients.values():
            out.close()  # also of a client whose task never began
        await asyncio.gather(*(out.wait_closed() for out in self._clients.values()), return_exceptions=True)
        await asyncio.sleep(0)  # the loop ends next: what closes a socket is a callback of its own

    def _accept(self, client: asyncio.StreamReader, out: asyncio.StreamWriter) -> None:
        self._clients[asyncio.ensure_future(self._serve(client, out))] = out

    async def _serve(self, client: asyncio.StreamReader, out: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError), contextlib.closing(out):
            head = (await client.readuntil(b"\r\n\r\n")).decode("latin-1")
            method, target, rest = head.split(" ", 2)
            if not target.startswith(f"{self.prefix}/"):
                out.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
                return
            target = target.removeprefix(self.prefix)
            upstream = urlsplit(self.stops if target.startswith("/api/v1/stop/") else self.first)
            reader, writer = await asyncio.open_connection(upstream.hostname, upstream.port)
            with contextlib.closing(writer):
                # One request a connection: then the rest is bytes in both directions.
                rest = re.sub(r"\r\n(?i:connection): [^\r]*", "", rest).replace("\r\n", "\r\nConnection: close\r\n", 1)
                writer.write(f"{method} {target} {rest}".encode("latin-1"))
                ways = [asyncio.ensure_future(_pump(client, writer)), asyncio.ensure_future(_pump(reader, out))]
                try:
                    await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    for way in ways:
                        way.cancel()
                    await asyncio.gather(*ways, return_exceptions=True)


async def _pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    while data := await source.read(65536):
        sink.write(data)
        await sink.drain()


@pytest.fixture(scope="module")
def door(stack: Stack) -> Iterator[Door]:
    with Door(stack.replicas[0].url, stack.replicas[1].url).open() as opened:
        yield opened


@dataclass
class Screen:
    """The page as a person works with it. `troubles` is what the browser complained of."""

    page: Page
    url: str
    troubles: list[str] = field(default_factory=list)

    def open(self, chat_id: str = "") -> None:
        self.page.goto(f"{self.url}#{chat_id}" if chat_id else self.url)
        expect(self.page.locator("#connection-words")).to_contain_text("Connected")
        expect(self.page.locator("#transcript")).to_have_attribute("aria-busy", "false")

    def send(self, message: str) -> None:
        self.box.fill(message)
        self.page.get_by_role("button", name="Send", exact=True).click()

    @property
    def box(self) -> Locator:
        return self.page.get_by_role("textbox", name="Message")

    @property
    def stop(self) -> Locator:
        return self.page.locator("#stop")

    @property
    def status(self) -> Locator:
        return self.page.locator("#status")

    @property
    def notice(self) -> Locator:
        return self.page.locator("#notice")

    @property
    def answer(self) -> Locator:
        return self.page.get_by_role("article", name="Answer").last

    def has_chat(self) -> str:
        return self.page.locator("#title").inner_text()


def new_context(browser: Browser, **options: Any) -> BrowserContext:
    context = browser.new_context(**{"viewport": {"width": 1100, "height": 760}, **options})
    context.set_default_timeout(15_000)
    return context


@pytest.fixture(scope="module")
def shared_context(browser: Browser) -> BrowserContext:
    """For speed: what the page remembers it remembers by the tab, and each screen is a tab of its own."""
    return new_context(browser)


@pytest.fixture
def screens(browser: Browser, shared_context: BrowserContext, door: Door) -> Iterator[Callable[..., Screen]]:
    """Makes screens. None may end with a complaint in its console but of the refusals that its test is about."""
    made: list[Screen] = []

    def make(url: str = "", **options: Any) -> Screen:
        page = (new_context(browser, **options) if options else shared_context).new_page()
        screen = Screen(page, url or door.url)
        made.append(screen)
        page.add_init_script(
            "addEventListener('securitypolicyviolation', (e) => console.error('CSP refused ' + e.violatedDirective))"
        )
        page.on("pageerror", lambda error: screen.troubles.append(f"error: {error}"))
        page.on(
            "console",
            # The browser itself notes every refused call there; what the page makes of it is what a test looks at.
            lambda message: (
                screen.troubles.append(f"{message.type}: {message.text}")
                if message.type in ("error", "warning") and not message.text.startswith("Failed to load resource")
                else None
            ),
        )
        return screen

    yield make
    for screen in made:
        (screen.page if screen.page.context is shared_context else screen.page.context).close()
    assert [trouble for screen in made for trouble in screen.troubles] == []


@pytest.fixture
def screen(screens: Callable[..., Screen]) -> Screen:
    return screens()


@pytest.fixture
def api(stack: Stack) -> Iterator[httpx.Client]:
    """Another program that uses the second replica."""
    with httpx.Client(base_url=f"{stack.replicas[1].url}/api/v1", timeout=20) as client:
        yield client


@contextlib.contextmanager
def running_elsewhere(api: httpx.Client, chat_id: str) -> Iterator[None]:
    """A run of another program, with one word said and no end in sight."""
    message = {"message": script(chunks=["elsewhere ", "never"], pace_ms=FOREVER_MS)}
    with api.stream("POST", f"/chat/{chat_id}", json=message) as answer:
        assert answer.status_code == 200
        lines = answer.iter_lines()  # kept until the end: without it the client would hang up
        while "elsewhere" not in next(lines):
            pass
        yield


def fulfilling(status: int, **headers: str) -> Callable[[Route], None]:
    return lambda route: route.fulfill(status=status, headers=headers, json={"detail": "as the test says"})


# ---------------------------------------------------------------- send and stop


def test_an_answer_arrives_token_by_token(screen: Screen) -> None:
    screen.open()
    screen.send(script(chunks=[f"w{n} " for n in range(1000)], pace_ms=60))
    for seen in ("w1 ", "w5 ", "w20 "):
        expect(screen.answer).to_contain_text(seen)
        expect(screen.answer).not_to_contain_text("w999")
    expect(screen.status).to_have_text("Answering…")
    screen.stop.click()
    expect(screen.answer).to_contain_text(STOPPED_AFTER)


def test_a_silent_model_is_stopped(screen: Screen) -> None:
    screen.open()
    screen.send(script(chunks=["alpha ", "omega"], pace_ms=FOREVER_MS))
    expect(screen.answer).to_contain_text("alpha")
    screen.stop.click()
    expect(screen.answer).to_contain_text(STOPPED_AFTER)
    expect(screen.answer).not_to_contain_text("omega")


def test_a_finished_answer_shows_where_it_ran(screen: Screen) -> None:
    screen.open()
    screen.send(script(text="All of it, to the end.", pace_ms=1))
    expect(screen.answer).to_contain_text("All of it, to the end.")
    expect(screen.status).to_have_text("Finished")
    expect(screen.answer).to_contain_text("Ran on replica1")
    expect(screen.stop).to_have_attribute("aria-disabled", "true")
    expect(screen.page.get_by_role("link", name=screen.has_chat())).to_be_visible()


def test_a_stop_shows_how_long_it_took_and_both_replicas(screen: Screen) -> None:
    screen.open()
    screen.send(script(text="word ", repeat=5000, pace_ms=20))
    expect(screen.answer).to_contain_text("word word")
    expect(screen.stop).to_have_attribute("data-state", "armed")
    with (
        screen.page.expect_response(STOP_CALL) as stopped,
        screen.page.expect_response(re.compile(r"/api/v1/chats\?")) as listed,
    ):
        screen.stop.click()
    expect(screen.answer).to_contain_text(STOPPED_AFTER)
    expect(screen.status).to_have_text(STOPPED_AFTER)
    expect(screen.answer).to_contain_text("Ran on replica1")
    expect(screen.answer).to_contain_text("Stop taken by replica2")
    assert stopped.value.json()["status"] == "stopped"
    # The list is read again, and not before the server is done with the run.
    states = {chat["chat_id"]: chat["status"] for chat in listed.value.json()["chats"]}
    assert states[screen.has_chat()] == "idle"
    expect(screen.page.get_by_role("link", name=screen.has_chat())).not_to_contain_text("running")
    shown = re.search(r"Stopped after ([\d.]+) ms", screen.answer.inner_text())
    assert shown, "a stop over one machine's loopback takes under a second"
    assert 0 < float(shown[1]) < 1000
    expect(screen.stop).to_have_attribute("data-state", "off")


def test_every_run_has_a_ulid_of_its_own_and_its_stop_names_it(screen: Screen) -> None:
    screen.open()
    named = []
    for turn in (1, 2):
        with screen.page.expect_request(CHAT_CALL) as sent:
            screen.send(script(text="word ", repeat=500))
        expect(screen.page.get_by_role("article", name="Answer")).to_have_count(turn)
        expect(screen.answer).to_contain_text("word")
        with screen.page.expect_request(STOP_CALL) as asked:
            screen.stop.click()
        expect(screen.status).to_have_text(STOPPED_AFTER)
        query = parse_qs(urlsplit(asked.value.url).query)
        assert query == {"run_id": [sent.value.post_data_json["run_id"]], "wait": ["5"]}
        named += query["run_id"]
    assert named[0] != named[1]
    assert all(ULID.fullmatch(name) for name in named)


def test_stop_works_before_the_answer_has_begun(screen: Screen) -> None:
    screen.open()
    held: list[Route] = []
    screen.page.route(CHAT_CALL, lambda route: held.append(route))
    with screen.page.expect_request(CHAT_CALL):
        screen.send(script(text="must not be said"))
    assert screen.stop.get_attribute("data-state") == "armed", "armed in the very moment of Send"
    with screen.page.expect_response(STOP_CALL) as stopped:
        screen.stop.click()
    assert stopped.value.status == 200
    held.pop().continue_()  # only now the server hears of the run
    expect(screen.answer).to_contain_text(STOPPED_AFTER)
    expect(screen.answer).not_to_contain_text("must not be said")


def test_a_stop_that_was_not_taken_is_told_and_can_be_pressed_again(screen: Screen) -> None:
    screen.open()
    screen.send(script(text="word ", repeat=5000))
    expect(screen.answer).to_contain_text("word")
    screen.page.route(STOP_CALL, lambda route: route.fulfill(status=503, json={"detail": "no bus"}))
    screen.stop.click()
    expect(screen.notice).to_contain_text("The stop was not taken")
    expect(screen.stop).to_have_attribute("data-state", "armed")
    screen.page.unroute(STOP_CALL)
    screen.stop.click()
    expect(screen.answer).to_contain_text(STOPPED_AFTER)
    expect(screen.notice).to_be_hidden()


def test_text_that_says_done_ends_nothing(screen: Screen) -> None:
    screen.open()
    screen.send(script(chunks=["before ", "[DONE]", " [STOPPED]", " after"], pace_ms=1))
    expect(screen.answer).to_contain_text("before [DONE] [STOPPED] after")
    expect(screen.status).to_have_text("Finished")


def test_a_failed_run_says_why_and_keeps_its_text(screen: Screen) -> None:
    screen.open()
    screen.send(script(text="half an answer", fail="the model has gone", pace_ms=1))
    expect(screen.answer.locator(".fault")).not_to_be_empty()
    expect(screen.answer).to_contain_text("half an answer")
    expect(screen.answer).not_to_contain_text("[ERROR]")
    expect(screen.status).to_have_text("Failed")


# ---------------------------------------------------------------- chats and history


def test_reload_shows_the_history_with_the_stopped_turn_marked(
    screen: Screen, screens: Callable[..., Screen], api: httpx.Client
) -> None:
    chat_id = new_chat()
    screen.open(chat_id)
    screen.send(script(text="a first answer to its end", pace_ms=1))
    expect(screen.status).to_have_text("Finished")
    screen.send(script(text="partial ", repeat=5000))
    expect(screen.answer).to_contain_text("partial partial")
    screen.stop.click()
    expect(screen.answer).to_contain_text("Stop taken by")
    seen = screen.answer.locator(".body").inner_text()

    screen.page.reload()
    answers = screen.page.get_by_role("article", name="Answer")
    expect(answers).to_have_count(2)
    expect(answers.first).not_to_contain_text("Stopped")
    expect(answers.last.locator(".body")).to_have_text(seen.strip())
    expect(answers.last).to_contain_text(STOPPED_AFTER)  # this tab measured it

    other = screens()
    other.open(chat_id)
    expect(other.answer.locator(".halt")).to_have_text("Stopped")
    stored = api.get(f"/chat/{chat_id}/messages").json()["messages"]
    assert [entry.get("stopped", False) for entry in stored] == [False, False, False, True]
    assert stored[-1]["text"].strip() == seen.strip()


def test_a_run_goes_on_while_another_chat_is_looked_at(screen: Screen) -> None:
    first, second = new_chat(), new_chat()
    screen.open(first)
    screen.send(script(chunks=["kept ", "going"], pace_ms=FOREVER_MS))
    expect(screen.answer).to_contain_text("kept")
    screen.page.get_by_label("Open or name a chat").fill(second)
    screen.page.get_by_role("button", name="Open", exact=True).click()
    expect(screen.page.locator("#title")).to_have_text(second)
    expect(screen.stop).to_have_attribute("data-state", "off")
    screen.page.get_by_role("link", name=first).click()
    expect(screen.answer).to_contain_text("kept")
    expect(screen.stop).to_have_attribute("data-state", "armed")
    screen.stop.click()
    expect(screen.answer).to_contain_text(STOPPED_AFTER)


def test_a_run_of_another_program_is_shown_and_can_be_stopped(screen: Screen, api: httpx.Client) -> None:
    chat_id = new_chat()
    with running_elsewhere(api, chat_id):
        screen.open(chat_id)
        expect(screen.status).to_have_text("Answering in another window or program")
        expect(screen.page.get_by_role("link", name=chat_id)).to_contain_text("running")
        screen.stop.click()
        expect(screen.answer).to_contain_text(STOPPED_AFTER)
        expect(screen.answer).to_contain_text("elsewhere")
        expect(screen.answer).to_contain_text("Stop taken by replica2")
    assert api.get(f"/chat/{chat_id}").json()["status"] == "idle"


def test_a_busy_chat_offers_to_stop_the_other_run_and_send(screen: Screen, api: httpx.Client) -> None:
    chat_id = new_chat()
    screen.open(chat_id)
    with running_elsewhere(api, chat_id):
        message = script(text="my turn now", pace_ms=1)
        screen.send(message)
        expect(screen.notice).to_contain_text("This chat is answering already")
        expect(screen.box).to_have_value(message)
        expect(screen.stop).to_have_attribute("data-state", "armed")
        screen.page.get_by_role("button", name="Stop it and send").click()
        expect(screen.answer).to_contain_text("my turn now")
        expect(screen.status).to_have_text("Finished")
        expect(screen.notice).to_be_hidden()
        # The other one's turn is shown too, before ours, as the stopped one that it is.
        answers = screen.page.get_by_role("article", name="Answer")
        expect(answers).to_have_count(2)
        expect(screen.page.get_by_role("article", name="You")).to_have_count(2)
        expect(answers.first).to_contain_text("elsewhere")
        expect(answers.first.locator(".halt")).to_be_visible()
        expect(screen.box).to_have_value("")


def test_sending_during_an_answer_offers_to_stop_it_first(screen: Screen) -> None:
    screen.open()
    screen.send(script(chunks=["the first ", "never"], pace_ms=FOREVER_MS))
    expect(screen.answer).to_contain_text("the first")
    screen.box.fill(message := script(text="the second", pace_ms=1))
    screen.box.press("Enter")
    expect(screen.notice).to_contain_text("still coming")
    expect(screen.box).to_have_value(message)

    screen.page.route(CHAT_CALL, fulfilling(503))
    screen.page.get_by_role("button", name="Stop it and send").click()
    expect(screen.notice).to_contain_text("as the test says. Your text is back in the box.")
    expect(screen.box).to_have_value(message)
    expect(screen.stop).to_have_attribute("data-state", "armed")  # the first one goes on
    screen.page.unroute(CHAT_CALL)

    screen.box.press("Enter")
    screen.page.get_by_role("button", name="Stop it and send").click()
    expect(screen.answer).to_contain_text("the second")
    expect(screen.status).to_have_text("Finished")
    answers = screen.page.get_by_role("article", name="Answer")
    expect(answers).to_have_count(2)
    expect(answers.first).to_contain_text("the first")
    expect(answers.first).to_contain_text("Stopped")


def test_delete_asks_and_deletes(screen: Screen, api: httpx.Client) -> None:
    chat_id = new_chat()
    screen.open(chat_id)
    screen.send(script(text="soon gone", pace_ms=1))
    expect(screen.status).to_have_text("Finished")
    row = screen.page.get_by_role("link", name=chat_id)
    expect(row).to_be_visible()
    screen.page.get_by_role("button", name="Delete chat").click()
    screen.page.get_by_role("button", name="Keep it").click()
    expect(screen.answer).to_contain_text("soon gone")
    assert api.get(f"/chat/{chat_id}").json()["message_count"] == 2

    screen.page.get_by_role("button", name="Delete chat").click()
    with screen.page.expect_response(CHAT_CALL) as deleted:
        screen.page.get_by_role("dialog").get_by_role("button", name="Delete").click()
    assert (deleted.value.request.method, deleted.value.status) == ("DELETE", 200)
    expect(row).to_have_count(0)
    expect(screen.page.locator("#title")).not_to_have_text(chat_id)
    assert api.get(f"/chat/{chat_id}").json()["status"] == "new"


def test_a_wrong_name_is_refused_in_words(screen: Screen) -> None:
    screen.open(known := new_chat())
    field, problem = screen.page.get_by_label("Open or name a chat"), screen.page.locator("#open-problem")
    for wrong in ["../x", "all", "bulk", "-first", "a b", "x" * 129, ""]:
        field.fill("fine")
        expect(problem).to_be_empty()
        field.fill(wrong)
        field.press("Enter")
        expect(problem, wrong).not_to_be_empty()
        assert screen.has_chat() == known, wrong


def test_a_name_of_ones_own_is_taken(screen: Screen) -> None:
    screen.open(new_chat())
    for right in ["a", "My.chat_1-x", "x" * 128]:
        screen.page.get_by_label("Open or name a chat").fill(right)
        screen.page.get_by_role("button", name="Open", exact=True).click()
        expect(screen.page.locator("#title")).to_have_text(right)
        assert screen.page.url.endswith(f"#{right}")


def test_an_address_that_names_no_chat_opens_a_new_one(screen: Screen) -> None:
    screen.open("<img src=x onerror=alert(1)>")
    expect(screen.notice).to_contain_text("The address names no chat")
    assert re.fullmatch(r"chat-\d{4}-\d\d-\d\d-[0-9a-z]{6}", screen.has_chat())


def test_many_chats_come_page_by_page(screen: Screen, api: httpx.Client) -> None:
    ids = [f"{new_chat()}-many" for _ in range(35)]
    with ThreadPoolExecutor(4) as pool:
        answers = pool.map(lambda id_: api.post(f"/chat/{id_}", json={"message": script(text="x", pace_ms=1)}), ids)
        assert {answer.status_code for answer in answers} == {200}
    screen.open()
    rows = screen.page.locator("#chat-list a", has_text="-many")
    expect(rows).to_have_count(30)
    more = screen.page.get_by_role("button", name="More chats")
    more.click()
    expect(rows).to_have_count(35)
    assert len(set(rows.locator(".name").all_inner_texts())) == 35


# ---------------------------------------------------------------- refusals


REFUSALS: dict[str, Callable[[Route], None]] = {
    "did not accept that: as the test says": fulfilling(422),
    "as the test says. Try again in 7 s. Your text": fulfilling(429, **{"Retry-After": "7"}),
    "as the test says. Your text": fulfilling(403),
    "starts nothing that it could not stop": lambda route: route.fulfill(status=503, body="a proxy's page"),
    "a sign-in that this page does not have": fulfilling(401),
    "answered with an error (500)": fulfilling(500),
    "cannot be reached": lambda route: route.abort(),
}


def test_a_refused_message_goes_back_into_the_box(screen: Screen) -> None:
    screen.open()
    message = script(text="at last", pace_ms=1)
    for words, answer in REFUSALS.items():
        screen.page.route(CHAT_CALL, answer)
        screen.send(message)
        expect(screen.notice).to_contain_text(words)
        expect(screen.box).to_have_value(message)
        expect(screen.stop).to_have_attribute("data-state", "off")
        expect(screen.page.get_by_role("article")).to_have_count(0)  # no turn stays of what was not started
        screen.page.unroute(CHAT_CALL)
    screen.page.get_by_role("button", name="Send", exact=True).click()
    expect(screen.answer).to_contain_text("at last")
    expect(screen.notice).to_be_hidden()


def test_a_message_that_is_too_long_goes_back_into_the_box(screen: Screen) -> None:
    screen.open()
    screen.send("ü" * 40_000)
    expect(screen.notice).to_contain_text("The message is larger than 64 KiB of UTF-8. Your text")
    assert len(screen.box.input_value()) == 40_000


def test_what_was_typed_meanwhile_stays_after_the_refused_text(screen: Screen) -> None:
    screen.open()
    held: list[Route] = []
    screen.page.route(CHAT_CALL, lambda route: held.append(route))
    with screen.page.expect_request(CHAT_CALL):
        screen.send("first")
    screen.box.fill("second")
    held.pop().fulfill(status=503, json={"detail": "no bus"})
    expect(screen.box).to_have_value("first\n\nsecond")


def test_unsent_text_survives_a_reload(screen: Screen) -> None:
    screen.open(new_chat())
    screen.box.fill("not sent yet")
    screen.page.reload()
    expect(screen.box).to_have_value("not sent yet")


def test_a_degraded_server_is_told_until_it_is_well(screens: Callable[..., Screen]) -> None:
    screen = screens(locale="en-GB")  # an option of its own, as the clock is the whole context's
    health = re.compile(r"/api/v1/health$")
    screen.page.clock.install()
    screen.page.route(
        health, lambda route: route.fulfill(status=503, json={"status": "degraded", "redis": "disconnected"})
    )
    screen.page.goto(screen.url)
    expect(screen.page.locator("#banner")).to_contain_text("lost the signal bus")
    screen.page.unroute(health)
    with screen.page.expect_response(health):
        screen.page.clock.fast_forward(6_000)
    expect(screen.page.locator("#banner")).to_be_hidden()
    expect(screen.page.locator("#connection-words")).to_contain_text("Connected")


# ---------------------------------------------------------------- safety


HOSTILE = """
# A <b>friendly</b> title

<img src="x" onerror="window.hacked = 'img'">
<script>window.hacked = 'script'</script>
<svg onload="window.hacked = 'svg'"></svg>
<iframe srcdoc="<script>parent.hacked = 'iframe'</script>"></iframe>
<style>body { display: none }</style>
<form action="https://evil.example/"><input name="secret"><button>Send</button></form>
<a href="javascript:window.hacked = 'raw link'" id="stop" class="stop" style="position:fixed">raw</a>

![pixel](https://evil.example/pixel.png) ![inline](data:image/png;base64,AAAA)
[one](javascript:window.hacked='link') [two](JaVaScRiPt:alert(1)) [three](data:text/html,<script>alert(1)</script>)
[four](vbscript:x) [five](static/app.js) [good](https://example.org/?a=1&b=2 "a title") <https://example.net>

| a | b |
|---|---|
| <img src=y onerror="window.hacked = 'cell'"> | `<script>` |

```html"onmouseover="window.hacked='fence'
<script>window.hacked = 'code'</script>
```
"""


def test_a_hostile_answer_is_only_text(screen: Screen) -> None:
    asked: list[str] = []
    screen.page.on("request", lambda request: asked.append(request.url))
    screen.open()
    # In small pieces, so that every half-written construct is on the screen for a moment too.
    screen.send(script(chunks=re.findall(r"(?s).{1,7}", HOSTILE), pace_ms=1))
    expect(screen.status).to_have_text("Finished")
    body = screen.answer.locator(".body")
    expect(body).to_contain_text("""<img src="x" onerror="window.hacked = 'img'">""")
    expect(body).to_contain_text("[image: pixel]")
    expect(body.locator("table td")).to_have_count(2)
    assert screen.page.evaluate("window.hacked") is None
    forbidden = "img, script, svg, iframe, style, form, input, button, object, embed, link, meta, b"
    assert body.locator(forbidden).count() == 0
    attributes = "(node) => [...node.querySelectorAll('*')].flatMap((e) => e.getAttributeNames())"
    assert set(body.evaluate(attributes)) <= {"href", "title", "target", "rel"}
    links = body.locator("a[href]")
    assert links.evaluate_all("(all) => all.map((a) => [a.getAttribute('href'), a.target, a.rel])") == [
        ["https://example.org/?a=1&b=2", "_blank", "noopener noreferrer"],
        ["https://example.net", "_blank", "noopener noreferrer"],
    ]
    assert {urlsplit(url).netloc for url in asked} == {urlsplit(screen.url).netloc}

    screen.page.reload()  # the same from the history
    expect(body).to_contain_text("[image: pixel]")
    assert body.locator(forbidden).count() == 0
    assert screen.page.evaluate("window.hacked") is None


# Each on its own; what browsers and sanitizers have been fooled with.
TRICKS = [
    "<script>window.hacked = 1</script>",
    "<scr<script>ipt>window.hacked = 1</scr</script>ipt>",
    "<img src=x onerror=window.hacked=1>",
    "<img src=x:x\nonerror\n=window.hacked=1//",
    "<svg><script>window.hacked = 1</script></svg>",
    "<svg/onload=window.hacked=1>",
    "<svg><animate onbegin=window.hacked=1 attributeName=x dur=1s>",
    "<svg><use href='data:image/svg+xml,<svg id=x onload=window.hacked=1>#x'/></svg>",
    "<math><mtext><table><mglyph><style><!--</style><img title='--&gt;&lt;img src=1 onerror=window.hacked=1&gt;'>",
    "<form><math><mtext></form><form><mglyph><svg><mtext><style><path id='</style><img onerror=window.hacked=1 src>'>",
    "<math><annotation-xml encoding='text/html'><style><img src=x onerror=window.hacked=1></style></annotation-xml>",
    "<noscript><p title='</noscript><img src=x onerror=window.hacked=1>'>",
    "<template><img src=x onerror=window.hacked=1></template>",
    "<div><template shadowrootmode=open><img src=x onerror=window.hacked=1></template></div>",
    "<select><iframe></select><img src=x onerror=window.hacked=1>",
    "<iframe src='javascript:parent.hacked=1'></iframe>",
    "<iframe srcdoc='<script>parent.hacked=1</script>'></iframe>",
    "<object data='data:text/html,<script>parent.hacked=1</script>'></object><embed src='javascript:window.hacked=1'>",
    "<style>@import 'https://evil.example/x.css'; body { background: url(https://evil.example/) }</style>",
    "<link rel=stylesheet href=https://evil.example/x.css><meta http-equiv=refresh content='0;url=javascript:x=1'>",
    "<base href=https://evil.example/><base target=_self>",
    "<form action=https://evil.example/ id=composer><input name=attributes autofocus onfocus=window.hacked=1></form>",
    "<button formaction='javascript:window.hacked=1'>press</button><details open ontoggle=window.hacked=1>",
    "<video><source onerror=window.hacked=1></video><audio src=x onerror=window.hacked=1>",
    "<p style='background: url(https://evil.example/pixel)' class=stop id=stop>styled</p>",
    "<a href='java\nscript:window.hacked=1'>a</a> <a href='&#106;avascript:window.hacked=1'>b</a>",
    "[a](java&#115;cript:window.hacked=1) [b](<java\tscript:window.hacked=1>) [c](\x01javascript:window.hacked=1)",
    "[a](data:text/html;base64,PHNjcmlwdD5oYWNrZWQ9MTwvc2NyaXB0Pg==) [b](blob:x) [c](//evil.example) [d](file:///x)",
    "[a]: javascript:window.hacked=1\n\n[a] [x][a] ![y][a]",
    '![x](x"onerror="window.hacked=1) ![](https://evil.example/pixel)',
    '[x](https://a.example/"onclick="window.hacked=1 \'a" onclick="window.hacked=1\')',
    "`<img src=x onerror=window.hacked=1>` ``` <script>window.hacked=1</script> ```",
    '```"><img src=x onerror=window.hacked=1>\nx\n```',
    '| a |\n|:-" onclick=window.hacked=1|\n| <img src=x onerror=window.hacked=1> |',
    "<!--><img src=x onerror=window.hacked=1>--> <![CDATA[<img src=x onerror=window.hacked=1>]]> <?x <img src=x>?>",
    "&lt;img src=x onerror=window.hacked=1&gt; &amp;lt;script&amp;gt; \u003cimg src=x onerror=window.hacked=1\u003e",
]
SHOWN = """async (tricks) => {
  const { renderInto } = await import(new URL("static/markdown.js", document.baseURI));
  return tricks.map((trick) => {
    const place = document.createElement("div");
    document.body.append(place);
    for (const end of [Math.ceil(trick.length / 3), Math.ceil(trick.length / 2), trick.length]) {
      renderInto(place, trick.slice(0, end));
    }
    place.querySelectorAll("a, p, code, td").forEach((node) => node.dispatchEvent(new Event("click")));
    const parts = [...place.querySelectorAll("*")];
    return [parts.map((node) => node.localName), parts.flatMap((node) => node.getAttributeNames()),
      parts.filter((node) => node.href).map((node) => [node.protocol, node.target, node.rel].join(" "))];
  });
}"""


def test_no_trick_of_a_model_becomes_more_than_text(screen: Screen) -> None:
    asked: list[str] = []
    screen.open()
    screen.page.on("request", lambda request: asked.append(request.url))
    for trick, (names, attributes, links) in zip(TRICKS, screen.page.evaluate(SHOWN, TRICKS), strict=True):
        assert set(names) <= {"p", "a", "code", "pre", "br", "table", "thead", "tbody", "tr", "th", "td"}, trick
        assert set(attributes) <= {"href", "title", "target", "rel", "align"}, trick
        assert set(links) <= {"https: _blank noopener noreferrer"}, trick
    screen.page.evaluate("() => new Promise((resolve) => setTimeout(() => requestAnimationFrame(resolve)))")
    assert screen.page.evaluate("window.hacked") is None
    assert [url for url in asked if not url.startswith(screen.url)] == []


def test_a_hostile_message_is_only_text(screen: Screen) -> None:
    screen.open()
    message = "<img src=x onerror=\"window.hacked = 'user'\"> **plain**\n" + script(text="ok", pace_ms=1)
    screen.send(message)
    expect(screen.status).to_have_text("Finished")
    shown = screen.page.get_by_role("article", name="You")
    expect(shown).to_contain_text(message)
    assert shown.locator("img, strong").count() == 0
    assert screen.page.evaluate("window.hacked") is None


def test_markdown_is_rendered(screen: Screen) -> None:
    screen.open()
    text = "## Title\n\nA **bold** and *slanted* word, `code`.\n\n1. one\n2. two\n\n```\nlet x = 1 < 2;\n```\n"
    screen.send(script(chunks=list(text), pace_ms=0))
    expect(screen.status).to_have_text("Finished")
    body = screen.answer.locator(".body")
    assert body.evaluate("(node) => [...node.children].map((e) => e.tagName)") == ["H2", "P", "OL", "PRE"]
    expect(body.locator("strong")).to_have_text("bold")
    expect(body.locator("pre code")).to_have_text("let x = 1 < 2;\n")


def test_the_page_sends_a_policy_that_lets_nothing_else_in(screen: Screen) -> None:
    answer = screen.page.goto(screen.url)
    assert answer is not None
    policy = dict(part.split(" ", 1) for part in answer.headers["content-security-policy"].split("; "))
    assert policy["default-src"] == policy["object-src"] == policy["frame-ancestors"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert (policy["require-trusted-types-for"], policy["trusted-types"]) == ("'script'", "dompurify")
    # It is in force: no string becomes HTML, nobody else is called, and both are complained of.
    inserted = "() => document.body.insertAdjacentHTML('beforeend', '<b></b>')"
    with pytest.raises(Error, match="requires 'TrustedHTML' assignment"):
        screen.page.evaluate(inserted)
    with screen.page.expect_console_message(lambda message: message.text == "CSP refused connect-src"):
        assert screen.page.evaluate("() => fetch('https://evil.example/').catch((e) => e.name)") == "TypeError"
    assert "error: CSP refused require-trusted-types-for" in screen.troubles
    screen.troubles.clear()


# ---------------------------------------------------------------- where and how it is used


def test_the_page_works_under_a_prefix(stack: Stack, screens: Callable[..., Screen]) -> None:
    with Door(stack.replicas[0].url, stack.replicas[1].url, prefix="/prod").open() as door:
        screen = screens(door.url)
        requests: list[Request] = []
        responses: list[Response] = []
        screen.page.on("request", lambda request: requests.append(request))
        screen.page.on("response", lambda response: responses.append(response))
        screen.open(chat_id := new_chat())
        screen.send(script(text="word ", repeat=5000))
        expect(screen.answer).to_contain_text("word")
        screen.stop.click()
        expect(screen.answer).to_contain_text(STOPPED_AFTER)
        screen.page.reload()
        expect(screen.answer).to_contain_text("Stopped")
        screen.page.get_by_role("button", name="Delete chat").click()
        screen.page.get_by_role("dialog").get_by_role("button", name="Delete").click()
        expect(screen.page.locator("#title")).not_to_have_text(chat_id)
        paths = {urlsplit(request.url).path for request in requests}
        assert {path for path in paths if not path.startswith("/prod/")} == set()
        assert any(path.startswith("/prod/static/vendor/") for path in paths)
        assert {response.status for response in responses} <= {200, 304}


def test_everything_is_done_by_keyboard(screen: Screen) -> None:
    page, keys = screen.page, screen.page.keyboard
    focused = page.locator(":focus")
    screen.open(chat_id := new_chat())
    expect(screen.box).to_be_focused()
    keys.type("two lines")
    keys.press("Shift+Enter")
    keys.type(script(text="word ", repeat=5000))
    keys.press("Enter")
    expect(page.get_by_role("article", name="You")).to_contain_text("two lines\n/script")
    expect(screen.answer).to_contain_text("word")
    keys.press("Escape")
    expect(screen.answer).to_contain_text(STOPPED_AFTER)
    expect(screen.box).to_be_focused()

    keys.press("Tab")
    expect(focused).to_have_attribute("id", "send")
    keys.press("Tab")
    expect(focused).to_have_attribute("id", "stop")
    ring = "getComputedStyle(document.activeElement).outlineStyle"
    assert page.evaluate(ring) == "solid"
    keys.press("Shift+Tab")
    keys.press("Shift+Tab")
    keys.type(script(text="word ", repeat=5000))
    keys.press("Tab")
    keys.press("Enter")  # Send
    expect(page.get_by_role("article", name="Answer")).to_have_count(2)
    expect(screen.answer).to_contain_text("word")
    keys.press("Tab")
    keys.press("Space")  # Stop
    expect(screen.status).to_have_text(STOPPED_AFTER)
    expect(focused).to_have_attribute("id", "stop")

    reached = []
    page.evaluate("document.activeElement.blur()")
    for _ in range(40):
        keys.press("Tab")
        reached.append(page.evaluate("document.activeElement.id || document.activeElement.hash || ''"))
        if reached[-1] == "stop":
            break
    wanted = ["new-chat", "open-id", f"#{chat_id}", "delete", "transcript", "message", "send", "stop"]
    assert [place for place in reached if place in wanted] == wanted

    page.locator("#delete").focus()
    keys.press("Enter")
    expect(page.get_by_role("button", name="Keep it")).to_be_focused()
    keys.press("Escape")
    expect(page.get_by_role("dialog")).to_have_count(0)
    assert screen.has_chat() == chat_id
    keys.press("Enter")
    keys.press("Tab")
    keys.press("Enter")
    expect(page.locator("#title")).not_to_have_text(chat_id)


def test_every_control_has_a_name(screen: Screen) -> None:
    screen.open()
    screen.page.route(CHAT_CALL, fulfilling(503))
    screen.send("refused, so that the notice and its buttons are there")
    expect(screen.notice).to_be_visible()
    nameless = """() => [...document.querySelectorAll('button, input, textarea, a')].filter(
        (e) => e.checkVisibility() && !(e.ariaLabel || e.labels?.length || e.textContent.trim())
      ).map((e) => e.outerHTML)"""
    assert screen.page.evaluate(nameless) == []
    assert screen.page.locator("#status").get_attribute("role") == "status"


def test_a_screen_reader_hears_sentences_not_tokens(screen: Screen) -> None:
    screen.open()
    screen.page.evaluate(
        """() => { window.said = []; new MutationObserver((all) => all.forEach((m) => m.addedNodes.forEach(
        (n) => window.said.push(n.textContent)))).observe(document.getElementById('spoken'), {childList: true}) }"""
    )
    text = "A sentence of seven words is here. " * 20
    screen.send(script(text=text, pace_ms=2))
    expect(screen.status).to_have_text("Finished")
    screen.page.wait_for_function("() => window.said.length > 0")
    said = screen.page.evaluate("window.said")
    assert len(said) <= 3
    assert " ".join(said).split() == text.split()
    assert screen.page.locator("#transcript").get_attribute("aria-live") is None


def test_the_view_follows_the_answer_only_for_a_reader_at_its_end(screen: Screen) -> None:
    screen.open()
    gap = """() => { const t = document.getElementById('transcript');
        return t.scrollHeight - t.scrollTop - t.clientHeight }"""
    screen.send(script(chunks=["A line.\n\n"], repeat=5000, pace_ms=5))
    screen.page.wait_for_function("() => document.getElementById('transcript').scrollHeight > 3000")
    assert screen.page.evaluate(gap) < 200
    screen.page.locator("#transcript").hover()
    screen.page.mouse.wheel(0, -1500)
    latest = screen.page.get_by_role("button", name="Latest")
    expect(latest).to_be_visible()
    before = screen.page.evaluate("document.getElementById('transcript').scrollTop")
    height = screen.page.evaluate("document.getElementById('transcript').scrollHeight")
    screen.page.wait_for_function("(h) => document.getElementById('transcript').scrollHeight > h + 500", arg=height)
    assert screen.page.evaluate("document.getElementById('transcript').scrollTop") == pytest.approx(before, abs=2)
    latest.click()
    expect(latest).to_be_hidden()
    screen.stop.click()
    expect(screen.answer).to_contain_text(STOPPED_AFTER)
    screen.page.wait_for_function(f"() => ({gap})() < 2")


WIDE = f"{'unbroken' * 40}\n\n```\n{'wide code ' * 30}\n```\n\n|{'column|' * 14}\n|{'---|' * 14}\n|{'cell|' * 14}\n"


@pytest.mark.parametrize("width", [360, 768, 1440])
def test_nothing_is_wider_than_the_screen(screens: Callable[..., Screen], width: int) -> None:
    phone = width < 500
    screen = screens(viewport={"width": width, "height": 740}, has_touch=phone, is_mobile=phone)
    page = screen.page

    def widest() -> int:
        return page.evaluate("Math.max(document.documentElement.scrollWidth, window.innerWidth)")

    screen.open()
    assert widest() == width
    screen.send("a-long-word-" * 30 + "\n" + script(chunks=[WIDE, "end"], pace_ms=FOREVER_MS))
    expect(screen.answer.locator("table")).to_be_visible()
    assert widest() == width
    assert page.evaluate("(t => t.scrollWidth - t.clientWidth)(document.getElementById('transcript'))") == 0
    armed = screen.stop.bounding_box()
    assert armed is not None
    assert armed["height"] >= 48
    assert armed["width"] >= 150
    assert armed["x"] >= 0
    assert armed["x"] + armed["width"] <= width
    assert armed["y"] + armed["height"] <= 740
    screen.stop.click()
    expect(screen.answer).to_contain_text(STOPPED_AFTER)
    assert widest() == width
    toggle = page.get_by_role("button", name="Chats", exact=True)
    if width < 800:
        new = page.get_by_role("button", name="New chat")
        expect(new).to_be_hidden()
        toggle.click()
        expect(new).to_be_focused()
        expect(toggle).to_have_attribute("aria-expanded", "true")
        assert widest() == width
        page.keyboard.press("Escape")
        expect(new).to_be_hidden()
        expect(toggle).to_be_focused()
    else:
        expect(toggle).to_be_hidden()


CONTRASTS = """(places) => {
  const rgb = (color) => color.match(/[\\d.]+/g).map(Number);
  const light = (c) => c.slice(0, 3).map((v) => v / 255)
    .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const contrast = (node) => {
    let behind = node;
    while ((rgb(getComputedStyle(behind).backgroundColor)[3] ?? 1) === 0) behind = behind.parentElement;
    const pair = [getComputedStyle(node).color, getComputedStyle(behind).backgroundColor].map((c) => light(rgb(c)));
    return (Math.max(...pair) + 0.05) / (Math.min(...pair) + 0.05);
  };
  return Object.fromEntries(places.map((place) => [place, contrast(document.querySelector(place))]));
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_light_and_dark_are_easy_to_read(screens: Callable[..., Screen], scheme: str) -> None:
    screen = screens(color_scheme=scheme, reduced_motion="reduce")
    page = screen.page
    screen.open()
    paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
    brightness = sum(map(int, re.findall(r"\d+", paper))) / 3
    assert brightness < 60 if scheme == "dark" else brightness > 200
    screen.send(script(chunks=["`code` and [a link](https://example.org)\n\n> said\n\n", "x"], pace_ms=FOREVER_MS))
    expect(screen.answer.locator("a")).to_be_visible()
    places = [".body code", ".body a", ".body blockquote p", ".user p", "#status", "#stop", "#send", "#badge", "#title"]
    places += ["#connection-words", "#delete", ".facts dt", ".facts dd", "#chat-list a", "#chat-list .running"]
    expect(page.locator("#chat-list .running")).to_be_visible()
    contrasts = page.evaluate(CONTRASTS, places)
    page.route(STOP_CALL, fulfilling(503))
    screen.stop.click()
    expect(screen.notice).to_be_visible()
    contrasts |= page.evaluate(CONTRASTS, ["#notice-words"])
    page.unroute(STOP_CALL)
    screen.stop.click()
    expect(screen.answer.locator(".halt")).to_be_visible()
    contrasts |= page.evaluate(CONTRASTS, [".halt-words", "#stop", "#send"])
    assert {place: ratio for place, ratio in contrasts.items() if ratio < 4.5} == {}


# ---------------------------------------------------------------- the event stream, cut anywhere

FRAMES = (
    "\ufeff: a comment\r\n\r\n"
    "data: plain\n\n"
    "data:  two spaces, one kept\r\rdata:no space\r\n\r\n"
    "data: first\r\ndata: second\rdata\ndata:\n\n"
    "data: naïve 雪 🛑\n\n"
    "data: [DONE]\n\n"
    "event: future\ndata: unknown\n\n"
    "event: lonely\n\n"
    "id: 1\nretry: 5\ndata: with: colon\n\n"
    ": ping\n\n"
    "event: stopped\ndata: [STOPPED]\n\n"
    "data: cut off"
)
MEANT = [
    ["message", "plain"],
    ["message", " two spaces, one kept"],
    ["message", "no space"],
    ["message", "first\nsecond\n\n"],
    ["message", "naïve 雪 🛑"],
    ["message", "[DONE]"],
    ["future", "unknown"],
    ["message", "with: colon"],
    ["stopped", "[STOPPED]"],
]
EVERY_CUT = """async (bytes) => {
  const { FrameParser } = await import(new URL("static/sse.js", document.baseURI));
  const all = Uint8Array.from(bytes);
  const read = (...cuts) => {
    const parser = new FrameParser();
    const ends = [...cuts, all.length];
    return JSON.stringify(ends.flatMap((end, i) => parser.push(all.subarray(i ? ends[i - 1] : 0, end)))
      .map(({ event, data }) => [event, data]));
  };
  const seen = new Set([read(), read(...all.keys())]);
  for (let i = 0; i <= all.length; i += 1) for (let j = i; j <= all.length; j += 1) seen.add(read(i, j));
  return [...seen].map((text) => JSON.parse(text));
}"""


def test_the_stream_reads_the_same_however_it_is_cut(screen: Screen) -> None:
    screen.open()
    assert screen.page.evaluate(EVERY_CUT, list(FRAMES.encode())) == [MEANT]


def test_run_ids_sort_by_time_and_never_meet(screen: Screen) -> None:
    screen.open()
    ids = screen.page.evaluate(
        """async () => {
          const { ulid } = await import(new URL("static/ids.js", document.baseURI));
          return [ulid(0), ulid(1469918176385), ulid(2 ** 48 - 1), ...Array.from({ length: 1000 }, () => ulid())];
        }"""
    )
    assert ids[0].startswith("0000000000")
    assert ids[1].startswith("01ARYZ6S41")  # the example of the ULID specification
    assert ids[2].startswith("7ZZZZZZZZZ")
    assert len(set(ids)) == 1003
    assert all(ULID.fullmatch(id_) for id_ in ids)
