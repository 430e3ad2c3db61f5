"""What both pages share refuses strangers' requests and escapes their texts."""

import http.client
import threading
import time
from urllib.parse import urlencode

import pytest
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from mos_common.errors import RequestError
from mos_common.pages import formats
from mos_common.pages.access import Access, Role, new_token, visitor_of
from mos_common.pages.actions import action
from mos_common.pages.application import page_application
from mos_common.pages.rendering import render, templates_of
from mos_common.pages.serving import address_of, hosts_of, listen, server_of


class Page:
    """A served page: one answer to look at, one action, one error, one mistake."""

    def __init__(self):
        self.done = []
        self.token, self.looker = new_token(), new_token()
        self.listener = listen()
        self.port = self.listener.getsockname()[1]
        self.access = Access(
            hosts_of(self.listener), {self.token: Role.ACT, self.looker: Role.LOOK}, header="x-mos-secret"
        )

        def act(_request, sent):
            self.done.append(sent.text("what"))
            return PlainTextResponse("done")

        def trouble(request):
            raise RequestError(f"got {request.query_params['text']}: expected nothing")

        def mistake(_request):
            raise ZeroDivisionError

        routes = [
            Route("/", lambda request: render(request, "mos_common.pages", "error.html", title="Hello", said="x")),
            Route("/act", action(act, max_bytes=2000), methods=["POST"]),
            Route("/trouble", trouble),
            Route("/mistake", mistake),
        ]
        self.server = server_of(page_application("mos_common.pages", routes, self.access))
        self.thread = threading.Thread(target=self.server.run, kwargs={"sockets": [self.listener]}, daemon=True)
        self.thread.start()

    def ask(self, path="/", method="GET", body=None, token=None, host=None, **headers):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        connection.putrequest(method, path, skip_host=True)
        connection.putheader("Host", host or f"127.0.0.1:{self.port}")
        if token:
            connection.putheader("Cookie", f"{self.access.cookie}={token}")
        if body is not None:
            connection.putheader("Content-Type", "application/x-www-form-urlencoded")
            connection.putheader("Content-Length", str(len(body)))
        for name, value in headers.items():
            connection.putheader(name.replace("_", "-"), value)
        connection.endheaders(body.encode() if body is not None else None)
        answer = connection.getresponse()
        answer.text = answer.read().decode()
        connection.close()
        return answer

    def act(self, token=None, form_token=None, what="it", **headers):
        token = token or self.token
        form_token = self.access.visitor(token).form_token if form_token is None else form_token
        headers = {"Origin": f"http://127.0.0.1:{self.port}", "Sec_Fetch_Site": "same-origin"} | headers
        headers = {name: value for name, value in headers.items() if value}
        return self.ask("/act", "POST", urlencode({"what": what, "form_token": form_token}), token, **headers)


@pytest.fixture(scope="module")
def page():
    page = Page()
    while not page.server.started:
        time.sleep(0.01)
    yield page
    page.server.should_exit = True
    page.thread.join(10)


def test_the_address_opens_the_page_and_leaves_the_token_behind(page):
    """The token becomes a cookie that no script reads and no other site sends."""
    opened = page.ask(f"/?{address_of(page.listener, page.token).split('?')[1]}&step=2")
    assert opened.status == 303
    assert opened.headers["location"] == "/?step=2"
    cookie = opened.headers["set-cookie"]
    assert cookie.startswith(f"{page.access.cookie}={page.token};")
    assert "HttpOnly" in cookie
    assert "SameSite=strict" in cookie
    assert page.ask("/", token=page.token).status == 200


def test_a_redirect_never_leads_to_another_host(page):
    """Two slashes at the beginning of a path would be the name of a host."""
    for path in ("//evil.example/", "/\\evil.example/"):
        assert page.ask(f"{path}?token={page.token}").headers["location"] == "/evil.example/"


def test_without_the_token_nothing_is_seen(page):
    """Neither the page, nor its style, nor a guess at what there is."""
    for path in ("/", "/static/page.css", "/nothing", "/?token=", "/?token=wrong", "/act"):
        assert page.ask(path).status == 403
        assert page.ask(path, token="wrong").status == 403


def test_a_name_that_was_made_to_point_here_is_refused(page):
    """DNS rebinding: the browser believes that it speaks to the stranger's own host."""
    for host in ("evil.example", f"evil.example:{page.port}", "127.0.0.1", f"127.0.0.1:{page.port}.evil.example"):
        assert page.ask("/", token=page.token, host=host).status == 421
    assert page.ask("/", token=page.token, host=f"localhost:{page.port}").status == 200


