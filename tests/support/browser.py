"""Headless chromium, offline, for pages on this disk; it records console messages and requests."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from playwright.sync_api import Page, sync_playwright

_SWITCHES = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update", "--disable-sync"]


def find_chromium() -> str:
    """Return the path of chromium: `CHROMIUM`, or the program on PATH; `make test` installs it where permitted."""
    program = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    assert program, "chromium was not found: install the Debian package chromium, or set CHROMIUM to its path"
    return program


@dataclass
class OpenedPage:
    """A page with its console messages and requests."""

    page: Page
    console_messages: list[str] = field(default_factory=list)  # errors included
    requests: list[str] = field(default_factory=list)  # URLs


@contextmanager
def launch_browser() -> Iterator[Any]:
    """Yield a running chromium: `with launch_browser() as browser, open_page(browser, path) as opened`."""
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=find_chromium(), args=_SWITCHES)
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def open_page(browser: Any, path: Path, *, width: int = 1280, height: int = 900, dark: bool = False) -> Iterator[OpenedPage]:
    """Yield the report at the path, after its charts are drawn."""
    context = browser.new_context(
        viewport={"width": width, "height": height}, color_scheme="dark" if dark else "light", offline=True, reduced_motion="reduce"
    )
    context.set_default_timeout(300_000)  # catches a hang, not a slow machine
    try:
        opened = OpenedPage(context.new_page())
        opened.page.on("console", lambda message: opened.console_messages.append(f"{message.type}: {message.text}"))
        opened.page.on("pageerror", lambda error: opened.console_messages.append(f"error: {error}"))
        opened.page.on("request", lambda request: opened.requests.append(request.url))
        opened.page.goto(path.as_uri())
        opened.page.wait_for_selector("html[data-ready=true]")
        yield opened
    finally:
        context.close()
