"""The operator's page of a federation that has published one model and holds another back."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import requests

from mos_common.pages.access import Access, Role
from mos_common.pages.serving import hosts_of, listen, server_of
from mos_server.monitoring.health import Health
from mos_server.page.application import operators_page
from mos_server.page.children import Children
from mos_server.page.federation import Federation as Paged
from mos_server.page.opening import HEADER
from mos_server.state.folder import State
from mos_server.state.journal import Journal
from server.round.conftest import Federation, federation, network

__all__ = ["federation", "network"]
ACT, LOOK = "a-token-with-which-one-may-act", "a-token-with-which-one-may-look"


@dataclass
class Page:
    """A served page, and how a browser asks it."""

    state: State
    journal: Journal
    port: int
    access: Access

    @property
    def origin(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def get(self, path: str, token: str = ACT, **headers: str) -> requests.Response:
        cookies = {self.access.cookie: token} if token else {}
        return requests.get(self.origin + path, cookies=cookies, headers=headers, timeout=60, allow_redirects=False)

    def post(self, path: str, token: str = ACT, **more: Any) -> requests.Response:
        """Send a form as this page's own; `headers` and `form_token` may say otherwise."""
        headers = {"origin": self.origin, "sec-fetch-site": "same-origin"} | more.pop("headers", {})
        visitor = self.access.visitor(token)
        form = {"form_token": visitor.form_token if visitor else "", **more}
        return requests.post(
            self.origin + path,
            data={name.replace("__", "-"): value for name, value in form.items()},
            cookies={self.access.cookie: token} if token else {},
            headers={name: value for name, value in headers.items() if value},
            timeout=180,
            allow_redirects=False,
        )

    def acts(self) -> list[dict[str, Any]]:
        """What the audit says was asked for on the page, earliest first."""
        return [entry for entry in self.journal.audit.entries() if entry["what"] == "asked on the page"]


def shown(answer: requests.Response) -> str:
    """The text of a page, without its tags."""
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", answer.text))


def page_of(state: State, journal: Journal) -> Iterator[Page]:
    """Serve the page of a state folder, until it is asked for nothing more."""
    listener = listen()
    access = Access(hosts_of(listener), {ACT: Role.ACT, LOOK: Role.LOOK}, HEADER)
    health = Health(state, journal)
    health.listening()
    children = Children(state)
    server = server_of(operators_page(Paged(state, journal, health, children), access))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    yield Page(state, journal, listener.getsockname()[1], access)
    server.should_exit = True
    thread.join(10)
    children.close()
    listener.close()


@pytest.fixture
def page(federation: Federation) -> Iterator[Page]:
    """The page of a federation in which nothing has happened yet."""
    yield from page_of(federation.state, federation.journal)
