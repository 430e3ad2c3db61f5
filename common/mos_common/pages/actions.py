"""What forms and scripts send: read within limits, and believed only with the form's token."""

from __future__ import annotations

import hmac
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Message

from mos_common.errors import RequestError
from mos_common.pages.access import visitor_of

FORM_TOKEN = "form_token"  # noqa: S105 - the name of a field, not a secret
MAX_BYTES = 1 << 20
MAX_FIELDS = 1000


@dataclass(frozen=True)
class Sent:
    """What a form has sent."""

    form: FormData

    def text(self, name: str, default: str | None = None) -> str:
        """Return a field, without space around it.

        Raises:
            RequestError: it is not there and has no default, or is a file.

        """
        value = self.form.get(name, default)
        if not isinstance(value, str):
            raise RequestError(f"the form has no text {name!r}: reload the page and send it again")
        return value.strip()

    def texts(self, name: str) -> list[str]:
        """Return every field of a name, such as the ticked ones of several boxes."""
        return [value.strip() for value in self.form.getlist(name) if isinstance(value, str)]

    def number(self, name: str, *, least: int, most: int) -> int:
        """Return a field that is a whole number.

        Raises:
            RequestError: it is none, or is out of bounds.

        """
        text = self.text(name)
        try:
            value = int(text) if len(text) < 20 else most + 1
        except ValueError:
            raise RequestError(f"{name}: {text[:40]!r} is not a whole number") from None
        if not least <= value <= most:
            raise RequestError(f"{name}: {text[:40]} is not from {least} to {most}")
        return value

    def files(self, name: str) -> list[UploadFile]:
        """Return the chosen files of a field. Their names are strangers' texts, never paths."""
        return [each for each in self.form.getlist(name) if isinstance(each, UploadFile) and each.filename]


def action(
    handler: Callable[[Request, Sent], Response], *, max_bytes: int = MAX_BYTES, max_files: int = 0
) -> Callable[[Request], Awaitable[Response]]:
    """Return an endpoint that runs `handler` in a thread, for our forms of those who may act.

    `max_bytes` bounds the whole body; files lie on the disk while `handler` reads them.
    """

    async def endpoint(request: Request) -> Response:
        if not visitor_of(request.scope).may_act:
            raise HTTPException(403, "this address may look and not act: open the one with the right to act")
        limited = Request(request.scope, _limited(request, max_bytes))
        async with limited.form(max_files=max_files, max_fields=MAX_FIELDS, max_part_size=max_bytes) as form:
            given = form.get(FORM_TOKEN)
            ours = visitor_of(request.scope).form_token
            if not isinstance(given, str) or not hmac.compare_digest(given.encode(), ours.encode()):
                raise HTTPException(403, "this form is of an earlier start of the page: reload it and send it again")
            return await run_in_threadpool(handler, request, Sent(form))

    return endpoint


def _limited(request: Request, max_bytes: int) -> Callable[[], Awaitable[Message]]:
    """Return `receive` of a request that raises as soon as its body is larger than `max_bytes`."""
    said = request.headers.get("content-length", "0")
    if not said.isdecimal() or int(said[:20]) > max_bytes:
        raise _too_large(max_bytes)
    seen = 0

    async def receive() -> Message:
        nonlocal seen
        message: dict[str, Any] = dict(await request.receive())
        seen += len(message.get("body", b""))
        if seen > max_bytes:
            raise _too_large(max_bytes)
        return message

    return receive


def _too_large(max_bytes: int) -> HTTPException:
    return HTTPException(413, f"that is more than {max_bytes / (1 << 20):.0f} MB at once: send less")
