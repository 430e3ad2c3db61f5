"""Become a member with a kit: make a key, and trade the kit's one-time token for its admission."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec

from mos_client.federation.calling import CALL_S, Say, calling, waiting
from mos_client.federation.pinning import (
    ENROLLED,
    NODE_KEY,
    adopt,
    check_kit,
    has_joined,
    kept_kit,
    participant_of,
    pinned,
)
from mos_common import mos_pb2
from mos_common.errors import TrustError
from mos_common.files import canonical_json, write_atomically
from mos_common.kit import Kit, read_kit, write_kit
from mos_common.node_key import create_node_key, load_node_key, prove, public_pem
from mos_common.trust import KIT, TRUST, Pins

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Enrolment:
    """Membership: the participant's name at the server, its key, and the kit with the addresses."""

    participant: str
    key: ec.EllipticCurvePrivateKey
    kit: Kit

    @property
    def trusted_keys(self) -> tuple[str, ...]:
        """The keys whose models are trusted, newest first."""
        return self.kit.anchors.signing_keys


def enrol(kit: Kit, state: Path, say: Say = log.info, *, patient: bool = True) -> Enrolment:
    """Become a member, or return the membership there is, at the addresses of the kit.

    Wait for a server that cannot be reached, unless `patient` is False.

    Raises:
        TrustError: the kit is expired, used, or not for the participant of this state folder.
        NetworkError: the server cannot be reached, and `patient` is False.
        ReleaseError: its release does not fit this one.

    """
    pins = check_kit(kit, state)
    if has_joined(state):
        return _member_again(kit, adopt(state, pins), state, say)
    unpinned = pinned(state) is None
    kit = kit.with_anchors(adopt(state, pins).anchors)  # before the token is used: nobody else's kit fits from now on
    key = load_node_key(state / NODE_KEY) if os.path.lexists(state / NODE_KEY) else create_node_key(state / NODE_KEY)
    request = mos_pb2.EnrolRequest(token=kit.token, public_key=public_pem(key), proof=prove(key, kit.token))
    try:
        with calling(kit) as stub:
            answer = waiting(lambda: stub.Enrol(request, timeout=CALL_S), kit, say, patient=patient)
    except TrustError:
        if unpinned:
            (state / TRUST).unlink(missing_ok=True)  # refused: the folder is nobody's yet
        raise
    if answer.participant != pins.participant:
        raise TrustError(
            f"the kit is for {pins.participant}, the server admits its token as {answer.participant[:40]!r}: ask the "
            "operator for a new kit, and give another --state folder"
        )
    write_kit(kit, state / KIT)
    write_atomically(state / ENROLLED, canonical_json({"participant": pins.participant}) + b"\n")
    return Enrolment(pins.participant, key, kit)


def _member_again(given: Kit, pins: Pins, state: Path, say: Say) -> Enrolment:
    """Return the membership there is; of the kit that was given only its addresses are kept."""
    key, kept = load_node_key(state / NODE_KEY), kept_kit(state)
    if kept is not None and kept.name != pins.participant:
        kept = None  # 0.1.0 took anybody's kit
    kit = (kept or given).with_anchors(pins.anchors)
    older = len(given.statements) < len(pins.anchors.statements)
    if kept is not None and not older and (given.mos, given.fleet) != (kept.mos, kept.fleet):
        say(f"the server is at {given.mos} and {given.fleet} by this kit, no longer at {kept.mos}")
        kit = kit.model_copy(update={"mos": given.mos, "fleet": given.fleet})
    if kit != kept:
        write_kit(kit, state / KIT)
    return Enrolment(pins.participant, key, kit)


def read_enrolment(state: Path) -> Enrolment:
    """Return the membership in a state folder.

    Raises:
        StateError: there is none.

    """
    participant, pins = participant_of(state), pinned(state)
    assert pins is not None  # a folder that has joined has pins, or is an error
    kit = read_kit(state / KIT).with_anchors(pins.anchors)
    return Enrolment(participant, load_node_key(state / NODE_KEY), kit)
