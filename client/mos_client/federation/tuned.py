"""The concept file of a session: tuned once, then answered from the state folder."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mos_client.federation.rekey import rekey_session
from mos_client.federation.session import Session

OnStep = Callable[[Any], None]
TUNING = threading.Lock()


def tuned_file(session: Session, on_step: OnStep = lambda step: None, begun: threading.Event | None = None) -> Path:
    """Return the concept file, tuned now if it never was; a second caller waits for the first.

    `begun` is set as soon as this call is the one that tunes, so that it can show the progress.

    Raises:
        BaseModelError: the participant's base is not the operator's model; nothing is tuned on it.
        MosError: as `tune_folder` raises.

    """
    with TUNING:
        if begun is not None:
            begun.set()
        path = session.cached()
        if path.is_file():
            return path
        from mos_client.tuning.tune_folder import tune_folder
        from mos_common.base_model import load_base

        request = session.request
        base = load_base(request.base, device=request.device, dtype=request.dtype)
        path = rekey_session(session, base).cached()
        if path.is_file():
            return path
        return tune_folder(request, path, work=session.tuning, base=base, on_step=on_step)
