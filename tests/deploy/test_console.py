"""The console in Chromium: a dropped picture, a streamed answer, its trees, the cluster; by mouse,
and by keyboard alone. Screenshots are left in `build/console`."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterator

import httpx
import pytest
from console_page import SCREENSHOTS, Console, browser
from local_app import LocalSource, local_app, served
from playwright.sync_api import BrowserContext, sync_playwright

from deploy.keys import ApiKey, KeyRing
from smart_serve.bundled import EXAMPLE_PICTURE

PICTURE = EXAMPLE_PICTURE.read_bytes()
QUESTION = "Describe the picture."
MODEL = "smart-serve-bundled"


@pytest.fixture(scope="module")
def url(source: LocalSource) -> Iterator[str]:
    with served(local_app(source)) as one:
        yield one


@pytest.fixture(scope="module")
def context() -> Iterator[BrowserContext]:
    # Ends with this module: while it lives, no other event loop can run in this thread.
    with sync_playwright() as playwright, browser(playwright) as one:
        yield one


@pytest.fixture
def console(context: BrowserContext, url: str) -> Iterator[Console]:
    one = Console(context, url)
    yield one
    one.page.close()


def whole_answer(url: str) -> tuple[str, int]:
    """What the API says to the same request, and how many tokens."""
    image = "data:image/png;base64," + base64.b64encode(PICTURE).decode()
    parts = [{"type": "image_url", "image_url": {"url": image}}, {"type": "text", "text": QUESTION}]
    messages = [{"role": "user", "content": parts}]
    body = {"model": MODEL, "messages": messages, "temperature": 0, "max_tokens": 256}
    told = httpx.post(f"{url}/v1/chat/completions", json=body, timeout=60).json()
    return told["choices"][0]["message"]["content"], told["usage"]["completion_tokens"]


def test_a_dropped_picture_is_answered_and_its_trees_are_drawn(console: Console, url: str) -> None:
    page = console.page
    console.drop(PICTURE, "shapes.png", "image/png")
    page.get_by_alt_text("shapes.png").wait_for()
    console.ask(QUESTION, policy="eagle2:8x4")
    text, num_tokens = whole_answer(url)
    assert console.answer().strip() == text.strip()
    assert console.figure("Tokens").startswith(f"{num_tokens} ")
    accepted, drafted = re.findall(r"\d+", console.figure("Accepted"))
    # The end of the answer may have been foreseen too, and has no text.
    assert int(accepted) - console.count("#answer .accepted") in (0, 1)
    assert console.count("#answer .token") > int(accepted) > 0
    assert int(drafted) > int(accepted)
    for fate in ("root", "accepted", "rejected", "pruned"):
        assert console.count(f"#tree g.{fate}") > 0, fate
    rows = page.locator("#tree-table tbody tr")
    assert rows.count() >= console.count("#tree g") - 1
    # What is heard is what is seen.
    heard = " ".join(page.locator("#live p").all_text_contents()[:-1])
    assert heard.split() == text.split()
    before = page.locator("#step-text").text_content()
    step = page.get_by_label("Decode step")
    step.fill("2" if step.input_value() == "1" else "1")
    assert page.locator("#step-text").text_content() != before
    check_pool(console)
    take_screenshots(console)
    assert console.problems == []
    assert console.hosts == {url.removeprefix("http://")}


def check_pool(console: Console) -> None:
    pool = console.page.get_by_label("Pool default")
    pool.wait_for()
    assert "cpu" in (pool.text_content() or "")
    # Nothing runs any more, so the figures stay as the engine tells them.
    report = httpx.get(f"{console.url}/status").json()["replicas"][0]["report"]
    measured, predicted = report["decode_step_ms"], report["predicted_step_ms"]
    assert measured > 0 < predicted
    step = pool.locator(".stack > div", has_text="A step (dashed: predicted)")
    step.get_by_text(f"{measured:.1f} ms, {predicted:.1f} ms", exact=True).wait_for()
    for kind in ("measured", "predicted"):
        assert step.locator(f"path.{kind}").get_attribute("d")


def take_screenshots(console: Console) -> None:
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    page = console.page
    grounds = set()
    page.get_by_text("Options").click()
    for width in (1280, 390):
        page.set_viewport_size({"width": width, "height": 900})
        for theme in ("light", "dark"):
            page.get_by_label("Theme").select_option(theme)
            page.screenshot(path=SCREENSHOTS / f"{width}-{theme}.png", full_page=True)
            grounds.add(page.evaluate("getComputedStyle(document.body).backgroundColor"))
            # Nothing is cut off, and nobody has to scroll sideways.
            assert page.evaluate("document.documentElement.scrollWidth") == width
    assert len(grounds) == 2
    page.get_by_label("Theme").select_option("")


def test_the_system_s_colours_are_followed(console: Console) -> None:
    grounds = set()
    for scheme in ("light", "dark"):
        console.page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
        grounds.add(console.page.evaluate("getComputedStyle(document.body).backgroundColor"))
    assert len(grounds) == 2


def test_everything_can_be_done_by_keyboard(console: Console) -> None:
    page = console.page
    # The browser hands choosers over only once it was told to, and a key may overtake that word.
    page.on("filechooser", lambda _: None)

    def focused() -> str:
        return str(page.evaluate("document.activeElement.id || document.activeElement.textContent"))

    order = []
    for _ in range(9):
        page.keyboard.press("Tab")
        order.append(focused())
    assert [one.strip() for one in order] == [
        *("Skip to the question", "key-open", "theme", "file", "example", "question"),
        *("Options", "send", "tree"),
    ]
    while focused() != "file":
        page.keyboard.press("Shift+Tab")
    with page.expect_file_chooser() as chooser:
        page.keyboard.press("Enter")
    chooser.value.set_files(EXAMPLE_PICTURE)
    page.get_by_alt_text(EXAMPLE_PICTURE.name).wait_for()
    while focused() != "question":
        page.keyboard.press("Tab")
    page.keyboard.press("Control+A")
    page.keyboard.type("How many shapes are there?")
    page.keyboard.press("Control+Enter")
    console.wait_for_answer()
    assert "five" in console.answer().lower()
    while focused() != "step":
        page.keyboard.press("Tab")
    page.keyboard.press("Home")
    assert "Step 1 of" in (page.locator("#step-text").text_content() or "")
    while focused() != "key-open":
        page.keyboard.press("Shift+Tab")
    page.keyboard.press("Enter")
    assert page.get_by_role("dialog").is_visible()
    page.keyboard.press("Escape")
    assert focused() == "key-open"
    unnamed = """
      [...document.querySelectorAll("input, select, textarea, button, summary, a")]
        .filter((one) => !one.labels?.length && !one.textContent.trim()).map((one) => one.id)
    """
    assert page.evaluate(unnamed) == []


def test_what_is_wrong_is_said(console: Console) -> None:
    console.drop(b"hello", "notes.txt", "text/plain")
    console.page.get_by_text("notes.txt is not a PNG").wait_for()
    console.page.get_by_text("Options").click()
    console.page.get_by_label("Policy").fill("magic")
    console.page.get_by_role("button", name="Ask", exact=True).click()
    console.page.get_by_role("alert").get_by_text("policy must be one of").wait_for()


def test_a_key_is_asked_for_and_kept_for_this_tab_alone(
    context: BrowserContext, source: LocalSource
) -> None:
    guest, operator = "guest-0123456789abcdef", "operator-0123456789abcdef"
    keys = [
        ApiKey(name=secret[:5], sha256=hashlib.sha256(secret.encode()).hexdigest(), operator=may)
        for secret, may in ((guest, False), (operator, True))
    ]
    with served(local_app(source, KeyRing(keys))) as url:
        console = Console(context, url)
        page = console.page

        def use(secret: str) -> None:
            page.get_by_label("Key", exact=True).fill(secret)
            page.get_by_role("button", name="Use it").click()

        page.get_by_role("button", name="Enter an API key").wait_for()
        page.get_by_role("button", name="Ask", exact=True).click()
        use(guest)
        page.get_by_text("Only an operator’s key").wait_for()
        console.ask("How many shapes are there?")
        assert console.answer()
        page.get_by_role("button", name="API key", exact=True).click()
        use(operator)
        page.get_by_label("Pool default").wait_for()
        assert operator not in page.evaluate("JSON.stringify(localStorage) + document.cookie")
        page.close()


def test_no_other_host_can_be_asked(console: Console) -> None:
    script = "() => fetch('http://127.0.0.1:9/').then(() => 'asked', () => 'not asked')"
    assert console.page.evaluate(script) == "not asked"
    with console.page.expect_console_message(lambda said: "Content Security Policy" in said.text):
        console.page.evaluate("() => { new Image().src = 'http://127.0.0.1:9/' }")


def test_only_the_console_s_own_files_are_served(url: str) -> None:
    page = httpx.get(f"{url}/console")
    assert page.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in page.headers["content-security-policy"]
    for name in set(re.findall(r'"console/([^"]+)"', page.text)):
        file = httpx.get(f"{url}/console/{name}")
        assert file.status_code == 200
        assert file.headers["x-content-type-options"] == "nosniff"
        elsewhere = set(re.findall(r"https?://[^\s\"']+", file.text))
        assert elsewhere <= {"http://www.w3.org/2000/svg"}
    for name in ("files.py", "..%2froutes.py", "%2e%2e/keys.py", "none.js", "a/b"):
        assert httpx.get(f"{url}/console/{name}").status_code == 404, name
