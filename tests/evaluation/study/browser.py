"""A real browser for tests: Chromium, driven through the protocol of chromedriver (WebDriver)."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mos_bench.demo import free_ports

KEYS = {
    "Left": "\ue012",
    "Right": "\ue014",
    "Down": "\ue015",
    "Backspace": "\ue003",
    "Enter": "\ue007",
    "Tab": "\ue004",
}
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync", "--disable-quic", "--disable-dev-shm-usage"),
)
WAIT_S = 30.0
LOCAL = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # no proxy for this machine


def driver() -> str | None:
    """The path of chromedriver, if a browser is there too."""
    return shutil.which("chromedriver") if shutil.which("chromium") else None


class Browser:
    """One window."""

    def __init__(self, address: str, session: str) -> None:
        self._session = f"{address}/session/{session}"

    def open(self, file: Path) -> None:
        """Open a file, or open it again."""
        self.visit(file.resolve().as_uri())

    def visit(self, address: str) -> None:
        """Open an address."""
        _call(f"{self._session}/url", {"url": address})

    def press(self, *keys: str) -> None:
        """Press keys one after the other, on whatever has the focus."""
        strokes = [{"type": kind, "value": KEYS.get(key, key)} for key in keys for kind in ("keyDown", "keyUp")]
        _call(f"{self._session}/actions", {"actions": [{"type": "key", "id": "keyboard", "actions": strokes}]})

    def run(self, script: str) -> Any:
        """Return what a script returns."""
        return _call(f"{self._session}/execute/sync", {"script": script, "args": []})

    def command(self, name: str, parameters: dict[str, Any]) -> Any:
        """Send a command of Chromium's own protocol."""
        return _call(f"{self._session}/goog/cdp/execute", {"cmd": name, "params": parameters})


@contextmanager
def browser(folder: Path) -> Iterator[Browser]:
    """Start a browser whose profile and downloads are in `folder`."""
    (port,) = free_ports(1)
    address = f"http://127.0.0.1:{port}"
    process = subprocess.Popen([str(driver()), f"--port={port}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        options = {
            "args": [*FLAGS, f"--user-data-dir={folder / 'profile'}"],
            "prefs": {"download.default_directory": str(folder / "downloads"), "download.prompt_for_download": False},
        }
        asked = {"capabilities": {"alwaysMatch": {"goog:chromeOptions": options}}}
        session = _call(f"{address}/session", asked, until=time.monotonic() + WAIT_S)["sessionId"]
        try:
            yield Browser(address, session)
        finally:
            _call(f"{address}/session/{session}", None, method="DELETE")
    finally:
        process.terminate()
        process.wait()


def _call(url: str, body: Any, *, method: str = "POST", until: float = 0.0) -> Any:
    """Ask chromedriver; try again until a time while it starts."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"}, method=method)
    try:
        with LOCAL.open(request, timeout=60) as answer:
            return json.load(answer)["value"]
    except urllib.error.HTTPError as error:
        raise RuntimeError(error.read().decode()) from error
    except urllib.error.URLError:
        if time.monotonic() > until:
            raise
        time.sleep(0.1)
        return _call(url, body, method=method, until=until)
