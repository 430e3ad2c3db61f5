"""Models in a store: the files first, and last, only where none is, the manifest that names them.

models/round-001/manifest.json              the model, once it is there
models/round-001/<digest>/                  its other files, by the manifest's SHA-256
models/round-001.own/alice.cat/<digest>/    own changes, by the SHA-256 that the model names

Whoever writes puts its files where no other model's are, so a writer that dies, or comes second,
damages nothing. Whoever reads begins with the manifest, and checks the digests that it has.
"""

from __future__ import annotations

from pathlib import Path

from mos_common.digests import digest_of_bytes
from mos_common.errors import StateError, TrustError
from mos_common.files import replacing_folder, write_atomically
from mos_common.model_files import MANIFEST
from mos_common.own.names import SUFFIX, beside, folder_name, own_digests
from mos_server.state.store import Store


def keep_model(store: Store, folder: Path) -> None:
    """Write a published model and the own changes beside it; the same model again is no change.

    Raises:
        StateError: another model was kept there, or the store cannot be used.

    """
    name = folder.name
    for own in sorted(beside(folder).iterdir()) if beside(folder).is_dir() else ():
        manifest = (own / MANIFEST).read_bytes()
        _put_files(store, own, f"models/{name}{SUFFIX}/{own.name}/{digest_of_bytes(manifest)}", last=manifest)
    manifest = (folder / MANIFEST).read_bytes()
    _put_files(store, folder, f"models/{name}/{digest_of_bytes(manifest)}")
    if not store.put_new(_manifest(name), manifest) and store.get(_manifest(name)) != manifest:
        raise StateError(
            f"{store.url}/{_manifest(name)} is another model: does a second server work on this federation? "
            "Let one of them run"
        )


def fetch_model(store: Store, folder: Path) -> bool:
    """Make `folder` the model of its name that is kept, with its own changes; False if none is.

    Raises:
        StateError: a file is not the one that the manifest names, or the store cannot be used.

    """
    from mos_common.signing import check_files

    name, manifest = folder.name, store.get(_manifest(folder.name))
    if manifest is None:
        return False
    _fetch_own(store, folder, manifest)
    with replacing_folder(folder) as new:
        _get_files(store, f"models/{name}/{digest_of_bytes(manifest)}/", new)
        write_atomically(new / MANIFEST, manifest)
        try:
            check_files(new, manifest)
        except TrustError as error:
            raise StateError(f"{store.url}/models/{name} is damaged ({error}): restore it from a backup") from error
    return True


def stored_manifest(store: Store, name: str) -> bytes | None:
    """Return the manifest of a model that is kept, or None."""
    return store.get(_manifest(name))


def stored_models(store: Store) -> list[str]:
    """Return the names of all models that are kept."""
    parts = [key.split("/") for key in store.entries("models/")]
    return [each[1] for each in parts if each[2:] == [MANIFEST]]


def delete_stored(store: Store, name: str) -> None:
    """Erase a model and its own changes: first what names the files."""
    keys = [key for key in store.entries("models/") if key.split("/")[1] in (name, name + SUFFIX)]
    store.delete([key for key in keys if key == _manifest(name)])
    store.delete([key for key in keys if key != _manifest(name)])


def _fetch_own(store: Store, folder: Path, manifest: bytes) -> None:
    """Fetch own changes; those of a withdrawn concept are not there any more."""
    import json

    digests = own_digests(json.loads(manifest))
    prefixes = {
        folder_name(token): f"models/{folder.name}{SUFFIX}/{folder_name(token)}/{digest}/"
        for token, digest in digests.items()
    }
    there = {name: prefix for name, prefix in prefixes.items() if store.get(prefix + MANIFEST) is not None}
    if there:
        with replacing_folder(beside(folder)) as new:
            for name, prefix in there.items():
                (new / name).mkdir()
                _get_files(store, prefix, new / name)


def _put_files(store: Store, folder: Path, prefix: str, last: bytes | None = None) -> None:
    for path in sorted(folder.iterdir()):
        if path.is_file() and path.name != MANIFEST:
            store.put_file(f"{prefix}/{path.name}", path)
    if last is not None:
        store.put(f"{prefix}/{MANIFEST}", last)


def _get_files(store: Store, prefix: str, folder: Path) -> None:
    for key in store.entries(prefix):
        name = key.removeprefix(prefix)
        if "/" not in name:
            store.get_file(key, folder / name)


def _manifest(name: str) -> str:
    return f"models/{name}/{MANIFEST}"
