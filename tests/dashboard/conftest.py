"""One stage and one Chromium for all tests of the page; a page that says nothing on its console for each."""

from collections.abc import Callable, Iterator

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.dashboard.browser import chromium
from tests.dashboard.stage import Stage, stage

# What Chromium itself says of each answer that is an error, or none: tests bring these about.
_EXPECTED = "Failed to load resource: "
Open = Callable[..., Page]

expect.set_options(timeout=15_000)


@pytest.fixture(scope="module")
def on(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    with stage(tmp_path_factory.mktemp("stage")) as made:
        yield made


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as found:
        yield found


@pytest.fixture
def open_page(browser: Browser) -> Iterator[Open]:
    """Opens pages, each as if in a browser of its own: `open_page(url, token=..., width=...)`."""
    said: list[str] = []
    contexts = []

    def open_(url: str, token: str | None = None, *, width: int = 1280) -> Page:
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme="light")
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: said.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: said.append(str(error)))
        page.goto(url)
        if token is not None:
            page.get_by_label("Token").fill(token)
            page.get_by_role("button", name="Sign in").click()
            expect(page.get_by_text("Live", exact=True)).to_be_visible()
        return page

    yield open_
    for context in contexts:
        context.close()
    assert [words for words in said if not words.startswith(_EXPECTED)] == []
