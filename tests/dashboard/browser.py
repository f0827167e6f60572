"""A real Chromium: Debian's, or the one that Playwright installs."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Playwright, sync_playwright

_NAMES = ("chromium", "chromium-browser", "google-chrome")
_ARGS = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update"),
    "--host-resolver-rules=MAP elsewhere.test 127.0.0.1",
)
_MISSING = "no Chromium here: `make tools` installs it"


def find_chromium(playwright: Playwright) -> str | None:
    """Its path."""
    own = Path(playwright.chromium.executable_path)
    return next(filter(None, map(shutil.which, _NAMES)), str(own) if own.exists() else None)


@contextmanager
def chromium() -> Iterator[Browser]:
    """Skips the test where there is none, but fails it in CI."""
    with sync_playwright() as playwright:
        path = find_chromium(playwright)
        if path is None and os.environ.get("CI"):
            pytest.fail(_MISSING)
        if path is None:
            pytest.skip(_MISSING)
        browser = playwright.chromium.launch(executable_path=path, args=list(_ARGS))
        try:
            yield browser
        finally:
            browser.close()
