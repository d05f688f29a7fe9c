"""The browser in which puzzle_visualizer.html is tested; python -m tests.helpers.browser fetches one where none is."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from playwright.sync_api import Browser, Error, sync_playwright

NAMES = (
    "chromium",
    "chromium-browser",
    "google-chrome",
    "google-chrome-stable",
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
)
FLAGS = ("--no-sandbox", "--disable-gpu", "--disable-background-networking")
MISSING = "no Chromium or Chrome here, and none from Playwright: the tests of puzzle_visualizer.html are left out"


@contextmanager
def open_browser() -> Iterator[Browser | None]:
    """Start the machine's Chromium or Chrome, or else Playwright's own, without a window.

    Yields:
        The browser; None if there is neither.

    Raises:
        Error: if the machine's own doesn't start.
    """
    found = next(filter(None, map(shutil.which, NAMES)), None)
    with sync_playwright() as playwright:
        try:
            browser = playwright.chromium.launch(executable_path=found, args=FLAGS)
        except Error:  # not fetched, or the system lacks a library that it needs
            if found is not None:
                raise
            yield None
            return
        yield browser
        browser.close()


@contextmanager
def browser_or_skip() -> Iterator[Browser]:
    """Start a browser; without one the test that needs it is skipped, or fails where CI asks for it."""
    with open_browser() as browser:
        if browser is None:
            if os.environ.get("CI") or os.environ.get("HRM_REQUIRE_BROWSER"):
                pytest.fail(MISSING)
            pytest.skip(MISSING)
        yield browser


def main() -> None:
    """Fetch Playwright's headless shell where there is no browser; without a network that is one line, and no error."""
    with open_browser() as browser:
        if browser is not None:
            return
    install = [sys.executable, "-m", "playwright", "install", "--only-shell", "chromium"]
    subprocess.run(install, capture_output=True, check=False)
    with open_browser() as browser:
        if browser is None:
            print(MISSING, file=sys.stderr)


if __name__ == "__main__":
    main()
