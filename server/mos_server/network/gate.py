"""The gate in front of Flower: it decides about every request before Flower hears of it.

Flower serves three APIs from one application: the Fleet API for participants, and two more with
which anybody could start runs and take over the server's own tasks. It also reads every body into
memory before it checks who sent it. The gate

1. passes on only the calls that are listed, with each header once and a body of declared size
2. checks who sends it before anything takes effect
3. receives the body on disk, at a least rate, and lets `inspect` judge it
4. hands Flower a request that has only what was judged here, so that one parser decides

`identify`, `inspect` and the lists are those of one port; `mos_server.network.fleet` has them.
"""

from __future__ import annotations

import asyncio
import logging
import tempfile
import time
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from sqlalchemy.exc import OperationalError

from mos_common.errors import StateError, TrustError
from mos_common.files import could_not_write
from mos_server.network.door import Door
from mos_server.network.memory import collect_bodies
from mos_server.network.pace import GRACE_S, Pace
from mos_server.network.quota import Quota

log = logging.getLogger(__name__)

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Message, Receive, Send], Awaitable[None]]
Headers = Mapping[bytes, bytes]
Spool = tempfile.SpooledTemporaryFile[bytes]

MEDIA_TYPE = b"application/protobuf"
# Eight of the largest concepts in an hour: three attempts in one round, and room for more rounds.
HOURLY_BYTES_AT_MOST = 8 * (64 << 20)
# Larger bodies wait on disk, so that slow senders and readers cost no memory.
_IN_MEMORY_BYTES = 64 << 10
# Flower keeps several copies of a large request, and its database has one writer: one at a time.
_LARGE_AT_A_TIME = 1
_COLLECT_FROM_BYTES = 1 << 20
_LINGER_S = 2.0
_INTERIM_EVERY_S = 10.0
# Where the HTTP protocol puts its function that sends an interim answer.
INTERIM = "interim"


