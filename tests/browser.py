"""A page in Chromium: what it says and what it asks for."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field
from pathlib import Path

from playwright.sync_api import BrowserContext, Page, expect

from tests.waiting import PATIENCE

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@dataclass
class Opened:
    """A page, and what it said and asked for."""

    page: Page
    said: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def draw_all(self) -> int:
        """Wait until every figure is drawn; how many there are."""
        expect(self.page.locator(".plot:not([data-drawn])")).to_have_count(0, timeout=1000 * PATIENCE)
        return self.page.locator(".plot").count()


def opened(context: BrowserContext, place: Path | str) -> Opened:
    """The file, or the address, in a new page, watched from its first word on."""
    found = Opened(context.new_page())
    found.page.on("console", lambda message: found.said.append(message.text))
    found.page.on("pageerror", lambda error: found.said.append(str(error)))
    found.page.on("dialog", lambda dialog: found.said.append(dialog.message))
    found.page.on("request", lambda request: found.requests.append(request.url))
    found.page.goto(place if isinstance(place, str) else place.as_uri(), timeout=1000 * PATIENCE)
    return found
