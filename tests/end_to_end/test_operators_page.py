"""The operator's round in a real browser: invite, ask, look, publish, withdraw, bar.

Server, participants and the round are processes on `tiny`; the browser is Chromium.
"""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from browsing import chromium, needs_chromium, serious
from end_to_end.federation import ENVIRONMENT, Federation, processes, tuned_people
from mos_bench.demo import free_ports
from mos_server.cli.init import init
from mos_server.state.records import HELD_BACK, PUBLISHED

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = needs_chromium
PAGES = ("/", "/people", "/rounds", "/concepts", "/server", "/rounds/round-001")
ROUND_MS = 300_000


@contextmanager
def serving_page(server: Path) -> Iterator[tuple[str, str]]:
    """Run `mos-server serve --page`, and yield the addresses to act and to look."""
    import os

    command = [str(Path(sys.executable).parent / "mos-server"), "serve", str(server), "--page"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, **ENVIRONMENT}) as process:
        try:
            lines = []
            while not (lines and lines[-1].startswith("serving ")):
                lines.append(process.stdout.readline())
                assert lines[-1], lines
            act, look = (line.partition(": ")[2].strip() for line in lines if line.startswith("page"))
            yield act, look
        finally:
            process.terminate()
            process.wait(30)


@pytest.fixture
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


@contextmanager
def page_of_a_stranger(target: str) -> Iterator[str]:
    """Serve a page on another port whose script sends a form to `target`."""
    html = f"""<!doctype html><form method="post" action="{target}/people/invite">
        <input name="name" value="mallory"></form><script>document.forms[0].submit()</script>"""

    class Stranger(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header("content-type", "text/html")
            self.end_headers()
            self.wfile.write(html.encode())

        def log_message(self, *_):
            pass

    with HTTPServer(("127.0.0.1", 0), Stranger) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


def invite(page: Page, name: str, kit: Path) -> None:
    page.get_by_role("link", name="People", exact=True).click()
    page.get_by_label("Name", exact=True).fill(name)
    with page.expect_download() as download:
        page.get_by_role("button", name="Make and download the kit").click()
    assert download.value.suggested_filename == f"{name}.kit"
    kit.parent.mkdir(parents=True, exist_ok=True)
    download.value.save_as(kit)


def test_an_operator_runs_a_round_in_the_browser(browser: Browser, tuned: Path, tmp_path: Path):
    fleet, mos = map(int, free_ports(2))
    init(tmp_path / "server", fleet_port=fleet, mos_port=mos)
    people = tuned_people(tuned, tmp_path, scoring=())[:2]
    with processes() as running, serving_page(tmp_path / "server") as (act, look):
        federation = Federation(tmp_path, running, people)
        context = browser.new_context(accept_downloads=True)
        page, asked, complaints = context.new_page(), list[str](), list[str]()
        page.set_default_timeout(30_000)
        page.on("request", lambda request: asked.append(request.url))
        page.on("console", lambda message: complaints.append(message.text))
        page.goto(act)
        origin = act.partition("/?")[0]
        assert page.url == f"{origin}/"

        for someone in people:
            invite(page, someone.name, someone.kit)
        federation.join(*people)
        page.get_by_text("online", exact=True).nth(1).wait_for(timeout=120_000)

        page.get_by_role("link", name="Rounds", exact=True).click()
        page.get_by_label("Concepts to wait for").fill("2")
        page.get_by_label("Hold the model back until I publish it").check()
        page.get_by_text("More settings").click()
        page.get_by_label("Settings of fusion").fill("steps=2\ncontexts=V\nordinary=a")
        page.get_by_role("button", name="Ask for a round").click()
        assert "--set steps=2 --set contexts=V --set ordinary=a --review --no-follow" in page.inner_text("main")
        page.get_by_role("link", name="Go on").click()
        page.get_by_role("link", name="round-001").click()
        page.locator("#round-state .chip.warn", has_text="held back").wait_for(timeout=ROUND_MS)
        assert federation.rounds()[0].status == HELD_BACK

        page.reload()
        page.get_by_role("button", name="Draw the contact sheet").click()
        page.get_by_role("link", name="Go on").click()
        page.get_by_text("6 of 6 drawn").wait_for(timeout=120_000)
        page.locator("#sheet img").nth(5).scroll_into_view_if_needed()
        page.wait_for_function("[...document.querySelectorAll('#sheet img')].every(each => each.naturalWidth == 64)")
        for scheme, width in (("light", 1200), ("dark", 390)):
            page.emulate_media(color_scheme=scheme)
            page.set_viewport_size({"width": width, "height": 800})
            for path in PAGES:
                page.goto(origin + path)
                assert serious(page) == [], page.url
                assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), (path, width)

        page.get_by_role("button", name="Publish round-001").click()
        page.get_by_role("heading", name="round-001 is published").wait_for()
        assert federation.rounds()[0].status == PUBLISHED

        name = people[1].name
        page.get_by_role("link", name="Concepts", exact=True).click()
        row = page.get_by_role("row").filter(has_text=f"<{name}/")
        row.locator("summary").click()
        row.get_by_role("button", name="Withdraw").click()
        page.get_by_role("heading", name="is withdrawn").wait_for()
        page.get_by_role("link", name="People", exact=True).click()
        page.locator(f"#bar-{name} summary").click()
        page.get_by_role("button", name=f"Bar {name}").click()
        page.get_by_role("heading", name=f"{name} is barred").wait_for()
        with federation.journal() as journal:
            assert [each.participant for each in journal.uploads.kept()] == [people[0].name]
            assert journal.participants.barred_since(name) is not None
            acts = [each["details"]["act"] for each in journal.audit.entries() if each["what"] == "asked on the page"]
        assert acts == ["invite", "invite", "round", "sheet", "publish", "withdraw", "bar"]

        assert {url.partition("/")[0] + "//" + url.split("/")[2] for url in asked if "://" in url} == {origin}
        assert complaints == []
        refused_and_looking(context, page, origin, look)
        with federation.journal() as journal:
            assert {kit[0] for kit in journal.participants.invitations()} <= {each.name for each in people}


def refused_and_looking(context, page: Page, origin: str, look: str) -> None:
    """A stranger's page in the same browser invites nobody; the other address acts on nothing."""
    with page_of_a_stranger(origin) as stranger:
        page.goto(stranger)
        page.wait_for_url(f"{origin}/people/invite")
        assert "refused" in page.inner_text("body")
    page.goto(look)
    assert "you may look" in page.inner_text("header")
    page.goto(f"{origin}/people")
    assert page.locator("form").count() == 0
