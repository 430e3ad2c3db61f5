"""Find what a store of artefacts can do without, and what of one person it has.

`prune.py` and `forget.py` do the same in the state folder.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from mos_common.digests import digest_of_bytes
from mos_common.own.names import SUFFIX, folder_name
from mos_server.state.folder import State
from mos_server.state.journal import Journal
from mos_server.state.records import PUBLISHED
from mos_server.state.store import Store, Stored
from mos_server.state.stored_models import stored_manifest, stored_models
from mos_server.upkeep.traces import Traces

# A writer puts files before the manifest or the journal names them; after an hour it has died.
_LEFT_AFTER_S = 3600.0


class Unneeded(NamedTuple):
    """What nobody needs: an object or all that are below a path, their size in bytes, and why."""

    path: str
    size: int
    why: str


def unneeded_in_store(state: State, journal: Journal, keep: int | None) -> Iterator[Unneeded]:
    """Yield what the store can do without; `keep` is as in `superfluous`.

    Raises:
        StateError: the store or the journal cannot be used.

    """
    store = state.artefacts.store
    if store is None:
        return
    objects = store.entries("")
    kept = {upload.digest for upload in journal.uploads.kept()}
    before = time.time() - _LEFT_AFTER_S
    for key, stored in objects.items():
        whose = key.rpartition("/")[2].partition("-")[0].removesuffix(".safetensors")
        if whose in kept or whose == "ordinary":
            continue
        if key.startswith("moments/"):
            yield Unneeded(key, stored.size, "second moments of a concept that is not kept")
        elif key.startswith("concepts/") and stored.modified < before:
            yield Unneeded(key, stored.size, "an upload that the journal does not have")
    yield from _of_models(store, journal, objects, before, keep)


def models_naming(store: Store, traces: Traces) -> list[str]:
    """Return the names of the models that are kept and whose manifest names a person."""
    manifests = {name: stored_manifest(store, name) or b"" for name in stored_models(store)}
    return [name for name, manifest in manifests.items() if traces.identified_in(manifest.decode(errors="replace"))]


def named_in_store(store: Store, traces: Traces) -> Iterator[str]:
    """Yield the paths of what is a person's alone, and of models that nobody finished."""
    digests = _digests(store)
    for path in _folders(store.entries("models/")):
        _, folder, inside = path.split("/")
        if (folder.endswith(SUFFIX) and inside.startswith(f"{traces.name}.")) or (
            not folder.endswith(SUFFIX) and digests.get(folder) != inside
        ):
            yield path
    for key in [*store.entries("concepts/"), *store.entries("moments/")]:
        if traces.identified_in(key.rpartition("/")[2]):
            yield key


def _of_models(
    store: Store, journal: Journal, objects: dict[str, Stored], before: float, keep: int | None
) -> Iterator[Unneeded]:
    digests, folders = _digests(store), _folders(objects)
    published = [each.id for each in journal.rounds.all() if each.status == PUBLISHED and each.id in digests]
    old = published[: -max(keep, 1)] if keep is not None else []
    for name in old:
        for path in (f"models/{name}", f"models/{name}{SUFFIX}"):
            if size := sum(stored.size for key, stored in objects.items() if key.startswith(f"{path}/")):
                yield Unneeded(path, size, f"of a published model older than the newest {keep}")
    unfinished = [each.id for each in journal.rounds.all() if each.unfinished]
    for path, inside_it in folders.items():
        _, folder, inside = path.split("/")
        name = folder.removesuffix(SUFFIX)
        if name in old or name in unfinished or max(each.modified for each in inside_it) > before:
            continue
        agreed = {folder_name(upload.token) for upload in journal.uploads.admitted(name) if upload.own}
        size = sum(each.size for each in inside_it)
        if folder == name and inside != digests.get(name):
            yield Unneeded(path, size, "left by a process that ended before its model was published")
        elif folder != name and (name not in digests or inside not in agreed):
            yield Unneeded(path, size, "own changes of a concept that was withdrawn, or beside no model")


def _digests(store: Store) -> dict[str, str]:
    """Return the SHA-256 of the manifest of every model that is kept, by its name."""
    return {name: digest_of_bytes(stored_manifest(store, name) or b"") for name in stored_models(store)}


def _folders(objects: Mapping[str, Stored]) -> dict[str, list[Stored]]:
    """Return what is in each models/round-001/<digest> and models/round-001.own/alice.cat."""
    folders: dict[str, list[Stored]] = {}
    for key, stored in objects.items():
        parts = key.split("/")
        if parts[0] == "models" and len(parts) > 3:
            folders.setdefault("/".join(parts[:3]), []).append(stored)
    return folders
