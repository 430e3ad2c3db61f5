"""Call `mos.v1`: over TLS that trusts the kit's authority alone, with our release at every call.

A server that cannot be reached, or is busy, is waited for. One whose release does not fit ours is
an error before anything else is done with it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import grpc

from mos_client.federation.certificate_names import other_names
from mos_common import mos_pb2_grpc
from mos_common.errors import NetworkError, ReleaseError, RequestError, TrustError
from mos_common.kit import Kit
from mos_common.outage import RETRY_AFTER, Outage, in_words
from mos_common.release import OURS, advice_to_participant, release_in, release_metadata
from mos_common.texts import visible

_OTHER_NAME = "Hostname Verification Check failed"  # gRPC's words
Say = Callable[[str], None]
CALL_S = 20.0
# A server counts by the hour.
_LONGEST_WAIT_S = 3600.0
LONGEST_PAUSE_S = 30.0
_UNREACHABLE = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
# What a server says of itself or of the two clocks, and what passes.
_NOT_NOW = (grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.FAILED_PRECONDITION)
# Codes that come from a server that has read the call. The others may come from gRPC itself.
_ANSWERS = (
    grpc.StatusCode.OK,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.PERMISSION_DENIED,
    grpc.StatusCode.UNAUTHENTICATED,
)
_OPTIONS = [
    # Is the line still there? Asked while a call lasts.
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 20_000),
]


class ComeAgainError(NetworkError):
    """The server answers again after `after_s`."""

    def __init__(self, text: str, after_s: float) -> None:
        super().__init__(text)
        self.after_s = after_s


@contextmanager
def calling(kit: Kit) -> Iterator[Any]:
    """Yield a stub of the server's `mos.v1`, which raises ReleaseError if releases do not fit."""
    credentials = grpc.ssl_channel_credentials(kit.ca.encode())
    channel = grpc.secure_channel(kit.mos, credentials, options=_OPTIONS)
    try:
        yield mos_pb2_grpc.MosStub(  # type: ignore[no-untyped-call]
            grpc.intercept_channel(channel, _SaysRelease())
        )
    finally:
        channel.close()


def waiting(call: Callable[[], Any], kit: Kit, say: Say, *, patient: bool = True) -> Any:
    """Return the answer of `call`; retry with growing pauses while the server cannot answer.

    Raises:
        NetworkError: it cannot be reached or is busy and `patient` is False, or it reports another
            error.
        TrustError: it refuses this participant.
        ReleaseError: its release does not fit.
        RequestError: it does not have what was asked for.

    """
    pause_s, away = 1.0, Outage(say)
    while True:
        try:
            answer = call()
        except grpc.RpcError as error:
            if error.code() not in _UNREACHABLE + _NOT_NOW or not patient:
                raise explained(error, kit) from error
            away.report(f"{_trouble(error, kit)}: waiting for it, Ctrl-C stops")
            threading.Event().wait(pause_s)
            pause_s = min(pause_s * 1.5, LONGEST_PAUSE_S)
            continue
        away.over(f"the server at {kit.mos} is reachable again")
        return answer


def explained(error: Any, kit: Kit) -> NetworkError | TrustError | RequestError:
    """Return the error to raise for a gRPC error, in plain words."""
    code, details = error.code(), visible(error.details() or "")
    if code in _UNREACHABLE:
        return NetworkError(f"{_trouble(error, kit)}: is it running, and is this the right network?")
    if code in _NOT_NOW:
        return _busy(error, kit)
    if code == grpc.StatusCode.CANCELLED:
        return NetworkError(f"the server at {kit.mos} has sent nothing for a while")
    if code in (grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.UNAUTHENTICATED):
        return TrustError(f"the server refuses: {details}")
    if code == grpc.StatusCode.NOT_FOUND:
        return RequestError(f"the server says: {details}")
    return NetworkError(f"the server at {kit.mos} answered {code.name}: {details}")


def reason(error: Any, kit: Kit) -> str:
    """Return why a server cannot be reached, in a few words."""
    details = str(error.details() or error.code().name)
    if _OTHER_NAME in details and (names := other_names(kit)):
        host = kit.mos.rpartition(":")[0]
        return f"its certificate is not for {host}, by which the kit calls it: it is for {names}; ask the operator"
    if "CERTIFICATE_VERIFY_FAILED" in details:
        return (
            "its certificate is not the one of the kit: another server, someone in between, or the operator changed it "
            "while you were away, and you need a new kit"
        )
    if error.code() == grpc.StatusCode.DEADLINE_EXCEEDED:
        return "no answer in time"
    known = {"Connection refused": "connection refused", "DNS resolution failed": "no such name in the DNS"}
    return next((words for text, words in known.items() if text in details), "no connection")


def _busy(error: Any, kit: Kit) -> NetworkError:
    """Return the error to raise for a server that does not answer now, and may say when it will."""
    said = str(dict(error.trailing_metadata() or ()).get(RETRY_AFTER, ""))
    if not said.isdecimal():
        return NetworkError(f"{_trouble(error, kit)}: try again later")
    after_s = min(float(said[:9]), _LONGEST_WAIT_S)
    return ComeAgainError(f"{_trouble(error, kit)}: try again in {in_words(after_s)}", after_s)


def _trouble(error: Any, kit: Kit) -> str:
    """Return what is the matter with a server that does not answer now."""
    if error.code() in _UNREACHABLE and not error.initial_metadata():
        return f"the server at {kit.mos} cannot be reached ({reason(error, kit)})"
    return f"the server at {kit.mos} cannot answer now ({visible(error.details() or error.code().name)})"


class _CallDetails(
    NamedTuple(
        "_CallDetails",
        [
            ("method", str),
            ("timeout", Any),
            ("metadata", Any),
            ("credentials", Any),
            ("wait_for_ready", Any),
            ("compression", Any),
        ],
    ),
    grpc.ClientCallDetails,
):
    """The details of a call, as gRPC wants them from an interceptor."""


class _SaysRelease(grpc.UnaryUnaryClientInterceptor, grpc.UnaryStreamClientInterceptor):
    """Say our release at every call, and read the server's in each answer that is no download."""

    def intercept_unary_unary(self, continuation: Any, details: Any, request: Any) -> Any:
        """Make a call, and check that the server that answers it fits."""
        call = continuation(_with_release(details), request)
        said = call.initial_metadata() or ()
        if said or call.code() in _ANSWERS:
            server = _release_of_server(said)
            if not OURS.fits(server):
                raise ReleaseError(advice_to_participant(OURS, server))
        return call

    def intercept_unary_stream(self, continuation: Any, details: Any, request: Any) -> Any:
        """Begin a download: it was described before, by a server that fits."""
        return continuation(_with_release(details), request)


def _with_release(details: Any) -> _CallDetails:
    metadata = (*(details.metadata or ()), *release_metadata())
    return _CallDetails(
        details.method,
        details.timeout,
        metadata,
        details.credentials,
        details.wait_for_ready,
        details.compression,
    )


def _release_of_server(metadata: Any) -> Any:
    try:
        return release_in(metadata)
    except RequestError as error:
        raise ReleaseError(
            "the server does not say clearly which release it is: ask the operator which one to install"
        ) from error
