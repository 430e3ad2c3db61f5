"""The participant's yes to exactly the bytes of one concept file.

`join --ask` sends no concept file before `consent.json` in the state folder names its digest. The
page writes it when the button is pressed. Pictures or settings that change make another file, and
another question.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic import ConfigDict

from mos_client.federation.session import Session
from mos_client.federation.tuned import tuned_already
from mos_common.digests import digest_of_bytes, digest_of_file
from mos_common.errors import NetworkError
from mos_common.files import write_atomically
from mos_common.json_models import JsonModelError, Sha256, StrictModel, from_json
from mos_common.outage import Outage

CONSENT = "consent.json"
_LOOK_AGAIN_S = 0.5


class Consent(StrictModel):
    """A yes to the file of this SHA-256.

    `own`: its own changes may be published too. `at` is in seconds since 1970.
    """

    model_config = ConfigDict(frozen=True)
    digest: Sha256
    own: bool
    at: float


def read_consent(state: Path) -> Consent | None:
    """Return the participant's yes, or None if there is none."""
    try:
        return from_json(Consent, (state / CONSENT).read_text(encoding="utf-8"))
    except (OSError, UnicodeError, JsonModelError):
        return None


def consented(state: Path) -> str | None:
    """Return the SHA-256 of the concept file that may be sent, or None."""
    given = read_consent(state)
    return given.digest if given else None


def consent(session: Session, digest: str) -> None:
    """Say yes to the file of a digest.

    Raises:
        StateError: it cannot be written.

    """
    said = Consent(digest=digest, own=session.own, at=time.time())
    write_atomically(session.state / CONSENT, said.model_dump_json().encode() + b"\n", mode=0o600)


def take_back(state: Path) -> None:
    """Take the yes back: nothing is sent from now on."""
    (state / CONSENT).unlink(missing_ok=True)


def await_consent(session: Session, reply: Any, stop: threading.Event, say: Callable[[str], None]) -> None:
    """Return as soon as there is a yes to the concept file in `reply`; at once if it has none.

    Raises:
        NetworkError: it was interrupted, or the file in the reply is no longer the one to be sent.

    """
    from mos_common.messages import CONCEPT, read_upload

    if CONCEPT not in reply.content:
        return
    digest = digest_of_bytes(read_upload(reply.content).data)
    asked = Outage(say)
    while consented(session.state) != digest:
        asked.report("nothing is sent before you agree to exactly these bytes: mos-client open has the button")
        current = tuned_already(session)
        if stop.wait(_LOOK_AGAIN_S) or current is None or digest_of_file(current) != digest:
            raise NetworkError("you were asked for your consent, and it was not given to this file: nothing was sent")
