"""Compare a kit with a state folder, before either is used or changed.

A folder that has been used belongs to one participant of one federation. What it pinned
(`mos_common.trust`) survives the loss of any one of its files, and no kit replaces it: a kit may
bring other addresses, and anchors that the pinned key has signed.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Sequence
from pathlib import Path

from mos_common.errors import StateError, TrustError
from mos_common.kit import Kit, read_kit
from mos_common.rotation import Anchors, Statement
from mos_common.trust import KIT, TRUST, Pins, changing_pins, read_pins, write_pins

log = logging.getLogger(__name__)
ENROLLED, NODE_KEY = "enrolled.json", "node_key"


def check_kit(kit: Kit, state: Path) -> Pins:
    """Check that a kit and a state folder go together; return what is pinned with both known.

    Nothing is written. A new folder needs a kit that is still valid; one that was used needs a kit
    for the same participant of the same federation.

    Raises:
        TrustError: the kit has expired, or is not for the participant of this state folder.
        StateError: the folder is a server's, cannot be read, or cannot say whom it trusts.

    """
    if (state / "config.json").is_file() and (state / "pki").is_dir():
        raise StateError(f"{state} is a server's state folder: give a participant another --state folder")
    pins = pinned(state)
    if not has_joined(state):
        kit.check_valid()
    if pins is None:
        return Pins(kit.name, kit.anchors.checked())
    return _continued(kit, pins, state)


def has_joined(state: Path) -> bool:
    """Return whether a state folder says that it has joined, even if it cannot be read."""
    return os.path.lexists(state / ENROLLED)


def pinned(state: Path) -> Pins | None:
    """Return what a state folder pinned; None if it was never used with a kit.

    Folders of earlier releases have their anchors in `kit.json` alone.

    Raises:
        StateError: its files name two participants or two federations, or nothing says whom it
            trusts.

    """
    owner = participant_of(state) if has_joined(state) else None
    kept, pins = kept_kit(state), _pins(state)
    if pins is None and kept is not None:
        return Pins(owner or kept.name, kept.anchors)
    if pins is None:
        if owner is not None or os.path.lexists(state / KIT):
            raise StateError(
                f"{state} has been used{f' by {owner}' if owner else ''}, and nothing says whom it trusts: {TRUST} and "
                f"{KIT} are lost or damaged. No kit can replace them: put one back from a copy, or join anew with a "
                "new kit and another --state folder"
            )
        return None
    if owner is not None and owner != pins.participant:
        raise StateError(
            f"{state / ENROLLED} says {owner}, {state / TRUST} says {pins.participant}: put the folder back from a "
            "copy, or join anew with a new kit and another --state folder"
        )
    return pins if kept is None else Pins(pins.participant, _agreed(pins.anchors, kept, state))


def adopt(state: Path, pins: Pins, statements: Sequence[Statement] = ()) -> Pins:
    """Pin what was checked, and the statements that go on from it; return what is pinned then.

    Raises:
        TrustError: the statements do not go on from what is pinned now.
        StateError: it cannot be written.

    """
    with changing_pins(state):
        now = _pins(state)
        if now is not None and now.participant != pins.participant:
            raise TrustError(
                f"{state} has just been taken by {now.participant}: give {pins.participant} another --state"
            )
        anchors = pins.anchors if now is None else now.anchors.joined(pins.anchors)
        adopted = Pins(pins.participant, anchors.extended(statements))
        if adopted != now:
            write_pins(adopted, state)
    return adopted


def participant_of(state: Path) -> str:
    """Return the name under which a state folder has joined.

    Raises:
        StateError: it has not.

    """
    try:
        return str(json.loads((state / ENROLLED).read_bytes())["participant"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StateError(f"{state} has not joined a federation: run mos-client join with a kit") from error


def kept_kit(state: Path) -> Kit | None:
    """Return the kit in a state folder, or None if it is lost or damaged."""
    try:
        return read_kit(state / KIT)
    except TrustError:
        return None


def _pins(state: Path) -> Pins | None:
    try:
        return read_pins(state)
    except TrustError as error:
        if kept_kit(state) is None:
            raise
        log.warning("%s; %s says the same and is used instead", error, state / KIT)
        return None


def _agreed(anchors: Anchors, kept: Kit, state: Path) -> Anchors:
    """Return the later anchors of the two files, of which one may be behind."""
    try:
        return anchors.joined(kept.anchors)
    except TrustError as error:
        raise StateError(
            f"{state / TRUST} and {state / KIT} disagree about whom {state} trusts ({error}): put the folder back from "
            "a copy, or join anew with a new kit and another --state folder"
        ) from error


def _continued(kit: Kit, pins: Pins, state: Path) -> Pins:
    """Return the pins as the kit continues them."""
    kept, ours = kept_kit(state), pins.anchors
    if kit.server_id != ours.server_id:
        where = f" at {kept.mos}" if kept is not None else ""
        raise TrustError(
            f"{state} belongs to another federation than this kit: it is {pins.participant}'s{where} "
            f"({ours.server_id[:8]}), the kit is for {kit.name} at {kit.mos} ({kit.server_id[:8]}). "
            "Nothing was changed: give another --state folder"
        )
    if kit.name != pins.participant:
        raise TrustError(
            f"this state folder is {pins.participant}'s ({state}), the kit is for {kit.name}: give another --state. "
            "Nothing was changed, and the kit is not used"
        )
    try:
        anchors = ours.joined(kit.anchors)
    except TrustError as error:
        raise TrustError(
            f"the kit names the federation of {state}, but {error}: it is not by the operator whose federation you "
            "joined, or the federation was made anew. Nothing was changed: ask the operator, and give another --state "
            "for another federation"
        ) from error
    # Fingerprints of one rule end alike; those of two rules need the open base to compare.
    if kept is not None and kit.base != kept.base and kit.base[-8:] == kept.base[-8:]:
        raise TrustError(
            f"the kit is for base model {kit.base[:12]} ({kit.base_name}), {state} is for {kept.base[:12]} "
            f"({kept.base_name}): ask the operator which one the federation fuses on. Nothing was changed"
        )
    return Pins(pins.participant, anchors)
