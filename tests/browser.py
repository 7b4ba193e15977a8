"""A real browser without a window, and pages of it that keep to themselves."""

from __future__ import annotations

import os
import shutil
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from playwright.async_api import Browser, Page, Request, async_playwright, expect

# Milliseconds for what is expected to come about: other work may run on the machine.
PATIENCE = 20_000

# Where the pictures of the docs are, and what asks for new ones.
PICTURES = Path(__file__).parents[1] / "docs" / "pictures"
WANTED = "OFFICE_PICTURES"

MISSING = "no browser to look at pages with: make browser"


def program() -> str | None:
    """Return where a browser is."""
    names = ("chromium", "chromium-browser", "google-chrome")
    return next(filter(None, map(shutil.which, names)), None)


def need() -> None:
    """Leave a module of tests out where there is no browser; in CI they fail."""
    if program() is None and not os.environ.get("CI"):
        pytest.skip(MISSING, allow_module_level=True)


@asynccontextmanager
async def browsing() -> AsyncGenerator[Browser]:
    """Run a browser."""
    expect.set_options(timeout=PATIENCE)
    path = program()
    assert path, MISSING
    async with async_playwright() as playwright:
        # Inside a container there is no sandbox to be had, and little shared memory.
        browser = await playwright.chromium.launch(
            executable_path=path, args=["--no-sandbox", "--disable-dev-shm-usage"]
        )
        try:
            yield browser
        finally:
            await browser.close()


@asynccontextmanager
async def opened(browser: Browser, base_url: str, **how: Any) -> AsyncGenerator[Page]:
    """Open a page that loads nothing from elsewhere, and has nothing to complain of."""
    complaints: list[str] = []

    def look(request: Request) -> None:
        if not request.url.startswith((f"{base_url}/", "data:")):
            complaints.append(f"loads {request.url}")

    context = await browser.new_context(base_url=base_url, **how)
    page = await context.new_page()
    page.set_default_timeout(PATIENCE)
    page.on("request", look)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on(
        "console",
        lambda message: (
            complaints.append(message.text)
            # A form that is refused comes with a status that says so.
            if message.type == "error" and "status of 40" not in message.text
            else None
        ),
    )
    try:
        yield page
    finally:
        await context.close()
    assert complaints == []


async def picture(page: Page, name: str) -> None:
    """Take a picture for the docs, where it is wanted."""
    if os.environ.get(WANTED):
        PICTURES.mkdir(exist_ok=True)
        await page.screenshot(path=PICTURES / f"{name}.png")
