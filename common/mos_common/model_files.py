"""The files of a model's folder, as its manifest lists them: names, sizes and digests.

A folder is a stranger's until its files are checked. The manifest is read once, by one parser that
refuses what two parsers might read differently; a file that it does not list decides nothing.
"""

from __future__ import annotations

import json
import re
import stat
from pathlib import Path
from typing import Any, NamedTuple

from mos_common.digests import digest_of_file
from mos_common.errors import TrustError
from mos_common.texts import is_file_name, visible

MANIFEST = "manifest.json"
# 64 concepts of SDXL, with a residual of each of 736 layers, are 5 MB and have 600 parts. A part
# may be written in three bytes and takes thirty times as many in memory.
MOST_MANIFEST_BYTES, MOST_PARTS = 8 << 20, 100_000
_DIGEST = re.compile(r"[0-9a-f]{64}")
# `round-003`, its candidate, and what a download was renamed to when another of its name came.
_ROUND_FOLDER = re.compile(r"(?P<round>round-\d{3,9})(-candidate)?(\.[0-9a-f]{12})?")


class ListedFile(NamedTuple):
    """What a manifest says of a file."""

    size: int
    sha256: str


def read_manifest(folder: Path) -> bytes:
    """Return the bytes of a folder's manifest.

    Raises:
        TrustError: there is none, it is a link or no file, or it is larger than any.

    """
    try:
        data = read_own_file(folder / MANIFEST, MOST_MANIFEST_BYTES)
        if data.count(b"[") + data.count(b"{") > MOST_PARTS:
            raise OSError(f"it has more than {MOST_PARTS} lists and objects")
        return data
    except OSError as error:
        reason = error.strerror or str(error)
        raise TrustError(
            f"{folder} is not a signed model: {MANIFEST} cannot be read ({reason}): download the model again"
        ) from error


def read_own_file(path: Path, most_bytes: int) -> bytes:
    """Return the bytes of a file of a stranger's folder; a pipe would be waited for without end.

    Raises:
        OSError: it is missing, is a link or no file, or is larger than `most_bytes`.

    """
    found = path.lstat()
    if not stat.S_ISREG(found.st_mode):
        raise OSError(f"it is {'a link' if stat.S_ISLNK(found.st_mode) else 'no file'}")
    if found.st_size > most_bytes:
        raise OSError(f"it is larger than {most_bytes >> 20} MB")
    return path.read_bytes()


def parse_manifest(folder: Path, manifest: bytes) -> dict[str, Any]:
    """Return a manifest as JSON.

    Raises:
        TrustError: it is not an object of JSON, or has one key twice.

    """
    try:
        parsed = json.loads(manifest, object_pairs_hook=_without_doubles, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise TrustError(f"the manifest of {folder} does not list its files: it is not JSON") from error
    if not isinstance(parsed, dict):
        raise TrustError(f"the manifest of {folder} does not list its files")
    return parsed


def listed_files(folder: Path, manifest: bytes) -> dict[str, ListedFile]:
    """Return what a manifest says of each file, by name.

    Raises:
        TrustError: it lists none, or says of a file what cannot be.

    """
    files = parse_manifest(folder, manifest).get("files")
    if not isinstance(files, dict) or not files:
        raise TrustError(f"the manifest of {folder} does not list its files")
    return {name: _listed(folder, name, file) for name, file in files.items()}


def manifest_name(manifest: bytes) -> str | None:
    """Return the round that a manifest says it is of, as it may be shown, or None."""
    name = parse_manifest(Path(MANIFEST), manifest).get("round")
    return visible(name) if isinstance(name, str) else None


def check_file(folder: Path, name: str, listed: ListedFile, *, signed: bool = True) -> None:
    """Check that a file is there, is a file of the folder itself, and is what the manifest says.

    Raises:
        TrustError: it is not.

    """
    path = folder / name
    try:
        found = path.lstat()
        if stat.S_ISLNK(found.st_mode):
            raise TrustError(f"{name} of {folder} is a link: put the file itself there, or download the model again")
        if not stat.S_ISREG(found.st_mode):
            raise TrustError(f"{name} of {folder} is missing: download the model again")
        same = found.st_size == listed.size and digest_of_file(path) == listed.sha256
    except FileNotFoundError as error:
        raise TrustError(f"{name} of {folder} is missing: download the model again") from error
    except OSError as error:
        raise TrustError(f"{name} of {folder} cannot be read ({error.strerror})") from error
    if not same:
        if signed:
            raise TrustError(f"{name} of {folder} was changed after it was signed: download the model again")
        raise TrustError(f"{name} of {folder} was changed after it was written: fuse or download the model again")


def check_name(folder: Path, manifest: bytes) -> None:
    """Check that a folder that is named like a round has the model of that round.

    Raises:
        TrustError: it has that of another round.

    """
    named, round_ = _ROUND_FOLDER.fullmatch(folder.resolve().name), manifest_name(manifest)
    if named and named["round"] != round_:
        raise TrustError(
            f"{folder} has the model of {round_ or 'no round'}, not of {named['round']}: somebody renamed or swapped "
            f"it. Download {named['round']} again"
        )


def not_listed(folder: Path, manifest: bytes, besides: tuple[str, ...]) -> list[str]:
    """Return the names in a folder that the manifest does not list; `besides` are expected."""
    expected = {*listed_files(folder, manifest), MANIFEST, *besides}
    return sorted(path.name for path in folder.iterdir() if path.name not in expected)


def _listed(folder: Path, name: str, file: Any) -> ListedFile:
    if not is_file_name(name) or name == MANIFEST:
        raise TrustError(f"the manifest of {folder} lists {name!r}, which is not the name of a file of a model")
    size, digest = (file.get("size"), file.get("sha256")) if isinstance(file, dict) else (None, None)
    if type(size) is not int or size < 0 or not isinstance(digest, str) or not _DIGEST.fullmatch(digest):
        raise TrustError(f"the manifest of {folder} does not list its files: size or digest of {name} is not one")
    return ListedFile(size, digest)


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key stands twice in one object")
    return found


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")
