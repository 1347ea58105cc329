"""The web page through Nginx, in a real browser."""

from __future__ import annotations

import re
from collections.abc import Iterator

import httpx2 as httpx
import pytest
from playwright.sync_api import expect

from tests.contract.client import script
from tests.e2e.live import LONG
from tests.e2e.stack import Door
from tests.integration import test_page
from tests.integration.test_page import STOPPED_AFTER, Screen, browser, new_chat, screen, screens, shared_context
from tests.stack import ROOT

__all__ = ["browser", "screen", "screens", "shared_context"]
pytestmark = test_page.pytestmark


@pytest.fixture
def chat_id(door: Door) -> Iterator[str]:
    made = f"e2e-{new_chat()}"
    yield made
    httpx.delete(f"{door.url}/api/v1/chat/{made}", timeout=20)


def test_the_page_sends_stops_and_shows_the_chat_again(screen: Screen, chat_id: str) -> None:
    screen.open(chat_id)
    screen.send(script(**LONG))
    expect(screen.answer).to_contain_text("on and on")
    screen.stop.click()
    expect(screen.answer).to_contain_text(STOPPED_AFTER)
    expect(screen.answer).to_contain_text(re.compile(r"Ran on backend[123]"))
    expect(screen.answer).to_contain_text(re.compile(r"Stop taken by backend[123]"))
    screen.send(script(text="and so it goes on", pace_ms=1))
    expect(screen.answer).to_contain_text("and so it goes on")
    pictures = ROOT / "tests" / "output"
    pictures.mkdir(exist_ok=True)
    screen.page.screenshot(path=pictures / "page-through-nginx.png")
    screen.page.reload()
    expect(screen.page.get_by_role("article", name="Answer")).to_have_count(2)
    expect(screen.answer).to_contain_text("and so it goes on")