def test_only_our_own_forms_change_something(page):
    """Each of origin, fetch site, form token, cookie and role is enough to refuse."""
    page.done.clear()
    refused = [
        page.act(Origin="https://evil.example"),
        page.act(Origin="null"),
        page.act(Origin=f"http://127.0.0.1:{page.port + 1}"),
        page.act(Sec_Fetch_Site="cross-site"),
        page.act(Sec_Fetch_Site="same-site"),
        page.act(Sec_Fetch_Site="none"),
        page.act(Origin="", Sec_Fetch_Site=""),
        page.act(form_token=""),
        page.act(form_token="x" * 64),
        page.act(form_token=page.access.visitor(page.looker).form_token),
        page.act(token=page.looker),
    ]
    assert [answer.status for answer in refused] == [403] * len(refused)
    assert page.done == []
    assert page.act().status == 200
    assert page.act(Sec_Fetch_Site="").status == 200  # a browser that does not send it
    assert page.done == ["it", "it"]


def test_another_sites_page_shows_nothing_of_ours(page):
    """A picture of ours within a stranger's page, or within one on another port of this machine."""
    for site in ("cross-site", "same-site"):
        assert page.ask("/", token=page.token, Sec_Fetch_Site=site, Sec_Fetch_Mode="no-cors").status == 403
        assert page.ask("/", token=page.token, Sec_Fetch_Site=site, Sec_Fetch_Mode="navigate").status == 200


def test_a_proxy_brings_the_secret_in_a_header(page):
    """An operator's own proxy has authenticated its visitor already."""
    assert page.ask("/", x_mos_secret=page.looker).status == 200
    assert page.ask("/", x_mos_secret="wrong").status == 403


def test_more_than_the_limit_is_not_read(page):
    """Neither with a length that says so, nor in pieces without one."""
    assert page.act(what="x" * 3000).status == 413
    assert page.act(what="x" * 1500).status == 200


def test_every_answer_says_that_nothing_else_may_be_loaded(page):
    """Refusals and mistakes too; nothing is kept by caches."""
    for path in ("/", "/nothing", "/mistake", "/static/page.css"):
        answer = page.ask(path, token=page.token)
        assert "default-src 'none'" in answer.headers["content-security-policy"]
        assert "unsafe" not in answer.headers["content-security-policy"]
        assert answer.headers["cache-control"] == "no-store"
        assert "ZeroDivisionError" not in answer.text


def test_paths_lead_nowhere_else(page):
    """Static files are those of the package."""
    for path in ("/static/../access.py", "/static/%2e%2e/access.py", "/static/..%2faccess.py", "/static//etc/passwd"):
        assert page.ask(path, token=page.token).status == 404


def test_what_a_stranger_wrote_is_text(page):
    """Markup in an error's text is shown, not obeyed."""
    answer = page.ask("/trouble?" + urlencode({"text": "<script>alert(1)</script>\" onload='x"}), token=page.token)
    assert answer.status == 400
    assert "<script>alert" not in answer.text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;&#34; onload=&#39;x" in answer.text


def test_tables_escape_their_cells():
    """The pieces that pages share escape like the pages themselves."""
    template = templates_of("mos_common.pages").from_string(
        '{% from "parts.html" import table, note with context %}{{ table(x, [x], [[x]]) }}{{ note("info", x) }}'
    )
    html = template.render(x='<b onclick="y">', visitor=visitor_of({"visitor": None}), here="/")
    assert "<b " not in html
    assert 'onclick="' not in html


def test_numbers_are_read_as_people_read_them():
    """Sizes in powers of ten, durations in their two largest units."""
    assert [formats.size(n) for n in (0, 999, 1000, 3_400_000, 999_600, 5e9)] == [
        *("0 bytes", "999 bytes", "1.0 kB", "3.4 MB", "1.0 MB", "5.0 GB"),
    ]
    assert [formats.duration(s) for s in (0, 59.6, 61, 3599, 3660, 90_000)] == [
        *("0 s", "1 min", "1 min 1 s", "59 min", "1 h 1 min", "1 d 1 h"),
    ]
    assert formats.ago(100, now=160) == "1 min ago"
    assert formats.moment(0) == "1970-01-01 00:00 UTC"
