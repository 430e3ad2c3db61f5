"""Who may see a page, and which requests are refused because of where they come from.

A browser runs the pages of strangers beside ours, and any of them can send requests to this
machine. So a request has to show four things: that it means this server (its Host header: a
stranger's name that was made to point here is refused), that it comes from our own page
(Sec-Fetch-Site and Origin), that its sender holds the token (in the address once, in a cookie from
then on), and, if it changes something, the form's token, which only our pages contain.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any
from urllib.parse import parse_qsl, urlencode

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import cookie_parser
from starlette.responses import PlainTextResponse, RedirectResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

TOKEN = "token"  # noqa: S105 - the name of a parameter, not a secret
SAFE = frozenset({"GET", "HEAD"})
HEADERS = {
    # `'none'` first: a kind of content that nobody thought of is refused. No inline scripts.
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "cache-control": "no-store",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    # Not `no-referrer`: with it, browsers send `Origin: null` with our own forms.
    "referrer-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "permissions-policy": "camera=(), microphone=(), geolocation=()",
}


class Role(StrEnum):
    """What a visitor may do."""

    LOOK = "look"
    ACT = "act"


@dataclass(frozen=True)
class Visitor:
    """Who sent a request. `form_token` is what this visitor's forms contain."""

    role: Role
    form_token: str

    @property
    def may_act(self) -> bool:
        """True if this visitor may change something."""
        return self.role is Role.ACT


@dataclass(frozen=True)
class Access:
    """Which hosts a page answers for, and which tokens open it.

    `hosts` are Host headers, such as "127.0.0.1:8000". `header` is the name of a header in which a
    proxy may bring the token instead of a cookie.
    """

    hosts: frozenset[str]
    tokens: Mapping[str, Role]
    header: str | None = None
    secret: bytes = field(default_factory=lambda: secrets.token_bytes(32))

    def visitor(self, token: str) -> Visitor | None:
        """Return who holds a token, or None. It takes equally long for every text."""
        found = None
        for known, role in self.tokens.items():
            if hmac.compare_digest(token.encode(), known.encode()):
                found = Visitor(role, hmac.new(self.secret, known.encode(), hashlib.sha256).hexdigest())
        return found

    @property
    def cookie(self) -> str:
        """The cookie's name: its own, since pages on other ports of this machine share cookies."""
        return "mos-" + hashlib.sha256(self.secret).hexdigest()[:8]


def new_token() -> str:
    """Return a token that nobody guesses."""
    return secrets.token_urlsafe(24)


class Guard:
    """Lets through what `Access` allows, as `scope["visitor"]`; adds headers to every answer."""

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self._app, self._access = app, access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or refuse it."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":  # no page of ours opens a WebSocket
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers[name] = value
            await send(message)

        answer = self._refusal(scope) or self._opening(scope)
        await (answer or self._app)(scope, receive, send_with_headers)

    def _refusal(self, scope: Scope) -> ASGIApp | None:
        headers = Headers(scope=scope)
        host, site = headers.get("host", ""), headers.get("sec-fetch-site")
        if host not in self._access.hosts:
            return _said(421, f"this server is not {host[:100]!r}: open the address that the command printed")
        if len(headers.getlist("host")) > 1:
            return _said(400, "a request names one host")
        origin = headers.get("origin")
        if origin is not None and origin not in (f"http://{host}", f"https://{host}"):
            return _said(403, "refused: this request comes from another site's page")
        if scope["method"] not in SAFE:
            # Every browser of today says at least one of them; what says neither is no page.
            if site != "same-origin" and (origin is None or site is not None):
                return _said(403, "refused: only this page's own forms may change something")
        elif site in ("cross-site", "same-site") and headers.get("sec-fetch-mode") != "navigate":
            return _said(403, "refused: another site's page asked for this")
        return None

    def _opening(self, scope: Scope) -> ASGIApp | None:
        """Return the answer to a visit with a token in the address or with none; None: go on."""
        access, query = self._access, parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True)
        given = dict(query).get(TOKEN)
        if given is not None and scope["method"] in SAFE:
            if access.visitor(given) is None:
                return _said(403, "this address is of an earlier start: open the one that the command printed last")
            rest = urlencode([pair for pair in query if pair[0] != TOKEN])
            # Two slashes would be the name of another host.
            path = "/" + scope["path"].lstrip("/\\")
            answer = RedirectResponse(path + ("?" + rest if rest else ""), status_code=303)
            answer.set_cookie(access.cookie, given, httponly=True, samesite="strict", path="/")
            return answer
        headers = Headers(scope=scope)
        held = headers.get(access.header, "") if access.header else ""
        held = held or cookie_parser(headers.get("cookie", "")).get(access.cookie, "")
        visitor = access.visitor(held)
        if visitor is None:
            return _said(403, "open the address that the command printed; if you just did, reload this page once")
        scope["visitor"] = visitor
        return None


def visitor_of(scope: Mapping[str, Any]) -> Visitor:
    """Return who sent a request that the guard let through."""
    visitor: Visitor = scope["visitor"]
    return visitor


def _said(status: int, text: str) -> ASGIApp:
    return PlainTextResponse(text + "\n", status_code=status)
