"""Drives pages in headless Chromium, the one that is installed on this machine."""

import os
import shutil
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Final

import pytest
from playwright.async_api import Browser, BrowserContext, Page, async_playwright

NAMES: Final = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
"""What Chromium and its like are called by distributions."""

ARGUMENTS: Final = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)

PATIENCE: Final = 30.0
"""Seconds that a page gets to show what is expected."""


def find_browser() -> str:
    """Return the path of a Chromium: `CHROMIUM` from the environment, or the first of `NAMES`.

    Without one the calling test is skipped, except where the environment says `CI`: there it fails.
    """
    names = [os.environ["CHROMIUM"]] if "CHROMIUM" in os.environ else NAMES
    for name in names:
        path = shutil.which(name)
        if path is not None:
            return path
    missing = f"no Chromium ({', '.join(names)}): install one, or name it in the environment as CHROMIUM"
    if os.environ.get("CI"):
        pytest.fail(missing)
    pytest.skip(missing)


@asynccontextmanager
async def open_browser() -> AsyncGenerator[Browser, None]:
    """Run Chromium with a new, empty profile."""
    path = find_browser()
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(
            executable_path=path, args=ARGUMENTS, timeout=PATIENCE * 1000, env={**os.environ, "LC_ALL": "C.UTF-8"}
        )
        try:
            yield browser
        finally:
            await browser.close()


async def open_tab(context: BrowserContext, url: str) -> tuple[Page, list[str]]:
    """Open `url` in a new tab; return its page, and the list that its uncaught exceptions will be added to."""
    page = await context.new_page()
    page.set_default_timeout(PATIENCE * 1000)
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    await page.goto(url)
    return page, errors
