"""What a participant's state folder pinned: the name it joined under, and whom it trusts.

`trust.json` is written before a kit is used for the first time. From then on a kit may change
addresses, and nothing else: other anchors need rotation statements that lead from the pinned ones.
`kit.json` repeats the anchors, so that either file can be lost.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from filelock import FileLock, Timeout
from pydantic import Field

from mos_common.errors import StateError, TrustError
from mos_common.files import canonical_json, could_not_write, write_atomically
from mos_common.json_models import JsonModelError, StrictModel, from_json
from mos_common.kit import Kit, read_kit
from mos_common.rotation import Anchors, Certificates, PublicKey, ServerId, Statement, read_history

TRUST, KIT = "trust.json", "kit.json"
OPERATORS_KEY = Path("pki") / "signing.pub"
_LOCK, _LOCK_WAIT_S = ".trust.lock", 10.0


@dataclass(frozen=True)
class Pins:
    """The participant of a state folder, and the anchors that it trusts."""

    participant: str
    anchors: Anchors


class _File(StrictModel):
    """The contents of `trust.json`."""

    format: Literal[1] = 1
    participant: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,31}$")]
    server_id: ServerId
    authority: Certificates
    signing_key: PublicKey
    statements: tuple[Statement, ...] = ()


def read_pins(state: Path) -> Pins | None:
    """Return what a state folder pinned; None if it pinned nothing yet.

    Raises:
        TrustError: `trust.json` is damaged.

    """
    path = state / TRUST
    if not os.path.lexists(path):  # a link to nowhere is damage, too
        return None
    try:
        file = from_json(_File, path.read_bytes())
        anchors = Anchors(file.server_id, file.authority, file.signing_key, file.statements).checked()
    except (OSError, JsonModelError, TrustError) as error:
        reason = str(error).splitlines()[0]
        raise TrustError(
            f"{path}, which says whom this folder trusts, cannot be used ({reason}): restore it from a copy"
        ) from error
    return Pins(file.participant, anchors)


def write_pins(pins: Pins, state: Path) -> None:
    """Write `trust.json`.

    Raises:
        StateError: it cannot be written.

    """
    anchors = pins.anchors
    file = _File(
        participant=pins.participant,
        server_id=anchors.server_id,
        authority=anchors.authority,
        signing_key=anchors.signing_key,
        statements=anchors.statements,
    )
    write_atomically(state / TRUST, canonical_json(file.model_dump(mode="json")) + b"\n", mode=0o600)


@contextmanager
def changing_pins(state: Path) -> Iterator[None]:
    """Hold the lock under which the pins of a state folder are read, compared and written.

    Raises:
        StateError: another process holds it for long, or the folder cannot be written.

    """
    lock = FileLock(state / _LOCK, timeout=_LOCK_WAIT_S)
    try:
        state.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout as error:
        raise StateError(f"another process is changing {state / TRUST}: try again when it has ended") from error
    except OSError as error:
        raise could_not_write(state, error) from error
    try:
        yield
    finally:
        lock.release()


def trusted_keys(kit: Kit, state: Path | None = None) -> tuple[str, ...]:
    """Return the public keys (PEM) whose models are trusted, newest first.

    `state` is the participant's folder, if there is one: what it has pinned counts, and the kit
    may only continue it.

    Raises:
        TrustError: the statements of the kit do not lead to its keys, or not from those pinned.

    """
    pins = read_pins(state) if state is not None else None
    anchors = kit.anchors.checked()
    return (pins.anchors.joined(anchors) if pins is not None else anchors).signing_keys


def state_keys(state: Path) -> tuple[str, ...] | None:
    """Return the keys (PEM) whose models a state folder trusts, newest first.

    That is a participant's or the operator's own; None if the folder is neither.

    Raises:
        TrustError: it is one, and what it trusts cannot be read.

    """
    if is_operators(state):
        return _operators_keys(state)
    if not any(os.path.lexists(state / name) for name in (TRUST, KIT)):
        return None
    try:
        pins = read_pins(state)
    except TrustError:
        return read_kit(state / KIT).anchors.signing_keys  # it repeats the anchors
    if pins is None:
        return read_kit(state / KIT).anchors.signing_keys
    try:
        kit = read_kit(state / KIT)
    except TrustError:  # lost or damaged: the pins alone will do
        return pins.anchors.signing_keys
    return trusted_keys(kit, state)


def is_operators(state: Path) -> bool:
    """Return whether a folder is a server's state folder."""
    return (state / OPERATORS_KEY).is_file() and (state / "config.json").is_file()


def _operators_keys(state: Path) -> tuple[str, ...]:
    rotations = state / "pki" / "rotations.json"
    try:
        first = (state / OPERATORS_KEY).read_text(encoding="utf-8")
        statements = read_history(rotations.read_bytes()) if rotations.is_file() else ()
    except (OSError, ValueError) as error:
        raise TrustError(f"the keys in {state / 'pki'} cannot be read ({error}): restore them from a backup") from error
    keys = [key for each in reversed(statements) for key in (each.signing_key, each.signed_by)]
    return tuple(dict.fromkeys([*keys, first]))
