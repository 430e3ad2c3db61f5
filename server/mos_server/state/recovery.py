"""Tidy up after a server that was killed: erase what was never finished, or was withdrawn."""

from __future__ import annotations

import logging
import shutil
import time
from pathlib import Path

from mos_common.files import could_not_write
from mos_server.state.artefacts import FOLDERS
from mos_server.state.folder import State
from mos_server.state.journal import Journal
from mos_server.state.published import is_model_of
from mos_server.state.records import PUBLISHED

log = logging.getLogger(__name__)

# `mos-server fuse --state` may be writing moments at this moment.
_HALF_WRITTEN_AFTER_S = 3600.0


def tidy(state: State, journal: Journal) -> None:
    """Erase what a kill left behind; what the journal knows as kept or published stays.

    Those are: files and folders that were being written beside their place; concepts that were
    withdrawn but not yet erased, or spooled but not yet journalled (their owners are asked again);
    and signed models of rounds that ended without publishing them.

    Raises:
        StateError: something cannot be erased, or the journal cannot be read.

    """
    for folder in FOLDERS:
        for half in (state.path / folder).rglob(".*"):
            if _is_old(half):
                log.info("erased %s, which was never finished", half)
                _erase(half)
    for digest in state.artefacts.concepts():
        if not journal.uploads.is_kept(digest) and journal.uploads.may_be_erased(digest):
            log.info("erased concept %s, which no round may use", digest[:12])
            state.artefacts.delete_concept(digest)
    for round_ in journal.rounds.all():
        ended_without = not round_.unfinished and round_.status != PUBLISHED
        if ended_without and is_model_of(state, journal, round_.id):
            log.info("erased the model of %s, which is %s and was not published", round_.id, round_.status)
            state.artefacts.delete_model(round_.id)


def _is_old(path: Path) -> bool:
    try:
        return time.time() - path.stat().st_mtime > _HALF_WRITTEN_AFTER_S
    except OSError:
        return False  # it has been finished, or removed, since it was listed


def _erase(path: Path) -> None:
    try:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    except OSError as error:
        raise could_not_write(path, error) from error
