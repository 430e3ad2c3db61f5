"""A real browser for tests: Debian's Chromium. Where CI is set, its absence fails."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

FLAGS = [
    *("--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-quic"),
    *("--disable-component-update", "--disable-sync", "--disable-dev-shm-usage"),
]
CHROMIUM = shutil.which("chromium")
needs_chromium = pytest.mark.skipif(
    CHROMIUM is None and not os.environ.get("CI"), reason="needs chromium (apt-get install chromium)"
)


@contextmanager
def chromium() -> Iterator[Any]:
    """Yield a browser, as playwright drives it."""
    from playwright.sync_api import sync_playwright

    assert CHROMIUM is not None, "chromium is not installed: apt-get install chromium"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def window(**options: Any) -> Iterator[Any]:
    """Yield a page of a browser of its own."""
    with chromium() as browser:
        yield browser.new_page(**options)


def serious(page: Any) -> list[str]:
    """Return what axe-core finds serious or critical on a page, in words."""
    from axe_playwright_python.sync_playwright import Axe

    page.wait_for_load_state("load")  # before its stylesheet a page has the browser's own colours
    found = Axe().run(page).response["violations"]
    return [
        f"{each['id']}: {each['help']} ({each['nodes'][0]['html']})"
        for each in found
        if each["impact"] in ("serious", "critical")
    ]
