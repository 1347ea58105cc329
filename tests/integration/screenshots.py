"""Pictures of the page, taken against real replicas: `python -m tests.integration.screenshots [DIRECTORY]`.

Without a directory it remakes the README's picture only, docs/page.png. With one it also puts the page there as it is
in mid-stream, in the dark, on a phone and with nothing in it, for a look after each change of the design.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

from playwright.sync_api import Browser, Page, expect

from tests.integration.test_page import STOPPED_AFTER, Door, open_browser
from tests.stack import ROOT, running_stack

README_PICTURE = ROOT / "docs" / "page.png"

STORY = (
    "The keeper of **Harrow Light** had collected fog for forty years, and kept it the way others keep wine.\n\n"
    "1. *Morning fog*, thin and sweet, in the tall bottles by the stairs\n"
    "2. *Harbour fog*, which tastes of rope\n"
    "3. *November fog*, in the cellar, behind two doors\n\n"
    "> One does not open a November fog, he liked to say, without a good reason and a lit lamp.\n\n"
    "On the night the lamp failed he went down with a candle and counted the bottles twice. There were `41`, as there "
    "should be, and one of them was humming. He carried it up all two hundred and six steps, holding it against his "
    "coat, and set it where the flame had been.\n\n"
)
CODE = """Certainly. The run races the model against the stop token, so that a silent model loses at once:

```python
async with contextlib.aclosing(turn.events(message)) as events:
    async for text in events:
        await stream.put(text)
```

| what is waiting | what the stop does |
|---|---|
| the model | shuts its connection |
| a tool | cancels its task |

"""


def say(page: Page, question: str, answer: str, *, repeat: int = 40, pace_ms: int = 8) -> None:
    """Send a question whose scripted answer is `answer`, and show the question without its script."""
    chunks = [f"{word} " for word in answer.split(" ")]
    message = f"{question}\n/script {json.dumps({'chunks': chunks, 'repeat': repeat, 'pace_ms': pace_ms})}"
    page.get_by_role("textbox", name="Message").fill(message)
    page.keyboard.press("Enter")
    hide_scripts(page)


def hide_scripts(page: Page) -> None:
    shown = page.get_by_role("article", name="You")
    expect(shown.last).to_contain_text("/script")
    page.evaluate(
        """() => document.querySelectorAll('.user p').forEach((p) => {
          p.textContent = p.textContent.split('\\n/script')[0] })"""
    )


def stop(page: Page) -> None:
    page.locator("#stop").click()
    answer = page.get_by_role("article", name="Answer").last
    expect(answer).to_contain_text(STOPPED_AFTER)
    expect(answer).to_contain_text("Stop taken by")
    page.mouse.move(0, 0)


def new_page(browser: Browser, url: str, **options: object) -> Page:
    settings = {"viewport": {"width": 1200, "height": 760}, "color_scheme": "light", "reduced_motion": "reduce"}
    page = browser.new_context(**{**settings, **options}).new_page()  # type: ignore[arg-type]
    page.goto(url)
    expect(page.locator("#connection-words")).to_contain_text("Connected")
    return page


def take(browser: Browser, url: str, directory: Path | None) -> None:
    def shot(page: Page, name: str) -> None:
        if directory is not None:
            page.screenshot(path=directory / f"{name}.png")

    for name in ("release-notes", "weekend-plans", "reading-list"):
        earlier = new_page(browser, f"{url}#{name}")
        say(earlier, "Hello", "Good morning. ")
        expect(earlier.get_by_role("article", name="Answer")).to_contain_text("Good morning")
        stop(earlier)

    page = new_page(browser, f"{url}#lighthouse-story")
    shot(page, "empty")
    say(page, "Tell a long story about a lighthouse keeper who collects fog.", STORY, pace_ms=40)
    expect(page.get_by_role("article", name="Answer")).to_contain_text("counted the bottles")
    shot(page, "mid-stream")
    stop(page)
    README_PICTURE.parent.mkdir(exist_ok=True)
    page.screenshot(path=README_PICTURE)

    if directory is None:
        return
    page.screenshot(path=directory / "stopped.png")
    dark = new_page(browser, f"{url}#how-a-stop-works", color_scheme="dark")
    say(dark, "How does a stop reach the model? Show me the code.", CODE)
    expect(dark.get_by_role("article", name="Answer")).to_contain_text("cancels its task")
    shot(dark, "dark-mid-stream")
    stop(dark)
    shot(dark, "dark-stopped")
    phone = {"viewport": {"width": 360, "height": 740}, "device_scale_factor": 2, "is_mobile": True, "has_touch": True}
    small = new_page(browser, f"{url}#on-the-phone", **phone)
    shot(small, "phone-empty")
    say(small, "Tell a long story about a lighthouse keeper.", STORY)
    expect(small.get_by_role("article", name="Answer")).to_contain_text("November fog")
    shot(small, "phone-mid-stream")
    stop(small)
    shot(small, "phone-stopped")
    small.get_by_role("button", name="Chats", exact=True).click()
    shot(small, "phone-chats")


def main() -> None:
    directory = Path(sys.argv[1]) if len(sys.argv) > 1 else None
    if directory is not None:
        directory.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory() as below,
        running_stack(Path(below)) as stack,
        open_browser() as browser,
        Door(stack.replicas[0].url, stack.replicas[1].url).open() as door,
    ):
        take(browser, door.url, directory)
    print(f"{README_PICTURE.relative_to(ROOT)}: {README_PICTURE.stat().st_size // 1024} KiB")


if __name__ == "__main__":
    main()
