"""Forget a person: erase everything in a state folder that they brought or that names them.

What stays is listed: models that were published with them, unless those are removed too, and the
audit, in which nobody can tell any more whom the seals of that person stood for.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mos_common.errors import RequestError
from mos_common.files import could_not_write, write_atomically
from mos_common.own.names import SUFFIX, beside
from mos_common.signing import is_signed
from mos_server.state.folder import State, keep_fusion, locked
from mos_server.state.journal import Journal
from mos_server.upkeep.prune import CANDIDATE, empty_flower_files, remove_path
from mos_server.upkeep.stored import models_naming, named_in_store
from mos_server.upkeep.traces import Traces, traces_of


@dataclass(frozen=True)
class Forgotten:
    """What was erased: the number of keys and uploads, files by path; and what still has them."""

    keys: int
    uploads: int
    erased: list[Path]
    models_removed: list[str]
    models_left: list[str]


def forget(state: State, journal: Journal, name: str, *, models: bool = False) -> Forgotten:
    """Erase a person. `models` also removes the published models that contain their concepts.

    Files go first and the journal last, so that the same command finishes what was interrupted.

    Raises:
        RequestError: nobody has that name.
        StateError: a server is running on the folder, or something cannot be erased.

    """
    with locked(state):
        traces = traces_of(journal, name)
        if traces is None:
            journal.compact()  # an interrupted command may have come as far as that
            known = ", ".join(sorted({each.name for each in journal.participants.all()})) or "none"
            raise RequestError(f"unknown participant {name!r}; known: {known}")
        containing = list(_models_naming(state, traces))
        published = [folder.name for folder in containing if is_signed(folder)]
        doomed = [folder for folder in containing if models or folder.name not in published]
        own = [*_own_of(state, traces), *(beside(folder) for folder in doomed if beside(folder).is_dir())]
        erased = [*own, *doomed, *_files_named_after(state, traces)]
        for path in erased:
            remove_path(path)
        if (store := state.artefacts.store) is not None:
            stored = models_naming(store, traces)
            published = sorted({*published, *stored})
            for key in [*(f"models/{each}" for each in stored if models), *named_in_store(store, traces)]:
                state.artefacts.erase_stored(key)
                erased.append(state.path / key)
        empty_flower_files(state)
        erased += list(_blot_logs(state, traces))
        _blot_settings(state, traces)
        uploads = journal.forget(name, traces.keys, traces.mentioned_in, traces.blotted, traces.without_weights)
        journal.compact()
    return Forgotten(
        keys=len(traces.keys),
        uploads=uploads,
        erased=[path.relative_to(state.path) for path in erased],
        models_removed=published if models else [],
        models_left=[] if models else published,
    )


def _models_naming(state: State, traces: Traces) -> Iterator[Path]:
    """Yield every model whose manifest names the person, candidates too, and half-written ones."""
    for folder in sorted((state.path / "models").iterdir()):
        try:
            found = traces.identified_in((folder / "manifest.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            found = folder.name.startswith(".") or folder.name.endswith(CANDIDATE)
        if found:
            yield folder


def _own_of(state: State, traces: Traces) -> Iterator[Path]:
    """Yield the person's own changes beside every model: they are erased also where models stay."""
    for folder in sorted((state.path / "models").glob(f"*{SUFFIX}/*")):
        try:
            found = traces.identified_in((folder / "manifest.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            found = folder.name.startswith(f"{traces.name}.")
        if found:
            yield folder


def _files_named_after(state: State, traces: Traces) -> Iterator[Path]:
    """Yield files whose name has a digest or a key of the person: concepts, moments, sheets."""
    ours = {state.path / name for name in ("pki", "models", "flower", "log")}
    for path in sorted(state.path.rglob("*")):
        if path.is_file() and not ours.intersection(path.parents) and traces.identified_in(path.name):
            yield path


def _blot_logs(state: State, traces: Traces) -> Iterator[Path]:
    """Replace every mention in the logs. Nobody appends meanwhile: no server runs."""
    for path in sorted(state.log.iterdir()):
        try:
            text = path.read_text(encoding="utf-8", errors="surrogateescape")
        except OSError as error:
            raise could_not_write(path, error) from error
        if traces.mentioned_in(text):
            mode = path.stat().st_mode & 0o777
            write_atomically(path, traces.blotted(text).encode(errors="surrogateescape"), mode=mode)
            yield path


def _blot_settings(state: State, traces: Traces) -> None:
    """Take the weights of the person's concepts out of the federation's settings."""
    fusion = json.loads(json.dumps(dict(state.config.fusion)))
    if (without := traces.without_weights(fusion)) != fusion:
        keep_fusion(state, without)
