"""The gate in front of Flower's public port.

Flower serves three APIs from one application: the Fleet API for participants, and two more with
which anybody could start runs and take over the server's own tasks. It also reads every body into
memory before it checks who sent it. The gate passes on only Fleet calls, from keys that the
operator admitted, with bodies of bounded size. Flower then verifies the signature, which proves
that the key's owner made the call.
"""

from __future__ import annotations

import base64
import binascii
import logging
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from mos_common.errors import TrustError
from mos_common.node_key import key_digest

log = logging.getLogger(__name__)

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Message, Receive, Send], Awaitable[None]]

# register-node and unregister-node are left out: enrolment decides which keys are nodes.
FLEET_CALLS = frozenset(
    f"/v1/fleet/{call}"
    for call in (
        "activate-node",
        "deactivate-node",
        "send-node-heartbeat",
        "pull-messages",
        "push-messages",
        "get-run",
        "get-fab",
        "push-object",
        "pull-object",
        "confirm-message-received",
    )
)
KEY_HEADER = b"flwr-public-key"
HEADERS = (KEY_HEADER, b"flwr-timestamp", b"flwr-signature")

# Flower cuts arrays into objects of 5 MiB, each pushed in a request of its own.
REQUEST_BYTES_AT_MOST = 6 << 20
# Eight of the largest concepts in an hour: three attempts in one round, and room for more rounds.
HOURLY_BYTES_AT_MOST = 8 * (64 << 20)
_HOUR_S = 3600.0
_HEADER_BYTES_AT_MOST = 4096


class Gate:
    """An ASGI application in front of Flower's.

    It passes on Fleet calls of admitted keys and refuses everything else unread.
    """

    def __init__(
        self,
        application: Application,
        *,
        admitted: Callable[[str], bool],
        saw: Callable[[str], None] = lambda key: None,
        request_bytes: int = REQUEST_BYTES_AT_MOST,
        hourly_bytes: int = HOURLY_BYTES_AT_MOST,
    ) -> None:
        self._application = application
        self._admitted = admitted
        self._saw = saw
        self._request_bytes = request_bytes
        self._quota = Quota(hourly_bytes)

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer one ASGI request."""
        if scope["type"] != "http":
            return
        if scope["method"] != "POST" or scope["path"] not in FLEET_CALLS:
            return await _refuse(send, 404)
        headers = dict(scope["headers"])
        key = _claimed_key(headers)
        if key is None or not self._admitted(key):
            return await _refuse(send, 401)
        if _declared_length(headers) > self._request_bytes:
            return await _refuse(send, 413)
        if self._quota.spent(key):
            log.warning("key %s has sent more than its hourly quota: refused", key[:12])
            return await _refuse(send, 429)
        self._saw(key)
        await self._pass_on(scope, receive, send, key)

    async def _pass_on(self, scope: Message, receive: Receive, send: Send, key: str) -> None:
        received, answered = 0, False

        async def counted() -> Message:
            nonlocal received
            message = await receive()
            size = len(message.get("body", b""))
            received += size
            self._quota.count(key, size)
            if received > self._request_bytes or self._quota.spent(key):
                raise _TooMuchError
            return message

        async def answer(message: Message) -> None:
            nonlocal answered
            answered = True
            await send(message)

        try:
            await self._application(scope, counted, answer)
        except _TooMuchError:
            if not answered:
                await _refuse(send, 413)


class Quota:
    """The number of bytes that each key has sent within the hour."""

    def __init__(self, hourly_bytes: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._hourly_bytes = hourly_bytes
        self._clock = clock
        self._began = clock()
        self._bytes: dict[str, int] = {}

    def count(self, key: str, size: int) -> None:
        """Add `size` bytes to the count of a key."""
        self._bytes[key] = self._bytes.get(key, 0) + size

    def spent(self, key: str) -> bool:
        """Return whether a key has used up its bytes for this hour."""
        if self._clock() - self._began > _HOUR_S:
            self._began, self._bytes = self._clock(), {}
        return self._bytes.get(key, 0) > self._hourly_bytes


class _TooMuchError(Exception):
    """A body exceeded its limit."""


def _claimed_key(headers: dict[bytes, bytes]) -> str | None:
    """Return the digest of the key in the headers; None if there is no readable key."""
    if not all(0 < len(headers.get(name, b"")) <= _HEADER_BYTES_AT_MOST for name in HEADERS):
        return None
    try:
        return key_digest(base64.b64decode(headers[KEY_HEADER], validate=True))
    except (binascii.Error, ValueError, TrustError):
        return None


def _declared_length(headers: dict[bytes, bytes]) -> int:
    text = headers.get(b"content-length", b"0")
    return int(text) if text.isdigit() else 0


async def _refuse(send: Send, status: int) -> None:
    # The body is unread, so the connection cannot be used again.
    headers = [(b"content-type", b"application/json"), (b"content-length", b"2"), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": b"{}"})
