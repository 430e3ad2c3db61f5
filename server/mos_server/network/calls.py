"""How a call of `mos.v1` is received: one place for deadlines, releases, signatures and statuses.

Every method is received as a stream, since gRPC reads the request of an ordinary method without a
deadline. A call goes through these steps, each with a limit of time:

    the request arrives    `request_s` for all of it; the event loop reads it, so nobody waits
    who calls is verified  key, clock, signature, replay, release; before that nothing counts
    it is answered         `answer_s`, by a plain function in a thread
    the answer is taken    `piece_s` for each piece of a download, else within `answer_s`

Whatever goes wrong becomes a status here. A caller is told sentences of ours about its own call;
paths, causes and foreign errors go to the log.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Generator, Hashable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import grpc
from google.protobuf.message import DecodeError

from mos_common.errors import MosError, RequestError, StateError, TrustError
from mos_common.node_key import CallVerifier, ClockError
from mos_common.outage import RETRY_AFTER, Outage
from mos_common.release import OURS, Release, advice_to_operator, advice_to_participant, release_in, release_metadata

log = logging.getLogger(__name__)
T = TypeVar("T")

# Threads for what blocks: the journal and signatures, enrolments (one writer), files.
_READERS, _FILES = 4, 4
_REFUSALS_LOGGED_EVERY_S = 60.0


@dataclass(frozen=True)
class CallLimits:
    """The limits of calls.

    request_s: from a call's arrival to its whole request, which has at most 64 kB.
    answer_s: for the answer of every method but a download.
    piece_s: for each piece of a download (64 KiB) to be taken by the other side.
    barred_after_s: how often a running download asks whether its key is still admitted.
    calls_per_key, downloads_per_key: at the same time.
    """

    request_s: float = 10.0
    answer_s: float = 15.0
    piece_s: float = 20.0
    barred_after_s: float = 2.0
    calls_per_key: int = 8
    downloads_per_key: int = 4


class Refusal(Exception):  # noqa: N818 - what a caller is told is no error of ours
    """A call is not answered: the status and the sentence that its caller gets.

    `after_s` is when to come again, if that is known.
    """

    def __init__(self, code: Any, sentence: str, *, after_s: int | None = None) -> None:
        super().__init__(sentence)
        self.code = code
        self.metadata = () if after_s is None else ((RETRY_AFTER, str(after_s)),)


class Proofs(Protocol):
    """Where it is reported that a connection has proved a key: the door."""

    def call(self, name: Hashable, key: str) -> AbstractContextManager[None]:
        """Answer a call that has proved `key` within the block, on the connection called `name`."""
        ...


@dataclass(frozen=True)
class Method:
    """A method of the service: how its request is read, and the plain function that answers it.

    `answer` gets the request and the digest of the caller's key. An enrolment's caller has no key
    yet: it returns (reply, key). A download returns an iterator of pieces, each made in a thread.
    """

    request: Any
    answer: Callable[..., Any]
    enrols: bool = False
    streams: bool = False


class Calls:
    """The calls of one server. All of it runs in one event loop."""

    def __init__(
        self,
        methods: Mapping[str, Method],
        door: Proofs,
        *,
        admitted: Callable[[str], bool],
        runs: Callable[[str, Release], str],
        limits: CallLimits,
    ) -> None:
        """`runs` records which release a key has come with, and returns the participant's name."""
        self._methods = methods
        self._door = door
        self._admitted, self._runs = admitted, runs
        self._limits = limits
        self._verifier = CallVerifier(admitted)
        self._releases: dict[str, Release] = {}
        self._running: Counter[tuple[str, bool]] = Counter()
        self._refused = _RefusalLog()
        self._stuck = Outage(lambda line: log.error("%s", line))
        self._readers = ThreadPoolExecutor(_READERS, "mos.v1")
        self._writer = ThreadPoolExecutor(1, "mos.v1 enrolment")
        self._files = ThreadPoolExecutor(_FILES, "mos.v1 files")

    def close(self) -> None:
        """Release the threads, without waiting for what they do."""
        for pool in (self._readers, self._writer, self._files):
            pool.shutdown(wait=False, cancel_futures=True)

    def handlers(self, service: str) -> Any:
        """Return the handlers to add to a gRPC server."""
        return grpc.method_handlers_generic_handler(service, {name: self._handler(name) for name in self._methods})

    def _handler(self, name: str) -> Any:
        async def receive(_requests: Any, context: Any) -> None:
            await self._receive(name, context)

        return grpc.stream_stream_rpc_method_handler(receive)

    async def _receive(self, name: str, context: Any) -> None:
        """Answer one call, or end it with a status."""
        try:
            await self._answer(name, context)
        except Exception as error:
            refusal = self._refusal(name, error)
        else:
            return
        # The status waits behind what is not read, without a call that the door would respect.
        await context.abort(refusal.code, str(refusal), refusal.metadata)

    async def _answer(self, name: str, context: Any) -> None:
        method, limits = self._methods[name], self._limits
        async with asyncio.timeout(limits.request_s):
            await context.send_initial_metadata(release_metadata())
            request = _parsed(method.request, await context.read())
        metadata = context.invocation_metadata()
        release = release_in(metadata)
        if method.enrols:
            async with asyncio.timeout(limits.answer_s):
                if not release.fits(OURS):
                    raise Refusal(grpc.StatusCode.PERMISSION_DENIED, advice_to_participant(release, OURS))
                reply, key = await self._in(self._writer, method.answer, request)
                with self._door.call(context.peer(), key):
                    await self._came_with(key, release)
                    await context.write(reply.SerializeToString())
            return
        async with asyncio.timeout(limits.answer_s):
            key = await self._in(self._readers, self._verified, metadata, name, request)
        with self._door.call(context.peer(), key), self._one_of(key, method):
            async with asyncio.timeout(limits.answer_s):
                await self._came_with(key, release)
            if method.streams:
                return await self._stream(method.answer(request, key), key, context)
            async with asyncio.timeout(limits.answer_s):
                reply = await self._in(self._readers, method.answer, request, key)
                await context.write(reply.SerializeToString())
        self._stuck.over("calls of mos.v1 can be answered again")

    def _verified(self, metadata: Any, name: str, request: Any) -> str:
        try:
            return self._verifier.verify(metadata, name, request)
        except ClockError as error:
            raise Refusal(grpc.StatusCode.FAILED_PRECONDITION, str(error)) from error
        except TrustError as error:
            raise Refusal(grpc.StatusCode.UNAUTHENTICATED, str(error)) from error

    async def _came_with(self, key: str, release: Release) -> None:
        """Record a verified caller's release if it is news, and refuse one that does not fit."""
        if self._releases.get(key) != release:
            participant = f"key {key[:12]}"
            try:
                participant = await self._in(self._writer, self._runs, key, release)
            except StateError as error:  # a full disk: downloads need no write
                self._stuck.report(f"the release of {participant} cannot be recorded: {error}")
            self._releases[key] = release
            if not release.fits(OURS):
                log.warning("%s", advice_to_operator(participant, release, OURS))
            else:
                log.info("%s runs release %s", participant, release.name)
        if not release.fits(OURS):
            raise Refusal(grpc.StatusCode.PERMISSION_DENIED, advice_to_participant(release, OURS))

    @contextmanager
    def _one_of(self, key: str, method: Method) -> Iterator[None]:
        """Count a call for its key while it lasts."""
        kind = (key, method.streams)
        most = self._limits.downloads_per_key if method.streams else self._limits.calls_per_key
        if self._running[kind] >= most:
            what = "downloads" if method.streams else "calls"
            raise Refusal(
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                f"{most} {what} with this key are running already: wait until one has ended",
            )
        self._running[kind] += 1
        try:
            yield
        finally:
            self._running[kind] -= 1
            if not self._running[kind]:
                del self._running[kind]

    async def _stream(self, pieces: Generator[Any], key: str, context: Any) -> None:
        """Send pieces as fast as they are taken, while the caller's key is admitted.

        The file behind them is closed however the call ends, after a read that still runs.
        """
        asked = time.monotonic()
        reading = self._files.submit(next, pieces, None)
        try:
            while (piece := await asyncio.wrap_future(reading)) is not None:
                async with asyncio.timeout(self._limits.piece_s):
                    await context.write(piece.SerializeToString())
                if time.monotonic() - asked > self._limits.barred_after_s:
                    if not await self._in(self._readers, self._admitted, key):
                        raise Refusal(
                            grpc.StatusCode.UNAUTHENTICATED, "this key is no longer admitted: ask the operator"
                        )
                    asked = time.monotonic()
                reading = self._files.submit(next, pieces, None)
        finally:
            reading.add_done_callback(lambda _: pieces.close())

    def _in(self, pool: ThreadPoolExecutor, function: Callable[..., T], *arguments: Any) -> Awaitable[T]:
        return asyncio.get_running_loop().run_in_executor(pool, function, *arguments)

    def _refusal(self, name: str, error: Exception) -> Refusal:
        """Return what a caller is told of an error, and log what the operator has to know."""
        codes = grpc.StatusCode
        if isinstance(error, RequestError):  # an answer like another: all who wait ask for a first model
            return Refusal(codes.INVALID_ARGUMENT, str(error))
        if isinstance(error, Refusal):
            self._refused.add(f"{name}: {error}")
            return error
        if isinstance(error, TimeoutError):
            self._refused.add(f"{name}: not done in time")
            return Refusal(codes.DEADLINE_EXCEEDED, f"{name} took too long: the request, its answer or the download")
        if isinstance(error, StateError):
            self._stuck.report(f"calls of mos.v1 cannot be answered: {error}")
            return Refusal(codes.UNAVAILABLE, "the server cannot answer now, its operator's log says why")
        log.error("%s failed", name, exc_info=not isinstance(error, MosError) and error)
        return Refusal(codes.INTERNAL, f"the server could not answer {name}, its operator's log says why")


class _RefusalLog:
    """Log refused calls, at most once a minute: strangers do not decide how much is written."""

    def __init__(self) -> None:
        self._count, self._logged = 0, float("-inf")

    def add(self, sentence: str) -> None:
        self._count += 1
        if time.monotonic() - self._logged >= _REFUSALS_LOGGED_EVERY_S:
            log.warning("%d calls of mos.v1 refused, the last one: %s", self._count, sentence)
            self._count, self._logged = 0, time.monotonic()


def _parsed(kind: Any, data: Any) -> Any:
    if not isinstance(data, bytes):  # the end of a stream without a request
        raise Refusal(grpc.StatusCode.INVALID_ARGUMENT, "the call has no request")
    try:
        return kind.FromString(data)
    except DecodeError as error:
        raise Refusal(grpc.StatusCode.INVALID_ARGUMENT, "the request cannot be decoded") from error
