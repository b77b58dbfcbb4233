"""The console in a real browser, and what the browser saw."""

from __future__ import annotations

import base64
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import BrowserContext, Page, Playwright

CHROMIUM = shutil.which("chromium")
SCREENSHOTS = Path(__file__).parent.parent.parent / "build" / "console"
"""Git ignores it; every run of the tests leaves its pictures there."""
_FLAGS = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)
_DROP = """
async ([data, name, type]) => {
  const bytes = Uint8Array.from(atob(data), (c) => c.charCodeAt(0));
  const dataTransfer = new DataTransfer();
  dataTransfer.items.add(new File([bytes], name, { type }));
  const place = document.getElementById("drop");
  for (const kind of ["dragenter", "dragover", "drop"])
    place.dispatchEvent(new DragEvent(kind, { dataTransfer, bubbles: true, cancelable: true }));
}
"""


@contextmanager
def browser(playwright: Playwright) -> Iterator[BrowserContext]:
    """Debian's Chromium with an empty profile. Skips where there is none."""
    if CHROMIUM is None:
        pytest.skip("the console is not tested: Chromium is not installed (Debian: chromium)")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        context = playwright.chromium.launch_persistent_context(
            profile, executable_path=CHROMIUM, headless=True, args=list(_FLAGS)
        )
        context.set_default_timeout(30_000)
        yield context
        context.close()


class Console:
    """One opened page."""

    def __init__(self, context: BrowserContext, url: str) -> None:
        self.page: Page = context.new_page()
        self.url = url
        self.problems: list[str] = []
        self.hosts: set[str] = set()
        self.page.on("pageerror", lambda error: self.problems.append(str(error)))
        self.page.on("console", lambda said: self._note(said.type, said.text))
        self.page.on("request", lambda asked: self.hosts.add(urlsplit(asked.url).netloc))
        self.page.set_viewport_size({"width": 1280, "height": 900})
        self.page.goto(f"{url}/console")

    def _note(self, kind: str, text: str) -> None:
        if kind in ("error", "warning"):
            self.problems.append(text)

    def drop(self, data: bytes, name: str, media_type: str) -> None:
        """Lets a file fall onto the page."""
        self.page.evaluate(_DROP, [base64.b64encode(data).decode(), name, media_type])

    def ask(self, question: str, policy: str = "") -> None:
        """Asks, and waits until the answer is complete."""
        self.page.get_by_label("Question").fill(question)
        if not self.page.get_by_label("Policy").is_visible():
            self.page.get_by_text("Options").click()
        self.page.get_by_label("Policy").fill(policy)
        self.page.get_by_role("button", name="Ask", exact=True).click()
        self.wait_for_answer()

    def wait_for_answer(self) -> None:
        self.page.get_by_text("Answer complete:").wait_for(state="attached")

    def answer(self) -> str:
        return self.page.locator("#answer").text_content() or ""

    def count(self, selector: str) -> int:
        return self.page.locator(selector).count()

    def figure(self, term: str) -> str:
        """What stands beside `term` among the figures of the answer."""
        row = self.page.locator("#figures div", has=self.page.get_by_text(term, exact=True))
        return row.locator("dd").text_content() or ""
