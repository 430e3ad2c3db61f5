"""Become a member with a kit: make a key, and trade the kit's one-time token for its admission."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from cryptography.hazmat.primitives.asymmetric import ec

from mos_common import mos_pb2, mos_pb2_grpc
from mos_common.errors import NetworkError, RequestError, StateError, TrustError
from mos_common.files import canonical_json, write_atomically
from mos_common.kit import Kit, read_kit, write_kit
from mos_common.node_key import create_node_key, load_node_key, prove, public_pem
from mos_common.outage import Outage

log = logging.getLogger(__name__)
ENROLLED, KIT, NODE_KEY = "enrolled.json", "kit.json", "node_key"
CALL_S = 20.0
LONGEST_PAUSE_S = 30.0
_UNREACHABLE = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
Say = Callable[[str], None]


@dataclass(frozen=True)
class Enrolment:
    """Membership: the participant's name at the server, its key, and the kit with the addresses."""

    participant: str
    key: ec.EllipticCurvePrivateKey
    kit: Kit


def enrol(kit: Kit, state: Path, say: Say = log.info, *, patient: bool = True) -> Enrolment:
    """Become a member, or return the membership there is.

    Wait for a server that cannot be reached, unless `patient` is False.

    Raises:
        TrustError: the kit is expired, used, or not for the participant of this state folder.
        NetworkError: the server cannot be reached, and `patient` is False.

    """
    check_kit(kit, state)
    if (state / ENROLLED).exists():
        participant, kept = _participant(state), _kept_kit(state)
        if kept is not None and (kit.mos, kit.fleet) != (kept.mos, kept.fleet):
            say(f"the server is at {kit.mos} and {kit.fleet} by this kit, no longer at {kept.mos}")
        if kit != kept:
            write_kit(kit, state / KIT)
        return Enrolment(participant, load_node_key(state / NODE_KEY), kit)
    key = load_node_key(state / NODE_KEY) if (state / NODE_KEY).exists() else create_node_key(state / NODE_KEY)
    request = mos_pb2.EnrolRequest(token=kit.token, public_key=public_pem(key), proof=prove(key, kit.token))
    with calling(kit) as stub:
        participant = str(waiting(lambda: stub.Enrol(request, timeout=CALL_S), kit, say, patient=patient).participant)
    write_kit(kit, state / KIT)
    write_atomically(state / ENROLLED, canonical_json({"participant": participant}) + b"\n")
    return Enrolment(participant, key, kit)


def check_kit(kit: Kit, state: Path) -> None:
    """Check that a kit and a state folder go together, before either is used or changed.

    A new folder needs a kit that is still valid; one that has joined needs a kit for the same
    participant of the same federation.

    Raises:
        TrustError: the kit has expired, or is not for the participant of this state folder.
        StateError: the folder is a server's, or cannot be read.

    """
    if (state / "config.json").is_file() and (state / "pki").is_dir():
        raise StateError(f"{state} is a server's state folder: give a participant another --state folder")
    if (state / ENROLLED).exists():
        kept = _kept_kit(state)
        if kept is None:  # only the name is left to compare
            log.warning("%s is lost or damaged: using the kit that was given", state / KIT)
        kit.check_continues(kept or kit, _participant(state), state)
        return
    if (state / KIT).exists():
        kept = read_kit(state / KIT)
        kit.check_continues(kept, kept.name, state)
    kit.check_valid()


def read_enrolment(state: Path) -> Enrolment:
    """Return the membership in a state folder.

    Raises:
        StateError: there is none.

    """
    return Enrolment(_participant(state), load_node_key(state / NODE_KEY), read_kit(state / KIT))


def _participant(state: Path) -> str:
    try:
        return str(json.loads((state / ENROLLED).read_bytes())["participant"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StateError(f"{state} has not joined a federation: run mos-client join with a kit") from error


def _kept_kit(state: Path) -> Kit | None:
    """Return the kit in a state folder, or None if it is lost or damaged."""
    try:
        return read_kit(state / KIT)
    except TrustError:
        return None


@contextmanager
def calling(kit: Kit) -> Iterator[Any]:
    """Yield a stub of the server's `mos.v1`, over TLS that trusts the kit's authority alone."""
    channel = grpc.secure_channel(kit.mos, grpc.ssl_channel_credentials(kit.ca.encode()))
    try:
        yield mos_pb2_grpc.MosStub(channel)  # type: ignore[no-untyped-call]
    finally:
        channel.close()


def waiting(call: Callable[[], Any], kit: Kit, say: Say, *, patient: bool = True) -> Any:
    """Return the answer of `call`; retry with growing pauses while the server cannot be reached.

    Raises:
        NetworkError: it cannot be reached and `patient` is False, or it reports another error.
        TrustError: it refuses this participant.
        RequestError: it does not have what was asked for.

    """
    pause_s, away = 1.0, Outage(say)
    while True:
        try:
            answer = call()
        except grpc.RpcError as error:
            if error.code() not in _UNREACHABLE or not patient:
                raise explained(error, kit) from error
            away.report(f"the server at {kit.mos} cannot be reached ({reason(error)}): waiting for it, Ctrl-C stops")
            threading.Event().wait(pause_s)
            pause_s = min(pause_s * 1.5, LONGEST_PAUSE_S)
            continue
        away.over(f"the server at {kit.mos} is reachable again")
        return answer


def explained(error: Any, kit: Kit) -> NetworkError | TrustError | RequestError:
    """Return the error to raise for a gRPC error, in plain words."""
    code, details = error.code(), error.details() or ""
    if code in _UNREACHABLE:
        return NetworkError(
            f"the server at {kit.mos} cannot be reached ({reason(error)}): "
            "is it running, and is this the right network?"
        )
    if code in (grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.UNAUTHENTICATED):
        return TrustError(f"the server refuses: {details}")
    if code == grpc.StatusCode.NOT_FOUND:
        return RequestError(f"the server says: {details}")
    return NetworkError(f"the server at {kit.mos} answered {code.name}: {details}")


def reason(error: Any) -> str:
    """Return why a server cannot be reached, in a few words."""
    details = str(error.details() or error.code().name)
    if "CERTIFICATE_VERIFY_FAILED" in details:
        return "its certificate is not the one of the kit: another server, or someone in between"
    if error.code() == grpc.StatusCode.DEADLINE_EXCEEDED:
        return "no answer in time"
    known = {"Connection refused": "connection refused", "DNS resolution failed": "no such name in the DNS"}
    return next((words for text, words in known.items() if text in details), "no connection")
