"""A real browser without a screen, Debian's chromium, for pages on this disk; offline, and what a page says or asks is noted."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from playwright.sync_api import Page, sync_playwright

_SWITCHES = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update", "--disable-sync"]


def chromium() -> str:
    """Its path: `CHROMIUM`, or what is on the path; `make test` installs it where it may."""
    found = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    assert found, "no chromium here: install Debian's package, or set CHROMIUM to the path of one"
    return found


@dataclass
class Opened:
    """A page, and what it did."""

    page: Page
    said: list[str] = field(default_factory=list)  # in the console, and errors
    asked: list[str] = field(default_factory=list)  # URLs


@contextmanager
def browser() -> Iterator[Any]:
    """A chromium; `with browser() as b, opened(b, path) as o`."""
    with sync_playwright() as play:
        started = play.chromium.launch(executable_path=chromium(), args=_SWITCHES)
        try:
            yield started
        finally:
            started.close()


@contextmanager
def opened(started: Any, path: Path, *, width: int = 1280, height: int = 900, dark: bool = False) -> Iterator[Opened]:
    """The report at the path, when it is drawn."""
    context = started.new_context(
        viewport={"width": width, "height": height}, color_scheme="dark" if dark else "light", offline=True, reduced_motion="reduce"
    )
    context.set_default_timeout(300_000)  # for what hangs, not for what is slow
    try:
        found = Opened(context.new_page())
        found.page.on("console", lambda message: found.said.append(f"{message.type}: {message.text}"))
        found.page.on("pageerror", lambda error: found.said.append(f"error: {error}"))
        found.page.on("request", lambda request: found.asked.append(request.url))
        found.page.goto(path.as_uri())
        found.page.wait_for_selector("html[data-ready=true]")
        yield found
    finally:
        context.close()