class RefusedError(Exception):
    """A request is refused, with this HTTP status."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


class Port(Protocol):
    """What one port lets through."""

    calls: Mapping[str, int]
    """The paths of the calls, and how large their bodies may be."""

    passed: frozenset[bytes]
    """The headers that Flower gets, if they are there."""

    def identify(self, headers: Headers) -> str:
        """Return the key that has proved to be the sender's.

        Raises:
            TrustError: it is not proved.

        """

    def admits(self, key: str) -> bool:
        """Return whether a key that was proved is still admitted."""

    def inspect(self, path: str, headers: Headers, body: bytes) -> None:
        """Judge a body. It is called in a thread.

        Raises:
            RefusedError: Flower must not see it.

        """


@dataclass(frozen=True)
class Request:
    """A request whose headers were judged."""

    path: str
    headers: Headers
    size: int


class Gate:
    """An ASGI application in front of Flower's.

    `unstored` is told why the server's own disk or database refused something: its sender is
    answered 503 and comes again. `saw` gets the key of every call that has proved one, `refused`
    the HTTP status of every refusal.
    """

    def __init__(
        self,
        application: Application,
        port: Port,
        door: Door,
        *,
        spool: Path,
        unstored: Callable[[str], None],
        saw: Callable[[str], None] = lambda key: None,
        refused: Callable[[int], None] = lambda status: None,
        hourly_bytes: float = HOURLY_BYTES_AT_MOST,
    ) -> None:
        self._application = application
        self._port = port
        self._door = door
        self._spool = spool
        self._saw = saw
        self._unstored = unstored
        self._refused = refused
        self._quota = Quota(hourly_bytes)
        self._large = asyncio.Semaphore(_LARGE_AT_A_TIME)

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer one ASGI request."""
        if scope["type"] != "http":
            return
        try:
            request = self._judged(scope)
            key = self._port.identify(request.headers)
        except RefusedError as refused:
            return await self._refuse(send, refused.status)
        except TrustError:
            return await self._refuse(send, 401)
        except StateError as error:
            self._unstored(str(error))
            return await self._refuse(send, 503)
        with self._door.call(tuple(scope["client"]), key):
            try:
                await self._answer(request, key, scope, receive, send)
            except RefusedError as refused:
                log.warning("key %s: %s refused: %s", key[:12], request.path, refused)
                await self._refuse(send, refused.status, receive)
            except (OSError, StateError) as error:
                self._unstored(str(could_not_write(self._spool, error) if isinstance(error, OSError) else error))
                await self._refuse(send, 503, receive)
            except _GoneError:
                return

    async def _answer(self, request: Request, key: str, scope: Message, receive: Receive, send: Send) -> None:
        """Answer a request of `key`, which is its sender's."""
        if request.size > self._port.calls[request.path]:
            raise RefusedError(413, f"the body has {request.size} bytes, more than this call may")
        self._count(key, 0)
        self._saw(key)
        with self._temporary() as body, self._temporary() as answer:
            waiting = asyncio.create_task(_keep_waiting(scope["state"].get(INTERIM)))
            try:
                await self._receive(request, key, receive, body)
                if not self._port.admits(key):  # barred while the body came
                    raise RefusedError(401, "the key is no longer admitted")
                head = await self._ask(request, scope, body, answer)
            finally:
                waiting.cancel()
            await _reply(send, head, answer)

    def _judged(self, scope: Message) -> Request:
        """Judge everything but the sender and the body."""
        path = scope["path"]
        if scope["method"] != "POST" or path not in self._port.calls or scope["query_string"]:
            raise RefusedError(404, "there is no such call")
        headers: dict[bytes, bytes] = dict(scope["headers"])
        if scope["http_version"] != "1.1" or len(headers) != len(scope["headers"]):
            raise RefusedError(400, "not HTTP/1.1, or a header came twice")
        length = headers.get(b"content-length", b"")
        if b"transfer-encoding" in headers or not length:
            raise RefusedError(411, "the length of the body is not declared")
        if not length.isdigit() or b"host" not in headers or headers.get(b"content-type") != MEDIA_TYPE:
            raise RefusedError(400, "a header is not what Flower sends")
        return Request(path, headers, int(length))

    async def _receive(self, request: Request, key: str, receive: Receive, body: Spool) -> None:
        received, pace = 0, Pace()
        while received < request.size:
            try:
                async with asyncio.timeout(GRACE_S):
                    message = await receive()
            except TimeoutError:
                raise RefusedError(408, "the body stopped coming") from None
            if message["type"] != "http.request":
                raise _GoneError
            piece = message.get("body", b"")
            received += len(piece)
            self._count(key, len(piece))
            if pace.too_slow(received, idle=False, now=time.monotonic()):
                raise RefusedError(408, "the body comes too slowly")
            body.write(piece)

    async def _ask(self, request: Request, scope: Message, body: Spool, answer: Spool) -> Message:
        """Let Flower answer a request whose body has come; return the head of its answer."""
        if request.size <= _IN_MEMORY_BYTES and not request.path.endswith("-object"):
            return await self._ask_flower(request, scope, body, answer)
        async with self._large:
            head = await self._ask_flower(request, scope, body, answer)
            if request.size >= _COLLECT_FROM_BYTES:
                collect_bodies()
            return head

    async def _ask_flower(self, request: Request, scope: Message, body: Spool, answer: Spool) -> Message:
        body.seek(0)
        data = body.read()
        await asyncio.to_thread(self._port.inspect, request.path, request.headers, data)
        heads: list[Message] = []
        unread = [{"type": "http.request", "body": data, "more_body": False}]

        async def receive() -> Message:
            if not unread:
                await asyncio.Future()  # nothing more comes: Flower waits in vain for a disconnect
            return unread.pop()

        async def send(message: Message) -> None:
            if message["type"] == "http.response.start":
                heads.append(message)
            else:
                answer.write(message.get("body", b""))

        try:
            await self._application(self._passed_on(request, scope), receive, send)
        except OperationalError as error:
            raise StateError(f"Flower's database cannot be used: {error.args[0]}") from error
        (head,) = heads
        return head

    def _passed_on(self, request: Request, scope: Message) -> Message:
        kept = {b"content-type", b"content-length", b"host", b"accept"} | self._port.passed
        headers = [(name, value) for name, value in request.headers.items() if name in kept]
        same = ("type", "asgi", "http_version", "method", "scheme", "client", "server")
        rest = {"path": request.path, "raw_path": request.path.encode(), "query_string": b"", "root_path": ""}
        return {name: scope[name] for name in same} | rest | {"headers": headers, "state": {}}

    def _count(self, key: str, size: int) -> None:
        self._quota.count(key, size)
        if self._quota.spent(key):
            raise RefusedError(429, "the key has sent more than its hourly quota")

    async def _refuse(self, send: Send, status: int, receive: Receive | None = None) -> None:
        self._refused(status)
        await _refuse(send, status, receive)

    def _temporary(self) -> Spool:
        return tempfile.SpooledTemporaryFile(_IN_MEMORY_BYTES, dir=str(self._spool))


class _GoneError(Exception):
    """The other side has closed the connection."""


async def _keep_waiting(send_interim: Callable[[], None] | None) -> None:
    """Say again and again that an answer will come, until cancelled.

    Flower's client gives up when it reads nothing for 30 s, though on a slow line much of a body is
    still on its way when it has written all of it.
    """
    while send_interim:
        await asyncio.sleep(_INTERIM_EVERY_S)
        send_interim()


async def _reply(send: Send, head: Message, answer: Spool) -> None:
    """Send an answer in pieces, as fast as they are read."""
    await send(head)
    answer.seek(0)
    while piece := answer.read(_IN_MEMORY_BYTES):
        await send({"type": "http.response.body", "body": piece, "more_body": True})
    await send({"type": "http.response.body", "body": b""})


async def _refuse(send: Send, status: int, receive: Receive | None = None) -> None:
    """Refuse a request and end its connection.

    With `receive`, what still comes is dropped for a moment: a sender that is cut off in the middle
    of a body may never see why.
    """
    headers = [(b"content-type", b"application/json"), (b"content-length", b"2"), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": b"{}", "more_body": True})
    if receive:
        with suppress(TimeoutError):
            async with asyncio.timeout(_LINGER_S):
                while (message := await receive())["type"] == "http.request" and message.get("more_body"):
                    pass
    await send({"type": "http.response.body", "body": b""})
