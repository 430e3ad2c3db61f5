"""Invite a name: make the kit with which one person joins, once."""

from __future__ import annotations

import datetime as dt
import re

from mos_common.base_names import short_name
from mos_common.errors import RequestError
from mos_common.kit import Kit
from mos_server.state.folder import State
from mos_server.state.journal import Journal

_PARTICIPANT = re.compile(r"[a-z0-9][a-z0-9_-]{0,31}")


def check_name(name: str) -> None:
    """Check that a name can be a participant's: it becomes a part of tokens and of file names.

    Raises:
        RequestError: it cannot.

    """
    if not _PARTICIPANT.fullmatch(name):
        raise RequestError(
            f"participant name {name[:80]!r}: use at most 32 characters: lower-case letters, digits, - and _"
        )


def new_kit(state: State, journal: Journal, name: str, *, valid_s: float, again: bool = False) -> Kit:
    """Return a kit that is good once, for `valid_s` seconds. `again` lets a barred name back in.

    Raises:
        RequestError: the name cannot be one, or was barred and `again` is not said, or the reverse.
        StateError: config.json or the keys cannot be read.

    """
    check_name(name)
    config = state.config
    anchors = state.pki.anchors(config.server_id)
    token, expires = journal.participants.invite(name, valid_s=valid_s, again=again)
    return Kit(
        server_id=config.server_id,
        name=name,
        fleet=config.fleet_address,
        mos=config.mos_address,
        ca=anchors.authority,
        token=token,
        expires=dt.datetime.fromtimestamp(int(expires), dt.UTC),
        base=config.base_fingerprint,
        # The path of a local folder is the operator's business: kits carry only its name.
        base_name=short_name(config.base),
        signing_key=anchors.signing_key,
        statements=anchors.statements,
        publishes=config.publishes,
    )
