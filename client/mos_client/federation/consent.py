"""The participant's yes to exactly the bytes of one concept file.

`join --ask` sends no concept file before `consent.json` in the state folder names its digest. The
page writes it when the button is pressed. Pictures or settings that change make another file, and
another question.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mos_client.federation.session import Session
from mos_client.federation.tuned import tuned_already
from mos_common.digests import digest_of_bytes, digest_of_file
from mos_common.errors import NetworkError
from mos_common.files import canonical_json, write_atomically
from mos_common.outage import Outage

CONSENT = "consent.json"
_LOOK_AGAIN_S = 0.5


def consented(state: Path) -> str | None:
    """Return the SHA-256 of the concept file that may be sent, or None."""
    try:
        digest = json.loads((state / CONSENT).read_bytes())["digest"]
        return digest if isinstance(digest, str) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def consent(session: Session, digest: str) -> None:
    """Say yes to the file of a digest.

    Raises:
        StateError: it cannot be written.

    """
    said = {"digest": digest, "own": session.own, "at": time.time()}
    write_atomically(session.state / CONSENT, canonical_json(said) + b"\n", mode=0o600)


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
