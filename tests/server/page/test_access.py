"""Who may see the operator's page, and what is refused because of where it comes from."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
import requests

from mos_common.errors import RequestError
from mos_common.pages.access import Role
from mos_server.monitoring.health import Health
from mos_server.page.opening import HEADER, PageOptions, opened_page
from server.page.conftest import ACT, LOOK, Page, shown
from server.round.conftest import Federation

PAGES = ["/", "/people", "/rounds", "/concepts", "/server"]
ACTS = ["people/invite", "people/bar", "concepts/withdraw", "rounds/ask", "rounds/cancel", "rounds/hold-back"]
ACTS += ["rounds/publish", "rounds/sheet"]


@pytest.mark.parametrize("path", PAGES)
def test_a_page_needs_the_token_and_is_shown_to_both_roles(page: Page, path: str):
    assert page.get(path, token="").status_code == 403
    assert page.get(path, token="another").status_code == 403
    assert page.get(path, token=LOOK).status_code == 200
    assert page.get(path).status_code == 200


def test_the_address_that_is_printed_opens_the_page_and_leaves_no_token_in_it(page: Page):
    opened = page.get(f"/?token={ACT}", token="")
    assert (opened.status_code, opened.headers["location"]) == (303, "/")
    assert "HttpOnly" in opened.headers["set-cookie"]
    assert "samesite=strict" in opened.headers["set-cookie"].lower()


def test_who_may_only_look_sees_no_form_and_can_send_none(federation: Federation, page: Page):
    federation.machine("alice")
    for path in PAGES:
        assert "<form" not in page.get(path, token=LOOK).text
    for path in ACTS:
        assert page.post(f"/{path}", token=LOOK, name="alice").status_code == 403
    assert page.acts() == []
    assert not federation.journal.participants.barred_since("alice")


@pytest.mark.parametrize("path", ACTS)
@pytest.mark.parametrize(
    ("headers", "form"),
    [
        ({"origin": "https://evil.example"}, {}),
        ({"origin": "null"}, {}),
        ({"sec-fetch-site": "cross-site"}, {}),
        ({"sec-fetch-site": "same-site"}, {}),
        ({"origin": "", "sec-fetch-site": ""}, {}),
        ({}, {"form_token": ""}),
        ({}, {"form_token": "0" * 64}),
    ],
    ids=["other origin", "no origin", "other site", "other port", "no browser", "no form token", "other form token"],
)
def test_a_form_of_another_sites_page_does_nothing(page: Page, path: str, headers: dict, form: dict):
    answer = page.post(f"/{path}", headers=headers, name="alice", **form)
    assert answer.status_code == 403
    assert page.acts() == []
    assert page.journal.participants.invitations() == []


@pytest.mark.parametrize("path", [*PAGES, "/static/page.css"])
def test_a_page_under_a_strangers_name_is_refused(page: Page, path: str):
    for host in ("evil.example", f"evil.example:{page.port}", "127.0.0.1", "127.0.0.1:1", ""):
        assert page.get(path, host=host).status_code in (400, 421)


@pytest.mark.parametrize(
    "path",
    [
        "/static/../templates/server.html",
        "/static/%2e%2e/%2e%2e/serve.py",
        "/static/..%2f..%2fserve.py",
        "/rounds/..%2f..%2fconfig.json/log",
        "/rounds/%2e%2e/log",
        "/rounds/round-001/pictures/..%2f..%2f..%2fpki%2fsigning.key/fused",
        "/rounds/round-001/pictures/x/..%2f..%2fconfig.json",
        "/rounds/round-999",
        "/rounds/round-001%00",
        "//evil.example/",
    ],
)
def test_no_path_leads_out_of_the_page(federation: Federation, page: Page, path: str):
    federation.run(federation.machine("alice"))
    answer = page.get(path)
    assert answer.status_code == 404
    assert "PRIVATE" not in answer.text and "server_id" not in answer.text


@pytest.mark.parametrize("path", PAGES)
def test_every_answer_forbids_scripts_frames_and_other_hosts(page: Page, path: str):
    answer = page.get(path)
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert "frame-ancestors 'none'" in answer.headers["content-security-policy"]
    assert not re.search(r"\son\w+=|<script(?! src=\"/static/)|style=", answer.text)
    assert not re.search(r"(?:src|href|action)=\"(?!/|#)", answer.text)


def test_a_larger_form_than_any_of_ours_is_refused(page: Page):
    assert page.post("/rounds/ask", set="x" * (2 << 20)).status_code == 413


def secret_file(folder: Path, name: str, text: str, mode: int = 0o600) -> Path:
    file = folder / name
    file.write_text(text)
    file.chmod(mode)
    return file


def test_a_proxy_shows_a_secret_for_each_role(page: Page, tmp_path: Path):
    act = secret_file(tmp_path, "act", "0123456789abcdef\n")
    look = secret_file(tmp_path, "look", "fedcba9876543210\n")
    options = PageOptions.read(0, act, look, ["fuse.example.org"])
    assert options.secrets == {"0123456789abcdef": Role.ACT, "fedcba9876543210": Role.LOOK}
    assert "0123456789abcdef" not in repr(options)
    assert "you may look" not in page.get("/", token="", **{HEADER: ACT}).text
    assert "you may look" in page.get("/", token="", **{HEADER: LOOK}).text
    assert page.get("/", token="", **{HEADER: "another"}).status_code == 403


def test_behind_a_proxy_the_page_answers_to_its_name_and_prints_no_secret(federation: Federation):
    options = PageOptions(0, {ACT: Role.ACT}, ("fuse.example.org",))
    health, said = Health(federation.state, federation.journal), list[str]()
    with opened_page(options, federation.state, federation.journal, health, said.append):
        (line,) = said
        assert ACT not in line and "token" not in line
        url = f"http://{re.search(r'127[.]0[.]0[.]1:[0-9]+', line)[0]}/people"
        ask = {"host": "fuse.example.org"}
        assert requests.get(url, headers={**ask, HEADER: ACT}, timeout=30).status_code == 200
        assert requests.get(url, headers=ask, timeout=30).status_code == 403
        assert requests.get(url, headers={"host": "evil.example", HEADER: ACT}, timeout=30).status_code == 421


@pytest.mark.parametrize(
    ("text", "mode", "said"),
    [("short", 0o600, "expected 16"), ("0123456789abcdef", 0o644, "chmod 600"), ("0123 456789abcdef", 0o600, "spaces")],
)
def test_a_weak_or_open_secret_is_refused(tmp_path: Path, text: str, mode: int, said: str):
    with pytest.raises(RequestError, match=said):
        PageOptions.read(0, secret_file(tmp_path, "secret", text, mode), None, ["fuse.example.org"])


def test_a_half_described_proxy_is_refused(tmp_path: Path):
    secret = secret_file(tmp_path, "secret", "0123456789abcdef")
    for files, hosts in (((secret, None), []), ((None, None), ["fuse.example.org"])):
        with pytest.raises(RequestError, match="--page-host"):
            PageOptions.read(0, *files, hosts)
    with pytest.raises(RequestError, match="same secret"):
        PageOptions.read(0, secret, secret, ["fuse.example.org"])
    with pytest.raises(RequestError, match="cannot be read"):
        PageOptions.read(0, tmp_path / "none", None, ["fuse.example.org"])


def test_markup_of_strangers_is_text_everywhere(federation: Federation, page: Page):
    """Concepts, authors, reasons, notes and settings are a stranger's; a name cannot be markup."""
    evil = "<img src=x onerror=alert(1)>\"'&"
    good = federation.file(name="<cat>", author=evil, licence=evil)
    name = federation.run(federation.machine("alice", good), min_identity=None)
    federation.journal.notes.add(name, evil)
    (upload,) = federation.admitted(name)
    from mos_server.state.records import Upload

    refused = Upload(0, name, upload.key, "alice", evil, "", 1, 0.0, evil, None)
    federation.journal.uploads.add(refused)
    late = Upload(0, None, upload.key, "alice", evil, "ab" * 32, 1, 0.0, None, None)
    federation.journal.uploads.add(late)
    federation.journal.participants.runs(upload.key, evil)
    seen = ""
    for path in [*PAGES, f"/rounds/{name}"]:
        text = page.get(path).text
        assert "<img src=x" not in text
        seen += text
    assert seen.count("&lt;img src=x onerror=alert(1)&gt;") >= 6
    assert page.get(f"/rounds/{name}/log").headers["content-type"].startswith("text/plain")
    for sent in (page.post("/people/invite", name=evil), page.post("/concepts/withdraw", concept=evil + "x")):
        assert sent.status_code == 400
        assert "<img src=x" not in sent.text
        assert "onerror" in shown(sent)


def test_files_of_the_page_are_in_the_wheel():
    import mos_server.page as package

    folder = Path(os.fspath(package.__file__)).parent
    assert (folder / "static" / "operator.css").is_file()
    assert (folder / "templates" / "operator.html").is_file()
