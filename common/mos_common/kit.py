"""The kit: one file that an operator sends to one participant, with everything that joining needs.

It holds a one-time token, so it is as secret as a password until it has been used.
"""

from __future__ import annotations

import datetime as dt
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AwareDatetime, ConfigDict, Field

from mos_common.errors import TrustError
from mos_common.files import canonical_json, write_atomically
from mos_common.json_models import JsonModelError, StrictModel, from_json
from mos_common.own.names import Publishes
from mos_common.rotation import STATEMENTS_AT_MOST, Address, Anchors, Certificates, PublicKey, ServerId, Statement
from mos_common.text_files import NotTextError, read_text_file
from mos_common.texts import ShownText

AGAIN = "ask the operator for a new one (mos-server invite)"
MOST_BYTES = 256 << 10  # a kit has some three thousand bytes


class Kit(StrictModel):
    """The contents of a kit file.

    fleet, mos: the two addresses of the server. ca: the certificate of the federation's authority,
    the only one that a participant trusts for this server; two while it is replaced. base: the
    fingerprint of the base model. base_name: the operator's name for it. signing_key: the public
    key that verifies published models. statements: how these two followed earlier ones. publishes:
    `own` if own changes of those who agree are handed out beside the fused model.
    """

    model_config = ConfigDict(frozen=True)
    format: Literal[1] = 1
    server_id: ServerId
    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,31}$")]
    fleet: Address
    mos: Address
    ca: Certificates
    token: Annotated[str, Field(min_length=16, max_length=200)]
    expires: AwareDatetime
    base: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    base_name: Annotated[ShownText, Field(max_length=200)]
    signing_key: PublicKey
    statements: Annotated[tuple[Statement, ...], Field(max_length=STATEMENTS_AT_MOST)] = ()
    publishes: Publishes = "fused"

    @property
    def anchors(self) -> Anchors:
        """Whom a participant with this kit trusts."""
        return Anchors(self.server_id, self.ca, self.signing_key, self.statements)

    def with_anchors(self, anchors: Anchors) -> Kit:
        """Return the kit with other anchors."""
        changed = {"ca": anchors.authority, "signing_key": anchors.signing_key, "statements": anchors.statements}
        return self.model_copy(update=changed)

    def check_valid(self, now: dt.datetime | None = None) -> None:
        """Check that the kit may still be used to enrol.

        Raises:
            TrustError: it has expired.

        """
        if (now or dt.datetime.now(dt.UTC)) >= self.expires:
            raise TrustError(f"this kit expired on {self.expires:%Y-%m-%d %H:%M} UTC: {AGAIN}")


def read_kit(path: Path) -> Kit:
    """Read a kit file.

    Raises:
        TrustError: the file is missing, or it is not a kit.

    """
    try:
        kit = from_json(Kit, read_text_file(path, most=MOST_BYTES))
    except OSError as error:
        raise TrustError(
            f"kit {path} cannot be read ({error.strerror}): give the file that the operator sent"
        ) from error
    except NotTextError as error:
        raise TrustError(f"{path} is not a kit (it {error}): {AGAIN}") from error
    except JsonModelError as error:
        raise TrustError(f"{path} is not a kit ({error}): {AGAIN}") from error
    try:
        kit.anchors.checked()
    except TrustError as error:
        raise TrustError(f"{path} is not a kit ({error}): {AGAIN}") from error
    return kit


def kit_bytes(kit: Kit) -> bytes:
    """Return the content of a kit file.

    Only the kit of a federation whose keys were rotated has statements, and only that of one which
    publishes own changes says so: 0.1.0 reads all others.
    """
    unused = {
        name for name, used in (("statements", kit.statements), ("publishes", kit.publishes == "own")) if not used
    }
    return canonical_json(kit.model_dump(mode="json", exclude=unused)) + b"\n"


def write_kit(kit: Kit, path: Path) -> None:
    """Write a kit file, readable by its owner alone.

    Raises:
        StateError: it cannot be written.

    """
    write_atomically(path, kit_bytes(kit), mode=0o600)
