"""The kit: one file that an operator sends to one participant, with everything that joining needs.

It holds a one-time token, so it is as secret as a password until it has been used.
"""

from __future__ import annotations

import datetime as dt
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mos_common.errors import TrustError
from mos_common.files import canonical_json, write_atomically
from mos_common.text_files import NotTextError, read_text_file

Address = Annotated[str, Field(pattern=r"^\S+:\d{1,5}$", max_length=300)]
AGAIN = "ask the operator for a new one (mos-server invite)"


class Kit(BaseModel):
    """The contents of a kit file.

    fleet, mos: the two addresses of the server. ca: the certificate of the federation's authority,
    the only one that a participant trusts for this server. base: the fingerprint of the base model.
    base_name: the operator's name for it. signing_key: the public key that verifies published
    models.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    format: Literal[1] = 1
    server_id: Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,31}$")]
    fleet: Address
    mos: Address
    ca: Annotated[str, Field(pattern=r"^-----BEGIN CERTIFICATE-----", max_length=20_000)]
    token: Annotated[str, Field(min_length=16, max_length=200)]
    expires: dt.datetime
    base: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    base_name: Annotated[str, Field(max_length=200)]
    signing_key: Annotated[str, Field(pattern=r"^-----BEGIN PUBLIC KEY-----", max_length=2_000)]

    def check_valid(self, now: dt.datetime | None = None) -> None:
        """Check that the kit may still be used to enrol.

        Raises:
            TrustError: it has expired.

        """
        if (now or dt.datetime.now(dt.UTC)) >= self.expires:
            raise TrustError(f"this kit expired on {self.expires:%Y-%m-%d %H:%M} UTC: {AGAIN}")

    def check_continues(self, kept: Kit, owner: str, state: Path) -> None:
        """Check that this kit is for the participant whose state folder has the kit `kept`.

        A new kit for the same participant may have other addresses, another token and another day
        of expiry: the operator moved the server, or made the kit again.

        Raises:
            TrustError: it is for somebody else, or of another federation; both are named.

        """
        if self.server_id != kept.server_id:
            raise TrustError(
                f"{state} belongs to another federation than this kit: it is {owner}'s at {kept.mos} "
                f"({kept.server_id[:8]}), the kit is for {self.name} at {self.mos} ({self.server_id[:8]}). "
                "Nothing was changed: give another --state folder"
            )
        if self.name != owner:
            raise TrustError(
                f"this state folder is {owner}'s ({state}), the kit is for {self.name}: give another --state. "
                "Nothing was changed, and the kit is not used"
            )
        for name, ours, theirs in (
            ("certificate", kept.ca, self.ca),
            ("signing key", kept.signing_key, self.signing_key),
        ):
            if ours.split() != theirs.split():
                raise TrustError(
                    f"the kit names the federation of {state} and has another {name}: it is not by the operator "
                    "whose federation you joined, or the federation was made anew. Nothing was changed: ask the "
                    "operator, and give another --state for another federation"
                )
        # Fingerprints of one rule end alike; those of two rules need the open base to compare.
        if self.base != kept.base and self.base[-8:] == kept.base[-8:]:
            raise TrustError(
                f"the kit is for base model {self.base[:12]} ({self.base_name}), {state} is for {kept.base[:12]} "
                f"({kept.base_name}): ask the operator which one the federation fuses on. Nothing was changed"
            )


def read_kit(path: Path) -> Kit:
    """Read a kit file.

    Raises:
        TrustError: the file is missing, or it is not a kit.

    """
    try:
        kit = Kit.model_validate_json(read_text_file(path))
    except OSError as error:
        raise TrustError(
            f"kit {path} cannot be read ({error.strerror}): give the file that the operator sent"
        ) from error
    except NotTextError as error:
        raise TrustError(f"{path} is not a kit (it {error}): {AGAIN}") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise TrustError(f"{path} is not a kit ({where}: {first['msg']}): {AGAIN}") from error
    if kit.expires.tzinfo is None:
        raise TrustError(f"{path} is not a kit (expires has no time zone): {AGAIN}")
    return kit


def write_kit(kit: Kit, path: Path) -> None:
    """Write a kit file, readable by its owner alone.

    Raises:
        StateError: it cannot be written.

    """
    write_atomically(path, canonical_json(kit.model_dump(mode="json")) + b"\n", mode=0o600)
